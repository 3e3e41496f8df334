"""Data sets of the package `datasets` as corpora, and a fit on one."""

from __future__ import annotations

import pytest

from plantlib import Corpus
from plantlib.utils.base import DataError

pytestmark = pytest.mark.filterwarnings("ignore:1 of .* have no labels|.*never in train")
datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")

ROWS = {
    "note": ["pulse and valve", "cough", "rash and itch", "vision", "no sign"],
    "codes": [["I10", "I50"], ["J45"], ["L20"], ["H54"], []],
}


def labels_of(corpus: Corpus) -> list[list[str]]:
    return [[corpus.label_names[j] for j in row.indices] for row in corpus.labels]


def test_lists_of_labels_are_read():
    data = datasets.Dataset.from_dict(ROWS)
    corpus = Corpus.from_dataset(data, "note", "codes", name="mine")
    assert corpus.name == "mine" and corpus.texts == ROWS["note"]
    assert labels_of(corpus) == ROWS["codes"]
    assert Corpus.from_pandas(data.to_pandas(), "note", "codes").texts == corpus.texts


def test_numbers_of_classes_become_their_names():
    names = ["I10", "J45", "L20"]
    several = datasets.Features(
        {
            "note": datasets.Value("string"),
            "codes": datasets.List(datasets.ClassLabel(names=names)),
            "first": datasets.ClassLabel(names=names),
        }
    )
    rows = {"note": ["a b", "c d", "e f"], "codes": [[0, 2], [1], []], "first": [0, 1, 2]}
    data = datasets.Dataset.from_dict(rows, features=several)
    assert labels_of(Corpus.from_dataset(data, "note", "codes")) == [["I10", "L20"], ["J45"], []]
    assert labels_of(Corpus.from_dataset(data, "note", "first")) == [["I10"], ["J45"], ["L20"]]


def test_the_splits_of_a_dict_are_ours():
    data = datasets.Dataset.from_dict(ROWS)
    parts = datasets.DatasetDict(
        {"train": data.select([0, 1, 2]), "validation": data.select([3]), "test": data.select([4])}
    )
    corpus = Corpus.from_dataset(parts, "note", "codes")
    assert corpus.split.tolist() == ["train"] * 3 + ["dev", "test"]
    with pytest.raises(DataError, match=r"splits \['train', 'extra'\]"):
        Corpus.from_dataset({"train": data, "extra": data}, "note", "codes")


def test_what_is_no_data_set_in_memory_is_refused():
    with pytest.raises(DataError, match="a list is no data set"):
        Corpus.from_dataset([ROWS], "note", "codes")
    with pytest.raises(DataError, match="codez"):
        Corpus.from_dataset(datasets.Dataset.from_dict(ROWS), "note", "codez")
