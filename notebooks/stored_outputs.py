"""Is a stored output that nbval does not compare still what its cell makes?

Cells tagged `nbval-ignore-output` hold trained numbers, which differ from machine to machine. Their
shape (kinds of outputs, in order) and their wording (words without digits) do not, so
`conftest.py` compares these with what the cell has just made; `refresh.py` renews them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SHARED = 0.75  # least share of words in common: the best words of a text follow trained numbers
# what is random or of this machine: addresses, names of temporary files and folders
PASSING = re.compile(r"0x[0-9a-fA-F]+|\S*\btmp\w*\S*|data:[^\s\"')]+")
TAG = re.compile(r"<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", re.S)
TOKEN = re.compile(r"[^\s,;:.()\[\]{}|<>\"'`*=/_]+")
TEXTS = (
    "text/markdown",
    "text/html",
    "text/latex",
    "text/plain",
)  # the first that is there is read


def shape(outputs: Iterable[Mapping]) -> list[str]:
    """The kinds of outputs in order; printed text in several pieces is one output."""
    kinds: list[str] = []
    for output in outputs:
        kind = _kind(output)
        if kind and not (kind == "text" and kinds[-1:] == ["text"]):
            kinds.append(kind)
    return kinds


def _kind(output: Mapping) -> str:
    """text, picture, table or value; "" for what is not stored: bars, warnings, widgets."""
    if output["output_type"] == "stream":
        return "text" if output["name"] == "stdout" and output["text"].strip() else ""
    data = output.get("data", {})
    if any("widget" in mime for mime in data):
        return ""
    if any(mime.startswith("image/") for mime in data):
        return "picture"
    return "markdown" if "text/markdown" in data else "table" if "text/html" in data else "value"


def words(outputs: Iterable[Mapping]) -> set[str]:
    """The words of at least three letters in what is printed and shown."""
    found: set[str] = set()
    for output in outputs:
        if not _kind(output):
            continue
        data = output.get("data", {})
        text = output.get("text") or next((data[mime] for mime in TEXTS if mime in data), "")
        text = "".join(text) if isinstance(text, list) else text
        tokens = TOKEN.findall(TAG.sub(" ", PASSING.sub(" ", text)))
        found |= {token.lower() for token in tokens if token.isalpha() and len(token) > 2}
    return found


def difference(stored: Iterable[Mapping], made: Iterable[Mapping]) -> str:
    """What is stale in the stored outputs of a cell; "" where shape and wording are the same."""
    stored, made = list(stored), list(made)
    if shape(stored) != shape(made):
        return f"stored are {shape(stored)}, the cell makes {shape(made)}"
    before, now = words(stored), words(made)
    if len(before & now) < SHARED * len(before | now):
        gone, new = (sorted(side)[:12] for side in (before - now, now - before))
        return f"stored words {gone} are gone, {new} are new"
    return ""
