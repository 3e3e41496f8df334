"""The arithmetic of the method: one name per operation, `impl="auto|triton|torch|reference"`.

`reference` is the specification. `torch` is the default without a GPU: it works in blocks, stores
nothing of size (B, L, D) or (S, L), and recomputes in the backward pass. `triton` means the fused
kernels. Ranking losses are called through `planting/ranking.py`, counts through `teacher/mig.py`.
README.md in this folder says which kernel has run where. Names are loaded on first use, so exact
counts need no PyTorch.
"""

from importlib import import_module

_HOMES = {
    "Cells": ("plantlib.kernels.attention", "Cells"),
    "merge": ("plantlib.kernels.attention", "merge"),
    "attend": ("plantlib.kernels.attention", "planted_attention"),
    "attend_distinct": ("plantlib.kernels.distinct", "attend_distinct"),
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
