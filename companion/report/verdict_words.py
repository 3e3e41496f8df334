"""The verdict in words: what can be said of the published numbers, of planting, and of each data
set.

Every sentence is computed from what `verdicts.py`, `worth.py` and `report.py` found in the records;
notebook 07 opens with them. Markdown comes out. Nothing here reads a file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from companion.report.metric_names import NAMES
from companion.report.report import NO_RUNS, Group, markdown_table
from companion.report.worth import CONTROLS

if TYPE_CHECKING:
    import pandas


COMPARED = ("reproduced", "above", "below")


def published_in_words(judged: pandas.DataFrame) -> str:
    """How many published numbers could be compared, how they came out, and why the others not.

    judged: as `verdicts.paper_vs_ours` returns it.
    """
    compared = judged[judged["verdict"].isin(COMPARED)]
    counts = {v: int((judged["verdict"] == v).sum()) for v in COMPARED}
    of_plant = judged["source"].str.startswith("PLANT")
    lines = [
        f"**{len(compared)} of {len(judged)} published numbers can be compared with ours:"
        f" {counts['reproduced']} are reproduced within one standard deviation of ours, ours are"
        f" above {counts['above']} and below {counts['below']}.** Of the {of_plant.sum()} numbers"
        f" that the PLANT papers' authors published themselves, {of_plant[compared.index].sum()}"
        " can be compared."
    ]
    lines += [_compared_line(*item) for item in compared.groupby(["dataset", "train"], sort=False)]
    rest = judged.drop(compared.index)
    for (verdict, note), part in rest.groupby(["verdict", "note"], sort=False):
        data = ", ".join(dict.fromkeys(part["dataset"]))
        source = ", ".join(dict.fromkeys(part["source"]))
        lines.append(f"* {len(part)} {verdict} ({data}; {source}): {note}.")
    return "\n".join([lines[0], "", *lines[1:]])


def _compared_line(key: tuple, part: pandas.DataFrame) -> str:
    """One data set: the systems held to, by how much, and how much the linear score explains."""
    data, train = key
    systems = ", ".join(dict.fromkeys(part["system"]))
    untrained = part[part["untrained"] != "-"]
    already = int((untrained["untrained"].astype(float) > untrained["paper"]).sum())
    line = (
        f"* {len(part)} compared on {data} with {int(train):,} training documents ({systems}); ours"
        f" minus theirs is {part['difference'].min():+.1f} to {part['difference'].max():+.1f}"
        " points."
    )
    if not len(untrained):
        return f"{line} {part['note'].iloc[0]}."
    return (
        f"{line} The linear score alone, before any attention is trained, is above {already} of"
        " them already: where it is, planted attention is not the reason."
    )


def planting_rows(differences: pandas.DataFrame, metric: str = "ndcg@5") -> pandas.DataFrame:
    """A row per data set and planted start, the largest effect first, in points.

    differences: as `worth.differences` returns them. Columns: data, planted, seeds, and for each of
    "unplanted" (the same start with nothing planted) and "shuffled" (with a shuffled teacher) the
    difference, its low and its high; nan where that control was not run.
    """
    import pandas as pd

    rows = []
    of_metric = differences[differences["metric"] == metric]
    for (data, planted), part in of_metric.groupby(["data", "planted"], sort=False):
        by = part.set_index("control")
        unplanted, shuffled = CONTROLS[planted][:2]
        row = {"data": words_of_stem(data), "planted": planted, "stem": data}
        for name, control in (("unplanted", unplanted), ("shuffled", shuffled)):
            for column in ("difference", "low", "high"):
                known = control in by.index
                row[f"{name} {column}"] = 100 * by.loc[control, column] if known else float("nan")
        if unplanted in by.index:
            rows.append(row | {"seeds": int(by.loc[unplanted, "seeds"])})
    frame = pd.DataFrame(rows)
    return frame.sort_values("unplanted difference", ascending=False) if rows else frame


def planting_in_words(rows: pandas.DataFrame, metric: str = "ndcg@5") -> str:
    """What the figure of planting shows, in one paragraph; rows: of `planting_rows`."""
    if not len(rows):
        return NO_RUNS
    above = rows[rows["unplanted low"] > 0]
    below = rows[rows["unplanted high"] < 0]
    unclear = rows.drop([*above.index, *below.index])
    parts = [
        f"**Beside the same network with nothing planted, planting is worth {_range(above)} points"
        f" of {NAMES[metric]} on {len(above)} of {len(rows)} rows of the figure.**"
    ]
    if len(above):
        held = int((above["shuffled low"] > 0).sum())
        parts.append(
            f"These are: {_names(above)}. On {held} of them planting the same words under the wrong"
            " labels does worse, beyond its interval."
        )
    if len(unclear):
        parts.append(f"On {len(unclear)} it cannot be told from zero: {_names(unclear)}.")
    if len(below):
        parts.append(f"On {len(below)} it costs {_range(below)} points: {_names(below)}.")
    return " ".join(parts)


def _names(rows: pandas.DataFrame) -> str:
    pairs = zip(rows["data"], rows["planted"], strict=True)
    return "; ".join(f"{data}, `{planted}`" for data, planted in pairs)


def _range(rows: pandas.DataFrame) -> str:
    if not len(rows):
        return "no"
    low, high = rows["unplanted difference"].min(), rows["unplanted difference"].max()
    return f"{low:.1f}" if len(rows) == 1 else f"{low:.1f} to {high:.1f}"


def words_of_stem(stem: str) -> str:
    """The name of a group in words: "codiesp-500d-256t" is "codiesp, 500 documents, 256 tokens"."""
    found = re.fullmatch(r"(.+)-(\d+)d-(\w+?)t(-.+)?", stem)
    if found is None:
        return stem
    name, documents, tokens, backbone = found.groups()
    of_backbone = (backbone or "").replace("-", ", ", 1)
    return f"{name}, {int(documents):,} documents, {tokens} tokens{of_backbone}"


def data_set_in_words(group: Group, rows: pandas.DataFrame, metric: str = "ndcg@5") -> str:
    """The head of a data set's section: what it is, its best systems, what planting added there."""
    table = group.table([metric])[metric].dropna().sort_values(ascending=False)
    best = ", ".join(f"`{name}` {100 * value:.1f}" for name, value in table.head(3).items())
    lines = [f"### {words_of_stem(group.stem)}", "", group.about(), ""]
    lines.append(f"Best of {len(table)} systems by {NAMES[metric]} on test: {best}.")
    own = rows[rows["stem"] == group.stem] if len(rows) else rows
    for row in own.to_dict("records"):
        lines.append(
            f"`{row['planted']}` minus the same with nothing planted:"
            f" {row['unplanted difference']:+z.1f} points [{row['unplanted low']:+.1f},"
            f" {row['unplanted high']:+.1f}], {row['seeds']} seed{'s' * (row['seeds'] > 1)}."
        )
    return "\n".join(lines)


def folded(title: str, markdown: str) -> str:
    """Markdown that a reader unfolds by a click on its title."""
    return f"<details><summary>{title}</summary>\n\n{markdown}\n\n</details>"


def numbers_table(frame: pandas.DataFrame, text: int) -> str:
    """A frame in Markdown with one decimal; its first `text` columns are text, nan is a dash."""
    rows = frame.round(1).values.tolist()
    cells = [
        ["-" if value is None or value != value else f"{value}" for value in row] for row in rows
    ]
    return markdown_table(list(frame), cells, text)


def without_heading(markdown: str) -> str:
    """A page without its first heading."""
    return re.sub(r"\A# .*\n+", "", markdown)
