"""The candidates of a PlantModel of very many labels: each document's best labels by the linear
score, and their logits; docs/method.md, "Candidate labels".

Predictions sum only labels that share a word with a document, so that nothing of size (b, L) is
made. What reads the logits of all labels gets minus infinity for those that are no candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plantlib.candidates import lists
from plantlib.candidates.decoder import CandidateDecoder
from plantlib.data.tokens import Ragged
from plantlib.metrics.topk import TopK
from plantlib.planting.decoder import LabelDecoder, Packed


def decoder_of(config: Any) -> LabelDecoder | CandidateDecoder:
    """The decoder of a `PlantConfig`, of all labels or on candidates."""
    labels, hidden = config.num_labels or 0, config.hidden_size
    sizes = {"num_tokens": config.num_tokens, "num_cells": config.num_planted_cells}
    if config.candidates:
        return CandidateDecoder(labels, hidden, config.rank, **sizes)
    return LabelDecoder(
        labels,
        hidden,
        **sizes,
        keep=config.keep,
        num_l2r_cells=config.num_l2r_cells,
        contexts=config.contexts,
        stateful=config.stateful,
    )


def check_unlabelled(label_rows: torch.Tensor | None) -> None:
    """ValueError where a model on candidates is given labels."""
    if label_rows is not None:
        raise ValueError(
            "a model on candidates is trained by plantlib.fit alone; leave out the labels"
        )


def of_scores(model: Any, packed: Packed, scores: torch.Tensor | None) -> torch.Tensor:
    """Logits (B, L) of packed documents with linear scores (B, L)."""
    assert scores is not None  # `PlantModel.forward` asks for them
    decoder = model.decoder
    width = min(model.config.candidates, scores.shape[1])
    ranked = decoder.list_shift + decoder.list_scale * scores
    ids = torch.from_numpy(lists.best_of(ranked.cpu().numpy(), width)).long().to(scores.device)
    logits = decoder(packed, ids, decoder.relevance, scores.gather(1, ids))
    return torch.full_like(scores, float("-inf")).scatter(1, ids, logits)


def of_words(model: Any, packed: Packed, words: Ragged) -> TopK:
    """The candidates of packed documents with their logits, best first.

    words: ids of the linear score's words, of the same documents.
    """
    score, decoder = model.word_score, model.decoder
    width = min(model.config.candidates, score.num_labels)
    ids, scores = decoder.listed(score.sums(words), score.intercept.cpu().numpy(), width)
    where = torch.from_numpy(ids).long().to(model.device)
    added = torch.from_numpy(np.where(ids < 0, 0, scores)).to(model.device)
    logits = decoder(packed, where, decoder.relevance, added)
    return TopK.of_lists(ids, logits.float().cpu().numpy())
