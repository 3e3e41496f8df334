"""Text from data on its way to a terminal or a spreadsheet, where some characters are commands.

A label, an id or a word can hold escape codes, line ends or a formula. Here such characters are
shown, never executed. JSON needs none of this: `json_line` writes every name exactly.
"""

from __future__ import annotations

import json
import re
from typing import Any

# control characters, line and paragraph separators, direction marks, lone surrogates
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = "=+-@＝＋－＠"
NUMBER = re.compile(r"[+-]?\d[\d.,]*([eE][+-]?\d+)?")


def printable(text: Any) -> str:
    r"""`text` on one line, its control characters as escapes: a line end is shown as `\n`."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def spreadsheet_cell(text: Any) -> str:
    """A label or id as a cell that a spreadsheet takes for text.

    Control characters are shown as escapes. What begins with one of = + - @ and is no number gets
    an apostrophe in front.
    """
    cell = printable(text)
    is_formula = cell[:1] in FORMULA and cell and not NUMBER.fullmatch(cell)
    return "'" + cell if is_formula else cell


def json_line(value: Any) -> str:
    """`value` as one line of JSON; only what a terminal would execute is written as escapes."""
    line = json.dumps(value, ensure_ascii=False)
    return UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def brief(value: Any, words: int = 1, length: int = 40) -> str:
    """A value for a message: quoted if it is short, else its size, since it may be a text.

    Args:
        value: a column name, an id, a label, or a cell that was expected to be one.
        words: the largest number of words that is shown.
        length: the largest number of characters that is shown.
    """
    text = str(value)
    count = len(text.split())
    if count <= words and len(text) <= length:
        return repr(text)
    return f"<{count} words, {len(text)} characters>"


def brief_list(values: Any, count: int = 5, **limits: int) -> str:
    """The first `count` values as `brief` shows them, in brackets, and how many more there are."""
    values = list(values)
    more = f" and {len(values) - count} more" if len(values) > count else ""
    return "[" + ", ".join(brief(value, **limits) for value in values[:count]) + "]" + more
