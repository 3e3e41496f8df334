"""Which implementation to use on this machine; the only file that looks for Triton and a GPU.

`impl="auto"` takes Triton for tensors on a GPU if Triton is installed, and PyTorch otherwise.
Triton's interpreter runs the same kernels on a CPU, for tests and lessons only; setting
`TRITON_INTERPRET=1` before Triton is imported turns it on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IMPLEMENTATIONS = ("auto", "triton", "torch", "reference")


@cache
def has_triton() -> bool:
    """Whether the package `triton` (extra `kernels`) is installed."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def fixed_order() -> Iterator[None]:
    """Inside, `index_add_` on a GPU adds in an order that does not change from call to call.

    On a CPU it always does. The former setting holds again afterwards.
    """
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def implementation(impl: str, tensor: torch.Tensor) -> str:
    """`impl` with "auto" resolved for the device of `tensor`: "triton", "torch" or "reference".

    Raises:
        ValueError: `impl` is unknown, or Triton is requested and cannot run here.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not known; use one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "auto":
        return "triton" if tensor.is_cuda and has_triton() else "torch"
    if impl == "triton":
        if not has_triton():
            raise ValueError(
                "impl='triton' was requested and triton is not installed; pip install"
                " 'plantlib[kernels]'"
            )
        if not tensor.is_cuda and not interpreted():
            raise ValueError(
                f"impl='triton' was requested with tensors on {tensor.device}; move them to a GPU,"
                " use impl='torch', or set TRITON_INTERPRET=1 before python starts to run the"
                " kernels in the interpreter"
            )
    return impl
