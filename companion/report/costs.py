"""What every stage costs: seconds, memory and share of planted runs, beside peers.

Read from the committed records, which say how long each stage took on the machine of the run; those
machines were shared with other work, so times are upper bounds, and CPU seconds are given where a
record has them. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Iterable

from companion.report.report import NO_RUNS, Group, in_order, markdown_table
from plantlib.metrics.statistics import mean_sd
from plantlib.training.records import RunRecord

STARTS = ("random", "lookup", "l2r", "linear", "lookup+linear")
PEERS = ("SVM, tuned", "XR-Linear", "Bonsai", "CAML head", "PLM-ICD head")
# stage -> the times of a record that it sums
STAGES = {
    "MI, planting": ("teacher",),
    "L2R": ("l2r",),
    "linear score": ("linear",),
    "training": ("fine_tune", "train"),
    "prediction": ("evaluate", "predict"),
}
CORPORA = ("codiesp", "eurlex57k", "cooking", "debtags")


def chosen(groups: Iterable[Group]) -> list[Group]:
    """One group of each corpus of CORPORA: that with the default start and most documents."""
    best: dict[str, Group] = {}
    for group in groups:
        name = group.dataset["name"]
        if name in CORPORA and (name not in best or _rank(group) > _rank(best[name])):
            best[name] = group
    return [best[name] for name in CORPORA if name in best]


def shares(groups: Iterable[Group], system: str = "lookup+linear") -> str:
    """In words, the share of a planted run that goes into counting and planting, by corpus."""
    parts = []
    for group in chosen(groups):
        records = [r for r in group.records if r.system == system and "linear" in r.times]
        stages = [_mean(records, names) or 0.0 for names in STAGES.values()]
        if records:
            about = f"{group.dataset['name']}, {group.dataset['train']:,} documents"
            parts.append(f"{100 * stages[0] / sum(stages):.1f} % of {sum(stages):,.0f} s ({about})")
    return ", ".join(parts)


def table(groups: Iterable[Group]) -> str:
    """Markdown: a row per corpus and system, on the group that is `chosen`.

    Seconds of each stage with the share of the whole, milliseconds per test document, and memory.
    """
    rows = []
    for group in chosen(groups):
        for system in in_order(group.systems & {*STARTS, *PEERS}):
            rows.append(_row(group, system))
    if not rows:
        return NO_RUNS
    head = ["data", "system", "seeds", *(f"{stage}, s" for stage in STAGES)]
    head += ["train CPU, s", "ms per document", "memory, MB"]
    note = (
        "Mean wall seconds over seeds (share of the whole), of records made on shared machines:"
        " upper bounds. `ms per document`: CPU time where known, else wall time, for dev and test."
        " MI and linear score of runs on EURLEX57K's candidates are in one number, and hidden"
        " states of the frozen backbone, which are read once per corpus, are in none."
    )
    return f"{markdown_table(head, rows, text=2)}\n\n{note}"


def _rank(group: Group) -> tuple[bool, int, int]:
    """Groups with the default start first, then those with most documents and records."""
    return "lookup+linear" in group.systems, group.dataset["train"], len(group.records)


def _row(group: Group, system: str) -> list[str]:
    records = [r for r in group.records if r.system == system]
    stages = {stage: _mean(records, names) for stage, names in STAGES.items()}
    whole = sum(value for value in stages.values() if value is not None)
    about = f"{group.dataset['name']}, {group.dataset['train']:,} documents"
    cells = [about, system, str(len(records))]
    for value in stages.values():
        known = value is not None and whole
        cells.append(f"{value:,.1f} ({100 * value / whole:.0f} %)" if known else "-")
    cpu = _mean(records, ("train_cpu",))
    predict = _mean(records, ("predict_cpu",))
    read = group.dataset["test"]
    if predict is None:
        predict, read = stages["prediction"], group.dataset["dev"] + group.dataset["test"]
    memory, _ = mean_sd(r.peak_memory_mb for r in records)
    cells.append("-" if cpu is None else f"{cpu:,.0f}")
    cells.append("-" if predict is None else f"{1000 * predict / read:.1f}")
    return [*cells, "-" if memory != memory else f"{memory:,.0f}"]


def _mean(records: list[RunRecord], names: tuple[str, ...]) -> float | None:
    """Mean over records of the sum of these times; None where none of them was taken."""
    known = [[r.times[name] for name in names if name in r.times] for r in records]
    sums = [sum(times) for times in known if times]
    return sum(sums) / len(sums) if sums else None
