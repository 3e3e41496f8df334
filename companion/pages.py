"""The pages that hold generated tables: which block stands in which file, and what makes it.

`docs/results.md` and the README are written by hand, but for the blocks between two markers
(`<!-- table:begin NAME -->` and `<!-- table:end NAME -->`). `write` fills those blocks from the
records, as notebook 07 and `make figures` do, and so does `python -m companion.pages`; a test holds
the committed pages to the committed records. Nothing here trains or evaluates.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import backbone_report, cost_plots, costs, report, verdicts, worth
from companion.report.compare import difference_cell, replace_section, section
from companion.report.metric_names import NAMES
from companion.report.report import NO_RUNS, markdown_table
from companion.studies import (
    ablations,
    awd_report,
    contributions,
    leak_audit,
    learning_curves,
    official,
    questions,
)
from plantlib.data.sources import checkout
from plantlib.teacher import label_texts
from plantlib.training.records import RunRecord

if TYPE_CHECKING:
    import pandas

# page -> its blocks, in the order in which they stand there
PAGES = {
    "README.md": ["planting"],
    "docs/results.md": [
        "worth",
        "summary",
        "results",
        "ablations",
        "curves",
        "leak",
        "contributions",
        "backbones",
        "first-version",
        "published",
        "bars",
        "zero-shot",
        "official",
        "questions",
        "costs",
        "speed",
    ],
}


def blocks(
    records: Iterable[RunRecord],
    *,
    groups: list[report.Group] | None = None,
    results: str | Path | None = None,
) -> dict[str, str]:
    """Every block by its name, as Markdown.

    Args:
        records: all that the pages show.
        groups: `report.groups` of the records, to reuse the tables they have cached.
        results: folder of `paper_numbers.csv`, `bars.csv` and `zero_shot.json`; results/ of the
            checkout when None.
    """
    records = list(records)
    results = Path(results or checkout() / "results")
    groups = report.groups(records) if groups is None else groups
    paper = verdicts.paper_numbers(results / "paper_numbers.csv")
    held = verdicts.passed(verdicts.bars(results / "bars.csv"), groups)
    return {
        "planting": worth.headline(groups),
        "worth": worth.table(worth.differences(groups)),
        "summary": report.summary(groups),
        "results": report.all_systems(groups),
        "ablations": effects(records),
        "curves": curves(learning_curves.frame(records)),
        "leak": leak(leak_audit.gains(records)),
        "contributions": "\n\n".join(
            contributions.markdown(results / f"{name}.json")
            for name in ("contributions", "contributions-minilm")
        ),
        "backbones": backbone_report.markdown(backbone_report.groups(records)),
        "first-version": awd_report.markdown(records),
        "published": verdicts.published_table(verdicts.paper_vs_ours(paper, groups, results)),
        "bars": verdicts.bars_table(held),
        "zero-shot": zero_shot(label_texts.measured(results / "zero_shot.json")),
        "official": official.table(results),
        "questions": questions.table(records, groups, results),
        "costs": costs.table(groups),
        "speed": cost_plots.table(results),
    }


def write(
    records: Iterable[RunRecord],
    root: str | Path | None = None,
    *,
    groups: list[report.Group] | None = None,
) -> list[Path]:
    """Fill the blocks of every page under `root` (the checkout); returns the pages that changed.

    ValueError where a page lacks the markers of one of its blocks.
    """
    root = Path(root or checkout())
    texts = blocks(records, groups=groups)
    changed = []
    for page, names in PAGES.items():
        path = root / page
        stale = [name for name in names if section(path, name) != texts[name].strip()]
        for name in stale:
            replace_section(path, name, texts[name])
        if stale:
            changed.append(path)
    return changed


def effects(records: Iterable[RunRecord]) -> str:
    """Every ablation beside the base: mean and difference with its interval, two metrics."""
    metrics = ("ndcg@5", "few/rp@5")
    tables = []
    head = ["switch", "seeds"]
    for metric in metrics:
        head += [NAMES[metric], "difference to base [95 %]"]
    for name, part in ablations.of(records).items():
        rows = []
        for system, row in ablations.effects(part).iterrows():
            cells = [system, f"{int(row['seeds'])}"]
            for metric in metrics:
                cells += [report.cell(row, metric), difference_cell(row, metric)]
            rows.append(cells)
        tables.append(f"**{name}**\n\n{markdown_table(head, rows)}")
    if not tables:
        return NO_RUNS
    note = (
        "Percent on test; \\*: p < 0.05 against `base`, paired bootstrap over seeds and test"
        " documents, not corrected for the number of tests."
    )
    return "\n\n".join([*tables, note])


def curves(frame: pandas.DataFrame) -> str:
    """nDCG@5 and, in parentheses, RP@5 of rare labels by training documents; means over seeds."""
    tables = []
    for data, part in frame.groupby("data", sort=False):
        means = 100 * part.groupby(["system", "documents"])[["ndcg@5", "few/rp@5"]].mean()
        sizes = sorted(part["documents"].unique())
        rows = []
        for system in report.in_order(part["system"].unique()):
            rows.append([system, *(_point(means, system, size) for size in sizes)])
        head = [f"{data}: nDCG@5 (RP@5 few)", *(f"{size:,}" for size in sizes)]
        seeds = part["seed"].nunique()
        note = f"Percent on test by training documents; {seeds} seed{'' if seeds == 1 else 's'}."
        tables.append(f"{markdown_table(head, rows)}\n\n{note}")
    return "\n\n".join(tables) or NO_RUNS


def _point(means: pandas.DataFrame, system: str, documents: int) -> str:
    if (system, documents) not in means.index:
        return "-"
    return "{:.1f} ({:.1f})".format(*means.loc[(system, documents)])


def leak(frame: pandas.DataFrame) -> str:
    """RP@5 of each bucket of labels under the clean and the leaky teacher, and the difference."""
    if not len(frame):
        return NO_RUNS
    rows = []
    for (data, start), part in frame.groupby(["data", "start"], sort=False):
        means = 100 * part.groupby("bucket")[["clean", "leaky", "gain"]].mean()
        cells = [data, start, str(part["seed"].nunique())]
        for bucket in leak_audit.BUCKETS:
            known = bucket in means.index
            cells.append("{:.1f} to {:.1f} ({:+z.1f})".format(*means.loc[bucket]) if known else "-")
        rows.append(cells)
    head = ["data", "start", "seeds", *(f"RP@5 {bucket}" for bucket in leak_audit.BUCKETS)]
    note = (
        "Percent on test, from the teacher of the training rows to the teacher of all rows"
        " (difference). Zero: labels without a training document, which are in the label space"
        " here."
    )
    return f"{markdown_table(head, rows, text=2)}\n\n{note}"


def zero_shot(frame: pandas.DataFrame) -> str:
    """How well labels without a training document are found by the words of their descriptions."""
    if not len(frame):
        return NO_RUNS
    metrics = {
        "zero/r@15": "R@15 zero",
        "zero/rp@5": "RP@5 zero",
        "few/r@15": "R@15 few",
        "ndcg@5": "nDCG@5",
    }
    rows = []
    for (data, documents, labels, trained, system), row in frame.iterrows():
        cells = [f"{data}, {documents:,} documents", system, "yes" if trained else "no"]
        cells += [f"{labels:,}", f"{int(row['seeds'])}"]
        cells += ["-" if row[m] != row[m] else f"{row[m]:.1f}" for m in metrics]
        rows.append(cells)
    head = ["data", "system", "trained", "zero labels in test", "seeds", *metrics.values()]
    note = "Percent on test, means over seeds; nDCG@5 over all labels."
    return f"{markdown_table(head, rows, text=3)}\n\n{note}"


if __name__ == "__main__":
    for page in write(report.load(checkout() / "results" / "runs")):
        print(page.relative_to(checkout()))
