"""Listwise losses against autograd's finite differences, scikit-learn, loops and the faults of the
published code.

docs/method.md, "Learning to rank" and "Faults of the published code". Every check runs in float64
unless it is about float32; test_l2r.py tests how lists are drawn from documents.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from plantlib.planting import ranking
from plantlib.planting.ranking import LOSSES, ndcg
from tests.tolerances import assert_within_rounding, near

PAIRWISE = ("approx_ndcg", "lambdarank")
# as trained, which is impl="torch" on a CPU, and by the specification
VARIANTS = LOSSES | {
    f"{name} reference": partial(LOSSES[name], impl="reference") for name in PAIRWISE
}
EVERY_LOSS = pytest.mark.parametrize("name", sorted(VARIANTS))
BOTH_IMPLEMENTATIONS = pytest.mark.parametrize("impl", ["torch", "reference"])

OPERATIONS = 100  # lists of at most 10 items, summed twice, and exponents of at most 60
ROUNDING = {"operations": OPERATIONS, "size": 1.0, "dtype": torch.float64}


def lists(rows: int = 4, items: int = 6, seed: int = 0, dtype=torch.float64):
    """Scores, relevance 0..3 with ties, and a mask of uneven lengths; every row has a relevant and
    an irrelevant item.
    """
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, items, generator=g, dtype=dtype)
    relevance = torch.randint(0, 4, (rows, items), generator=g).to(dtype)
    relevance[:, 0], relevance[:, 1] = 2.0, 0.0
    lengths = torch.randint(2, items + 1, (rows,), generator=g)
    return scores, relevance, torch.arange(items) < lengths[:, None]


def gradient(name: str, scores, relevance, mask=None, **options) -> torch.Tensor:
    scores = scores.clone().requires_grad_()
    VARIANTS[name](scores, relevance, mask, **options).backward()
    return scores.grad


@EVERY_LOSS
@pytest.mark.parametrize("gains", ranking.GAINS)
def test_gradient_equals_finite_differences_with_a_mask(name, gains):
    scores, relevance, mask = lists()
    assert not mask.all()
    loss = lambda s: VARIANTS[name](s, relevance, mask, gains=gains)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (scores.requires_grad_(),), eps=1e-7, atol=1e-6)


@EVERY_LOSS
def test_rows_without_a_relevant_item_cost_nothing(name):
    scores, relevance, mask = lists()
    relevance[1] = 0
    relevance[2] = torch.where(mask[2], 0.0, 3.0)  # relevant padding is no relevant item
    kept = torch.tensor([0, 3])
    assert VARIANTS[name](scores, relevance, mask).item() == near(
        VARIANTS[name](scores[kept], relevance[kept], mask[kept]).item(), **ROUNDING
    )
    grad = gradient(name, scores, relevance, mask)
    assert (grad[[1, 2]] == 0).all() and (grad[kept] != 0).any()


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True], ids=["real items", "all masked"])
def test_batch_with_nothing_relevant_is_exactly_zero_with_finite_gradients(name, dtype, masked):
    scores, relevance, mask = lists(dtype=dtype)
    mask = torch.zeros_like(mask) if masked else mask
    relevance = relevance if masked else torch.zeros_like(relevance)
    assert VARIANTS[name](scores, relevance, mask).item() == 0.0
    assert (gradient(name, scores, relevance, mask) == 0).all()
    assert ndcg(scores, relevance, mask).isnan().all()


@EVERY_LOSS
def test_perfect_order_is_the_minimum_over_all_orders(name):
    relevance = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    values = [3.0, 1.5, 0.0, -1.5, -3.0]
    losses = {
        order: VARIANTS[name](torch.tensor([order], dtype=torch.float64), relevance).item()
        for order in itertools.permutations(values)
    }
    best, worst = min(losses, key=losses.get), max(losses, key=losses.get)
    assert best == tuple(values) and worst == tuple(reversed(values))
    second = sorted(losses.values())[1]
    assert losses[best] < second - 1e-4


@EVERY_LOSS
def test_order_of_columns_changes_nothing(name):
    # fault 2: an ideal DCG of unsorted labels weighs rows by the order of their columns
    scores, relevance, mask = lists(rows=5, items=9)
    relevance[0] = torch.arange(9.0)  # the best item last
    wanted = VARIANTS[name](scores, relevance, mask)
    for seed in range(5):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        got = VARIANTS[name](scores[:, order], relevance[:, order], mask[:, order])
        assert got.item() == near(wanted.item(), **ROUNDING)


def test_approx_ndcg_stays_between_zero_and_one():
    g = torch.Generator().manual_seed(1)
    for scale in (1e-3, 0.3, 3.0, 100.0):
        scores = torch.randn(200, 12, generator=g, dtype=torch.float64) * scale
        relevance = torch.randint(0, 4, (200, 12), generator=g).double()
        for row in range(200):
            loss = ranking.approx_ndcg(scores[row : row + 1], relevance[row : row + 1]).item()
            assert -1e-9 <= loss <= 1.0


@EVERY_LOSS
def test_batch_loss_is_the_mean_of_its_rows(name):
    # fault 3: (R,) divided by (R, 1) mixes every row with every other
    scores, relevance, mask = lists(rows=7, items=8)
    relevance *= torch.arange(1.0, 8.0, dtype=torch.float64)[:, None]  # ideal DCGs far apart
    single = [
        VARIANTS[name](*(t[i : i + 1] for t in (scores, relevance, mask))).item() for i in range(7)
    ]
    assert np.ptp(single) > 0.05 and VARIANTS[name](scores, relevance, mask).item() == near(
        np.mean(single), **ROUNDING
    )


@EVERY_LOSS
def test_exponential_gains_of_published_grades_are_refused(name):
    scores, relevance, mask = lists(dtype=torch.float32)
    with pytest.raises(ValueError, match="up to 101 overflow.*gains='linear'"):
        VARIANTS[name](
            scores, relevance.index_fill(1, torch.tensor([0]), 101.0), gains="exponential"
        )
    hidden = relevance.masked_fill(~mask, 101.0)
    assert VARIANTS[name](scores, hidden, mask, gains="exponential").isfinite(), (
        "a masked grade is not looked at"
    )
    assert VARIANTS[name](scores, relevance.index_fill(1, torch.tensor([0]), 101.0)).isfinite(), (
        "linear gains take grade 101"
    )


@EVERY_LOSS
@pytest.mark.parametrize("padding", [1e4, -1e4, math.inf, -math.inf, math.nan])
def test_masked_items_change_nothing(name, padding):
    # fault 5: padding is neither ranked nor learnt from
    scores, relevance, mask = lists()
    wanted, wanted_grad = (
        VARIANTS[name](scores, relevance, mask),
        gradient(name, scores, relevance, mask),
    )
    padded = scores.masked_fill(~mask, padding)
    for other in (relevance.masked_fill(~mask, 3.0), relevance.masked_fill(~mask, padding)):
        assert VARIANTS[name](padded, other, mask).item() == wanted.item()
        assert torch.equal(gradient(name, padded, other, mask), wanted_grad)
        assert torch.equal(ndcg(padded, other, mask), ndcg(scores, relevance, mask))
    assert (wanted_grad[~mask] == 0).all()


@EVERY_LOSS
def test_mask_equals_a_shorter_list(name):
    scores, relevance, _ = lists(items=9)
    mask = (torch.arange(9) < 5).expand(4, 9)
    short = VARIANTS[name](scores[:, :5], relevance[:, :5])
    assert VARIANTS[name](scores, relevance, mask).item() == near(short.item(), **ROUNDING)


@pytest.mark.parametrize("k", [1, 3, 10, None])
@pytest.mark.parametrize("gains", ranking.GAINS)
def test_ndcg_equals_scikit_learn(k, gains):
    rng = np.random.default_rng(5)
    scores, relevance = rng.standard_normal((40, 10)), rng.integers(0, 5, (40, 10)).astype(float)
    relevance[3] = 0
    gain = relevance if gains == "linear" else 2**relevance - 1
    got = ndcg(torch.from_numpy(scores), torch.from_numpy(relevance), k=k, gains=gains)
    for i, value in enumerate(got.tolist()):
        if gain[i].any():
            assert value == near(ndcg_score(gain[i : i + 1], scores[i : i + 1], k=k), **ROUNDING)
    assert got[3].isnan() and got.isnan().sum() == 1


@BOTH_IMPLEMENTATIONS
@pytest.mark.parametrize("k", [None, 3])
def test_lambdarank_gradient_is_the_closed_form(k, impl):
    scores, relevance, mask = lists(rows=3, items=7, seed=2)
    sigma, wanted = 0.7, torch.zeros_like(scores)
    for r in range(3):
        items = [i for i in range(7) if mask[r, i]]
        rank = {i: 1 + sum(scores[r, j] > scores[r, i] for j in items).item() for i in items}
        best = sorted((relevance[r, i].item() for i in items), reverse=True)[:k]
        ideal = sum(g / math.log2(p + 2) for p, g in enumerate(best))
        for i, j in itertools.permutations(items, 2):
            if relevance[r, i] > relevance[r, j]:
                swap = (relevance[r, i] - relevance[r, j]) * abs(
                    1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j])
                )
                pull = -sigma / (1 + math.exp(sigma * (scores[r, i] - scores[r, j]))) * swap / ideal
                wanted[r, i] += pull
                wanted[r, j] -= pull
    got = gradient("lambdarank", scores, relevance, mask, sigma=sigma, k=k, impl=impl)
    assert_within_rounding(got, wanted / 3, OPERATIONS)


def test_approx_ndcg_of_sharp_ranks_is_one_minus_ndcg():
    scores, relevance, mask = lists(rows=6, items=9, seed=4)
    exact = 1 - ndcg(scores, relevance, mask, k=None).mean()
    gaps = [
        abs(ranking.approx_ndcg(scores, relevance, mask, alpha=a).item() - exact.item())
        for a in (10.0, 100.0, 1e5)
    ]
    assert gaps[2] < 1e-9 < gaps[1] < gaps[0]


@BOTH_IMPLEMENTATIONS
def test_approx_ndcg_equals_its_definition_by_loops(impl):
    scores, relevance, mask = lists(seed=6)
    total = 0.0
    for s, g, m in zip(scores.tolist(), relevance.tolist(), mask.tolist(), strict=True):
        items = [i for i in range(len(s)) if m[i]]
        rank = {
            i: 1 + sum(1 / (1 + math.exp(10 * (s[i] - s[j]))) for j in items if j != i)
            for i in items
        }
        ideal = sum(
            x / math.log2(p + 2) for p, x in enumerate(sorted((g[i] for i in items), reverse=True))
        )
        total += 1 - sum(g[i] / math.log2(1 + rank[i]) for i in items) / ideal
    assert ranking.approx_ndcg(scores, relevance, mask, impl=impl).item() == near(
        total / len(scores), **ROUNDING
    )


def test_listnet_minimum_is_zero_at_the_targets_logits():
    relevance = torch.tensor([[3.0, 2.0, 1.0, 1.0], [1.0, 1.0, 5.0, 2.0]], dtype=torch.float64)
    assert ranking.listnet(relevance.log(), relevance).item() == near(0.0, **ROUNDING)
    assert_within_rounding(
        gradient("listnet", relevance.log(), relevance),
        torch.zeros(2, 4).double(),
        OPERATIONS,
        size=1,
    )


@EVERY_LOSS
def test_large_scores_stay_finite(name):
    scores, relevance, mask = lists(dtype=torch.float32)
    assert VARIANTS[name](scores * 1e4, relevance, mask).isfinite()
    assert gradient(name, scores * 1e4, relevance, mask).isfinite().all()


def test_errors_name_shapes_and_choices():
    scores, relevance, mask = lists()
    with pytest.raises(ValueError, match=r"scores \(4, 6\) and relevance \(4, 5\)"):
        ranking.listnet(scores, relevance[:, :5])
    with pytest.raises(ValueError, match=r"scores \(4, 1\) and relevance \(4, 6\)"):
        ranking.listnet(scores[:, :1], relevance)
    with pytest.raises(ValueError, match=r"mask \(4, 5\).*scores \(4, 6\)"):
        ranking.approx_ndcg(scores, relevance, mask[:, :5])
    with pytest.raises(ValueError, match="gains='cubic'.*linear, exponential"):
        ranking.lambdarank(scores, relevance, gains="cubic")
    with pytest.raises(ValueError, match="impl='numpy'.*auto, triton, torch, reference"):
        ranking.lambdarank(scores, relevance, impl="numpy")
    with pytest.raises(ValueError, match="alpha=0.* must be above 0"):
        ranking.approx_ndcg(scores, relevance, alpha=0.0)
