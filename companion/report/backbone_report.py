"""Tuned backbones: what was trained of each, how long it took, and what planting added on it.

Reads the records of notebook 08 (or of `companion.launch`) and nothing else. Differences and tests
are taken to random attention on the same backbone, data and tokens, never between backbones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import plots, report
from plantlib.training.records import RunRecord, device_of
from plantlib.utils.io import atomic_path

if TYPE_CHECKING:
    import pandas


METRICS = ("p@1", "p@5", "ndcg@5", "few/rp@5")
NO_RUNS = "No runs on tuned backbones yet: `make run RUN=runs/minilm-codiesp.yaml` makes some."


def groups(records: Iterable[RunRecord]) -> list[report.Group]:
    """Planted records of notebook 08, grouped into what may stand in one table."""
    planted = [r for r in records if (r.notebook or "").startswith("08") and r.kind == "planted"]
    return report.groups(planted, elsewhere=())


def table(found: list[report.Group]) -> pandas.DataFrame:
    """One row per data set, backbone and start.

    Args:
        found: groups of records, as `groups` returns them.

    Returns:
        A DataFrame with data, tokens (read per document), backbone, start, seeds, trained in
        backbone and trained (parameters), minutes (per epoch) and the columns of `compare.compare`.
    """
    import pandas as pd

    rows = []
    for group in found:
        compared = group.table(METRICS)
        # every start does the same work per epoch; the fastest was disturbed least by other work
        seconds = [r.times.get("fine_tune", 0.0) / max(len(r.history), 1) for r in group.records]
        for start, metrics in compared.iterrows():
            records = [r for r in group.records if r.system == start]
            size = records[0].model_size if isinstance(records[0].model_size, dict) else {}
            row = {
                "data": f"{group.dataset['name']}, {group.dataset['train']:,} documents",
                "tokens": report.tokens_of(records[0]),
                "backbone": report.backbone_of(records[0]),
                "start": start,
                "seeds": len(records),
                "trained in backbone": size.get("trained_in_backbone", 0),
                "trained": size.get("trained_parameters", 0),
                "minutes": min(seconds) / 60,
            }
            rows.append(row | metrics.drop("seeds").to_dict())
    return pd.DataFrame(rows)


def markdown(found: list[report.Group]) -> str:
    """`table` as Markdown in percent; a star where a start differs from random on its backbone."""
    if not found:
        return NO_RUNS
    frame = table(found)
    metrics = [m for m in METRICS if m in frame.columns]
    head = "data;tokens;backbone;start;seeds;trained (backbone + head);min/epoch".split(";")
    rows = []
    for _, row in frame.iterrows():
        backbone = row["trained in backbone"]
        about = [row[name] for name in ("data", "tokens", "backbone", "start", "seeds")]
        trained = f"{backbone:,} + {row['trained'] - backbone:,}"
        values = [report.cell(row, metric) for metric in metrics]
        rows.append([*map(str, about), trained, f"{row['minutes']:.1f}", *values])
    # under which conditions the numbers were obtained
    records = [record for group in found for record in group.records]
    by_epochs: dict[int, set[str]] = {}
    for record in records:
        by_epochs.setdefault(record.params["train"]["epochs"], set()).add(
            report.backbone_of(record)
        )
    epochs = [f"{n} epochs for {', '.join(sorted(by_epochs[n]))}" for n in sorted(by_epochs)]
    devices = sorted({device_of(record) for record in records})
    note = (
        "Percent on test, mean ± sd over seeds; label space: labels with a training document. \\*:"
        " p < 0.05 against random on the same backbone, paired bootstrap over seeds and test"
        f" documents, not corrected for the number of tests. At most"
        f" {'; '.join(epochs)}; dev chose the epoch. min/epoch: minutes per epoch with the"
        f" evaluation on dev, of the fastest run of a backbone, on {' and '.join(devices)}."
    )
    head += [report.NAMES[metric] for metric in metrics]
    return f"{report.markdown_table(head, rows, text=4)}\n\n{note}"


def comparison(found: list[report.Group]) -> pandas.DataFrame:
    """`table` with the column group (data set, backbone) for `plots.backbone_comparison`."""
    frame = table(found)
    return frame.assign(group=frame["data"].str.split(",").str[0] + ", " + frame["backbone"])


def write(records: Iterable[RunRecord], out: str | Path) -> list[Path]:
    """Write table-backbones.md and its figures under `out`; returns the paths.

    Without runs of notebook 08 nothing is written.
    """
    planted = groups(records)
    out = Path(out)
    if not planted:
        return []
    path = out / "table-backbones.md"
    with atomic_path(path) as temporary:
        temporary.write_text(f"# Backbones\n\n{markdown(planted)}\n", encoding="utf-8")
    written = [path]
    frame = comparison(planted)
    for metric in ("ndcg@5", "few/rp@5"):
        if f"{metric} diff" in frame.columns and frame[f"{metric} diff"].notna().any():
            ax = plots.backbone_comparison(frame, metric)
            ax.set_title(f"What planting adds on each backbone, {report.NAMES[metric]}")
            written.append(
                plots.save(ax, out / "figures" / f"backbones-{metric.replace('/', '_')}.png")
            )
    return written
