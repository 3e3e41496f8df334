"""The forms in which tables hold labels, read as lists of names, or refused with the fix.

`labels_format` names a form. Without it, a cell is a list or a string that `sep` cuts; printed
lists are recognised because every cell parses; what could be read in two ways is refused, and the
message names the form to ask for. With a form named, doubts are notes and names stay as they stand.

| form | labels |
| --- | --- |
| separated | one cell per document, cut by `sep` |
| list | one cell per document: a list, or a printed one such as `['I10', 'E11.9']` |
| long | one row per document and label; rows of one document share the id, or the text |
| onehot | one column of 0 and 1 per label, or vectors of 0 and 1 in one column |
| columns | several columns that hold labels |
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from plantlib.data import label_names
from plantlib.data.csv_rows import typed
from plantlib.data.printed_lists import bare_names, is_bracketed, parse_list
from plantlib.data.zeros_and_ones import (
    SEVERAL,
    bit_of,
    bits_of,
    is_vector,
    mark_of,
    missing,
    vector_of,
    width_of,
)
from plantlib.utils.base import DataError
from plantlib.utils.terminal import brief_list

if TYPE_CHECKING:
    import pandas as pd

FORMS = ("list", "long", "onehot", "columns", "separated")
AROUND = "'[^']+'|“[^”]+”|‘[^’]+’|`[^`]+`"
AS_IT_STANDS = "if each cell is right as it stands, pass labels_format='separated'"


class Written(float):
    """A number with a point or an exponent whose digits are known, as in JSON."""

    def __init__(self, digits: str) -> None:
        self.digits = digits


def name_of(value: Any) -> str:
    """A label or id as text; 7.0 (an integer column with gaps) is '7', unless it is `Written`."""
    if isinstance(value, Written):
        return value.digits
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def check_form(form: str | None, sep: str | None) -> None:
    """DataError for a form or a separator that there is not."""
    if form is not None and form not in FORMS:
        raise DataError(f"labels_format={form!r}: wanted one of {', '.join(FORMS)}")
    if sep == "":
        raise DataError(
            "sep='' cuts nothing: pass the separator of the labels, such as ';'; where a cell is"
            " one label, any character that is in none of them will do"
        )


class Reader:
    """Reads the labels of a table's rows.

    column: of the messages: where the cells come from.
    sep: what separates names in a string; None takes a string as one name.
    form: one of FORMS, or None.
    rows: (n,) the number of each row in its file.
    notes: what was mended or is doubtful, one sentence each.
    """

    def __init__(self, column: str, sep: str | None, form: str | None, rows: Sequence[int]) -> None:
        check_form(form, sep)
        self.column, self.form, self.rows = column, form, rows
        self.given_sep, self.sep = sep, typed(sep)
        self.notes: list[str] = []

    def one_hot(self, columns: dict[str, Sequence[Any]]) -> list[list[str]]:
        """Names of each row from columns of 0 and 1, {label: cells}."""
        names: list[list[str]] = [[] for _ in self.rows]
        for label, cells in columns.items():
            for place, cell in enumerate(cells):
                if mark_of(cell):
                    names[place].append(label)
            odd = [row for row, cell in zip(self.rows, cells, strict=True) if mark_of(cell) is None]
            if odd:
                raise DataError(
                    f"column {label!r} holds other cells than 0 and 1 in {len(odd)} rows, first"
                    f" {odd[:5]}: write 0 and 1, y and n, or x and nothing, or name the columns of"
                    " labels, as in labels='code*' or labels='I10,E11.9'"
                )
        return self._plain(names)

    def columns(self, columns: dict[str, Sequence[Any]]) -> list[list[str]]:
        """Names of each row from all of several columns, {column: cells}."""
        cells = [cell for values in columns.values() for cell in values]
        filled = [not missing(cell) for cell in cells]
        if any(filled) and all(mark_of(cell) is not None for cell in cells):
            raise DataError(
                f"columns {self.column!r} hold marks such as 0 and 1, y and n, or x, not labels:"
                " pass labels_format='onehot' to take the columns as labels"
            )
        rows, self.rows = self.rows, [row for _ in columns for row in self.rows]
        parts = self._names(cells)
        self.rows = rows
        count = len(rows)
        joined = [sum((parts[place::count]), start=[]) for place in range(count)]
        return self._plain(joined)

    def cells(self, cells: Sequence[Any]) -> list[list[str]]:
        """Names of each row from one cell: sorted, without empty ones and repeats."""
        if self.form == "onehot":
            return self._plain(self._positions(cells))
        return self._plain(self._names(cells))

    def _names(self, cells: Sequence[Any]) -> list[list[str]]:
        """The names in each cell, as they stand."""
        self._check_types(cells)
        cells = [None if missing(cell) else cell for cell in cells]
        if self.form in (None, "list", "long", "columns"):
            cells = self._parsed(cells)
        if self.form is None:
            self._check_no_vectors(cells)
        self._check_numbers(cells)
        if not any(isinstance(cell, str) and (self.sep or "") in cell for cell in cells):
            # a backslash and an n can also be what stands in the cells
            self.sep = self.given_sep
        names = [self._cut(cell) for cell in cells]
        if self.form is None:
            self._check_separator(cells, names)
        doubtful = names if self.form in ("long", "columns") else []
        other = label_names.evident_separator([name for row in doubtful for name in row])
        if other:
            self.notes.append(f"labels hold {other!r}: pass sep={other!r} if it separates labels")
        return names

    def _cut(self, cell: Any) -> list[str]:
        if cell is None:
            return []
        if isinstance(cell, SEVERAL):
            return [name_of(value) for value in cell if not missing(value)]
        return label_names.cut(cell, self.sep) if isinstance(cell, str) else [name_of(cell)]

    def _where(self, odd: Iterable[bool]) -> str:
        """'3 rows of column 'codes', first [4, 9, 12]' for a mask over the rows."""
        numbers = [int(row) for row, is_odd in zip(self.rows, odd, strict=True) if is_odd]
        plural = "s" if len(numbers) > 1 else ""
        return f"{len(numbers)} row{plural} of column {self.column!r}, first {numbers[:5]}"

    def _refuse(self, what: str, odd: Iterable[bool], fix: str) -> None:
        odd = list(odd)
        if any(odd):
            raise DataError(f"{what} in {self._where(odd)}: {fix}")

    def _check_types(self, cells: Sequence[Any]) -> None:
        """Refuse cells that are neither text, numbers nor flat lists of them."""
        scalar = (str, int, float, decimal.Decimal, np.integer, np.floating)

        def is_odd(cell: Any) -> bool:
            values = list(cell) if isinstance(cell, SEVERAL) else [cell]
            return not all(
                missing(v) or (isinstance(v, scalar) and not _is_bool(v)) or _in_list(v, cell)
                for v in values
            )

        def _in_list(value: Any, cell: Any) -> bool:
            # vectors of true and false are found later
            return isinstance(cell, SEVERAL) and _is_bool(value)

        if self.form != "onehot" and any(_is_bool(cell) for cell in cells):
            self._refuse(
                "labels are true or false",
                map(_is_bool, cells),
                "if the column is a label of that name, pass labels_format='onehot'; else write the"
                " labels' names",
            )
        kinds = sorted({type(cell).__name__ for cell in cells if is_odd(cell)})
        self._refuse(
            f"labels of type {', '.join(kinds)}",
            map(is_odd, cells),
            "wanted text, whole numbers, or flat lists of them",
        )

    def _parsed(self, cells: list[Any]) -> list[Any]:
        """Cells with printed lists as lists, if all are printed lists or the form is asked for."""
        strings = [cell for cell in cells if isinstance(cell, str)]
        bracketed = [isinstance(cell, str) and is_bracketed(cell) for cell in cells]
        parsed = [
            parse_list(cell, bare=self.form == "list") if is_list else None
            for cell, is_list in zip(cells, bracketed, strict=True)
        ]
        bare_lists = self._bare_lists(cells, bracketed)
        if bare_lists and self.form == "list":
            parsed = bare_lists
        elif bare_lists:
            parsed = [None] * len(cells)
        read = [value is not None for value in parsed]
        if self.form == "list":
            no_list = [
                isinstance(cell, str) and not ok for cell, ok in zip(cells, read, strict=True)
            ]
            self._refuse(
                "no list",
                no_list,
                "wanted cells such as ['I10', 'E11.9'] or [\"I10\", \"E11.9\"]; leave out"
                " labels_format= where sep= separates the names",
            )
        elif any(read) and sum(read) < len(strings):
            some = [ok != (2 * sum(read) > len(strings)) for ok in read]
            some = [odd and isinstance(cell, str) for odd, cell in zip(some, cells, strict=True)]
            self._refuse(
                f"{sum(read)} of {len(strings)} cells are printed lists, the others are not, as",
                some,
                f"write all cells in one way; {AS_IT_STANDS}",
            )
        elif strings and not any(read) and sum(bracketed) > len(strings) / 2:
            bare = all(
                parse_list(cell, bare=True) is not None
                for cell, is_list in zip(cells, bracketed, strict=True)
                if is_list
            )
            fix = "if they are lists of names, pass labels_format='list'"
            self._refuse(
                "cells in brackets that are no printed list",
                bracketed,
                f"{fix if bare else 'wanted names, or lists of names'}; {AS_IT_STANDS}",
            )
        return [value if ok else cell for value, ok, cell in zip(parsed, read, cells, strict=True)]

    def _bare_lists(self, cells: list[Any], bracketed: list[bool]) -> list[list[str] | None]:
        """Names of each cell where lists hold names without quotes; empty if they are quoted."""
        if not all(bracketed[i] for i, cell in enumerate(cells) if isinstance(cell, str)):
            return []
        strings = [cell for cell in cells if isinstance(cell, str)]
        if any(set(cell) & {"'", '"'} for cell in strings):
            return []
        if all(parse_list(cell) is not None for cell in strings):
            return []
        if any(parse_list(cell, bare=True) is None for cell in strings):
            return []
        names = [bare_names(cell) if isinstance(cell, str) else None for cell in cells]
        if None in [n for n, c in zip(names, cells, strict=True) if isinstance(c, str)]:
            return []
        if self.form == "list":
            other = label_names.evident_separator([n for row in names for n in row or []])
            odd = [bool(other) and any(str(other) in n for n in row or []) for row in names]
            self._refuse(f"names in lists are separated by {other!r}", odd, "write commas")
        return names

    def _check_no_vectors(self, cells: Sequence[Any]) -> None:
        present = [cell for cell in cells if cell is not None]
        if present and all(map(is_vector, present)) and len(set(map(width_of, present))) == 1:
            self._refuse(
                "vectors of 0 and 1, not names,",
                [cell is not None for cell in cells],
                "pass labels_format='onehot' to take the positions 0, 1, ... as names, or write the"
                " names of the labels",
            )

    def _check_numbers(self, cells: Sequence[Any]) -> None:
        """Refuse codes that went through floating-point numbers or stand beside text as numbers."""
        values = [list(c) if isinstance(c, SEVERAL) else [c] for c in cells]
        fractions = [any(_is_float(v) and not float(v).is_integer() for v in row) for row in values]
        fix = (
            "codes written as numbers lose their zeros (428.0 and 250.00 are no numbers): write the"
            " column as text, with dtype=str where the table was first read"
        )
        self._refuse("labels are floating-point numbers", fractions, fix)
        numbers = [any(not isinstance(v, str) and not missing(v) for v in row) for row in values]
        texts = [any(isinstance(v, str) and not missing(v) for v in row) for row in values]
        if any(texts):
            self._refuse("labels are numbers beside text", numbers, fix)
        floats = [any(_is_float(v) and not missing(v) for v in row) for row in values]
        if any(floats) and all(floats):
            kept = any(isinstance(v, Written) for row in values for v in row)
            how = "they stand" if kept else "whole ones"
            self.notes.append(
                f"labels of column {self.column!r} are floating-point numbers and were read as"
                f" {how}: if they are codes such as 428.0, write them as text"
            )

    def _check_separator(self, cells: Sequence[Any], names: Sequence[Sequence[str]]) -> None:
        """Refuse another separator than `sep`, in all rows or in some."""
        strings = [cell for cell in cells if isinstance(cell, str)]
        used = bool(self.sep) and any(self.sep in cell for cell in strings)
        of_strings = [
            name
            for cell, found in zip(cells, names, strict=True)
            if isinstance(cell, str)
            for name in found
        ]
        self._check_quotes(strings)
        other = label_names.evident_separator(of_strings, words=not used)
        if other is None:
            self._check_joined(names)
            self._note_commas(set(of_strings), used)
            return
        odd = [any(other in name for name in found) for found in names]
        if used:
            self._refuse(
                f"names are separated by {self.sep!r} in some rows and by {other!r} in others, as",
                odd,
                f"write one separator in all rows; {AS_IT_STANDS}",
            )
        parts = [part for name in of_strings for part in name.split(other)]
        broken = other == self.sep or any(map(_is_broken, parts))
        fix = f"delete what stands around the names and write {self.sep!r} between them"
        self._refuse(
            f"names are separated by {other!r}, not by sep={self.sep!r} alone,",
            odd,
            f"{fix if broken else f'pass sep={other!r}'}; {AS_IT_STANDS}",
        )

    def _check_quotes(self, strings: Sequence[str]) -> None:
        """Refuse quotes around whole cells, of which `sep` would leave one on a name."""
        around = [re.fullmatch(r"\s*(['\"])[^'\"]*\1\s*", cell) for cell in strings]
        if strings and all(around) and any(self.sep and self.sep in cell for cell in strings):
            raise DataError(
                f"quotes stand around all {len(strings)} cells of column {self.column!r}, and"
                f" {self.sep!r} inside of them: delete the quotes; {AS_IT_STANDS}"
            )

    def _note_commas(self, names: set[str], used: bool) -> None:
        """A note on commas in many names of a column in which `sep` never occurs."""
        for mark in "" if used else ",，、":
            holding = sum(mark in name for name in names)
            if holding >= max(2, len(names) / 5):
                self.notes.append(
                    f"sep={self.sep!r} separates nothing, and {holding} labels hold {mark!r}: pass"
                    f" sep={mark!r} if it separates labels"
                )

    def _check_joined(self, names: Sequence[Sequence[str]]) -> None:
        """Single names that look like several: refused where the parts are codes, else noted."""
        joined = set(label_names.joined_names(name for found in names for name in found))
        odd = [any(name in joined for name in found) for found in names]
        if any(any(c.isdigit() for c in name) for name in joined):
            fix = f"write the separator {self.sep!r} between them; {AS_IT_STANDS}"
            self._refuse("labels that look like several, divided in another way,", odd, fix)
        if joined:
            self.notes.append(
                f"names that look like several, joined, in {self._where(odd)}: write {self.sep!r}"
                " between them if they are several"
            )

    def _positions(self, cells: Sequence[Any]) -> list[list[str]]:
        """Positions of the ones in a cell that is a vector; a single 0 or 1 is the column's."""
        if all(missing(cell) or bit_of(cell) is not None for cell in cells):
            return [[self.column] if bit_of(cell) else [] for cell in cells]
        values = [
            cell if not isinstance(cell, str) else parse_list(cell) or bits_of(cell)
            for cell in cells
        ]
        vectors = [None if missing(cell) else vector_of(cell) for cell in values]
        bad = [v is None and not missing(c) for v, c in zip(vectors, cells, strict=True)]
        self._refuse("no vector of 0 and 1", bad, "wanted cells such as [0, 1, 0]")
        widths = [len(v) for v in vectors if v is not None]
        usual = max(set(widths), key=widths.count)
        self._refuse(
            f"vectors of another length than {usual}",
            [v is not None and len(v) != usual for v in vectors],
            "wanted one 0 or 1 for each label",
        )
        digits = len(str(usual - 1))
        return [[f"{i:0{digits}}" for i, bit in enumerate(v or []) if bit] for v in vectors]

    def _plain(self, names: Sequence[Sequence[str]]) -> list[list[str]]:
        """Names written plainly, sorted, once each; spellings that differ by case are refused."""
        names = self._unquoted(names)
        plain = {name: label_names.plain(name) for name in {n for row in names for n in row}}
        mended = [name for name, new in plain.items() if new and new != name.strip()]
        if mended:
            self.notes.append(
                f"{len(mended)} spellings of labels held invisible characters, unusual blanks or"
                " split accents and were written plainly"
            )
        result = [sorted({plain[name] for name in row} - {""}) for row in names]
        self._check_no_texts(result)
        distinct = {name for row in result for name in row}
        if distinct and self.form is None and distinct <= {"0", "1", "True", "False"}:
            self.notes.append(
                f"the only labels are {', '.join(sorted(distinct))}: if the column says whether one"
                " label is there, pass labels_format='onehot'"
            )
        groups = label_names.spellings(distinct)
        if groups and self.form is None:
            shown = ", ".join(brief_list(group, 3, words=6) for group in groups[:3])
            rarer = _rarer(groups, result)
            self._refuse(
                f"{len(groups)} labels are written in several ways, {shown},",
                [any(name in rarer for name in row) for row in result],
                "write each in one way; if they are different labels, pass"
                " labels_format='separated'",
            )
        if groups:
            self.notes.append(f"{len(groups)} labels differ by case or width alone and were kept")
        return result

    def _unquoted(self, names: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
        """Without single or typographic quotes, if they stand around every name."""
        every = [name for row in names for name in row]
        if self.form is None and every and all(re.fullmatch(AROUND, name) for name in every):
            self.notes.append("quotes around all labels were taken off")
            return [[name[1:-1] for name in row] for row in names]
        return names

    def _check_no_texts(self, names: Sequence[Sequence[str]]) -> None:
        """Refuse a column of texts that was taken for labels."""
        distinct = {name for row in names for name in row}
        texts = {name for name in distinct if len(name) > 60 and len(name.split()) > 8}
        if self.form is None and len(texts) > len(distinct) / 2:
            self._refuse(
                "texts, not labels,",
                [any(name in texts for name in row) for row in names],
                f"pass labels=<the label column>; {AS_IT_STANDS}",
            )


def _rarer(groups: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> set[str]:
    """All spellings but the most frequent one of each group."""
    counts: dict[str, int] = {}
    for row in names:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    return {name for group in groups for name in set(group) - {max(group, key=counts.__getitem__)}}


def _is_broken(part: str) -> bool:
    """Whether a part holds half of a pair of brackets, or a printed type."""
    return any(part.count(a) != part.count(b) for a, b in ("()", "[]", "{}", "<>")) or (
        "dtype:" in part
    )


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_float(value: Any) -> bool:
    return isinstance(value, (float, np.floating))


def columns_named(frame: pd.DataFrame, labels: str | Sequence[str]) -> list[str] | None:
    """The columns that `labels` names, in the table's order; None if a part names none.

    labels: names, or one string of names and patterns such as 'code*', divided by commas.
    """
    columns = [str(column) for column in frame.columns]
    if not isinstance(labels, str):
        parts = list(labels)
    else:
        parts = [labels] if labels in columns else [part.strip() for part in labels.split(",")]
    chosen: set[str] = set()
    for part in parts:
        found = [c for c in columns if c == part] or [c for c in columns if fnmatchcase(c, part)]
        if not found:
            return None
        chosen.update(found)
    return [column for column in columns if column in chosen]
