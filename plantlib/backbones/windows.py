"""Windows of long documents: packed token ids -> backbone -> packed hidden states, gradients kept;
or one window at a time.

A document longer than the backbone's window is cut into consecutive windows; each gets the special
tokens of the tokenizer, and their states are dropped again, so the decoder sees real tokens only
(METHOD.md section 4, padding and special tokens masked). With an overlap a window also reads that
many neighbours on either side (a causal model on the left alone); they lend context and their own
states are dropped, so every token is attended to once. `encode` reads all windows of a batch
together; `rounds` orders them for a reader that keeps the streaming state and one window of every
document in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from plantlib.backbones.loading import specials


class Window(NamedTuple):
    """Packed tokens [begin, end) whose states are kept, read within [first, last)."""

    begin: int
    end: int
    first: int
    last: int


def spans(
    offsets: torch.Tensor, window: int, overlap: int = 0, causal: bool = False
) -> list[list[Window]]:
    """The windows of every document over the packed tokens; documents are cut evenly, no window
    spans two.
    """
    stride = window - overlap * (1 if causal else 2)
    if overlap < 0 or stride < 1:
        raise ValueError(
            f"overlap={overlap} leaves no room in a window of {window} tokens; give less than"
            f" {-(-window // 2)}"
        )
    cut = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        parts = 1 if 0 < end - begin <= window else -(-(end - begin) // stride)
        edges = [begin + (end - begin) * i // max(parts, 1) for i in range(parts + 1)]
        cut.append(
            [
                Window(a, b, max(begin, a - overlap), b if causal else min(end, b + overlap))
                for a, b in zip(edges[:-1], edges[1:], strict=True)
            ]
        )
    return cut


def padded(token_ids: torch.Tensor, cut: list[Window], tokenizer):
    """input_ids, attention_mask and a mask of the tokens whose states are kept, (windows, longest)
    each.

    Padded on the right whatever the tokenizer's own side: positions then start at the text, as in
    pretraining.
    """
    prefix, suffix = specials(tokenizer)
    extra = len(prefix) + len(suffix)
    width = max(w.last - w.first for w in cut) + extra
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    input_ids = token_ids.new_full((len(cut), width), fill)
    attention, kept = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (begin, end, first, last) in enumerate(cut):
        whole = [*prefix, *token_ids[first:last].tolist(), *suffix]
        input_ids[row, : len(whole)] = token_ids.new_tensor(whole)
        attention[row, : len(whole)] = 1
        shift = len(prefix) - first
        kept[row, begin + shift : end + shift] = True
    return input_ids, attention, kept


def is_causal(model) -> bool:
    """Whether tokens see only what is before them, asked of the attention layers."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


def carries_state(backbone) -> bool:
    """Whether the backbone goes on from a window's end: a recurrent one does, and then needs no
    overlap for context.
    """
    return bool(getattr(backbone.model, "carries_state", False)) and backbone.overlap == 0


def encode(backbone, token_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Hidden states (S, D) of packed token ids (S,); offsets (B+1). Differentiable in the
    backbone's parameters.
    """
    if not carries_state(backbone):
        return encode_windows(
            backbone, token_ids, [w for document in _cut(backbone, offsets) for w in document]
        )
    memory, pieces = (), {}
    for cut in rounds(backbone, offsets):
        hidden, memory = encode_round(backbone, token_ids, cut, memory)
        present = [w for w in cut if w is not None]
        parts = hidden.split([w.end - w.begin for w in present])
        pieces |= {w.begin: part for w, part in zip(present, parts, strict=True)}
    return (
        torch.cat([pieces[begin] for begin in sorted(pieces)])
        if pieces
        else encode_windows(backbone, token_ids, [])
    )


def encode_round(backbone, token_ids: torch.Tensor, cut: list[Window | None], memory: tuple = ()):
    """(kept hidden states of one window of each document, memory after it); memory is () unless the
    backbone carries a state.

    memory: what a recurrent backbone knows of each of the B documents, (1, B, size) tensors, h and
    c of every layer in turn.
    """
    present = [w for w in cut if w is not None]
    if not carries_state(backbone):
        return encode_windows(backbone, token_ids, present), ()
    rows = torch.tensor([i for i, w in enumerate(cut) if w is not None], device=token_ids.device)
    own = [m.index_select(1, rows) for m in memory]
    input_ids, attention, kept = padded(token_ids, present, backbone.tokenizer)
    state = list(zip(own[::2], own[1::2], strict=True)) or None
    output = backbone.model(input_ids=input_ids, attention_mask=attention, state=state)
    after = [s for pair in output.state for s in pair]
    memory = memory or tuple(s.new_zeros(1, len(cut), s.shape[2]) for s in after)
    memory = tuple(m.index_copy(1, rows, s.to(m.dtype)) for m, s in zip(memory, after, strict=True))
    return output.last_hidden_state[kept], memory


def encode_windows(backbone, token_ids: torch.Tensor, cut: list[Window]) -> torch.Tensor:
    """Kept hidden states of some windows, one after another."""
    if not cut:
        return torch.zeros((0, backbone.hidden_size), device=token_ids.device)
    input_ids, attention, kept = padded(token_ids, cut, backbone.tokenizer)
    return backbone.model(input_ids=input_ids, attention_mask=attention).last_hidden_state[kept]


def _cut(backbone, offsets: torch.Tensor) -> list[list[Window]]:
    overlap = backbone.overlap
    return spans(offsets, backbone.window, overlap, overlap > 0 and is_causal(backbone.model))


def rounds(backbone, offsets: torch.Tensor) -> Iterator[list[Window | None]]:
    """Round r holds the r-th window of every document, None where it has been read to its end.

    A recurrent backbone that reads texts from their end gets the last windows first.
    """
    yield from rounds_of(
        _cut(backbone, offsets), carries_state(backbone) and not is_causal(backbone.model)
    )


def rounds_of(cut: list[list[Window]], from_the_end: bool = False) -> Iterator[list[Window | None]]:
    """The rounds of windows that are cut already."""
    cut = [document[::-1] for document in cut] if from_the_end else cut
    for r in range(max((len(document) for document in cut), default=0)):
        yield [document[r] if r < len(document) else None for document in cut]
