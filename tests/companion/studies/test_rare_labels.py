"""The study of labels with few documents: its rows, that it goes on, and its table."""

import numpy as np
import pytest

from companion.studies import rare_labels
from companion.studies.rare_labels import AFTER, BEFORE, COLUMNS, Cut
from plantlib.linear import score as linear_score
from plantlib.training import artefacts


@pytest.fixture
def cut(corpus, monkeypatch, tmp_path):
    """The small test corpus, with artefacts in a folder of the test."""
    monkeypatch.setattr(Cut, "corpus", lambda self, seed: corpus.with_dev().seen_in_train())
    monkeypatch.setattr(artefacts, "root_of", lambda root=None: tmp_path / "artefacts")
    return Cut("small")


def test_a_row_for_every_term_and_for_the_sum_before_and_after(cut, tmp_path, monkeypatch):
    file = tmp_path / "rare.csv"
    rows = rare_labels.run([cut], file)
    names = [*linear_score.columns_of(), BEFORE, AFTER]
    assert [row["system"] for row in rows] == names
    assert all(tuple(row) == COLUMNS for row in rare_labels.read(file))
    assert all(0 <= float(row[name]) <= 100 for row in rows for name in rare_labels.METRICS)
    # what the file holds is not computed again
    monkeypatch.setattr(rare_labels, "rows_of", lambda *_: pytest.fail("computed again"))
    assert rare_labels.run([cut], file) == rare_labels.read(file)


def test_the_table_means_over_seeds_and_names_the_best_term():
    def row(system: str, seed: int, few: float, ndcg: float) -> dict:
        about = {"corpus": "small", "train": "9", "seed": str(seed), "system": system}
        return about | dict(zip(rare_labels.METRICS, (few, 0, ndcg, 0), strict=True))

    rows = [row("svm", s, 10 + s, 50) for s in (0, 2)] + [row("raw", s, 30, 20) for s in (0, 2)]
    rows += [row(BEFORE, s, 8, 60 + s) for s in (0, 2)] + [row(AFTER, s, 31, 61) for s in (0, 2)]
    line = rare_labels.table(rows).splitlines()[-1]
    assert line == "| small | 9 | 2 | raw | 30.0 | 8.0 | 31.0 | 50.0 | 61.0 | 61.0 |"


def test_cuts_say_what_is_read():
    assert Cut("debtags", 400, words=20).name == "debtags, first 20 words"
    assert len({(cut.name, cut.train) for cut in rare_labels.CUTS}) == len(rare_labels.CUTS)
    assert np.all([cut.seeds for cut in rare_labels.CUTS if cut.words])
