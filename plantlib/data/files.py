"""Reads a user's file: text in a stated encoding, or a table as a frame of its exact cells.

Tables are delimited text, JSON lines, parquet and Excel workbooks; text and JSON lines may be
compressed. Cells of delimited text are str. What the other kinds hold as numbers stays a number, so
that `label_forms.py` can tell a code that lost its zeros. Pickles are never read.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantlib.data import csv_rows
from plantlib.data.label_forms import Written, name_of
from plantlib.utils.base import DataError
from plantlib.utils.terminal import brief_list

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PACKED = {".gz": gzip, ".bz2": bz2, ".xz": lzma}
LINES = (".jsonl", ".ndjson")
# codecs of Python's source and of host names, which change characters that stand for themselves
NO_TEXT = ("unicode-escape", "raw-unicode-escape", "idna", "punycode", "undefined")
TABLES = (*DELIMITERS, *LINES, ".parquet", ".xlsx")
WANTED = "a table is .csv, .tsv or .jsonl (also as .gz, .bz2 or .xz), .parquet or .xlsx"
# kinds that are neither a table nor plain text here, and what to do with them
OTHERS = {
    ".json": "write one object per line into a .jsonl file",
    ".xls": "save it as .xlsx or .csv",
    ".xlsm": "save it as .xlsx or .csv",
    ".xlsb": "save it as .xlsx or .csv",
    ".ods": "save it as .xlsx or .csv",
    ".feather": "save it as .parquet",
    ".arrow": "save it as .parquet",
    ".pkl": "save it as .parquet; pickles can run code and are not read",
    ".pickle": "save it as .parquet; pickles can run code and are not read",
    ".db": "export the table as .csv",
    ".sqlite": "export the table as .csv",
    ".sas7bdat": "export the table as .csv",
    ".dta": "export the table as .csv",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".7z": "unpack it",
    ".zst": "unpack it",
    ".pdf": "save its text as .txt",
    ".doc": "save its text as .txt",
    ".docx": "save its text as .txt",
    ".rtf": "save its text as .txt",
    ".odt": "save its text as .txt",
    ".html": "save its text as .txt",
    ".htm": "save its text as .txt",
    ".xml": "save its text as .txt",
}
SIGNATURES = {
    b"\x1f\x8b": "a gzip file: name it .gz",
    b"PK\x03\x04": "a zip archive or an Office file",
    b"PAR1": "a parquet file: name it .parquet",
    b"%PDF": "a PDF file",
    b"\xd0\xcf\x11\xe0": "an old Office file",
}


def kind_of(path: Path) -> str:
    """The suffix that says what a file is, in lower case and without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def stem(path: Path) -> str:
    """The name of a file without the suffix of its kind and of its compression."""
    packed = path.suffix.lower() in PACKED
    return Path(path.stem).stem if packed else path.stem


def is_table(path: Path) -> bool:
    """Whether the name of a file says that it is a table that is read."""
    return kind_of(path) in TABLES


def check_kind(path: Path, wanted: str = WANTED) -> None:
    """DataError with the fix for a file of a kind that is not read."""
    fix = OTHERS.get(path.suffix.lower())
    if fix:
        raise DataError(f"{path} is not read ({path.suffix}): {fix}; {wanted}")


def read_table(path: Path, encoding: str = "utf-8", delimiter: str | None = None) -> pd.DataFrame:
    r"""The table in a file, one row per line, object or row; nothing is guessed or dropped.

    Args:
        path: a file of a kind in `TABLES`.
        encoding: of text and JSON lines.
        delimiter: one character that separates the columns of .csv and .tsv; None takes a comma,
            and in .tsv a tab.

    Raises:
        DataError: the file is missing, empty, of another kind, does not decode (the byte offset is
            named), or has rows that would not survive exactly (their numbers are named).
    """
    check_kind(path)
    kind = kind_of(path)
    if kind not in TABLES:
        raise DataError(f"{path} is no table that is read: {WANTED}")
    if kind in LINES:
        return _read_json_lines(path, encoding)
    if kind in DELIMITERS:
        return read_csv(path, encoding, DELIMITERS[kind] if delimiter is None else delimiter)
    if path.suffix.lower() in PACKED:
        raise DataError(f"{path} is compressed, and {kind} is read as it is: unpack it")
    return read_parquet(path) if kind == ".parquet" else _read_workbook(path)


def read_csv(path: Path, encoding: str = "utf-8", delimiter: str = ",") -> pd.DataFrame:
    """Delimited text with a header line as a frame of str cells; see `read_table`."""
    header, rows = csv_rows.rows_of(read_text(path, encoding), delimiter, str(path))
    return _frame(header, rows, path)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, unpacked by its suffix; DataError as in `read_table`."""
    return decode(_bytes(path), encoding, str(path))


def decode(data: bytes, encoding: str, name: str) -> str:
    """Text in a stated encoding; DataError names the first byte that is not in it.

    data: of a file or of standard input, called `name` in the message.
    """
    try:
        codec = codecs.lookup(encoding).name.replace("_", "-")
        if codec in NO_TEXT:
            raise LookupError
        encoding = "utf-8" if codec == "utf-8-sig" else encoding
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} is not {encoding}: byte {error.start} (line {line}) does not decode;"
            f" {_other_encoding(data)}"
        ) from None
    except (LookupError, UnicodeError):
        raise DataError(
            f"{encoding!r} is no encoding of texts: pass the one it was saved in, such as"
            " encoding='utf-8' or encoding='cp1252'"
        ) from None
    if _is_utf8_after_all(data, encoding):
        raise DataError(
            f"{name} was read as {encoding}, but is UTF-8: leave out encoding= or pass"
            " encoding='utf-8'"
        )
    if text.count("\0") > len(text) / 4:
        raise DataError(f"{name} does not read as {encoding}: {_other_encoding(data)}")
    return text


def _is_utf8_after_all(data: bytes, encoding: str) -> bool:
    """Whether bytes are UTF-8 that another encoding turns into other characters."""
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    narrow = len("é".encode(encoding, "replace")) == 1 and not wide
    try:
        of_utf8 = data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return (wide and b"\0" not in data) or (narrow and not of_utf8.isascii())


def _other_encoding(data: bytes) -> str:
    """What bytes that do not decode may be, and the fix."""
    signs = [sign for start, sign in SIGNATURES.items() if data.startswith(start)]
    if signs:
        return f"it is {signs[0]}"
    if data[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "it looks like UTF-32: pass encoding='utf-32', or save it as UTF-8"
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "it looks like UTF-16: pass encoding='utf-16', or save it as UTF-8"
    if data.count(0) > len(data) / 4:
        order = "be" if data[:1] == b"\0" else "le"
        return f"it looks like UTF-16: pass encoding='utf-16-{order}', or save it as UTF-8"
    return (
        "pass the encoding it was saved in, as encoding='cp1252' for Western European text of"
        " Windows, or save it as UTF-8"
    )


def _bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name says that it is compressed."""
    _check_readable(path)
    packed = PACKED.get(path.suffix.lower())
    if packed is None:
        return path.read_bytes()
    try:
        with packed.open(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path} does not unpack as {path.suffix} ({type(error).__name__}): it may be cut short"
            " or wrongly named; copy it again"
        ) from None


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the path of a file; {WANTED}")
    if not path.exists():
        raise DataError(
            f"no file {path} (working folder {Path.cwd()}): give the path of an existing file"
        )
    if path.is_file() and path.stat().st_size == 0:
        wanted = "a header line and one line per document" if is_table(path) else "text"
        wanted = "one JSON object per line" if kind_of(path) in LINES else wanted
        raise DataError(f"{path} is empty (0 bytes): wanted {wanted}")


def check_columns_once(columns: Sequence[Any], name: str) -> None:
    """DataError if a column name stands twice; unnamed columns may."""
    counts = Counter(str(column) for column in columns)
    twice = sorted(column for column, count in counts.items() if column and count > 1)
    if twice:
        raise DataError(
            f"{name} has columns of the same name, {brief_list(twice)}: rename or delete all but"
            " one"
        )


def _frame(header: Sequence[str], rows: Sequence[Sequence[Any]], path: Path) -> pd.DataFrame:
    import pandas as pd

    check_columns_once(header, str(path))
    return pd.DataFrame(rows, columns=list(header), dtype=object)


def read_parquet(path: Path) -> pd.DataFrame:
    """A parquet file as a frame of Python objects, so that integers beside gaps stay integers.

    DataError if it is not parquet.
    """
    import pandas as pd
    import pyarrow.parquet as parquet

    _check_readable(path)
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} does not read as parquet ({type(error).__name__}): write it again, or use .csv"
            " for delimited text"
        ) from None
    check_columns_once(table.column_names, str(path))
    columns = {
        name: pd.Series(table.column(name).to_pylist(), dtype=object) for name in table.column_names
    }
    return pd.DataFrame(columns)


def _read_json_lines(path: Path, encoding: str) -> pd.DataFrame:
    """One JSON object per line; a key that an object lacks is a missing cell."""
    records: list[dict[str, Any]] = []
    text = read_text(path, encoding).rstrip()
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), 1):
        records.append(_record(line, number, path) if line.strip() else {})
    header = list(dict.fromkeys(key for record in records for key in record))
    if not header:
        raise DataError(f"{path} holds no object: wanted one JSON object per line")
    return _frame(header, [[record.get(key) for key in header] for record in records], path)


def _record(line: str, number: int, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            raise DataError(f"{path}: line {number} has a key twice: keep one of them")
        return record

    try:
        record = json.loads(
            line, object_pairs_hook=once, parse_float=Written, parse_constant=lambda _: None
        )
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {number} is not JSON (column {error.colno}: {error.msg}): wanted one"
            " object per line"
        ) from None
    except RecursionError:
        raise DataError(f"{path}: line {number} is nested too deeply") from None
    if not isinstance(record, dict):
        raise DataError(
            f"{path}: line {number} is {type(record).__name__}, wanted one JSON object per line,"
            ' such as {"text": "...", "labels": ["..."]}'
        )
    return record


def holds_json_lines(text: str) -> bool:
    """Whether a text, or most of its lines that are not blank, are JSON objects or arrays."""
    lines = [line for line in text.splitlines() if line.strip()]
    found = sum(map(_is_json, lines))
    return _is_json(text) or 2 * found > len(lines)


def _is_json(text: str) -> bool:
    """Whether a text is one JSON object, or an array that holds more than numbers."""
    if text.strip()[:1] not in ("{", "["):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, (dict, list))


def _read_workbook(path: Path) -> pd.DataFrame:
    """The one sheet with cells of an .xlsx workbook; its first row is the header."""
    _check_readable(path)
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{path} needs the package openpyxl: pip install openpyxl, or save it as .csv"
        ) from None
    try:
        data = path.read_bytes()
        values = openpyxl.load_workbook(io.BytesIO(data), data_only=True).worksheets
        formulas = openpyxl.load_workbook(io.BytesIO(data)).worksheets
    except Exception as error:  # a damaged workbook raises anything
        raise DataError(
            f"{path} does not read as a workbook ({type(error).__name__}): save it again, or as"
            " .csv"
        ) from None
    filled = [i for i, sheet in enumerate(formulas) if any(map(_has_cell, sheet.values))]
    if len(filled) != 1:
        raise DataError(
            f"{path} has {len(filled)} sheets with cells: wanted one; save the sheet as .csv"
        )
    rows = [list(map(_workbook_cell, row)) for row in values[filled[0]].values]
    of_formulas = list(formulas[filled[0]].values)
    lost = [
        number
        for number, (row, formula) in enumerate(zip(rows, of_formulas, strict=True), 1)
        if any(value is None and cell is not None for value, cell in zip(row, formula, strict=True))
    ]
    if lost:
        raise DataError(
            f"{path} has formulas without values in {len(lost)} lines, first {lost[:5]}: open it in"
            " a spreadsheet program and save it, or write values"
        )
    while not _has_cell(rows[0]):
        rows.pop(0)
    while not _has_cell(rows[-1]):
        rows.pop()
    header = ["" if cell is None else name_of(cell) for cell in rows[0]]
    return _frame(header, rows[1:], path)


def _workbook_cell(value: Any) -> Any:
    """A workbook's number as it is stored: 428.0 and 428 are one number there."""
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def _has_cell(row: Sequence[Any]) -> bool:
    return any(cell is not None and str(cell).strip() for cell in row)
