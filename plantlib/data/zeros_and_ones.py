"""Cells that say whether a label is there: 0 and 1, true and false, y and n, x and nothing.

Vectors hold 0 and 1 alone: a list of x and y holds two labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SEVERAL = (list, tuple, set, frozenset, np.ndarray)
VECTOR = re.compile(r"[01](\.0*)?([\s,;|]+[01](\.0*)?)+|[01]{4,}")
# what people write into a column that says whether a label is there
MARKS = {"n": 0, "y": 1, "no": 0, "yes": 1, "f": 0, "t": 1, "-": 0, "+": 1, "x": 1, "✓": 1, "✗": 0}
ZEROS_AND_ONES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "0.": 0, "1.": 1, "false": 0, "true": 1}


def missing(value: Any) -> bool:
    """Whether a cell is None, NaN, NA or a blank string."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def bit_of(value: Any) -> int | None:
    """0 or 1 for a cell that means it, blanks included; else None."""
    return 0 if missing(value) else ZEROS_AND_ONES.get(str(value).strip().lower())


def mark_of(value: Any) -> int | None:
    """0 or 1 for a cell of a column that says whether a label is there; else None."""
    bit = bit_of(value)
    return MARKS.get(str(value).strip().lower()) if bit is None else bit


def bits_of(cell: str) -> list[str] | None:
    """The zeros and ones of a string such as '0 1 0', '0,1,0' or '0110'."""
    cell = cell.strip()
    if not VECTOR.fullmatch(cell):
        return None
    return list(cell) if cell.isdigit() else re.split(r"[\s,;|]+", cell)


def vector_of(value: Any) -> list[int] | None:
    """Zeros and ones of a list; None if it is none."""
    if not isinstance(value, SEVERAL):
        return None
    bits = [None if missing(v) else bit_of(v) for v in value]
    return None if None in bits or not bits else bits  # type: ignore[return-value]


def is_vector(cell: Any) -> bool:
    """Whether a cell is a vector of 0 and 1 with at least two positions."""
    vector = vector_of(bits_of(cell) if isinstance(cell, str) else cell)
    return vector is not None and len(vector) > 1


def width_of(cell: Any) -> int:
    return len(bits_of(cell) or "") if isinstance(cell, str) else len(cell)


def of_zeros_and_ones(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that hold 0 and 1, or other marks, alone."""
    return [c for c in columns if all(mark_of(cell) is not None for cell in frame[c].tolist())]
