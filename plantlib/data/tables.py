"""A user's own table (frame, delimited text, parquet) made into a Corpus, with every oddity named
first.

Nothing is guessed in silence: what cannot be used raises DataError with what was got, what was
wanted and the fix; what can be mended is mended and counted in one warning. Texts never appear in a
message, ids and counts only. The known public corpora are not read here (data_scripts/), and
pickles are never read at all.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plantlib.utils.base import SPLITS, DataError, hash_order

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
        raise DataError(f"{path} is empty (0 bytes): wanted a header line and one line a document")


def read_csv(path: Path, encoding: str = "utf-8", delimiter: str = ",") -> pd.DataFrame:
    """A delimited text file as a frame of str cells; DataError for a wrong encoding (byte offset)
    or rows that do not fit.
    """
    import pandas as pd

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
    try:
        frame = pd.read_csv(io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise DataError(
            f"{path} holds no header: wanted a header line and one line a document"
        ) from None
    except pd.errors.ParserError as error:
        # The parser's own message counts fields and lines and quotes no cell.
        raise DataError(
            f"{path} does not parse with delimiter {delimiter!r} ({str(error).strip()}): quote the"
            " cells that hold the delimiter, or name another delimiter="
        ) from None
    # pandas takes the first cells of longer rows as an index without a word, and every column
    # shifts
    if len(frame) and not isinstance(frame.index, pd.RangeIndex):
        width = frame.shape[1]
        raise DataError(
            f"{path}: the first row has more cells than the header, {width + frame.index.nlevels}"
            f" to {width}, with delimiter {delimiter!r}: quote the cells that hold the delimiter,"
            " or name another delimiter="
        )
    return frame


def read_parquet(path: Path) -> pd.DataFrame:
    """A parquet file as a frame; DataError when it is none."""
    import pandas as pd

    _readable(path)
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} does not read as parquet ({type(error).__name__}): write it again, "
            "or use Corpus.from_csv for delimited text"
        ) from None


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)


def _check_columns(frame: pd.DataFrame, wanted: dict[str, str | None]) -> None:
    have = [str(column) for column in frame.columns]
    for role, column in wanted.items():
        if column is None or column in frame.columns:
            continue
        hint = ""
        if len(have) == 1 and any(mark in have[0] for mark in ";\t|"):
            hint = "; the header looks uncut, so name the delimiter= as well"
        raise DataError(
            f"no column {column!r} for {role}; the columns are {have}: pass {role}=<one of"
            f" them>{hint}"
        )
    if not len(frame):
        raise DataError("the table has a header but no rows: wanted one row a document")


def missing(value: Any) -> bool:
    """None, NaN, NA or a blank string."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def _texts(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Mask of the rows with a text; counts the others in one warning."""
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
    twice = list(dict.fromkeys(i for i in ids if i in seen or seen.add(i)))
    if twice:
        raise DataError(
            f"column {column!r} has {len(twice)} ids more than once, first three {twice[:3]}: make"
            " them unique, or pass id=None to number the rows"
        )
    return ids


def _name(value: Any) -> str:
    """A label or id as text; 7.0 (an integer column with gaps) is '7'."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def _cut(value: Any, sep: str | None) -> list[str]:
    """One labels cell -> names: trimmed, empty ones dropped, repeats collapsed."""
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
    """Another separator that evidently cuts `cells` (a fifth of them, with parts that recur) when
    `sep` never does.
    """
    if not cells or (sep and any(sep in cell for cell in cells)):
        return None
    for other in SEPARATORS:
        cut = [
            [part.strip() for part in cell.split(other)] for cell in cells if other in cell.strip()
        ]
        parts = [part for one in cut for part in one]
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
    """train/test by hash of the text, so that repeated texts fall on one side."""
    if not 0 <= fraction < 1:
        raise DataError(f"test_fraction={fraction}: wanted 0 or more and below 1")
    distinct = sorted(set(texts))
    order = hash_order(distinct, seed, "test")
    test = {distinct[i] for i in order[: round(fraction * len(distinct))]}
    return ["test" if text in test else "train" for text in texts]


def _count_oddities(names: list[list[str]], split: list[str], to_train: bool) -> list[str]:
    """Warn, once each, of documents without labels and, before training, labels never in train;
    return the notes.
    """
    notes = []
    bare = sum(not own and s != "unlabelled" for own, s in zip(names, split, strict=True))
    if bare:
        notes.append(f"{bare} of {len(names)} documents have no labels and were kept")
    train = {n for own, s in zip(names, split, strict=True) if s == "train" for n in own}
    unseen = {n for own in names for n in own} - train
    if unseen and to_train:
        notes.append(f"{len(unseen)} labels are never in train; seen_in_train() drops them")
    for note in notes:
        _warn(note)
    return notes
