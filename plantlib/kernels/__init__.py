"""Label attention behind one name, `impl="auto|torch|reference"`; this file alone asks which implementation to use.

Realises the decoder's arithmetic of METHOD.md section 4. `reference` is the specification, `torch` is the default:
blocks of labels, nothing of size (B, L, D) or (S, L) alive, recomputation in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

IMPLEMENTATIONS = ("auto", "torch", "reference")


def attend(*args, impl: str = "auto", **kwargs):
    """Planted label attention by one implementation; arguments and results as in `kernels.reference.label_attention`."""
    return implementation(impl)(*args, **kwargs)


def implementation(impl: str = "auto") -> Callable:
    """The label-attention function called `impl`."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not known; use one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "reference":
        from plantlib.kernels import reference

        return reference.label_attention
    from plantlib.kernels import label_attention as blocked

    return blocked.label_attention
