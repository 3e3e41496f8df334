"""Finds phrases in texts: normalised words with their places, and a trie over phrases of words.

Case, accents and punctuation do not count; with form "stems" neither do endings. All texts of a
batch are matched together, one word further per step, so that a word costs a few binary searches
(docs/method.md, "Phrases and evidence"). What a phrase says about labels is in `phrases.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import regex

from plantlib.data.tokens import UNSPACED
from plantlib.kernels.counts import check_choice

# A word is a run of letters and digits with their marks. In a script without spaces every letter
# is a word. Texts without characters from U+0300 on have neither, and a faster pattern finds the
# same words in them.
UNSPACED_LETTER = UNSPACED.removeprefix("(?V1)").removesuffix("+")
MARK = r"\p{M}"
SPACED_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--{UNSPACED_LETTER}]"
WORD = regex.compile(rf"(?V1){UNSPACED_LETTER}{MARK}*|{SPACED_LETTER}+")
SIMPLE_WORD = re.compile(r"[^\W_]+")
SPECIAL = re.compile("[\u0300-\U0010ffff]")
FIRST_ACCENT, LAST_ACCENT = "\u0300", "\u036f"
STEM_LETTERS = 6  # of a longer word the stem keeps so many letters
BATCH_WORDS = 1 << 20  # words that are matched at once, in about 100 MB


@lru_cache(maxsize=1 << 17)
def normalised(word: str) -> str:
    """A word without case and accents."""
    if word.isascii():
        return word.lower()
    letters = unicodedata.normalize("NFKD", word)
    letters = "".join(c for c in letters if not FIRST_ACCENT <= c <= LAST_ACCENT)
    return unicodedata.normalize("NFC", letters).casefold()


@lru_cache(maxsize=1 << 17)
def stem(word: str) -> str:
    """The beginning of a normalised word, so that most inflected forms are one; a short word loses
    a final s.
    """
    word = normalised(word)
    if len(word) > STEM_LETTERS:
        return word[:STEM_LETTERS]
    return word.removesuffix("s") or word


FORMS: dict[str, Callable[[str], str]] = {"words": normalised, "stems": stem}


def _pattern(text: str) -> re.Pattern | regex.Pattern:
    return WORD if SPECIAL.search(text) else SIMPLE_WORD


def words_of(text: str, form: str = "words") -> tuple[list[str], np.ndarray]:
    """The words of a text in a form of `FORMS`, and their characters [start, end), (words, 2)."""
    change = FORMS[form]
    matches = list(_pattern(text).finditer(text))
    places = np.array([match.span() for match in matches], np.int64).reshape(-1, 2)
    return [change(match[0]) for match in matches], places


def phrase_of(text: str, form: str = "words") -> tuple[str, ...]:
    """The words of a text in a form of `FORMS`, as a phrase."""
    return tuple(map(FORMS[form], _pattern(text).findall(text)))


@dataclass(frozen=True, eq=False)
class Matches:
    """M places where phrases stand, ordered by document, first word and falling length.

    document, phrase: (M,) rows of the texts that were matched, and numbers of the phrases.
    first, last: (M,) the first and the last word of the match, counted within its document.
    start, end: (M,) characters [start, end) of the text.
    """

    document: np.ndarray
    phrase: np.ndarray
    first: np.ndarray
    last: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    @classmethod
    def joined(cls, parts: Sequence[Matches]) -> Matches:
        """The matches of several batches, one after the other."""
        columns = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


@dataclass(frozen=True, eq=False)
class Trie:
    """S phrases, found word by word.

    words: W different words, sorted.
    keys: (E,) int64, ascending: node * W + word for every edge; edge i leads to node i + 1, and
        node 0 is the root.
    phrase: (E + 1,) int64, the phrase that ends at a node, -1 where none does.
    longest: words of the longest phrase.
    form: of the words, a key of `FORMS`.
    """

    words: list[str]
    keys: np.ndarray
    phrase: np.ndarray
    longest: int
    form: str = "words"

    @classmethod
    def of(cls, phrases: Sequence[tuple[str, ...]], form: str = "words") -> Trie:
        """The trie of different phrases, which are numbered as they stand; see `phrase_of`.

        Raises:
            ValueError: an unknown form, a phrase without words, or one that stands there twice.
        """
        check_choice("form", form, tuple(FORMS))
        words = sorted({word for phrase in phrases for word in phrase})
        place = {word: i for i, word in enumerate(words)}
        lengths = np.fromiter(map(len, phrases), np.int64, len(phrases))
        if not lengths.all():
            raise ValueError(f"phrase {int(lengths.argmin())} has no words; leave it out")
        every = (place[word] for phrase in phrases for word in phrase)
        ids = np.fromiter(every, np.int64, lengths.sum())
        begin = np.cumsum(lengths) - lengths
        node = np.zeros(len(phrases), np.int64)
        keys = [np.zeros(0, np.int64)]
        edges = 0
        for depth in range(lengths.max(initial=0)):
            # phrases that are long enough go on from the node that they have reached
            goes_on = np.flatnonzero(lengths > depth)
            key = node[goes_on] * len(words) + ids[begin[goes_on] + depth]
            level, edge = np.unique(key, return_inverse=True)
            node[goes_on] = edges + edge + 1
            keys.append(level)
            edges += len(level)
        phrase = np.full(edges + 1, -1, np.int64)
        phrase[node] = np.arange(len(phrases))
        if np.count_nonzero(phrase >= 0) < len(phrases):
            raise ValueError("a phrase stands in the list twice; give each once")
        return cls(words, np.concatenate(keys), phrase, int(lengths.max(initial=0)), form)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def phrases(self) -> list[tuple[str, ...]]:
        """The S phrases, by their numbers."""
        # an edge comes after the one that leads to its node
        spelled: list[tuple[str, ...]] = [()]
        for key in self.keys.tolist():
            node, word = divmod(key, len(self.words))
            spelled.append((*spelled[node], self.words[word]))
        nodes = np.flatnonzero(self.phrase >= 0)
        return [spelled[node] for node in nodes[np.argsort(self.phrase[nodes])]]

    def match(self, texts: Iterable[str], inner: bool = True) -> Matches:
        """The places of all phrases in texts, in one pass.

        inner: keep matches that lie inside another match. Matches that overlap otherwise are
            always kept.
        """
        batches: list[Matches] = []
        ids: list[np.ndarray] = []
        places: list[np.ndarray] = []
        documents = size = 0
        for text in texts:
            words, place = words_of(text, self.form)
            ids.append(np.array([self._place.get(word, -1) for word in words], np.int64))
            places.append(place)
            size += len(words)
            if size >= BATCH_WORDS:
                batches.append(self._match(ids, places, documents, inner))
                documents += len(ids)
                ids, places, size = [], [], 0
        batches.append(self._match(ids, places, documents, inner))
        return Matches.joined(batches)

    def _match(
        self, ids: list[np.ndarray], places: list[np.ndarray], documents: int, inner: bool
    ) -> Matches:
        """The matches of one batch, whose first document has the number `documents`."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        begin_of = np.cumsum(lengths) - lengths
        document = np.repeat(np.arange(len(ids)), lengths)
        # a -1 after every document ends all phrases there
        flat = np.full(lengths.sum() + len(ids), -1, np.int64)
        word_at = np.arange(len(document)) + document
        flat[word_at] = np.concatenate([np.zeros(0, np.int64), *ids])
        first, last, phrase = self._walk(flat)
        if not inner and len(first):
            # an earlier match that reaches as far holds this one
            before = np.concatenate([[-1], np.maximum.accumulate(last)[:-1]])
            outer = last > before
            first, last, phrase = first[outer], last[outer], phrase[outer]
        # places in the padded words -> places in the words -> documents and characters
        first, last = np.searchsorted(word_at, first), np.searchsorted(word_at, last)
        own = document[first]
        place = np.concatenate([np.zeros((0, 2), np.int64), *places])
        start, end = place[first, 0], place[last, 1]
        first, last = first - begin_of[own], last - begin_of[own]
        return Matches(documents + own, phrase, first, last, start, end)

    def _walk(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First place, last place and phrase of every match, ordered by place and falling length.

        flat: ids of words, -1 for a word of no phrase; the last is -1.
        """
        begin = np.flatnonzero(flat >= 0)
        node = np.zeros(len(begin), np.int64)
        found = [np.zeros((3, 0), np.int64)]
        for depth in range(self.longest):
            word = flat[begin + depth]
            key = node * len(self.words) + word
            edge = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
            goes_on = (word >= 0) & (self.keys[edge] == key)
            begin, node = begin[goes_on], edge[goes_on] + 1
            ended = self.phrase[node] >= 0
            first = begin[ended]
            found.append(np.stack([first, first + depth, self.phrase[node[ended]]]))
        first, last, phrase = np.concatenate(found, 1)
        order = np.lexsort((-last, first))
        return first[order], last[order], phrase[order]
