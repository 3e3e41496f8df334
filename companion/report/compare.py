"""Tables that compare run records, and the markers between which a page holds one.

`compare` and `to_markdown` make a table of records (docs/method.md, "Choosing on dev, reading test
once"); `section` and `replace_section` read and write the text between two markers of a page. Not
here: the records themselves (`plantlib.training.records`), metrics, figures, training.
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
    """One row per system, the baseline first.

    Args:
        records: of one data set (fingerprint, label space) and backbone; one per system and seed.
        baseline: the system that differences are taken to.
        metrics: names of metrics on test, as in `RunRecord.metrics`.

    Returns:
        A DataFrame with the index system and the columns seeds, '<metric>' (mean over seeds) and
        '<metric> sd'; for metrics that are recorded per document also '<metric> diff', 'low',
        'high' and 'p', from a paired bootstrap against the baseline over seeds and test documents.
        All are fractions.

    Raises:
        ValueError: records of several data sets or backbones, two of one system and seed, or none
            of the baseline.
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
    # one data set and one backbone
    keys = ("name", "fingerprint", "label_space")
    shared = {
        "data set": {tuple(record.dataset[key] for key in keys) for record in records},
        "backbone": {record.backbone for record in records if record.backbone},
    }
    for what, values in shared.items():
        if len(values) > 1:
            raise ValueError(
                f"records of more than one {what}: {sorted(values)}; pass those of one"
            )
    # one record per system and seed
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
    """Whether a metric means the same in both records.

    Metrics such as `few/rp@5` rank the labels of a bucket among themselves. A run on candidates
    ranks only those of them that are in a document's list, so its values are not comparable with
    those of a run that ranks all.
    """
    within_bucket = "/" in metric and not metric.split("/")[1].startswith("overall")
    return not within_bucket or ("candidates" in a.params) == ("candidates" in b.params)


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
    """The table of `compare` as Markdown, in percent: mean ± sd, difference [95 % interval].

    A star marks differences with p < `level`.
    """
    metrics = [name.removesuffix(" sd") for name in table.columns if name.endswith(" sd")]
    tested = [name for name in metrics if f"{name} p" in table.columns]
    head = ["system", "seeds"]
    for metric in metrics:
        head += [metric, f"Δ {metric}"] if metric in tested else [metric]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for system, row in table.iterrows():
        cells = [str(system), str(int(row["seeds"]))]
        for metric in metrics:
            sd = row[f"{metric} sd"]
            cells.append(_percent(row[metric]) + ("" if math.isnan(sd) else f" ± {_percent(sd)}"))
            cells += [_starred(row, metric, level)] if metric in tested else []
        lines.append(cells)
    note = "\n\nPercent; mean ± standard deviation over seeds."
    if tested:
        note += (
            f" Δ: difference to {table.index[0]} [95 % interval], paired bootstrap over seeds"
            f" and test documents; \\* p < {level:g}, not corrected for the number of comparisons."
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + note


def _percent(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def difference_cell(row: Mapping[str, float], metric: str) -> str:
    """Difference to the baseline in points with its interval; "-" where the row has none.

    row: a row of `compare`.
    """
    values = [row.get(f"{metric} {name}") for name in ("diff", "low", "high")]
    if any(value is None or math.isnan(value) for value in values):
        return "-"
    difference, low, high = (100 * value for value in values)
    # "-0.0" says something of an interval's end, and nothing of a difference
    return f"{difference:+z.1f} [{low:+.1f}, {high:+.1f}]"


def _starred(row: Mapping[str, float], metric: str, level: float) -> str:
    """`difference_cell` with a star where p < `level`."""
    return difference_cell(row, metric) + (" \\*" if row[f"{metric} p"] < level else "")


def section(path: str | Path, name: str) -> str:
    """The text between `<!-- table:begin NAME -->` and `<!-- table:end NAME -->` of a file."""
    return _split(path, name)[1].strip("\n")


def replace_section(path: str | Path, name: str, text: str) -> None:
    """Put `text` between the two markers of a section, atomically.

    Raises:
        ValueError: the file does not have each marker once, in order.
    """
    before, _, after = _split(path, name)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}\n{text.strip()}\n{after}", encoding="utf-8")


def _split(path: str | Path, name: str) -> tuple[str, str, str]:
    content = Path(path).read_text(encoding="utf-8")
    begin = f"<!-- table:begin {name} -->"
    end = f"<!-- table:end {name} -->"
    if (
        content.count(begin) != 1
        or content.count(end) != 1
        or content.index(begin) > content.index(end)
    ):
        raise ValueError(
            f"{Path(path).name}: expected one '{begin}' and after it one '{end}': add these lines"
        )
    head, rest = content.split(begin)
    body, tail = rest.split(end)
    return head + begin, body, end + tail


# Entries of `RunRecord.params` that a run computed; they are not options.
OUTCOMES = (
    "final_gains",
    "gains_tried",
    "gain_chosen",
    "gains_behind",
    "linear_weight",
    "linear_weights_tried",
    "rare_added",
)


def unlike(records: Iterable[RunRecord]) -> dict[str, list[str]]:
    """System -> options in which its records differ, beyond their seed.

    A mean over such records is not a mean over seeds alone. Records written before an option
    existed used its default and are not counted as different.
    """
    values: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for name, value in _options(record.params).items():
            if name.split(".")[0] not in OUTCOMES:
                values.setdefault(record.system, {}).setdefault(name, set()).add(repr(value))
    different = {
        system: sorted(name for name, seen in options.items() if len(seen) > 1)
        for system, options in sorted(values.items())
    }
    return {system: names for system, names in different.items() if names}


def _options(params: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Options by their dotted names."""
    options = {}
    for name, value in params.items():
        if isinstance(value, dict):
            options |= _options(value, f"{before}{name}.")
        else:
            options[before + name] = value
    return options
