"""Tables of the runs of the first version (v1) on AWD-LSTMs.

Reads the records of notebook 09 and nothing else. Differences are taken to `v1` on the same
encoder, data and tokens: they show what v1 gains over learned attention, and what is lost without
one of its four ingredients (docs/method.md, "The first version (v1)").
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import report
from companion.report.compare import compare, difference_cell
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
    """ "forward", "backward" or "sum"."""
    if record.system.endswith(SUM):
        return "sum"
    # the folder of a language model is <corpus>-<direction>-<fingerprint>
    return str(record.backbone).split("-")[-2]


def is_tuned(record: RunRecord) -> bool:
    """Whether the encoder was trained with the head."""
    return record.params.get("tuning", "frozen") != "frozen"


def system_of(record: RunRecord) -> str:
    """The row of `v1_grid.SYSTEMS` that a record belongs to."""
    return record.system.removesuffix(SUM)


def groups(records: Iterable[RunRecord]) -> list[report.Group]:
    """Records of notebook 09, grouped by data set, encoder and tokens read."""
    records = [r for r in records if (r.notebook or "").startswith("09")]

    def key(group: report.Group) -> tuple:
        first = group.records[0]
        return (
            group.dataset["name"],
            group.dataset["train"],
            is_tuned(first),
            ENCODERS.index(encoder_of(first)),
        )

    return sorted(report.groups(records, elsewhere=()), key=key)


def _data(group: report.Group) -> str:
    """Data set, documents, and whether the encoder was trained."""
    tuned = ", encoder tuned" if is_tuned(group.records[0]) else ""
    return f"{group.dataset['name']}, {group.dataset['train']:,} documents{tuned}"


def table(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """One row per data set, encoder and system.

    Returns:
        A DataFrame with data, encoder, system, baseline (the system that differences are taken to:
        `v1`, or the first of SYSTEMS where it was not run) and the columns of `compare.compare`.
    """
    import pandas as pd

    rows = []
    for group in groups(records):
        encoder = encoder_of(group.records[0])
        baseline = next(s for s in SYSTEMS if s in {system_of(r) for r in group.records})
        compared = compare(group.records, baseline + (SUM if encoder == "sum" else ""), METRICS)
        compared.index = [system.removesuffix(SUM) for system in compared.index]
        about = {"data": _data(group), "encoder": encoder}
        for system in [s for s in SYSTEMS if s in compared.index]:
            rows.append(about | {"system": system, "baseline": baseline, **compared.loc[system]})
    return pd.DataFrame(rows)


def kept(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """The runs of `v1` with different K of inattention, as `plots.inattention_sweep` reads them.

    Columns: start (data and encoder), keep (None for all tokens) and ndcg@5 (a fraction).
    """
    import pandas as pd

    rows = []
    for group in groups(records):
        runs = [
            r
            for r in group.records
            if r.system in ("v1", "v1-no-inattention") or r.system.startswith("v1-k")
        ]
        if len({r.params["keep"] for r in runs}) > 2:
            start = f"{_data(group)}, {encoder_of(runs[0])}"
            rows += [
                {"start": start, "keep": r.params["keep"], "ndcg@5": r.metrics["ndcg@5"]}
                for r in runs
            ]
    return pd.DataFrame(rows, columns=["start", "keep", "ndcg@5"])


def markdown(records: Iterable[RunRecord]) -> str:
    """`table` as Markdown in percent; a star where a system differs from `v1` on its encoder."""
    frame = table(records)
    if not len(frame):
        return NO_RUNS
    rows = []
    for _, row in frame.iterrows():
        about = [row["data"], row["encoder"], row["system"], str(int(row["seeds"]))]
        rows.append([*about, *(report.cell(row, m) for m in METRICS), _difference(row)])
    names = [report.NAMES[m] for m in METRICS]
    head = ["data", "encoder", "system", "seeds", *names, "nDCG@5 to v1"]
    note = (
        "Percent on test, mean ± sd over seeds. `v1`: learned, lookup and static L2R attention in"
        " one softmax, inattention, the exact state; a row `v1-no-...` leaves one out,"
        " `v1-other-state` reads segments as first published, `random` plants nothing. Gains of"
        " what is not planted begin at zero and are trained like the others. `v1-k...`: the number"
        " of tokens that inattention keeps; `v1-sum`: three contexts are added; `v1-likely` and"
        " `v1-expected`: the L2R score of the language model's most likely token, and its"
        " expectation over tokens. sum: logits of the forward and the backward model added. \\*: p"
        " < 0.05 against `v1` on the same encoder, paired bootstrap over seeds and test"
        " documents, not corrected for the number of tests."
    )
    return f"{report.markdown_table(head, rows, text=3)}\n\n{note}"


def _difference(row) -> str:
    """Difference to `v1` in points with its interval; "-" for `v1` and where it was not run."""
    known = row["baseline"] == "v1" and row["system"] != "v1"
    return difference_cell(row, "ndcg@5") if known else "-"


def write(records: Iterable[RunRecord], out: str | Path) -> list[Path]:
    """Write table-awd-lstm.md under `out`; returns its path, [] without runs of notebook 09."""
    records = list(records)
    if not groups(records):
        return []
    path = Path(out) / "table-awd-lstm.md"
    with atomic_path(path) as temporary:
        temporary.write_text(
            f"# The first version on AWD-LSTMs\n\n{markdown(records)}\n", encoding="utf-8"
        )
    return [path]
