"""Starts: what each of them plants and that nothing else differs; the teacher's document score;
gradients at the start.

docs/method.md, "Planted attention", "Starts" and "Faults of the published code". The decoder and
its kernels are tested elsewhere; no backbone is loaded.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer

from plantlib.data.tokens import Ragged
from plantlib.planting import starts
from plantlib.planting.decoder import LabelDecoder, Packed
from plantlib.planting.l2r import Planted
from plantlib.planting.scores import TeacherScore
from plantlib.planting.starts import StartConfig, plant
from plantlib.teacher import mig
from plantlib.teacher.mig import Teacher
from tests.tolerances import assert_within_rounding, near

N, V, L, D = 40, 30, 7, 8
TOGETHER = ("l2r+lookup", "closed_form+shuffled+score", "lookup+score", "l2r+score")
EVERY_START = pytest.mark.parametrize("start", [*starts.STARTS, *TOGETHER])


def documents(seed: int = 0) -> Ragged:
    """Documents of 1 to 30 tokens with repeats, two of them empty; token V-1 stands in none of the
    first 30.
    """
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, V - 1, rng.integers(1, 31)) for _ in range(N)]
    rows[3], rows[35], rows[36] = rows[3][:0], rows[35][:0], np.array([V - 1, V - 1, 0])
    return Ragged.from_lists(rows)


@pytest.fixture(scope="module")
def labels() -> sparse.csr_matrix:
    return sparse.csr_matrix((np.random.default_rng(1).random((30, L)) < 0.3).astype(np.int32))


@pytest.fixture(scope="module")
def teacher(labels) -> Teacher:
    """From the first 30 documents, the training rows."""
    return mig.teach(documents().counts(V)[:30], labels, variant="raw", relevance="score", top_k=6)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(torch.randn(L, D, generator=torch.Generator().manual_seed(9)), [], [], "listnet")


# scores of a static L2R model: every decoder here has a place for them, whatever its start
TABLE = sparse.random(L, V, 0.4, "csr", random_state=4)


def decoder_of(
    start: str, teacher, labels, planted, seed: int = 0, dirty: bool = False, contexts="mixed"
) -> LabelDecoder:
    decoder = LabelDecoder(
        L, D, V, teacher.relevance.nnz, num_l2r_cells=TABLE.nnz, contexts=contexts
    )
    if dirty:
        for p in decoder.parameters():
            torch.nn.init.constant_(p, 77.0)
    queries = planted if set(start.split("+")) & set(starts.QUERY_STARTS) else None
    plant(decoder, start, teacher, labels, planted=queries, l2r_table=TABLE, seed=seed)
    return decoder


def what_it_plants(start: str) -> set[str]:
    """The state a start may set differently from `random`."""
    table = {name: {"label_queries"} for name in starts.QUERY_STARTS}
    table |= {
        "lookup": {"planted_gain"},
        "score": {"teacher_gain"},
        "v1": {"planted_gain", "l2r_gain"},
    }
    table |= {
        "linear": {"linear_gain", "label_outputs", "label_bias"},
        "text": {"planted_gain", "teacher_gain"},
    }
    phrases = {"planted_gain", "linear_gain", "label_outputs", "label_bias"}
    table |= dict.fromkeys(starts.PHRASE_STARTS, phrases)
    table["shuffled"] = {
        "planted_gain",
        *(f"planted.planted_{part}" for part in ("indptr", "labels", "values")),
    }
    return set().union(*(table.get(part, set()) for part in start.split("+")))


@EVERY_START
def test_a_start_differs_from_random_only_in_what_it_plants(start, teacher, labels, planted):
    states = [decoder_of(s, teacher, labels, planted).state_dict() for s in ("random", start)]
    assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[1].items()}
    differ = {k for k in states[0] if not torch.equal(states[0][k], states[1][k])}
    assert differ <= what_it_plants(start), (
        f"{start} touches {sorted(differ - what_it_plants(start))}"
    )
    # a permuted teacher need not move every buffer, but one it must
    assert what_it_plants(start) - differ <= {"planted.planted_indptr", "planted.planted_values"}


def test_outputs_and_bias_are_the_same_for_all_starts_of_a_seed(teacher, labels, planted):
    for seed in (0, 1):
        made = [
            decoder_of(s, teacher, labels, planted, seed)
            for s in (*starts.STARTS, *TOGETHER)
            if not starts.from_score(s.split("+"))
        ]
        # a linear start begins without outputs and bias, so that it is the linear score and nothing
        # else
        zero = decoder_of("linear", teacher, labels, planted, seed)
        assert not zero.label_outputs.any() and not zero.label_bias.any()
        for a, b in combinations(made, 2):
            assert torch.equal(a.label_outputs, b.label_outputs) and torch.equal(
                a.label_bias, b.label_bias
            )
            assert [p.requires_grad for p in a.parameters()] == [
                p.requires_grad for p in b.parameters()
            ]
    first, second = (decoder_of("random", teacher, labels, planted, seed) for seed in (0, 1))
    assert not torch.equal(first.label_queries, second.label_queries)
    assert (
        not torch.equal(first.label_outputs, second.label_outputs)
        and first.label_outputs.std().item() < 0.04
    )


@EVERY_START
def test_planting_twice_or_over_other_values_leaves_no_trace(start, teacher, labels, planted):
    clean, dirty = (
        decoder_of(start, teacher, labels, planted, dirty=d).state_dict() for d in (False, True)
    )
    assert all(torch.equal(clean[k], dirty[k]) for k in clean)


def test_gains_and_queries_are_the_ones_named(teacher, labels, planted):
    gains = {s: decoder_of(s, teacher, labels, planted) for s in (*starts.STARTS, *TOGETHER)}
    for start, decoder in gains.items():
        parts = set(start.split("+"))
        assert decoder.planted_gain.item() == (
            4.0 if parts & {"lookup", "shuffled", "v1", "text", "evidence", "phrases"} else 0.0
        )
        assert decoder.l2r_gain.item() == (2.0 if "v1" in parts else 0.0)
        assert decoder.teacher_gain.item() == (1.0 if parts & {"score", "text"} else 0.0)
        assert decoder.linear_gain.item() == (1.0 if starts.from_score(parts) else 0.0)
        assert torch.equal(decoder.label_queries, planted.label_queries) == bool(
            parts & set(starts.QUERY_STARTS)
        )
    assert gains["random"].planted_gain.item() == gains["random"].teacher_gain.item() == 0.0


@pytest.mark.parametrize("contexts", ["mixed", "sum"])
def test_each_part_of_v1_is_switched_off_alone(contexts, teacher, labels):
    """Same shapes and other values as with everything on; a context with nothing planted waits at
    zero.
    """
    wanted = {
        (True, True): (4.0, 2.0),
        (False, True): (0.0, 2.0),
        (True, False): (4.0, 0.0),
        (False, False): (0.0, 0.0),
    }
    states = {}
    for (lookup, l2r), gains in wanted.items():
        decoder = LabelDecoder(
            L, D, V, teacher.relevance.nnz, num_l2r_cells=TABLE.nnz, contexts=contexts
        )
        plant(
            decoder,
            "v1",
            teacher,
            labels,
            config=StartConfig(v1_lookup=lookup, v1_l2r=l2r),
            l2r_table=TABLE,
        )
        assert (decoder.planted_gain.item(), decoder.l2r_gain.item()) == gains
        if contexts == "sum":
            assert decoder.context_gain.tolist() == [1.0, float(lookup), float(l2r)]
        states[lookup, l2r] = decoder.state_dict()
    for name, value in (
        decoder_of("random", teacher, labels, None, contexts=contexts).state_dict().items()
    ):
        assert torch.equal(value, states[False, False][name]), (
            f"v1 with nothing planted is random, but for {name}"
        )


@pytest.mark.parametrize(
    ("start", "cells", "table"), [("v1", 0, None), ("v1", TABLE.nnz, None), ("random", 0, TABLE)]
)
def test_an_l2r_table_and_its_place_come_together(start, cells, table, teacher, labels):
    with pytest.raises(ValueError, match="L2R table"):
        plant(
            LabelDecoder(L, D, V, teacher.relevance.nnz, num_l2r_cells=cells),
            start,
            teacher,
            labels,
            l2r_table=table,
        )


def test_shuffled_plants_the_same_lists_under_other_labels(teacher, labels, planted):
    ids = torch.arange(V)
    plain, moved = (
        decoder_of(s, teacher, labels, planted).planted.cells(ids) for s in ("lookup", "shuffled")
    )

    def lists(cells):
        by_label = [
            (cells.positions[cells.labels == k], cells.values[cells.labels == k]) for k in range(L)
        ]
        return sorted(tuple(zip(p.tolist(), v.tolist(), strict=True)) for p, v in by_label)

    assert lists(plain) == lists(moved) and not torch.equal(plain.positions, moved.positions)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("warm", "'warm' is not known; use random"),
        ("lookup+magic", "'magic' is not known"),
        ("", "'' is not known"),
        ("l2r+closed_form", "plants the same values twice"),
        ("lookup+shuffled", "plants the same values twice"),
        ("v1+lookup", "plants the same values twice"),
        ("lookup+lookup", "name each part once"),
        ("shuffled+text", "neither shuffled beside text"),
        ("l2r", "needs pretrained queries; run l2r.pretrain"),
        ("closed_form+score", "needs pretrained queries"),
    ],
)
def test_unknown_contradictory_or_incomplete_starts_are_refused(start, message, teacher, labels):
    with pytest.raises(ValueError, match=message):
        plant(LabelDecoder(L, D, V, teacher.relevance.nnz), start, teacher, labels)


def test_sizes_that_do_not_fit_are_refused_with_both_sizes(teacher, labels):
    wrong = Planted(torch.zeros(L, D + 1), [], [], "listnet")
    with pytest.raises(ValueError, match=rf"\({L}, {D + 1}\), the decoder wants \({L}, {D}\)"):
        plant(LabelDecoder(L, D, V, teacher.relevance.nnz), "l2r", teacher, labels, planted=wrong)
    with pytest.raises(
        ValueError,
        match=rf"holds {V} tokens and 5 cells, the teacher {V} and {teacher.relevance.nnz}",
    ):
        plant(LabelDecoder(L, D, V, 5), "random", teacher, labels)


def test_prior_log_odds_by_hand():
    y = sparse.csr_matrix(np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]))
    wanted = np.log([4.5 / 0.5, 0.5 / 4.5, 1.5 / 3.5])
    assert_within_rounding(starts.prior_log_odds(y), wanted, operations=3)
    assert starts.prior_log_odds(y).dtype == torch.float32


def test_teacher_score_equals_scikit_learn_and_is_zero_without_tokens(teacher):
    tokens = documents()
    counts = tokens.counts(V)
    module = TeacherScore(V, L, teacher.scores.nnz)
    module.load_teacher(teacher, counts[:30])
    weights = TfidfTransformer(sublinear_tf=True).fit(counts[:30]).transform(counts)
    raw = weights @ teacher.scores.T
    # idf, norm and sum over the tokens of a document; the deviation over the scores
    assert module.scale.item() == near(raw[:30].tocsr().data.std(), operations=3 * V)
    for rows in (np.arange(N), np.array([36, 3, 0, 35])):
        part = tokens.select(rows)
        z = module(torch.from_numpy(part.flat), torch.from_numpy(part.offsets))
        assert_within_rounding(z, raw.toarray()[rows] / module.scale.item(), operations=3 * V)
        assert (z[np.isin(rows, [3, 35])] == 0).all()
    assert (module(torch.zeros(0, dtype=torch.long), torch.zeros(3, dtype=torch.long)) == 0).all()
    assert not list(module.parameters()) and len(module.state_dict()) == 5, (
        "buffers only, saved with the model"
    )


def test_teacher_score_learns_nothing_from_other_rows(teacher):
    counts, other = documents().counts(V), documents(seed=5).counts(V)
    mixed = sparse.vstack([counts[:30], other[30:]]).tocsr()
    states = []
    for c in (counts, mixed):
        module = TeacherScore(V, L, teacher.scores.nnz)
        module.load_teacher(teacher, c[:30])
        states.append(module.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_teacher_score_stays_finite_when_all_its_scores_are_equal():
    counts = sparse.csr_matrix(np.eye(2, dtype=np.int32))
    teacher = mig.teach(counts, sparse.csr_matrix(np.eye(2, dtype=np.int32)), variant="raw")
    module = TeacherScore(2, 2, teacher.scores.nnz)
    module.load_teacher(teacher, counts)
    z = module(torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
    assert z.isfinite().all() and z[0, 0] > 0 and z[0, 1] == 0


@EVERY_START
def test_every_parameter_gets_a_gradient_at_the_first_step(start, teacher, labels, planted):
    # fault 6: two factors that start at zero never leave it
    tokens = documents().select(np.arange(30))
    hidden = torch.randn(len(tokens.flat), D, generator=torch.Generator().manual_seed(2))
    packed = Packed(hidden, torch.from_numpy(tokens.flat), torch.from_numpy(tokens.offsets))
    score = TeacherScore(V, L, teacher.scores.nnz)
    score.load_teacher(teacher, documents().counts(V)[:30])
    decoder = decoder_of(start, teacher, labels, planted)
    before = {k: p.detach().clone() for k, p in decoder.named_parameters()}
    linear = torch.randn(30, L, generator=torch.Generator().manual_seed(3))
    if starts.from_score(start.split("+")):
        # outputs begin at zero and are alone in front of attention: they move first, everything
        # else with the second step
        logits = decoder(packed, None, linear)
        torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(labels.toarray()).float()
        ).backward()
        assert (decoder.label_outputs.grad.abs().sum(1) > 0).all()
        torch.optim.SGD(decoder.parameters(), lr=0.1).step()
        decoder.zero_grad()
    logits = decoder(packed, score(packed.token_ids, packed.offsets), linear)
    torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels.toarray()).float()
    ).backward()
    for name, p in decoder.named_parameters():
        rows = p.grad.reshape(len(p.grad), -1).abs().sum(1) if p.dim() else p.grad.abs()[None]
        assert rows.isfinite().all() and (rows > 0).all(), f"{start}: {name} gets no gradient"
    torch.optim.SGD(decoder.parameters(), lr=0.1).step()
    assert all(not torch.equal(p, before[k]) for k, p in decoder.named_parameters())
