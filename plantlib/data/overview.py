"""What was understood of a corpus, in a few lines to look at before training.

Names of labels are shown, texts never: a name so long that it may be a text is given by its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plantlib.data import label_names
from plantlib.utils.base import SPLITS
from plantlib.utils.terminal import brief

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SHOWN = {"words": 12, "length": 80}


def overview(labels: csr_matrix, names: Sequence[str], split: np.ndarray) -> str:
    """Documents, labels, labels per document, the five most frequent labels, and what is odd.

    Args:
        labels: Y, (N, L).
        names: L label names.
        split: (N,) of `SPLITS`.
    """
    counts = np.asarray(labels.sum(axis=0)).ravel()
    per_document = np.diff(labels.indptr)
    sizes = {s: int((split == s).sum()) for s in SPLITS}
    splits = ", ".join(f"{size:,} {split}" for split, size in sizes.items() if size)
    lines = [f"documents: {len(split):,} ({splits})", f"labels: {len(names):,}"]
    if len(split):
        lines[1] += (
            f"; per document: {per_document.mean():.1f} on average, {per_document.min()} to"
            f" {per_document.max()}"
        )
    # a stable sort: of equally frequent labels the first by name
    best = np.argsort(-counts, kind="stable")[:5]
    frequent = [f"{brief(names[i], **SHOWN)} {counts[i]:,}" for i in best]
    lines.append(f"most frequent: {', '.join(frequent) or 'none'}")
    bare = int(((per_document == 0) & (split != "unlabelled")).sum())
    return "\n".join(lines + [f"odd: {line}" for line in _odd(names, counts, len(split), bare)])


def _odd(names: Sequence[str], counts: np.ndarray, documents: int, bare: int) -> list[str]:
    lines = []
    if bare:
        lines.append(f"{bare:,} documents without labels")
    everywhere = [names[i] for i in np.flatnonzero(counts == documents)]
    once = [names[i] for i in np.flatnonzero(counts == 1)]
    if everywhere:
        lines.append(_line("stand on every document", everywhere))
    if once:
        lines.append(_line("occur once", once))
    return lines + [_line(reason, odd) for reason, odd in label_names.odd(names).items()]


def _line(reason: str, names: Sequence[str]) -> str:
    shown = ", ".join(brief(name, **SHOWN) for name in names[:5])
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names):,} labels {reason}: {shown}{more}"
