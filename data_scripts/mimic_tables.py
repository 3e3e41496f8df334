"""The tables of MIMIC as they come from PhysioNet, read in chunks.

A table is NAME.csv or NAME.csv.gz, in upper or lower case, anywhere in the folder. Only the columns
that are needed are read, as text (as a number '0040' would lose its zeros); notes of many lines are
quoted. Memory is that of one chunk, and a bar shows the bytes read. Not here: what the columns mean
for a corpus (get_mimic3.py, get_mimic4.py).
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

ROWS = 2_000  # of a chunk of notes, about 20 MB of text


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
        self.files = {
            p.name.lower(): p for p in sorted(self.folder.rglob("*"), reverse=True) if p.is_file()
        }
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
        return path

    def chunks(
        self, table: str, columns: list[str], rows: int | None = None
    ) -> Iterator[pd.DataFrame]:
        """The rows of a table, a frame at a time.

        Args:
            table: NAME of NAME.csv or NAME.csv.gz.
            columns: to read, in lower case; values are text, '' where the table has none.
            rows: most rows per frame; ROWS when None.

        Raises:
            DataError: no such table, a missing column, or a file that is cut off or is not a CSV.
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
                "usecols": lambda name: name.lower() in columns,
                "chunksize": rows or ROWS,
                "dtype": str,
                "keep_default_na": False,
            }
            try:
                for chunk in pd.read_csv(handle, **options):
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
                # the parser's message is withheld: it may quote a line of the table
                kind = type(error).__name__
                raise DataError(
                    f"{path.name} cannot be read ({kind}): it is cut off or not a CSV; download it"
                    " again"
                ) from None

    def sums(self) -> dict[str, str]:
        """{file: sha256} of the files that were read."""
        return {path.name: sha256(path) for path in self.used}


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
    """
    codes: dict[str, set[str]] = {}
    known: dict[str, str] = {}
    columns = ["hadm_id", column] + (["icd_version"] if version else [])
    for chunk in tables.chunks(table, columns, rows=200_000):
        if version:
            chunk = chunk[chunk["icd_version"].str.strip() == version]
        for hadm, code in zip(chunk["hadm_id"], chunk[column], strict=True):
            if code not in known:
                known[code] = form(code)
            of_admission = codes.setdefault(whole(hadm), set())
            if known[code]:
                of_admission.add(known[code])
    return codes


def whole(number: str) -> str:
    """An id as digits: tables that pandas has written hold 167853.0."""
    return number.strip().removesuffix(".0")


def titles(
    tables: Tables, table: str, column: str, form: Callable[[str], str], version: str | None = None
) -> list[tuple[str, str]]:
    """(code, long title) of the rows of a d_icd table, [] where it is not in the folder.

    The arguments are those of `codes_of`.
    """
    if not tables.has(table):
        return []
    columns = [column, "long_title"] + (["icd_version"] if version else [])
    pairs = []
    for chunk in tables.chunks(table, columns, rows=200_000):
        if version:
            chunk = chunk[chunk["icd_version"].str.strip() == version]
        pairs += [
            (form(c), t.strip()) for c, t in zip(chunk[column], chunk["long_title"], strict=True)
        ]
    return pairs
