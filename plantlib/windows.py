"""Windows of long documents: packed token ids -> backbone -> packed hidden states, gradients kept.

A document longer than the backbone's window is cut into consecutive windows; each gets the special tokens of the
tokenizer, and their states are dropped again, so the decoder sees real tokens only (METHOD.md section 4, padding and
special tokens masked). Windows of all documents of a batch go through the backbone together.
"""

from __future__ import annotations

import torch

from plantlib.backbones import specials


def spans(offsets: torch.Tensor, window: int) -> list[tuple[int, int]]:
    """(begin, end) of every window over the packed tokens; documents are cut evenly, none spans two."""
    cut = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        parts = -(-(end - begin) // window)
        edges = [begin + (end - begin) * i // max(parts, 1) for i in range(parts + 1)]
        cut.extend(zip(edges[:-1], edges[1:], strict=True))
    return cut


def padded(token_ids: torch.Tensor, cut: list[tuple[int, int]], tokenizer):
    """input_ids, attention_mask and a mask of real tokens, (windows, longest) each, padded on the right."""
    prefix, suffix = specials(tokenizer)
    extra = len(prefix) + len(suffix)
    width = max(end - begin for begin, end in cut) + extra
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    input_ids = token_ids.new_full((len(cut), width), fill)
    attention, real = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (begin, end) in enumerate(cut):
        length = end - begin
        whole = [*prefix, *token_ids[begin:end].tolist(), *suffix]
        input_ids[row, : len(whole)] = token_ids.new_tensor(whole)
        attention[row, : len(whole)] = 1
        real[row, len(prefix) : len(prefix) + length] = True
    return input_ids, attention, real


def encode(backbone, token_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Hidden states (S, D) of packed token ids (S,); offsets (B+1). Differentiable in the backbone's parameters."""
    if len(token_ids) == 0:
        return token_ids.new_zeros((0, backbone.hidden_size), dtype=torch.float32)
    input_ids, attention, real = padded(token_ids, spans(offsets, backbone.window), backbone.tokenizer)
    states = backbone.model(input_ids=input_ids, attention_mask=attention).last_hidden_state
    return states[real]
