"""MIMIC's tables as they come from PhysioNet: found by name, read in chunks, quoted notes of many
lines included.

A table is NAME.csv or NAME.csv.gz, in any case and at any depth of the folder; only the columns
asked for are kept, as text (numbers would lose the zeros of '0040'). Memory is that of one chunk,
and a bar follows the bytes of the file. Not here: what the columns mean for a corpus
(get_mimic3.py, get_mimic4.py).
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from plantlib.data.sources import GENERATED
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json, sha256
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas as pd

ROWS = 2_000  # notes; some 20 MB of text


class Followed(io.RawIOBase):
    """A binary file that tells a progress bar how many bytes were read of it."""

    def __init__(self, raw: io.RawIOBase, bar) -> None:
        self._raw, self._bar = raw, bar

    def readable(self) -> bool:
        """Reading is all it does."""
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
                f"{folder} is no folder: pass --from the folder with the tables as PhysioNet names"
                " them"
            )
        self.files = {
            p.name.lower(): p for p in sorted(self.folder.rglob("*"), reverse=True) if p.is_file()
        }
        self.used: list[Path] = []

    @property
    def generated(self) -> dict | None:
        """What fixtures.py wrote about these tables, None for real ones."""
        return read_json(self.files[GENERATED]) if GENERATED in self.files else None

    def find(self, *names: str) -> Path | None:
        """The first file with one of these names, None when there is none."""
        found = next((self.files[n.lower()] for n in names if n.lower() in self.files), None)
        if found is not None and found not in self.used:
            self.used.append(found)
        return found

    def has(self, table: str) -> bool:
        """Whether NAME.csv or NAME.csv.gz is there."""
        return any(f"{table}{end}".lower() in self.files for end in (".csv", ".csv.gz"))

    def need(self, table: str) -> Path:
        """The file of a table; DataError that names what is there instead."""
        if (path := self.find(f"{table}.csv", f"{table}.csv.gz")) is None:
            raise DataError(
                f"{self.folder} lacks {table}.csv(.gz); it holds {sorted(self.files)[:8]}: "
                "download it from PhysioNet with your own credentials, see data_scripts/README.md"
            )
        return path

    def chunks(
        self, table: str, columns: list[str], rows: int | None = None
    ) -> Iterator[pd.DataFrame]:
        """Frames of at most `rows` rows (ROWS when None) with `columns` (lower case) as text; ''
        where the table has nothing.

        Raises DataError for a lacking column or a file that is cut off or no CSV, naming the file.
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
            wanted = lambda name: name.lower() in columns  # noqa: E731
            try:
                for chunk in pd.read_csv(
                    handle, dtype=str, keep_default_na=False, usecols=wanted, chunksize=rows or ROWS
                ):
                    chunk.columns = [name.lower() for name in chunk.columns]
                    if missing := sorted(set(columns) - set(chunk.columns)):
                        raise DataError(
                            f"{path.name} lacks the columns {missing}: take the table as PhysioNet"
                            " publishes it"
                        )
                    yield chunk
            except (
                EOFError,
                OSError,
                pd.errors.ParserError,
                pd.errors.EmptyDataError,
                UnicodeDecodeError,
            ) as error:
                # the message of a parser may quote a line of the table
                kind = type(error).__name__
                raise DataError(
                    f"{path.name} cannot be read ({kind}): cut off or no CSV, download it again"
                ) from None

    def sums(self) -> dict[str, str]:
        """{file: sha256} of the files that were read."""
        return {path.name: sha256(path) for path in self.used}


def codes_of(
    tables: Tables, table: str, column: str, form: Callable[[str], str], version: str | None = None
) -> dict[str, set[str]]:
    """{hadm_id: codes in `form`}; an admission whose codes are missing keeps an empty set, so that
    it is known to be coded.
    """
    found: dict[str, set[str]] = {}
    known: dict[str, str] = {}
    columns = ["hadm_id", column] + (["icd_version"] if version else [])
    for chunk in tables.chunks(table, columns, rows=200_000):
        if version:
            chunk = chunk[chunk["icd_version"].str.strip() == version]
        for hadm, code in zip(chunk["hadm_id"], chunk[column], strict=True):
            if code not in known:
                known[code] = form(code)
            own = found.setdefault(whole(hadm), set())
            if known[code]:
                own.add(known[code])
    return found


def whole(number: str) -> str:
    """An id as digits: tables that went through pandas hold 167853.0."""
    return number.strip().removesuffix(".0")


def titles(
    tables: Tables, table: str, column: str, form: Callable[[str], str], version: str | None = None
) -> list[tuple[str, str]]:
    """(code, long title) of a d_icd table, [] where it is not in the folder."""
    if not tables.has(table):
        return []
    columns, found = [column, "long_title"] + (["icd_version"] if version else []), []
    for chunk in tables.chunks(table, columns, rows=200_000):
        if version:
            chunk = chunk[chunk["icd_version"].str.strip() == version]
        found += [
            (form(c), t.strip()) for c, t in zip(chunk[column], chunk["long_title"], strict=True)
        ]
    return found
