"""Reads a user's table (frame, delimited text, parquet) and names every oddity in it.

A table that cannot be used raises DataError with what was got, what was wanted and the fix. What
can be mended is mended and counted in one warning. Messages hold ids and counts, never texts.
`Corpus.from_pandas` and its relatives build on this; the known public corpora are read by
data_scripts/. Pickles are never read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plantlib.utils.base import SPLITS, DataError, hash_order
from plantlib.utils.io import sha256

if TYPE_CHECKING:
    import pandas as pd


SPLIT_NAMES = {**{s: s for s in SPLITS}, "valid": "dev", "validation": "dev", "val": "dev"}
ENCODINGS = ("cp1252", "latin-1", "utf-16")
SEPARATORS = {";": "a semicolon", ",": "a comma", "|": "a bar", "\t": "a tab", " ": "a space"}


def _readable(path: Path) -> None:
    if not path.is_file():
        raise DataError(
            f"no file {path} (working folder {Path.cwd()}): give the path of an existing file"
        )
    if path.stat().st_size == 0:
        raise DataError(
            f"{path} is empty (0 bytes): wanted a header line and one line per document"
        )


def read_csv(path: Path, encoding: str = "utf-8", delimiter: str = ",") -> pd.DataFrame:
    """A delimited text file with a header line as a frame of str cells.

    Raises:
        DataError: the file is missing or empty, does not decode (the byte offset is named), or has
            rows that do not fit the header.
    """
    import pandas as pd

    # decode
    _readable(path)
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        others = ", ".join(repr(e) for e in ENCODINGS if e != encoding)
        raise DataError(
            f"{path} is not {encoding.removesuffix('-sig')}: byte {error.start} does not decode; "
            f"try encoding= one of {others}, or save the file as UTF-8"
        ) from None
    except LookupError:
        raise DataError(
            f"unknown encoding {encoding!r}: try 'utf-8' or one of {', '.join(ENCODINGS)}"
        ) from None
    # parse
    try:
        frame = pd.read_csv(io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise DataError(
            f"{path} holds no header: wanted a header line and one line per document"
        ) from None
    except pd.errors.ParserError as error:
        # the parser's message counts fields and lines and quotes no cell
        raise DataError(
            f"{path} does not parse with delimiter {delimiter!r} ({str(error).strip()}): quote the"
            " cells that hold the delimiter, or name another delimiter="
        ) from None
    # pandas silently takes the first cells of longer rows as an index, and every column shifts
    if len(frame) and not isinstance(frame.index, pd.RangeIndex):
        width = frame.shape[1]
        raise DataError(
            f"{path}: the first row has more cells than the header, {width + frame.index.nlevels}"
            f" to {width}, with delimiter {delimiter!r}: quote the cells that hold the delimiter,"
            " or name another delimiter="
        )
    return frame


def read_parquet(path: Path) -> pd.DataFrame:
    """A parquet file as a frame; DataError if it is not parquet."""
    import pandas as pd

    _readable(path)
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} does not read as parquet ({type(error).__name__}): write it again, "
            "or use Corpus.from_csv for delimited text"
        ) from None


def documents(
    frame: pd.DataFrame,
    text: str,
    labels: str,
    *,
    sep: str | None,
    split: str | None,
    id: str | None,
    test_fraction: float | None = 0.2,
    seed: int = 0,
    path: Path | None = None,
    to_train: bool = True,
) -> tuple[list[str], list[str], list[list[str]], list[str], dict[str, Any]]:
    """What `Corpus.from_lists` needs, from a table with one row per document.

    Args:
        frame: the table.
        text, labels, split, id: column names; without `id` the rows are numbered.
        sep: separator of the labels in a string cell; None takes the cell as one label.
        test_fraction: share of test where there is no column `split`; None puts every document in
            test.
        seed: of the hash of the text that draws the split.
        path: the file, for the manifest.
        to_train: False for a table that a model is measured on: train may be empty, and labels
            that are never in train are not counted.

    Returns:
        ids, texts, label names and split of each document, and the manifest.

    Raises:
        DataError: the table cannot be used.
    """
    # cells: documents without text are dropped
    _check_columns(frame, {"text": text, "labels": labels, "split": split, "id": id})
    ids, keep = _ids(frame, id), _texts(frame, text)
    ids = [i for i, k in zip(ids, keep, strict=True) if k]
    frame = frame[keep]
    texts = frame[text].tolist()
    names = _labels(frame[labels].tolist(), labels, sep)
    # split: given, drawn, or all in test
    drawn = not split and test_fraction is not None
    if drawn:
        splits = _hashed_split(texts, test_fraction, seed)
    else:
        splits = _split(frame, split) if split else ["test"] * len(texts)
    if to_train and "train" not in splits:
        raise DataError(
            f"no document is in train (splits found: {sorted(set(splits))}): mark some rows"
            " 'train', or pass split=None to draw a split"
        )
    # manifest
    notes = _count_oddities(names, splits, to_train)
    if not keep.all():
        notes.append(f"{int((~keep).sum())} documents without text dropped")
    if drawn:
        notes.append(f"split: test_fraction {test_fraction} by hash of the text, seed {seed}")
    manifest = {
        "origin": path.name if path else "a frame in memory",
        "licence": "not stated",
        "sources": {path.name: sha256(path)} if path else {},
        "notes": notes,
    }
    return ids, texts, names, splits, manifest


def _warn(message: str) -> None:
    # six frames up is the caller of Corpus.from_pandas, from_csv or from_parquet
    warnings.warn(message, UserWarning, stacklevel=6)


def _check_columns(frame: pd.DataFrame, roles: dict[str, str | None]) -> None:
    columns = [str(column) for column in frame.columns]
    for role, column in roles.items():
        if column is None or column in frame.columns:
            continue
        hint = ""
        if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
            hint = "; the header looks uncut, so name the delimiter= as well"
        raise DataError(
            f"no column {column!r} for {role}; the columns are {columns}: pass {role}=<one of"
            f" them>{hint}"
        )
    if not len(frame):
        raise DataError("the table has a header but no rows: wanted one row per document")


def missing(value: Any) -> bool:
    """Whether a cell is None, NaN, NA or a blank string."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def _texts(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(rows,) bool: whether a row has a text; one warning counts the others."""
    values = frame[column].tolist()
    keep = np.array([not missing(value) for value in values], dtype=bool)
    if not keep.any():
        raise DataError(
            f"column {column!r} has no text in any of its {len(values)} rows: pass text=<the text"
            " column>"
        )
    odd = next((v for v, k in zip(values, keep, strict=True) if k and not isinstance(v, str)), None)
    if odd is not None:
        raise DataError(
            f"column {column!r} holds {type(odd).__name__}, wanted str: pass text=<the text column>"
        )
    if not keep.all():
        _warn(f"{int((~keep).sum())} of {len(values)} documents have no text and were dropped")
    return keep


def _ids(frame: pd.DataFrame, column: str | None) -> list[str]:
    if column is None:
        return [str(row) for row in range(len(frame))]
    values = frame[column].tolist()
    rows = [row for row, value in enumerate(values) if missing(value)]
    if rows:
        raise DataError(
            f"column {column!r} lacks an id in {len(rows)} rows, first row {rows[0]}: fill it, or"
            " pass id=None to number the rows"
        )
    ids = [_name(value) for value in values]
    seen: set[str] = set()
    repeated = list(dict.fromkeys(i for i in ids if i in seen or seen.add(i)))
    if repeated:
        raise DataError(
            f"column {column!r} has {len(repeated)} ids more than once, first three {repeated[:3]}:"
            " make them unique, or pass id=None to number the rows"
        )
    return ids


def _name(value: Any) -> str:
    """A label or id as text; 7.0 (an integer column with gaps) is '7'."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def _cut(value: Any, sep: str | None) -> list[str]:
    """The names in one labels cell: trimmed, sorted, without empty ones and repeats."""
    if missing(value):
        return []
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        parts = [_name(v) for v in value if not missing(v)]
    else:
        parts = [part.strip() for part in _name(value).split(sep)] if sep else [_name(value)]
    return sorted({part for part in parts if part})


def _labels(cells: Sequence[Any], column: str, sep: str | None) -> list[list[str]]:
    if sep == "":
        raise DataError(
            "sep='' cuts nothing: pass the separator of the labels, such as ';', or None for one"
            " label"
        )
    strings = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    other = _evident_separator(strings, sep)
    if other:
        _warn(
            f"labels separator {sep!r} never occurs in column {column!r}, but {SEPARATORS[other]}"
            f" does: each cell is taken as one label; pass sep={other!r} if it is the separator"
        )
    names = [_cut(cell, sep) for cell in cells]
    if not any(names):
        raise DataError(
            f"column {column!r} has no label in any of its {len(names)} rows: "
            "pass labels=<the label column>"
        )
    return names


def _evident_separator(cells: list[str], sep: str | None) -> str | None:
    """A separator that evidently cuts `cells` although `sep` never occurs in them, or None.

    It occurs in a fifth of the cells at least, and the parts it makes recur.
    """
    if not cells or (sep and any(sep in cell for cell in cells)):
        return None
    for other in SEPARATORS:
        cut = [cell.split(other) for cell in cells if other in cell.strip()]
        parts = [part.strip() for cell in cut for part in cell]
        if (
            len(cut) >= max(2, len(cells) / 5)
            and len(set(parts)) <= len(parts) * 0.8
            and len(cut) > len(parts) / 20
        ):
            return other
    return None


def _split(frame: pd.DataFrame, column: str) -> list[str]:
    values = [_name(v).lower() if not missing(v) else "" for v in frame[column].tolist()]
    unknown = sorted({value for value in values if value not in SPLIT_NAMES})
    if unknown:
        raise DataError(
            f"column {column!r} has unknown splits {unknown[:5]}: wanted {', '.join(SPLIT_NAMES)}"
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
    """Notes, also given as warnings, on documents without labels and labels never in train.

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
        notes.append(f"{len(unseen)} labels are never in train; seen_in_train() drops them")
    for note in notes:
        _warn(note)
    return notes
