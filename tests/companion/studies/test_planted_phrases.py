"""The study of planted phrases, on a corpus of a hundred short documents."""

from __future__ import annotations

import csv

from companion.studies import planted_phrases
from plantlib.training.runs import run_grid
from tests.training.test_runs import QUICK


def test_rows_hold_means_and_differences_and_take_the_place_of_old_ones(prepared, tmp_path):
    starts = ("linear", "phrases+linear")
    records = run_grid(
        prepared, starts, [0], config=QUICK, results=tmp_path / "records", progress=False
    )
    rows = planted_phrases.rows_of(records, "linear")
    assert [row["system"] for row in rows] == list(starts)
    assert rows[0]["ndcg@5 difference"] == "-" and rows[1]["ndcg@5 difference"].endswith("]")
    for row, record in zip(rows, records, strict=True):
        assert float(row["p@1"]) == round(100 * record.metrics["p@1"], 2)
    file = tmp_path / planted_phrases.FILE
    planted_phrases.write(rows, file)
    planted_phrases.write([dict(row, documents=1) for row in rows], file)
    planted_phrases.write(rows[:1], file)
    with file.open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [(row["documents"], row["system"]) for row in read] == [
        ("1", "linear"),
        ("1", "phrases+linear"),
        (str(prepared.about()["train"]), "linear"),
    ]
