"""Starts: the values a LabelDecoder begins from. Everything else about a run is the same, but for
`score`, which adds a term.

Realises METHOD.md section 4, "initialisations that differ ONLY in where Q and gamma start". A start
is one name or several joined by "+": `random`; `l2r` or `closed_form` (planted queries); `lookup`
(the teacher as attention bias); `shuffled` (the lookup of a teacher permuted among labels, the
control); `score` (the teacher's own document score as a term of the logit); `linear` (SVM, teachers
and centroids over words as a term of the logit: training begins from that sum, exactly); `v1`
(lookup and the scores of a static L2R model beside learned attention, as first published);
`outputs` (W and beta in closed form: `planted_outputs`); `text` (labels with no or few documents
are taught by their own words too, in the attention and in the score: `label_texts`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from plantlib.kernels.counts import column_counts
from plantlib.planting.decoder import L2R_FROM, LabelDecoder, check_decoder
from plantlib.planting.l2r import Planted
from plantlib.teacher.mig import Teacher

STARTS = (
    "random",
    "l2r",
    "closed_form",
    "lookup",
    "shuffled",
    "score",
    "linear",
    "v1",
    "text",
    "outputs",
)
SCORED = {"score", "text"}  # these plant the document score
QUERY_STARTS = ("l2r", "closed_form")
LOOKUP_STARTS = ("lookup", "shuffled", "v1")

# rho of `v1`, smaller than gamma: a token may have both scores
L2R_GAIN = 2.0
# delta of `score` and lambda of `linear`: both scores come in the size of a logit
SCORE_GAIN = 1.0
LINEAR_GAIN = 1.0
# standard deviation of random Q and W, as BERT has: attention begins nearly even
INIT_STD = 0.02


@dataclass(frozen=True)
class StartConfig:
    """Sizes of the initial values, the same for every start.

    v1_lookup, v1_l2r: whether `v1` plants that ingredient; one that is off starts as `random` has
    it, its gain at zero.
    """

    lookup_gain: float = 4.0  # gamma of `lookup`, `shuffled` and `v1`
    v1_lookup: bool = True
    v1_l2r: bool = True


@dataclass(frozen=True)
class V1Config:
    """What the first version does differently, each apart; no start sets any of it, so that starts
    of one grid compare.

    contexts, stateful: see `decoder.LabelDecoder`. l2r_from: whose L2R score a position takes, see
    `lm_head`. l2r_table: train the static L2R model whatever the start, so that all starts have its
    parameters.
    """

    contexts: str = "mixed"
    stateful: str = "exact"
    l2r_from: str = "read"
    l2r_table: bool = False

    def __post_init__(self):
        check_decoder(self.contexts, self.stateful, None, 1)
        if self.l2r_from not in L2R_FROM:
            raise ValueError(
                f"l2r_from={self.l2r_from!r} is not known; use one of {', '.join(L2R_FROM)}"
            )

    def wants_table(self, start: str) -> bool:
        """Whether a run of `start` has an L2R table."""
        return self.l2r_table or self.contexts == "sum" or "v1" in parts_of(start)


def parts_of(start: str) -> list[str]:
    """The parts of a start name; raises ValueError for an unknown or contradictory one."""
    parts = start.split("+")
    unknown = [p for p in parts if p not in STARTS]
    if unknown:
        raise ValueError(
            f"start {start!r}: {unknown[0]!r} is not known; use {', '.join(STARTS)}, or several"
            " joined by '+'"
        )
    repeated = len(set(parts)) < len(parts)
    clash = sum(p in LOOKUP_STARTS for p in parts) > 1 or {"shuffled", "text"} <= set(parts)
    clash = clash or {"linear", "outputs"} <= set(parts)
    if repeated or sum(p in QUERY_STARTS for p in parts) > 1 or clash:
        raise ValueError(
            f"start {start!r} plants the same values twice; name each part once, and one of l2r,"
            " closed_form, one of lookup, shuffled, v1, and neither shuffled beside text nor"
            " outputs beside linear"
        )
    return parts


def plant(
    decoder: LabelDecoder,
    start: str,
    teacher: Teacher,
    labels: sparse.csr_matrix,
    *,
    planted: Planted | None = None,
    config: StartConfig = StartConfig(),
    l2r_table: sparse.csr_matrix | None = None,
    seed: int = 0,
) -> None:
    """Set every value of `decoder` for `start`; labels are the training rows of Y (n, L), for the
    bias only.

    l2r_table, csr (L, V): scores of the static L2R model, for a decoder that has a place for them
    (`v1` needs one).

    The random values come from one generator in one order, so two starts of one seed share all they
    do not plant.
    """
    parts = parts_of(start)
    wanted = next((p for p in parts if p in QUERY_STARTS), None)
    if wanted and planted is None:
        raise ValueError(
            f"start {start!r} needs pretrained queries; run l2r.pretrain and pass planted="
        )
    if (decoder.l2r is None) != (l2r_table is None) or ("v1" in parts and l2r_table is None):
        place = "a place" if decoder.l2r is not None else "no place"
        raise ValueError(
            f"start {start!r}: the decoder has {place} for an L2R table and"
            f" {'none' if l2r_table is None else 'one'} came with it; train one with"
            " static_l2r.pretrain, size the decoder by num_l2r_cells and pass l2r_table=, or do"
            " without both"
        )
    lookup, l2r = gains_of(parts, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        decoder.label_queries.normal_(0, INIT_STD, generator=generator)
        decoder.label_outputs.normal_(0, INIT_STD, generator=generator)
        decoder.label_bias.copy_(prior_log_odds(labels))
        decoder.planted_gain.fill_(lookup)
        if decoder.l2r is not None:
            decoder.l2r_gain.fill_(l2r)
        if decoder.contexts == "sum":
            # a context counts from the start where something is planted in it; the others wait at
            # zero
            decoder.context_gain.copy_(torch.tensor([1.0, float(lookup > 0), float(l2r > 0)]))
        decoder.teacher_gain.fill_(SCORE_GAIN if SCORED & set(parts) else 0.0)
        decoder.linear_gain.fill_(LINEAR_GAIN if "linear" in parts else 0.0)
        if "linear" in parts:
            # the linear score knows how frequent a label is, and attention adds nothing until it
            # has learnt something
            decoder.label_bias.zero_()
            decoder.label_outputs.zero_()
        if "text" in parts:
            # random outputs of a label that no document trains would be noise for good
            decoder.label_outputs[torch.from_numpy(np.flatnonzero(column_counts(labels) == 0))] = (
                0.0
            )
        if wanted:
            if planted.label_queries.shape != decoder.label_queries.shape:
                raise ValueError(
                    f"planted queries are {tuple(planted.label_queries.shape)}, the decoder wants"
                    f" {tuple(decoder.label_queries.shape)} (labels, hidden size); pretrain on this"
                    " corpus and backbone"
                )
            decoder.label_queries.copy_(planted.label_queries)
    decoder.planted.load_relevance(
        (teacher.shuffled(seed) if "shuffled" in parts else teacher).relevance
    )
    if l2r_table is not None:
        decoder.l2r.load_relevance(l2r_table)


def gains_of(parts: list[str], config: StartConfig) -> tuple[float, float]:
    """(gamma, rho) at the start."""
    v1 = "v1" in parts
    lookup = {"lookup", "shuffled", "text"} & set(parts) or (v1 and config.v1_lookup)
    return config.lookup_gain if lookup else 0.0, L2R_GAIN if v1 and config.v1_l2r else 0.0


def prior_log_odds(labels: sparse.csr_matrix) -> torch.Tensor:
    """(L,) log-odds of each label among training documents, half a document added to both sides."""
    n = labels.shape[0]
    count = column_counts(labels)
    return torch.from_numpy(np.log((count + 0.5) / (n - count + 0.5)).astype(np.float32))
