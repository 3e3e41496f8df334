"""Hidden states of a frozen backbone, computed once and kept on disk: float16, memory-mapped.

One safetensors file per corpus and backbone holds (S, D) over the packed tokens of all documents,
without special tokens; heads are then trained without running the backbone. A process reserves the
space of the file in a folder of its own and fills it in place, so memory holds one batch. The file
gets its name when it is whole, and its checksum is verified when it is read. A small JSON beside it
counts the finished documents, and the next process goes on where a killed one stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plantlib.backbones.windows import encode
from plantlib.data.tokens import Ragged
from plantlib.utils.io import (
    abandoned,
    locked,
    new_temporary,
    read_if_whole,
    read_json,
    remove_leftovers,
    write_json,
)
from plantlib.utils.progress import tqdm
from plantlib.utils.tensors import BLANK, KEY, check_tensors, write_checksum

MARKS = "progress.json"
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

    A damaged file is computed again. Of several processes one computes, and the others wait.

    Args:
        backbone: a `loading.Backbone`, or a function that loads one, called only when needed.
        tokens: token ids of N documents.
        path: a safetensors file.
        key: fingerprint of corpus, tokens and backbone.
        batch_tokens: tokens per forward pass, padding included.
        progress: show a bar.

    Raises:
        ValueError: the file at `path` has another key or size.
        OSError: there is no room for the file.
    """
    path = Path(path)
    load = partial(_open, key=key, tokens=len(tokens.flat))
    with locked(path):
        array = read_if_whole(path, load)
        if array is None:
            backbone = backbone() if callable(backbone) else backbone
            _compute(backbone, tokens, path, key, batch_tokens, progress)
            array = load(path)
    return Features(array, tokens)


def _compute(
    backbone, tokens: Ragged, path: Path, key: str, batch_tokens: int, progress: bool
) -> None:
    """Write the file, in a folder of this process until it is whole; see `cached_features`."""
    shape = (len(tokens.flat), backbone.hidden_size)
    order = np.argsort(-tokens.lengths, kind="stable")  # longest documents come first
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with _begun(path, key, shape, tokens, order) as (file, done):
        _fill(file, done, backbone, tokens, order, key, batch_tokens, progress)
        write_checksum(file)
        os.replace(file, path)


def _fill(
    file: Path,
    done: Done,
    backbone,
    tokens: Ragged,
    order: np.ndarray,
    key: str,
    batch_tokens: int,
    progress: bool,
) -> None:
    """Compute the documents that are missing, and write down the progress after each stretch."""
    array = _map(file, "r+")
    checksum = done.checksum
    bar = tqdm(
        total=array.shape[0],
        initial=int(tokens.lengths[order[: done.documents]].sum()),
        desc="hidden states",
        unit="token",
        disable=not progress,
    )
    with bar:
        for begin in range(done.documents, len(order), STRETCH):
            rows = order[begin : begin + STRETCH]
            for batch in _batches(rows, tokens.lengths, batch_tokens):
                states = hidden_states(backbone, [tokens[i] for i in batch])
                for i, state in zip(batch, states, strict=True):
                    array[tokens.offsets[i] : tokens.offsets[i + 1]] = state
                    checksum = zlib.crc32(state.tobytes(), checksum)
                bar.update(int(tokens.lengths[batch].sum()))
            if isinstance(array, np.memmap):
                array.flush()
            marks = {"key": key, "documents": begin + len(rows), "checksum": checksum}
            write_json(file.with_name(MARKS), marks)


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


@dataclass(frozen=True)
class Done:
    """How far a file is: finished documents, and the CRC-32 of their states in that order."""

    documents: int = 0
    checksum: int = 0


@contextlib.contextmanager
def _begun(
    path: Path, key: str, shape: tuple[int, int], tokens: Ragged, order: np.ndarray
) -> Iterator[tuple[Path, Done]]:
    """A file to fill, in a temporary folder beside `path`, and how far it is.

    It is the file of a killed process with the same key if there is one, else a new one. An
    interruption leaves the folder for the next call; its lock tells it from that of a live process.
    """
    name = f".{path.stem}.{{}}.partial"
    found = None
    for folder, handle in abandoned(path.parent, name):
        done = _progress(folder / path.name, key, shape, tokens, order)
        if found is None and done is not None:
            found = folder, os.dup(handle), done
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if found is None:
        folder, handle = new_temporary(path.parent, name)
        found = folder, handle, Done()
    folder, handle, done = found
    try:
        if not done.documents:
            _lay_out(folder / path.name, key, shape)
        yield folder / path.name, done
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _progress(
    file: Path, key: str, shape: tuple[int, int], tokens: Ragged, order: np.ndarray
) -> Done | None:
    """How far an interrupted file is; None if it is of another key or not what was written."""
    try:
        marks = read_json(file.with_name(MARKS))
        done = Done(marks["documents"], marks["checksum"])
        header, array = _header(file), _map(file, "r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if (marks["key"], header["key"], array.shape) != (key, key, shape):
        return None
    checksum = 0
    for i in order[: done.documents]:
        states = array[tokens.offsets[i] : tokens.offsets[i + 1]]
        checksum = zlib.crc32(states.tobytes(), checksum)
    return done if checksum == done.checksum else None


def _lay_out(file: Path, key: str, shape: tuple[int, int]) -> None:
    """Write the header, and reserve the space of the states; OSError if the disk lacks it."""
    size = shape[0] * shape[1] * 2
    states = {"dtype": "F16", "shape": list(shape), "data_offsets": [0, size]}
    about = {"__metadata__": {"key": key, KEY: BLANK}, "hidden_states": states}
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.flush()
        if not size:
            return
        try:
            os.posix_fallocate(out.fileno(), 8 + len(text), size)
        except OSError as error:
            shutil.rmtree(file.parent, ignore_errors=True)
            free = shutil.disk_usage(file.parent.parent).free
            raise OSError(
                f"the hidden states of {shape[0]:,} tokens need {size / 1e6:,.0f} MB in"
                f" {file.parent.parent}, and {free / 1e6:,.0f} MB are free ({error.strerror}): make"
                " room, or use another folder of artefacts"
            ) from error


def _header(file: Path) -> dict[str, Any]:
    """Key, shape and place of the states in a file; ValueError or KeyError for another file."""
    with file.open("rb") as data:
        length = struct.unpack("<Q", data.read(8))[0]
        header = json.loads(data.read(length))
    shape = tuple(header["hidden_states"]["shape"])
    return {"key": header["__metadata__"]["key"], "shape": shape, "offset": 8 + length}


def _map(file: Path, mode: str) -> np.ndarray:
    """The states of a file as a (S, D) float16 array; an empty file cannot be mapped."""
    header = _header(file)
    if not header["shape"][0]:
        return np.zeros(header["shape"], np.float16)
    place = {"offset": header["offset"], "shape": header["shape"]}
    return np.memmap(file, np.float16, mode, **place)


def _open(path: Path, key: str, tokens: int) -> np.ndarray:
    """The states of a finished file, read-only.

    Raises:
        Damaged: the file is not what was written.
        ValueError: it has another key or number of tokens.
    """
    header = _header(check_tensors(path))
    stored, documents = header["key"], header["shape"][0]
    if stored != key or documents != tokens:
        raise ValueError(
            f"{path} holds {documents} tokens of {stored}, wanted {tokens} of {key}; delete the"
            " file to have it computed again"
        )
    return _map(path, "r")
