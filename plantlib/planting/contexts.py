"""What a decoder reads and carries along: packed documents, the softmaxes over their tokens, and
the state that one segment of a document leaves for the next.

The decoder has one softmax (`contexts="mixed"`) or three ("sum"); each is a `Branch`, and states of
several stand side by side in one `AttentionState`. See docs/method.md, "The decoder". Parameters
live in `planting.decoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from plantlib.kernels import Cells


class Scored(NamedTuple):
    """The tokens whose L2R scores a position takes: ids (S, n) and weights (S, n) that sum to
    one.
    """

    ids: torch.Tensor
    weights: torch.Tensor


class Packed(NamedTuple):
    """B documents without padding.

    hidden_states: (S, D) of all tokens, one document after the other.
    token_ids: (S,).
    offsets: (B+1), where each document begins; the last entry is S.
    scored: the tokens whose L2R scores count; None takes those of `token_ids`.
    cells: planted cells that these documents have beside those of the planted table, sorted by
        label; their values are added to the table's where both have a cell.
    """

    hidden_states: torch.Tensor
    token_ids: torch.Tensor
    offsets: torch.Tensor
    scored: Scored | None = None
    cells: Cells | None = None


class Branch(NamedTuple):
    """One softmax: queries (L, D), planted cells with their gain, and inattention's K."""

    queries: torch.Tensor
    cells: Cells | None
    gain: torch.Tensor | None
    keep: int | None


class AttentionState(NamedTuple):
    """What has to be remembered of a document after a segment, (B, L) each: O(L) memory whatever
    the length.

    log_sum_exp: m + ln s of the online softmax (running maximum m, sum s, value o).
    value: o / s. With `stateful="v1"` the logits without their bias.
    kept_scores, kept_outputs: (B, L, K), with inattention the K best scores so far and their
    outputs.
    lm_loss: (2,) sum and number of the language model's losses, of a model that streams with one;
    attention does not use it.

    The states of three contexts stand side by side, (B, 3 L).
    """

    log_sum_exp: torch.Tensor
    value: torch.Tensor
    kept_scores: torch.Tensor | None = None
    kept_outputs: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None


def l2r_cells(table, packed: Packed) -> Cells | None:
    """L2R cells of packed tokens; with `packed.scored` the weighted mean over the tokens that stand
    for each.

    table: a `decoder.PlantedTable`.
    """
    if packed.scored is None:
        return table.cells(packed.token_ids)
    ids, weights = packed.scored
    cells = table.cells(ids.flatten())
    if cells is None:
        return None
    values = cells.values * weights.flatten()[cells.positions]
    return Cells(cells.positions // ids.shape[1], cells.labels, values)


def cells_of(batch: Mapping[str, Any]) -> Cells | None:
    """The planted cells that a batch brings along: its cell_positions, cell_labels, cell_values."""
    names = ("cell_positions", "cell_labels", "cell_values")
    if batch.get(names[0]) is None or not len(batch[names[0]]):
        return None
    return Cells(*(batch[name] for name in names))


def together(first: Cells | None, second: Cells | None) -> Cells | None:
    """The cells of both, sorted by label; values of a place that both have are added later."""
    if first is None or second is None:
        return first if second is None else second
    positions, labels, values = (torch.cat(pair) for pair in zip(first, second, strict=True))
    labels, order = labels.sort(stable=True)
    return Cells(positions[order], labels, values[order])


def scaled_sum(*parts: tuple[Cells | None, torch.Tensor]) -> Cells | None:
    """The cells of several tables together, each table's values times its gain.

    Sorted by label; differentiable in the gains. None where no table has a cell.
    """
    parts = [(cells, gain) for cells, gain in parts if cells is not None]
    if not parts:
        return None
    positions = torch.cat([cells.positions for cells, _ in parts])
    labels = torch.cat([cells.labels for cells, _ in parts])
    values = torch.cat([gain * cells.values for cells, gain in parts])
    labels, order = labels.sort(stable=True)
    return Cells(positions[order], labels, values[order])


def branch_scores(
    branch: Branch, outputs: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention scores and outputs of every token, for explanations and inattention's state.

    Args:
        branch: the softmax.
        outputs: (L, D), W.
        hidden: (S, D).
        labels: (U,) ids to compute; all L when None.

    Returns:
        Scores before the softmax and <hidden, W>, (S, L) or (S, U) each.
    """
    num_labels = len(outputs)
    queries = branch.queries if labels is None else branch.queries[labels]
    outputs = outputs if labels is None else outputs[labels]
    scores = hidden @ queries.T
    if branch.cells is not None:
        positions, columns, values = branch.cells
        if labels is not None:
            # columns of the chosen labels; cells of the others are dropped
            column_of = torch.full((num_labels,), -1, device=hidden.device)
            column_of[labels] = torch.arange(len(labels), device=hidden.device)
            chosen = column_of[columns] >= 0
            positions = positions[chosen]
            columns = column_of[columns[chosen]]
            values = values[chosen]
        added = branch.gain * values.to(scores.dtype)
        scores = scores.index_put((positions, columns), added, accumulate=True)
    return scores, hidden @ outputs.T


def joined(states: list[AttentionState]) -> AttentionState:
    """The states of several contexts side by side; shorter lists of kept tokens are filled up."""
    if len(states) == 1:
        return states[0]
    parts = [torch.cat([getattr(s, name) for s in states], 1) for name in ("log_sum_exp", "value")]
    if all(s.kept_scores is None for s in states):
        return AttentionState(*parts)
    shape = states[0].log_sum_exp.shape
    widest = max(s.kept_scores.shape[2] for s in states if s.kept_scores is not None)
    for name, fill in (("kept_scores", float("-inf")), ("kept_outputs", 0.0)):
        none = parts[0].new_zeros(*shape, 0)
        lists = [none if getattr(s, name) is None else getattr(s, name) for s in states]
        filled = [nn.functional.pad(x, (0, widest - x.shape[2]), value=fill) for x in lists]
        parts.append(torch.cat(filled, 1))
    return AttentionState(*parts)


def parted(state: AttentionState, keeps: list[int | None]) -> list[AttentionState]:
    """The states of the contexts that `joined` put together; keeps: inattention's K of each."""
    if len(keeps) == 1:
        return [state]
    count = len(keeps)
    chunks = [[None] * count if part is None else part.chunk(count, 1) for part in state[:4]]
    states = []
    for (log_sum, value, scores, outputs), keep in zip(
        zip(*chunks, strict=True), keeps, strict=True
    ):
        if keep is None or scores is None:
            states.append(AttentionState(log_sum, value))
        else:
            states.append(AttentionState(log_sum, value, scores[..., :keep], outputs[..., :keep]))
    return states
