"""The tables of MIMIC as they come from PhysioNet, or as another program has written them again.

A table is NAME.csv or NAME.csv.gz, in upper or lower case, anywhere in the folder. Only the columns
that are needed are read, as text (as a number '0040' would lose its zeros); notes of many lines are
quoted. Memory is that of one chunk, and a bar shows the bytes read. Ids and versions that became
167853.0, NULL, \\N and NaN are read as what they were; what cannot be is refused by column and row,
never by content. Not here: what the columns mean for a corpus (get_mimic3.py, get_mimic4.py).
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_scripts.icd9_numbers import Numbers
from plantlib.data.sources import GENERATED
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json, sha256
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas as pd

ROWS = 2_000  # of a chunk of notes, about 20 MB of text
# how programs write that a cell is empty, in lower case
MISSING = ("null", "\\n", "nan", "none", "na", "n/a", "#n/a", "<na>", "nat")
IDS = ("row_id", "subject_id", "hadm_id", "note_id")
ID = r"[A-Za-z0-9_-]*"
VERSIONS = ("", "9", "10")
CODE = re.compile(r"[A-Za-z0-9.]*")
PCS_LENGTH = 7  # of every ICD-10 procedure code


class Followed(io.RawIOBase):
    """A binary file that moves a progress bar by the bytes that are read."""

    def __init__(self, raw: io.RawIOBase, bar) -> None:
        self._raw = raw
        self._bar = bar

    def readable(self) -> bool:
        """The file can be read and nothing else."""
        return True

    def readinto(self, buffer) -> int:
        """Fill `buffer` and move the bar."""
        count = self._raw.readinto(buffer)
        self._bar.update(count)
        return count


class Tables:
    """The tables in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(
                f"{folder} is not a folder: pass the folder of the tables with --from, named as"
                " PhysioNet names them"
            )
        self.places: dict[str, list[Path]] = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            self.places.setdefault(path.name.lower(), []).append(path)
        self.files = {name: paths[0] for name, paths in self.places.items()}
        self.used: list[Path] = []

    @property
    def generated(self) -> dict | None:
        """What fixtures.py wrote about these tables, None for real ones."""
        return read_json(self.files[GENERATED]) if GENERATED in self.files else None

    def find(self, *names: str) -> Path | None:
        """The first file with one of these names; None without one."""
        path = next((self.files[n.lower()] for n in names if n.lower() in self.files), None)
        if path is not None and path not in self.used:
            self.used.append(path)
        return path

    def has(self, table: str) -> bool:
        """Whether NAME.csv or NAME.csv.gz is there."""
        return any(f"{table}{end}".lower() in self.files for end in (".csv", ".csv.gz"))

    def need(self, table: str) -> Path:
        """The file of a table; a DataError that shows what is there instead where it is missing."""
        if (path := self.find(f"{table}.csv", f"{table}.csv.gz")) is None:
            raise DataError(
                f"{self.folder} lacks {table}.csv(.gz); it holds {sorted(self.files)[:8]}: "
                "download it from PhysioNet with your own credentials, see data_scripts/README.md"
            )
        self._check_alone(table)
        return path

    def _check_alone(self, table: str) -> None:
        """DataError where the folder holds a table twice and the two may differ."""
        plain, packed = (self.places.get(f"{table}{e}".lower(), []) for e in (".csv", ".csv.gz"))
        same = not (plain and packed) or _unpacked_size(packed[0]) == plain[0].stat().st_size
        if max(len(plain), len(packed)) > 1 or not same:
            where = [p.relative_to(self.folder).as_posix() for p in (*plain, *packed)]
            raise DataError(
                f"{self.folder} holds the table {table} more than once: {', '.join(where)}; keep"
                " one, since tables of two releases do not fit each other"
            )

    def chunks(
        self, table: str, columns: list[str], rows: int | None = None, optional: Sequence[str] = ()
    ) -> Iterator[pd.DataFrame]:
        """The rows of a table, a frame at a time, numbered from 0.

        Args:
            table: NAME of NAME.csv or NAME.csv.gz.
            columns: to read, in lower case; values are text, '' where the table has none.
            rows: most rows per frame; ROWS when None.
            optional: columns that are read where the table has them.

        Raises:
            DataError: no such table, a missing column, a file that is cut off or is not a CSV, or a
                cell that is no id or version.
        """
        import pandas as pd

        path = self.need(table)
        bar = tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=path.name,
            delay=2,
            leave=False,
        )
        with open(path, "rb", buffering=0) as raw, bar:
            plain = io.BufferedReader(Followed(raw, bar), 1 << 20)
            handle = gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain
            options = {
                "usecols": lambda name: _plain_name(name) in {*columns, *optional},
                "chunksize": rows or ROWS,
                "dtype": str,
                "keep_default_na": False,
                "encoding": "utf-8-sig",
            }
            try:
                for chunk in pd.read_csv(handle, **options):
                    yield _cleaned(chunk, path.name, columns)
            except (
                EOFError,
                OSError,
                pd.errors.ParserError,
                pd.errors.EmptyDataError,
                UnicodeDecodeError,
            ) as error:
                # the parser's message is withheld: it may quote a line of the table
                kind = type(error).__name__
                raise DataError(
                    f"{path.name} cannot be read ({kind}): it is cut off or not a CSV; download it"
                    " again"
                ) from None

    def sums(self) -> dict[str, str]:
        """{file: sha256} of the files that were read."""
        return {path.name: sha256(path) for path in self.used}


def refuse(table: str, column: str, row: int, is_what: str) -> DataError:
    """The error for one cell; `row` counts from 0 and is named from 1, the header not counted."""
    return DataError(
        f"{table}, column {column}, row {row + 1} (not counting the header): {is_what}; take the"
        " table as PhysioNet publishes it"
    )


def _unpacked_size(path: Path) -> int:
    """Bytes that a .gz unpacks to, from its last four; exact below 4 GiB, as all tables are."""
    with open(path, "rb") as file:
        file.seek(-4, io.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def _plain_name(name: str) -> str:
    return str(name).strip().strip("\"'").lower()


def _cleaned(chunk: pd.DataFrame, table: str, columns: list[str]) -> pd.DataFrame:
    """A frame as PhysioNet's table would give it."""
    import pandas as pd

    chunk.columns = [_plain_name(name) for name in chunk.columns]
    if missing := sorted(set(columns) - set(chunk.columns)):
        raise DataError(
            f"{table} lacks the columns {missing}: take the table as PhysioNet publishes it"
        )
    if repeated := sorted(set(chunk.columns[chunk.columns.duplicated()])):
        raise DataError(f"{table} has the columns {repeated} twice: remove one of each")
    if not isinstance(chunk.index, pd.RangeIndex):
        raise DataError(
            f"{table}: its rows have more cells than its header; take the table as PhysioNet"
            " publishes it"
        )
    for name in chunk.columns:
        cells = chunk[name]
        short = cells[cells.str.len() <= 8].str.strip().str.strip("\"'").str.lower()
        cells = cells.mask(cells.index.isin(short.index[short.isin(MISSING)]), "")
        if name in (*IDS, "icd_version"):
            cells = cells.str.strip().str.strip("\"'").str.replace(r"\.0+$", "", regex=True)
            versions = name == "icd_version"
            right = cells.isin(VERSIONS) if versions else cells.str.fullmatch(ID)
            if not right.all():
                wanted = "9 or 10" if versions else "letters and digits"
                raise refuse(table, name, int(right.idxmin()), f"wanted {wanted}")
        chunk[name] = cells
    return chunk


def codes_of(
    tables: Tables, table: str, column: str, form: Callable[[str], str], version: str | None = None
) -> dict[str, set[str]]:
    """{hadm_id: codes} of a table; an admission whose codes are all missing has an empty set.

    Args:
        tables: the folder of tables.
        table: its name.
        column: of the codes.
        form: writes a code as a label; '' where it is missing.
        version: "9" or "10", the ICD version of the rows to take; all when None.

    Raises:
        DataError: a code was read as a number, and several codes may have become it.
    """
    codes: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    for row, code, hadm in _coded_rows(tables, table, column, "hadm_id", version):
        if not hadm and code:
            raise refuse(tables.need(table).name, "hadm_id", row, "there is no id")
        codes.setdefault(hadm, set()).add(code)
        first.setdefault(code, row)
    names = f"d_{table.split('_')[1]}_{table.split('_')[0]}"
    more = []
    if tables.has(names):
        more = [code for _, code, _ in _coded_rows(tables, names, column, column, version)]
    label = _labels(tables.need(table).name, column, first, form, version, more)
    return {hadm: {label[c] for c in own} - {""} for hadm, own in codes.items()}


def _coded_rows(
    tables: Tables, table: str, column: str, other: str, version: str | None
) -> Iterator[tuple[int, str, str]]:
    """(row, code, cell of the column `other`) of the rows of an ICD version."""
    wanted = [column, other] + (["icd_version"] if version else [])
    for chunk in tables.chunks(table, wanted, rows=200_000):
        codes = chunk[column].str.strip().str.strip("\"'=").str.upper()
        if version:
            unknown = (chunk["icd_version"] == "") & (codes != "")
            if unknown.any():
                name = tables.need(table).name
                raise refuse(name, "icd_version", int(unknown.idxmax()), "wanted 9 or 10")
            codes = codes[chunk["icd_version"] == version]
        yield from zip(codes.index, codes, chunk[other][codes.index], strict=True)


def _labels(
    table: str,
    column: str,
    first: dict[str, int],
    form: Callable[[str], str],
    version: str | None,
    more: Iterable[str] = (),
) -> dict[str, str]:
    """{code as the table has it: its label}; first: {code: its first row}."""
    procedure = "proc" in table.lower()
    numbers = None if version == "10" else Numbers(first, procedure, more)
    labels = {}
    for code, row in first.items():
        number = code.rstrip("0").rstrip(".") if "." in code else code
        if not CODE.fullmatch(code) or code == "INF":
            raise refuse(table, column, row, "this is no code")
        if numbers is not None:
            found = {form(c) for c in numbers.back(code)}
            # labels without leading zeros need not know how many there were
            whole = str(int(float(code))) if not found else ""
            if whole and not numbers.dotted and form(whole) == form(f"0{whole}"):
                found = {form(whole)}
        elif procedure and number.isdigit():
            found = {form(number.zfill(PCS_LENGTH))}
        else:
            found = set() if "." in code and number.isdigit() else {form(code)}
        if len(found) != 1:
            several = f"it may have been {' or '.join(sorted(found))}" if found else "no code fits"
            raise refuse(table, column, row, f"a code that was read as a number, {several}")
        labels[code] = found.pop()
    return labels


def whole(number: str) -> str:
    """An id as digits: tables that pandas has written hold 167853.0."""
    return number.strip().removesuffix(".0")


def titles(
    tables: Tables, table: str, column: str, form: Callable[[str], str], version: str | None = None
) -> list[tuple[str, str]]:
    """(code, long title) of the rows of a d_icd table, [] where it is not in the folder.

    The arguments and errors are those of `codes_of`.
    """
    if not tables.has(table):
        return []
    rows = list(_coded_rows(tables, table, column, "long_title", version))
    first: dict[str, int] = {}
    for row, code, _ in rows:
        first.setdefault(code, row)
    label = _labels(tables.need(table).name, column, first, form, version)
    return [(label[code], title.strip()) for _, code, title in rows]
