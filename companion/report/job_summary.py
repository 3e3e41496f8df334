"""What `make reproduce` prints at its end: one sentence, a short table, and where the rest lies.

Everything is computed from the records of the job. Every line fits a terminal of 100 columns.
Nothing here trains, evaluates or writes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from companion.report.compare import compare, difference_cell
from companion.report.metric_names import NAMES
from companion.report.report import Group, backbone_of, in_order, tokens_of
from companion.report.worth import pairs_of
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.training.records import RunRecord

WIDTH = 100
METRIC = "ndcg@5"
COLUMNS = ("ndcg@5", "p@1", "few/rp@5")

# A planted start and the same start with nothing planted in the attention. The order was fixed
# beforehand: choosing the pair by its result on test would flatter planting.
PAIRS = (
    ("lookup+linear", "linear"),
    ("lookup+score", "score"),
    ("lookup", "random"),
    ("l2r", "random"),
    ("closed_form", "random"),
)


def group_of(
    groups: Iterable[Group], fingerprint: str, tokens: int | None, backbone: str
) -> Group | None:
    """The group of one corpus, number of tokens read and backbone; None where there is none.

    Args:
        groups: as `report.groups` returns them.
        fingerprint: of the corpus after its caps, with the labels that have a training document.
        tokens: most tokens read per document, None for whole documents.
        backbone: its name or folder; it was frozen.
    """
    reading = (tokens or "all", Path(backbone).name)
    for group in groups:
        planted = next(record for record in group.records if record.kind == "planted")
        same_corpus = group.dataset["fingerprint"] == fingerprint
        if same_corpus and (tokens_of(planted), backbone_of(planted)) == reading:
            return group
    return None


def sentence(group: Group) -> str:
    """One sentence: the difference in nDCG@5 between a planted start and its control.

    The first pair of `PAIRS` that was run is compared, over the seeds that both starts have; the
    interval is that of a paired bootstrap over seeds and test documents (docs/method.md, "Choosing
    on dev, reading test once").
    """
    if found := compared_pair(group):
        return _compared(group, *found)
    possible = ", ".join(f"`{planted}` with `{control}`" for planted, control in PAIRS)
    return (
        "This job does not say what planting is worth: no planted start was run beside its control"
        f" with the same seed. Pairs that would do: {possible}."
    )


def compared_pair(group: Group) -> tuple[str, str, list[tuple[RunRecord, RunRecord]]] | None:
    """The first of `PAIRS` that was run, planted start and control, with its records by seed.

    Records that do not keep the metric per document cannot be compared.
    """
    for planted, control in PAIRS:
        pairs = pairs_of(group.records, planted, control)
        if pairs and all(METRIC in record.per_document for pair in pairs for record in pair):
            return planted, control, pairs
    return None


def reference(group: Group) -> str:
    """The system that the table's differences are taken to: the control of the sentence's pair, so
    that the planted row shows what planting is worth.
    """
    found = compared_pair(group)
    return found[1] if found else group.baseline


def _compared(
    group: Group, planted: str, control: str, pairs: list[tuple[RunRecord, RunRecord]]
) -> str:
    sides = [[record.per_document[METRIC] for record in side] for side in zip(*pairs, strict=True)]
    means = [
        100 * sum(record.metrics[METRIC] for record in side) / len(side)
        for side in zip(*pairs, strict=True)
    ]
    result = paired_bootstrap(*sides)
    difference, low, high = (100 * result[name] for name in ("mean_difference", "low", "high"))
    distinct = "distinguishable" if low > 0 or high < 0 else "not distinguishable"
    seeds = "1 seed" if len(pairs) == 1 else f"{len(pairs)} seeds"
    return (
        f"Planting changed {NAMES[METRIC]} on test by {difference:+z.1f} points (95 % interval"
        f" {low:+.1f} to {high:+.1f}, {distinct} from zero): `{planted}` reached {means[0]:.1f},"
        f" and `{control}`, the same model with nothing planted in its attention, {means[1]:.1f};"
        f" {group.dataset['name']}, {group.dataset['test']:,} test documents, mean of {seeds}."
    )


def short_table(group: Group) -> str:
    """A row per system in at most 6 columns, aligned for a terminal.

    System, seeds, nDCG@5, its difference to `reference` with the 95 % interval, P@1 and RP@5 of
    rare labels; percent on test, mean ± sd over seeds. Long names of systems are cut.
    """
    recorded = [m for m in COLUMNS if any(r.metrics.get(m) is not None for r in group.records)]
    baseline = reference(group)
    table = compare(group.records, baseline, recorded)
    table = table.loc[in_order(table.index)]
    metrics = [metric for metric in COLUMNS if metric in table.columns]
    rows = [["system", "seeds", *(NAMES[metric] for metric in metrics)]]
    rows[0].insert(3, f"against {baseline}")
    for system, row in table.iterrows():
        cells = [_mean(row, metric) for metric in metrics]
        cells.insert(1, _difference(row))
        rows.append([system, str(int(row["seeds"])), *cells])
    # the numbers take what they need, the names what is left
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    left = min(max(len(row[0]) for row in rows), WIDTH - sum(widths) - 2 * len(widths))
    lines = []
    for system, *cells in rows:
        name = system if len(system) <= left else f"{system[: left - 1]}…"
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([name.ljust(left), *numbers]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _mean(row, metric: str) -> str:
    value = row[metric]
    sd = row[f"{metric} sd"]
    if value != value:
        return "-"
    return f"{100 * value:.1f}" + ("" if sd != sd else f" ± {100 * sd:.1f}")


def _difference(row) -> str:
    """Difference to the baseline in points, its interval, a star where p < 0.05."""
    cell = difference_cell(row, METRIC)
    if cell == "-":
        return cell
    return cell + (" *" if row[f"{METRIC} p"] < 0.05 else "  ")


def text(group: Group) -> str:
    """The sentence and the short table, every line at most 100 columns wide."""
    note = (
        f"Percent on test, mean ± sd over seeds; 'against {reference(group)}': points of"
        f" {NAMES[METRIC]} with the 95 % interval over seeds and test documents; *: p < 0.05,"
        " not corrected for the number of comparisons."
    )
    return "\n\n".join([wrapped(sentence(group)), short_table(group), wrapped(note)])


def wrapped(line: str) -> str:
    """A line of prose broken at 100 columns."""
    return textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)
