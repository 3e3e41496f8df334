"""The figure of the data flow, from text to metrics: boxes and arrows by name.

Drawn by `plots.data_flow`. Not here: the method on an example (`method_figure.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = {
    "text": (0, 1, "documents,\nlabel names"),
    "X, Y": (1, 1, "token presence,\nlabels (CSR)"),
    "C = X'Y": (2, 1, "counts,\ntraining rows only"),
    "J": (3, 1, "normalised\nmutual information"),
    "G": (4, 1, "graded relevance,\nK tokens a label"),
    "H": (1, 0, "hidden states\nof the backbone"),
    "metrics": (0, -1, "P@k, nDCG@k, ...\nby label frequency"),
    "logits": (1, -1, "one a label,\nstreamed top-k"),
    "LabelDecoder": (2, -1, "planted label\nattention"),
    "Q": (3, -1, "label queries,\nplanted"),
    "L2R": (4, -1, "learning to rank\ntokens, a label a list"),
}
_ARROWS = (("text", "X, Y"), ("X, Y", "C = X'Y"), ("C = X'Y", "J"), ("J", "G"), ("G", "L2R"), ("L2R", "Q"),
           ("Q", "LabelDecoder"), ("LabelDecoder", "logits"), ("logits", "metrics"), ("text", "H"), ("H", "L2R"),
           ("H", "LabelDecoder"))  # fmt: skip


# Half width and half height of a box.
_HALF = (0.86, 0.47)


def draw(ax: Axes, orange: str, blue: str) -> Axes:
    """The method in one picture: text -> X, Y -> C -> J -> G -> L2R -> Q -> LabelDecoder -> logits -> metrics."""
    from matplotlib.patches import FancyBboxPatch

    for name, (column, row, note) in _STEPS.items():
        colour = orange if name in {"C = X'Y", "J", "G", "L2R", "Q"} else blue
        x, y = 2.2 * column, 1.5 * row
        corner = (x - _HALF[0] + 0.08, y - _HALF[1] + 0.08)
        ax.add_patch(FancyBboxPatch(corner, 2 * _HALF[0] - 0.16, 2 * _HALF[1] - 0.16, boxstyle="round,pad=0.08",
                                    facecolor="white", edgecolor=colour, linewidth=1.8))
        ax.text(x, y + 0.21, name, ha="center", va="center", fontweight="bold", fontsize=12)
        ax.text(x, y - 0.15, note, ha="center", va="center", fontsize=8.5, linespacing=1.15)
    for start, end in _ARROWS:
        _arrow(ax, _STEPS[start], _STEPS[end])
    ax.text(5.5, 0.2, "orange: teacher and planting, training documents only\nblue: data and classifier", ha="center",
            va="center", fontsize=9.5, linespacing=1.5)
    ax.set(xlim=(-1.0, 9.8), ylim=(-2.1, 2.1))
    ax.set_axis_off()
    return ax


def _arrow(ax: Axes, start: tuple[int, int, str], end: tuple[int, int, str]) -> None:
    """From the side of one box that faces the other: sideways within a row, up or down between rows."""
    (x0, y0), (x1, y1) = ((2.2 * column, 1.5 * row) for column, row, _ in (start, end))
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    if dy:
        tail, head = (x0 + 0.55 * dx * _HALF[0], y0 + dy * _HALF[1]), (x1 - 0.55 * dx * _HALF[0], y1 - dy * _HALF[1])
    else:
        tail, head = (x0 + dx * _HALF[0], y0), (x1 - dx * _HALF[0], y1)
    ax.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.4,
                                            "shrinkA": 1, "shrinkB": 1})
