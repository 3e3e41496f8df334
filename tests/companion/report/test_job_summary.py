"""The end of `make reproduce`: its sentence, its table and their width."""

from __future__ import annotations

from pathlib import Path

import pytest

from companion.report import job_summary, report
from plantlib.training.records import RunRecord

RUNS = Path(__file__).resolve().parents[3] / "results" / "runs"
ENVIRONMENT = {
    "python": "3",
    "torch": "2",
    "transformers": "5",
    "cpu": "cpu",
    "cores": 2,
    "commit": "c",
    "dirty": False,
}
DATASET = {
    "name": "toy",
    "fingerprint": "f0",
    "train": 100,
    "dev": 10,
    "test": 4,
    "labels": 7,
    "label_space": "seen",
    "synthetic": True,
}


def record(system: str, seed: int, values: list[float], tokens: int = 64, **dataset) -> RunRecord:
    """A planted run; values: nDCG@5 of the four test documents."""
    mean = sum(values) / len(values)
    return RunRecord(
        id=f"toy-{tokens}-{system}-{seed}",
        kind="planted",
        dataset=DATASET | dataset,
        system=system,
        seed=seed,
        metrics={"ndcg@5": mean, "p@1": mean, "few/rp@5": mean, "p@5": mean},
        params={"max_tokens": tokens},
        backbone="minilm",
        per_document={"ndcg@5": values},
        environment=ENVIRONMENT,
    )


def group(*records: RunRecord) -> report.Group:
    (one,) = report.groups(records)
    return one


def test_the_sentence_says_what_was_compared_and_that_it_differs_from_zero():
    runs = [record("linear", seed, [0.1, 0.2, 0.3, 0.4]) for seed in (0, 1)]
    runs += [record("lookup+linear", seed, [0.2, 0.3, 0.4, 0.5]) for seed in (0, 1)]
    assert job_summary.sentence(group(*runs)) == (
        "Planting changed nDCG@5 on test by +10.0 points (95 % interval +10.0 to +10.0,"
        " distinguishable from zero): `lookup+linear` reached 35.0, and `linear`, the same model"
        " with nothing planted in its attention, 25.0; toy, 4 test documents, mean of 2 seeds."
    )


def test_an_interval_over_zero_is_not_distinguishable_from_it():
    runs = [record("random", 0, [0.5, 0.5, 0.5, 0.5]), record("lookup", 0, [0.1, 0.9, 0.4, 0.6])]
    sentence = job_summary.sentence(group(*runs))
    assert ", not distinguishable from zero): `lookup`" in sentence and sentence.endswith(
        "mean of 1 seed."
    )


def test_a_loss_has_its_sign_and_only_common_seeds_count():
    runs = [record("score", 0, [0.5, 0.6, 0.7, 0.8]), record("score", 1, [0.9] * 4)]
    runs.append(record("lookup+score", 0, [0.4, 0.5, 0.6, 0.7]))
    sentence = job_summary.sentence(group(*runs))
    assert (
        "by -10.0 points" in sentence
        and "`score`, the same model" in sentence
        and "65.0" in sentence
    )


def test_without_a_control_the_sentence_says_which_pairs_would_do():
    sentence = job_summary.sentence(group(record("lookup", 0, [0.1] * 4)))
    assert (
        "does not say what planting is worth" in sentence and "`lookup` with `random`" in sentence
    )


def test_the_group_of_the_job_is_found_among_those_of_earlier_jobs():
    groups = report.groups(
        [
            record("random", 0, [0.1] * 4),
            record("random", 1, [0.1] * 4, tokens=128),
            record("random", 2, [0.1] * 4, fingerprint="f1", train=50),
        ]
    )
    assert len(groups) == 3
    assert job_summary.group_of(groups, "f0", 128, "minilm").records[0].seed == 1
    assert job_summary.group_of(groups, "f1", 64, "minilm").records[0].seed == 2
    assert job_summary.group_of(groups, "f2", 64, "minilm") is None
    assert job_summary.group_of(groups, "f0", 64, "models/other") is None


def test_names_of_systems_are_cut_before_a_line_grows_too_long():
    long = "closed_form+lookup+score+linear+text" * 3
    runs = [record(s, seed, [0.1 * seed + 0.2] * 4) for s in ("random", long) for seed in (0, 1)]
    table = job_summary.short_table(group(*runs)).splitlines()
    assert max(map(len, table)) <= 100 and any("…" in line for line in table)


@pytest.mark.parametrize(
    "stem", ["codiesp-500d-256t", "eurlex57k-1000d-256t", "debtags-2000d-256t"]
)
def test_committed_records_give_lines_of_at_most_100_columns(stem):
    records = [RunRecord.load(path) for path in RUNS.glob(f"{stem.rsplit('-', 1)[0]}-*.json")]
    (one,) = [g for g in report.groups(records) if g.stem == stem]
    lines = job_summary.text(one).splitlines()
    assert max(map(len, lines)) <= 100
    head, ruler, *rows = lines[lines.index("") + 1 :]
    assert head.split()[:3] == ["system", "seeds", "nDCG@5"] and set(ruler) == {"-"}
    assert f"against {job_summary.reference(one)}" in head and len(one.systems) <= len(rows)
    system = "lookup" if "lookup" in one.systems else "lookup+linear"
    value = one.table().loc[system, "ndcg@5"]
    (row,) = [line for line in rows if line.startswith(f"{system} ")]
    assert f" {100 * value:.1f} " in row
