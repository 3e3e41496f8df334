"""Rows of delimited text, exactly as they stand in the file, or a DataError with row numbers.

Python's own `csv` reader parses in its strict mode. What it lets pass although rows or cells would
change is refused here: rows of another width than the header, a header in the middle, and rows that
an unclosed quote has pulled into one cell. Messages hold row and line numbers, never cells.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from plantlib.data.label_names import INVISIBLE
from plantlib.utils.base import DataError

ESCAPES = {r"\t": "\t", r"\n": "\n", r"\r": "\r", r"\\": "\\"}
ENOUGH_ROWS = 4  # of one line, to know how long rows are
ESCAPE = re.compile(r"\\(?:[tnr\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Row:
    """The cells of a row and the lines, counted from 1, in which it begins and ends."""

    cells: list[str]
    first_line: int
    last_line: int


def typed(characters: str | None) -> str | None:
    r"""A separator as it was meant: `\t`, `\x1f` or `\u2028` typed in a shell is one character."""

    def meant(match: re.Match[str]) -> str:
        return ESCAPES.get(match[0]) or chr(int(match[0][2:], 16))

    return ESCAPE.sub(meant, characters) if characters else characters


def rows_of(text: str, delimiter: str, name: str) -> tuple[list[str], list[list[str]]]:
    r"""The header and the rows of delimited text.

    Args:
        text: the whole file. Lines end with what ends the first one; blank lines are rows of empty
            cells, except before the header and at the end.
        delimiter: one character, or `\t`. A first line `sep=;`, as Excel writes it, replaces it.
        name: of the file, for messages.

    Returns:
        The header's cells without surrounding blanks, and as many cells for each row.

    Raises:
        DataError: rows or cells would not survive exactly; the message names rows from 0, as in the
            ids of a table without an id column, and lines from 1.
    """
    # one delimiter, and the lines
    delimiter = _checked(delimiter)
    lines = list(_lines(text))
    skipped = 0
    if lines and (marked := re.fullmatch(r"sep=(.)\s*", lines[0])):
        delimiter, skipped = marked[1], 1
    _check_header_is_cut(lines[skipped:], delimiter, name)
    rows = _parse(lines[skipped:], skipped, delimiter, name)
    # blank lines before the header and at the end hold nothing
    while rows and _is_blank(rows[0].cells):
        rows.pop(0)
    while rows and not rows[-1].cells:
        rows.pop()
    if not rows:
        raise DataError(f"{name} holds no header: wanted a header line and one line per document")
    header = [INVISIBLE.sub("", cell).strip() for cell in rows.pop(0).cells]
    while len(header) > 1 and not header[-1]:
        header.pop()
    _check_widths(rows, header, delimiter, name)
    _check_repeated_header(rows, header, name)
    _check_blank_before_quote(rows, lines, delimiter, name)
    _check_swallowed(rows, len(header), lines, delimiter, name)
    width = len(header)
    return header, [(row.cells + [""] * width)[:width] for row in rows]


def _checked(delimiter: str) -> str:
    delimiter = typed(delimiter) or ""
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise DataError(
            f"delimiter={delimiter!r}: wanted one character such as ',', ';' or '|', or '\\t' for a"
            ' tab; cells are quoted by "'
        )
    return delimiter


def _check_header_is_cut(lines: Sequence[str], delimiter: str, name: str) -> None:
    header = next((line for line in lines if line.strip()), "").strip(" \r\n")
    others = [mark for mark in ";\t|," if mark in header]
    if others and delimiter not in header:
        raise DataError(
            f"{name}: the header is one cell with delimiter {delimiter!r}, but holds {others[0]!r}:"
            f" name the delimiter={others[0]!r}"
        )


def _lines(text: str) -> Iterator[str]:
    """The lines with their ends; only what ends the first line ends the others."""
    first = re.search(r"\r*\n|\r", text)
    end = "\r" if first and first[0] == "\r" else "\n"
    begin = 0
    while begin < len(text):
        stop = text.find(end, begin) + 1 or len(text)
        yield text[begin:stop]
        begin = stop


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Without the csv module's limit of 131,072 characters for a cell."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _parse(lines: Sequence[str], skipped: int, delimiter: str, name: str) -> list[Row]:
    rows: list[Row] = []
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    with _cells_of_any_size():
        while True:
            begin = reader.line_num
            try:
                cells = next(reader)
            except StopIteration:
                return rows
            except csv.Error as error:
                span = lines[begin : reader.line_num]
                where = _place(len(rows) - 1, begin + 1 + skipped, reader.line_num + skipped)
                raise DataError(f"{name}: {where} {_fault(str(error), span)}") from None
            rows.append(Row(cells, begin + 1 + skipped, reader.line_num + skipped))


def _place(row: int, first: int, last: int) -> str:
    what = f"row {row}" if row >= 0 else "the header"
    return f"{what} ({'line' if first == last else 'lines'} {_span(first, last)})"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _fault(error: str, lines: Sequence[str]) -> str:
    """What is wrong with a row, and the fix; the parser's own message is never shown."""
    if "new-line" in error:
        return (
            "holds a carriage return outside quotes, which may end a row or stand in a text: quote"
            ' the cell, "...", or end all rows alike'
        )
    if "unexpected end" in error:
        return "opens a quote that is never closed: close it, or double a quote that is text"
    if any('\\"' in line for line in lines):
        return 'escapes a quote by a backslash: write a quote inside a quoted cell twice, ""'
    return (
        "goes on after a closing quote: close the quote before it, or write a quote inside a quoted"
        ' cell twice, ""'
    )


def _is_blank(cells: Sequence[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def _listed(rows: Sequence[tuple[int, Row]]) -> str:
    """'rows 3, 7 (lines 5, 9)' of the first five."""
    numbers = ", ".join(str(number) for number, _ in rows[:5])
    lines = ", ".join(_span(row.first_line, row.last_line) for _, row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    plural = "s" if len(rows) > 1 else ""
    return f"row{plural} {numbers} (line{plural} {lines}){more}"


def _check_widths(rows: Sequence[Row], header: Sequence[str], delimiter: str, name: str) -> None:
    width = len(header)
    wide = [(i, row) for i, row in enumerate(rows) if not _is_blank(row.cells[width:])]
    narrow = [(i, row) for i, row in enumerate(rows) if len(row.cells) < width]
    narrow = [(i, row) for i, row in narrow if not _is_blank(row.cells)]
    fix = (
        f"with delimiter {delimiter!r}: quote the cells that hold the delimiter or a line end, or"
        " name another delimiter= (lines before the header do not belong in the file)"
    )
    for what, odd in (("more", wide), ("fewer", narrow)):
        if odd:
            count = len(odd[0][1].cells)
            raise DataError(
                f"{name} does not parse: {_listed(odd)} {'have' if len(odd) > 1 else 'has'} {what}"
                f" cells than the header, {count} to {width}, {fix}"
            )


def _check_repeated_header(rows: Sequence[Row], header: Sequence[str], name: str) -> None:
    again = [
        (i, row)
        for i, row in enumerate(rows)
        if any(header)
        and [INVISIBLE.sub("", cell).strip() for cell in row.cells[: len(header)]] == list(header)
    ]
    if again and len(header) > 1:
        raise DataError(
            f"{name}: the header stands again in {_listed(again)}, as in files that were joined:"
            " delete those lines"
        )


def _check_blank_before_quote(
    rows: Sequence[Row], lines: Sequence[str], delimiter: str, name: str
) -> None:
    """Refuse `a, "b"`: behind a blank a quote is a character of the cell, hardly what was meant."""
    blanks = re.compile(rf'(^|{re.escape(delimiter)}) +"(?!")')
    odd = [
        (i, row)
        for i, row in enumerate(rows)
        if any(re.match(r' +"', cell) for cell in row.cells)
        and any(blanks.search(line) for line in lines[row.first_line - 1 : row.last_line])
    ]
    if odd:
        raise DataError(
            f"{name}: a blank stands before a quote in {_listed(odd)}, so that the cell is not"
            " quoted: delete the blanks between delimiter and quote"
        )


def _check_swallowed(
    rows: Sequence[Row], width: int, lines: Sequence[str], delimiter: str, name: str
) -> None:
    """Refuse a quoted cell whose lines are rows of this very table.

    In a table of one column lines cannot be told from rows by their cells: the only cell of several
    lines is refused if each of its lines is as long as rows are.
    A line counts as a row if it has the header's number of cells and one of them stands in the same
    column of a row of one line that begins without a quote, as a whole or by most of the names that
    it lists, or numbers its row as the others do. Where every row begins with a quote, a swallowed
    row shows as text after a closing quote.
    """
    if width < 2:
        _refuse_swallowing(_longer_alone(rows), name)
        return
    known = _known_cells(rows, width, lines)
    swallowing = []
    for number, row in enumerate(rows):
        if row.first_line == row.last_line:
            continue
        for column, cell in enumerate(row.cells[:width]):
            parts = re.split(r"\r?\n", cell)[:-1]
            found = [
                _reads_as_row(part.split(delimiter), column if i == 0 else 0, width, known)
                for i, part in enumerate(parts)
            ]
            if found and sum(found) > len(found) / 2:
                swallowing.append((number, row))
                break
    _refuse_swallowing(swallowing, name)


def _longer_alone(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """In a table of one column the only cell of several lines, if they look like its rows."""
    several = [(i, row) for i, row in enumerate(rows) if row.first_line < row.last_line]
    lengths = [len(row.cells[0]) for row in rows if row.first_line == row.last_line and row.cells]
    if len(several) != 1 or len(lengths) < ENOUGH_ROWS:
        return []
    parts = re.split(r"\r?\n", several[0][1].cells[0])
    return several if all(min(lengths) <= len(part) <= max(lengths) for part in parts) else []


def _refuse_swallowing(swallowing: Sequence[tuple[int, Row]], name: str) -> None:
    if swallowing:
        raise DataError(
            f"{name}: one cell holds what reads as several rows of this table in"
            f" {_listed(swallowing)}: close the quote that opens there, or double it; if the cell"
            " is right, save the table as .parquet or .jsonl"
        )


def _known_cells(rows: Sequence[Row], width: int, lines: Sequence[str]) -> list[set[str]]:
    """For each column the short cells of the rows of one line that begin without a quote."""
    known: list[set[str]] = [set() for _ in range(width)]
    for row in rows:
        if row.first_line == row.last_line and not lines[row.first_line - 1].startswith('"'):
            for column, cell in enumerate(row.cells[:width]):
                if 0 < len(cell) <= 100:
                    known[column].update({cell, *_listed_names(cell)})
    ids = [row.cells[0] for row in rows if row.cells]
    if len(set(ids)) == len(ids):
        known[0].update(_shape(cell) for cell in known[0] & set(ids))
    return known


def _listed_names(cell: str) -> list[str]:
    """The names in a cell that may be a list of labels."""
    return re.split(r"[;,|/\t]", cell)


def _shape(number: str) -> str:
    """A document's number with each run of digits as 0; of any other cell the cell itself."""
    return re.sub(r"\d+", "0", number) if re.fullmatch(r"\S*\d\S*", number) else number


def _reads_as_row(cells: list[str], offset: int, width: int, known: list[set[str]]) -> bool:
    """Whether cells from column `offset` on end a row: the width fits and one cell is known."""
    if len(cells) != width - offset or len(cells) < 2:
        return False
    if any(cell in known[offset + i] for i, cell in enumerate(cells)):
        return True
    if any(cell.startswith(" ") for cell in cells):
        # in prose a blank follows a comma
        return False
    lists = [(_listed_names(cell), known[offset + i]) for i, cell in enumerate(cells)]
    most = any(2 * sum(name in names for name in cell) > len(cell) for cell, names in lists)
    return most or (offset == 0 and _shape(cells[0]) in known[0])
