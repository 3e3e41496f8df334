"""What the machine has, asked in this file alone: Triton or not, a GPU or not, its Triton target,
the implementation to use.

`impl="auto"` takes Triton for tensors on a GPU where Triton is installed, and PyTorch everywhere
else. Triton's interpreter runs the same kernels on a CPU, for tests and lessons only; it is chosen
by `TRITON_INTERPRET=1` before Triton is imported.
"""

from __future__ import annotations

import os
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
    """Whether Triton kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def implementation(impl: str, tensor: torch.Tensor) -> str:
    """`impl` with "auto" resolved for `tensor`'s device: "triton", "torch" or "reference"."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not known; use one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "auto":
        return "triton" if tensor.is_cuda and has_triton() else "torch"
    if impl == "triton":
        if not has_triton():
            raise ValueError(
                "impl='triton' was asked for and triton is not installed; pip install"
                " 'plantlib[kernels]'"
            )
        if not tensor.is_cuda and not interpreted():
            raise ValueError(
                f"impl='triton' was asked for with tensors on {tensor.device}; move them to a GPU,"
                " use impl='torch', or set TRITON_INTERPRET=1 before python starts to run the"
                " kernels in the interpreter"
            )
    return impl
