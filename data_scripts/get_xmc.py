"""EURLEX-4K, WIKI10-31K, AmazonCat-13K, Amazon-670K and Amazon-3M from local files.

Origin: http://manikvarma.org/downloads/XC/XMLRepository.html (Bhatia et al. 2016). A browser is
needed to fetch the files, so --from takes the archive (.zip, .tar.gz) or its folder. They come in
three forms, plain or .gz, with one document per line:
    train_raw_texts.txt train_labels.txt test_raw_texts.txt test_labels.txt: names of labels,
        separated by spaces
    X.trn.txt Y.trn.txt X.tst.txt Y.tst.txt (and output-items.txt): numbers of labels
    trn.json tst.json lbl.json: uid, title, content, target_ind, target_rel
Official split, no dev split (use Corpus.with_dev). A line break separates title and content; texts
are not cleaned. Documents are read one at a time, so Amazon-3M needs the memory of its label names,
not of its texts.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from plantlib.data.streaming import CorpusWriter
from plantlib.utils.base import DataError

try:
    from data_scripts import common
except ModuleNotFoundError:
    import common

PAGE = "http://manikvarma.org/downloads/XC/XMLRepository.html"
RAW = "https://github.com/yourh/AttentionXML (section Datasets)"
SEPARATOR = "/SEP/"  # between title and content of the raw texts
TEXT_FILES = ("train_raw_texts.txt", "train_labels.txt", "test_raw_texts.txt", "test_labels.txt")
NUMBERED_FILES = ("X.trn.txt", "Y.trn.txt", "X.tst.txt", "Y.tst.txt")
JSON_FILES = ("trn.json", "tst.json", "lbl.json")
LABEL_FILES = ("output-items.txt", "label_map.txt", "Yf.txt")
DATASETS = {
    "eurlex-4k": "EURLex-4K",
    "wiki10-31k": "Wiki10-31K",
    "amazoncat-13k": "AmazonCat-13K",
    "amazon-670k": "Amazon-670K",
    "amazon-3m": "Amazon-3M",
}


class Row(NamedTuple):
    """A document of the files; its labels are names or numbers."""

    id: str
    text: str
    split: str
    labels: list


def located(files: common.Files, name: str) -> str | None:
    """`name` or `name`.gz in the files; None without either."""
    return files.find(name) or files.find(f"{name}.gz")


@contextmanager
def opened(files: common.Files, name: str) -> Iterator[IO[str]]:
    """One file as UTF-8 lines, unpacked while it is read."""
    if files.archive is None:
        raw = (files.path / name).open("rb")
    elif isinstance(files.archive, zipfile.ZipFile):
        raw = files.archive.open(name)
    else:
        raw = files.archive.extractfile(name)
    with (
        raw,
        gzip.open(raw) if name.endswith(".gz") else raw as data,
        io.TextIOWrapper(data, "utf-8", newline="\n") as text,
    ):
        yield text


def lines(files: common.Files, name: str) -> Iterator[str]:
    """The lines of a file; DataError where it is missing, damaged or not UTF-8."""
    path = located(files, name)
    if path is None:
        raise DataError(
            f"{files.path} lacks {name} or {name}.gz; it holds {len(files.names)} files, first"
            f" {files.names[:5]}"
        )
    try:
        with opened(files, path) as text:
            for line in text:
                yield line.rstrip("\r\n")
    except (
        UnicodeDecodeError,
        EOFError,
        gzip.BadGzipFile,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        raise DataError(
            f"{path} in {files.path} cannot be read ({error}): fetch it again"
        ) from None


def objects(files: common.Files, name: str) -> Iterator[dict[str, Any]]:
    """The JSON object of every line; DataError with the line's number where it is not JSON."""
    for number, line in enumerate(lines(files, name), 1):
        try:
            if line:
                yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name} line {number} is not JSON ({error.msg}): fetch the file again"
            ) from None


def paired(files: common.Files, texts: str, labels: str) -> Iterator[tuple[int, str, str]]:
    """(number, text, line of labels) of the documents in two files.

    A first line "documents labels" of a file of label numbers is skipped. DataError where one of
    the files has more lines.
    """
    end = object()
    right = lines(files, labels)
    first = next(right, end)
    if first is not end and not _is_header(files, texts, labels, first):
        right = itertools.chain([first], right)
    for number, text in enumerate(lines(files, texts)):
        if (line := next(right, end)) is end:
            raise DataError(
                f"{labels} ends after {number} documents and {texts} goes on: the files are of"
                " different releases"
            )
        yield number, text, line
    if next(right, end) is not end:
        raise DataError(f"{texts} ends and {labels} goes on: the files are of different releases")


def _is_header(files: common.Files, texts: str, labels: str, line: str) -> bool:
    """Whether a line of label numbers is "documents labels" rather than a document with two labels.

    It is if its first number is that of the lines of the text file.
    """
    cells = line.split()
    if len(cells) != 2 or not all(map(str.isdigit, cells)) or not labels.startswith("Y."):
        return False
    return sum(1 for _ in lines(files, texts)) == int(cells[0])


def clean(text: str) -> str:
    """A raw text with a line break in place of the mark between title and content."""
    return "\n".join(part.strip() for part in text.split(SEPARATOR))


def numbers(line: str) -> list[int]:
    """Label numbers of "3 17", "3,17" or "3:1.0 17:1.0"; DataError for anything else."""
    try:
        return [int(cell.split(":")[0]) for cell in line.replace(",", " ").split()]
    except ValueError:
        raise DataError(
            f"{line[:60]!r} is not a list of label numbers: Y.trn.txt and Y.tst.txt hold numbers,"
            " train_labels.txt holds names"
        ) from None


def text_rows(files: common.Files) -> Iterator[Row]:
    """Documents of the raw-text form, labels as names."""
    for split, texts, labels in (("train", *TEXT_FILES[:2]), ("test", *TEXT_FILES[2:])):
        for number, text, names in paired(files, texts, labels):
            yield Row(f"{split}-{number}", clean(text), split, names.split())


def numbered_rows(files: common.Files) -> Iterator[Row]:
    """Documents of the numbered form, labels as columns."""
    for split, texts, labels in (("train", *NUMBERED_FILES[:2]), ("test", *NUMBERED_FILES[2:])):
        for number, text, line in paired(files, texts, labels):
            yield Row(f"{split}-{number}", clean(text), split, numbers(line))


def json_rows(files: common.Files) -> Iterator[Row]:
    """Documents of the JSON form, labels as columns; a relevance of 0 means no label."""
    for split, name in (("train", JSON_FILES[0]), ("test", JSON_FILES[1])):
        for number, row in enumerate(objects(files, name)):
            lost = [key for key in ("title", "content", "target_ind") if key not in row]
            if lost:
                raise DataError(
                    f"{name} line {number + 1} lacks {lost}, it has {sorted(row)}: take the raw"
                    f" text of {PAGE}"
                )
            weight = row.get("target_rel") or [1.0] * len(row["target_ind"])
            labels = [i for i, w in zip(row["target_ind"], weight, strict=True) if w > 0]
            text = "\n".join(part for part in (row["title"], row["content"]) if part)
            uid = f"-{row['uid']}" if row.get("uid") else ""
            yield Row(f"{split}-{number}{uid}", text, split, labels)


def named_labels(files: common.Files) -> tuple[list[str], None]:
    """The sorted names of both label files."""
    names: set[str] = set()
    for file in (TEXT_FILES[1], TEXT_FILES[3]):
        for line in lines(files, file):
            names.update(line.split())
    return sorted(names), None


def numbered_labels(files: common.Files) -> tuple[list[str], list[str | None] | None]:
    """(names, texts) by line of the label file; without it the numbers up to the largest."""
    file = next((name for name in LABEL_FILES if located(files, name)), None)
    if file:
        texts = list(lines(files, file))
        return unique(texts), texts
    largest = max((max(row.labels, default=-1) for row in numbered_rows(files)), default=-1)
    return [str(i) for i in range(largest + 1)], None


def json_labels(files: common.Files) -> tuple[list[str], list[str | None]]:
    """(names, texts): uid and title of each line of lbl.json, its number where it has no uid."""
    table = [
        (str(row.get("uid") or i), row.get("title") or None)
        for i, row in enumerate(objects(files, JSON_FILES[2]))
    ]
    return unique([name for name, _ in table]), [text for _, text in table]


def unique(names: list[str]) -> list[str]:
    """The names; empty ones and those that occurred before get their number added."""
    seen: set[str] = set()
    distinct = []
    for i, name in enumerate(names):
        distinct.append(f"{name} #{i}" if name in seen or not name else name)
        seen.add(name)
    return distinct


FORMS = (
    (TEXT_FILES, text_rows, named_labels),
    (NUMBERED_FILES, numbered_rows, numbered_labels),
    (JSON_FILES, json_rows, json_labels),
)


def build(out: Path, source: Path | None = None, *, dataset: str = "eurlex-4k") -> Path:
    """Write the corpus folder `out` of `dataset` from `source`; a few minutes for Amazon-3M.

    Args:
        out: the folder to write.
        source: the archive or folder; it must be given, as there is no download.
        dataset: one of DATASETS.

    Raises:
        DataError: an unknown data set, no `source`, or files that cannot be read.
    """
    if dataset not in DATASETS:
        raise DataError(f"dataset={dataset!r}: wanted one of {', '.join(DATASETS)}")
    forms = " or ".join(f"{', '.join(names)}" for names, _, _ in FORMS)
    advice = (
        f"{DATASETS[dataset]} is fetched with a browser from {PAGE} (raw text) or {RAW}; pass its"
        f" archive or folder with --from, or put it into $PLANT_DATA/{dataset}. Its files are"
        f" {forms} (plain or .gz)"
    )
    if source is None:
        raise DataError(f"no public origin without a browser: {advice}")
    origin = common.Files(source)
    with unpacked(origin) as files:
        return _write(files, origin, out, dataset, advice)


@contextmanager
def unpacked(files: common.Files) -> Iterator[common.Files]:
    """The files; a tar is unpacked first, as reading two of its members line by line is slow."""
    if not isinstance(files.archive, tarfile.TarFile):
        yield files
        return
    with tempfile.TemporaryDirectory() as folder:
        files.archive.extractall(folder, filter="data")
        yield common.Files(folder)


def _write(files: common.Files, origin: common.Files, out: Path, dataset: str, advice: str) -> Path:
    """Write the corpus folder; `files` are those of `origin`, unpacked."""
    from tqdm.auto import tqdm

    # which form the files have
    form = next((f for f in FORMS if all(located(files, name) for name in f[0])), None)
    if form is None:
        raise DataError(f"{origin.path} holds {files.names[:8]}: {advice}")
    needed, rows, labels = form
    # labels, and the files the manifest names
    names, texts = labels(files)
    column = {name: i for i, name in enumerate(names)} if rows is text_rows else None
    extra = [name for name in LABEL_FILES if rows is numbered_rows and located(files, name)]
    sums = origin.sums(*(located(files, name) for name in (*needed, *extra)))
    manifest = common.manifest(
        PAGE,
        "as stated on the repository's page; research use",
        sums,
        f"form: {', '.join(needed)}; official split, no dev",
        language="en",
    )
    # the documents, one at a time
    with CorpusWriter(out, dataset, names, manifest, texts) as writer:
        for row in tqdm(rows(files), desc=dataset, unit="doc", delay=5):
            columns = row.labels if column is None else [column[name] for name in row.labels]
            writer.add(row.id, row.text, row.split, columns)
    return Path(out)


def name_of(dataset: str) -> str:
    """The corpus has the name of the data set."""
    return dataset


OPTIONS = {"--dataset": {"default": "eurlex-4k", "choices": list(DATASETS)}}

if __name__ == "__main__":
    sys.exit(common.cli(__doc__, name_of, build, OPTIONS))
