"""Planted phrases of an exported model: what the ONNX graph computes from the phrases of a
document, and the file that a reader finds them by; docs/method.md, "Planted phrases".

A graph of token ids cannot look for phrases, which are runs of normalised words. So the reader of
the graph finds them in the text, as docs/guide.md shows, and tells the graph which phrases touch
which tokens. Weights, cells and the score of the whole text are in the graph.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import regex
import torch
from torch import nn

from plantlib.linear.phrase_term import FLOOR
from plantlib.planting.phrases import PhraseScore
from plantlib.teacher.phrase_cells import LEAST
from plantlib.teacher.phrase_matching import MARK, SPACED_LETTER, UNSPACED_LETTER


class CellLists(nn.Module):
    """Lists of cells (label, value), each padded to the longest.

    indptr: (V + 1,), where the cells of each list begin. labels, values: (M,).
    """

    def __init__(self, indptr: torch.Tensor, labels: torch.Tensor, values: torch.Tensor):
        super().__init__()
        count = indptr.diff()
        self.register_buffer("first", indptr[:-1].clone())
        self.register_buffer("count", count)
        self.register_buffer("within", torch.arange(max(int(count.max()), 1)))
        # one cell at least, so that every place of a list leads to one
        self.register_buffer("labels", labels.long() if len(labels) else torch.zeros(1).long())
        self.register_buffer("values", values if len(values) else torch.zeros(1))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and values of lists `ids` (S,), (S, longest) each; 0 behind a list's end."""
        place = self.first[ids][:, None] + self.within
        used = self.within < self.count[ids][:, None]
        place = place.clamp(max=len(self.labels) - 1)
        return self.labels[place], torch.where(used, self.values[place], 0.0)


class Phrases(nn.Module):
    """What `planting.phrases.PhraseScore` says of one document whose phrases are known.

    The phrases of all lists have one numbering, list after list.
    """

    def __init__(self, score: PhraseScore):
        super().__init__()
        lists = [table.phrases for table in score.tables]
        num_labels = len(score.intercept)
        # one more phrase, without cells, so that there is one
        counts = np.concatenate([*(np.diff(one.indptr) for one in lists), [0]])
        phrase = np.repeat(np.arange(len(counts)), counts)
        labels = np.concatenate([one.labels for one in lists])
        values = np.concatenate([one.values for one in lists])
        term = np.repeat(np.arange(len(lists)), [len(one.labels) for one in lists])
        # the score of the whole text, in double precision as there
        self.register_buffer("silent", torch.zeros(len(counts)))
        self.register_buffer("phrase", torch.from_numpy(phrase))
        self.register_buffer("column", torch.from_numpy(term * num_labels + labels))
        self.register_buffer("logs", torch.from_numpy(-np.log1p(-values.astype(np.float64))))
        self.register_buffer("weights", torch.stack([table.weight for table in score.tables]))
        self.register_buffer("intercept", score.intercept.clone())
        # attention
        heavy = values >= LEAST
        indptr = np.searchsorted(phrase[heavy], np.arange(len(counts) + 1))
        columns = score.columns[torch.from_numpy(labels[heavy]).long()]
        self.lists = CellLists(torch.from_numpy(indptr), columns, torch.from_numpy(values[heavy]))

    def score(self, phrases: torch.Tensor) -> torch.Tensor:
        """(L,) score of a document that holds `phrases` (P,); one that is named twice counts
        once.
        """
        held = self.silent.scatter(0, phrases, torch.ones_like(phrases, dtype=torch.float32))
        logs = torch.where(held[self.phrase] > 0, self.logs, 0.0)
        total = torch.zeros_like(self.weights, dtype=torch.float64).flatten()
        said = 1 - torch.exp(-total.scatter_add(0, self.column, logs))
        terms = torch.log(1 + said / FLOOR).float().view_as(self.weights)
        return (terms * self.weights).sum(0) + self.intercept

    def planted(self, phrases: torch.Tensor, tokens: torch.Tensor, count: Any) -> torch.Tensor:
        """(count, L) planted values: the largest that a phrase has for the label at the token.

        phrases, tokens: (P,) each, phrases and tokens that they touch; places from `count` on are
            not read.
        """
        labels, values = self.lists(phrases)
        num_labels = len(self.intercept)
        cells = (tokens.clamp(max=count)[:, None] * num_labels + labels).flatten()
        table = values.new_zeros((count + 1) * num_labels)
        table = table.scatter_reduce(0, cells, values.flatten(), "amax")
        return table.view(count + 1, num_labels)[:count]


def listed(score: PhraseScore) -> dict[str, Any]:
    """What the reader of a graph finds phrases by: the pattern of a word, and for each list the
    form of its words and its phrases.
    """
    lists = [table.phrases.trie for table in score.tables]
    return {
        "word": word_pattern(),
        "lists": [{"form": one.form, "phrases": one.phrases} for one in lists],
    }


def word_pattern() -> str:
    """`phrase_matching.WORD` with its characters in place of their properties, as every regular
    expression knows it.
    """
    every = "".join(map(chr, range(sys.maxunicode + 1)))

    def characters(one: str) -> str:
        runs = regex.finditer(f"(?V1){one}+", every)
        return "[" + "".join(f"{run[0][0]}-{run[0][-1]}" for run in runs) + "]"

    unspaced, mark, spaced = map(characters, (UNSPACED_LETTER, MARK, SPACED_LETTER))
    return f"{unspaced}{mark}*|{spaced}+"
