"""The first version's runs beside each other: planted, unplanted, each ingredient off, and forward
with backward.

Reads the records of notebook 09 and nothing else. Differences are always taken to `v1` on the same
encoder, data and tokens: what the whole of it is worth over learned attention, and what is lost
with one of its four ingredients.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import report
from companion.report.compare import compare
from companion.studies.v1_grid import SYSTEMS
from plantlib.training.ensemble import SUM
from plantlib.training.records import RunRecord
from plantlib.utils.io import atomic_path

if TYPE_CHECKING:
    import pandas


METRICS = ("p@1", "p@5", "ndcg@5", "few/rp@5")
ENCODERS = ("forward", "backward", "sum")
NO_RUNS = "No runs on an AWD-LSTM yet: `make run RUN=runs/awd-codiesp.yaml` makes some."


def encoder_of(record: RunRecord) -> str:
    """forward, backward, or their sum."""
    if record.system.endswith(SUM):
        return "sum"
    # a language model's folder is <corpus>-<direction>-<fingerprint>
    return str(record.backbone).split("-")[-2]


def is_tuned(record: RunRecord) -> bool:
    """Whether the encoder was trained with the head, by stages, or left frozen."""
    return record.params.get("tuning", "frozen") != "frozen"


def system_of(record: RunRecord) -> str:
    """The row of `v1_grid.SYSTEMS` that a record, or the sum of two, belongs to."""
    return record.system.removesuffix(SUM)


def groups(records: Iterable[RunRecord]) -> list[report.Group]:
    """Records of notebook 09 that may stand in one table: one data set, encoder and number of
    tokens.
    """
    own = [r for r in records if (r.notebook or "").startswith("09")]

    def key(group: report.Group) -> tuple:
        first = group.records[0]
        return (
            group.dataset["name"],
            group.dataset["train"],
            is_tuned(first),
            ENCODERS.index(encoder_of(first)),
        )

    return sorted(report.groups(own, elsewhere=()), key=key)


def _data(group: report.Group) -> str:
    """Data set, documents, and whether the encoder was trained."""
    tuned = ", encoder tuned" if is_tuned(group.records[0]) else ""
    return f"{group.dataset['name']}, {group.dataset['train']:,} documents{tuned}"


def table(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """One row a data set, encoder and system: seeds, metrics, and differences to `v1` where that
    was run.
    """
    import pandas as pd

    rows = []
    for group in groups(records):
        own, encoder = group.records, encoder_of(group.records[0])
        baseline = next(s for s in SYSTEMS if s in {system_of(r) for r in own})
        compared = compare(own, baseline + (SUM if encoder == "sum" else ""), METRICS)
        compared.index = [system.removesuffix(SUM) for system in compared.index]
        data = _data(group)
        for system in [s for s in SYSTEMS if s in compared.index]:
            rows.append(
                {
                    "data": data,
                    "encoder": encoder,
                    "system": system,
                    "baseline": baseline,
                    **compared.loc[system],
                }
            )
    return pd.DataFrame(rows)


def kept(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """What `plots.inattention_sweep` draws: start (data and encoder), keep and ndcg@5 of the runs
    of `v1` that differ in K.
    """
    import pandas as pd

    rows = []
    for group in groups(records):
        own = [
            r
            for r in group.records
            if r.system in ("v1", "v1-no-inattention") or r.system.startswith("v1-k")
        ]
        if len({r.params["keep"] for r in own}) > 2:
            start = f"{_data(group)}, {encoder_of(own[0])}"
            rows += [
                {"start": start, "keep": r.params["keep"], "ndcg@5": r.metrics["ndcg@5"]}
                for r in own
            ]
    return pd.DataFrame(rows, columns=["start", "keep", "ndcg@5"])


def markdown(records: Iterable[RunRecord]) -> str:
    """The table in percent; a star where a system differs from `v1` on its encoder."""
    frame = table(records)
    if not len(frame):
        return NO_RUNS
    head = [
        "data",
        "encoder",
        "system",
        "seeds",
        *(report.NAMES[m] for m in METRICS),
        "nDCG@5 to v1",
    ]
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    for _, row in frame.iterrows():
        cells = [
            row["data"],
            row["encoder"],
            row["system"],
            str(int(row["seeds"])),
            *(report.cell(row, m) for m in METRICS),
        ]
        lines.append([*cells, _difference(row)])
    note = (
        "Percent on test, mean ± sd over seeds. `v1`: learned, lookup and static L2R attention in"
        " one softmax, inattention, the exact state; a row `v1-no-...` leaves one out,"
        " `v1-other-state` reads segments as first published, `random` plants nothing: what is left"
        " out of planting begins at a gain of zero and may still grow, as every gain is trained."
        " `v1-k...` keeps so many tokens, `v1-sum` adds three contexts, `v1-likely` and"
        " `v1-expected` take the L2R score of the language model's most likely token and its"
        " expectation over tokens. sum: logits of the forward and the backward model added. \\*: p"
        " < 0.05 against `v1` on the same encoder, paired bootstrap over test documents, not"
        " corrected for the number of tests."
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n" + note


def _difference(row) -> str:
    """Difference in points with its interval; nothing where the row is the baseline, or where there
    is no `v1`.
    """
    if (
        row["baseline"] != "v1"
        or row["system"] == "v1"
        or row.get("ndcg@5 diff") != row.get("ndcg@5 diff")
    ):
        return "-"
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(
        *(100 * row[f"ndcg@5 {part}"] for part in ("diff", "low", "high"))
    )


def write(records: Iterable[RunRecord], out: str | Path) -> list[Path]:
    """table-awd-lstm.md under `out`; nothing where there are no such runs."""
    records = list(records)
    if not groups(records):
        return []
    path = Path(out) / "table-awd-lstm.md"
    with atomic_path(path) as temporary:
        temporary.write_text(
            f"# The first version on AWD-LSTMs\n\n{markdown(records)}\n", encoding="utf-8"
        )
    return [path]
