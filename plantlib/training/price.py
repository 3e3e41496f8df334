"""How long a fit with a frozen backbone will take on this processor, roughly, before it starts.

Counted are the multiply-adds of what takes most of the time: the backbone over every token once,
and the head over every training token, label and epoch. A product of matrices that is timed here
and now says how many of them this machine does in a second. Not counted: tokenising, the teacher
and the linear score, which take seconds. docs/method.md, "Training".
"""

from __future__ import annotations

import time

import torch

from plantlib.backbones import loading, words
from plantlib.data.corpus import Corpus

PIECES = 1.4  # tokens of a language model per word of a text
PRODUCTS = 6  # of hidden states and labels per training step and token, evaluation included
SHARE = 0.4  # of the speed of one large product that training reaches
SIZE = (512, 384, 1536)
REPEATS = 8
LONG = 180  # seconds of a fit from which its length is said beforehand


def note(
    corpus: Corpus,
    backbone: str,
    tokens: int | None,
    epochs: int,
    gains: int = 2,
    labels: int | None = None,
) -> str | None:
    """What a person should know before a long fit on a processor, and what the quick tier takes;
    None before a short one and on a GPU. Arguments as for `seconds`.
    """
    options = (tokens, epochs, gains, labels)
    if torch.cuda.is_available() or (wanted := seconds(corpus, backbone, *options)) < LONG:
        return None
    said = f"this fit will take {readable(wanted)} on this processor"
    if backbone == words.NAME:
        return said
    quick = readable(seconds(corpus, words.NAME, *options))
    return f"{said}; --backbone words, the quick tier without a language model, needs {quick}"


def seconds(
    corpus: Corpus,
    backbone: str,
    tokens: int | None,
    epochs: int,
    gains: int = 2,
    labels: int | None = None,
) -> float:
    """Seconds that `training.runs.fit` with a frozen backbone will take on this processor.

    Args:
        corpus: N documents, of which all are read and the training documents are trained on.
        backbone: name or folder of a language model on disk, or "words".
        tokens: read per document at most, None for all.
        epochs: of fine-tuning.
        gains: how many times it is trained, see `training.train.choose`.
        labels: that each document is trained on, all of them when None.
    """
    static = backbone == words.NAME
    lengths = [len(set(text.split())) if static else len(text.split()) for text in corpus.texts]
    most = tokens or max(lengths, default=0)
    read = [min(length if static else PIECES * length, most) for length in lengths]
    if static:
        hidden, weights = words.DIM, 0.0
    else:
        config = loading.config_of(backbone)
        hidden = loading.hidden_size_of(config)
        # the table of tokens is looked up, not multiplied
        table = config.get_text_config().vocab_size * hidden
        weights = max(loading.float32_bytes(backbone) / 4 - table, 0.0)
    trained = sum(read[i] for i in corpus.rows("train"))
    head = PRODUCTS * trained * (labels or corpus.L) * hidden * epochs * gains
    return (weights * sum(read) + head) / (SHARE * speed())


def speed() -> float:
    """Multiply-adds in a second of a product of matrices in float32, the best of a few."""
    rows, inner, columns = SIZE
    left, right = torch.ones(rows, inner), torch.ones(inner, columns)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - began)
    return rows * inner * columns / min(times)


def readable(duration: float) -> str:
    """About how long, in words."""
    if duration < 90:
        return f"about {max(10, round(duration, -1)):.0f} seconds"
    if duration < 5400:
        return f"about {duration / 60:.0f} minutes"
    return f"about {duration / 3600:.1f} hours"
