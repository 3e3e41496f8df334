"""Turns a user's table into documents, and names every oddity in it.

A table that cannot be used raises DataError with what was got, what was wanted and the fix. What
can be mended is mended and counted in one note. Messages hold row numbers, ids and counts, never
texts. `files.py` reads the file, `label_forms.py` the labels; the known public corpora are read by
data_scripts/.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from plantlib.data import label_forms
from plantlib.data.credentials import MARK
from plantlib.data.evidence import read as read_evidence
from plantlib.data.files import check_columns_once
from plantlib.data.label_forms import name_of
from plantlib.data.zeros_and_ones import missing, of_zeros_and_ones
from plantlib.utils.base import SPLITS, DataError, hash_order
from plantlib.utils.io import sha256
from plantlib.utils.terminal import brief_list

if TYPE_CHECKING:
    import pandas as pd


SPLIT_NAMES = {**{s: s for s in SPLITS}, "valid": "dev", "validation": "dev", "val": "dev"}


class Reading(TypedDict, total=False):
    """How a table is read; each may be left out.

    name: of the corpus; the file's if it is left out.
    sep: separator of the labels in a cell that is a string; None: one label.
    labels_format: "separated", "list", "long" (one row per document and label), "onehot" (columns
        or vectors of 0 and 1) or "columns" (several columns of labels). Left out, a cell is a list,
        a printed list or a string that `sep` cuts; what looks like another form is refused.
    split: column of splits. Without it, a hash of the text draws test; repeated texts stay on one
        side.
    id: column of ids; without it the rows are numbered from 0.
    test_fraction: share of test that is drawn, 0.2 if left out.
    seed: of the hash that draws it.
    credentialed: the corpus, and models trained on it, stay in the data folder.
    evidence: table, file or folder of the spans that justify labels; see `evidence.read`.
    """

    name: str | None
    sep: str | None
    labels_format: str | None
    split: str | None
    id: str | None
    test_fraction: float
    seed: int
    credentialed: bool
    evidence: str | Path | pd.DataFrame | None


@dataclass(frozen=True)
class Documents:
    """What `Corpus.from_lists` needs, one entry per document, and notes for the user.

    ids, texts, names, split: of each document; names are its labels.
    manifest: of the corpus; its notes include `notes`.
    notes: what was mended or is doubtful.
    evidence: marked spans, or None.
    """

    ids: list[str]
    texts: list[str]
    names: list[list[str]]
    split: list[str]
    manifest: dict[str, Any]
    notes: list[str]
    evidence: pd.DataFrame | None = None


def documents(
    frame: pd.DataFrame,
    text: str,
    labels: str | Sequence[str],
    *,
    sep: str | None = None,
    split: str | None = None,
    id: str | None = None,
    labels_format: str | None = None,
    test_fraction: float | None = 0.2,
    seed: int = 0,
    path: Path | None = None,
    to_train: bool = True,
    credentialed: bool = False,
    evidence: str | Path | pd.DataFrame | None = None,
) -> Documents:
    """The documents of a table.

    Args:
        frame: the table.
        text, split, id: column names; without `id` the rows are numbered from 0.
        labels: the column of labels; several for the forms onehot and columns
            (`label_forms.columns_named`).
        sep: separator of the labels in a string cell; None takes the cell as one label.
        labels_format: one of `label_forms.FORMS`; None takes one row per document with its labels
            in one cell, and refuses what looks like another form.
        test_fraction: share of test where there is no column `split`; None puts every document in
            test.
        seed: of the hash of the text that draws the split.
        path: the file, for the manifest.
        to_train: False for a table that a model is measured on: train may be empty, and labels
            that are never in train are not counted.
        credentialed: whether the manifest is marked as such.
        evidence: spans that justify labels, as `evidence.read` takes them.

    Raises:
        DataError: the table cannot be used.
    """
    # columns, and labels of the rows with a text
    label_forms.check_form(labels_format, sep)
    frame, columns = _checked(frame, text, labels, split, id, labels_format)
    cells_of_text(frame, text)
    if labels_format == "long" and id is None:
        _check_texts_join(frame, text)
    keep, notes = _texts(frame, text, all_rows=labels_format == "long" and id is not None)
    rows = np.flatnonzero(keep).tolist()
    frame = frame.iloc[rows]
    splits = _split(frame, split) if split else None
    names, of_labels = _labels(frame, labels, columns, sep, labels_format, rows)
    notes += of_labels
    # one entry per document
    texts = cells_of_text(frame, text)
    if labels_format == "long":
        first, texts, names, splits = _joined(frame, id, rows, texts, names, splits, notes)
        ids = [name_of(frame[id].iloc[i]) if id else str(rows[i]) for i in first]
        notes.append(f"{len(rows)} rows of single labels joined into {len(ids)} documents")
    else:
        ids = _ids(frame, id, rows)
        if labels_format is None and id is None:
            notes += _repeated(texts, names)
    _check_encodes({"text": texts, "id": ids, "labels": [" ".join(row) for row in names]}, rows)
    # split: given, drawn, or all in test
    drawn = splits is None and test_fraction is not None
    if drawn:
        splits = _hashed_split(texts, test_fraction, seed)
    splits = splits or ["test"] * len(texts)
    if to_train and "train" not in splits:
        raise DataError(
            f"no document is in train (splits found: {sorted(set(splits))}): mark some rows"
            " 'train', or leave out split= to draw a split"
        )
    # manifest
    notes += _count_oddities(names, splits, to_train)
    spans = None
    if evidence is not None:
        spans, of_spans = read_evidence(evidence, ids, texts, names)
        notes += of_spans
    of_split = f"split: test_fraction {test_fraction} by hash of the text, seed {seed}"
    manifest = {
        "origin": path.name if path else "a frame in memory",
        "licence": "not stated",
        "sources": {path.name: sha256(path)} if path else {},
        "notes": notes + [of_split] * drawn,
    }
    if credentialed:
        manifest[MARK] = True
    return Documents(ids, texts, names, splits, manifest, notes, spans)


def _checked(
    frame: pd.DataFrame,
    text: str,
    labels: str | Sequence[str],
    split: str | None,
    id: str | None,
    form: str | None,
) -> tuple[pd.DataFrame, list[str]]:
    """The frame, its columns named by str, and the columns of labels; DataError if one is missing.

    Several columns of labels are for the forms onehot and columns alone.
    """
    frame = frame.set_axis([str(column) for column in frame.columns], axis=1)
    check_columns_once(frame.columns, "the table")
    if not len(frame):
        raise DataError("the table has a header but no rows: wanted one row per document")
    roles = {"text": text, "split": split, "id": id}
    several = form in ("onehot", "columns")
    if not several:
        roles = {"text": text, "labels": labels, "split": split, "id": id}
    check_columns(frame, roles)
    others = [c for c in frame.columns if c and c not in (text, split, id)]
    if not several:
        _check_roles(text, {"labels": labels, "split": split, "id": id})
        return frame, [str(labels)]
    columns = label_forms.columns_named(frame, labels)
    if columns is None and form == "onehot" and labels == "labels":
        columns = others
    if columns is None:
        check_columns(frame, {"labels": labels if isinstance(labels, str) else str(list(labels))})
    columns = [column for column in columns or [] if column in others]
    if not columns:
        raise DataError("no column of labels is left: pass labels=<the label columns>")
    return frame, columns


def _check_roles(text: str, roles: dict[str, Any]) -> None:
    for role, column in roles.items():
        if column == text:
            raise DataError(
                f"column {text!r} is given for text and for {role}: pass {role}=<another column>"
            )


def check_columns(frame: pd.DataFrame, roles: dict[str, Any]) -> None:
    """DataError for a role, such as text, whose column is not in the table.

    Column names are shown unless the first line may be a document.
    """
    columns = [str(column) for column in frame.columns]
    for role, column in roles.items():
        if column is None or column in columns:
            continue
        if _looks_like_documents(frame, columns):
            raise DataError(
                f"no column {column!r} for {role}: the first line, of {len(columns)} cells, looks"
                " like a document and not like a header; write a header line first, such as"
                " text,labels"
            )
        raise DataError(
            f"no column {column!r} for {role}; the columns are {brief_list(columns, 20)}: pass"
            f" {role}=<one of them>{_hint(frame, columns, role)}"
            if len(columns) > 1
            else f"no column {column!r} for {role}; the table has one column,"
            f" {brief_list(columns, 20)}: name the delimiter= if it should be several, or pass"
            f" {role}=<that column>"
        )


def _looks_like_documents(frame: pd.DataFrame, columns: list[str]) -> bool:
    """Whether names of columns are cells of a document: long, or found again in their column."""
    return any(len(column) > 60 or len(column.split()) > 5 for column in columns) or any(
        column in frame[column].astype(str).tolist() for column in columns if column.strip()
    )


def _hint(frame: pd.DataFrame, columns: list[str], role: str) -> str:
    """Another form in which the columns may hold labels."""
    if role != "labels":
        return ""
    bits = of_zeros_and_ones(frame, columns)
    if len(bits) > 1:
        return f"; {len(bits)} columns hold 0 and 1: labels_format='onehot' takes them as labels"
    family = _family(columns)
    return f"; labels_format='columns', labels='{family}' reads all of those" if family else ""


def _family(columns: Sequence[str], of: str | None = None) -> str | None:
    """A pattern such as 'code*' for columns that differ by a last number; None without two."""
    stems: dict[str, int] = {}
    for column in columns:
        match = re.fullmatch(r"(.*?[^\d])\d+", column)
        if match:
            stems[match[1]] = stems.get(match[1], 0) + 1
    own = re.fullmatch(r"(.*?[^\d])\d+", of) if of else None
    names = [s for s, n in stems.items() if n > 1 and (of is None or (own and s == own[1]))]
    return f"{names[0]}*" if names else None


def _labels(
    frame: pd.DataFrame,
    labels: str | Sequence[str],
    columns: list[str],
    sep: str | None,
    form: str | None,
    rows: Sequence[int],
) -> tuple[list[list[str]], list[str]]:
    """Names of each row, and notes."""
    notes = []
    reader = label_forms.Reader(columns[0] if len(columns) == 1 else str(labels), sep, form, rows)
    bits = form == "onehot" and (len(columns) > 1 or bool(of_zeros_and_ones(frame, columns)))
    if bits:
        names = reader.one_hot({column: frame[column].tolist() for column in columns})
    elif form == "columns":
        names = reader.columns({column: frame[column].tolist() for column in columns})
    else:
        names = reader.cells(frame[columns[0]].tolist())
        family = _family([str(c) for c in frame.columns], of=columns[0])
        if family and form is None:
            notes.append(
                f"only column {columns[0]!r} is read for labels: labels_format='columns',"
                f" labels='{family}' reads all of its kind"
            )
    if not any(names):
        raise DataError(
            f"column {str(labels)!r} has no label in any of its {len(names)} rows: "
            "pass labels=<the label column>"
        )
    return names, notes + reader.notes


def _texts(frame: pd.DataFrame, column: str, all_rows: bool) -> tuple[np.ndarray, list[str]]:
    """(rows,) bool: whether a row is kept because it has a text, and a note that counts the others.

    all_rows: keep rows without text, as in the long form, where the text may stand in one row.
    """
    values = frame[column].tolist()
    keep = np.array([not missing(value) for value in values], dtype=bool)
    if not keep.any():
        raise DataError(
            f"column {column!r} has no text in any of its {len(values)} rows: pass text=<the text"
            " column>"
        )
    if keep.all() or all_rows:
        return keep | all_rows, []
    count = int((~keep).sum())
    return keep, [f"{count} of {len(values)} documents have no text and were dropped"]


def _check_texts_join(frame: pd.DataFrame, column: str) -> None:
    """DataError for rows of the long form that neither an id nor a text joins to a document."""
    bare = [row for row, value in enumerate(frame[column].tolist()) if missing(value)]
    if bare and len(bare) < len(frame):
        raise DataError(
            f"column {column!r} has no text in {len(bare)} rows, first {bare[:5]}, so that their"
            " labels belong to no document: pass id=<the column that the rows of a document share>"
        )


def cells_of_text(frame: pd.DataFrame, column: str) -> list[str]:
    """The texts in a column, blank where there is none; DataError for cells that are no text."""
    values = ["" if missing(value) else value for value in frame[column].tolist()]
    odd = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if odd:
        raise DataError(
            f"column {column!r} holds {type(values[odd[0]]).__name__}, wanted str, in {len(odd)}"
            f" rows, first {odd[:5]}: pass text=<the text column>, or write those cells as text"
        )
    return values


def _ids(frame: pd.DataFrame, column: str | None, rows: Sequence[int]) -> list[str]:
    if column is None:
        return [str(row) for row in rows]
    ids = ids_of(frame, column, rows)
    seen: set[str] = set()
    repeated = list(dict.fromkeys(i for i in ids if i in seen or seen.add(i)))
    if repeated:
        raise DataError(
            f"column {column!r} has {len(repeated)} ids more than once, first three"
            f" {brief_list(repeated[:3])}: make them unique; if each row is one label of a"
            " document, pass labels_format='long'; to number the rows, leave out id="
        )
    return ids


def ids_of(frame: pd.DataFrame, column: str, rows: Sequence[int]) -> list[str]:
    """The ids in a column as text; DataError where one is missing or no text or whole number.

    rows: the number of each row in its file.
    """
    values = frame[column].tolist()
    lacking = [row for row, value in zip(rows, values, strict=True) if missing(value)]
    if lacking:
        raise DataError(
            f"column {column!r} lacks an id in {len(lacking)} rows, first row {lacking[0]}: fill"
            " it, or leave out id= to number the rows"
        )
    kinds = (str, int, np.integer, float, np.floating)
    odd = [
        row
        for row, value in zip(rows, values, strict=True)
        if not isinstance(value, kinds) or (isinstance(value, float) and not value.is_integer())
    ]
    if odd:
        raise DataError(
            f"column {column!r} holds other ids than text and whole numbers in {len(odd)} rows,"
            f" first {odd[:5]}: write them as text, or leave out id= to number the rows"
        )
    return [name_of(value) for value in values]


def _joined(
    frame: pd.DataFrame,
    id: str | None,
    rows: Sequence[int],
    texts: list[str],
    names: list[list[str]],
    splits: list[str] | None,
    notes: list[str],
) -> tuple[list[int], list[str], list[list[str]], list[str] | None]:
    """Rows of one id, or of one text, as one document: first rows, texts, labels and splits."""
    groups: dict[str, list[int]] = {}
    for place, key in enumerate(ids_of(frame, id, rows) if id else texts):
        groups.setdefault(key, []).append(place)
    blank = [k for k, g in groups.items() if not any(texts[i].strip() for i in g)]
    if blank:
        notes.append(f"{len(blank)} of {len(groups)} documents have no text and were dropped")
        groups = {k: g for k, g in groups.items() if k not in set(blank)}
    for what, values in (("texts", texts), ("splits", splits)):
        odd = [
            rows[g[0]]
            for g in groups.values()
            if values and len({values[i] for i in g if values[i].strip()}) > 1
        ]
        if odd:
            raise DataError(
                f"{len(odd)} documents have rows with different {what}, first in rows {odd[:5]}:"
                " wanted one for all rows of a document"
            )
    members = list(groups.values())
    return (
        [g[0] for g in members],
        [next(texts[i] for i in g if texts[i].strip()) for g in members],
        [sorted({name for i in g for name in names[i]}) for g in members],
        [splits[g[0]] for g in members] if splits else None,
    )


def _repeated(texts: list[str], names: list[list[str]]) -> list[str]:
    """A note on texts in several rows with different labels; DataError if the table looks long."""
    groups: dict[str, set[tuple[str, ...]]] = {}
    counts: dict[str, int] = {}
    for text, found in zip(texts, names, strict=True):
        groups.setdefault(text, set()).add(tuple(found))
        counts[text] = counts.get(text, 0) + 1
    repeated = [text for text, sets in groups.items() if len(sets) > 1]
    rows = sum(counts[text] for text in repeated)
    if not repeated:
        return []
    single = all(len(found) < 2 for found in names)
    if single and rows >= len(texts) / 5:
        raise DataError(
            f"{rows} of {len(texts)} rows repeat a text with another label: if each row is one"
            " label of a document, pass labels_format='long'; if each is a document, pass"
            " labels_format='separated'"
        )
    return [f"{len(repeated)} texts stand in several rows with different labels"]


def _check_encodes(columns: dict[str, list[str]], rows: Sequence[int]) -> None:
    """DataError for text that no encoding can hold: lone halves of surrogate pairs."""
    for column, values in columns.items():
        odd = [place for place, value in enumerate(values) if not encodes(value)]
        if odd:
            numbers = [rows[place] if len(values) == len(rows) else place for place in odd[:5]]
            raise DataError(
                f"{len(odd)} cells for {column} hold halves of characters that are no text"
                f" (surrogates), first in rows {numbers}: read the file again in its own encoding"
            )


def encodes(text: str) -> bool:
    """Whether text can be written as UTF-8, which tokenizers ask for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(frame: pd.DataFrame, column: str) -> list[str]:
    values = [name_of(v).lower() if not missing(v) else "" for v in frame[column].tolist()]
    unknown = sorted({value for value in values if value not in SPLIT_NAMES})
    if unknown:
        raise DataError(
            f"column {column!r} has unknown splits {brief_list(unknown[:5])}: wanted"
            f" {', '.join(SPLIT_NAMES)}"
        )
    return [SPLIT_NAMES[value] for value in values]


def _hashed_split(texts: list[str], fraction: float, seed: int) -> list[str]:
    """train or test of each text by its hash, so that repeated texts fall on one side."""
    if not 0 <= fraction < 1:
        raise DataError(f"test_fraction={fraction}: wanted 0 or more and below 1")
    distinct = sorted(set(texts))
    order = hash_order(distinct, seed, "test")
    test = {distinct[i] for i in order[: round(fraction * len(distinct))]}
    return ["test" if text in test else "train" for text in texts]


def _count_oddities(names: list[list[str]], split: list[str], to_train: bool) -> list[str]:
    """Notes on documents without labels and labels never in train.

    The second note is for a table to train on only.
    """
    notes = []
    pairs = list(zip(names, split, strict=True))
    bare = sum(not labels and s != "unlabelled" for labels, s in pairs)
    if bare:
        notes.append(f"{bare} of {len(names)} documents have no labels and were kept")
    in_train = {label for labels, s in pairs if s == "train" for label in labels}
    unseen = {label for labels in names for label in labels} - in_train
    if unseen and to_train:
        notes.append(f"{len(unseen)} labels are never in train; fit leaves them out")
    return notes
