"""The arithmetic of the method behind one name an op, `impl="auto|triton|torch|reference"`.

`reference` is the specification, `torch` the default without a GPU (blocks, nothing of size (B, L, D) or (S, L) alive,
recomputation in the backward pass), `triton` the fused kernels. `machine.py` alone asks what the machine has; README.md
beside this file says which kernel has run where. Ranking losses are reached through `ranking.py`, counts through `mig.py`.
"""

from __future__ import annotations

from plantlib.kernels.attention import Cells, merge
from plantlib.kernels.attention import planted_attention as attend
from plantlib.kernels.attention import planted_attention_bce as attend_bce
from plantlib.kernels.machine import IMPLEMENTATIONS, implementation

__all__ = ["Cells", "IMPLEMENTATIONS", "attend", "attend_bce", "implementation", "merge"]
