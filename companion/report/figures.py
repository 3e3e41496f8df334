"""Two pictures of the method: on eight training sentences, and as a flow of data.

The toy figure shows docs/method.md, "Mutual information gain", "The teacher" and "Planted
attention" on numbers that a reader can check: `example` computes them with the library, and
`draw_method` draws them. `draw_flow` shows how the quantities depend on each other. The public
names are `plots.method_figure` and `plots.data_flow`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plantlib.teacher import mig

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


LABELS = ("heart failure", "pneumonia", "migraine")


TRAINING = (
    ("ankles swollen breathless", "heart failure"),
    ("swollen ankles at night", "heart failure"),
    ("breathless with fever", "pneumonia"),
    ("cough fever at night", "pneumonia"),
    ("headache with aura", "migraine"),
    ("aura headache at night", "migraine"),
    ("fever cough headache", "pneumonia"),
    ("breathless at night", "heart failure"),
)
DOCUMENT = ("breathless", "at", "night", "with", "swollen", "ankles")
GAIN = 4.0  # of the planted relevance, as in `StartConfig`
TOP_K = 3


def example() -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
    """(C, G, attention) of the toy corpus.

    C: counts, tokens x labels; G: relevance, tokens x labels; attention: of the label "heart
    failure" before training, the document's tokens x (random, planted). Random queries are so small
    that every token gets the same attention.
    """
    import numpy as np
    import pandas as pd
    from scipy import sparse

    tokens = sorted({token for text, _ in TRAINING for token in text.split()})
    x = np.array([[token in text.split() for token in tokens] for text, _ in TRAINING], np.int32)
    y = np.array([[label == gold for label in LABELS] for _, gold in TRAINING], np.int32)
    teacher = mig.teach(sparse.csr_matrix(x), sparse.csr_matrix(y), variant="jaccard", top_k=TOP_K)
    counts = pd.DataFrame(x.T @ y, tokens, LABELS)
    relevance = pd.DataFrame(teacher.relevance.toarray().T, tokens, LABELS)
    planted = np.exp(GAIN * relevance.loc[list(DOCUMENT), LABELS[0]].to_numpy())
    even = np.full(len(DOCUMENT), 1 / len(DOCUMENT))
    attention = pd.DataFrame({"random": even, "planted": planted / planted.sum()}, DOCUMENT)
    return counts, relevance, attention


def draw_method(orange: str, grey: str) -> Axes:
    """Four panels side by side in a new figure; returns the Axes of the first.

    orange, grey: colours of planted and random attention.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(12.6, 3.5), width_ratios=(1.0, 1.0, 1.15, 1.0))
    counts, relevance, attention = example()
    used = relevance.index[(relevance > 0).any(axis=1)]
    _table(
        axes[0],
        counts.loc[used],
        orange,
        "{:.0f}",
        "1  Count, training only",
        "$C = X^{\\top} Y$: documents with\nboth token ($X$) and label ($Y$)",
    )
    _table(
        axes[1],
        relevance.loc[used],
        orange,
        "{:.2f}",
        f"2  Keep {TOP_K} tokens per label",
        "$G$: mutual information, graded",
    )
    axes[1].set_yticklabels([])
    _strips(axes[2], attention, orange, grey)
    _words(axes[3])
    figure.get_layout_engine().set(w_pad=0.08)
    return axes[0]


def _table(
    ax: Axes, frame: pandas.DataFrame, colour: str, form: str, title: str, below: str
) -> None:
    """Cells as dark as their value, the value written in each that is not zero."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", colour])
    ax.imshow(frame.to_numpy(), cmap=shades, aspect="auto", vmin=0)
    for row, column in zip(*frame.to_numpy().nonzero(), strict=True):
        ax.text(
            column, row, form.format(frame.iat[row, column]), ha="center", va="center", fontsize=9
        )
    ax.set_xticks(
        range(len(frame.columns)), [name.replace(" ", "\n") for name in frame.columns], fontsize=9
    )
    ax.set_yticks(range(len(frame.index)), frame.index, fontsize=10)
    ax.set_xlabel(below, fontsize=10)
    ax.set_title(title, fontsize=11, loc="left", fontweight="bold")
    ax.grid(False)


def _strips(ax: Axes, attention: pandas.DataFrame, orange: str, grey: str) -> None:
    """Attention of one label to a new document before training: a bar per token and start."""
    import numpy as np

    place = np.arange(len(attention))
    for shift, name, colour in ((-0.2, "random", grey), (0.2, "planted", orange)):
        ax.barh(place + shift, attention[name], height=0.38, color=colour, label=name)
    ax.set_yticks(place, attention.index, fontsize=10)
    ax.invert_yaxis()
    ax.set_xlabel(f"attention of “{LABELS[0]}” to a new text", fontsize=10)
    ax.set_title("3  Plant: before any training", fontsize=11, loc="left", fontweight="bold")
    ax.tick_params(axis="x", labelsize=9)
    ax.legend(loc="center right", fontsize=9)
    ax.grid(axis="y", visible=False)


def _words(ax: Axes) -> None:
    lines = (
        r"$A_{tl} = \mathrm{softmax}_t\,( \langle H_t, Q_l \rangle + \gamma\, G_{tl} )$",
        r"$\mathrm{logit}_l = \sum_t A_{tl} \langle H_t, W_l \rangle + \beta_l$",
        "$A_{tl}$ attention of label $l$ to token $t$\n$H$ hidden states of a backbone\n"
        "$Q$, $W$, $\\beta$ queries, outputs, bias of labels\n"
        r"$G$ relevance, $\gamma$ its gain, learned too"
        "\n\nTraining goes on from what was planted.",
    )
    for height, text, size in zip((0.92, 0.74, 0.54), lines, (11, 11, 9.5), strict=True):
        ax.text(0.0, height, text, fontsize=size, va="top", transform=ax.transAxes, linespacing=1.5)
    ax.set_title("4  Fine-tune", fontsize=11, loc="left", fontweight="bold")
    ax.set_axis_off()


_STEPS = {
    "text": (0, 1, "documents,\nlabel names"),
    "X, Y": (1, 1, "token presence,\nlabels (sparse)"),
    "C = X'Y": (2, 1, "counts,\ntraining rows only"),
    "I": (3, 1, "mutual information\nof token and label"),
    "G": (4, 1, "K best tokens of\neach label, 0 to 1"),
    "u": (0, 0, "linear score\nover words"),
    "H": (1, 0, "hidden states\nof the backbone"),
    "L2R": (4, 0, "learning to rank\ntokens, a list per label"),
    "metrics": (0, -1, "P@k, nDCG@k, ...\nby label frequency"),
    "logits": (1, -1, "one per label,\nstreamed top-k"),
    "LabelDecoder": (2.7, -1, "planted label\nattention"),
    "Q": (4, -1, "label queries"),
}
_ORANGE = {"C = X'Y", "I", "G", "L2R", "Q"}
_OPTIONAL = {"L2R", "Q"}  # of the starts l2r and closed_form alone


_ARROWS = (
    ("text", "X, Y"),
    ("X, Y", "C = X'Y"),
    ("C = X'Y", "I"),
    ("I", "G"),
    ("G", "LabelDecoder"),
    ("G", "L2R"),
    ("L2R", "Q"),
    ("Q", "LabelDecoder"),
    ("LabelDecoder", "logits"),
    ("logits", "metrics"),
    ("text", "u"),
    ("u", "logits"),
    ("text", "H"),
    ("H", "L2R"),
    ("H", "LabelDecoder"),
)


# Half width and half height of a box.
_HALF = (0.86, 0.47)


def draw_flow(ax: Axes, orange: str, blue: str) -> Axes:
    """Boxes and arrows from text to metrics; orange: teacher and planting, blue: the rest."""
    from matplotlib.patches import FancyBboxPatch

    for name, (column, row, note) in _STEPS.items():
        colour = orange if name in _ORANGE else blue
        x, y = 2.2 * column, 1.5 * row
        corner = (x - _HALF[0] + 0.08, y - _HALF[1] + 0.08)
        ax.add_patch(
            FancyBboxPatch(
                corner,
                2 * _HALF[0] - 0.16,
                2 * _HALF[1] - 0.16,
                boxstyle="round,pad=0.08",
                facecolor="white",
                edgecolor=colour,
                linewidth=1.8,
                linestyle="--" if name in _OPTIONAL else "-",
            )
        )
        ax.text(x, y + 0.21, name, ha="center", va="center", fontweight="bold", fontsize=12)
        ax.text(x, y - 0.15, note, ha="center", va="center", fontsize=8.5, linespacing=1.15)
    for start, end in _ARROWS:
        _arrow(ax, _STEPS[start], _STEPS[end], dashed=bool(_OPTIONAL & {start, end}))
    ax.text(
        4.4,
        -2.35,
        "orange: teacher and planting, training documents only; blue: data and classifier;"
        " dashed: the starts that plant queries",
        ha="center",
        va="center",
        fontsize=9.5,
        linespacing=1.5,
    )
    ax.set(xlim=(-1.0, 9.8), ylim=(-2.6, 2.1))
    ax.set_axis_off()
    return ax


def _arrow(
    ax: Axes, start: tuple[float, int, str], end: tuple[float, int, str], dashed: bool = False
) -> None:
    """An arrow between two boxes: sideways within a row, up or down between rows."""
    (x0, y0), (x1, y1) = ((2.2 * column, 1.5 * row) for column, row, _ in (start, end))
    dx = (x1 > x0) - (x1 < x0)
    dy = (y1 > y0) - (y1 < y0)
    # it begins and ends at the sides that face each other
    shift_x = (0.55 if dy else 1.0) * dx * _HALF[0]
    shift_y = dy * _HALF[1]
    tail = (x0 + shift_x, y0 + shift_y)
    head = (x1 - shift_x, y1 - shift_y)
    ax.annotate(
        "",
        head,
        tail,
        arrowprops={
            "arrowstyle": "-|>",
            "color": "#333333",
            "linewidth": 1.4,
            "linestyle": "--" if dashed else "-",
            "shrinkA": 1,
            "shrinkB": 1,
        },
    )
