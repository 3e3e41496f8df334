"""Lists as programs print them into a cell: Python, JSON, numpy, and names without quotes.

Nothing is evaluated: only literals are read.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

BRACKETS = {"[": "]", "(": ")", "{": "}"}
QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
NUMPY_STRINGS = re.compile(rf"\[\s*{QUOTED}(?:\s+{QUOTED})*\s*\]")


def parse_list(cell: str, bare: bool = False) -> list[Any] | None:
    """A printed list as a list; None if the cell is none.

    Args:
        cell: what Python, JSON or numpy print for a list.
        bare: also read names without quotes, [I10, E11.9] or {I10,E11.9}.
    """
    cell = _unwrapped(cell)
    if not is_bracketed(cell) or re.search(r"(^|[\s,\[])\.\.\.([\s,\]]|$)", cell):
        return None
    inner = cell[1:-1].strip()
    if not inner:
        return []
    readers: list[Callable[[], Any]] = [lambda: json.loads(cell)]
    if NUMPY_STRINGS.fullmatch(cell):
        # python would join two strings that no comma divides
        readers.append(lambda: [ast.literal_eval(part) for part in re.findall(QUOTED, cell)])
    readers.append(lambda: _literals(cell))
    if re.fullmatch(r"\[[\s\d.]+\]", cell):
        # numbers as numpy prints them
        readers.append(lambda: [ast.literal_eval(part) for part in inner.split()])
    if bare:
        readers.append(lambda: bare_names(cell))
    for read in readers:
        try:
            value = read()
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and all(map(_is_scalar, value)):
            return value
    return None


def _literals(cell: str) -> list[Any] | None:
    """The elements of a list, tuple or set as Python prints it; nan is a missing one."""
    tree = ast.parse(cell, mode="eval").body
    if not isinstance(tree, (ast.List, ast.Tuple, ast.Set)):
        return None
    missing_names = ("nan", "null", "NA")
    return [
        None if isinstance(part, ast.Name) and part.id in missing_names else ast.literal_eval(part)
        for part in tree.elts
    ]


def bare_names(cell: str) -> list[str] | None:
    """Names without quotes between the commas of a list; None for pairs or nested lists."""
    inner = _unwrapped(cell)[1:-1].strip()
    if not inner:
        return []
    names = [part.strip().strip("'\"“”‘’") for part in inner.split(",")]
    return None if any(set(name) & set("[]{}:'\"") for name in names) else names


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def is_bracketed(cell: str) -> bool:
    cell = _unwrapped(cell)
    return len(cell) > 1 and BRACKETS.get(cell[0]) == cell[-1]


def _unwrapped(cell: str) -> str:
    """A cell without `array(...)` and its relatives around a list."""
    match = re.fullmatch(
        r"\s*(?:np\.)?(?:array|list|set|frozenset|tuple|Index)\((.*?)(?:,\s*dtype=[^)]*)?\)\s*",
        cell,
        re.DOTALL,
    )
    cell = match[1] if match else cell
    return cell.strip() or "[]"
