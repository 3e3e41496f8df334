"""Hidden states of a frozen backbone, computed once and kept on disk: float16, memory-mapped,
resumable.

One safetensors file a corpus and backbone, (S, D) over the packed tokens of all documents, special
tokens left out. The header is written first and the body filled in place, so memory holds one
batch. Beside it a small JSON counts what is done; a killed run starts again at the last finished
stretch. Training a head then costs no backbone pass at all.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plantlib.backbones.windows import encode
from plantlib.data.tokens import Ragged
from plantlib.utils.io import read_json, write_json
from plantlib.utils.progress import tqdm

STRETCH = 256  # documents between two marks of progress: the most a killed run loses


@dataclass(frozen=True, eq=False)
class Standard:
    """h -> (h - shift) * scale, (D,) each: any backbone's hidden states at one spread, so that one
    learning rate fits all.
    """

    shift: np.ndarray
    scale: np.ndarray


def standard_of(
    states: np.ndarray, spread: float = 0.3, usual: tuple[float, float] = (0.1, 1.0)
) -> Standard | None:
    """None when the root mean square of `states` (S, D) is a usual one; else what brings every
    dimension to `spread`.

    Sentence encoders end in vectors of unit size; a causal LM ends in a norm made for its output
    layer, seven times larger and ruled by a few dimensions, where the same steps of Adam overshoot.
    """
    states = np.asarray(states, dtype=np.float32)
    if not len(states) or usual[0] <= float(np.sqrt(np.mean(states**2))) <= usual[1]:
        return None
    deviation = states.std(0)
    return Standard(
        states.mean(0),
        np.where(deviation > 1e-6, spread / np.maximum(deviation, 1e-6), 0.0).astype(np.float32),
    )


@dataclass(frozen=True, eq=False)
class Features:
    """Memory-mapped hidden states of N documents: `array` (S, D) float16 and the tokens they belong
    to.
    """

    array: np.ndarray
    tokens: Ragged
    standard: Standard | None = None  # applied on reading

    @property
    def hidden_size(self) -> int:
        return self.array.shape[1]

    def document(self, i: int) -> np.ndarray:
        """(T, D) float32 hidden states of document i."""
        states = np.asarray(
            self.array[self.tokens.offsets[i] : self.tokens.offsets[i + 1]], dtype=np.float32
        )
        return (
            states
            if self.standard is None
            else (states - self.standard.shift) * self.standard.scale
        )

    def documents(self, rows) -> np.ndarray:
        """(S', D) float32 hidden states of the documents `rows`, one after another."""
        return (
            np.concatenate([self.document(i) for i in rows])
            if len(rows)
            else np.zeros((0, self.hidden_size), np.float32)
        )


def cached_features(
    backbone, tokens: Ragged, path: str | Path, *, key: str, batch_tokens: int = 8192, progress=True
) -> Features:
    """The features of `tokens` at `path`, computed where they are missing.

    backbone: `backbones.Backbone` or a callable that loads one, called only when something must be
    computed. key: fingerprint of corpus, tokens and backbone; a file with another key is an error,
    not silently reused.
    """
    path = Path(path)
    if path.exists():
        return Features(_open(path, key, len(tokens.flat)), tokens)
    backbone = backbone() if callable(backbone) else backbone
    partial, marks = path.with_suffix(".partial"), path.with_suffix(".progress.json")
    shape, order = (
        (len(tokens.flat), backbone.hidden_size),
        np.argsort(-tokens.lengths, kind="stable"),
    )
    done = _resume(partial, marks, key, shape)
    array = (
        np.memmap(partial, np.float16, "r+", offset=_data_offset(partial), shape=shape)
        if shape[0]
        else np.zeros(shape, np.float16)
    )
    bar = tqdm(
        total=shape[0],
        initial=int(tokens.lengths[order[:done]].sum()),
        desc="hidden states",
        unit="token",
        disable=not progress,
    )
    for begin in range(done, len(order), STRETCH):
        rows = order[begin : begin + STRETCH]
        for batch in _batches(rows, tokens.lengths, batch_tokens):
            states = hidden_states(backbone, [tokens[i] for i in batch])
            for i, state in zip(batch, states, strict=True):
                array[tokens.offsets[i] : tokens.offsets[i + 1]] = state
            bar.update(int(tokens.lengths[batch].sum()))
        if shape[0]:
            array.flush()
        write_json(marks, {"key": key, "documents": begin + len(rows)})
    bar.close()
    del array
    partial.replace(path)
    marks.unlink(missing_ok=True)
    return Features(_open(path, key, len(tokens.flat)), tokens)


def hidden_states(backbone, documents: list[np.ndarray]) -> list[np.ndarray]:
    """(T, D) float16 hidden states of every document, read in windows, special tokens added and
    taken off again.
    """
    import torch

    flat = Ragged.from_lists(documents)
    device = next(backbone.model.parameters()).device
    with torch.inference_mode():
        states = encode(
            backbone,
            torch.from_numpy(flat.flat.astype(np.int64)).to(device),
            torch.from_numpy(flat.offsets),
        )
    states = states.float().cpu().numpy().astype(np.float16)
    return [states[flat.offsets[i] : flat.offsets[i + 1]] for i in range(len(flat))]


def _batches(rows: np.ndarray, lengths: np.ndarray, batch_tokens: int):
    """Neighbours in length, at most `batch_tokens` tokens together, at least one document."""
    batch: list[int] = []
    for row in rows:
        if batch and (len(batch) + 1) * max(lengths[batch[0]], 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(int(row))
    if batch:
        yield batch


def _resume(partial: Path, marks: Path, key: str, shape: tuple[int, int]) -> int:
    """Documents already done of an interrupted file; a fresh file is laid out when there is none of
    this key.
    """
    if partial.exists() and marks.exists() and read_json(marks)["key"] == key:
        return int(read_json(marks)["documents"])
    partial.parent.mkdir(parents=True, exist_ok=True)
    size = shape[0] * shape[1] * 2
    header = {
        "__metadata__": {"key": key},
        "hidden_states": {"dtype": "F16", "shape": list(shape), "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with partial.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + size)
    marks.unlink(missing_ok=True)
    return 0


def _data_offset(path: Path) -> int:
    with path.open("rb") as f:
        return 8 + struct.unpack("<Q", f.read(8))[0]


def _open(path: Path, key: str, tokens: int) -> np.ndarray:
    """Map a finished file read-only after checking its key and size against what is wanted."""
    offset = _data_offset(path)
    with path.open("rb") as f:
        f.seek(8)
        header = json.loads(f.read(offset - 8))
    found, shape = header["__metadata__"]["key"], tuple(header["hidden_states"]["shape"])
    if found != key or shape[0] != tokens:
        raise ValueError(
            f"{path} holds {shape[0]} tokens of {found}, wanted {tokens} of {key}; delete the file"
            " to have it computed again"
        )
    return (
        np.memmap(path, np.float16, "r", offset=offset, shape=shape)
        if tokens
        else np.zeros(shape, np.float16)
    )
