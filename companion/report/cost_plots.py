"""Quality against CPU seconds: the rows of `results/bench/fit.csv` as a figure and a table.

`benchmarks/bench_fit.py` writes them. A system is on the front where no other one of its corpus is
as good for less time. Nothing here trains.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import plots
from companion.report.metric_names import NAMES
from companion.report.palette import colours
from companion.report.report import markdown_table
from plantlib.data.sources import checkout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC = "ndcg@5"
PARTS = ("read_s", "plant_s", "linear_s", "train_s", "evaluate_s")
NONE = "No timings yet: `make bench` writes them."

Row = dict[str, str]


def newest(results: Path | None = None) -> dict[tuple[str, int], list[Row]]:
    """The last row of each system by corpus and number of training documents, cheapest first.

    results: folder of `bench/fit.csv`; results/ of the checkout when None.
    """
    path = (results or checkout() / "results") / "bench" / "fit.csv"
    if not path.is_file():
        return {}
    found: dict[tuple[str, int], dict[str, Row]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["dataset"], int(row["documents"])), {})[row["system"]] = row
    return {
        corpus: sorted(rows.values(), key=lambda row: float(row["cpu_seconds"]))
        for corpus, rows in sorted(found.items())
    }


def front(rows: list[Row], metric: str = METRIC) -> list[Row]:
    """Those of `rows`, cheapest first, that are better than all cheaper ones."""
    best: list[Row] = []
    for row in rows:
        if not best or float(row[metric]) > float(best[-1][metric]):
            best.append(row)
    return best


def quality_against_cost(rows: list[Row], metric: str = METRIC, ax: Axes | None = None) -> Axes:
    """A point per system of one corpus, CPU seconds of its fit on a log axis, and the front."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    ax = plt.subplots()[1] if ax is None else ax
    best = front(rows, metric)
    times = [float(row["cpu_seconds"]) for row in best]
    ax.step(times, [100 * float(row[metric]) for row in best], where="post", color="#999999")
    for system, colour in colours(row["system"] for row in rows).items():
        row = next(row for row in rows if row["system"] == system)
        place = float(row["cpu_seconds"]), 100 * float(row[metric])
        ax.plot(*place, "o", color=colour, markersize=8, label=system)
    ax.set(xscale="log", xlabel="CPU seconds of the fit", ylabel=f"{NAMES[metric]} on test (%)")
    # 5 and 30 in the place of powers of ten, which a short axis does not show
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis("{x:g}")
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    documents = f"{int(rows[0]['documents']):,} training documents"
    ax.set_title(f"What do CPU seconds buy? {rows[0]['dataset']}, {documents}")
    ax.legend()
    return ax


def draw(results: Path | None = None) -> list[Path]:
    """Write one figure per corpus into `figures/` beside `bench/`."""
    folder = (results or checkout() / "results") / "figures"
    plots.style()
    return [
        plots.save(quality_against_cost(rows), folder / f"quality_cost-{name}-{documents}d.png")
        for (name, documents), rows in newest(results).items()
    ]


def table(results: Path | None = None) -> str:
    """Markdown: a row per corpus and system, cheapest first; the front is marked."""
    rows = []
    for (name, documents), systems in newest(results).items():
        on_front = [row["system"] for row in front(systems)]
        for row in systems:
            mark = " \\*" if row["system"] in on_front else ""
            rows.append(
                [f"{name}, {documents:,}", row["system"] + mark]
                + [row[part] for part in PARTS]
                + [row["cpu_seconds"], row["times_svm"], row["predict_ms"]]
                + [f"{100 * float(row[metric]):.1f}" for metric in (METRIC, "psp@5")]
            )
    if not rows:
        return NONE
    stages = [f"{part.removesuffix('_s')}, s" for part in PARTS]
    head = ["data, documents", "system", *stages, "all, CPU s", "times the tuned SVM"]
    head += ["predict, ms per document", NAMES[METRIC], NAMES["psp@5"]]
    note = (
        "CPU seconds of one thread, measured by `benchmarks/bench_fit.py`; a peer's include its"
        " tuning. \\*: no cheaper system of the corpus is as good at nDCG@5. Percent on test."
    )
    return f"{markdown_table(head, rows, text=2)}\n\n{note}"
