"""Figures of the studies: costs of peers, gains by a leak, convergence, data efficiency, corpora,
reliability of scores, coverage of promises, weights of words, kernels.

They share the style and the colours of `plots.py`: a DataFrame goes in, a matplotlib Axes comes
out. No metric is computed and no file is read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from companion.report.metric_names import metric_name
from companion.report.palette import IMPLEMENTATIONS
from companion.report.plots import (
    COLOURS,
    OTHERS,
    _axes,
    _bands,
    _by_rank,
    _need,
    beside,
    colours,
    plain,
    style,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


_MARKERS = {"linear": "o", "neural": "s", "planted": "D", "teacher": "^"}


def quality_cost(frame: pandas.DataFrame, metric: str = "ndcg@5", ax: Axes | None = None) -> Axes:
    """Quality in percent against seconds of training (logarithmic), a mark per system.

    The shape of a mark shows the kind of system; marks are filled for CPU seconds and open for wall
    seconds, which stand in where CPU seconds are unknown.

    frame: rows of one data set, as `peers.table.frame` returns them.
    """
    _need(frame, "system", "kind", metric, "train_s", "train_cpu_s")
    # names stand below one another in the margin, a line of text each
    tall = max(4.2, 1.0 + 0.2 * len(frame))
    ax = _axes(ax, (7.4, tall))
    rows = frame.dropna(subset=[metric])
    rows = rows.assign(
        cpu=rows["train_cpu_s"].notna(),
        seconds=rows["train_cpu_s"].fillna(rows["train_s"]).clip(lower=0.05),
    )
    rows = rows.dropna(subset=["seconds"]).sort_values(metric)
    palette = colours(frame["system"])
    for row in rows.to_dict("records"):
        fill = palette[row["system"]] if row["cpu"] else "white"
        ax.plot(
            row["seconds"],
            row[metric],
            _MARKERS[row["kind"]],
            color=palette[row["system"]],
            markerfacecolor=fill,
        )
    for row, height in zip(
        rows.to_dict("records"), _apart(rows[metric], 0.19 / (tall - 0.9)), strict=True
    ):
        # the names stand right of the axes, moved apart where they would touch
        ax.annotate(
            row["system"],
            (row["seconds"], row[metric]),
            (1.02, height),
            textcoords=ax.get_yaxis_transform(),
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6},
        )
    ax.set(
        xscale="log",
        xlabel="seconds of training (filled: CPU, open: wall)",
        ylabel=f"{metric_name(metric)} on test (%)",
    )
    return ax


def _apart(values: pandas.Series, share: float) -> list[float]:
    """Ascending values moved apart by the height of a line of text, a `share` of their range.

    They move up, and down again where they would leave the axes at the top.
    """
    gap = share * max(float(values.max() - values.min()), 1.0)
    heights = []
    for value in values:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    ceiling = float(values.max()) + 2 * gap
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    return heights


def leak_gain(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """Points that a teacher of all rows gains over one of the training rows, by label bucket.

    A bar per data set and start; whiskers go from the worst to the best seed. frame: as
    `leak_audit.gains` returns it.
    """
    _need(frame, "data", "start", "seed", "bucket", "gain")
    ax = _axes(ax, (7.4, 4.0))
    buckets = [b for b in ("zero", "few", "medium", "head") if b in set(frame["bucket"])]
    groups = list(frame.groupby(["data", "start"], sort=False))
    palette = colours(frame["start"])
    data = list(dict.fromkeys(frame["data"]))
    width = 0.8 / len(groups)
    for i, ((name, start), rows) in enumerate(groups):
        values = 100 * rows.groupby("bucket")["gain"].agg(["mean", "min", "max"]).reindex(buckets)
        left = [place - 0.4 + width * (i + 0.5) for place in range(len(buckets))]
        spread = [values["mean"] - values["min"], values["max"] - values["mean"]]
        ax.bar(
            left,
            values["mean"],
            width * 0.92,
            yerr=spread,
            color=palette[start],
            label=f"{start}, {plain(name)}",
            hatch=["", "//", "xx"][data.index(name) % 3],
            edgecolor="white",
            error_kw={"linewidth": 1},
        )
    ax.axhline(0, color="#333333", linewidth=0.8)
    ax.set(
        xticks=range(len(buckets)),
        xticklabels=buckets,
        xlabel="labels by training frequency (zero: none)",
    )
    ax.set_ylabel("RP@5, points gained by the leak")
    ax.grid(axis="x", visible=False)
    ax.legend()
    return ax


def planting_worth(frame: pandas.DataFrame, metric: str = "ndcg@5", ax: Axes | None = None) -> Axes:
    """What planting adds on each data set in points, with 95 % intervals, the largest first.

    A filled mark is the difference to the same start with nothing planted, an open one to the same
    start with a shuffled teacher; colours are those of the planted starts. frame: as
    `verdict_words.planting_rows` returns it.
    """
    sides = {"unplanted": "minus nothing planted", "shuffled": "minus a shuffled teacher"}
    _need(frame, "data", "planted", *(f"{side} difference" for side in sides))
    ax = _axes(ax, (7.4, 1.6 + 0.46 * len(frame)))
    palette = colours(frame["planted"])
    for place, row in enumerate(frame.to_dict("records")):
        colour = palette[row["planted"]]
        for side, shift in (("unplanted", -0.14), ("shuffled", 0.14)):
            y, fill = place + shift, colour if side == "unplanted" else "white"
            ax.hlines(y, row[f"{side} low"], row[f"{side} high"], color=colour, linewidth=2)
            value = row[f"{side} difference"]
            ax.plot(value, y, "o", color=colour, markerfacecolor=fill, markersize=7)
    ax.axvline(0, color=COLOURS["random"], linewidth=1)
    names = [f"{plain(row.data)}\n{row.planted}" for row in frame.itertuples()]
    ax.set(yticks=range(len(frame)), ylim=(len(frame) - 0.5, -0.5))
    ax.set_yticklabels(names, fontsize=10)
    ax.set_xlabel(f"{metric_name(metric)} on test, points (95 % interval)")
    for side, name in sides.items():
        fill = "#333333" if side == "unplanted" else "white"
        ax.plot([], [], "o", color="#333333", markerfacecolor=fill, label=name)
    ax.figure.legend(loc="outside lower center", ncols=2)
    return ax


def word_weights(frame: pandas.DataFrame, measures: dict[str, str]) -> Axes:
    """What contributions have more than other ways to weigh words, in points with 95 % intervals.

    A panel per measure, a row per way.

    Args:
        frame: as `contributions.table` returns it, contributions first.
        measures: key -> name of each measure, in the order of the panels.
    """
    import matplotlib.pyplot as plt

    _need(frame, *(f"{key} {part}" for key in measures for part in ("diff", "low", "high")))
    style()
    others = frame.iloc[1:]
    size = (2.3 * len(measures) + 1.4, 1.6 + 0.34 * len(others))
    fig, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for ax, (key, name) in zip(axes[0], measures.items(), strict=True):
        places = range(len(others))
        ax.hlines(places, 100 * others[f"{key} low"], 100 * others[f"{key} high"], color=OTHERS[1])
        ax.plot(100 * others[f"{key} diff"], places, "o", color=OTHERS[1])
        ax.axvline(0, color="#333333", linewidth=0.8)
        ax.set_title(f"{name}\n(less is better)" if key == "sufficiency" else name, fontsize=10)
        ax.tick_params(labelsize=9)
    axes[0, 0].set(yticks=places, yticklabels=others.index, ylim=(len(others) - 0.5, -0.5))
    fig.supxlabel(f"{frame.index[0]} minus this way, points (95 % interval)", fontsize=10)
    return axes[0, 0]


def effect_panels(frame: pandas.DataFrame, label: str) -> Axes:
    """Effects with 95 % intervals, a panel per comparison and a row per effect.

    Args:
        frame: columns panel, effect, value, low and high; the last three in fractions.
        label: of the common axis, in points.
    """
    import matplotlib.pyplot as plt

    _need(frame, "panel", "effect", "value", "low", "high")
    style()
    names, effects = frame["panel"].unique(), frame["effect"].unique()
    size = (2.6 * len(names) + 2.0, 1.5 + 0.34 * len(effects))
    fig, axes = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    place = {effect: i for i, effect in enumerate(effects)}
    for ax, (name, rows) in zip(axes[0], frame.groupby("panel", sort=False), strict=True):
        y = [place[effect] for effect in rows["effect"]]
        ax.hlines(y, 100 * rows["low"], 100 * rows["high"], color=OTHERS[1])
        ax.plot(100 * rows["value"], y, "o", color=OTHERS[1])
        ax.axvline(0, color="#333333", linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.tick_params(labelsize=9)
    axes[0, 0].set(yticks=range(len(effects)), yticklabels=effects, ylim=(len(effects) - 0.5, -0.5))
    fig.supxlabel(f"{label}, points (95 % interval)", fontsize=10)
    return axes[0, 0]


def planted_mass(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """Attention that planting gives the words of a document's own labels, by the number of training
    documents of the label, a line per way of reading.

    frame: rows of one corpus, as `planted_mass.by_documents` returns them.
    """
    _need(frame, "read", "least", "most", "mass")
    ax = _axes(ax, (6.4, 3.8))
    groups = frame[["least", "most"]].drop_duplicates().sort_values("least")
    place = {least: i for i, least in enumerate(groups["least"])}
    looks = {
        "training, as counted": (OTHERS[4], "s"),
        "training, cross-fitted": (COLOURS["lookup"], "D"),
    }
    for read, rows in frame.groupby("read", sort=False):
        colour, marker = looks.get(read, (OTHERS[1], "o"))
        x = [place[least] for least in rows["least"]]
        ax.plot(x, rows["mass"], marker, linestyle="-", color=colour, label=read)
    names = [_range(*pair) for pair in groups.itertuples(index=False)]
    ax.set(xticks=range(len(names)), xticklabels=names, ylim=(0, None))
    ax.set_xlabel("training documents of the label")
    ax.set_ylabel("attention on its words (%)")
    ax.legend()
    return ax


def _range(least: int, most) -> str:
    """The name of a group of labels: "1", "3-5", "over 100"."""
    import pandas as pd

    if pd.isna(most):
        return f"over {least - 1}"
    return str(least) if least == most else f"{least}-{most}"


def convergence(
    frame: pandas.DataFrame,
    metric: str = "ndcg@5",
    baseline: str = "random",
    ax: Axes | None = None,
) -> Axes:
    """Dev metric by optimiser step, a line per start, a band from the worst to the best seed.

    The dashed line is the best value of the baseline, averaged over seeds. frame: columns start,
    seed, step and `metric` (a fraction), as `convergence.steps` returns them for one data set.
    """
    _need(frame, "start", "seed", "step", metric)
    ax = _axes(ax)
    _bands(ax, frame, "start", "step", metric)
    best = frame[frame["start"] == baseline].groupby("seed")[metric].max().mean()
    if best == best:  # nan where the baseline was not run
        ax.axhline(100 * best, color=colours([baseline])[baseline], linestyle="--", linewidth=1)
    ax.set(xlabel="steps", ylabel=f"dev {metric_name(metric)} (%)")
    beside(ax, "start (band: seeds)")
    return ax


def data_efficiency(
    frame: pandas.DataFrame, metric: str = "ndcg@5", ax: Axes | None = None
) -> Axes:
    """Test metric by number of training documents (logarithmic), a line per system.

    Bands go from the worst to the best seed. frame: columns system, seed, documents and `metric` (a
    fraction), as `learning_curves.frame` returns them for one data set.
    """
    _need(frame, "system", "seed", "documents", metric)
    ax = _axes(ax)
    _bands(ax, frame, "system", "documents", metric, dashed=("SVM",))
    sizes = sorted(set(frame["documents"]))
    ax.set(xscale="log", xlabel="training documents", ylabel=f"test {metric_name(metric)} (%)")
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes], minor=False)
    ax.minorticks_off()
    beside(ax, "band: seeds")
    return ax


def long_tails(corpora: dict[str, dict], ax: Axes | None = None) -> Axes:
    """Training documents of labels against their rank, both logarithmic, a line per corpus.

    corpora: the contents of `results/corpora.json`.
    """
    ax = _axes(ax, (8.8, 4.2))
    names = sorted(corpora, key=lambda name: -corpora[name]["labels"])
    for name, colour in colours(names).items():
        about = corpora[name]
        _need_places(name, about)
        mark = ", synthetic" if about["synthetic"] else ""
        label = f"{plain(name)}{mark}: {about['labels']:,} labels"
        ax.plot(about["places"], about["counts"], color=colour, linewidth=2, label=label)
    ax.axhspan(0.7, 5, color="#fbe3c8", zorder=0)
    ax.text(0.015, 1.8, "few: 1 to 5 documents", transform=ax.get_yaxis_transform(), va="center")
    _by_rank(ax, top=None)
    beside(ax)
    return ax


def _need_places(name: str, about: dict) -> None:
    if not about["places"] or len(about["places"]) != len(about["counts"]):
        raise ValueError(
            f"{name}: expected one count per place; make them with python -m"
            f" data_scripts.describe {name}"
        )


def reliability(
    lines: dict[str, np.ndarray], system: str = "linear", ax: Axes | None = None
) -> Axes:
    """Share of right labels against their mean score, in percent, one line per way to score.

    Whiskers are two binomial standard errors of the share. The grey diagonal is where a score is
    the share that is right. All lines have the colour of the system; every line but the last is
    dashed and has open marks.

    Args:
        lines: name -> (m, 3), as `metrics.calibration.reliability` returns it.
        system: whose scores these are.
        ax: where to draw; a new figure when None.

    Raises:
        ValueError: no line, or a line without a prediction.
    """
    empty = [name for name, parts in lines.items() if not len(parts)]
    if empty or not lines:
        raise ValueError(
            f"expected lines with predictions; got {len(lines)} lines, without any: {empty}"
        )
    ax = _axes(ax, (6.4, 4.4))
    ax.plot([0, 100], [0, 100], color=COLOURS["random"], linewidth=1, label="score = share right")
    colour = colours([system])[system]
    for name, parts in lines.items():
        score, share, count = parts.T
        error = 2 * (share * (1 - share) / count) ** 0.5
        # a whisker never leaves the axes
        spread = [100 * error.clip(max=share), 100 * error.clip(max=1 - share)]
        last = name == list(lines)[-1]
        ax.errorbar(
            100 * score,
            100 * share,
            yerr=spread,
            fmt="o-" if last else "o--",
            color=colour,
            markerfacecolor=colour if last else "white",
            linewidth=1.5,
            elinewidth=1,
            label=plain(name),
        )
    ax.set(xlim=(0, 100), ylim=(-2, 102), title="Does a score say how often it is right?")
    ax.set(xlabel="mean score (%)", ylabel="labels that are right (%)")
    ax.legend(title=f"{plain(system)} (whiskers: two standard errors)")
    return ax


def coverage(
    promised: np.ndarray, kept: np.ndarray, system: str = "linear", ax: Axes | None = None
) -> Axes:
    """Recall on held-out documents against the recall that others promised, in percent.

    A point is the mean over draws, a whisker goes from the tenth to the ninetieth percentile. Above
    the grey diagonal a promise is kept.

    Args:
        promised: (m,) shares.
        kept: (draws, m) mean recall of the held-out documents of each draw.
        system: whose scores are cut.
        ax: where to draw; a new figure when None.
    """
    if kept.shape[1:] != promised.shape or not len(kept):
        raise ValueError(
            f"kept has shape {kept.shape} for {promised.shape} promises; give (draws, promises)"
        )
    ax = _axes(ax, (6.4, 4.4))
    ax.plot([0, 100], [0, 100], color=COLOURS["random"], linewidth=1, label="kept = promised")
    mean = 100 * kept.mean(0)
    low, high = (100 * np.quantile(kept, share, axis=0) for share in (0.1, 0.9))
    ax.errorbar(
        100 * promised,
        mean,
        yerr=[(mean - low).clip(min=0), (high - mean).clip(min=0)],
        fmt="o-",
        color=colours([system])[system],
        linewidth=1.5,
        elinewidth=1,
        label="mean over draws",
    )
    edge = max(100 * promised.min() - 10, 0)
    ax.set(xlim=(edge, 100), ylim=(edge, 100), title="Is the promised recall kept?")
    ax.set(xlabel="promised recall (%)", ylabel="recall of held-out documents (%)")
    ax.legend(title=f"{plain(system)} (whiskers: 80 % of draws)")
    return ax


def memory_law(frame: pandas.DataFrame, x: str = "labels", ax: Axes | None = None) -> Axes:
    """Memory (MB) against the size `x`, both axes logarithmic, a line per implementation.

    frame: columns implementation, `x`, memory_mb.
    """
    _need(frame, "implementation", x, "memory_mb")
    ax = _axes(ax)
    palette = _of_implementations(frame)
    for i, (name, rows) in enumerate(frame.groupby("implementation", sort=False)):
        rows = rows.sort_values(x)
        marker = "os^Dvp"[i % 6]
        ax.plot(rows[x], rows["memory_mb"], marker=marker, color=palette[name], label=name)
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel="memory (MB)")
    sizes = sorted(set(frame[x]))
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30, minor=False)
    ax.minorticks_off()
    ax.legend()
    return ax


def _of_implementations(frame: pandas.DataFrame) -> dict[str, str]:
    """Implementation -> colour, the same in every figure."""
    names = frame["implementation"]
    return colours(names) | {k: v for k, v in IMPLEMENTATIONS.items() if k in set(names)}


def kernel_times(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """Milliseconds of forward (dark) and forward with backward, a group of bars per shape.

    frame: rows of one op and device, columns implementation, shape, forward_ms and both_ms (NaN
    where it did not fit). The axis of milliseconds is logarithmic.
    """
    _need(frame, "implementation", "shape", "forward_ms", "both_ms")
    ax = _axes(ax, (7.4, 3.6))
    shapes = list(dict.fromkeys(frame["shape"]))
    names = list(dict.fromkeys(frame["implementation"]))
    width = 0.8 / max(len(names), 1)
    palette = _of_implementations(frame)
    for i, name in enumerate(names):
        rows = frame[frame["implementation"] == name].set_index("shape").reindex(shapes)
        left = [place - 0.4 + width * (i + 0.5) for place in range(len(shapes))]
        colour = palette[name]
        ax.bar(left, rows["both_ms"], 0.92 * width, color=colour, alpha=0.45, label=name)
        ax.bar(left, rows["forward_ms"], 0.92 * width, color=colour)
    ax.set(yscale="log", ylabel="ms, forward (dark) and with backward", xticks=range(len(shapes)))
    ax.set_xticklabels(shapes)
    ax.legend()
    return ax
