"""Words of a document with what they add to a logit, the phrases they form, and the marked text.

Tokens and the words of the linear score are merged to the words that a reader sees; a phrase is a
run of such words. Nothing here knows a model: `explanation.py` says where the numbers come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
LEAST_OF_PHRASE = 0.1  # a word of a phrase has this share of the largest contribution, or more
FOR = "230,159,0"  # orange: adds to the logit, or has attention
AGAINST = "117,112,179"  # violet: takes from the logit
GREY = "#767676"  # not read by attention; of enough contrast on white

Span = tuple[int, int]


class Word(NamedTuple):
    """The word, or the phrase, text[begin:end], with the sums over its tokens.

    attention: weight of the softmax. planted: the largest planted score among its tokens. attended,
    teacher, linear: what it adds to the logit by attention times output, by the teacher's score and
    by the linear score.
    """

    text: str
    begin: int
    end: int
    attention: float = 0.0
    planted: float = 0.0
    attended: float = 0.0
    teacher: float = 0.0
    linear: float = 0.0

    @property
    def contribution(self) -> float:
        """What the word adds to the logit."""
        return self.attended + self.teacher + self.linear


def merged(words: Sequence[Word], text: str) -> Word:
    """One word of several, shown as `text`: their sums, and the largest planted score."""
    sums = (
        sum(getattr(word, name) for word in words)
        for name in ("attention", "attended", "teacher", "linear")
    )
    attention, *parts = sums
    planted = max(word.planted for word in words)
    return Word(text, words[0].begin, words[-1].end, attention, planted, *parts)


def words_of(text: str, pieces: Iterable[Word]) -> list[Word]:
    """The words of `text` that have a piece, in reading order.

    A piece belongs to the word that it shares most characters with; without one it is its own word.

    pieces: tokens, and words of the linear score, in any order.
    """
    places = [match.span() for match in WORD.finditer(text)]
    by_place: dict[Span, list[Word]] = {}
    first = 0
    for piece in sorted(pieces, key=lambda piece: (piece.begin, piece.end)):
        # places[first:last] overlap the piece; no later piece begins before it
        while first < len(places) and places[first][1] <= piece.begin:
            first += 1
        last = first
        while last < len(places) and places[last][0] < piece.end:
            last += 1
        shared = {
            place: min(piece.end, place[1]) - max(piece.begin, place[0])
            for place in places[first:last]
        }
        own = (piece.begin, piece.end)
        by_place.setdefault(max(shared, key=lambda p: shared[p], default=own), []).append(piece)
    return [
        merged(parts, text[begin:end])._replace(begin=begin, end=end)
        for (begin, end), parts in sorted(by_place.items())
    ]


def phrases_of(text: str, words: Sequence[Word]) -> list[Word]:
    """Runs of neighbouring words that speak alike, and every other word by itself.

    Words form a phrase where only blanks and no punctuation lie between them, and all of them add
    to the logit, or all take from it, at least `LEAST_OF_PHRASE` of the largest contribution of a
    word. A phrase adds what its words add.
    """
    least = LEAST_OF_PHRASE * max((abs(word.contribution) for word in words), default=0.0)
    runs: list[list[Word]] = []
    for word in words:
        before = runs[-1][-1] if runs else None
        if (
            before is not None
            and before.text[-1:].isalnum()
            and word.text[:1].isalnum()
            and not text[before.end : word.begin].strip()
            and min(abs(before.contribution), abs(word.contribution)) >= least > 0
            and before.contribution * word.contribution > 0
        ):
            runs[-1].append(word)
        else:
            runs.append([word])
    return [merged(run, " ".join(text[run[0].begin : run[-1].end].split())) for run in runs]


def repeats_joined(words: Iterable[Word]) -> list[Word]:
    """Words or phrases summed over their repeats in any case, in the order of the first ones."""
    groups: dict[str, list[Word]] = {}
    for word in words:
        groups.setdefault(word.text.casefold(), []).append(word)
    return [merged(group, group[0].text) for group in groups.values()]


def is_spoken(word: Word) -> bool:
    """Whether a word or phrase has a letter or a digit; a dot or a bracket has none."""
    return any(character.isalnum() for character in word.text)


def highlighted(
    text: str,
    spans: Sequence[Span],
    weights: Iterable[float],
    colour: str = FOR,
    read: int | None = None,
) -> str:
    """`text` as HTML, each span on a background as dark as its weight.

    Args:
        text: the document.
        spans: character spans; overlapping ones are drawn as one.
        weights: one per span; the largest by size gets the full colour, and a negative one the
            colour `AGAINST`.
        colour: red, green and blue of positive weights.
        read: the text from this character on is grey; None where all of it was read.
    """
    # join overlapping spans
    runs: list[list] = []
    for (begin, end), weight in zip(spans, weights, strict=True):
        if runs and begin < runs[-1][1]:
            runs[-1][1:] = max(end, runs[-1][1]), runs[-1][2] + float(weight)
        elif end > begin:
            runs.append([begin, end, float(weight)])
    # draw them, with the text between them
    strongest = max([abs(run[2]) for run in runs] + [1e-12])
    read = len(text) if read is None else read
    parts, last = [], 0
    for begin, end, weight in runs:
        shade = f"rgba({colour if weight >= 0 else AGAINST},{abs(weight) / strongest:.2f})"
        style = f'style="background:{shade}" title="{weight:.3f}"'
        parts.append(_grey(text, last, begin, read))
        parts.append(f"<span {style}>{escape(text[begin:end])}</span>")
        last = end
    return "".join(parts) + _grey(text, last, len(text), read)


def _grey(text: str, begin: int, end: int, read: int) -> str:
    """text[begin:end] as HTML, grey from character `read` on."""
    border = min(max(begin, read), end)
    grey = escape(text[border:end])
    if grey:
        grey = f'<i style="color:{GREY}" title="not read by attention">{grey}</i>'
    return escape(text[begin:border]) + grey
