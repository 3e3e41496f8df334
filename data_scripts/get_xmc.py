"""EURLEX-4K, WIKI10-31K, AmazonCat-13K, Amazon-670K and Amazon-3M of the extreme classification
repository, from local files.

Origin: http://manikvarma.org/downloads/XC/XMLRepository.html (Bhatia et al. 2016); the files lie on
a drive that asks for a browser, so there is no download here: --from takes the archive (.zip,
.tar.gz) or its folder. Three forms, plain or .gz:
    train_raw_texts.txt train_labels.txt test_raw_texts.txt test_labels.txt   a document a line;
    label names between blanks
    X.trn.txt Y.trn.txt X.tst.txt Y.tst.txt (and output-items.txt)            a document a line;
    label numbers
    trn.json tst.json lbl.json                                                uid, title, content,
    target_ind, target_rel a line
Official split, no dev (use Corpus.with_dev). Title and content are parted by a line break; else
texts stay as they are. Documents pass one by one: Amazon-3M takes the memory of its label names,
not of its text.
"""

from __future__ import annotations

import gzip
import io
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
    """A document as its files state it: id, text, split and what stands for its labels (names or
    numbers).
    """

    id: str
    text: str
    split: str
    labels: list


def located(files: common.Files, name: str) -> str | None:
    """`name` or `name`.gz inside the files."""
    return files.find(name) or files.find(f"{name}.gz")


@contextmanager
def opened(files: common.Files, name: str) -> Iterator[IO[str]]:
    """One file as UTF-8 lines, unpacked on the way; no whole file is ever held."""
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
    """The lines of a file without their ends; DataError for a file that is not UTF-8 or damaged."""
    found = located(files, name)
    if found is None:
        raise DataError(
            f"{files.path} lacks {name} or {name}.gz; it holds {len(files.names)} files, first"
            f" {files.names[:5]}"
        )
    try:
        with opened(files, found) as text:
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
            f"{found} in {files.path} cannot be read ({error}): fetch it again"
        ) from None


def objects(files: common.Files, name: str) -> Iterator[dict[str, Any]]:
    """The JSON object of every line; DataError with the line's number for a line that is none."""
    for number, line in enumerate(lines(files, name), 1):
        try:
            if line:
                yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name} line {number} is not JSON ({error.msg}): fetch the file again"
            ) from None


def paired(files: common.Files, texts: str, labels: str) -> Iterator[tuple[int, str, str]]:
    """(number, text, label line) of two files of as many lines; a first label line "documents
    labels" is left out.
    """
    end = object()
    left, right = lines(files, texts), lines(files, labels)
    first = next(right, end)
    header = first.split() if isinstance(first, str) else []
    count = (
        int(header[0])
        if len(header) == 2 and all(h.isdigit() for h in header) and labels.startswith("Y.")
        else None
    )
    if count is not None and not _is_header(files, texts, count):
        count = None
    if count is None:
        right = _chain(first, right, end)
    for number, text in enumerate(left):
        if (line := next(right, end)) is end:
            raise DataError(
                f"{labels} ends after {number} documents and {texts} goes on: the files are of"
                " different releases"
            )
        yield number, text, line
    if next(right, end) is not end:
        raise DataError(f"{texts} ends and {labels} goes on: the files are of different releases")


def _is_header(files: common.Files, texts: str, count: int) -> bool:
    """Does the text file have `count` lines? Two numbers may also be a document's labels."""
    return sum(1 for _ in lines(files, texts)) == count


def _chain(first, rest, end) -> Iterator[str]:
    if first is not end:
        yield first
        yield from rest


def clean(text: str) -> str:
    """A raw text with the mark between title and content turned into a line break."""
    return "\n".join(part.strip() for part in text.split(SEPARATOR))


def numbers(line: str) -> list[int]:
    """Label numbers of "3 17", "3,17" or "3:1.0 17:1.0"; DataError for anything else."""
    try:
        return [int(cell.split(":")[0]) for cell in line.replace(",", " ").split()]
    except ValueError:
        raise DataError(
            f"{line[:60]!r} is no list of label numbers: Y.trn.txt and Y.tst.txt hold numbers,"
            " train_labels.txt names"
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
    """Documents of the jsonl form, labels as columns; a relevance of 0 is no label."""
    for split, name in (("train", JSON_FILES[0]), ("test", JSON_FILES[1])):
        for number, row in enumerate(objects(files, name)):
            lost = [key for key in ("title", "content", "target_ind") if key not in row]
            if lost:
                raise DataError(
                    f"{name} line {number + 1} lacks {lost}, it has {sorted(row)}: wanted {PAGE}'s"
                    " raw text"
                )
            weight = row.get("target_rel") or [1.0] * len(row["target_ind"])
            labels = [i for i, w in zip(row["target_ind"], weight, strict=True) if w > 0]
            text = "\n".join(part for part in (row["title"], row["content"]) if part)
            yield Row(
                f"{split}-{number}" + (f"-{row['uid']}" if row.get("uid") else ""),
                text,
                split,
                labels,
            )


def named_labels(files: common.Files) -> tuple[list[str], None]:
    """The sorted names of both label files."""
    return (
        sorted(
            {
                name
                for f in (TEXT_FILES[1], TEXT_FILES[3])
                for line in lines(files, f)
                for name in line.split()
            }
        ),
        None,
    )


def numbered_labels(files: common.Files) -> tuple[list[str], list[str | None] | None]:
    """Names by line of the label file when there is one, else the numbers up to the largest."""
    found = next((name for name in LABEL_FILES if located(files, name)), None)
    if found:
        texts = list(lines(files, found))
        return unique(texts), texts
    largest = max((max(row.labels, default=-1) for row in numbered_rows(files)), default=-1)
    return [str(i) for i in range(largest + 1)], None


def json_labels(files: common.Files) -> tuple[list[str], list[str | None]]:
    """uid and title of lbl.json's lines; the line's number where there is no uid."""
    table = [
        (str(row.get("uid") or i), row.get("title") or None)
        for i, row in enumerate(objects(files, JSON_FILES[2]))
    ]
    return unique([name for name, _ in table]), [text for _, text in table]


def unique(names: list[str]) -> list[str]:
    """The names, those seen before with their line's number behind them."""
    seen: set[str] = set()
    out = []
    for i, name in enumerate(names):
        out.append(f"{name} #{i}" if name in seen or not name else name)
        seen.add(name)
    return out


FORMS = (
    (TEXT_FILES, text_rows, named_labels),
    (NUMBERED_FILES, numbered_rows, numbered_labels),
    (JSON_FILES, json_rows, json_labels),
)


def build(out: Path, source: Path | None = None, *, dataset: str = "eurlex-4k") -> Path:
    """Write the corpus folder `out` of `dataset` from `source`; some minutes for Amazon-3M, with a
    bar.
    """
    if dataset not in DATASETS:
        raise DataError(f"dataset={dataset!r}: wanted one of {', '.join(DATASETS)}")
    wanted = " or ".join(f"{', '.join(names)}" for names, _, _ in FORMS)
    advice = (
        f"{DATASETS[dataset]} is fetched with a browser from {PAGE} (raw text) or {RAW}; pass its"
        f" archive or folder with --from, or lay it under $PLANT_DATA/{dataset}. Wanted are"
        f" {wanted} (plain or .gz)"
    )
    if source is None:
        raise DataError(f"no public origin without a browser: {advice}")
    given = common.Files(source)
    with unpacked(given) as files:
        return _write(files, given, out, dataset, advice)


@contextmanager
def unpacked(files: common.Files) -> Iterator[common.Files]:
    """The files; a tar is unpacked first, since two of its members read in turns would be a seek a
    line.
    """
    if not isinstance(files.archive, tarfile.TarFile):
        yield files
        return
    with tempfile.TemporaryDirectory() as folder:
        files.archive.extractall(folder, filter="data")
        yield common.Files(folder)


def _write(files: common.Files, given: common.Files, out: Path, dataset: str, advice: str) -> Path:
    """The corpus folder from the files, in whichever form they are; its manifest names those that
    were `given`.
    """
    from tqdm.auto import tqdm

    form = next(
        ((n, rows, labels) for n, rows, labels in FORMS if all(located(files, name) for name in n)),
        None,
    )
    if form is None:
        raise DataError(f"{given.path} holds {files.names[:8]}: {advice}")
    wanted_files, rows, labels = form
    names, texts = labels(files)
    column = {name: i for i, name in enumerate(names)} if rows is text_rows else None
    extra = [name for name in LABEL_FILES if rows is numbered_rows and located(files, name)]
    sums = given.sums(*(located(files, name) for name in (*wanted_files, *extra)))
    manifest = common.manifest(
        PAGE,
        "as stated on the repository's page; research use",
        sums,
        f"form: {', '.join(wanted_files)}; official split, no dev",
        language="en",
    )
    with CorpusWriter(out, dataset, names, manifest, texts) as writer:
        for row in tqdm(rows(files), desc=dataset, unit="doc", delay=5):
            writer.add(
                row.id,
                row.text,
                row.split,
                row.labels if column is None else [column[name] for name in row.labels],
            )
    return Path(out)


def name_of(dataset: str) -> str:
    """The corpus is called as the data set."""
    return dataset


if __name__ == "__main__":
    sys.exit(
        common.cli(
            __doc__,
            name_of,
            build,
            {"--dataset": {"default": "eurlex-4k", "choices": list(DATASETS)}},
        )
    )
