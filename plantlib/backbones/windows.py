"""Windows of long documents: packed token ids -> backbone -> packed hidden states, with gradients.

See docs/method.md, "Long documents". A document longer than the backbone's window is cut into
consecutive windows. Each gets the tokenizer's special tokens, whose states are dropped again. With
an overlap, a window also reads that many tokens on either side (a causal model: on the left); they
lend context, and their states are dropped, so every token is attended to once. `encode` reads them
some at a time, `rounds` gives one window of each document at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from plantlib.backbones.loading import specials

MOST_WINDOWS = 16  # that one forward pass of `encode` reads, where there are fewer documents


class Window(NamedTuple):
    """Packed tokens [begin, end) whose states are kept; [first, last) are read."""

    begin: int
    end: int
    first: int
    last: int


def spans(
    offsets: torch.Tensor, window: int, overlap: int = 0, causal: bool = False
) -> list[list[Window]]:
    """The windows of each document; a document is cut evenly.

    Args:
        offsets: (B+1,) where each document begins among the packed tokens.
        window: tokens a forward pass may read.
        overlap: tokens on either side that are read for context.
        causal: the overlap is on the left only.

    Raises:
        ValueError: the overlap leaves no room in the window.
    """
    stride = window - overlap * (1 if causal else 2)
    if overlap < 0 or stride < 1:
        raise ValueError(
            f"overlap={overlap} leaves no room in a window of {window} tokens; give less than"
            f" {-(-window // 2)}"
        )
    documents = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        parts = 1 if 0 < end - begin <= window else -(-(end - begin) // stride)
        edges = [begin + (end - begin) * i // max(parts, 1) for i in range(parts + 1)]
        documents.append(
            [
                Window(a, b, max(begin, a - overlap), b if causal else min(end, b + overlap))
                for a, b in zip(edges[:-1], edges[1:], strict=True)
            ]
        )
    return documents


def padded(
    token_ids: torch.Tensor, cut: list[Window], tokenizer
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of windows for the backbone.

    Padding is on the right whatever side the tokenizer prefers, so that positions start at the
    text, as in pretraining.

    Args:
        token_ids: (S,) packed.
        cut: W windows.
        tokenizer: gives special tokens and padding.

    Returns:
        input_ids, attention mask, and which tokens' states are kept; (W, longest window) each.
    """
    prefix, suffix = specials(tokenizer)
    width = max(w.last - w.first for w in cut) + len(prefix) + len(suffix)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    # laid out on the CPU, so that a GPU is met once and not once per window
    device, token_ids = token_ids.device, token_ids.cpu()
    input_ids = token_ids.new_full((len(cut), width), fill)
    attention = torch.zeros_like(input_ids)
    kept = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (begin, end, first, last) in enumerate(cut):
        whole = [*prefix, *token_ids[first:last].tolist(), *suffix]
        input_ids[row, : len(whole)] = token_ids.new_tensor(whole)
        attention[row, : len(whole)] = 1
        shift = len(prefix) - first
        kept[row, begin + shift : end + shift] = True
    return input_ids.to(device), attention.to(device), kept.to(device)


def is_causal(model) -> bool:
    """Whether tokens see only what is before them, according to the model's layers."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


def carries_state(backbone) -> bool:
    """Whether the backbone is recurrent and continues from the state at the end of a window.

    With an overlap it starts each window anew.
    """
    return bool(getattr(backbone.model, "carries_state", False)) and backbone.overlap == 0


def encode(backbone, token_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Hidden states (S, D) of packed documents, differentiable in the backbone's parameters.

    A forward pass reads at most as many windows as there are documents, or `MOST_WINDOWS`.

    Args:
        backbone: a `loading.Backbone`.
        token_ids: (S,) packed, on the backbone's device.
        offsets: (B+1,) where each document begins.
    """
    if getattr(backbone.model, "is_static", False):
        return backbone.model.embeddings(token_ids)
    if not carries_state(backbone):
        cut = [window for document in _cut(backbone, offsets) for window in document]
        # one document may have as many windows as it likes, so they are read some at a time
        most = max(len(offsets) - 1, MOST_WINDOWS)
        rounds_of_windows = [cut[i : i + most] for i in range(0, len(cut), most)] or [[]]
        return torch.cat([encode_windows(backbone, token_ids, part) for part in rounds_of_windows])
    memory, pieces = (), {}
    for cut in rounds(backbone, offsets):
        hidden, memory = encode_round(backbone, token_ids, cut, memory)
        present = [w for w in cut if w is not None]
        parts = hidden.split([w.end - w.begin for w in present])
        pieces |= {w.begin: part for w, part in zip(present, parts, strict=True)}
    if not pieces:
        return encode_windows(backbone, token_ids, [])
    return torch.cat([pieces[begin] for begin in sorted(pieces)])


def encode_round(
    backbone, token_ids: torch.Tensor, cut: list[Window | None], memory: tuple = ()
) -> tuple[torch.Tensor, tuple]:
    """Hidden states of one window of each document.

    Args:
        backbone: a `loading.Backbone`.
        token_ids: (S,) packed.
        cut: B windows, None for a document that has been read to its end.
        memory: state of a recurrent backbone for B documents, h and c of each layer in turn,
            (1, B, size) each; () at the beginning and for other backbones.

    Returns:
        (S', D) hidden states of the windows' kept tokens, and the memory after them.
    """
    present = [w for w in cut if w is not None]
    if not carries_state(backbone):
        return encode_windows(backbone, token_ids, present), ()
    # read on from the memory of the documents that have a window
    rows = torch.tensor([i for i, w in enumerate(cut) if w is not None], device=token_ids.device)
    before = [m.index_select(1, rows) for m in memory]
    state = list(zip(before[::2], before[1::2], strict=True)) or None
    input_ids, attention, kept = padded(token_ids, present, backbone.tokenizer)
    output = backbone.model(input_ids=input_ids, attention_mask=attention, state=state)
    # put their new memory among that of the others
    after = [s for pair in output.state for s in pair]
    memory = memory or tuple(s.new_zeros(1, len(cut), s.shape[2]) for s in after)
    memory = tuple(m.index_copy(1, rows, s.to(m.dtype)) for m, s in zip(memory, after, strict=True))
    return output.last_hidden_state[kept], memory


def encode_windows(backbone, token_ids: torch.Tensor, cut: list[Window]) -> torch.Tensor:
    """(S', D) hidden states of the windows' kept tokens, one window after another."""
    if not cut:
        return torch.zeros((0, backbone.hidden_size), device=token_ids.device)
    input_ids, attention, kept = padded(token_ids, cut, backbone.tokenizer)
    return backbone.model(input_ids=input_ids, attention_mask=attention).last_hidden_state[kept]


def _cut(backbone, offsets: torch.Tensor) -> list[list[Window]]:
    overlap = backbone.overlap
    return spans(offsets, backbone.window, overlap, overlap > 0 and is_causal(backbone.model))


def rounds(backbone, offsets: torch.Tensor) -> Iterator[list[Window | None]]:
    """Round r holds the r-th window of each of B documents, None after a document's end.

    A recurrent backbone that reads texts from their end gets the last windows first.
    """
    from_the_end = carries_state(backbone) and not is_causal(backbone.model)
    yield from rounds_of(_cut(backbone, offsets), from_the_end)


def rounds_of(cut: list[list[Window]], from_the_end: bool = False) -> Iterator[list[Window | None]]:
    """The rounds of documents whose windows are `cut`; see `rounds`."""
    cut = [document[::-1] for document in cut] if from_the_end else cut
    for r in range(max((len(document) for document in cut), default=0)):
        yield [document[r] if r < len(document) else None for document in cut]


def starts_of(cut: list[Window | None], device: torch.device) -> torch.Tensor:
    """(B+1,) offsets of the tokens of one window of each of B documents."""
    lengths = [0 if w is None else w.end - w.begin for w in cut]
    return torch.tensor([0, *lengths], device=device).cumsum(0)


def longest(offsets: torch.Tensor) -> int:
    """Tokens of the longest of B documents; offsets (B+1)."""
    return int(offsets.diff().max()) if len(offsets) > 1 else 0
