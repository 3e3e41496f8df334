"""The static L2R model: directions against numpy, lists by hand, held-out tokens rank well and
their grades stay unseen.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse

from companion.studies import static_l2r as study
from plantlib.kernels.counts import column_counts
from plantlib.planting import ranking, static_l2r
from plantlib.planting.static_l2r import StaticL2R
from plantlib.teacher import mig
from plantlib.utils.io import read_json
from tests.tolerances import assert_within_rounding

N, V, L = 120, 240, 8
DIM = 16
QUICK = {
    "TEACHER_TOKENS": 20,
    "EPOCHS": 2,
    "LABELS_PER_BATCH": 4,
    "GRADED": 8,
    "MINED": 4,
    "NEGATIVES": 4,
    "PLANTED_TOKENS": 5,
    "LEARNING_RATE": 0.05,
}
NAMES = {"label_names": [f"l{i}" for i in range(L)], "tokens": [f"t{i}" for i in range(V)]}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Short lists and little training."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setattr(static_l2r, name, value)
        yield


@pytest.fixture(scope="module")
def corpus():
    """(counts, labels): token t speaks for label t % L in two of three documents, the rest is
    noise; token V-1 never occurs.
    """
    rng = np.random.default_rng(0)
    y = rng.random((N, L)) < 0.25
    own = y[:, np.arange(V) % L]
    x = (own & (rng.random((N, V)) < 0.4)) | (rng.random((N, V)) < 0.05)
    x[:, V - 1] = False
    return sparse.csr_matrix(x.astype(np.int32)), sparse.csr_matrix(y.astype(np.int32))


@pytest.fixture(scope="module")
def model(corpus) -> StaticL2R:
    return static_l2r.pretrain(*corpus, **NAMES, dim=DIM, progress=False)


def test_directions_are_the_leading_singular_vectors():
    rng = np.random.default_rng(0)
    a, b = sparse.csr_matrix(rng.random((30, 5))), sparse.csr_matrix(rng.random((5, 12)))
    for factors, product in (([a], a.toarray()), ([a, b], (a @ b).toarray())):
        left = np.linalg.svd(product)[0][:, :3]
        found = static_l2r.directions(factors, 3, seed=0, powers=3)
        assert_within_rounding(found.T @ found, np.eye(3), operations=30)
        np.testing.assert_allclose(np.abs(np.sum(found * left, 0)), 1.0, atol=1e-3)


def test_held_out_tokens_are_ranked_far_above_chance(model):
    quality = model.quality
    assert quality["trained"]["ndcg_linear"] > 0.75 > 3 * quality["chance"]["ndcg_linear"]
    assert quality["held_out_tokens"] + quality["shown_tokens"] == V - 1 and quality["labels"] == L


def test_training_raises_what_a_poor_start_ranks(corpus, monkeypatch):
    counts, labels = corpus
    grades = mig.teach(counts, labels, top_k=30).relevance.astype(np.float32)
    shown = np.ones(V, bool)
    e, x = static_l2r.embed(counts, grades, shown, dim=DIM), static_l2r.frequency(counts)
    poor = (torch.randn(L, e.shape[1], generator=torch.Generator().manual_seed(0)), torch.zeros(()))
    asked = np.ones(V, bool)
    before = static_l2r.held_out_ndcg(e, x, *poor, grades, asked)["ndcg_exponential"]
    monkeypatch.setattr(static_l2r, "EPOCHS", 60)
    trained = static_l2r._train(e, x, poor, grades, shown, 0, False, "")
    assert (
        static_l2r.held_out_ndcg(e, x, *trained, grades, asked)["ndcg_exponential"] > before + 0.2
    )


def test_grades_of_held_out_tokens_are_not_read(corpus, monkeypatch):
    """What is measured is the same to the bit when held-out grades are replaced: only the question
    changes.
    """
    counts, labels = corpus
    grades = mig.teach(counts, labels, top_k=30).relevance.astype(np.float32)
    seen = column_counts(counts) > 0
    held_out = static_l2r.hold_out(seen)
    spoilt = grades.toarray()
    spoilt[:, held_out] = (
        np.random.default_rng(5).permutation(spoilt[:, held_out].ravel()).reshape(L, -1)
    )
    asked = []
    monkeypatch.setattr(
        static_l2r,
        "held_out_ndcg",
        lambda *a: asked.append([t.clone() for t in (a[0], a[2], a[3])]) or {},
    )
    for g in (grades, sparse.csr_matrix(spoilt)):
        static_l2r._measured(counts, static_l2r.frequency(counts), g, seen, DIM, 0, False)
    for a, b in zip(asked[:2], asked[2:], strict=True):
        assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True)), (
            "E, F and b know nothing of held-out grades"
        )


def test_embeddings_are_the_documents_of_tokens_in_the_directions_of_the_grades(corpus):
    """With as many directions as documents nothing is lost: products of E are those of A."""
    counts, labels = corpus
    grades, shown = mig.teach(counts, labels).relevance, np.ones(V, bool)
    few = static_l2r.embed(counts, grades, shown, dim=DIM)
    assert few.shape == (V, L) and not few[V - 1].any(), "no more directions than labels"
    eye = sparse.eye(V, format="csr", dtype=np.float32)
    exact = static_l2r.embed(counts, eye, shown, dim=N)
    x = counts.toarray().astype(float)
    x /= np.sqrt(x.sum(0)).clip(min=1e-9)
    scale = float(exact[0] @ exact[0])
    np.testing.assert_allclose((exact @ exact.T / scale)[:6, :6], (x.T @ x)[:6, :6], atol=5e-3)


def test_lists_hold_the_best_grades_then_what_the_model_ranks_then_chance(monkeypatch):
    graded = torch.tensor([[0.0, 0.9, 0.0, 0.5, 0.2, 0.0, 0.0, 0.0]])
    ranked = torch.tensor([[9.0, 8.0, 7.0, 6.0, 5.0, 0.0, 0.0, 0.0]])
    for name, value in (("GRADED", 2), ("MINED", 2), ("NEGATIVES", 1)):
        monkeypatch.setattr(static_l2r, name, value)
    drawn = set()
    for seed in range(12):
        found = static_l2r.lists(ranked, graded, np.random.default_rng(seed))[0].tolist()
        assert found[:2] == [1, 3] and set(found[2:4]) == {0, 2} and len(set(found)) == 5
        drawn.add(found[4])
    assert drawn <= {5, 6, 7} and len(drawn) > 1, "chance draws from the ungraded tokens"


def test_ndcg_by_hand():
    """One label, four held-out tokens of grades 1, 0, .5, 0 (times 5), ranked 0, 2, 1, 3 wrongly as
    2, 0, ...
    """
    e, f = torch.tensor([[3.0], [1.0], [4.0], [0.0]]), torch.ones(1, 1)
    grades = sparse.csr_matrix(np.array([[1.0, 0.0, 0.5, 0.0]], np.float32))
    found = static_l2r.held_out_ndcg(
        e, torch.zeros(4), f, torch.zeros(()), grades, np.ones(4, bool)
    )
    second, big, small = 1 / np.log2(3), 2**5 - 1, 2**2.5 - 1
    exponential, linear = (small + big * second) / (big + small * second), (0.5 + second)
    for name, wanted in (
        ("ndcg_exponential", exponential),
        ("ndcg_linear", linear / (1 + 0.5 * second)),
    ):
        assert found[name] == round(wanted, 4), "the measure is rounded"


def test_table_holds_k_tokens_a_label_between_zero_and_one(model, corpus):
    table = model.table()
    assert table.shape == (L, V) and np.diff(table.indptr).tolist() == [5] * L
    assert table.data.max() == pytest.approx(1.0) and table.data.min() > 0
    for label in range(L):
        scores = model.scores(label, label + 1)[0]
        assert set(table[label].indices) == set(scores.topk(5).indices.tolist())
        assert sorted(scores.tolist())[-6] == pytest.approx(0.0, abs=1e-4)
    assert V - 1 not in table.indices, "a token of no training document is never planted"
    right = np.mean(
        [table.indices[table.indptr[i] : table.indptr[i + 1]] % L == i for i in range(L)]
    )
    assert right > 0.8


def test_k_beyond_the_vocabulary_plants_all_but_the_last_token(corpus, monkeypatch):
    monkeypatch.setattr(static_l2r, "PLANTED_TOKENS", 500)
    table = static_l2r.pretrain(*corpus, **NAMES, dim=DIM, progress=False).table()
    assert (
        np.diff(table.indptr).min() >= V - 3
        and np.isfinite(table.data).all()
        and V - 1 not in table.indices
    )


def test_labels_without_a_teacher_plant_nothing(corpus):
    counts, labels = corpus
    without = sparse.hstack([labels[:, :-1], sparse.csr_matrix((N, 1), dtype=np.int32)]).tocsr()
    table = static_l2r.pretrain(counts, without, **NAMES, dim=DIM, progress=False).table()
    assert np.diff(table.indptr).tolist() == [5] * (L - 1) + [0]


def test_saved_and_loaded_with_its_vocabularies(model, tmp_path):
    path = model.save(tmp_path / "m.safetensors")
    loaded = StaticL2R.load(path)
    assert loaded.quality == model.quality and (loaded.table() != model.table()).nnz == 0
    loaded.check(**NAMES)
    with pytest.raises(
        ValueError,
        match="tokens differ: the planted file has 240, this corpus 239; first difference at 3",
    ):
        loaded.check(NAMES["label_names"], NAMES["tokens"][:3] + NAMES["tokens"][4:])


def test_a_dimension_below_one_is_refused_and_grades_are_no_exponents(corpus):
    with pytest.raises(ValueError, match="dim=0"):
        static_l2r.pretrain(*corpus, **NAMES, dim=0, progress=False)
    assert static_l2r.TOP_GRADE <= ranking.MAX_EXPONENT < 101, "published grades are no exponents"


def test_the_command_adds_to_its_json(tmp_path, corpus, monkeypatch):
    def measured(name, dim, seed):
        return None, {"quality": {"dim": dim}, "seconds": 0.0}

    monkeypatch.setattr(study, "measure", measured)
    for name in ("one", "two"):
        assert study.main([name, "--out", str(tmp_path / "s.json"), "--dim", "7"]) == 0
    written = read_json(tmp_path / "s.json")
    assert list(written) == ["one", "two"] and written["one"]["quality"] == {"dim": 7}


@pytest.mark.parametrize(
    "counts",
    [[[5, 0], [3, 0], [2, 0]], [[1, 0], [0, 1], [1, 0]], [[1, 1], [1, 1], [1, 1]]],
    ids=["one token", "two tokens", "tokens of every document"],
)
def test_very_few_tokens_give_a_table_without_warnings(counts):
    x, y = sparse.csr_matrix(np.array(counts)), sparse.csr_matrix(np.array([[1], [0], [1]]))
    names = {"label_names": ["a"], "tokens": ["s", "t"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(12):  # some hold every token out
            model = static_l2r.pretrain(x, y, **names, seed=seed, progress=False)
            assert np.isfinite(model.table().data).all()
            assert model.quality["shown_tokens"] >= 1
    with pytest.raises(ValueError, match="no training document has a token"):
        static_l2r.pretrain(sparse.csr_matrix((3, 2)), y, **names, progress=False)
