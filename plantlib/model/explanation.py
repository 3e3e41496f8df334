"""Explanation: which tokens a label was read from, word by word; drawn as HTML, Markdown or one
plain line.

Realises METHOD.md section 4 for one document: the scores, the planted relevance and the outputs of
every token are kept apart, so attention, logit and calibrated score follow at any planted gain and
any K without the model. Windows of a long document are read one after another. The text itself
stands in the HTML and Markdown forms, never in the plain one, which ends up in logs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plantlib.backbones import windows
from plantlib.data import privacy
from plantlib.utils import reprs
from plantlib.utils.io import atomic_path
from plantlib.utils.reprs import page

if TYPE_CHECKING:
    import torch


WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
AS_IT_IS = object()


class Word(NamedTuple):
    """text[begin:end], the attention its pieces sum to, their largest planted score and their part
    of the logit.
    """

    text: str
    begin: int
    end: int
    attention: float
    planted: float
    contribution: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a label: of each of T tokens its character span, learned score <H, Q>, relevance G and
    output <H, W>, (T,) each.

    gain: planted gain gamma; keep: inattention's K or None; rest: what the logit holds beside
    attention (bias, planted document scores); calibration: slope and shift from logit to score;
    scored: words with what they add to the logit by the linear score, which reads the whole
    document. Everything else follows from these, unless attention is `given`: that of a
    first-version model, a sum of several softmaxes.
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
    calibration: tuple[float, float] = (1.0, 0.0)
    given: np.ndarray | None = None
    scored: Sequence[tuple[str, float]] = ()

    @property
    def planted(self) -> np.ndarray:
        """(T,) the planted part of the attention scores, gamma G."""
        return self.gain * self.relevance

    @cached_property
    def attention(self) -> np.ndarray:
        """(T,) weights that sum to one; with inattention the K best scores alone, the earlier token
        where they are equal.
        """
        if self.given is not None:
            return self.given.astype(np.float64)
        scores = (self.learned + self.planted).astype(np.float64)
        if not len(scores):
            return scores
        if self.keep is not None:
            scores[np.argsort(-scores, kind="stable")[self.keep :]] = -np.inf
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()

    @property
    def logit(self) -> float:
        return float(self.attention @ self.outputs.astype(np.float64)) + self.rest

    @property
    def score(self) -> float:
        """The calibrated score in [0, 1] that `predict` gives."""
        slope, shift = self.calibration
        return float(1 / (1 + np.exp(-np.clip(slope * self.logit + shift, -700, 700))))

    def at(self, gain: float | None = None, keep=AS_IT_IS) -> Explanation:
        """The same reading with another planted gain or another K (None attends to all); the rest
        of the model stays.
        """
        if keep is not AS_IT_IS and keep is not None and keep < 1:
            raise ValueError(
                f"keep={keep}: inattention keeps at least 1 token; use None to attend to all"
            )
        if self.given is not None:
            raise ValueError(
                "this attention is a sum of several softmaxes, whose gain and K cannot be moved"
                " afterwards"
            )
        return replace(
            self,
            gain=self.gain if gain is None else gain,
            keep=self.keep if keep is AS_IT_IS else keep,
        )

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The k tokens with most attention."""
        order = np.argsort(-self.attention, kind="stable")[:k]
        return [(self.text[slice(*self.spans[i])], float(self.attention[i])) for i in order]

    @cached_property
    def words(self) -> list[Word]:
        """Whole words in reading order: pieces of a word are summed, pieces that share characters
        (bytes) too.
        """
        return list(
            _words(
                self.text, self.spans, self.attention, self.planted, self.attention * self.outputs
            )
        )

    def top_words(self, k: int = 10) -> list[tuple[str, float]]:
        """The k words with most attention, repeats of a word (case folded) summed under its first
        spelling.
        """
        total: dict[str, list] = {}
        for word in self.words:
            total.setdefault(word.text.casefold(), [word.text, 0.0])[1] += word.attention
        return [tuple(found) for found in sorted(total.values(), key=lambda found: -found[1])[:k]]

    def save_html(self, path: str | Path) -> Path:
        """Write one HTML file that needs nothing else, atomically. It holds the document's text."""
        return save_page(path, f"Explanation of {self.label}", self._repr_html_())

    def _head(self) -> str:
        keep = "" if self.keep is None else f", K {self.keep}"
        parts = (
            f"{self.logit - self.rest:+.2f} by attention, {self.rest:+.2f} by bias and document"
            " scores"
        )
        return (
            f"score {self.score:.2f}, logit {self.logit:.2f} ({parts}), planted gain"
            f" {self.gain:.2f}{keep}"
        )

    def _scored(self) -> str:
        return ", ".join(f"{word} {added:+.2f}" for word, added in self.scored)

    def __repr__(self) -> str:
        return (
            f"Explanation({self.label!r}, {len(self.spans)} tokens, logit {self.logit:.2f}, score"
            f" {self.score:.2f})"
        )

    def _repr_html_(self) -> str:
        body = highlighted(self.text, self.spans, self.attention)
        scored = f"<p>Linear score, by word: {escape(self._scored())}</p>" if self.scored else ""
        return (
            f"<p><b>{escape(self.label)}</b>: {escape(self._head())}</p>{scored}<p"
            f' style="line-height:1.7">{body}</p>'
        )

    def _repr_markdown_(self) -> str:
        best = sorted(self.words, key=lambda word: -word.attention)[:10]
        rows = [
            [w.text, f"{w.attention:.3f}", f"{w.planted:.2f}", f"{w.contribution:+.2f}"]
            for w in best
        ]
        title = f"**{reprs.cell(self.label)}**: {self._head()}"
        if self.scored:
            title += f"\n\nLinear score, by word: {reprs.cell(self._scored())}"
        return (
            title
            + "\n\n"
            + reprs.markdown_table(
                ["word", "attention", "planted score", "part of the logit"], rows
            )
        )


@dataclass(frozen=True, eq=False)
class DocumentExplanation:
    """Several labels of one document, in the order asked for or best first; behaves as a sequence
    of `Explanation`.
    """

    explanations: list[Explanation]

    def __len__(self) -> int:
        return len(self.explanations)

    def __getitem__(self, which: int | str) -> Explanation:
        """By place or by label; KeyError names the labels there are."""
        if isinstance(which, str):
            found = {one.label: one for one in self.explanations}
            if which not in found:
                raise KeyError(f"{which!r} is not explained here; there are {', '.join(found)}")
            return found[which]
        return self.explanations[which]

    def at(self, gain: float | None = None, keep=AS_IT_IS) -> DocumentExplanation:
        """Every label at another planted gain or K; see `Explanation.at`."""
        return DocumentExplanation([one.at(gain, keep) for one in self.explanations])

    def rows(self, k: int = 6) -> list[tuple[str, float, list[tuple[str, float]]]]:
        """(label, score, its k words with most attention) of each label."""
        return [(one.label, one.score, one.top_words(k)) for one in self.explanations]

    def save_html(self, path: str | Path) -> Path:
        """Write one HTML file that needs nothing else, atomically. It holds the document's text."""
        return save_page(path, f"Explanation of {len(self)} labels", self._repr_html_())

    def _cells(self) -> list[list[str]]:
        said = [
            ", ".join(f"{word} {weight:.2f}" for word, weight in words)
            for _, _, words in self.rows()
        ]
        return [
            [one.label, f"{one.score:.2f}", words]
            for one, words in zip(self.explanations, said, strict=True)
        ]

    def __repr__(self) -> str:
        return f"DocumentExplanation({', '.join(f'{one.label} {one.score:.2f}' for one in self.explanations) or 'no label'})"

    def table_html(self) -> str:
        """The labels with their scores and words alone, as an HTML table."""
        return reprs.html_table(["label", "score", "words behind it (attention)"], self._cells())

    def _repr_html_(self) -> str:
        return self.table_html() + "".join(one._repr_html_() for one in self.explanations)

    def _repr_markdown_(self) -> str:
        return reprs.markdown_table(
            ["label", "score", "words behind it (attention)"], self._cells()
        )


def highlighted(
    text: str, spans: Sequence[tuple[int, int]], weights: np.ndarray, colour: str = "230,159,0"
) -> str:
    """`text` as HTML, each token on a ground as dark as its weight, the largest the darkest;
    overlapping tokens as one.
    """
    runs: list[list] = []
    for (begin, end), weight in zip(spans, weights, strict=True):
        if runs and begin < runs[-1][1]:
            runs[-1][1:] = max(end, runs[-1][1]), runs[-1][2] + float(weight)
        elif end > begin:
            runs.append([begin, end, float(weight)])
    strongest, parts, last = max([run[2] for run in runs] + [1e-12]), [], 0
    for begin, end, weight in runs:
        parts.append(escape(text[last:begin]))
        shade = f"rgba({colour},{max(weight, 0.0) / strongest:.2f})"
        parts.append(
            f'<span style="background:{shade}"'
            f' title="{weight:.3f}">{escape(text[begin:end])}</span>'
        )
        last = end
    return "".join(parts) + escape(text[last:])


def _words(text: str, spans, attention, planted, contribution):
    """The words of `text` that hold a token. A token belongs to the word it shares most characters
    with, else stands alone.
    """
    places = [match.span() for match in WORD.finditer(text)]
    found: dict[tuple[int, int], list[float]] = {}
    first = 0
    for i, (begin, end) in enumerate(spans):
        while first < len(places) and places[first][1] <= begin:
            first += 1
        last = first
        while last < len(places) and places[last][0] < end:
            last += 1
        shared = {place: min(end, place[1]) - max(begin, place[0]) for place in places[first:last]}
        own = found.setdefault(
            max(shared, key=shared.get, default=(begin, end)), [0.0, -np.inf, 0.0]
        )
        own[:] = own[0] + attention[i], max(own[1], planted[i]), own[2] + contribution[i]
    for (begin, end), values in sorted(found.items()):
        yield Word(text[begin:end], begin, end, *(float(value) for value in values))


def explain(model, text: str, labels: Sequence[str]) -> list[Explanation]:
    """One Explanation a label of `text`, which is read window by window: (T, labels) numbers are
    kept of it.

    model: a `PlantModel` with its backbone. Raises ValueError for a label it does not know, naming
    near ones.
    """
    import torch

    columns = torch.tensor(
        [column_of(model, label) for label in labels], dtype=torch.long, device=model.device
    )
    tokens = model.tokenise([text])
    ids, offsets = model._packed(tokens)
    decoder, linear = model.decoder, model.word_scores([text])
    if decoder.l2r is not None or decoder.contexts == "sum" or decoder.stateful == "v1":
        return _first_version(model, text, labels, columns, (ids, offsets), linear)
    learned, outputs = _read(model, ids, offsets, columns)
    relevance, rest = (
        relevance_of(decoder.planted.cells(ids), columns, len(ids)),
        decoder.label_bias[columns],
    )
    if model.teacher_score is not None:
        rest = rest + decoder.teacher_gain * model.teacher_score(ids, offsets)[0, columns]
    if linear is not None:
        rest = rest + decoder.linear_gain * linear[0, columns]
    spans = spans_of(model, text)
    gain, keep = float(decoder.planted_gain), decoder.keep
    calibration = tuple(model.config.calibration or (1.0, 0.0))
    parts = [part.float().cpu().numpy().T for part in (learned, relevance, outputs)]
    scored = words_of_score(model, text, columns.tolist())
    return [
        Explanation(
            label,
            text,
            spans,
            *(part[i] for part in parts),
            gain,
            keep,
            float(rest[i]),
            calibration,
            scored=scored[i],
        )
        for i, label in enumerate(labels)
    ]


def _first_version(model, text, labels, columns, packed, linear) -> list[Explanation]:
    """Explanations of a model with an L2R table, several contexts or the running state: attention
    as its decoder gives it.

    With the running state attention is that over the whole document, as the exact state has it,
    while the logit leans on the last segment; what lies between the two stands in the rest.
    """
    hidden = model.encode(*packed)
    logits, found, spans = (
        model(*packed, hidden, linear_scores=linear).logits[0, columns].tolist(),
        [],
        spans_of(model, text),
    )
    calibration = tuple(model.config.calibration or (1.0, 0.0))
    scored = words_of_score(model, text, columns.tolist())
    for label, column, logit, words in zip(labels, columns.tolist(), logits, scored, strict=True):
        parts = model.decoder.attention(model.packed(hidden, *packed), column)
        attention, planted, outputs = (part.float().cpu().numpy() for part in parts)
        rest = logit - float(attention.astype(np.float64) @ outputs.astype(np.float64))
        more = (rest, calibration, attention, words)
        found.append(
            Explanation(
                label, text, spans, np.zeros_like(planted), planted, outputs, 1.0, None, *more
            )
        )
    return found


def words_of_score(model, text: str, columns: list[int]) -> list[list[tuple[str, float]]]:
    """Words of `text` that raise each label's logit by the linear score, most first; none without
    such a score.
    """
    if model.word_score is None:
        return [[] for _ in columns]
    gain = float(model.decoder.linear_gain)
    return [
        [(word, gain * added) for word, added in parts]
        for parts in model.word_score.parts(text, columns)
    ]


def column_of(model, label: str) -> int:
    """The column of a label; ValueError names the labels that begin alike."""
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
    cut = model.config.max_tokens
    encoded = model.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=cut is not None,
        max_length=cut,
        verbose=False,
    )
    return [tuple(span) for span in encoded["offset_mapping"]]


def relevance_of(cells, columns: torch.Tensor, tokens: int) -> torch.Tensor:
    """G of one document's tokens for some labels, (tokens, labels), from its planted cells or None."""
    import torch

    relevance = torch.zeros((tokens, len(columns)), device=columns.device)
    for i, column in enumerate(columns.tolist() if cells is not None else ()):
        own = cells.labels == column
        relevance[:, i].index_add_(0, cells.positions[own], cells.values[own])
    return relevance


def _read(
    model, ids: torch.Tensor, offsets: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(learned scores, outputs), (T, labels) each, with the hidden states of one window at a time."""

    backbone, memory = model.as_backbone(), ()
    learned = model.decoder.label_bias.new_zeros((len(ids), len(columns)))
    outputs = learned.clone()
    for cut in windows.rounds(backbone, offsets):
        hidden, memory = windows.encode_round(backbone, ids, cut, memory)
        part = slice(cut[0].begin, cut[0].end)
        learned[part], outputs[part] = model.decoder.token_scores(
            model.standardise(hidden).to(learned.dtype), None, columns
        )
    return learned, outputs


def save_page(path: str | Path, title: str, body: str) -> Path:
    """Write `page` atomically; characters that UTF-8 cannot hold become '?'. PrivacyError for text
    of a credentialed corpus.
    """

    privacy.check(body, Path(path))
    with atomic_path(path) as temporary:
        temporary.write_text(page(title, body), encoding="utf-8", errors="replace")
    return Path(path)
