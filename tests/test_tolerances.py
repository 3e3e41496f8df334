"""The tolerances let rounding pass and a thousandth not, with the operations that tests state."""

from __future__ import annotations

import pytest
import torch

from tests import conftest, tolerances
from tests.backbones import test_awd_lstm
from tests.linear import test_score
from tests.planting import test_decoder, test_ranking
from tests.training import test_v1

STATED = [
    conftest.OPERATIONS,
    test_awd_lstm.STEPS,
    test_awd_lstm.TRAINED,
    test_decoder.OPERATIONS,
    test_ranking.OPERATIONS,
    test_score.WORDS,
    test_v1.OPERATIONS,
    test_v1.READ,
]


@pytest.mark.parametrize("operations", STATED)
def test_a_relative_fault_of_a_thousandth_fails(operations):
    exact = torch.randn(50, generator=torch.Generator().manual_seed(0))
    tolerances.assert_within_rounding(exact, exact, operations)
    with pytest.raises(AssertionError, match="name: "):
        tolerances.assert_within_rounding(exact * 1.001, exact, operations, name="name")
    assert 1.0 == tolerances.near(1.0 + 1e-7, operations)
    assert 1.001 != tolerances.near(1.0, operations)
    with pytest.raises(AssertionError, match="is allowed"):
        tolerances.assert_as_exact([exact * 1.001], [exact], [exact.double()], operations)


def test_another_order_of_a_sum_passes():
    terms = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    size = float(terms.abs().sum(1).max())
    orders = terms.sum(1), terms.flip(1).cumsum(1)[:, -1]
    assert not torch.equal(*orders)
    tolerances.assert_within_rounding(*orders, 1000, size=size)
    tolerances.assert_as_exact([orders[0]], [orders[1]], [terms.double().sum(1)], 1000)


def test_the_coarser_precision_decides_and_operations_of_none_ask_for_equality():
    exact = torch.linspace(1, 2, 10)
    tolerances.assert_within_rounding(exact.half(), exact, operations=1)
    with pytest.raises(AssertionError):
        tolerances.assert_within_rounding(exact.half().float(), exact, operations=1)
    same = {"a": 0.1, "b": float("nan")}
    assert same == tolerances.near(dict(same), operations=0)
    assert same | {"a": 0.1 + 1e-16} != tolerances.near(dict(same), operations=0)
    with pytest.raises(AssertionError):
        infinite = torch.tensor([1.0, float("inf")])
        tolerances.assert_within_rounding(infinite, torch.tensor([1.0, 2.0]), 100)
