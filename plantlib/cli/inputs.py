"""What the commands of `plant` read: a table, a corpus, documents, or standard input.

Messages of the library name options as Python does; `in_shell` says them as the shell does.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plantlib.utils.base import DataError

if TYPE_CHECKING:
    from plantlib.data.corpus import Corpus

# options of the commands that have the same name in Python
READING = ("text", "labels", "labels_format", "sep", "split", "id", "encoding", "delimiter")
SAME = (
    *READING,
    "evidence",
    "start",
    "backbone",
    "epochs",
    "seed",
    "batch",
    "rule",
    "by",
    "recall",
    "report_to",
)
SHELL = {name: "--" + name.replace("_", "-") for name in SAME}
SHELL |= {"k": "-k", "max_tokens": "--tokens", "root": "--artefacts"}


def in_shell(message: str, options: Mapping[str, str] = SHELL) -> str:
    """A message of the library in the words of the shell: `sep=';'` becomes `--sep ';'`.

    options: the shell's word for each name of Python.
    """
    names = re.compile(rf"(?<![\w.-])({'|'.join(options)})=(?=(\S)?)")
    message = names.sub(lambda match: options[match[1]] + (" " if match[2] else ""), message)
    # the scripts that build corpora call it so; `plant data` runs them
    return re.sub(r"(?<!\.py )--from\b", "plant data's --source", message)


def corpus_of(options: Namespace, **reading):
    """The corpus that `options.corpus` names: a table, a known name or a saved folder.

    reading: options of `corpus_of_table` that differ from those of `plant fit`.
    """
    from plantlib.data import files
    from plantlib.data.corpus import Corpus, corpus_of_table

    path = Path(options.corpus)
    if not is_table(options.corpus):
        if path.is_file():
            files.check_kind(path)
            raise DataError(f"{path} is a file of another kind: {files.WANTED}")
        if getattr(options, "evidence", None):
            raise DataError(
                f"--evidence {options.evidence}: {options.corpus} is a saved corpus, which has its"
                " own evidence; leave --evidence out, or give a table"
            )
        return Corpus.load(options.corpus)
    names = ("sep", "split", "id", "labels_format", "credentialed")
    columns = {name: getattr(options, name) for name in names}
    frame = files.read_table(path, options.encoding, options.delimiter)
    columns["evidence"] = getattr(options, "evidence", None)
    return corpus_of_table(frame, options.text, options.labels, path=path, **columns, **reading)


def is_table(name: str) -> bool:
    """Whether an argument names a table and not a corpus."""
    from plantlib.data import files

    path = Path(name)
    return not path.is_dir() and (files.is_table(path) or path.suffix.lower() in files.OTHERS)


def documents_of(options: Namespace) -> tuple[list[str], list[str]]:
    """(ids, texts) of the input of `plant predict`; notes say what was left out.

    The id of a line is its number from 1, that of a file its name, that of a table's row its number
    from 0 or the column of --id.

    Raises:
        DataError: the input holds no document, or cannot be read.
    """
    source, path = options.documents, Path(options.documents)
    if source == "-":
        rows = _lines(read_document("-", options.encoding), "standard input", options.text)
    elif path.is_dir():
        rows = _folder(path, options.encoding)
    elif is_table(source):
        rows = _rows(path, options)
    else:
        rows = _lines(read_document(source, options.encoding), source, options.text)
    documents = [(name, text) for name, text in rows if text.strip()]
    if not documents:
        fix = "give one per line, a folder of .txt files or a table"
        raise DataError(f"{source} holds no document: {fix}")
    blank = len(rows) - len(documents)
    if blank:
        note(f"{blank} of {len(rows)} documents are blank and were left out")
    return [name for name, _ in documents], [text for _, text in documents]


def note(message: str) -> None:
    """A note on stderr."""
    from plantlib.utils.terminal import printable

    print(f"plant: note: {printable(message)}", file=sys.stderr)


def read_document(source: str, encoding: str = "utf-8") -> str:
    """The text of a file, or of standard input for "-"; DataError for bytes of no such text."""
    from plantlib.data import files

    if source != "-":
        files.check_kind(Path(source), "documents are plain text")
        if files.is_table(Path(source)):
            raise DataError(f"{source} is a table: give the text of one document as .txt")
        return files.read_text(Path(source), encoding)
    data = getattr(sys.stdin, "buffer", None)
    # a replaced standard input, as in tests, may hold text
    return files.decode(data.read(), encoding, "standard input") if data else sys.stdin.read()


def _lines(text: str, name: str, column: str) -> list[tuple[str, str]]:
    """(number, line) of each line; DataError for lines of a table, with `column` in its header."""
    _check_no_json(text, name)
    end = "\n" if "\n" in text else "\r"
    lines = [line.rstrip("\r") for line in text.removesuffix(end).split(end)]
    if any(column in lines[0].split(mark) for mark in ",;|\t" if mark in lines[0]):
        raise DataError(
            f"{name} begins with the header of a table, which would be read as text: save it as"
            " .csv or .tsv"
        )
    odd = [number for number, line in enumerate(lines, 1) if "\r" in line]
    if odd:
        raise DataError(
            f"{name} holds a carriage return inside {len(odd)} lines, first {odd[:5]}, which may"
            " end a document or stand in one: end all lines alike"
        )
    return [(str(number), line) for number, line in enumerate(lines, 1)]


def _check_no_json(text: str, name: str) -> None:
    from plantlib.data import files

    if files.holds_json_lines(text):
        raise DataError(
            f"{name} holds JSON, which would be read as text: save it as .jsonl, one object per"
            " line, and name its key of texts with --text"
        )


def _folder(folder: Path, encoding: str) -> list[tuple[str, str]]:
    """(name, text) of each .txt file; a note says which files were read and which were not.

    Hidden files, such as those that macOS writes beside each file, are left out.
    """
    entries = sorted(folder.iterdir())
    chosen = [path for path in entries if path.is_file() and path.suffix.lower() == ".txt"]
    chosen = [path for path in chosen if not path.name.startswith(".")]
    others = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    others = [name for name in others if name not in {path.name for path in chosen}]
    left = f"; left out: {_listed(others)}" if others else ""
    if not chosen:
        raise DataError(f"{folder} holds no document: wanted .txt files{left}")
    note(f"{folder}: {len(chosen)} .txt files read, {_listed([p.name for p in chosen])}{left}")
    return [(path.name, _text_of(path, encoding)) for path in chosen]


def _text_of(path: Path, encoding: str) -> str:
    """The text of a file; an empty one is blank."""
    text = read_document(str(path), encoding) if path.stat().st_size else ""
    _check_no_json(text, str(path))
    return text


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _rows(path: Path, options: Namespace) -> list[tuple[str, str]]:
    """(id, text) of each row of a table; an empty cell is an empty text."""
    from plantlib.data import files, tables

    frame = files.read_table(path, options.encoding, options.delimiter)
    tables.check_columns(frame, {"text": options.text, "id": options.id})
    numbers = range(len(frame))
    if options.id == options.text:
        raise DataError(f"--id {options.id}: that is the column of texts; name another one")
    ids = tables.ids_of(frame, options.id, numbers) if options.id else [str(i) for i in numbers]
    texts = tables.cells_of_text(frame, options.text)
    if len(set(ids)) < len(ids):
        note(f"{len(ids) - len(set(ids))} rows have an id of an earlier row (--id {options.id})")
    return list(zip(ids, texts, strict=True))


def in_label_space(corpus: Corpus, rows, names: list[str]):
    """Gold labels of n rows in the columns `names`, (n, L) csr, and how many are outside, (n,)."""
    import numpy as np
    from scipy import sparse

    column = {name: i for i, name in enumerate(names)}
    columns = np.array([column.get(name, -1) for name in corpus.label_names], np.int64)
    cells = corpus.labels[rows].tocoo()
    known = columns[cells.col] >= 0
    places = (cells.row[known], columns[cells.col[known]])
    inside = sparse.csr_matrix((cells.data[known], places), shape=(len(rows), len(names)))
    return inside, np.bincount(cells.row[~known], minlength=len(rows))
