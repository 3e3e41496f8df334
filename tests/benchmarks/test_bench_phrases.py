"""The benchmark of phrases: generated documents hold their phrases, and rows are written."""

import csv

import numpy as np
from scipy import sparse

from benchmarks import bench_phrases
from plantlib.teacher import phrases


def test_generated_documents_hold_their_phrases():
    made, texts = bench_phrases.generated(50, np.random.default_rng(1))
    rows = sparse.csr_matrix((bench_phrases.TRAIN, 50))
    label_texts = [[phrase] for phrase in made]
    teacher = phrases.teach(texts[: bench_phrases.TRAIN], rows, label_texts=label_texts)
    found = teacher.scores(texts[bench_phrases.TRAIN :])
    # ten of fifty are drawn with repeats, and a drawn word may make another one
    assert 7 <= np.diff(found.indptr).mean() <= 12


def test_a_row_is_written_for_each_number_of_phrases(tmp_path):
    out = tmp_path / "phrases.csv"
    bench_phrases.main(["--sizes", "100", "200", "--out", str(out)])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["phrases"] for row in rows] == ["100", "200"]
    assert all(float(row["ms_per_document"]) > 0 for row in rows)
