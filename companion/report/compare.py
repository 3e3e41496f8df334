"""Run records, their comparison and the runs themselves: YAML asks, JSON remembers (METHOD section
5).

A run writes one `RunRecord` as results/runs/<id>.json; tables and figures are made from those files
alone. `replace_section` puts a table into the README; the runs themselves are started by
`runner.py`. No document text, host name, user name or absolute path enters a record. Not here:
metrics, figures, training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantlib.metrics.statistics import mean_sd, paired_bootstrap
from plantlib.training.records import RunRecord
from plantlib.utils.io import atomic_path

if TYPE_CHECKING:
    import pandas


def compare(
    records: Iterable[RunRecord],
    baseline: str = "random",
    metrics: Iterable[str] = ("p@1", "p@5", "ndcg@5", "few/rp@5"),
) -> pandas.DataFrame:
    """One row a system, the baseline first: seeds, then '<metric>' (mean over seeds) and '<metric>
    sd'.

    Metrics kept a document add '<metric> diff', 'low', 'high' and 'p': paired bootstrap against the
    baseline over test documents, each document's value averaged over seeds first. ValueError unless
    all records share one data set (fingerprint, label space) and backbone, each (system, seed)
    occurs once and the baseline is among them.
    """
    import pandas as pd

    groups = _by_system(records, baseline)
    rows = []
    for system in sorted(groups, key=lambda name: (name != baseline, name)):
        row: dict[str, Any] = {"system": system, "seeds": len(groups[system])}
        for metric in metrics:
            row[metric], row[f"{metric} sd"] = mean_sd(
                record.metrics.get(metric) for record in groups[system]
            )
            if system != baseline:
                row |= _difference(groups[system], groups[baseline], metric)
        rows.append(row)
    return pd.DataFrame(rows).set_index("system")


def _by_system(records: Iterable[RunRecord], baseline: str) -> dict[str, list[RunRecord]]:
    records = sorted(records, key=lambda record: (record.system, record.seed))
    for what, values in (
        (
            "data set",
            {
                (r.dataset["name"], r.dataset["fingerprint"], r.dataset["label_space"])
                for r in records
            },
        ),
        ("backbone", {r.backbone for r in records if r.backbone}),
    ):
        if len(values) > 1:
            raise ValueError(
                f"records of more than one {what}: {sorted(values)}; pass those of one"
            )
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        group = groups.setdefault(record.system, [])
        if group and group[-1].seed == record.seed:
            raise ValueError(
                f"{group[-1].id} and {record.id} are both {record.system}, seed {record.seed}:"
                " pass one"
            )
        group.append(record)
    if baseline not in groups:
        raise ValueError(
            f"no record of the baseline {baseline!r}; there are {', '.join(groups) or 'no records'}"
        )
    return groups


def comparable(a: RunRecord, b: RunRecord, metric: str) -> bool:
    """Whether a metric means the same in both: of the labels of a bucket, a run on candidates ranks
    those among them alone.
    """
    among_few = "/" in metric and not metric.split("/")[1].startswith("overall")
    return not among_few or ("candidates" in a.params) == ("candidates" in b.params)


def _difference(group: list[RunRecord], base: list[RunRecord], metric: str) -> dict[str, float]:
    if any(metric not in record.per_document for record in (*group, *base)) or not comparable(
        group[0], base[0], metric
    ):
        return {}
    result = paired_bootstrap(
        *([record.per_document[metric] for record in side] for side in (group, base))
    )
    names = {"diff": "mean_difference", "low": "low", "high": "high", "p": "p_value"}
    return {f"{metric} {short}": result[name] for short, name in names.items()}


def to_markdown(table: pandas.DataFrame, level: float = 0.05) -> str:
    """The table of `compare` as Markdown: percent with one decimal, mean ± sd, difference [95 %
    interval], a star.
    """
    metrics = [name.removesuffix(" sd") for name in table.columns if name.endswith(" sd")]
    tested = [name for name in metrics if f"{name} p" in table.columns]
    head = ["system", "seeds"] + [
        title for m in metrics for title in ([m, f"Δ {m}"] if m in tested else [m])
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for system, row in table.iterrows():
        cells = [str(system), str(int(row["seeds"]))]
        for metric in metrics:
            sd = row[f"{metric} sd"]
            cells.append(_percent(row[metric]) + ("" if math.isnan(sd) else f" ± {_percent(sd)}"))
            cells += [_interval(row, metric, level)] if metric in tested else []
        lines.append(cells)
    note = "\n\nPercent; mean ± standard deviation over seeds."
    if tested:
        note += (
            f" Δ: difference to {table.index[0]} [95 % interval], paired bootstrap over test"
            f" documents; \\* p < {level:g}, not corrected for the number of comparisons."
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + note


def _percent(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def _interval(row: Mapping[str, float], metric: str, level: float) -> str:
    difference, low, high, p = (row[f"{metric} {name}"] for name in ("diff", "low", "high", "p"))
    if math.isnan(difference):
        return "-"
    return f"{_percent(difference, '+')} [{_percent(low, '+')}, {_percent(high, '+')}]" + (
        " \\*" if p < level else ""
    )


def section(path: str | Path, name: str) -> str:
    """The text between `<!-- table:begin NAME -->` and `<!-- table:end NAME -->` of a file."""
    return _split(path, name)[1].strip("\n")


def replace_section(path: str | Path, name: str, text: str) -> None:
    """Puts `text` between the two markers of NAME, atomically. ValueError unless each marker occurs
    once, in order.
    """
    before, _, after = _split(path, name)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}\n{text.strip()}\n{after}", encoding="utf-8")


def _split(path: str | Path, name: str) -> tuple[str, str, str]:
    content = Path(path).read_text(encoding="utf-8")
    begin, end = f"<!-- table:begin {name} -->", f"<!-- table:end {name} -->"
    if (
        content.count(begin) != 1
        or content.count(end) != 1
        or content.index(begin) > content.index(end)
    ):
        raise ValueError(
            f"{Path(path).name}: wanted one '{begin}' and after it one '{end}': add these lines"
        )
    head, rest = content.split(begin)
    body, tail = rest.split(end)
    return head + begin, body, end + tail


# entries of a record's params that its run found out
OUTCOMES = (
    "final_gains",
    "gains_tried",
    "gain_chosen",
    "linear_weight",
    "linear_weights_tried",
    "rare_added",
    "rare_tried",
)


def unlike(records: Iterable[RunRecord]) -> dict[str, list[str]]:
    """System -> options in which its records differ beyond their seed; a mean over them is not one
    of seeds alone.
    """
    said: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for name, value in _options(record.params).items():
            if name.split(".")[0] not in OUTCOMES:
                said.setdefault(record.system, {}).setdefault(name, set()).add(repr(value))
    found = {
        system: sorted(n for n, values in options.items() if len(values) > 1)
        for system, options in sorted(said.items())
    }
    return {system: names for system, names in found.items() if names}


def _options(params: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Options by their dotted names."""
    found = {}
    for name, value in params.items():
        inner = isinstance(value, dict)
        found |= _options(value, f"{before}{name}.") if inner else {before + name: value}
    return found
