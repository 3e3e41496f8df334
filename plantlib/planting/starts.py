"""Starts: the values a LabelDecoder begins from; docs/method.md, "Starts".

A start is one name, or several joined by "+":

    random              nothing is planted
    l2r, closed_form    pretrained label queries
    lookup              the teacher as a bias of attention
    shuffled            the control: the lookup of a teacher permuted among labels
    score               the teacher's own score of a document as a term of the logit
    linear              the linear score over words as a term of the logit; training begins from
                        exactly that sum
    v1                  lookup and the scores of a static L2R model beside learned attention, as
                        first published
    outputs             W and beta in closed form (`planting.outputs`)
    evidence            phrases that are marked in training documents, in attention and as terms of
                        the score of the whole text
    phrases             the same with texts of labels and n-grams, which need no marks
    text                labels with few or no documents are taught by their own words too, in
                        attention and score (`teacher.label_texts`)

With `evidence` or `phrases`, `shuffled` permutes among labels what they plant in attention, and
`random` plants nothing there; what they add to the score stays.

Nothing else about a run depends on its start, except that `score`, `linear`, `evidence` and
`phrases` add a term.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from plantlib.kernels.counts import column_counts
from plantlib.planting.decoder import L2R_FROM, LabelDecoder, check_decoder
from plantlib.planting.l2r import Planted
from plantlib.teacher.mig import Teacher
from plantlib.utils.checks import check_fields

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
    "evidence",
    "phrases",
)
PHRASE_STARTS = ("evidence", "phrases")
SCORED = {"score", "text"}  # starts that plant the teacher's document score
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
    """Options of what a start plants.

    v1_lookup, v1_l2r: whether `v1` plants that ingredient; the gain of one that is off begins at
    zero, as in `random`.
    """

    lookup_gain: float = 4.0  # gamma of `lookup`, `shuffled` and `v1`
    v1_lookup: bool = True
    v1_l2r: bool = True

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class V1Config:
    """What the first version does differently, one option each. They hold for all starts of a grid,
    so that these compare.

    contexts, stateful: see `decoder.LabelDecoder`. l2r_from: the token whose L2R score a position
    takes, see `model.lm_head`. l2r_table: train the static L2R model for every start, so that all
    have its parameters.
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
    """The parts of a start's name; ValueError for one that is unknown or contradicts itself."""
    parts = start.split("+")
    unknown = [p for p in parts if p not in STARTS]
    if unknown:
        raise ValueError(
            f"start {start!r}: {unknown[0]!r} is not known; use {', '.join(STARTS)}, or several"
            " joined by '+'"
        )
    names = set(parts)
    if (
        len(names) < len(parts)
        or len(names & set(QUERY_STARTS)) > 1
        or len(names & set(LOOKUP_STARTS)) > 1
        or {"shuffled", "text"} <= names
        or ("outputs" in names and from_score(parts))
    ):
        raise ValueError(
            f"start {start!r} plants the same values twice; name each part once, and one of l2r,"
            " closed_form, one of lookup, shuffled, v1, and neither shuffled beside text nor"
            " outputs beside linear, evidence or phrases"
        )
    return parts


def unplanted(parts: Sequence[str]) -> str:
    """The start of these parts with nothing planted in attention."""
    kept = [part for part in parts if part not in ("lookup", "shuffled", "random")]
    phrases = bool(set(PHRASE_STARTS) & set(kept))
    return "+".join([*(["random"] if phrases or not kept else []), *kept])


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
    """Set every value of `decoder` for `start`.

    Random values come from one generator in one order, so two starts of one seed share all values
    that they do not plant.

    Args:
        decoder: of L labels, V tokens and hidden size D; it is changed in place.
        start: one name of STARTS, or several joined by "+".
        teacher: relevance G (L, V), planted by `lookup`.
        labels: (n, L) csr, training rows of Y; the bias is their log-odds.
        planted: pretrained queries (L, D), for `l2r` and `closed_form`.
        config: options of what is planted.
        l2r_table: (L, V) csr, scores of the static L2R model, for a decoder with such a table;
            `v1` needs one.
        seed: of the random values and of the permutation of `shuffled`.

    Raises:
        ValueError: the start is unknown, or something it plants is missing or of another size.
    """
    # what the start needs is there
    parts = parts_of(start)
    plants_queries = bool(set(QUERY_STARTS) & set(parts))
    if plants_queries and planted is None:
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
    # random values, the prior and the gains
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
            # a context with nothing planted begins at zero
            decoder.context_gain.copy_(torch.tensor([1.0, float(lookup > 0), float(l2r > 0)]))
        decoder.teacher_gain.fill_(SCORE_GAIN if SCORED & set(parts) else 0.0)
        decoder.linear_gain.fill_(LINEAR_GAIN if from_score(parts) else 0.0)
        if from_score(parts):
            # the score of the text knows how frequent a label is, and attention adds nothing before
            # it is trained
            decoder.label_bias.zero_()
            decoder.label_outputs.zero_()
        if "text" in parts:
            # no document would ever correct the random outputs of a label without documents
            untrained = np.flatnonzero(column_counts(labels) == 0)
            decoder.label_outputs[torch.from_numpy(untrained)] = 0.0
        # planted queries
        if plants_queries:
            if planted.label_queries.shape != decoder.label_queries.shape:
                raise ValueError(
                    f"planted queries are {tuple(planted.label_queries.shape)}, the decoder wants"
                    f" {tuple(decoder.label_queries.shape)} (labels, hidden size); pretrain on this"
                    " corpus and backbone"
                )
            decoder.label_queries.copy_(planted.label_queries)
    # planted tables
    looked_up = teacher.shuffled(seed) if "shuffled" in parts else teacher
    decoder.planted.load_relevance(looked_up.relevance)
    if l2r_table is not None:
        decoder.l2r.load_relevance(l2r_table)


def from_score(parts: Iterable[str]) -> bool:
    """Whether training begins from a score of the whole text: the linear one, or of phrases."""
    return bool({"linear", *PHRASE_STARTS} & set(parts))


def plants_phrases(parts: list[str]) -> bool:
    """Whether attention begins with phrases planted."""
    return bool(set(PHRASE_STARTS) & set(parts)) and "random" not in parts


def plants_tokens(parts: list[str]) -> bool:
    """Whether the token teacher has a place in attention: not beside phrases, unless the start
    names it.
    """
    named = {"lookup", "v1", "text"} & set(parts)
    return bool(named) or not set(PHRASE_STARTS) & set(parts)


def gains_of(parts: list[str], config: StartConfig) -> tuple[float, float]:
    """Gamma and rho of a start with these parts."""
    v1 = "v1" in parts
    lookup = {"lookup", "shuffled", "text"} & set(parts) or (v1 and config.v1_lookup)
    lookup = lookup or plants_phrases(parts)
    gamma = config.lookup_gain if lookup else 0.0
    rho = L2R_GAIN if v1 and config.v1_l2r else 0.0
    return gamma, rho


def prior_log_odds(labels: sparse.csr_matrix) -> torch.Tensor:
    """(L,) log-odds of each label among the training rows (n, L), half a document added to both
    sides.
    """
    n = labels.shape[0]
    count = column_counts(labels)
    return torch.from_numpy(np.log((count + 0.5) / (n - count + 0.5)).astype(np.float32))
