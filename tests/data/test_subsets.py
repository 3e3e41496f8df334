"""Few-shot subsets and learning curves: counts by hand, nesting, label space, and the teacher."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from plantlib import Corpus, prepare
from plantlib.data import subsets
from plantlib.kernels.counts import column_counts
from plantlib.training.ingredients import teacher_of
from plantlib.utils.base import DataError


def hand() -> Corpus:
    """Train: a in all four documents, b in two, c in one; one document without labels."""
    labels = [["a"], ["a", "b"], ["a", "b"], ["a", "c"], [], ["a"], ["only test"]]
    return Corpus.from_lists(
        "hand", [f"d{i}" for i in range(7)], ["x"] * 7, labels, ["train"] * 5 + ["dev", "test"]
    )


def train_ids(corpus: Corpus) -> set[str]:
    return {corpus.ids[i] for i in corpus.rows("train")}


def test_one_shot_keeps_the_first_document_of_each_label():
    corpus = hand()
    for seed in range(8):
        one = subsets.k_shot(corpus, 1, seed)
        order = [corpus.ids[i] for i in subsets.hash_order(corpus.ids[:5], seed, "subset train")]
        labels_of = {
            corpus.ids[i]: [corpus.label_names[j] for j in corpus.labels[i].indices]
            for i in range(5)
        }
        first = {label: next(d for d in order if label in labels_of[d]) for label in "abc"}
        assert train_ids(one) == set(first.values())
    assert train_ids(subsets.k_shot(corpus, 4)) == {"d0", "d1", "d2", "d3"}, (
        "all but the document without labels"
    )


@pytest.mark.parametrize("seed", [0, 3])
def test_shots_are_nested_and_give_every_label_its_share(corpus, seed):
    full = subsets.ready(corpus)
    counts = column_counts(full.labels[full.rows("train")])
    inner: set[str] = set()
    for k in subsets.SHOTS:
        subset = subsets.k_shot(corpus, k, seed)
        subset_counts = column_counts(subset.labels[subset.rows("train")])
        assert (subset_counts >= np.minimum(counts, k)).all() and (subset_counts <= counts).all()
        assert inner <= train_ids(subset)
        inner = train_ids(subset)
        for split in ("dev", "test"):
            assert [subset.ids[i] for i in subset.rows(split)] == [
                full.ids[i] for i in full.rows(split)
            ]
        assert subset.label_names == full.label_names
        assert subset.seen_in_train().label_names == full.seen_in_train().label_names
    assert len(train_ids(subsets.k_shot(corpus, 1, seed))) < len(
        train_ids(subsets.k_shot(corpus, 5, seed))
    )


def test_k_must_be_a_whole_number():
    for k in (0, -1, 1.5, True):
        with pytest.raises(DataError, match="wanted a whole number of documents per label"):
            subsets.k_shot(hand(), k)


def test_a_curve_is_geometric_nested_and_keeps_the_training_labels(corpus):
    assert subsets.sizes(400, 25, 5) == [25, 50, 100, 200, 400] and subsets.sizes(25, 25, 4) == [25]
    space, inner = subsets.ready(corpus).seen_in_train().label_names, set()
    curve = list(subsets.learning_curve(corpus, first=5, steps=4))
    assert (
        [size for size, _ in curve]
        == [len(train_ids(subset)) for _, subset in curve]
        == [5, 11, 26, 60]
    )
    for _, subset in curve:
        assert inner < train_ids(subset) and subset.label_names == space
        inner = train_ids(subset)
    assert "only test" not in space and "rare tin" in space
    for first, steps in ((61, 3), (0, 3), (5, 1)):
        with pytest.raises(DataError, match="wanted 2 steps or more"):
            list(subsets.learning_curve(corpus, first=first, steps=steps))


def test_a_carved_dev_split_is_the_same_for_every_size():
    corpus = dataclasses.replace(
        hand(), split=np.array(["train"] * 6 + ["test"]), texts=[f"text {i}" for i in range(7)]
    )
    corpora = [subsets.k_shot(corpus, k) for k in (1, 4)]
    corpora += [subset for _, subset in subsets.learning_curve(corpus, 1, 2)]
    assert len({tuple(c.ids[i] for i in c.rows("dev")) for c in corpora}) == 1


@pytest.fixture(scope="module")
def curve_end(corpus):
    """The smallest subset of a curve: some labels have no document in it."""
    return next(subset for _, subset in subsets.learning_curve(corpus, first=6, steps=3))


@pytest.fixture(scope="module")
def small(curve_end, backbone_folder, tmp_path_factory):
    return prepare(
        curve_end,
        backbone=backbone_folder,
        max_tokens=None,
        label_space="all",
        root=tmp_path_factory.mktemp("a"),
        progress=False,
    )


def test_labels_without_a_document_in_the_subset_stay_and_count(
    small, curve_end, corpus, backbone_folder, tmp_path
):
    assert small.corpus.label_names == curve_end.label_names and (small.train_counts == 0).any()
    assert (
        small.about()["label_space"] == "all labels of the corpus" and small.extra_gold.sum() == 0
    )
    capped = prepare(
        corpus,
        backbone=backbone_folder,
        max_tokens=None,
        train_documents=6,
        label_space="train",
        root=tmp_path,
        progress=False,
    )
    assert capped.corpus.label_names == small.corpus.label_names
    assert {capped.corpus.ids[i] for i in capped.rows["train"]} == train_ids(curve_end)
    assert capped.extra_gold.sum() == 2, (
        "two test documents carry a label of no training document at all"
    )
    seen = prepare(
        corpus,
        backbone=backbone_folder,
        max_tokens=None,
        train_documents=6,
        root=tmp_path,
        progress=False,
    )
    assert seen.corpus.L < capped.corpus.L and seen.extra_gold.sum() > capped.extra_gold.sum()
    with pytest.raises(
        DataError, match="label_space='test' is not known; use one of seen, train, all"
    ):
        prepare(corpus, backbone=backbone_folder, label_space="test")


def test_the_teacher_sees_the_subset_alone(small, corpus, curve_end, backbone_folder, tmp_path):
    inside = train_ids(curve_end)
    # texts and labels outside the subset change: texts are swapped, labels moved
    out = [i for i in corpus.rows("train") if corpus.ids[i] not in inside]
    texts, labels = list(corpus.texts), corpus.labels.tolil()
    for i, j in zip(out, reversed(out), strict=True):
        texts[i] = corpus.texts[j] + " pulse gold comet"
        labels[i] = corpus.labels.tolil()[out[0]]
    labels[out[-1]] = np.ones(corpus.L, int)
    other = dataclasses.replace(corpus, texts=texts, labels=labels.tocsr()).subset(train=6)
    other = other._derive(
        "same columns",
        columns=np.array([other.label_names.index(n) for n in curve_end.label_names]),
    )
    again = prepare(
        other,
        backbone=backbone_folder,
        max_tokens=None,
        label_space="all",
        root=tmp_path,
        progress=False,
    )
    first, second = teacher_of(small), teacher_of(again)
    assert first.n_train == second.n_train == 6
    assert (first.scores != second.scores).nnz == 0 and (
        first.relevance != second.relevance
    ).nnz == 0
    assert (np.diff(first.scores.indptr)[small.train_counts == 0] == 0).all(), (
        "a label without documents has no teacher"
    )
    assert first.scores.nnz > 0
