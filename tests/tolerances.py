"""How far apart two computations of one number may lie, derived and not fitted to a machine.

Processors add in different orders and fuse different operations, so results differ by rounding. Of
a sum of n terms the rounding error is at most n epsilons of the sum of their sizes, in any order.
Two forms of tolerance follow from it. `rounding` is that bound. `assert_as_exact` takes float64 as
the yardstick: a result may err as much as a plain computation in the same precision errs on the
worst of several draws, times SLACK, and by the bound where both errors are near it.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def assert_within_rounding(result, expected, operations: int, size=None, name: str = "") -> None:
    """Two tensors of one computation differ by rounding at most; the coarser dtype decides.

    size: see `rounding`; the larger of the two results when None.
    """
    result, expected = torch.as_tensor(result), torch.as_tensor(expected)
    dtype = max((result.dtype, expected.dtype), key=lambda kind: torch.finfo(kind).eps)
    result, expected = result.detach().double(), expected.detach().double()
    if size is None:
        finite = torch.cat([x[x.isfinite()].flatten() for x in (result, expected)])
        size = finite.abs().max() if len(finite) else 0.0
    bound = SLACK * rounding(size, operations, dtype)
    torch.testing.assert_close(
        result, expected, rtol=0, atol=bound, msg=lambda m: f"{name}: {m}" if name else m
    )


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
