"""Explanations: what every word of a document adds to the logit of a label.

    logit = words (attention times output, teacher's score, linear score) + bias + rest

Attention alone does not say what decides: a token may be looked at and add nothing, and documents
scores add without attention. So a word's weight is its contribution; `kind="attention"` shows the
attention instead. Learned scores, planted relevance and outputs of every token are kept apart
(docs/method.md, "Planted attention"), so all numbers follow for any planted gain and any K without
the model. `explaining.py` reads them from a model. The document's text is in the HTML and Markdown
forms; the plain form, which ends up in logs, leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plantlib.data import credentials, privacy
from plantlib.metrics.calibration import chances
from plantlib.model import words as marking
from plantlib.model.words import Span, Word, highlighted
from plantlib.planting.phrases import Mention
from plantlib.utils import reprs
from plantlib.utils.checks import check_whole
from plantlib.utils.io import atomic_path
from plantlib.utils.reprs import page
from plantlib.utils.terminal import printable

AS_IT_IS: Any = object()
KINDS = ("contribution", "attention")
PARTS = ("attention", "teacher", "linear score", "bias", "rest")
TERMS = ("adds", *(f"by {part}" for part in PARTS[:3]))  # columns of a table of words
HEADS = {
    "contribution": ["label", "score", "words and what they add to the logit"],
    "attention": ["label", "score", "words with most attention"],
}
LEGEND = {
    "contribution": "Orange adds to the logit, violet takes from it",
    "attention": "The darker, the more attention",
}
OTHERS_FOR = "(other words, for)"  # row of a table: words that are not named and add
OTHERS_AGAINST = "(other words, against)"  # row of a table: words that are not named and take
LEAST_NAMED = 0.01  # a named word has this share of the largest weight, or more
LEAST_DECIDING = 0.1  # no word decides whose weight is below this share of the largest summand
MOST_DECIMALS = 8  # of a weight that is shown
LONGEST_NAME = 80  # characters of a label's text that are shown


def check_kind(kind: str) -> None:
    """Raise ValueError for a kind of weight that there is not."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; use one of {', '.join(KINDS)}")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a document of T tokens has a logit for a label.

    label, text: what is explained.
    spans: character span of each token.
    learned, relevance, outputs: (T,) each, <H, Q>, G and <H, W>.
    gain: planted gain gamma.
    keep: inattention's K, or None.
    bias: of the label, with the intercept of the linear score.
    rest: what no word can be given: what the running state carries from earlier segments.
    calibration: the curve from logit to score, see `metrics.calibration`.
    fixed: (T,) attention that is a sum of several softmaxes or of the last segment; else None.
    teacher: (T,) what each token adds by the teacher's score; None without one.
    scored: (begin, end, what it adds) of each word of the linear score, in the whole text.
    credentialed: the model or the text is, so pages are written in the data folder alone.
    unread: tokens at the end of the text that attention does not read.
    name: what the label is called, "" where only its code is known.
    kind: weight of a word in `top_words` and the drawn forms, one of KINDS.
    mentions: planted phrases that speak for the label here; what they add is a part of `scored`.
    """

    label: str
    text: str
    spans: list[Span]
    learned: np.ndarray
    relevance: np.ndarray
    outputs: np.ndarray
    gain: float = 0.0
    keep: int | None = None
    bias: float = 0.0
    rest: float = 0.0
    calibration: Sequence[float] | None = None
    fixed: np.ndarray | None = None
    teacher: np.ndarray | None = None
    scored: Sequence[tuple[int, int, float]] = ()
    credentialed: bool = False
    unread: int = 0
    name: str = ""
    kind: str = "contribution"
    mentions: Sequence[Mention] = ()
    heads: ClassVar[tuple[str, ...]] = ("words", *TERMS)

    def __post_init__(self) -> None:
        check_kind(self.kind)

    @property
    def planted(self) -> np.ndarray:
        """(T,) the planted part of the attention scores: gamma G."""
        return self.gain * self.relevance

    @cached_property
    def attention(self) -> np.ndarray:
        """(T,) weights that sum to one; with inattention, of the K best scores only.

        The earlier of two tokens with equal scores counts as the better one.
        """
        if self.fixed is not None:
            return self.fixed.astype(np.float64)
        scores = (self.learned + self.planted).astype(np.float64)
        if not len(scores):
            return scores
        if self.keep is not None:
            scores[np.argsort(-scores, kind="stable")[self.keep :]] = -np.inf
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()

    @cached_property
    def parts(self) -> dict[str, float]:
        """What each of PARTS adds to the logit."""
        attended = float(self.attention @ self.outputs.astype(np.float64))
        teacher = 0.0 if self.teacher is None else float(self.teacher.sum(dtype=np.float64))
        linear = float(sum(added for _, _, added in self.scored))
        return dict(zip(PARTS, (attended, teacher, linear, self.bias, self.rest), strict=True))

    @property
    def logit(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def score(self) -> float:
        """The calibrated score in [0, 1] that `predict` gives."""
        return float(chances(self.logit, self.calibration))

    def at(
        self, gain: float | None = None, keep: int | None = AS_IT_IS, kind: str | None = None
    ) -> Explanation:
        """The explanation with another planted gain, another K or another kind of weight.

        Args:
            gain: None leaves it as it is.
            keep: None attends to all tokens.
            kind: one of KINDS; None leaves it as it is.

        Raises:
            ValueError: K below 1, an unknown kind, or another gain or K for attention that is a sum
                of several softmaxes.
        """
        kind = self.kind if kind is None else kind
        if gain is None and keep is AS_IT_IS:
            return replace(self, kind=kind)
        keep = self.keep if keep is AS_IT_IS else keep
        if keep is not None and keep < 1:
            fix = "use None to attend to all"
            raise ValueError(f"keep={keep}: inattention keeps at least 1 token; {fix}")
        if self.fixed is not None:
            sums = "this attention is a sum of several softmaxes"
            raise ValueError(f"{sums}, whose gain and K cannot be moved afterwards")
        return replace(self, gain=self.gain if gain is None else gain, keep=keep, kind=kind)

    @cached_property
    def words(self) -> list[Word]:
        """The words in reading order, each with the sums over its tokens."""
        attended = self.attention * self.outputs
        teacher = np.zeros(len(self.spans)) if self.teacher is None else self.teacher
        numbers = zip(self.attention, self.planted, attended, teacher, strict=True)
        tokens = [
            Word(self.text[begin:end], begin, end, *map(float, four))
            for (begin, end), four in zip(self.spans, numbers, strict=True)
        ]
        of_score = [Word(self.text[b:e], b, e, linear=added) for b, e, added in self.scored]
        return marking.words_of(self.text, tokens + of_score)

    @cached_property
    def phrases(self) -> list[Word]:
        """The words in reading order, neighbours that speak alike as one: `words.phrases_of`."""
        return marking.phrases_of(self.text, self.words)

    def weight(self, word: Word) -> float:
        """The weight of a word by `kind`."""
        return word.attention if self.kind == "attention" else word.contribution

    def top(self, k: int = 10) -> list[Word]:
        """The k phrases of largest weight by size, summed over their repeats in any case.

        With kind="attention" they are single words. Left out are punctuation, unless nothing else
        was read, and words whose weight by size is below `LEAST_NAMED` of the first one's. The
        floor is a share, because logits of one model are large and those of another are small.
        """
        check_whole("k", k)
        joined = self._joined()
        joined = [word for word in joined if marking.is_spoken(word)] or joined
        best = sorted(joined, key=lambda word: -abs(self.weight(word)))[:k]
        least = LEAST_NAMED * max((abs(self.weight(word)) for word in best[:1]), default=0.0)
        return best[:1] + [word for word in best[1:] if abs(self.weight(word)) >= least > 0]

    def _joined(self) -> list[Word]:
        """All phrases, or words with kind="attention", summed over their repeats in any case."""
        return marking.repeats_joined(self.words if self.kind == "attention" else self.phrases)

    def top_words(self, k: int = 10) -> list[tuple[str, float]]:
        """The k words of largest weight by size, summed over their repeats in any case."""
        check_whole("k", k)
        joined = marking.repeats_joined(self.words)
        best = sorted(joined, key=lambda word: -abs(self.weight(word)))[:k]
        return [(word.text, self.weight(word)) for word in best]

    def table(self, k: int = 10) -> list[tuple[str, list[float]]]:
        """Rows that add up: the k phrases that add or take most, all others, bias, rest, logit.

        Args:
            k: how many phrases are named, as in `top`.

        Returns:
            (name, [what it adds, by attention, by the teacher, by the linear score]); the numbers
            are Python's, so that JSON can hold them. Names of rows that are no phrase stand in
            parentheses. What is not named is in two rows, phrases that add to the logit and phrases
            that take from it; a row of no phrase is left out, and so is the row of the rest where
            there is none.
        """
        whole = self.at(kind="contribution")
        best = whole.top(k)
        rows = [(word.text, _added([word])) for word in best]
        rows += _other_rows([word for word in whole._joined() if word not in best])
        rows.append(("(bias)", [float(self.bias), 0.0, 0.0, 0.0]))
        if self.rest:
            rows.append(("(earlier segments)", [float(self.rest), 0.0, 0.0, 0.0]))
        by_part = [self.parts[part] for part in PARTS[:3]]
        return [*rows, ("(logit)", [float(self.logit), *by_part])]

    def note(self) -> str:
        """One sentence where no word decides, or where attention does not; else the empty string.

        No word decides where the weight by size of the strongest word or phrase, summed over its
        repeats, is below `LEAST_DECIDING` of one of these: the bias by size, what earlier segments
        add, the sizes of the weights of all punctuation, and those of all words. The sentence names
        the largest of the four. It is about what is added to the logit, with kind="attention" too,
        and holds no text of the document.
        """
        if no_word := self._no_word():
            return no_word
        by_part = {part: self.parts[part] for part in PARTS[:3]}
        decides = max(by_part, key=lambda part: abs(by_part[part]))
        if decides == "attention":
            return ""
        added = f"{by_part[decides]:+.2f} of the logit against {by_part['attention']:+.2f}"
        return f"Not attention but the {_called(decides)} decides here: {added} by attention."

    def _no_word(self) -> str:
        """The sentence of `note` where no word decides; else the empty string."""
        spoken, marks = [0.0], [0.0]
        for word in marking.repeats_joined(self.phrases):
            (spoken if marking.is_spoken(word) else marks).append(abs(word.contribution))
        sizes = {
            "the bias, which says mostly how frequent the label is": abs(self.bias),
            "what earlier segments add": abs(self.rest),
            "punctuation": sum(marks),
            "many of small weight together": sum(spoken),
        }
        decides = max(sizes, key=lambda name: sizes[name])
        if max(spoken) >= LEAST_DECIDING * sizes[decides]:
            return ""
        added = f"{sizes[decides]:.2f} by size, against {max(spoken):.2f} by the strongest word"
        return f"No word decides here but {decides}: {added}."

    def mention_rows(self, k: int = 10) -> list[tuple[str, str, float, float]]:
        """Phrase, where it comes from, its weight p and what it adds to the logit, summed over the
        places and lists that hold it; the k that add most.
        """
        check_whole("k", k)
        rows: dict[tuple[str, str], tuple[float, float]] = {}
        for one in self.mentions:
            key = (" ".join(self.text[one.begin : one.end].split()).casefold(), one.source)
            weight, adds = rows.get(key, (0.0, 0.0))
            rows[key] = (max(weight, one.weight), adds + one.adds)
        best = sorted(rows.items(), key=lambda row: -row[1][1])[:k]
        return [(*key, *numbers) for key, numbers in best]

    def lines(self, k: int = 10) -> list[str]:
        """The label, the note, and the k words of largest weight, columns parted by tabs.

        The rows of contributions are those of `table`; planted phrases that speak for the label
        follow, with where they come from.
        """
        note = [self.note()] if self.note() else []
        head = [f"{printable(self.title())}\tscore {self.score:.4f}", *note]
        digits = self._decimals(4)
        if self.kind == "attention":
            rows = [f"{printable(word)}\t{x:.{digits}f}" for word, x in self.top_words(k)]
            return [*head, "words\tattention", *rows]
        table = [
            [printable(name), *(f"{x:+.{digits}f}" for x in row)] for name, row in self.table(k)
        ]
        phrases = [
            [printable(phrase), f"from {source}", f"weight {weight:.2f}", f"{adds:+.{digits}f}"]
            for phrase, source, weight, adds in self.mention_rows(k)
        ]
        if phrases:
            phrases.insert(0, ["phrases, as a part of the above"])
        return [*head, *("\t".join(row) for row in [self.heads, *table, *phrases])]

    def save_html(self, path: str | Path) -> Path:
        """Write a self-contained HTML file with the document's text; see `save_page`."""
        title = f"Explanation of {self.label}"
        return save_page(path, title, self._repr_html_(), self.credentialed)

    def title(self) -> str:
        """The label, and what it is called."""
        return titled(self.label, self.name)

    def _head(self) -> str:
        """One line of numbers: the logit and its parts."""
        parts = [f"{self.parts[part]:+.2f} {part}" for part in PARTS if self._has(part)]
        keep = "" if self.keep is None else f", K {self.keep}"
        unread = f", last {self.unread:,} tokens unread by attention" if self.unread else ""
        logit = f"logit {self.logit:.2f} = {' '.join(parts)}"
        return f"score {self.score:.2f}; {logit}; planted gain {self.gain:.2f}{keep}{unread}"

    def _decimals(self, least: int) -> int:
        """Decimals, at least `least`, that show no weight of a named word as 0."""
        strongest = max((abs(self.weight(word)) for word in self.top(1)), default=0.0)
        if not 0 < strongest < math.inf:
            return least
        return max(least, min(math.ceil(-math.log10(2 * LEAST_NAMED * strongest)), MOST_DECIMALS))

    def _has(self, part: str) -> bool:
        return part in ("attention", "bias") or self.parts[part] != 0

    def __repr__(self) -> str:
        numbers = f"logit {self.logit:.2f}, score {self.score:.2f}"
        undecided = ", no word decides" if self._no_word() else ""
        return f"Explanation({self.label!r}, {len(self.spans)} tokens, {numbers}{undecided})"

    def _repr_html_(self) -> str:
        head = f"<p><b>{escape(self.title())}</b>: {escape(self._head())}</p>"
        note = f"<p>{escape(self.note())}</p>" if self.note() else ""
        spans = [(word.begin, word.end) for word in self.words]
        read = max((end for _, end in self.spans), default=0) if self.unread else None
        weights = [self.weight(word) for word in self.words]
        text = highlighted(self.text, spans, weights, read=read)
        legend = LEGEND[self.kind] + ("; grey text is not read by attention" * bool(self.unread))
        body = f'<p style="line-height:1.7">{text}</p><p><small>{legend}.</small></p>'
        return f"{head}{note}{body}{self._phrases_html()}"

    def _phrases_html(self) -> str:
        rows = [
            f"{escape(phrase)} (from {source}, weight {weight:.2f}, {adds:+.2f})"
            for phrase, source, weight, adds in self.mention_rows()
        ]
        return f"<p><small>Phrases: {'; '.join(rows)}.</small></p>" if rows else ""

    def _repr_markdown_(self) -> str:
        title = f"**{reprs.cell(self.title())}**: {self._head()}"
        if self.note():
            title += f"\n\n{self.note()}"
        if self.kind == "attention":
            heads = ["word", "attention", "planted score", "adds"]
            digits = self._decimals(3)
            rows = [
                [w.text, f"{w.attention:.{digits}f}", f"{w.planted:.2f}", f"{w.contribution:+.2f}"]
                for w in self.top()
            ]
        else:
            heads = list(self.heads)
            digits = self._decimals(2)
            rows = [[name, *(f"{x:+.{digits}f}" for x in row)] for name, row in self.table()]
        return f"{title}\n\n{reprs.markdown_table(heads, rows)}"


@dataclass(frozen=True, eq=False)
class DocumentExplanation:
    """A sequence of `Explanation`, of several labels of one document."""

    explanations: list[Explanation]

    def __len__(self) -> int:
        return len(self.explanations)

    def __getitem__(self, which: int | str) -> Explanation:
        """By position or by label; KeyError names the labels there are."""
        if isinstance(which, str):
            by_label = {one.label: one for one in self.explanations}
            if which not in by_label:
                raise KeyError(f"{which!r} is not explained here; there are {', '.join(by_label)}")
            return by_label[which]
        return self.explanations[which]

    def at(
        self, gain: float | None = None, keep: int | None = AS_IT_IS, kind: str | None = None
    ) -> DocumentExplanation:
        """Every label at another planted gain, K or kind of weight; see `Explanation.at`."""
        return DocumentExplanation([one.at(gain, keep, kind) for one in self.explanations])

    def rows(self, k: int = 6) -> list[tuple[str, float, list[tuple[str, float]]]]:
        """(label, score, the k phrases of largest weight, each with it) for each label."""
        return [
            (one.label, one.score, [(word.text, one.weight(word)) for word in one.top(k)])
            for one in self.explanations
        ]

    def save_html(self, path: str | Path) -> Path:
        """Write a self-contained HTML file with the document's text; see `save_page`."""
        marked = any(one.credentialed for one in self.explanations)
        return save_page(path, f"Explanation of {len(self)} labels", self._repr_html_(), marked)

    def _heads(self) -> list[str]:
        return HEADS[self.explanations[0].kind if self.explanations else KINDS[0]]

    def _cells(self) -> list[list[str]]:
        cells = []
        for one, (_, score, words) in zip(self.explanations, self.rows(), strict=True):
            form = ("" if one.kind == "attention" else "+") + f".{one._decimals(2)}f"
            behind = ", ".join(f"{word} {weight:{form}}" for word, weight in words)
            cells.append([one.title(), f"{score:.2f}", behind])
        return cells

    def __repr__(self) -> str:
        labels = ", ".join(f"{printable(one.label)} {one.score:.2f}" for one in self.explanations)
        return f"DocumentExplanation({labels or 'no label'})"

    def table_html(self) -> str:
        """The labels with their scores and words, without the text, as an HTML table."""
        return reprs.html_table(self._heads(), self._cells())

    def _repr_html_(self) -> str:
        return self.table_html() + "".join(one._repr_html_() for one in self.explanations)

    def _repr_markdown_(self) -> str:
        return reprs.markdown_table(self._heads(), self._cells())


def titled(label: str, name: str) -> str:
    """A label beside what it is called, shortened to `LONGEST_NAME`."""
    if not name or name == label:
        return label
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"
    return f"{label} {short}"


def _added(words: Sequence[Word]) -> list[float]:
    """What words add to the logit together, in all and by each of the first three of PARTS."""
    parts = [[word.attended, word.teacher, word.linear] for word in words]
    by_part = [float(sum(column)) for column in zip(*parts, strict=True)]
    return [sum(by_part), *by_part]


def _other_rows(words: Sequence[Word]) -> list[tuple[str, list[float]]]:
    """Rows of `Explanation.table`: words that add to the logit, and words that take from it.

    A word whose parts are all 0 is in neither; one whose parts cancel to 0 is among those that add.
    """
    speaking = [word for word in words if any((word.attended, word.teacher, word.linear))]
    signed = {
        OTHERS_FOR: [word for word in speaking if word.contribution >= 0],
        OTHERS_AGAINST: [word for word in speaking if word.contribution < 0],
    }
    return [(name, _added(of_sign)) for name, of_sign in signed.items() if of_sign]


def _called(part: str) -> str:
    return "teacher's score" if part == "teacher" else part


def save_page(path: str | Path, title: str, body: str, credentialed: bool = False) -> Path:
    """Write an HTML page atomically; characters that UTF-8 cannot hold become '?'.

    PrivacyError outside the data folder if the page is credentialed, or `body` holds text of a
    credentialed corpus.
    """
    credentials.check_folder("the model or the text of this page", path, credentialed)
    privacy.check(body, Path(path))
    with atomic_path(path) as temporary:
        temporary.write_text(page(title, body), encoding="utf-8", errors="replace")
    return Path(path)
