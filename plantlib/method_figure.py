"""The method in one picture, on eight training sentences small enough to check by eye: count, grade, plant, fine-tune.

METHOD sections 1, 2 and 4. What is drawn is computed by the library (`mig.teach`, a softmax over the planted score alone), not
typed: `example` is the data, `draw` the picture. `plots.method_figure` is the public name; `plots.data_flow` shows the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

LABELS = ("heart failure", "pneumonia", "migraine")
TRAINING = (
    ("ankles swollen breathless", "heart failure"), ("swollen ankles at night", "heart failure"),
    ("breathless with fever", "pneumonia"), ("cough fever at night", "pneumonia"),
    ("headache with aura", "migraine"), ("aura headache at night", "migraine"),
    ("fever cough headache", "pneumonia"), ("breathless at night", "heart failure"),
)  # fmt: skip
DOCUMENT = ("breathless", "at", "night", "with", "swollen", "ankles")
GAIN = 4.0  # of the planted score, as `planting.StartConfig` starts it
TOP_K = 3


def example() -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
    """(C, G, attention): tokens x labels counts and graded relevance; the document's tokens x (random, planted).

    attention: of the label "heart failure" before any training; random queries are so small that every token weighs the same.
    """
    import numpy as np
    import pandas as pd
    from scipy import sparse

    from plantlib import mig

    tokens = sorted({token for text, _ in TRAINING for token in text.split()})
    x = np.array([[token in text.split() for token in tokens] for text, _ in TRAINING], np.int32)
    y = np.array([[label == own for label in LABELS] for _, own in TRAINING], np.int32)
    teacher = mig.teach(sparse.csr_matrix(x), sparse.csr_matrix(y), top_k=TOP_K, relevance="score")
    counts = pd.DataFrame(x.T @ y, tokens, LABELS)
    relevance = pd.DataFrame(teacher.relevance.toarray().T, tokens, LABELS)
    planted = np.exp(GAIN * relevance.loc[list(DOCUMENT), LABELS[0]].to_numpy())
    even = np.full(len(DOCUMENT), 1 / len(DOCUMENT))
    return counts, relevance, pd.DataFrame({"random": even, "planted": planted / planted.sum()}, DOCUMENT)


def draw(orange: str, grey: str) -> Axes:
    """Four panels side by side in a new figure; the first one's Axes. orange, grey: the starts' colours."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(12.6, 3.5), width_ratios=(1.0, 1.0, 1.15, 1.0))
    counts, relevance, attention = example()
    used = relevance.index[(relevance > 0).any(axis=1)]
    _table(axes[0], counts.loc[used], orange, "{:.0f}", "1  Count, training only", r"$C = X^{\top} Y$")
    _table(axes[1], relevance.loc[used], orange, "{:.2f}", f"2  Keep {TOP_K} tokens a label",
           "$G$: mutual information, graded")  # fmt: skip
    axes[1].set_yticklabels([])
    _strips(axes[2], attention, orange, grey)
    _words(axes[3])
    figure.get_layout_engine().set(w_pad=0.08)
    return axes[0]


def _table(ax: Axes, frame: pandas.DataFrame, colour: str, form: str, title: str, below: str) -> None:
    """Cells as dark as their value, the value written in each that is not zero."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", colour])
    ax.imshow(frame.to_numpy(), cmap=shades, aspect="auto", vmin=0)
    for row, column in zip(*frame.to_numpy().nonzero(), strict=True):
        ax.text(column, row, form.format(frame.iat[row, column]), ha="center", va="center", fontsize=9)
    ax.set_xticks(range(len(frame.columns)), [name.replace(" ", "\n") for name in frame.columns], fontsize=9)
    ax.set_yticks(range(len(frame.index)), frame.index, fontsize=10)
    ax.set_xlabel(below, fontsize=10)
    ax.set_title(title, fontsize=11, loc="left", fontweight="bold")
    ax.grid(False)


def _strips(ax: Axes, attention: pandas.DataFrame, orange: str, grey: str) -> None:
    """Attention of one label over a new document, before any training: a bar a token and start."""
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
    lines = (r"$A_{tl} = \mathrm{softmax}_t\,( \langle H_t, Q_l \rangle + \gamma\, G_{tl} )$",
             r"$\mathrm{logit}_l = \sum_t A_{tl} \langle H_t, W_l \rangle + \beta_l$",
             "$H$ hidden states of a backbone\n$Q$, $W$ queries and outputs of labels\n"
             r"$\gamma$ planted gain, learned too" + "\n\nEverything goes on learning from\nwhat was planted.")  # fmt: skip
    for height, text, size in zip((0.88, 0.66, 0.46), lines, (11, 11, 10), strict=True):
        ax.text(0.0, height, text, fontsize=size, va="top", transform=ax.transAxes, linespacing=1.5)
    ax.set_title("4  Fine-tune", fontsize=11, loc="left", fontweight="bold")
    ax.set_axis_off()
