"""Texts through a PlantModel: logits of any number of documents, one batch at a time.

`PlantModel.predict` and what decides on label sets read documents by it; docs/method.md,
"Long documents".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from plantlib.utils.checks import check_whole


def logits(model: Any, texts: list[str], batch: int = 16) -> Iterator[torch.Tensor]:
    """Logits of N texts, (b, L) per batch, in the order of the texts; dropout is off.

    Args:
        model: a PlantModel with a backbone.
        texts: N documents.
        batch: b, documents read at a time.

    Raises:
        ValueError: one string instead of a list, batch below 1, or a model without a backbone.
    """
    if isinstance(texts, str):
        raise ValueError("predict takes a list of texts, got one string; write predict([text])")
    check_whole("batch", batch)
    return _logits(model, texts, batch)


def _logits(model: Any, texts: list[str], batch: int) -> Iterator[torch.Tensor]:
    model.eval()
    for begin in range(0, len(texts), batch):
        part = texts[begin : begin + batch]
        with torch.inference_mode():
            tokens = model._packed(model.tokenise(part))
            scores = model(*tokens, linear_scores=model.word_scores(part)).logits
        yield scores


def linear_of(model: Any, texts: list[str]) -> Callable[[Sequence[int]], np.ndarray] | None:
    """Rows (b,) of `texts` -> their linear scores (b, L); None for a model without such a score."""
    if model.word_score is None:
        return None
    return lambda rows: model.word_scores([texts[i] for i in rows]).cpu().numpy()
