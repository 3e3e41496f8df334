"""Documents read window by window: the decoder's state is carried from one window to the next.

docs/method.md, "The decoder". How documents are cut is in `backbones.windows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from plantlib.backbones import windows
from plantlib.kernels import Cells
from plantlib.planting.decoder import AttentionState


def stream(
    model: Any, token_ids: torch.Tensor, offsets: torch.Tensor, cells: Cells | None = None
) -> AttentionState:
    """The decoder's state after reading documents window by window.

    With stateful="exact" it equals that of reading whole documents. In training a window is
    read again in the backward pass, so memory holds one window of each document and (B, L)
    numbers per round, however long the documents are.

    Args:
        model: a `PlantModel` with a backbone.
        token_ids: (S,) packed.
        offsets: (B+1,).
        cells: planted cells of these documents alone, see `Packed`.
    """
    backbone = model.as_backbone()
    recompute = torch.is_grad_enabled() and model.training
    state: tuple = model.decoder.start_state(len(offsets) - 1)
    state = (*state[:4], model.decoder.label_bias.new_zeros(2))
    for cut in windows.rounds(backbone, offsets):
        # this round's tokens: one window of each document
        starts = windows.starts_of(cut, offsets.device)
        ids = torch.cat([token_ids[w.begin : w.end] for w in cut if w is not None])
        own = cells_within(cells, cut, len(token_ids))

        def read(
            ids: torch.Tensor,
            starts: torch.Tensor,
            *state: Any,
            cut: list = cut,
            own: Cells | None = own,
        ) -> tuple:
            # state: four tensors of attention, one of the language model's loss, then the
            # memory of a recurrent backbone
            hidden, memory = windows.encode_round(backbone, token_ids, cut, state[5:])
            lm = model.lm_loss(hidden, ids, starts)
            packed = model.packed(hidden, ids, starts, own)
            after = model.decoder.read(packed, AttentionState(*state[:4]))
            return (*after[:4], state[4] if lm is None else state[4] + lm, *memory)

        if recompute:
            state = checkpoint(read, ids, starts, *state, use_reentrant=False)
        else:
            state = read(ids, starts, *state)
    return AttentionState(*state[:5])


def read_segments(
    model: Any,
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    offsets: torch.Tensor,
    cells: Cells | None = None,
) -> AttentionState:
    """As `stream`, from hidden states (S, D) that are computed already.

    For stateful="v1", where the result depends on the segments.
    """
    state = model.decoder.start_state(len(offsets) - 1)
    cut = windows.spans(offsets, model.config.window)
    for segments in windows.rounds_of(cut, model.config.backward):
        present = [slice(w.begin, w.end) for w in segments if w is not None]
        states, ids = (torch.cat([x[part] for part in present]) for x in (hidden, token_ids))
        own = cells_within(cells, segments, len(token_ids))
        packed = model.packed(states, ids, windows.starts_of(segments, offsets.device), own)
        state = model.decoder.read(packed, state)
    return state


def cells_within(
    cells: Cells | None, cut: list[windows.Window | None], tokens: int
) -> Cells | None:
    """The planted cells at the tokens of one window of each document, by their places in it.

    tokens: S of the whole batch.
    """
    if cells is None:
        return None
    place = cells.positions.new_full((tokens,), -1)
    begin = 0
    for w in cut:
        if w is not None:
            place[w.begin : w.end] = torch.arange(begin, begin + w.end - w.begin).to(place)
            begin += w.end - w.begin
    inside = place[cells.positions] >= 0
    return Cells(place[cells.positions[inside]], cells.labels[inside], cells.values[inside])
