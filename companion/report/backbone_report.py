"""Backbones beside each other: what was trained of each, how long it took, and what planting added
on it.

Reads the records of notebook 08 (or `companion.launch`) and nothing else. Differences are always
taken to random attention on the same backbone, data and tokens: numbers of two backbones may be
compared by a reader, their starts are compared by a test.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import plots, report
from companion.report.compare import replace_section
from plantlib.training.records import RunRecord, device_of
from plantlib.utils.io import atomic_path

if TYPE_CHECKING:
    import pandas


METRICS = ("p@1", "p@5", "ndcg@5", "few/rp@5")
NO_RUNS = "No runs on tuned backbones yet: `make run RUN=runs/minilm-codiesp.yaml` makes some."


def groups(records: Iterable[RunRecord]) -> list[report.Group]:
    """Records of notebook 08 that may stand in one table, planted ones alone."""
    own = [r for r in records if (r.notebook or "").startswith("08") and r.kind == "planted"]
    return report.groups(own, elsewhere=())


def table(found: list[report.Group]) -> pandas.DataFrame:
    """One row a data set, backbone and start: documents, tokens, trained parameters, minutes an
    epoch, metrics.
    """
    import pandas as pd

    rows = []
    for group in found:
        compared = group.table(METRICS)
        # every start does the same work an epoch; what else the machine did only ever adds to it
        fastest = (
            min(r.times.get("fine_tune", 0.0) / max(len(r.history), 1) for r in group.records) / 60
        )
        for start, row in compared.iterrows():
            own = [r for r in group.records if r.system == start]
            size = own[0].model_size if isinstance(own[0].model_size, dict) else {}
            rows.append(
                {
                    "data": f"{group.dataset['name']}, {group.dataset['train']:,} documents",
                    "tokens": report.tokens_of(own[0]),
                    "backbone": report.backbone_of(own[0]),
                    "start": start,
                    "seeds": len(own),
                    "trained in backbone": size.get("trained_in_backbone", 0),
                    "trained": size.get("trained_parameters", 0),
                    "minutes": fastest,
                    **row.drop("seeds").to_dict(),
                }
            )
    return pd.DataFrame(rows)


def markdown(found: list[report.Group]) -> str:
    """The table in percent, with what it was measured on; a star where a start differs from random
    on its backbone.
    """
    if not found:
        return NO_RUNS
    frame = table(found)
    have = [m for m in METRICS if m in frame.columns]
    head = [
        "data",
        "tokens",
        "backbone",
        "start",
        "seeds",
        "trained (backbone + head)",
        "min/epoch",
    ]
    head += [report.NAMES[m] for m in have]
    lines = [head, ["---"] * 4 + ["---:"] * (len(head) - 4)]
    for _, row in frame.iterrows():
        trained = (
            f"{row['trained in backbone']:,} + {row['trained'] - row['trained in backbone']:,}"
        )
        lines.append(
            [
                row["data"],
                str(row["tokens"]),
                row["backbone"],
                row["start"],
                str(row["seeds"]),
                trained,
                f"{row['minutes']:.1f}",
                *(report.cell(row, m) for m in have),
            ]
        )
    by_epochs: dict[int, set[str]] = {}
    for r in (r for g in found for r in g.records):
        by_epochs.setdefault(r.params["train"]["epochs"], set()).add(report.backbone_of(r))
    epochs = [
        f"{n} epochs for {', '.join(sorted(names))}" for n, names in sorted(by_epochs.items())
    ]
    devices = sorted({device_of(r) for g in found for r in g.records})
    note = (
        "Percent on test, mean ± sd over seeds; label space: labels with a training document. \\*:"
        " p < 0.05 against random on the same backbone, paired bootstrap over test documents, not"
        f" corrected for the number of tests. At most {'; '.join(epochs)}; the best on dev kept."
        " Minutes an epoch, dev evaluation included: the fastest run of a backbone, on"
        f" {' and '.join(devices)}."
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n" + note


def comparison(found: list[report.Group]) -> pandas.DataFrame:
    """What `plots.backbone_comparison` draws."""
    frame = table(found)
    return frame.assign(group=frame["data"].str.split(",").str[0] + ", " + frame["backbone"])


def write(
    records: Iterable[RunRecord], out: str | Path, readme: str | Path | None = None
) -> list[Path]:
    """table-backbones.md, its figures, and the `backbones` section of `readme` where one is given
    and has the markers.

    Nothing is written where there are no such runs, as after a job on one frozen backbone.
    """
    found, out = groups(records), Path(out)
    if not found:
        return []
    path = out / "table-backbones.md"
    with atomic_path(path) as temporary:
        temporary.write_text(f"# Backbones\n\n{markdown(found)}\n", encoding="utf-8")
    written = [path]
    frame = comparison(found)
    for metric in ("ndcg@5", "few/rp@5"):
        if f"{metric} diff" in frame.columns and frame[f"{metric} diff"].notna().any():
            ax = plots.backbone_comparison(frame, metric)
            ax.set_title(f"What planting adds on each backbone, {report.NAMES[metric]}")
            written.append(
                plots.save(ax, out / "figures" / f"backbones-{metric.replace('/', '_')}.png")
            )
    if readme is not None and "<!-- table:begin backbones -->" in Path(readme).read_text(
        encoding="utf-8"
    ):
        replace_section(readme, "backbones", markdown(found))
    return written
