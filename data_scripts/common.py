"""What the get_*.py scripts share: reading folders and archives, downloads, the command line.

A download is complete and checked, or it fails with an error that explains --from. What the files
of a data set mean is in the script of that data set; how a corpus is stored is in `plantlib.data`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plantlib.data.corpus import Corpus
from plantlib.data.credentials import check_folder, check_place
from plantlib.data.sources import homes
from plantlib.data.streaming import write_label_texts
from plantlib.utils.base import DataError
from plantlib.utils.folders import atomic_folder, check_target
from plantlib.utils.io import atomic_path, sha256


class Files:
    """The files of a folder, a .zip or a .tar.gz, by their path inside it ('a/b.txt')."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.archive = None
        if self.path.is_dir():
            paths = (p for p in sorted(self.path.rglob("*")) if p.is_file())
            self.names = [p.relative_to(self.path).as_posix() for p in paths]
        elif self.path.is_file() and zipfile.is_zipfile(self.path):
            self.archive = zipfile.ZipFile(self.path)
            self.names = sorted(n for n in self.archive.namelist() if not n.endswith("/"))
        elif self.path.is_file() and tarfile.is_tarfile(self.path):
            self.archive = tarfile.open(self.path)
            self.names = sorted(m.name for m in self.archive.getmembers() if m.isfile())
        else:
            raise DataError(
                f"{self.path} is not a folder, .zip or .tar.gz: pass one of these with --from"
            )
        # without what archives made on a Mac add
        self.names = [
            n
            for n in self.names
            if "__MACOSX/" not in n and not n.rsplit("/", 1)[-1].startswith("._")
        ]

    def find(self, ending: str) -> str | None:
        """The first name that equals `ending` or ends with '/' + `ending`; None without one."""
        return next((n for n in self.names if n == ending or n.endswith("/" + ending)), None)

    def need(self, ending: str) -> str:
        """As `find`; a DataError that shows what is there instead where the file is missing."""
        if (name := self.find(ending)) is None:
            raise DataError(
                f"{self.path} lacks {ending}; it holds {len(self.names)} files, first"
                f" {self.names[:5]}"
            )
        return name

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        if self.archive is None:
            return (self.path / name).read_bytes()
        if isinstance(self.archive, zipfile.ZipFile):
            return self.archive.read(name)
        return self.archive.extractfile(name).read()

    def text(self, name: str) -> str:
        """One file as UTF-8 text."""
        try:
            return self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} in {self.path} is not UTF-8 (byte {error.start}): take the original"
            ) from None

    def jsonl(self, ending: str) -> Iterator[dict[str, Any]]:
        """The objects of <ending>.jsonl or <ending>.jsonl.xz."""
        name = self.find(f"{ending}.jsonl") or self.need(f"{ending}.jsonl.xz")
        data = self.read(name)
        for line in (
            (lzma.decompress(data) if name.endswith(".xz") else data).decode("utf-8").split("\n")
        ):
            if line:
                yield json.loads(line)

    def sums(self, *names: str | None) -> dict[str, str]:
        """{file: sha256} of the archive, or of the named files of a folder."""
        if self.archive is not None:
            return {self.path.name: sha256(self.path)}
        return {name: sha256(self.path / name) for name in names if name}

    def digest(self) -> dict[str, str]:
        """As `sums` for a folder of thousands of small files: one sum over names and contents."""
        if self.archive is not None:
            return self.sums()
        total = hashlib.sha256()
        for name in self.names:
            total.update(name.encode() + b"\0" + hashlib.sha256(self.read(name)).digest())
        return {f"{len(self.names)} files": total.hexdigest()}


def download(url: str, folder: Path, what: str, expected: str | None = None) -> Path:
    """Fetch `url` into `folder` with a progress bar and return the file.

    Args:
        url: where the file is.
        folder: where it goes.
        what: what --from takes instead, for the error message.
        expected: SHA-256 of the file; not checked when None.

    Raises:
        DataError: the download fails, is incomplete or has another SHA-256.
    """
    from tqdm.auto import tqdm

    path = folder / url.rsplit("/", 1)[-1].split("?")[0]
    advice = f"fetch it by other means and pass --from {what}, or set PLANT_DATA"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, atomic_path(path) as temporary:
            total = int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(total=total or None, unit="B", unit_scale=True, desc=path.name)
            with open(temporary, "wb") as out, bar:
                while block := answer.read(1 << 18):
                    out.write(block)
                    bar.update(len(block))
            if total and temporary.stat().st_size != total:
                raise OSError(f"got {temporary.stat().st_size} of {total} bytes")
    except (OSError, urllib.error.URLError) as error:
        raise DataError(f"could not download {url} ({error}): {advice}") from None
    check(path, expected, advice)
    return path


def check(path: Path, expected: str | None, advice: str) -> None:
    """DataError when `expected` is given and the file has another SHA-256."""
    got = sha256(path)
    if expected and got != expected:
        raise DataError(
            f"{path.name} has sha256 {got}, wanted {expected}: the file changed or is damaged;"
            f" {advice}"
        )


def manifest(
    origin: str, licence: str, sources: dict[str, str], *notes: str, **more: Any
) -> dict[str, Any]:
    """The fixed fields of a corpus manifest; `Corpus` adds the counts.

    Args:
        origin: where the data come from.
        licence: their licence.
        sources: {file: sha256} of the files read.
        notes: how the corpus was made.
        more: further fields.
    """
    return {"origin": origin, "licence": licence, "sources": sources, "notes": list(notes), **more}


def credentialed(
    name: str,
    out: Path,
    source: Path | None,
    text: str,
    texts: Sequence[str],
    choices: dict[str, tuple[str, Sequence[str]]],
) -> str:
    """Check the options of a script whose data set needs credentials; returns `name`.

    Args:
        name: the corpus.
        out: the corpus folder to write; it must lie in the data folder.
        source: the folder of tables.
        text: how texts are cleaned.
        texts: known values of `text`.
        choices: option -> (its value, known values).

    Raises:
        DataError: an unknown value, or no `source`; the message says what to do.
    """
    for what, (got, known) in {**choices, "text": (text, texts)}.items():
        if got not in known:
            raise DataError(f"{what}={got!r}: wanted one of {', '.join(known)}")
    if source is None:
        raise DataError(
            f"{name} is credentialed: nobody but you can fetch it. Get its tables from PhysioNet"
            " under your own data use agreement, put them into one folder and pass --from FOLDER,"
            " or set PLANT_DATA to the folder above (data_scripts/README.md)"
        )
    check_folder(name, out)
    check_place(out)
    return name


def save(corpus: Corpus, out: Path, label_texts: dict[str, str]) -> Path:
    """Write the corpus folder `out` and its label_texts.json, both at once."""
    with atomic_folder(out, "corpus") as temporary:
        write_label_texts(corpus.save(temporary), label_texts)
    return Path(out)


def marked(name: str, tables: Any) -> str:
    """The corpus name, with synthetic- before it when fixtures.py generated the tables."""
    return f"synthetic-{name}" if tables.generated else name


def clinical_manifest(origin: str, tables: Any, remarks: list[str]) -> dict[str, Any]:
    """The manifest of a credentialed corpus.

    A corpus of generated tables is marked as synthetic, and as credentialed too, so that tests see
    what happens to real ones.
    """
    mark = {"synthetic": True} if tables.generated else {}
    origin = f"generated tables in the schema of {origin}" if tables.generated else origin
    return manifest(
        origin,
        "PhysioNet Credentialed Health Data License 1.5.0",
        tables.sums(),
        *remarks,
        language="en",
        credentialed=True,
        **mark,
    )


def cli(
    doc: str,
    name: str | Callable[..., str],
    build: Callable[..., Path],
    options: dict[str, dict[str, Any]] | None = None,
) -> int:
    """Run `build` from the command line and print a summary of the corpus.

    Args:
        doc: the description in --help.
        name: of the corpus, for the default of --out; a function where options decide it.
        build: called with the folder to write, the value of --from and the options.
        options: further options, flag -> arguments of `add_argument`.

    Returns:
        Exit status: 1 where `out` cannot be written or `build` failed; the message is printed.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        help="local folder or archive instead of the public origin",
    )
    parser.add_argument(
        "--out", type=Path, help="corpus folder to write (default: its name under the data home)"
    )
    for flag, settings in (options or {}).items():
        parser.add_argument(flag, **settings)
    arguments = vars(parser.parse_args())
    source = arguments.pop("source")
    out = arguments.pop("out")
    out = out or homes()[0] / (name(**arguments) if callable(name) else name)
    try:
        check_target(out, "corpus")
        folder = build(out, source, **arguments)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    corpus = Corpus.load(folder)
    print(f"{corpus!r} -> {folder}\n{corpus.summary().to_string()}")
    return 0
