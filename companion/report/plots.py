"""Figures in one style: functions from a DataFrame, or a few lists, to a matplotlib Axes.

A system has the same colour in every figure (`palette.py`), and rows and legends are sorted by
effect. `save` writes the same bytes for the same figure. Every function takes `ax`, an Axes to draw
on, and makes a new figure where it is None. Nothing here computes a metric or reads a file;
matplotlib and seaborn are imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import figures
from companion.report.metric_names import metric_name
from companion.report.palette import COLOURS, OTHERS, colours
from plantlib.data import privacy
from plantlib.utils.io import atomic_path

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


_BUCKET_SHADES = {"few": "#fbe3c8", "medium": "#e3eef7", "head": "#e6e6e6"}
# marks axes that show the words of a document one after another
DOCUMENT_WORDS = "words of a document"


def style() -> None:
    """Set the seaborn style; every figure function calls it."""
    import seaborn

    seaborn.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        font="DejaVu Sans",
        rc={
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.figsize": (6.4, 4.0),
            "figure.constrained_layout.use": True,
            "legend.frameon": False,
            "grid.linewidth": 0.6,
        },
    )


def plain(name: str) -> str:
    """A name of the user's (label, word, data set) as a figure shows it: its $ begin no formula."""
    return str(name).replace("$", r"\$")


def _axes(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    import matplotlib.pyplot as plt

    style()
    return plt.subplots(figsize=size)[1] if ax is None else ax


def beside(ax: Axes, title: str = "") -> None:
    """The legend right of the axes, where it hides nothing."""
    ax.legend(title=title, bbox_to_anchor=(1.01, 1), loc="upper left")


def _need(frame: pandas.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing or frame.empty:
        raise ValueError(
            f"expected rows with {', '.join(columns)}; got {len(frame)} rows with"
            f" {list(frame.columns)}"
        )


def _bands(
    ax: Axes, frame: pandas.DataFrame, column: str, x: str, metric: str, dashed: tuple = ()
) -> None:
    """A line per value of `column`, in percent: the mean over seeds, and a band from worst to best.

    The legend has the order in which the lines end.

    dashed: prefixes of the names whose lines are dashed.
    """
    palette = colours(frame[column])
    last = frame.sort_values(x).groupby([column, x])[metric].mean().groupby(column).last()
    for name in last.sort_values(ascending=False, kind="stable").index:
        colour = palette[name]
        by_x = 100 * frame[frame[column] == name].groupby(x)[metric].agg(["mean", "min", "max"])
        line = "--" if dashed and name.startswith(dashed) else "-"
        ax.plot(by_x["mean"], line, color=colour, marker="o", markersize=4, label=name)
        ax.fill_between(by_x.index, by_x["min"], by_x["max"], color=colour, alpha=0.18, linewidth=0)


def learning_curves(
    frame: pandas.DataFrame, metric: str = "ndcg@5", ax: Axes | None = None
) -> Axes:
    """Dev metric by epoch, a line per start, a band from the worst to the best seed.

    frame: columns start, seed, epoch and `metric` (a fraction).
    """
    _need(frame, "start", "seed", "epoch", metric)
    ax = _axes(ax)
    _bands(ax, frame, "start", "epoch", metric)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel=f"dev {metric_name(metric)} (%)")
    beside(ax, "start (band: seeds)")
    return ax


def start_comparison(table: pandas.DataFrame, metric: str = "p@1", ax: Axes | None = None) -> Axes:
    """Difference to the baseline in points with its 95 % interval, a row per system, best first.

    table: as `compare.compare` returns it (index system; '<metric> diff', 'low', 'high'), the
    baseline first. Rows that are no systems, such as ablations, share one colour: their names
    tell them apart.
    """
    _need(table, f"{metric} diff", f"{metric} low", f"{metric} high")
    ax = _axes(ax, (6.4, 1.2 + 0.4 * len(table)))
    rows = 100 * table[[f"{metric} diff", f"{metric} low", f"{metric} high"]].dropna()
    rows = rows.sort_values(f"{metric} diff", ascending=False, kind="stable")
    for place, (system, (middle, low, high)) in enumerate(rows.iterrows()):
        colour = colours([system])[system]
        ax.plot([low, high], [place, place], color=colour, linewidth=2)
        ax.plot(middle, place, "o", color=colour, markersize=8)
    ax.axvline(0, color=COLOURS["random"], linewidth=1)
    ax.set(yticks=range(len(rows)), yticklabels=rows.index, ylim=(len(rows) - 0.5, -0.5))
    ax.set_xlabel(f"{metric_name(metric)}, points above {table.index[0]} (95 % interval)")
    return ax


def backbone_comparison(
    frame: pandas.DataFrame, metric: str = "ndcg@5", ax: Axes | None = None
) -> Axes:
    """Difference of each start to random attention on its backbone in points, 95 % interval.

    frame: columns group (data set and backbone, a row of the figure), start, '<metric> diff',
    '<metric> low' and '<metric> high' (fractions).
    """
    names = [f"{metric} {part}" for part in ("diff", "low", "high")]
    _need(frame, "group", "start", *names)
    rows = frame.dropna(subset=names)
    largest = rows.groupby("group", sort=False)[names[0]].max()
    places = list(largest.sort_values(ascending=False, kind="stable").index)
    starts = colours(rows["start"])
    ax = _axes(ax, (6.8, 1.3 + 0.28 * len(rows)))
    for i, (start, colour) in enumerate(starts.items()):
        part = rows[rows["start"] == start]
        shift = 0.6 * ((i + 0.5) / len(starts) - 0.5)
        y = [places.index(group) + shift for group in part["group"]]
        ax.hlines(y, 100 * part[names[1]], 100 * part[names[2]], color=colour, linewidth=2)
        ax.plot(100 * part[names[0]], y, "o", color=colour, markersize=6, label=start)
    ax.axvline(0, color=COLOURS["random"], linewidth=1)
    ax.set(yticks=range(len(places)), yticklabels=places, ylim=(len(places) - 0.5, -0.5))
    ax.set_xlabel(
        f"{metric_name(metric)}, points above random attention\n"
        "on the same backbone (95 % interval)"
    )
    beside(ax)
    return ax


def bucket_bars(frame: pandas.DataFrame, metric: str = "rp@5", ax: Axes | None = None) -> Axes:
    """Metric in the few, medium and head bucket, a bar per system, whiskers one sd over seeds.

    Bars are sorted by their value for rare labels.

    frame: one row per run, columns system, 'few/<metric>', 'medium/<metric>' and 'head/<metric>'
    (fractions).
    """
    buckets = ("few", "medium", "head")
    names = [f"{bucket}/{metric}" for bucket in buckets]
    _need(frame, "system", *names)
    ax = _axes(ax)
    palette = colours(frame["system"])
    width = 0.8 / len(palette)
    rare = frame.groupby("system", sort=False)[names[0]].mean()
    for i, system in enumerate(rare.sort_values(kind="stable").index):
        colour = palette[system]
        values = 100 * frame.loc[frame["system"] == system, names].astype(float)
        left = [place - 0.4 + width * (i + 0.5) for place in range(len(buckets))]
        spread = values.std().fillna(0)
        ax.bar(
            left,
            values.mean(),
            width * 0.92,
            yerr=spread,
            color=colour,
            label=system,
            error_kw={"linewidth": 1},
        )
    ax.set(xticks=range(len(buckets)), xticklabels=buckets, ylabel=f"{metric_name(metric)} (%)")
    ax.set_xlabel("labels by training frequency")
    ax.grid(axis="x", visible=False)
    beside(ax)
    return ax


def long_tail(
    frame: pandas.DataFrame, edges: tuple[int, int, int] = (0, 5, 50), ax: Axes | None = None
) -> Axes:
    """Training documents of each label against its rank, both axes logarithmic, buckets shaded.

    frame: column count, one row per label; labels without a training document are counted in the
    title. edges: the most training documents of the zero, few and medium bucket. ValueError where
    no label has a training document.
    """
    _need(frame, "count")
    ax = _axes(ax)
    counts = frame["count"].sort_values(ascending=False).to_numpy()
    seen = counts[counts > edges[0]]
    if not len(seen):
        raise ValueError("no label has a training document: pass the counts of the training split")
    # shade and name the buckets
    top = max(2.0 * seen.max(), 4.0 * edges[2])
    for (name, shade), low, high in zip(
        _BUCKET_SHADES.items(), (0.7, *edges[1:]), (*edges[1:], top), strict=True
    ):
        bounds = max(low, 0.7), high
        ax.axhspan(*bounds, color=shade, zorder=0)
        inside = ((counts > (low if low >= 1 else edges[0])) & (counts <= high)).sum()
        # the curve falls from the upper left to the lower right, so the other corners are free
        x, side = (0.985, "right") if name == "head" else (0.015, "left")
        ax.text(
            x,
            (bounds[0] * bounds[1]) ** 0.5,
            f"{name}: {inside:,} labels",
            ha=side,
            va="center",
            transform=ax.get_yaxis_transform(),
        )
    ax.plot(range(1, len(seen) + 1), seen, color=OTHERS[1], linewidth=2)
    _by_rank(ax, top)
    ax.set_title(f"{len(counts):,} labels, {len(counts) - len(seen):,} without a training document")
    return ax


def _by_rank(ax: Axes, top: float | None) -> None:
    """Logarithmic axes for training documents by label rank; top: the largest number shown."""
    ax.set(xscale="log", yscale="log", ylim=(0.7, top))
    ax.set(xlabel="label rank", ylabel="training documents")
    ax.grid(visible=False)


def teacher_tokens(
    frame: pandas.DataFrame, labels: Iterable[str], top: int = 8, ax: Axes | None = None
) -> Axes:
    """The `top` tokens of each label with their J, horizontal bars grouped by label.

    frame: columns label, token, score. ValueError names labels that the frame does not have.
    """
    _need(frame, "label", "token", "score")
    labels = list(labels)
    unknown = sorted(set(labels) - set(frame["label"]))
    if unknown:
        raise ValueError(
            f"no teacher tokens for {', '.join(unknown)}: the frame has {frame['label'].nunique()}"
            " labels"
        )
    ax = _axes(ax, (6.4, 0.8 + 0.24 * (top + 1.6) * len(labels)))
    ticks, names = [], []
    place = 0.0
    for label in labels:
        rows = (
            frame[frame["label"] == label]
            .sort_values(["score", "token"], ascending=[False, True])
            .head(top)
        )
        across = ax.get_yaxis_transform()
        ax.text(0, place, plain(label), fontweight="bold", va="center", transform=across)
        spots = [place + 1 + j for j in range(len(rows))]
        ax.barh(spots, rows["score"], color=COLOURS["lookup"], height=0.75)
        ticks += spots
        names += [plain(token) for token in rows["token"]]
        place = spots[-1] + 1.6
    ax.set(yticks=ticks, yticklabels=names, ylim=(place - 0.9, -0.7), xlabel="J(token; label)")
    ax.grid(axis="y", visible=False)
    return ax


def attention_strip(
    tokens: Iterable[str],
    weights: Iterable[float],
    title: str = "",
    columns: int = 90,
    ax: Axes | None = None,
) -> Axes:
    """Running text, each token shaded by its weight; the largest weight has the darkest shade.

    Args:
        tokens: the words, in order.
        weights: one non-negative number per token.
        title: of the figure.
        columns: characters per line.
        ax: where to draw; a new figure when None.

    Raises:
        ValueError: no tokens, or another number of weights.
    """
    tokens = list(tokens)
    weights = [float(w) for w in weights]
    if len(tokens) != len(weights) or not tokens:
        raise ValueError(
            f"got {len(tokens)} tokens and {len(weights)} weights: give one weight per token, and"
            " at least one token"
        )
    # break the text into lines
    places = []
    line = column = 0
    for token in tokens:
        if column and column + len(token) > columns:
            line += 1
            column = 0
        places.append((line, column))
        column += len(token) + 1
    # draw them
    ax = _axes(ax, (0.098 * columns, 0.35 + 0.27 * (line + 1) + 0.3 * bool(title)))
    largest = max(max(weights), 1e-12)
    for token, weight, (row, left) in zip(tokens, weights, places, strict=True):
        ax.barh(
            row,
            len(token) + 0.4,
            left=left - 0.2,
            height=0.86,
            color=COLOURS["lookup"],
            alpha=0.9 * max(weight, 0.0) / largest,
            linewidth=0,
        )
        ax.text(
            left + len(token) / 2,
            row,
            plain(token),
            family="DejaVu Sans Mono",
            fontsize=9,
            ha="center",
            va="center",
        )
    ax.set(xlim=(-0.5, columns + 0.5), ylim=(line + 0.6, -0.6), title=plain(title))
    ax.set_axis_off()
    ax.set_gid(DOCUMENT_WORDS)
    return ax


def evidence_agreement(
    table: pandas.DataFrame,
    measures=("auc", "precision", "iou"),
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean agreement of attention with gold evidence in percent, a row per system.

    A bar goes from the worst to the best seed.

    Args:
        table: as `evidence.table` returns it, rows of one bucket.
        measures: columns of `table`; '<measure> min' and '<measure> max' are needed too.
        chance: expected precision of a blind guess (a fraction), drawn as a dotted line.
        ax: where to draw; a new figure when None.
    """
    _need(table, "system", *measures)
    ax = _axes(ax, (9.6, 1.4 + 0.36 * len(table)))
    names = {"auc": "AUC", "precision": "precision at the span's length", "iou": "IoU (weighted)"}
    places = range(len(table))
    for i, measure in enumerate(measures):
        colour = OTHERS[i % len(OTHERS)]
        worst = 100 * table[f"{measure} min"]
        best = 100 * table[f"{measure} max"]
        ax.hlines(places, worst, best, color=colour, linewidth=2)
        name = names.get(measure, measure)
        ax.plot(100 * table[measure], places, "os^"[i % 3], color=colour, label=name)
    if chance is not None:
        ax.axvline(
            100 * chance,
            color=COLOURS["random"],
            linewidth=1,
            linestyle=":",
            label="precision of a blind guess",
        )
    ax.set(yticks=places, yticklabels=table["system"])
    ax.set(ylim=(len(table) - 0.5, -0.5), xlim=(0, 100))
    ax.set_xlabel("agreement with gold evidence (%)")
    beside(ax)
    return ax


def data_flow(ax: Axes | None = None) -> Axes:
    """The method as a flow of data, from the text to the metrics (docs/method.md)."""
    return figures.draw_flow(_axes(ax, (11.0, 5.0)), COLOURS["lookup"], COLOURS["l2r"])


def method_figure() -> Axes:
    """The method on eight toy sentences: counts, relevance, attention before training, formula."""
    style()
    return figures.draw_method(COLOURS["lookup"], COLOURS["random"])


def save(ax: Axes, path: str | Path) -> Path:
    """Write the figure of `ax` as PNG (120 dpi, the same bytes each time) and close it.

    The picture is reduced to 128 colours: enough for lines and bars, and a third of the bytes.
    PrivacyError outside the data folder for a figure that shows a credentialed corpus's text.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    path = Path(path)
    strips = [axes for axes in ax.figure.axes if axes.get_gid() == DOCUMENT_WORDS]
    privacy.check([" ".join(t.get_text() for t in axes.texts) for axes in strips], path)
    with atomic_path(path) as temporary:
        ax.figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
        with Image.open(temporary) as drawn:
            few = drawn.convert("RGB").quantize(128)
        few.save(temporary, format="PNG", optimize=True)
    plt.close(ax.figure)
    return path


def small(path: str | Path, width: int = 560) -> bytes:
    """A saved figure `width` pixels wide in 128 colours, as PNG: half the bytes, for pages that
    show many.
    """
    import io

    from PIL import Image

    with Image.open(path) as drawn:
        size = (width, round(drawn.height * width / drawn.width))
        drawn = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        few = drawn.quantize(128, method=Image.Quantize.MAXCOVERAGE)
    made = io.BytesIO()
    few.save(made, format="PNG", optimize=True)
    return made.getvalue()


def inattention_sweep(
    frame: pandas.DataFrame, metric: str = "ndcg@5", ax: Axes | None = None
) -> Axes:
    """Metric against the K of inattention, a line per start; all tokens (K of None) stand last.
    A single line is named by the title.

    frame: one row per run, columns start, keep (a number or None) and `metric` (a fraction);
    whiskers go from the worst to the best seed.
    """
    _need(frame, "start", "keep", metric)
    ax = _axes(ax)
    sizes = sorted({int(k) for k in frame["keep"].dropna()})
    places = {k: i for i, k in enumerate(sizes)} | {"all": len(sizes)}
    columns = [places["all"] if k != k or k is None else places[int(k)] for k in frame["keep"]]
    for start, colour in colours(frame["start"]).items():
        rows = frame.assign(place=columns)[frame["start"] == start].groupby("place")[metric]
        mean = 100 * rows.mean()
        ax.plot(mean.index, mean, color=colour, marker="o", label=start)
        ax.vlines(mean.index, 100 * rows.min(), 100 * rows.max(), color=colour, linewidth=2)
    ax.set(xticks=list(places.values()), xticklabels=list(places))
    ax.set(xlabel="K tokens kept per label", ylabel=f"{metric_name(metric)} (%)")
    names = list(dict.fromkeys(frame["start"]))
    if len(names) == 1:
        ax.set_title(plain(names[0]))
    else:
        beside(ax, "start")
    return ax
