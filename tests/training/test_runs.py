"""Runs end to end on the tiny corpus: every start, the peers, the grid and `fit`.

docs/method.md, "Starts", "Choosing on dev, reading test once" and "Controls and peers". Records are
valid and complete, test is read once, starts differ only in initial values, and a user's own table
with odd names works too.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from companion.peers.runs import run_linear_score, run_peers
from plantlib import Corpus, RunConfig, RunRecord, fit, prepare
from plantlib.backbones import loading
from plantlib.linear.score import LinearConfig
from plantlib.metrics.documents import evaluate
from plantlib.planting import starts
from plantlib.planting.l2r import L2RConfig
from plantlib.training import artefacts, evaluation, runs, schedules, train
from plantlib.training.ingredients import Ingredients, build_model, teacher_of, use_score
from plantlib.training.options import TrainConfig
from plantlib.training.records import load_all
from plantlib.training.runs import run_grid, run_start
from plantlib.utils.base import DataError
from tests.conftest import OPERATIONS
from tests.tolerances import near

STARTS = ("random", "lookup", "l2r", "closed_form", "shuffled", "lookup+score")
QUICK = RunConfig(train=TrainConfig(epochs=1, batch_size=16), l2r=L2RConfig(epochs=1))


@pytest.fixture(scope="module")
def grid(prepared, tmp_path_factory):
    """(records, folder, splits in the order they were scored) of one epoch of every start."""
    folder = tmp_path_factory.mktemp("results")
    reads = []
    score = evaluation.score
    splits = {tuple(rows): name for name, rows in prepared.rows.items()}

    def score_and_note_split(model, documents, *args, **kwargs):
        reads.append(splits[tuple(documents.rows)])
        return score(model, documents, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "score", score_and_note_split)
        patch.setattr(evaluation, "score", score_and_note_split)
        records = run_grid(
            prepared, STARTS, seeds=(0,), config=QUICK, results=folder, progress=False
        )
    return records, folder, reads


def test_every_start_gives_a_saved_and_valid_record(grid, prepared):
    records, folder, _ = grid
    assert [r.system for r in records] == list(STARTS)
    for record in records:
        assert RunRecord.load(folder / f"{record.id}.json") == record
        assert record.kind == "planted" and record.seed == 0 and record.dataset["test"] == 20
        assert (
            0 <= record.metrics["p@1"] <= 1
            and record.metrics["micro_auc"] > 0
            and record.chosen_epoch == 1
        )
        assert len(record.history) == 1 and len(record.per_document["ndcg@5"]) == 20
        assert np.mean([x for x in record.per_document["p@1"]]) == pytest.approx(
            record.metrics["p@1"], abs=1e-3
        )
        assert set(record.times) == {
            "teacher",
            "l2r",
            "linear",
            "fine_tune",
            "evaluate",
            "train_cpu",
        }
        assert record.times["train_cpu"] > 0 and ("word_cells" in record.model_size) == (
            "linear" in record.system
        )
        assert ("l2r" in record.teacher) == (record.system in ("l2r", "closed_form"))
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{r.id}.json" for r in records)
    assert not list((prepared.root / "checkpoints").iterdir()), (
        "checkpoints of finished runs are removed"
    )


def test_test_documents_are_read_once_a_run(grid):
    _, _, reads = grid
    # dev after the epoch, to raise rare labels, and for threshold and calibration; then test
    assert reads == ["dev", "dev", "dev", "test"] * len(STARTS)


def test_planting_beats_its_control_after_one_epoch(grid):
    ndcg = {record.system: record.metrics["ndcg@5"] for record in grid[0]}
    assert ndcg["lookup"] > ndcg["shuffled"] and ndcg["lookup+score"] > ndcg["random"]


def test_second_call_reads_the_finished_records(grid, prepared, monkeypatch):
    records, folder, _ = grid
    monkeypatch.setattr(
        runs, "run_start", lambda *a, **k: pytest.fail("a finished run was repeated")
    )
    assert (
        run_grid(prepared, STARTS, seeds=(0,), config=QUICK, results=folder, progress=False)
        == records
    )


def test_a_finished_record_has_the_same_seed_options_and_inputs(grid, prepared, tmp_path):
    record = grid[0][0]
    path = record.save(tmp_path)
    assert runs.finished(path, prepared, QUICK, 0) == record
    assert runs.finished(path, prepared, QUICK, 1) is None
    assert runs.finished(path, replace(prepared, key="another"), QUICK, 0) is None
    assert runs.finished(path, prepared, replace(QUICK, static_dim=16), 0) is None
    before = {name: value for name, value in record.params.items() if name != "rare_added"}
    assert not runs.made_with(replace(record, params=before), prepared, QUICK, 0)
    path.unlink()
    assert runs.finished(path, prepared, QUICK, 0) is None
    del record.params["static_dim"]
    try:
        assert not runs.made_with(record, prepared, QUICK, 0), "the record lacks an option"
    finally:
        record.params["static_dim"] = QUICK.static_dim


def test_runs_of_other_parameters_are_not_taken_for_finished(grid, prepared, tmp_path, monkeypatch):
    records, _, _ = grid
    records[0].save(tmp_path)
    other = RunConfig(train=TrainConfig(epochs=1, batch_size=15), l2r=QUICK.l2r)
    jobs = []

    def note_job(inputs, start, seed, **options):
        jobs.append((start, seed))
        return records[0], None

    monkeypatch.setattr(runs, "run_start", note_job)
    run_grid(prepared, ("random",), seeds=(0,), config=other, results=tmp_path, progress=False)
    assert jobs == [("random", 0)]


def test_a_run_repeats_to_the_same_metrics(grid, prepared):
    record, _ = run_start(prepared, "lookup", 0, config=QUICK, progress=False)
    first = next(r for r in grid[0] if r.system == "lookup")
    assert record.metrics == near(first.metrics, operations=0)


@pytest.mark.parametrize(
    ("start", "differs"),
    [
        ("lookup", {"decoder.planted_gain"}),
        (
            "shuffled",
            {
                "decoder.planted_gain",
                "decoder.planted.planted_indptr",
                "decoder.planted.planted_labels",
                "decoder.planted.planted_values",
            },
        ),
        ("score", {"decoder.teacher_gain"}),
    ],
    ids=["lookup", "shuffled", "score"],
)
def test_starts_differ_only_where_they_begin(start, differs, prepared):
    models = {}
    for name in ("random", start):
        teacher = teacher_of(prepared)
        models[name] = build_model(prepared, teacher)
        starts.plant(models[name].decoder, name, teacher, prepared.train_labels)
        use_score(models[name], name.split("+"), teacher, prepared)
    bare, planted = (models[name].state_dict() for name in ("random", start))
    shared = {n for n in bare if n in planted}
    assert all(bare[n].shape == planted[n].shape for n in shared) and {n for n in bare} == shared
    assert all(
        n.startswith("teacher_score.") and start == "score" for n in planted if n not in bare
    )
    assert {n for n in shared if not torch.equal(bare[n], planted[n])} <= differs
    assert (set(differs) & {"decoder.planted_gain", "decoder.teacher_gain"}) <= {
        n for n in shared if not torch.equal(bare[n], planted[n])
    }


def test_peers_give_the_seven_rows(prepared, tmp_path):
    records = run_peers(prepared, results=tmp_path, progress=False)
    systems = ["bare J", "bare MI", "bare PPMI", "bare centroid", "SVM", "SVM + J", "SVM + MI"]
    assert [r.system for r in records] == systems
    assert [r.kind for r in records] == ["teacher"] * 4 + ["linear"] * 3
    assert sorted(load_all(tmp_path), key=lambda r: systems.index(r.system)) == records
    assert {r.dataset["label_space"] for r in records} == {"labels with a training document"}
    assert all(r.params["weight"] > 0 for r in records[-2:])
    assert records[4].metrics["p@1"] > 0.8, "labels of the tiny corpus follow from words"


def test_the_untrained_linear_score_is_a_row_of_its_own(prepared, tmp_path, monkeypatch):
    """It equals an untrained model that begins from the linear score; finished rows are read."""
    (record,) = run_linear_score(
        prepared, [3], config=LinearConfig(folds=2), results=tmp_path, progress=False
    )
    assert (
        record.id.endswith("linear_score-s3")
        and record.system == "linear score"
        and record.teacher["linear"]
    )
    linear = artefacts.linear_scores(prepared, LinearConfig(folds=2), seed=3, progress=False)
    model = build_model(prepared, Ingredients(teacher_of(prepared), linear=linear))
    starts.plant(model.decoder, "lookup+linear", teacher_of(prepared), prepared.train_labels)
    use_score(model, ["lookup", "linear"], teacher_of(prepared), prepared)
    scores, labels = evaluation.score(
        model, prepared.documents("test", True, linear), prepared.train_counts
    )
    metrics = evaluate(scores, labels, prepared.train_counts, len(prepared.rows["train"]))
    assert {n: record.metrics[n] for n in ("p@1", "ndcg@5", "psp@5")} == pytest.approx(
        {n: metrics[n] for n in ("p@1", "ndcg@5", "psp@5")}, abs=1e-6
    )
    (other,) = run_linear_score(
        prepared, [3], config=LinearConfig(folds=3), results=tmp_path, progress=False
    )
    assert other != record, "made with other options"
    (record,) = run_linear_score(
        prepared, [3], config=LinearConfig(folds=2), results=tmp_path, progress=False
    )
    monkeypatch.setattr(artefacts, "linear_scores", lambda *a: pytest.fail("fitted again"))
    assert run_linear_score(
        prepared, [3], config=LinearConfig(folds=2), results=tmp_path, progress=False
    ) == [record]


def test_label_only_in_test_is_outside_the_label_space_and_counted(prepared, corpus, grid):
    assert "only test" in corpus.label_names and "only test" not in prepared.corpus.label_names
    assert (
        np.flatnonzero(prepared.extra_gold).tolist() == [81, 95] and prepared.extra_gold.sum() == 2
    )
    for record in grid[0]:
        assert record.dataset["labels"] == 7
        assert record.metrics["all/r@5"] < record.metrics["r@5"]


def test_fit_returns_a_model_that_reads_text(
    corpus, backbone_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(schedules, "LR_OUTPUTS", 0.05)
    config = RunConfig(train=TrainConfig(epochs=4, batch_size=8, lr_queries=0.05))
    options = {"root": tmp_path, "max_tokens": None, "progress": False}
    model = fit(corpus, backbone=backbone_folder, start="lookup+score", config=config, **options)
    (best, chance), *_ = model.predict(["the pulse and the valve were seen", "a cough"], k=3)[0]
    assert best == "heart" and 0 < chance <= 1
    assert model.explain("the pulse was seen", "heart").top_words(1)[0][0] == "pulse"
    assert "tiny" in capsys.readouterr().out
    model.save_pretrained(tmp_path / "out")
    assert (
        type(model).from_pretrained(tmp_path / "out").predict(["a cough"])[0][0]
        == model.predict(["a cough"])[0][0]
    )


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_tuned_backbones_are_scored_saved_and_loaded_whole(tuning, prepared, tmp_path):
    """The trained backbone predicts and is saved; LoRA saves its adapters."""
    config = replace(
        QUICK, tuning=tuning, train=TrainConfig(epochs=1, batch_size=16, lr_backbone=0.05)
    )
    record, model = run_start(
        prepared, "lookup", 0, config=config, results=tmp_path, progress=False
    )
    assert f"-{tuning}-lookup" in record.id and model.backbone is not None and not model.training
    before = loading.load(prepared.backbone).model.state_dict()
    if tuning == "lora":
        bare = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): weight.cpu()
            for name, weight in model.backbone.state_dict().items()
        }
        assert all(torch.equal(bare[n], t) for n, t in before.items()), "LoRA changes no weight"
        assert any(t.abs().sum() > 0 for n, t in bare.items() if "lora_B" in n), "adapters learn"
    else:
        name = "encoder.layer.0.attention.self.query.weight"
        assert not torch.allclose(model.backbone.state_dict()[name].cpu(), before[name])
    sizes = record.model_size
    assert (
        0
        < sizes["trained_in_backbone"]
        < sizes["trained_parameters"]
        < sizes["parameters"] + (tuning == "full")
    )
    scores, labels = evaluation.score(
        model, prepared.documents("test", cached=False), prepared.train_counts
    )
    assert evaluate(scores, labels, prepared.train_counts, 60)["p@1"] == pytest.approx(
        record.metrics["p@1"]
    )
    model.save_pretrained(tmp_path / "m")
    text = prepared.corpus.texts[90:]
    for ours, theirs in zip(
        model.predict(text), type(model).from_pretrained(tmp_path / "m").predict(text), strict=True
    ):
        assert dict(ours) == near(dict(theirs), OPERATIONS)


@pytest.mark.parametrize(
    "names",
    [
        [
            "Ärzte & Pflege",
            "I50.9 / heart failure",
            "子宮",
            'with "quotes", comma',
            "label_queries",
            "0",
            "e é",
        ],
        ["yes", "no"],
    ],
    ids=["odd names", "two labels"],
)
def test_a_users_table_goes_the_same_road(names, backbone_folder, tmp_path):
    """Odd label and file names, and fewer labels than the k of most metrics."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(50):
        labels = [names[i % len(names)]] + ([names[(i + 3) % len(names)]] if i % 5 == 0 else [])
        words = " ".join(
            ["abcdefg"[names.index(label)] * 3 for label in labels]
            + rng.choice(["the", "was", "and"], 6).tolist()
        )
        split = ("train", "train", "train", "dev", "test")[(i // 7) % 5]
        rows.append({"Text": words, "Etiketten": "|".join(dict.fromkeys(labels)), "Teil": split})
    path = tmp_path / "meine Daten (neu).csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    corpus = Corpus.from_csv(path, text="Text", labels="Etiketten", sep="|", split="Teil")
    ready = prepare(corpus, backbone=backbone_folder, root=tmp_path / "a", progress=False)
    record, model = run_start(
        ready, "lookup+score", 0, config=QUICK, results=tmp_path / "r", progress=False
    )
    assert json.loads(next((tmp_path / "r").iterdir()).read_text())["id"] == record.id
    assert set(ready.corpus.label_names) == set(names) == set(model.config.label2id)
    assert run_grid(
        ready, ("lookup+score",), (0,), config=QUICK, results=tmp_path / "r", progress=False
    ) == [record]
    assert record.history[0]["epoch"] == 1 and record.metrics["p@1"] >= 0
    run_peers(ready, results=tmp_path / "r", progress=False)


def test_corpus_without_a_test_split_is_refused_before_any_work(backbone_folder, tmp_path):
    lonely = Corpus.from_lists(
        "lonely", ["a", "b"] * 1, ["x", "y"], [["p"], ["q"]], ["train", "dev"]
    )
    with pytest.raises(DataError, match="no documents in split 'test'"):
        prepare(lonely, backbone=backbone_folder, root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_thresholds_of_labels_and_places_are_measured_beside_one_for_all(grid, prepared):
    unseen = prepared.extra_gold[prepared.rows["test"]].sum()
    for record in grid[0]:
        metrics = record.metrics
        for end in ("", "_by_label", "_by_place"):
            lower, f1 = metrics[f"all/micro_f1{end}"], metrics[f"micro_f1{end}"]
            assert (lower < f1) if unseen and f1 else lower == pytest.approx(f1)
            assert 0 <= metrics[f"macro_f1{end}"] <= 1
    assert any(r.metrics["micro_f1"] != r.metrics["micro_f1_by_label"] for r in grid[0])
