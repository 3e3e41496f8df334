"""What planting is worth beside its controls: paired differences of the planted start to what
differs from it in one thing.

docs/method.md, "Controls and peers": the planted start minus random attention, minus the same start
with the teacher's columns permuted among labels, minus the score it begins from with nothing
planted, minus the linear peers. A control is compared over the seeds that both have. `headline` is
the README's table. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from companion.report.compare import comparable
from companion.report.metric_names import NAMES
from companion.report.report import NO_RUNS, Group, markdown_table
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.training.records import RunRecord

if TYPE_CHECKING:
    import pandas


# a planted start and what it is held to: the same start with nothing planted, with a shuffled
# teacher, and linear peers
CONTROLS = {
    "lookup": ("random", "shuffled", "SVM + J", "SVM, tuned", "Bonsai"),
    "lookup+linear": ("linear", "shuffled+linear", "SVM + J", "SVM, tuned", "Bonsai"),
}
TITLES = (
    "minus nothing planted",
    "minus shuffled teacher",
    "minus SVM + J",
    "minus SVM, tuned",
    "minus Bonsai",
)
METRICS = ("ndcg@5", "few/rp@5")

# the README's table: what it compares, and its rows; codiesp-d3 has the documents of codiesp
PLANTED, UNPLANTED, MEASURE = "lookup+linear", "linear", "ndcg@5"
CORPORA = {
    "codiesp": "case reports, diagnosis codes (CodiEsp-D)",
    "codiesp-p": "case reports, procedure codes (CodiEsp-P)",
    "eurlex57k": "laws, topics (EURLEX57K)",
    "cooking": "cooking questions, tags",
    "debtags": "package descriptions, tags",
}


def differences(found: Iterable[Group], metrics: Iterable[str] = METRICS) -> pandas.DataFrame:
    """A row per group, planted start, control and metric: seeds, difference, low, high (95 %) and p
    over seeds and test documents.

    Values are fractions. A planted run is paired with the control of its seed, or with the only
    record of a peer. Left out are metrics that a record does not keep per document, and pairs whose
    numbers do not mean the same (`compare.comparable`).
    """
    import pandas as pd

    rows = []
    for group in found:
        for planted, control in ((p, c) for p, controls in CONTROLS.items() for c in controls):
            pairs = pairs_of(group.records, planted, control)
            for metric in metrics if pairs else ():
                if all(
                    metric in a.per_document
                    and metric in b.per_document
                    and comparable(a, b, metric)
                    for a, b in pairs
                ):
                    sides = (
                        [side.per_document[metric] for side in column]
                        for column in zip(*pairs, strict=True)
                    )
                    result = paired_bootstrap(*sides)
                    rows.append(
                        {
                            "data": group.stem,
                            "planted": planted,
                            "control": control,
                            "metric": metric,
                            "seeds": len(pairs),
                            "difference": result["mean_difference"],
                            "low": result["low"],
                            "high": result["high"],
                            "p": result["p_value"],
                        }
                    )
    names = ["data", "planted", "control", "metric", "seeds", "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=names)


def pairs_of(
    records: Iterable[RunRecord], planted: str, control: str
) -> list[tuple[RunRecord, RunRecord]]:
    """(planted run, what it is held to) by seed; a peer with one record has no seeds of its own and
    stands beside them all.
    """
    ours, theirs = (
        {r.seed: r for r in records if r.system == system} for system in (planted, control)
    )
    if len(theirs) == 1 and (peer := next(iter(theirs.values()))).kind != "planted":
        return [(ours[seed], peer) for seed in sorted(ours)]
    return [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]


def table(frame: pandas.DataFrame, level: float = 0.05) -> str:
    """Markdown: a row per group, planted start and metric, a column per kind of control.

    Cells hold the difference in points, its 95 % interval and the number of seeds.
    """
    if frame.empty:
        return "No planted run beside a control yet."
    rows = []
    for (data, planted, metric), part in frame.groupby(["data", "planted", "metric"], sort=False):
        by = {row["control"]: row for row in part.to_dict("records")}
        cells = [_cell(by[c], level) if c in by else "-" for c in CONTROLS[planted]]
        rows.append([data, planted, NAMES[metric], *cells])
    note = (
        "Points; difference [95 % interval] (seeds), paired bootstrap over seeds and test"
        f" documents. \\*: p < {level:g}, not corrected for the number of comparisons. `-`: not"
        " run, or a number that would mean something else."
    )
    return f"{markdown_table(['data', 'planted', 'metric', *TITLES], rows, text=3)}\n\n{note}"


def _cell(row: dict, level: float) -> str:
    star = " \\*" if row["p"] < level else ""
    return (
        f"{100 * row['difference']:+z.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        f" ({row['seeds']}){star}"
    )


def headline(found: Iterable[Group]) -> str:
    """The README's table, a row for each corpus and number of training documents.

    Beside the best linear model stand the same network with nothing planted and with the counted
    words planted, over the seeds that both have, and their difference with its interval. The
    largest difference comes first. The quick tier is left out.
    """
    rows = []
    for group in [g for g in found if g.dataset["name"] in CORPORA and not g.quick]:
        if pairs := pairs_of(group.records, PLANTED, UNPLANTED):
            rows.append(_headline_row(group, pairs))
    if not rows:
        return NO_RUNS
    head = ["training documents", "best linear model", "nothing planted", "planted", "difference"]
    rows = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    note = (
        "nDCG@5 on test over labels seen in training, percent; differences with their 95 %"
        " interval over seeds and test documents and, in parentheses, the number of seeds. Best"
        " linear model: the best on test of SVMs (+ J: a word statistic added), logistic"
        " regression, label trees, word statistics and the linear score."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def _headline_row(
    group: Group, pairs: list[tuple[RunRecord, RunRecord]]
) -> tuple[float, list[str]]:
    """The difference of one row, by which rows are sorted, and the row's cells."""
    planted, unplanted = zip(*pairs, strict=True)
    means = [
        100 * sum(r.metrics[MEASURE] for r in side) / len(side) for side in (unplanted, planted)
    ]
    result = paired_bootstrap(
        [r.per_document[MEASURE] for r in planted], [r.per_document[MEASURE] for r in unplanted]
    )
    difference, low, high = (100 * result[name] for name in ("mean_difference", "low", "high"))
    name, best = best_linear(group)
    cells = [
        f"{group.dataset['train']:,} {CORPORA[group.dataset['name']]}",
        f"{100 * best:.1f} ({name})",
        *(f"{mean:.1f}" for mean in means),
        f"{difference:+z.1f} [{low:+.1f}, {high:+.1f}] ({len(pairs)})",
    ]
    return difference, cells


def best_linear(group: Group) -> tuple[str, float]:
    """The system without attention that is best on test, and its mean over seeds.

    The choice by test favours this system over the planted model.
    """
    values: dict[str, list[float]] = {}
    for record in group.records:
        if record.kind in ("linear", "teacher") and record.metrics.get(MEASURE) is not None:
            values.setdefault(record.system, []).append(record.metrics[MEASURE])
    means = {system: sum(found) / len(found) for system, found in values.items()}
    name = max(means, key=means.get)
    return name, means[name]
