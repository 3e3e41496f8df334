"""Answers to reviewers and costs by stage, from made records and study files."""

from __future__ import annotations

import numpy as np
import pytest

from companion.report import costs, report
from companion.studies import bigger_backbone, frequency, languages, questions, steps, transplants
from plantlib.utils.io import write_json
from tests.companion.report.test_report import record

ABOUT = {"dataset": {"name": "toy"}, "training": False}


def transplant_file(attention: float, host: float) -> dict:
    """A file in which attention and host add this much to every document."""
    cells = {}
    for own, other in transplants.CELLS:
        value = 0.3 + attention * (other == "planted") + host * (own == "planted")
        cells[f"{own} with attention of {other}"] = {
            "per_document": {metric: [value] * 6 for metric in transplants.METRICS},
            "average_precision": [value] * 3,
        }
    return {"about": ABOUT, "steps": cells}


def test_questions_without_a_study_name_the_command(tmp_path):
    lines = questions.table([], [], tmp_path).splitlines()
    assert len(lines) == 2 + len(questions.QUESTIONS) + 2
    for name in ("transplants-es", "frequency", "labels", "languages"):
        assert f"`make run RUN=runs/questions-{name}.yaml`" in "\n".join(lines)


def test_the_share_of_attention_is_told_with_its_runs(tmp_path):
    for seed in (0, 1):
        path = tmp_path / steps.FOLDER / f"transplants-toy-s{seed}.json"
        write_json(path, transplant_file(0.3, 0.1))
    answer, runs = questions.causal(tmp_path)
    assert "**toy, nDCG@5** (2): planting as a whole +40.0 [+40.0, +40.0]" in answer
    assert "attention alone +30.0" in answer and "share by attention 75 % [75, 75]" in answer
    assert runs == "transplants-toy-s0, transplants-toy-s1"
    part = transplant_file(0.3, 0.1)
    part["steps"].popitem()
    write_json(tmp_path / steps.FOLDER / "transplants-toy-s2.json", part)
    assert questions.causal(tmp_path)[1] == runs, "a seed that is not finished is left out"


def test_a_bigger_backbone_stands_beside_planting(tmp_path):
    made = [
        record(start, seed, value, data="codiesp", backbone=backbone, notebook="08_backbones")
        for seed in (0, 1)
        for backbone, start, value in (
            ("minilm", "random", 0.4),
            ("minilm", "lookup", 0.5),
            ("smollm2", "random", 0.6),
            ("smollm2", "lookup", 0.6),
        )
    ]
    for one in made:
        one.params.update(tuning="lora", max_tokens=64)
        one.times["fine_tune"] = 10.0 if one.backbone == "minilm" else 90.0
    answer, runs = questions.bigger(made, tmp_path)
    assert "planting in 23 M parameters +10.0" in answer
    assert "135 M parameters instead +20.0" in answer and "10 s and 90 s" in answer
    assert len(runs.split(", ")) == 8
    assert questions.tuned(made[:3])[0].startswith("Not run yet")
    assert "questions-bigger-backbone.yaml" in questions.bigger(made[:3], tmp_path)[0]


@pytest.mark.parametrize(
    ("tuning", "begin", "price"),
    [
        ("frozen", "Both frozen", "400 CPU ms to read a document, once, and 50 CPU s"),
        ("lora", "Both with LoRA", "50 CPU s of training"),
    ],
)
def test_a_bigger_backbone_has_its_effects_and_its_price(tuning, begin, price, tmp_path):
    folder = tmp_path / steps.FOLDER / bigger_backbone.folder_of(tuning)
    values = {"minilm": (0.4, 0.5), "mpnet": (0.6, 0.65)}
    for seed in (0, 1):
        for backbone, pair in values.items():
            for start, value in zip(("random", "lookup"), pair, strict=True):
                one = record(start, seed, value, data="codiesp", backbone=backbone)
                one.params.update(max_tokens=128, tuning=tuning)
                one.times["train_cpu"] = 20.0 if backbone == "minilm" else 50.0
                one.save(folder)
    made = {
        name: {"parameters": size, "seconds_a_document": seconds}
        for name, size, seconds in (("minilm", 22_700_000, 0.05), ("mpnet", 109_000_000, 0.4))
    }
    write_json(tmp_path / steps.FOLDER / "bigger_backbone-toy.json", {"steps": made})
    answer, runs = questions.bigger([], tmp_path)
    assert "**lookup against random, nDCG@5** (2): planting in the small one +10.0" in answer
    assert "the bigger one instead +20.0" in answer and "both +25.0" in answer
    assert "planting in the bigger one +5.0" in answer
    assert answer.startswith(f"{begin}, 128 tokens of codiesp. minilm, 23 M parameters: ")
    assert f"mpnet, 109 M parameters: {price}" in answer
    assert runs == f"questions/{folder.name}, 8 records"


def test_correlations_with_words_are_listed_by_measure(tmp_path):
    values = {m: [0.1, 0.3, None] for m in frequency.MEASURES}
    file = {"about": ABOUT, "steps": {"seed 0": {"planted, before training": values}}}
    write_json(tmp_path / steps.FOLDER / "frequency-toy.json", file)
    answer, runs = questions.words(tmp_path)
    assert "**tf-idf, toy** (1): planted, before training +0.20" in answer
    assert "Trained attention was not measured." in answer and runs == "frequency-toy"


def test_one_paragraph_has_a_sentence_for_every_answer(tmp_path):
    assert questions.in_words([], tmp_path) == ""
    folder = tmp_path / steps.FOLDER
    write_json(folder / "transplants-toy-s0.json", transplant_file(0.3, 0.1))
    nothing = transplant_file(0.0, 0.0) | {"about": {"dataset": {"name": "other"}}}
    write_json(folder / "transplants-other-s0.json", nothing)
    values = {m: [0.1, 0.3, 0.2] for m in frequency.MEASURES}
    file = {"about": ABOUT, "steps": {"seed 0": {"planted, after training": values}}}
    write_json(folder / "frequency-toy.json", file)
    for data, backbone, start, value, study in (
        ("codiesp", "minilm", "random", 0.4, bigger_backbone.STUDY),
        ("codiesp", "minilm", "lookup", 0.5, bigger_backbone.STUDY),
        ("codiesp", "mpnet", "random", 0.6, bigger_backbone.STUDY),
        ("codiesp", "mpnet", "lookup", 0.65, bigger_backbone.STUDY),
        ("codiesp", "minilm", "random", 0.4, languages.STUDY),
        ("codiesp", "minilm", "lookup", 0.5, languages.STUDY),
        ("codiesp-es", "minilm", "random", 0.2, languages.STUDY),
        ("codiesp-es", "minilm", "lookup", 0.6, languages.STUDY),
    ):
        one = record(start, 0, value, data=data, backbone=backbone)
        one.params.update(max_tokens=128, tuning="frozen")
        one.save(folder / study)
    text = questions.in_words([], tmp_path)
    assert "brings 75 % [75, 75] on toy of what planting gains" in text
    assert "frozen, gains +10.0 [+10.0, +10.0] points of nDCG@5" in text
    assert "in its place +20.0 [+20.0, +20.0], both +25.0" in text
    assert "marked words of toy by a rank correlation of +0.20" in text
    assert "planting lookup gains: Spanish +40.0" in text and "English +10.0" in text


def test_costs_have_seconds_shares_and_milliseconds():
    times = {"teacher": 1.0, "l2r": 0.0, "linear": 4.0, "fine_tune": 14.0, "evaluate": 1.0}
    options = {"data": "codiesp", "dataset": {"dev": 16}, "times": times, "peak_memory_mb": 900.0}
    made = [record("lookup+linear", seed, **options) for seed in (0, 1)]
    groups = report.groups(made)
    row = next(line for line in costs.table(groups).splitlines() if "lookup+linear" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3:8] == ["1.0 (5 %)", "0.0 (0 %)", "4.0 (20 %)", "14.0 (70 %)", "1.0 (5 %)"]
    assert cells[8:] == ["-", "50.0", "900"]
    assert costs.shares(groups) == "5.0 % of 20 s (codiesp, 100 documents)"
    assert costs.table([]) == report.NO_RUNS and costs.shares([]) == ""


@pytest.mark.parametrize(
    "low, high, text", [(0.1, 0.2, "+15.0 [+10.0, +20.0]"), (-0.2, -0.1, "-15.0 [-20.0, -10.0]")]
)
def test_points(low, high, text):
    assert questions.points({"value": np.mean([low, high]), "low": low, "high": high}) == text
