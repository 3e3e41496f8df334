"""The arithmetic of the method behind one name per operation, `impl="auto|triton|torch|reference"`.

`reference` is the specification. `torch` is the default without a GPU: it works in blocks, holds
nothing of size (B, L, D) or (S, L), and recomputes in the backward pass. `triton` are the fused
kernels. `machine.py` alone asks what the machine has; README.md beside this file says which kernel
has run where. Ranking losses are reached through `planting/ranking.py`, counts through
`teacher/mig.py`. The names are loaded when first used, so that exact counts need no PyTorch.
"""

from importlib import import_module

_HOMES = {
    "Cells": ("plantlib.kernels.attention", "Cells"),
    "merge": ("plantlib.kernels.attention", "merge"),
    "attend": ("plantlib.kernels.attention", "planted_attention"),
    "attend_bce": ("plantlib.kernels.attention", "planted_attention_bce"),
    "IMPLEMENTATIONS": ("plantlib.kernels.machine", "IMPLEMENTATIONS"),
    "implementation": ("plantlib.kernels.machine", "implementation"),
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(
            f"module 'plantlib.kernels' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
