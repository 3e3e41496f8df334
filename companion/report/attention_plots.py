"""Pictures of attention on one scale: rows of weights over the same tokens, with a colour bar.

`plots.attention_strip` shades running text by its own largest weight; here several rows share one
scale, so that before and after can be compared. Nothing here computes attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from companion.report import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 0.24  # inches of a token
LEAST = 1e-3  # weights below have the lightest shade


def attention_rows(tokens: list[str], rows: dict[str, np.ndarray], title: str = "") -> Axes:
    """One row per name, one column per token; darker is more attention, on a logarithmic scale.

    Args:
        tokens: (T,) of the document, in order.
        rows: name -> (T,) weights from 0 to 1.
        title: of the figure.

    Raises:
        ValueError: no row, or one of another length.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    if not rows or any(len(weights) != len(tokens) for weights in rows.values()):
        sizes = {name: len(weights) for name, weights in rows.items()}
        raise ValueError(f"rows {sizes} and {len(tokens)} tokens: give each row a weight per token")
    plots.style()
    size = (2.6 + CELL * len(tokens), 1.5 + 0.34 * len(rows))
    _, ax = plt.subplots(figsize=size, layout="constrained")
    weights = np.clip(np.array(list(rows.values()), float), LEAST, 1.0)
    image = ax.imshow(weights, cmap="Oranges", norm=LogNorm(LEAST, 1.0), aspect="auto")
    ax.set_yticks(range(len(rows)), [plots.plain(name) for name in rows])
    ax.set_xticks(range(len(tokens)), [plots.plain(token) for token in tokens], rotation=90)
    ax.tick_params(labelsize=9)
    ax.grid(visible=False)
    ax.set_title(title)
    ax.set_gid(plots.DOCUMENT_WORDS)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.03, pad=0.01)
    bar.set_label("attention")
    bar.set_ticks([0.001, 0.01, 0.1, 1.0], labels=["≤ 0.1 %", "1 %", "10 %", "100 %"])
    return ax
