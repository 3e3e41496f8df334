"""Figures of the studies of what training does to planted attention: survival and margins.

They share the style and the colours of `plots.py`: a DataFrame goes in, matplotlib Axes come out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from companion.report.metric_names import metric_name
from companion.report.palette import OTHERS
from companion.report.plots import _need
from companion.report.plots_claims import _range

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

WAYS = {"trained": (OTHERS[1], "o"), "slow": (OTHERS[2], "D"), "frozen": (OTHERS[0], "s")}
PANELS = {
    "distance": "attention moved (0 to 1)",
    "precision": "precision at marked words",
    "ndcg@5": f"dev {metric_name('ndcg@5')} (%)",
}


def survival(table: pandas.DataFrame, epochs: int) -> Figure:
    """Three panels by epoch on dev: how far attention has moved from where it was planted, how well
    it finds marked words, and nDCG@5; a line per way of training, the mean over seeds.

    table: as `survival.run` returns it. epochs: of the trainings that are drawn.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    _need(table, "way", "epochs", "split", "epoch", *PANELS)
    rows = table[(table["split"] == "dev") & (table["epochs"] == epochs)]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9.6, 3.4), layout="constrained")
    for ax, (measure, name) in zip(axes, PANELS.items(), strict=True):
        for way, (colour, marker) in WAYS.items():
            values = rows[rows["way"] == way].groupby("epoch")[measure].mean().dropna()
            scale = 100 if measure == "ndcg@5" else 1
            ax.plot(values.index, scale * values, marker, linestyle="-", color=colour, label=way)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(name, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(WAYS))
    return figure


def margins(added: pandas.DataFrame) -> Figure:
    """What planting adds to a gold label's margin in training and on test, by training documents of
    the label; a panel per teacher.

    added: as `margins.added` returns it.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(added.columns), figsize=(9.6, 3.4), sharey=True, layout="constrained"
    )
    looks = {"training": (OTHERS[4], "s"), "test": (OTHERS[1], "o")}
    for ax, teacher in zip(axes, added.columns, strict=True):
        for split, (colour, marker) in looks.items():
            part = added.loc[split, teacher].dropna()
            ax.plot(range(len(part)), part, marker, linestyle="-", color=colour, label=split)
            names = [_range(*pair) for pair in part.index]
        ax.set(xticks=range(len(names)), xticklabels=names, title=teacher)
        ax.tick_params(axis="x", rotation=45)
        ax.axhline(0, color="#999999", linewidth=0.8)
        ax.set_xlabel("training documents of the label")
    axes[0].set_ylabel("logits added")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
