"""How far apart two computations of one number may lie, derived and not fitted to a machine.

Processors add in different orders and fuse different operations, so results differ by rounding. Of
a sum of n terms the rounding error is at most n epsilons of the sum of their sizes, in any order.
Two forms of tolerance follow from it. `rounding` is that bound; `assert_within_rounding` asks it of
arrays, `near` of numbers. `assert_as_exact` takes float64 as the yardstick: a result may err as
much as a plain computation in the same precision errs on the worst of several draws, times SLACK,
and by the bound where both errors are near it.

Operations are counted along the longest way to one number: the lengths of the sums, one after
another. An exponential makes a relative error of an absolute one, so the size of its exponent is
added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

SLACK = 4  # another order and other fused operations change the constant of an error, not its size


def rounding(size: torch.Tensor | float, operations: int, dtype: torch.dtype) -> float:
    """The bound of the error of `operations` in sequence.

    Args:
        size: the result, or the largest sum of the sizes of its terms.
        operations: additions and multiplications on the way to one number.
        dtype: the least precise of the numbers that are added.
    """
    largest = float(torch.as_tensor(size, dtype=torch.float64).abs().max())
    return operations * torch.finfo(dtype).eps * largest


def assert_within_rounding(
    result, expected, operations: int, size=None, name: str = "", dtype=None
) -> None:
    """Two computations of one array differ by rounding at most; the coarser dtype decides.

    Args:
        result, expected: tensors or arrays of one shape; infinities stand in the same places.
        operations: see `rounding`.
        size: see `rounding`; the largest finite number of the two when None.
        name: stated where it fails.
        dtype: of the computation, where its numbers were stored in a finer one.
    """
    result, expected = torch.as_tensor(result), torch.as_tensor(expected)
    kinds = [x.dtype for x in (result, expected) if x.is_floating_point()]
    dtype = dtype or max(kinds, key=lambda kind: torch.finfo(kind).eps)
    result, expected = result.detach().double(), expected.detach().double()
    if size is None:
        finite = torch.cat([x[x.isfinite()].flatten() for x in (result, expected)])
        size = finite.abs().max() if len(finite) else 0.0
    bound = SLACK * rounding(size, operations, dtype)
    torch.testing.assert_close(
        result, expected, rtol=0, atol=bound, msg=lambda m: f"{name}: {m}" if name else m
    )


def near(expected, operations: int, size: float | None = None, dtype=torch.float32):
    """What equals numbers, or lists or dicts of them, that differ by rounding; NaN equals NaN.

    dtype: that of the computation; it does not show in Python's numbers.
    """
    numbers = expected.values() if isinstance(expected, dict) else np.ravel(expected)
    if size is None:
        size = np.nanmax(np.abs(np.asarray([*numbers, 0.0], dtype=np.float64)))
    bound = SLACK * rounding(size, operations, dtype)
    return pytest.approx(expected, abs=bound, nan_ok=True)


def worst_error(results: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The largest absolute error over draws; infinite places must be the same."""
    worst = 0.0
    for result, wanted in zip(results, exact, strict=True):
        finite = wanted.isfinite()
        assert torch.equal(finite, result.isfinite())
        error = (result.double() - wanted)[finite].abs()
        worst = max(worst, float(error.max()) if error.numel() else 0.0)
    return worst


def assert_as_exact(results, references, exact, operations: int, name: str = "") -> None:
    """`results` err no more than `references`, both measured against float64.

    Args:
        results, references: lists of tensors, one per draw, in the precision under test.
        exact: the same in float64.
        operations: on the way to one number.
        name: stated where it fails.
    """
    size = max(float(x[x.isfinite()].abs().max()) for x in exact if x.isfinite().any())
    allowed = SLACK * worst_error(references, exact) + rounding(size, operations, torch.float32)
    found = worst_error(results, exact)
    assert found <= allowed, f"{name}: an error of {found:.2e}, where {allowed:.2e} is allowed"
