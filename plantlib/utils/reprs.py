"""What objects look like in a notebook: a small card of facts and a table, as HTML and Markdown.

A class inherits `Rich` and describes itself in `_card`; `__repr__` stays the class's business. The
frame of a self-contained HTML page is here as well. Everything that comes from data is escaped, and
nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


_STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0"
    " 1rem;line-height:1.6;color:#222}table{border-collapse:collapse}td,th{padding:.25rem"
    " .75rem;border-bottom:1px solid #ddd;text-align:left}"
)


@dataclass(frozen=True)
class Card:
    """A title, a line about the object, and a table of column heads and rows of cells."""

    title: str
    about: str
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = field(default_factory=tuple)

    @classmethod
    def of_frame(cls, title: str, about: str, frame: pandas.DataFrame) -> Card:
        """A card whose table is `frame`, with the index as the first column."""
        heads = [frame.index.name or "", *map(str, frame.columns)]
        return cls(title, about, heads, [tuple(row) for row in frame.itertuples()])


class Rich:
    """Gives a class HTML and Markdown forms, made from its `_card`."""

    def _card(self) -> Card:
        raise NotImplementedError(f"{type(self).__name__} inherits Rich and needs _card()")

    def _repr_html_(self) -> str:
        card = self._card()
        heading = f"<p><b>{escape(card.title)}</b>: {escape(card.about)}</p>"
        return heading + html_table(card.heads, card.rows)

    def _repr_markdown_(self) -> str:
        card = self._card()
        table = markdown_table(card.heads, card.rows)
        return f"**{cell(card.title)}**: {cell(card.about)}\n\n{table}"


def shown(value: object) -> str:
    """A cell as text: thousands separated, fractions with four digits, a dash for None or NaN."""
    if value is None or value != value:
        return "-"
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return str(value)
    return f"{value:,}" if float(value).is_integer() and abs(value) > 1 else f"{float(value):.4g}"


def cell(value: object) -> str:
    """A value as one line of Markdown, with marks of Markdown, HTML and MathJax escaped."""
    text = " ".join(shown(value).split())
    for mark in "\\`*_{}[]<>|$~#":
        text = text.replace(mark, "\\" + mark)
    return text


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table of heads and rows; the empty string if there are no rows."""
    rows = list(rows)
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(shown(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown pipe table of heads and rows; the empty string if there are no rows."""
    rows = list(rows)
    if not rows:
        return ""
    lines = [
        [cell(name) for name in heads],
        ["---"] * len(heads),
        *([cell(value) for value in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(title: str, body: str) -> str:
    """An HTML document around `body` with a built-in style, no scripts and no links."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    content = f"<h1>{escape(title)}</h1>\n{body}\n"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{content}</body></html>\n'
