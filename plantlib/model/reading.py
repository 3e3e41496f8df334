"""Texts through a PlantModel: logits of any number of documents, in their order.

`PlantModel.predict` and what decides on label sets read documents by it; docs/method.md,
"Long documents" and "Word vectors". Documents are sorted by length within a stretch, so that little
is padded, and a text is cut into words once where the backbone and the linear score read the same
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from plantlib.backbones.features import Features
from plantlib.backbones.words import LookedUp
from plantlib.data.tokens import Ragged
from plantlib.metrics.topk import TopK
from plantlib.model import listing
from plantlib.planting.phrases import Heard
from plantlib.teacher.phrase_cells import DocumentCells
from plantlib.utils.checks import check_whole

STRETCH = 2048  # documents that are tokenised and sorted at a time
CELLS = 2**24  # most logits of a stretch, where a batch has no more
# documents of word vectors read at a time, at least: they take little memory, and a large batch
# shares most of its words
DISTINCT_BATCH = 256

WordStates = Callable[[torch.Tensor], torch.Tensor]


class Read(NamedTuple):
    """What a model reads of texts.

    tokens: of the backbone. words: of the linear score, None for a model without one. heard: what
    planted phrases say, None for a model without phrases.
    """

    tokens: Ragged
    words: Ragged | None
    heard: Heard | None = None


def logits(model: Any, texts: list[str], batch: int = 16) -> Iterator[torch.Tensor]:
    """Logits of N texts, (b, L) per stretch, in the order of the texts; dropout is off.

    Args:
        model: a PlantModel with a backbone.
        texts: N documents.
        batch: documents read at a time.

    Raises:
        ValueError: one string instead of a list, batch below 1, or a model without a backbone.
    """
    _check(texts, batch)
    return _logits(model, texts, batch)


def _logits(model: Any, texts: list[str], batch: int) -> Iterator[torch.Tensor]:
    for part, most in _stretches(model, texts, batch, model.config.num_labels):
        with torch.inference_mode():
            scores = _of_stretch(model, part, most)
        yield scores


def places(model: Any, texts: list[str], k: int, batch: int = 16) -> Iterator[TopK]:
    """The k best labels of N texts, a TopK per stretch, in the order of the texts; dropout is off.

    With candidates nothing of size (b, L) is made, and a document has at most its candidates.

    Args:
        model: a PlantModel with a backbone.
        texts: N documents.
        k: labels per document; at most L are given.
        batch: documents read at a time.

    Raises:
        ValueError: as of `logits`.
    """
    k = min(k, model.config.num_labels)
    if not model.config.candidates:
        for scores in logits(model, texts, batch):
            yield TopK.from_dense(scores, k)
        return
    _check(texts, batch)
    for part, most in _stretches(model, texts, batch, model.config.candidates):
        with torch.inference_mode():
            best = _listed(model, part, most)
        yield best.cut(min(k, best.k))


def _check(texts: list[str], batch: int) -> None:
    """ValueError for one string instead of a list, and for a batch below 1."""
    if isinstance(texts, str):
        raise ValueError("predict takes a list of texts, got one string; write predict([text])")
    check_whole("batch", batch)


def _stretches(
    model: Any, texts: list[str], batch: int, labels: int | None
) -> Iterator[tuple[Read, int]]:
    """What is read of stretches of texts, and how many documents are read at a time; labels: that
    each document has scores of.
    """
    model.eval()
    stretch = max(batch, min(STRETCH, CELLS // max(labels or 0, 1)))
    if word_states(model) is not None:
        batch = distinct_batch(batch, labels or 0)
    for begin in range(0, len(texts), stretch):
        with torch.inference_mode():
            part = read(model, texts[begin : begin + stretch])
        yield part, batch


def _listed(model: Any, documents: Read, batch: int) -> TopK:
    """The candidates of documents that were read, best first, `batch` of like length at a time."""
    assert documents.words is not None  # candidates come from the linear score
    order = np.argsort(-documents.tokens.lengths, kind="stable")
    parts = []
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        ids, offsets = model.pack(documents.tokens.select(rows))
        packed = model.packed(model.encode(ids, offsets), ids, offsets)
        parts.append(listing.of_words(model, packed, documents.words.select(rows)))
    best, place = TopK.concat(parts), np.argsort(order)
    return TopK(best.ids[place], best.scores[place])


def read(model: Any, texts: list[str]) -> Read:
    """Tokens and words of texts."""
    if model.word_score is None:
        return Read(model.tokenise(texts), None, model.heard(texts))
    known = model.word_score.word_lists(texts)
    if shares_words(model):
        most = model.config.max_tokens
        tokens = Ragged.from_lists([list(dict.fromkeys(ids))[:most] for ids in known])
    else:
        tokens = model.tokenise(texts)
    return Read(tokens, Ragged.from_lists(known), model.heard(texts))


def shares_words(model: Any) -> bool:
    """Whether the ids of the model's tokenizer are those of its linear score's words."""
    words = getattr(model.tokenizer, "words", None)
    return words is not None and words == model.word_score.words


def _of_stretch(model: Any, documents: Read, batch: int) -> torch.Tensor:
    """Logits (b, L) of documents that were read, `batch` of like length at a time."""
    states = word_states(model)
    lengths = documents.tokens.lengths
    order = np.argsort(-lengths, kind="stable")
    parts = []
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        ids, offsets = model.pack(documents.tokens.select(rows))
        linear = None
        if documents.words is not None:
            linear = model.word_score(*model.pack(documents.words.select(rows)))
        own: dict[str, torch.Tensor] = {}
        if documents.heard is not None:
            heard = documents.heard.select(rows)
            linear = heard.scores if linear is None else linear + heard.scores
            own = cells_of(model, heard.cells, offsets)
        if states is not None:
            parts.append(of_distinct(model, states, ids, offsets, linear))
        else:
            parts.append(model(ids, offsets, linear_scores=linear, **own).logits)
    place = torch.from_numpy(np.argsort(order)).to(model.device)
    return torch.cat(parts)[place]


def cells_of(model: Any, cells: DocumentCells, offsets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The cells of phrases as a model takes them; offsets: (b + 1), of the packed documents."""
    packed = cells.batch(offsets.cpu().numpy())
    return {name: torch.from_numpy(column).to(model.device) for name, column in packed.items()}


def word_states(model: Any, features: Features | None = None) -> WordStates | None:
    """The function from ids (U,) of words to their hidden states (U, D), where documents are read
    as sets of words, each with one hidden state and cells; None where they are not.

    features: of a model without backbone.
    """
    states: WordStates | None = None
    if features is not None and isinstance(features.array, LookedUp):
        states = torch.from_numpy(features.array.table).__getitem__
    elif features is None and getattr(model.backbone, "is_static", False):
        states = model.backbone.embeddings
    if states is None or model.device.type != "cpu" or model.phrase_score is not None:
        return None
    return states if model.decoder.reads_distinct else None


def distinct_batch(batch: int, labels: int) -> int:
    """Documents that are read at a time as sets of words, where `batch` are asked for."""
    return max(batch, min(DISTINCT_BATCH, CELLS // max(labels, 1)))


def of_distinct(
    model: Any,
    states: WordStates,
    token_ids: torch.Tensor,
    offsets: torch.Tensor,
    linear_scores: torch.Tensor | None,
) -> torch.Tensor:
    """Logits (b, L) of packed token ids (S,) by `LabelDecoder.read_distinct`.

    Args:
        states: see `word_states`.
        token_ids: (S,) packed.
        offsets: (b + 1,).
        linear_scores: (b, L), or None.
    """
    words, places = token_ids.unique(return_inverse=True)
    ones = np.ones(len(places), np.float32)
    size = (len(offsets) - 1, len(words))
    documents = sparse.csr_matrix((ones, places.numpy(), offsets.numpy()), shape=size)
    hidden = model.standardise(states(words))
    z = None if model.teacher_score is None else model.teacher_score(token_ids, offsets)
    value = model.decoder.read_distinct(hidden, words, documents)
    return value + model.decoder.offset(z, linear_scores)


def text_scores(model: Any, texts: list[str]) -> torch.Tensor | None:
    """(B, L) scores of whole texts by words and phrases; None for a model without any."""
    score, heard = model.word_score, model.heard(texts)
    total = None if score is None else score(*model.pack(score.word_ids(texts)))
    if heard is None:
        return total
    return heard.scores if total is None else total + heard.scores


def cells_of_texts(model: Any, texts: list[str]) -> DocumentCells | None:
    """Planted cells of phrases in texts; None for a model without phrases."""
    heard = model.heard(texts)
    return None if heard is None else heard.cells


def linear_of(model: Any, texts: list[str]) -> Callable[[Sequence[int]], np.ndarray] | None:
    """Rows (b,) of `texts` -> their scores (b, L) by words and phrases; None for a model without
    such a score.
    """
    if not model.scores_text:
        return None
    return lambda rows: model.word_scores([texts[i] for i in rows]).cpu().numpy()
