"""L2R pretraining on synthetic hidden states whose teacher can be learnt: trainers, scale, files,
seeds and leaks.

docs/method.md, "Learning to rank". Hidden states are token embeddings plus noise, so there are
label queries that rank tokens as the teacher does; no backbone is loaded. test_ranking.py tests the
losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib.backbones.features import Features
from plantlib.data.tokens import Ragged
from plantlib.planting import l2r
from plantlib.planting.l2r import L2RConfig, Planted
from plantlib.teacher import mig
from plantlib.teacher.mig import Teacher
from tests.tolerances import assert_within_rounding, near

N, V, L, D = 90, 60, 12, 24
TRAIN, HELD_OUT = np.arange(60), np.arange(60, N)
QUICK = L2RConfig(epochs=6)
EMPTY = (4, 17, 63)  # documents without tokens
SOLVED = 2 * D  # float64 sums, whose solution of D unknowns is rounded to float32


@dataclass
class World:
    features: Features
    teacher: Teacher
    labels: sparse.csr_matrix

    def pretrain(
        self, trainer: str, config: L2RConfig = QUICK, labels=None, held_out=None, seed: int = 0
    ) -> Planted:
        return l2r.pretrain(
            trainer,
            self.features,
            TRAIN,
            self.teacher,
            label_names=[f"label {i}" for i in range(L)],
            tokens=[f"token {i}" for i in range(V)],
            labels=self.labels if labels is None else labels,
            held_out=held_out,
            config=config,
            seed=seed,
            progress=False,
        )


@pytest.fixture(scope="module", autouse=True)
def small_lists():
    """Lists and batches of a few documents, and steps large enough for as few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(l2r, "DOCUMENTS_PER_BATCH", 10)
        patch.setattr(l2r, "LABELS_PER_DOCUMENT", 12)
        patch.setattr(l2r, "LIST_SIZE", 24)
        patch.setattr(l2r, "LEARNING_RATE", 3e-2)
        yield


@pytest.fixture(scope="module")
def world() -> World:
    """Each label has four tokens, the other tokens are noise, and three documents are empty."""
    rng = np.random.default_rng(0)
    y = rng.random((N, L)) < 0.2
    documents = []
    for i in range(N):
        own = [4 * label + rng.integers(4) for label in np.flatnonzero(y[i]) for _ in range(4)]
        documents.append([] if i in EMPTY else rng.permutation([*own, *rng.integers(0, V, 20)]))
    tokens = Ragged.from_lists(documents)
    embeddings = rng.standard_normal((V, D))
    # a mean to be taken off
    states = embeddings[tokens.flat] + 0.3 * rng.standard_normal((len(tokens.flat), D)) + 0.5
    labels = sparse.csr_matrix(y.astype(np.int32))
    teacher = mig.teach(
        tokens.counts(V)[TRAIN], labels[TRAIN], variant="raw", relevance="score", top_k=8
    )
    return World(Features(states.astype(np.float16), tokens), teacher, labels)


def random_quality(world: World) -> float:
    draws = [torch.randn(L, D, generator=torch.Generator().manual_seed(s)) for s in range(5)]
    return float(
        np.mean([l2r.teacher_ndcg(q, world.features, HELD_OUT, world.teacher) for q in draws])
    )


@pytest.mark.parametrize("trainer", l2r.TRAINERS)
def test_trained_queries_rank_unseen_documents_better_than_random_ones(world, trainer):
    planted = world.pretrain(trainer, held_out=HELD_OUT)
    quality, by_chance = planted.quality["ndcg@25"], random_quality(world)
    assert planted.label_queries.shape == (L, D) and planted.trainer == trainer
    assert by_chance + 0.2 < quality <= 1.0, f"{trainer} {quality:.3f}, random {by_chance:.3f}"


def test_teacher_ndcg_of_the_teacher_itself_is_one(world):
    one_hot = Features(
        np.eye(V, dtype=np.float16)[world.features.tokens.flat], world.features.tokens
    )
    oracle = torch.from_numpy(world.teacher.relevance.toarray().astype(np.float32))
    assert l2r.teacher_ndcg(oracle, one_hot, HELD_OUT, world.teacher) == near(1.0, operations=V)
    assert l2r.teacher_ndcg(-oracle, one_hot, HELD_OUT, world.teacher) < 0.6
    assert np.isnan(l2r.teacher_ndcg(oracle, one_hot, np.array([63]), world.teacher)), (
        "no document with tokens, no value"
    )


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_closed_form_equals_a_dense_ridge_regression(world, ridge, monkeypatch):
    monkeypatch.setattr(l2r, "RIDGE", ridge)
    got = l2r.closed_form(world.features, TRAIN, world.teacher, progress=False)
    h = world.features.documents(TRAIN).astype(np.float64)
    ids = np.concatenate([world.features.tokens[i] for i in TRAIN])
    g = world.teacher.relevance.toarray().T[ids]  # (tokens, L), dense
    h, g = h - h.mean(0), g - g.mean(0)
    strength = ridge * np.trace(h.T @ h) / D + 1e-8
    stacked = np.vstack([h, np.sqrt(strength) * np.eye(D)])
    want = np.linalg.lstsq(stacked, np.vstack([g, np.zeros((D, L))]), rcond=None)[0].T
    assert_within_rounding(got, want, SOLVED)
    assert np.abs(want).max() > 0.01


def test_closed_form_is_one_result_for_any_order_and_batch(world):
    got = l2r.closed_form(world.features, TRAIN, world.teacher, progress=False)
    turned = l2r.closed_form(world.features, TRAIN[::-1], world.teacher, progress=False)
    assert_within_rounding(turned, got, SOLVED)
    twice = np.concatenate([TRAIN, TRAIN, TRAIN])  # 180 documents: two batches
    again = l2r.closed_form(world.features, twice, world.teacher, progress=False)
    assert_within_rounding(again, got, SOLVED)


@pytest.mark.parametrize("spread", [2.0, 0.5])
def test_rescale_gives_scores_the_standard_deviation_asked_for(world, spread, monkeypatch):
    monkeypatch.setattr(l2r, "SPREAD", spread)
    queries = (
        torch.randn(L, D, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-3, 3, L)[:, None]
    )
    queries[5] = 0
    scaled = l2r.rescale(queries, world.features, TRAIN)
    deviation = (torch.from_numpy(world.features.documents(TRAIN)) @ scaled.T).std(0)
    kept = torch.arange(L) != 5
    # features are float16, and so are the products here
    assert_within_rounding(deviation[kept], torch.full((L - 1,), spread).half(), operations=1)
    assert (scaled[5] == 0).all()
    cosine = torch.nn.functional.cosine_similarity(scaled, queries)[kept]
    assert_within_rounding(cosine, torch.ones(L - 1), operations=D)


@pytest.mark.parametrize("trainer", ["listnet", "closed_form"])
def test_planted_queries_have_the_stated_spread(world, trainer, monkeypatch):
    monkeypatch.setattr(l2r, "SPREAD", 1.5)
    queries = world.pretrain(trainer).label_queries
    deviation = (torch.from_numpy(world.features.documents(TRAIN)) @ queries.T).std(0)
    assert_within_rounding(deviation, torch.full((L,), 1.5).half(), operations=1)


def test_planted_survives_its_file(tmp_path):
    names, tokens = ["I50.9", 'quote " and \\', "näïve 心"], ["##ing", "[PAD]", "\n", "ĠTea"]
    planted = Planted(torch.randn(3, 8), names, tokens, "listnet", {"ndcg@25": 0.5})
    path = planted.save(tmp_path / "deep" / "planted.safetensors")
    back = Planted.load(path)
    assert (
        torch.equal(back.label_queries, planted.label_queries)
        and back.label_queries.dtype == torch.float32
    )
    assert (back.label_names, back.tokens, back.trainer, back.quality) == (
        names,
        tokens,
        "listnet",
        {"ndcg@25": 0.5},
    )
    back.check(names, tokens)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


@pytest.mark.parametrize(
    ("labels", "tokens", "message"),
    [
        (
            ["a", "c", "b"],
            ["x", "y"],
            r"labels differ.* has 3, this corpus 3; first difference at 1: 'b' against 'c'",
        ),
        (
            ["a", "b"],
            ["x", "y"],
            r"labels differ.* has 3, this corpus 2; first difference at 2: 'c' against nothing",
        ),
        (
            ["a", "b", "c"],
            ["x", "y", "z"],
            r"tokens differ.* has 2, this corpus 3; .* at 2: nothing against 'z'",
        ),
        (
            ["a", "b", "c"],
            [],
            r"tokens differ.* has 2, this corpus 0; first difference at 0: 'x' against nothing",
        ),
    ],
    ids=["swapped labels", "fewer labels", "more tokens", "no tokens"],
)
def test_check_names_both_sizes_and_the_first_difference(labels, tokens, message):
    planted = Planted(torch.zeros(3, 2), ["a", "b", "c"], ["x", "y"], "listnet")
    with pytest.raises(ValueError, match=message):
        planted.check(labels, tokens)


@pytest.mark.parametrize("trainer", ["approx_ndcg", "lambdarank", "listnet"])
def test_one_seed_gives_one_result(world, trainer, monkeypatch):
    monkeypatch.setattr(l2r, "LABELS_PER_DOCUMENT", 4)
    quick = replace(QUICK, epochs=1)
    a, b, other = (world.pretrain(trainer, quick, seed=s).label_queries for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.allclose(a, other)


@pytest.mark.parametrize("trainer", ["approx_ndcg", "closed_form"])
def test_labels_and_states_of_other_rows_are_never_read(world, trainer, monkeypatch):
    # so few lists a document that its own labels decide which
    monkeypatch.setattr(l2r, "LABELS_PER_DOCUMENT", 2)
    quick = replace(QUICK, epochs=1)
    wanted = world.pretrain(trainer, quick).label_queries
    altered = world.labels.toarray()
    altered[HELD_OUT] = 1 - altered[HELD_OUT]
    assert torch.equal(
        world.pretrain(trainer, quick, labels=sparse.csr_matrix(altered)).label_queries, wanted
    )
    states = world.features.array.copy()
    states[world.features.tokens.offsets[HELD_OUT[0]] :] = np.nan
    blind = World(Features(states, world.features.tokens), world.teacher, world.labels)
    assert torch.equal(blind.pretrain(trainer, quick).label_queries, wanted)
    if trainer != "closed_form":
        altered = world.labels.toarray()
        altered[TRAIN] = 1 - altered[TRAIN]
        changed = world.pretrain(trainer, quick, labels=sparse.csr_matrix(altered)).label_queries
        assert not torch.equal(changed, wanted), "training labels do choose the lists"


def test_lists_hold_the_documents_own_labels_relevant_tokens_and_a_true_mask(world, monkeypatch):
    monkeypatch.setattr(l2r, "LABELS_PER_DOCUMENT", 5)
    monkeypatch.setattr(l2r, "LIST_SIZE", 30)
    relevance, by_token = world.teacher.relevance, world.teacher.relevance.T.tocsr()
    for i in (0, 1, 2, 3):
        own, ids = world.labels[i].indices, world.features.tokens[i]
        rng = np.random.default_rng(i)
        labels, positions, graded, mask = l2r._lists(
            i, world.features, relevance, by_token, own, rng
        )
        dense = relevance[labels].toarray()[:, ids].astype(np.float32)
        assert set(own[:5]) <= set(labels) and len(set(labels)) == len(labels) == 5
        assert (
            positions.shape == graded.shape == mask.shape == (5, 30)
            and mask.sum(1).tolist() == [min(30, len(ids))] * 5
        )
        assert (graded[~mask] == 0).all() and (dense > 0).any(1).all()
        for row in range(5):
            places = positions[row, mask[row]]
            assert (
                len(set(places)) == len(places)
                and (graded[row, mask[row]] == dense[row, places]).all()
            )
            assert (graded[row] > 0).sum() == min((dense[row] > 0).sum(), 30), (
                "relevant tokens come first"
            )
    assert l2r._lists(EMPTY[0], world.features, relevance, by_token, own, rng) is None


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler", "ignore:cov")
@pytest.mark.parametrize("trainer", l2r.TRAINERS)
@pytest.mark.parametrize("empty", ["documents", "labels"])
def test_nothing_to_learn_from_gives_finite_queries(world, trainer, empty):
    quick = replace(QUICK, epochs=1)
    if empty == "documents":
        features = Features(np.zeros((0, D), np.float16), Ragged.from_lists([[]] * N))
        planted = World(features, world.teacher, world.labels).pretrain(
            trainer, quick, held_out=HELD_OUT
        )
        assert np.isnan(planted.quality["ndcg@25"])
    else:
        keep = sparse.diags((np.arange(L) != 3).astype(float)).tocsr()
        teacher = Teacher(
            (keep @ world.teacher.scores).tocsr(),
            (keep @ world.teacher.relevance).tocsr(),
            "raw",
            60,
        )
        teacher.scores.eliminate_zeros(), teacher.relevance.eliminate_zeros()
        planted = World(world.features, teacher, world.labels).pretrain(trainer, quick)
        assert (planted.label_queries[3] == 0).all() and (planted.label_queries[[2, 4]] != 0).any(
            1
        ).all()
    assert planted.label_queries.isfinite().all() and planted.label_queries.shape == (L, D)


def test_errors_name_the_choices(world):
    with pytest.raises(ValueError, match="trainer='ranknet'.*approx_ndcg.*closed_form"):
        world.pretrain("ranknet")
    with pytest.raises(ValueError, match="epochs=0; give at least 1"):
        L2RConfig(epochs=0)
