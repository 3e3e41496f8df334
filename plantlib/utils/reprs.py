"""What objects look like in a notebook: one small card of facts and a table, as HTML and as
Markdown, the same every time.

An object inherits `Rich` and says what it is in `_card`; its plain form stays its own `__repr__`.
Also the frame of a self-contained HTML page. Everything that comes from data is escaped; nothing is
fetched from anywhere.
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
    """A name, a line about it, and a table: column heads and rows of cells."""

    title: str
    about: str
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = field(default_factory=tuple)

    @classmethod
    def of_frame(cls, title: str, about: str, frame: pandas.DataFrame) -> Card:
        """A card with a frame as its table, the index first."""
        rows = [(name, *values) for name, *values in frame.itertuples()]
        return cls(title, about, [frame.index.name or "", *map(str, frame.columns)], rows)


class Rich:
    """HTML and Markdown from `_card`."""

    def _card(self) -> Card:
        raise NotImplementedError(f"{type(self).__name__} inherits Rich and needs _card()")

    def _repr_html_(self) -> str:
        card = self._card()
        return (
            f"<p><b>{escape(card.title)}</b>:"
            f" {escape(card.about)}</p>{html_table(card.heads, card.rows)}"
        )

    def _repr_markdown_(self) -> str:
        card = self._card()
        return (
            f"**{cell(card.title)}**: {cell(card.about)}\n\n{markdown_table(card.heads, card.rows)}"
        )


def shown(value: object) -> str:
    """A cell as text: thousands separated, fractions with four digits, a dash for what is not
    there.
    """
    if value is None or value != value:
        return "-"
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return str(value)
    return f"{value:,}" if float(value).is_integer() and abs(value) > 1 else f"{float(value):.4g}"


def cell(value: object) -> str:
    """One line of Markdown with nothing in it that Markdown, HTML or MathJax would act on."""
    text = " ".join(shown(value).split())
    for mark in "\\`*_{}[]<>|$~#":
        text = text.replace(mark, "\\" + mark)
    return text


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain table; nothing where there are no rows."""
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
    """A pipe table; nothing where there are no rows."""
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
    """A whole HTML document around `body`; only its own style, no script, no address."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return (
        "<!doctype html>\n<html"
        f' lang="en"><head>{head}</head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n'
    )
