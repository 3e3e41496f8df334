"""Explanations: which words of a document a label was read from, as HTML, Markdown or one line.

Learned scores, planted relevance and outputs of every token are kept apart (docs/method.md,
"Planted attention"), so attention, logit and calibrated score follow for any planted gain and any K
without the model. The document's text is in the HTML and Markdown forms; the plain form, which ends
up in logs, leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plantlib.backbones import windows
from plantlib.data import credentials, privacy
from plantlib.metrics.calibration import chances
from plantlib.utils import reprs
from plantlib.utils.checks import check_whole
from plantlib.utils.io import atomic_path
from plantlib.utils.reprs import page
from plantlib.utils.terminal import printable

if TYPE_CHECKING:
    import torch


WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
AS_IT_IS: Any = object()
HEADS = ["label", "score", "words behind it (attention)"]


class Word(NamedTuple):
    """The word text[begin:end].

    attention and contribution (part of the logit) are sums over its tokens, planted is the largest
    planted score among them.
    """

    text: str
    begin: int
    end: int
    attention: float
    planted: float
    contribution: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a document of T tokens has a logit for a label.

    label, text: what is explained.
    spans: character span of each token.
    learned, relevance, outputs: (T,) each, <H, Q>, G and <H, W>.
    gain: planted gain gamma.
    keep: inattention's K, or None.
    rest: what the logit holds beside attention (bias and document scores).
    calibration: the curve from logit to score, see `metrics.calibration`.
    fixed: (T,) attention of a model of the first version, a sum of several softmaxes; else None.
    scored: words of the whole document with what the linear score adds to the logit for them.
    credentialed: the model or the text is, so pages are written in the data folder alone.
    unread: tokens at the end of the text that the model does not read.
    """

    label: str
    text: str
    spans: list[tuple[int, int]]
    learned: np.ndarray
    relevance: np.ndarray
    outputs: np.ndarray
    gain: float = 0.0
    keep: int | None = None
    rest: float = 0.0
    calibration: Sequence[float] | None = None
    fixed: np.ndarray | None = None
    scored: Sequence[tuple[str, float]] = ()
    credentialed: bool = False
    unread: int = 0

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

    @property
    def logit(self) -> float:
        """Attention times outputs, and the rest."""
        return float(self.attention @ self.outputs.astype(np.float64)) + self.rest

    @property
    def score(self) -> float:
        """The calibrated score in [0, 1] that `predict` gives."""
        return float(chances(self.logit, self.calibration))

    def at(self, gain: float | None = None, keep=AS_IT_IS) -> Explanation:
        """The explanation with another planted gain or another K.

        Args:
            gain: None leaves it as it is.
            keep: None attends to all tokens.

        Raises:
            ValueError: K below 1, or attention that is a sum of several softmaxes.
        """
        keep = self.keep if keep is AS_IT_IS else keep
        if keep is not None and keep < 1:
            fix = "use None to attend to all"
            raise ValueError(f"keep={keep}: inattention keeps at least 1 token; {fix}")
        if self.fixed is not None:
            sums = "this attention is a sum of several softmaxes"
            raise ValueError(f"{sums}, whose gain and K cannot be moved afterwards")
        return replace(self, gain=self.gain if gain is None else gain, keep=keep)

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The k tokens with most attention, each with its attention."""
        check_whole("k", k)
        order = np.argsort(-self.attention, kind="stable")[:k]
        return [(self.text[slice(*self.spans[i])], float(self.attention[i])) for i in order]

    @cached_property
    def words(self) -> list[Word]:
        """The words in reading order, each with the sums over its tokens."""
        contribution = self.attention * self.outputs
        return list(_words(self.text, self.spans, self.attention, self.planted, contribution))

    def top_words(self, k: int = 10) -> list[tuple[str, float]]:
        """The k words with most attention, summed over a word's repeats in any case."""
        check_whole("k", k)
        total: dict[str, float] = {}
        spelling: dict[str, str] = {}
        for word in self.words:
            key = word.text.casefold()
            spelling.setdefault(key, word.text)
            total[key] = total.get(key, 0.0) + word.attention
        best = sorted(total, key=lambda key: -total[key])[:k]
        return [(spelling[key], total[key]) for key in best]

    def save_html(self, path: str | Path) -> Path:
        """Write a self-contained HTML file with the document's text; see `save_page`."""
        title = f"Explanation of {self.label}"
        return save_page(path, title, self._repr_html_(), self.credentialed)

    def _head(self) -> str:
        """One line of numbers."""
        attention = f"{self.logit - self.rest:+.2f} by attention"
        rest = f"{self.rest:+.2f} by bias and document scores"
        logit = f"score {self.score:.2f}, logit {self.logit:.2f} ({attention}, {rest})"
        keep = "" if self.keep is None else f", K {self.keep}"
        unread = f", last {self.unread:,} tokens unread" if self.unread else ""
        return f"{logit}, planted gain {self.gain:.2f}{keep}{unread}"

    def _scored(self) -> str:
        return ", ".join(f"{word} {added:+.2f}" for word, added in self.scored)

    def __repr__(self) -> str:
        numbers = f"logit {self.logit:.2f}, score {self.score:.2f}"
        return f"Explanation({self.label!r}, {len(self.spans)} tokens, {numbers})"

    def _repr_html_(self) -> str:
        head = f"<p><b>{escape(self.label)}</b>: {escape(self._head())}</p>"
        if self.scored:
            head += f"<p>Linear score, by word: {escape(self._scored())}</p>"
        text = highlighted(self.text, self.spans, self.attention)
        return f'{head}<p style="line-height:1.7">{text}</p>'

    def _repr_markdown_(self) -> str:
        best = sorted(self.words, key=lambda word: -word.attention)[:10]
        rows = [
            [w.text, f"{w.attention:.3f}", f"{w.planted:.2f}", f"{w.contribution:+.2f}"]
            for w in best
        ]
        title = f"**{reprs.cell(self.label)}**: {self._head()}"
        if self.scored:
            title += f"\n\nLinear score, by word: {reprs.cell(self._scored())}"
        heads = ["word", "attention", "planted score", "part of the logit"]
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

    def at(self, gain: float | None = None, keep=AS_IT_IS) -> DocumentExplanation:
        """Every label at another planted gain or K; see `Explanation.at`."""
        return DocumentExplanation([one.at(gain, keep) for one in self.explanations])

    def rows(self, k: int = 6) -> list[tuple[str, float, list[tuple[str, float]]]]:
        """(label, score, the k words with most attention) for each label."""
        return [(one.label, one.score, one.top_words(k)) for one in self.explanations]

    def save_html(self, path: str | Path) -> Path:
        """Write a self-contained HTML file with the document's text; see `save_page`."""
        marked = any(one.credentialed for one in self.explanations)
        return save_page(path, f"Explanation of {len(self)} labels", self._repr_html_(), marked)

    def _cells(self) -> list[list[str]]:
        return [
            [label, f"{score:.2f}", ", ".join(f"{word} {weight:.2f}" for word, weight in words)]
            for label, score, words in self.rows()
        ]

    def __repr__(self) -> str:
        labels = ", ".join(f"{printable(one.label)} {one.score:.2f}" for one in self.explanations)
        return f"DocumentExplanation({labels or 'no label'})"

    def table_html(self) -> str:
        """The labels with their scores and words, without the text, as an HTML table."""
        return reprs.html_table(HEADS, self._cells())

    def _repr_html_(self) -> str:
        return self.table_html() + "".join(one._repr_html_() for one in self.explanations)

    def _repr_markdown_(self) -> str:
        return reprs.markdown_table(HEADS, self._cells())


def highlighted(
    text: str, spans: Sequence[tuple[int, int]], weights: np.ndarray, colour: str = "230,159,0"
) -> str:
    """`text` as HTML, each token on a background as dark as its weight.

    Args:
        text: the document.
        spans: character span of each of T tokens; overlapping ones are drawn as one.
        weights: (T,); the largest gets the full colour.
        colour: red, green and blue of the background.
    """
    # join overlapping tokens
    runs: list[list] = []
    for (begin, end), weight in zip(spans, weights, strict=True):
        if runs and begin < runs[-1][1]:
            runs[-1][1:] = max(end, runs[-1][1]), runs[-1][2] + float(weight)
        elif end > begin:
            runs.append([begin, end, float(weight)])
    # draw them, with the text between them
    strongest = max([run[2] for run in runs] + [1e-12])
    parts, last = [], 0
    for begin, end, weight in runs:
        shade = f"rgba({colour},{max(weight, 0.0) / strongest:.2f})"
        style = f'style="background:{shade}" title="{weight:.3f}"'
        parts.append(f"{escape(text[last:begin])}<span {style}>{escape(text[begin:end])}</span>")
        last = end
    return "".join(parts) + escape(text[last:])


def _words(text: str, spans, attention, planted, contribution):
    """The words of `text` that have a token.

    A token belongs to the word that it shares most characters with; without one it is its own word.
    """
    places = [match.span() for match in WORD.finditer(text)]
    sums: dict[tuple[int, int], list[float]] = {}
    first = 0
    for i, (begin, end) in enumerate(spans):
        # places[first:last] overlap the token
        while first < len(places) and places[first][1] <= begin:
            first += 1
        last = first
        while last < len(places) and places[last][0] < end:
            last += 1
        shared = {place: min(end, place[1]) - max(begin, place[0]) for place in places[first:last]}
        place = max(shared, key=lambda place: shared[place], default=(begin, end))
        word = sums.setdefault(place, [0.0, -np.inf, 0.0])
        word[0] += attention[i]
        word[1] = max(word[1], planted[i])
        word[2] += contribution[i]
    for (begin, end), values in sorted(sums.items()):
        yield Word(text[begin:end], begin, end, *(float(value) for value in values))


def explain(model, text: str, labels: Sequence[str]) -> list[Explanation]:
    """One Explanation per label; the text is read window by window.

    Args:
        model: a `PlantModel` with its backbone.
        text: one document.
        labels: names of labels.

    Raises:
        ValueError: an unknown label; the message names similar ones.
    """
    import torch

    columns = torch.tensor([column_of(model, label) for label in labels], dtype=torch.long)
    columns = columns.to(model.device)
    ids, offsets = model._packed(model.tokenise([text]))
    decoder, linear = model.decoder, model.word_scores([text])
    if decoder.l2r is not None or decoder.contexts == "sum" or decoder.stateful == "v1":
        return _first_version(model, text, labels, columns, (ids, offsets), linear)
    # the three parts of every token, (T, labels) each
    learned, outputs = _read(model, ids, offsets, columns)
    relevance = relevance_of(decoder.planted.cells(ids), columns, len(ids))
    parts = [part.float().cpu().numpy().T for part in (learned, relevance, outputs)]
    # what the logit holds beside attention
    rest = decoder.label_bias[columns]
    if model.teacher_score is not None:
        rest = rest + decoder.teacher_gain * model.teacher_score(ids, offsets)[0, columns]
    if linear is not None:
        rest = rest + decoder.linear_gain * linear[0, columns]
    spans, scored = spans_of(model, text), words_of_score(model, text, columns.tolist())
    unread = int(model.unread([text])[0])
    return [
        Explanation(
            label,
            text,
            spans,
            *(part[i] for part in parts),
            float(decoder.planted_gain),
            decoder.keep,
            float(rest[i]),
            model.config.calibration,
            None,
            scored[i],
            model.config.credentialed,
            unread,
        )
        for i, label in enumerate(labels)
    ]


def _first_version(model, text, labels, columns, packed, linear) -> list[Explanation]:
    """Explanations of a model with an L2R table, several contexts or the running state.

    Attention is that of the decoder over the whole document. With the running state the logit leans
    on the last segment; the difference is in the rest.
    """
    hidden = model.encode(*packed)
    logits = model(*packed, hidden, linear_scores=linear).logits[0, columns].tolist()
    spans, columns = spans_of(model, text), columns.tolist()
    scored = words_of_score(model, text, columns)
    explanations = []
    for label, column, logit, words in zip(labels, columns, logits, scored, strict=True):
        parts = model.decoder.attention(model.packed(hidden, *packed), column)
        attention, planted, outputs = (part.float().cpu().numpy() for part in parts)
        learned = np.zeros_like(planted)
        rest = logit - float(attention.astype(np.float64) @ outputs.astype(np.float64))
        marked, unread = model.config.credentialed, int(model.unread([text])[0])
        more = (1.0, None, rest, model.config.calibration, attention, words, marked, unread)
        explanations.append(Explanation(label, text, spans, learned, planted, outputs, *more))
    return explanations


def words_of_score(model, text: str, columns: list[int]) -> list[list[tuple[str, float]]]:
    """For each label column, the words that raise its logit by the linear score, largest first."""
    if model.word_score is None:
        return [[] for _ in columns]
    gain = float(model.decoder.linear_gain)
    return [
        [(word, gain * added) for word, added in parts]
        for parts in model.word_score.parts(text, columns)
    ]


def column_of(model, label: str) -> int:
    """The column of a label; ValueError for an unknown one, naming labels that begin alike."""
    known = model.config.label2id
    if label not in known:
        near = [name for name in known if name.lower().startswith(label.lower()[:3])][:5]
        raise ValueError(
            f"label {label!r} is not one of {model.config.num_labels}; near ones:"
            f" {', '.join(near) or 'none'}"
        )
    return known[label]


def spans_of(model, text: str) -> list[tuple[int, int]]:
    """Character span of each token that the model reads of `text`."""
    most = model.config.max_tokens
    encoded = model.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=most is not None,
        max_length=most,
        verbose=False,
    )
    return [tuple(span) for span in encoded["offset_mapping"]]


def relevance_of(cells, columns: torch.Tensor, tokens: int) -> torch.Tensor:
    """(T, labels) relevance G of one document's tokens, from its planted cells or None."""
    import torch

    relevance = torch.zeros((tokens, len(columns)), device=columns.device)
    for i, column in enumerate(columns.tolist() if cells is not None else ()):
        of_label = cells.labels == column
        relevance[:, i].index_add_(0, cells.positions[of_label], cells.values[of_label])
    return relevance


def _read(
    model, ids: torch.Tensor, offsets: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, labels) learned scores and outputs; hidden states exist for one window at a time."""
    backbone, memory = model.as_backbone(), ()
    learned = model.decoder.label_bias.new_zeros((len(ids), len(columns)))
    outputs = learned.clone()
    for cut in windows.rounds(backbone, offsets):
        hidden, memory = windows.encode_round(backbone, ids, cut, memory)
        part = slice(cut[0].begin, cut[0].end)
        hidden = model.standardise(hidden).to(learned.dtype)
        learned[part], outputs[part] = model.decoder.token_scores(hidden, None, columns)
    return learned, outputs


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
