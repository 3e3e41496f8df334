"""Reads marked evidence, the spans of text that justify a label, and checks it against documents.

It comes as a table with the columns id, label and either start and end, text, or all three, or as a
folder of brat's standoff files (NAME.ann, where NAME is the id of a document). A span that does not
fit its document is left out and counted. Messages hold counts, ids and row numbers, never text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plantlib.data import files
from plantlib.data.label_forms import missing, name_of
from plantlib.utils.base import DataError
from plantlib.utils.terminal import brief_list

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "label", "start", "end", "text", "mention")
WANTED = "wanted the columns id, label and start, end or text"
# what can be wrong with a span, in the order in which it is checked
FAULTS = {
    "document": "name no document of the table",
    "label": "name a label that their document does not carry",
    "place": "lie outside their document",
    "text": "differ from their document at that place",
    "absent": "do not stand in their document",
}
SPACE = re.compile(r"\s+")
STANDOFF = re.compile(r"T\S*\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)")


@dataclass(frozen=True)
class Span:
    """One mention as it was given.

    where: its row, or its file and line. id, label: of document and label. places: characters
        [start, end) of its pieces; empty where only the string is known. text: the string, None
        where only the places are known.
    """

    where: str
    id: str
    label: str
    places: list[tuple[int, int]]
    text: str | None


def read(
    source: str | Path | pd.DataFrame,
    ids: Sequence[str],
    texts: Sequence[str],
    labels: Sequence[Sequence[str]],
) -> tuple[pd.DataFrame, list[str]]:
    """The evidence of a corpus, and a note that counts the spans left out.

    A string without a place marks every place where it stands, up to white space. Pieces of one
    mention share a number in the column mention.

    Args:
        source: a table, the file of one (`files.read_table`), or a folder of .ann files.
        ids, texts, labels: of the documents.

    Returns:
        a frame of COLUMNS, and notes.

    Raises:
        DataError: the source cannot be read, or no span of it fits.
    """
    row_of = {name: row for row, name in enumerate(ids)}
    carried = [set(names) for names in labels]
    faults: dict[str, list[str]] = defaultdict(list)
    rows = []
    total = 0
    mention = 0
    for span in _spans(source):
        total += 1
        row = row_of.get(span.id)
        fault, mentions = ("document", []) if row is None else _placed(span, texts[row])
        if row is not None and span.label not in carried[row]:
            fault = "label"
        if fault:
            faults[fault].append(span.where)
            continue
        for places in mentions:
            for start, end in places:
                piece = texts[row][start:end]
                rows.append((span.id, span.label, start, end, piece, mention))
            mention += 1
    if not total:
        raise DataError(f"evidence {_name(source)}: no span in it; {WANTED}, a row per span")
    left = sum(map(len, faults.values()))
    found = "; ".join(
        f"{len(faults[kind])} {about}, first {', '.join(faults[kind][:3])}"
        for kind, about in FAULTS.items()
        if kind in faults
    )
    if not rows:
        raise DataError(
            f"evidence {_name(source)}: none of {total} spans fits the documents: {found}; ids and"
            " labels must be those of the table, places characters of its texts"
        )
    notes = [f"evidence: {left} of {total} spans were left out: {found}"] if left else []
    return _frame(rows), notes


def _frame(rows: list[tuple]) -> pd.DataFrame:
    import pandas as pd

    kinds = dict.fromkeys(("start", "end", "mention"), "int64")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(kinds)


def _placed(span: Span, text: str) -> tuple[str, list[list[tuple[int, int]]]]:
    """What is wrong with a span, "" if nothing is, and the places of its mentions."""
    if not span.places:
        pattern = r"\s+".join(map(re.escape, SPACE.split((span.text or "").strip())))
        found = [[match.span()] for match in re.finditer(pattern, text) if match[0]]
        return ("", found) if found else ("absent", [])
    if any(not 0 <= start < end <= len(text) for start, end in span.places):
        return "place", []
    if span.text is not None:
        there = " ".join(text[start:end] for start, end in span.places)
        if SPACE.sub("", there) != SPACE.sub("", span.text):
            return "text", []
    return "", [span.places]


def _name(source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "table"


def _spans(source: str | Path | pd.DataFrame) -> Iterator[Span]:
    if not isinstance(source, (str, Path)):
        return _of_table(source)
    path = Path(source)
    return _of_folder(path) if path.is_dir() else _of_table(files.read_table(path))


def _of_table(frame: pd.DataFrame) -> Iterator[Span]:
    """The spans of a table; rows of one document, label and mention are one span."""
    columns = [str(column) for column in frame.columns]
    placed = {"start", "end"} <= set(columns)
    if not {"id", "label"} <= set(columns) or not (placed or "text" in columns):
        raise DataError(f"evidence: the columns are {brief_list(columns, 20)}; {WANTED}")
    cells = {name: frame[name].tolist() for name in COLUMNS if name in columns}
    groups: dict[tuple, list[int]] = defaultdict(list)
    for row in range(len(frame)):
        key = (name_of(cells["id"][row]), name_of(cells["label"][row]))
        whole = "mention" not in cells or missing(cells["mention"][row])
        groups[(*key, row if whole else name_of(cells["mention"][row]), whole)].append(row)
    for (document, label, _, _), rows in groups.items():
        places = [_place(cells, row) for row in rows] if placed else []
        known = [place for place in places if place is not None]
        texts = [cells["text"][row] for row in rows] if "text" in cells else []
        texts = [text for text in texts if not missing(text)]
        if not known and not texts:
            raise DataError(f"evidence: row {rows[0]} has neither a place nor a text; {WANTED}")
        string = " ".join(map(str, texts)) if texts else None
        yield Span(f"row {rows[0]}", document, label, known, string)


def _place(cells: dict[str, list], row: int) -> tuple[int, int] | None:
    """Start and end in a row, None where both are blank."""
    given = [cells[name][row] for name in ("start", "end")]
    if all(missing(value) for value in given):
        return None
    try:
        start, end = (int(name_of(value)) for value in given)
    except ValueError:
        raise DataError(
            f"evidence: row {row} has no whole numbers in start and end: wanted the first character"
            " of the span, counted from 0, and the one behind its last"
        ) from None
    return start, end


def _of_folder(folder: Path) -> Iterator[Span]:
    """The text-bound annotations of a folder of .ann files; other lines are passed over."""
    paths = sorted(folder.glob("*.ann"))
    if not paths:
        raise DataError(f"evidence {folder}: no .ann file in it; give a folder of brat's files")
    for path in paths:
        for number, line in enumerate(files.read_text(path).splitlines(), 1):
            if not line.startswith("T"):
                continue
            match = STANDOFF.fullmatch(line)
            if match is None:
                raise DataError(
                    f"{path} line {number} is no text-bound annotation: wanted T1, a tab, the label"
                    " with start and end, a tab and the text"
                )
            places = [tuple(map(int, part.split())) for part in match[2].split(";")]
            where = f"{path.name} line {number}"
            yield Span(where, path.stem, match[1], places, match[3])
