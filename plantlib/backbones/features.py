"""Hidden states of a frozen backbone, computed once and kept on disk: float16, memory-mapped.

One safetensors file per corpus and backbone holds (S, D) over the packed tokens of all documents,
without special tokens; heads are then trained without running the backbone. The header is written
first and the body filled in place, so memory holds one batch. A small JSON beside it counts the
finished documents, and an interrupted run resumes from there.
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

STRETCH = 256  # documents between two marks of progress, the most that an interrupted run loses


@dataclass(frozen=True, eq=False)
class Standard:
    """h -> (h - shift) * scale, (D,) each; gives the hidden states of any backbone one spread."""

    shift: np.ndarray
    scale: np.ndarray


def standard_of(
    states: np.ndarray, spread: float = 0.3, usual: tuple[float, float] = (0.1, 1.0)
) -> Standard | None:
    """The scaling that one learning rate needs to serve all backbones.

    Sentence encoders end in vectors of unit size. The final norm of a causal language model gives
    states about seven times larger that a few dimensions dominate; the same steps of Adam overshoot
    there. See docs/method.md, "The decoder".

    Args:
        states: (S, D) hidden states of training documents.
        spread: standard deviation that every dimension gets.
        usual: root mean squares that need no scaling.

    Returns:
        None if the root mean square of `states` is usual.
    """
    states = np.asarray(states, dtype=np.float32)
    if not len(states) or usual[0] <= float(np.sqrt(np.mean(states**2))) <= usual[1]:
        return None
    deviation = states.std(0)
    scale = np.where(deviation > 1e-6, spread / np.maximum(deviation, 1e-6), 0.0)
    return Standard(states.mean(0), scale.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Features:
    """Memory-mapped hidden states of N documents.

    array: (S, D) float16. tokens: the token ids they belong to. standard: applied on reading.
    """

    array: np.ndarray
    tokens: Ragged
    standard: Standard | None = None

    @property
    def hidden_size(self) -> int:
        return self.array.shape[1]

    def document(self, i: int) -> np.ndarray:
        """(T, D) float32 hidden states of document i."""
        begin, end = self.tokens.offsets[i : i + 2]
        states = np.asarray(self.array[begin:end], dtype=np.float32)
        if self.standard is None:
            return states
        return (states - self.standard.shift) * self.standard.scale

    def documents(self, rows) -> np.ndarray:
        """(S', D) float32 hidden states of the documents `rows`, one after another."""
        if not len(rows):
            return np.zeros((0, self.hidden_size), np.float32)
        return np.concatenate([self.document(i) for i in rows])


def cached_features(
    backbone, tokens: Ragged, path: str | Path, *, key: str, batch_tokens: int = 8192, progress=True
) -> Features:
    """The features of `tokens`, read from `path` or computed and written there.

    Args:
        backbone: a `loading.Backbone`, or a function that loads one, called only when needed.
        tokens: token ids of N documents.
        path: a safetensors file.
        key: fingerprint of corpus, tokens and backbone.
        batch_tokens: tokens per forward pass, padding included.
        progress: show a bar.

    Raises:
        ValueError: the file at `path` has another key or size.
    """
    path = Path(path)
    if path.exists():
        return Features(_open(path, key, len(tokens.flat)), tokens)
    backbone = backbone() if callable(backbone) else backbone
    # lay out the file, or find out how much of it is done; longest documents come first
    partial = path.with_suffix(".partial")
    marks = path.with_suffix(".progress.json")
    shape = (len(tokens.flat), backbone.hidden_size)
    order = np.argsort(-tokens.lengths, kind="stable")
    done = _resume(partial, marks, key, shape)
    array = _map(partial, "r+", _data_offset(partial), shape)
    bar = tqdm(
        total=shape[0],
        initial=int(tokens.lengths[order[:done]].sum()),
        desc="hidden states",
        unit="token",
        disable=not progress,
    )
    # fill it, and write down the progress after each stretch
    for begin in range(done, len(order), STRETCH):
        rows = order[begin : begin + STRETCH]
        for batch in _batches(rows, tokens.lengths, batch_tokens):
            states = hidden_states(backbone, [tokens[i] for i in batch])
            for i, state in zip(batch, states, strict=True):
                array[tokens.offsets[i] : tokens.offsets[i + 1]] = state
            bar.update(int(tokens.lengths[batch].sum()))
        if isinstance(array, np.memmap):
            array.flush()
        write_json(marks, {"key": key, "documents": begin + len(rows)})
    bar.close()
    del array
    # give it its final name
    partial.replace(path)
    marks.unlink(missing_ok=True)
    return Features(_open(path, key, len(tokens.flat)), tokens)


def hidden_states(backbone, documents: list[np.ndarray]) -> list[np.ndarray]:
    """(T, D) float16 hidden states of each document's token ids (T,), read in windows."""
    import torch

    packed = Ragged.from_lists(documents)
    device = next(backbone.model.parameters()).device
    ids = torch.from_numpy(packed.flat.astype(np.int64)).to(device)
    with torch.inference_mode():
        states = encode(backbone, ids, torch.from_numpy(packed.offsets))
    states = states.float().cpu().numpy().astype(np.float16)
    return [states[packed.offsets[i] : packed.offsets[i + 1]] for i in range(len(packed))]


def _batches(rows: np.ndarray, lengths: np.ndarray, batch_tokens: int):
    """Consecutive `rows` (longest first): at most `batch_tokens` with padding, or one document."""
    batch: list[int] = []
    for row in rows:
        if batch and (len(batch) + 1) * max(lengths[batch[0]], 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(int(row))
    if batch:
        yield batch


def _resume(partial: Path, marks: Path, key: str, shape: tuple[int, int]) -> int:
    """Documents that an interrupted file of this key holds; without one a new file is laid out."""
    if partial.exists() and marks.exists() and read_json(marks)["key"] == key:
        return int(read_json(marks)["documents"])
    partial.parent.mkdir(parents=True, exist_ok=True)
    size = shape[0] * shape[1] * 2
    states = {"dtype": "F16", "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": {"key": key}, "hidden_states": states}).encode()
    text += b" " * (-len(text) % 8)
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    marks.unlink(missing_ok=True)
    return 0


def _data_offset(path: Path) -> int:
    """Where the data of a safetensors file begins."""
    with path.open("rb") as file:
        return 8 + struct.unpack("<Q", file.read(8))[0]


def _map(path: Path, mode: str, offset: int, shape: tuple[int, int]) -> np.ndarray:
    """`path` as a (S, D) float16 array; an empty file cannot be mapped."""
    if not shape[0]:
        return np.zeros(shape, np.float16)
    return np.memmap(path, np.float16, mode, offset=offset, shape=shape)


def _open(path: Path, key: str, tokens: int) -> np.ndarray:
    """A finished file, read-only; ValueError if it has another key or number of tokens."""
    offset = _data_offset(path)
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(offset - 8))
    stored = header["__metadata__"]["key"]
    shape = tuple(header["hidden_states"]["shape"])
    if stored != key or shape[0] != tokens:
        raise ValueError(
            f"{path} holds {shape[0]} tokens of {stored}, wanted {tokens} of {key}; delete the file"
            " to have it computed again"
        )
    return _map(path, "r", offset, shape)
