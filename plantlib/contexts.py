"""The softmaxes of a decoder: what one reads, how planted scores are summed, how the states of several stand side by side.

Realises METHOD.md section 4, "`v1` (three attentions summed: learned + static lookup + L2R)". Everything is in planted cells
and in numbers a (document, label); `decoder.py` holds the parameters and reads, `kernels/` computes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from plantlib.kernels import Cells

CONTEXTS = ("mixed", "sum")
STATEFUL = ("exact", "v1")


class Scored(NamedTuple):
    """Whose L2R score a position takes: ids (S, n) of tokens and their weights (S, n), which sum to one."""

    ids: torch.Tensor
    weights: torch.Tensor


class Packed(NamedTuple):
    """B documents without padding: hidden_states (S, D), token_ids (S,), offsets (B+1); scored None: the tokens read."""

    hidden_states: torch.Tensor
    token_ids: torch.Tensor
    offsets: torch.Tensor
    scored: Scored | None = None


class Branch(NamedTuple):
    """One softmax: queries (L, D), planted cells with their gain, and inattention's K."""

    queries: torch.Tensor
    cells: Cells | None
    gain: torch.Tensor | None
    keep: int | None


class AttentionState(NamedTuple):
    """What a document leaves behind when a segment has been read, (B, L) each: O(L) memory for any length.

    `log_sum_exp` = m + ln s and `value` = o / s of the online softmax triple (running max m, sum s, value o).
    With inattention, the best K scores and outputs so far, (B, L, K), are carried instead. Three contexts stand side by
    side, (B, 3 L). `stateful="v1"` carries the logits but for their bias, (B, L), as `value`.
    """

    log_sum_exp: torch.Tensor
    value: torch.Tensor
    kept_scores: torch.Tensor | None = None
    kept_outputs: torch.Tensor | None = None
    # (2,) sum and number of the language model's losses of a model that streams with one; no part of attention
    lm_loss: torch.Tensor | None = None


def check_decoder(contexts: str, stateful: str, keep, num_l2r_cells: int) -> None:
    """ValueError for options of a decoder that are unknown or contradict one another."""
    for name, value, known in (("contexts", contexts, CONTEXTS), ("stateful", stateful, STATEFUL)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(known)}")
    if contexts == "sum" and not num_l2r_cells:
        raise ValueError("contexts='sum' has a context of L2R scores and there is no L2R table; plant one, or use 'mixed'")
    several = isinstance(keep, (list, tuple))
    if several and (contexts != "sum" or len(keep) != 3):
        raise ValueError(f"keep={list(keep)}: give three numbers with contexts='sum', a K a context, and else one or None")
    if any(k is not None and k < 1 for k in (keep if several else [keep])):
        raise ValueError(f"keep={keep}: inattention keeps at least 1 token; use None to attend to all")


def l2r_cells(table, packed: Packed) -> Cells | None:
    """L2R cells of packed tokens, or of the tokens that stand for them, weighted: the expected score where they are several.

    table: a `decoder.PlantedTable`.
    """
    if packed.scored is None:
        return table.cells(packed.token_ids)
    ids, weights = packed.scored
    cells = table.cells(ids.flatten())
    if cells is None:
        return None
    return Cells(cells.positions // ids.shape[1], cells.labels, cells.values * weights.flatten()[cells.positions])


def scaled_sum(*parts: tuple[Cells | None, torch.Tensor]) -> Cells | None:
    """Cells of values times gains of several tables together, sorted by label; differentiable in the gains."""
    parts = [(cells, gain) for cells, gain in parts if cells is not None]
    if not parts:
        return None
    positions, labels = (torch.cat([getattr(cells, name) for cells, _ in parts]) for name in ("positions", "labels"))
    values = torch.cat([gain * cells.values for cells, gain in parts])
    labels, order = labels.sort(stable=True)
    return Cells(positions[order], labels, values[order])


def branch_scores(branch: Branch, outputs, hidden, labels: torch.Tensor | None = None):
    """Attention scores and outputs of every token, (S, L) each: for explanations and inattention's state."""
    num_labels = len(outputs)
    queries = branch.queries if labels is None else branch.queries[labels]
    outputs = outputs if labels is None else outputs[labels]
    scores = hidden @ queries.T
    if branch.cells is not None:
        where, label, value = branch.cells
        if labels is not None:
            column = torch.full((num_labels,), -1, device=hidden.device)
            column[labels] = torch.arange(len(labels), device=hidden.device)
            inside = column[label] >= 0
            where, label, value = where[inside], column[label[inside]], value[inside]
        scores = scores.index_put((where, label), branch.gain * value.to(scores.dtype), accumulate=True)
    return scores, hidden @ outputs.T


def joined(states: list[AttentionState]) -> AttentionState:
    """The states of several contexts side by side; kept tokens are filled up to the longest list."""
    if len(states) == 1:
        return states[0]
    parts = [torch.cat([getattr(s, name) for s in states], 1) for name in ("log_sum_exp", "value")]
    if all(s.kept_scores is None for s in states):
        return AttentionState(*parts)
    shape, widest = states[0].log_sum_exp.shape, max(s.kept_scores.shape[2] for s in states if s.kept_scores is not None)
    for name, fill in (("kept_scores", float("-inf")), ("kept_outputs", 0.0)):
        kept = [parts[0].new_zeros(*shape, 0) if getattr(s, name) is None else getattr(s, name) for s in states]
        parts.append(torch.cat([nn.functional.pad(k, (0, widest - k.shape[2]), value=fill) for k in kept], 1))
    return AttentionState(*parts)


def parted(state: AttentionState, keeps: list[int | None]) -> list[AttentionState]:
    """The states of the contexts that `joined` put together."""
    if len(keeps) == 1:
        return [state]
    chunks = [[None] * len(keeps) if part is None else part.chunk(len(keeps), 1) for part in state[:4]]
    return [
        AttentionState(log_sum, value, *((None, None) if keep is None or s is None else (s[..., :keep], o[..., :keep])))
        for (log_sum, value, s, o), keep in zip(zip(*chunks, strict=True), keeps, strict=True)
    ]
