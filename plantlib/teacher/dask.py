"""The teacher of a corpus too large for memory: counts C = X'Y summed over partitions with Dask.

The result has the bits of `mig.teach` on the stacked rows: counts are exact integers, so their sum
does not depend on how rows are cut, and everything after it is computed by `mig`. Memory is bounded
by blocks of labels, and a checkpoint folder keeps finished parts. Pass training rows only. dask and
distributed are optional (plantlib[scale]). The command is `python -m plantlib.cli.dask`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import operator
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.kernels.counts import (
    RELEVANCES,
    VARIANTS,
    Margins,
    blocks_of_cells,
    check_choice,
    check_request,
    column_counts,
    presence,
    tokens_beside,
)
from plantlib.teacher import mig
from plantlib.utils.folders import atomic_folder
from plantlib.utils.io import Damaged, read_if_whole, read_json, write_json
from plantlib.utils.progress import tqdm
from plantlib.utils.tensors import check_tensors, save_tensors


def optional(name: str):
    """The module `name`; ImportError with the fix if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        message = f"{name} is not installed, and plantlib.teacher.dask needs it"
        raise ImportError(f"{message}: pip install plantlib[scale]") from error


def _save(path: Path, *, ones: bool = False, about: dict[str, str], **matrices) -> Path:
    """Write csr matrices as one safetensors file, without their values if they are all `ones`."""
    tensors = {}
    for name, matrix in matrices.items():
        shape = np.asarray(matrix.shape, np.int64)
        parts = {"indptr": matrix.indptr, "indices": matrix.indices, "shape": shape}
        parts |= {} if ones else {"data": matrix.data}
        tensors |= {f"{name}.{part}": np.ascontiguousarray(array) for part, array in parts.items()}
    return save_tensors(path, tensors, about)


def _read(path: Path, *names: str, key: str | None = None) -> tuple[list, dict[str, str]]:
    """(csr matrices, metadata) of a file of `_save`; ValueError for another file or another key."""
    from safetensors import SafetensorError, safe_open

    matrices = []
    try:
        with safe_open(check_tensors(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            about = file.metadata() or {}
        for name in names:
            indptr, indices = tensors[f"{name}.indptr"], tensors[f"{name}.indices"]
            data = tensors.get(f"{name}.data", np.ones(len(indices), np.int32))
            shape = tuple(tensors[f"{name}.shape"].tolist())
            matrices.append(sparse.csr_matrix((data, indices, indptr), shape=shape))
            matrices[-1].check_format(full_check=True)
    except Damaged:
        raise
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        fix = "write it again, to a place that all workers see"
        raise ValueError(f"{path} holds no csr matrices {names} ({error}); {fix}") from error
    if key is not None and about.get("key") != key:
        fix = "use another checkpoint folder or delete it"
        raise ValueError(f"{path} was written for other partitions or options; {fix}")
    return matrices, about


@dataclass(frozen=True, eq=False)
class Partition:
    """Training rows: x (n, V) token counts or presence, y (n, L) labels, both csr; n may be 0."""

    x: sparse.csr_matrix
    y: sparse.csr_matrix

    def save(self, path: str | Path) -> Path:
        """Write the presence of both, which is all that MIG reads, as one safetensors file."""
        matrices = {"x": presence(self.x), "y": presence(self.y)}
        return _save(Path(path), ones=True, about={"format": "1"}, **matrices)

    @classmethod
    def load(cls, path: str | Path) -> Partition:
        """Read what `save` wrote; ValueError for any other file."""
        return cls(*_read(Path(path), "x", "y")[0])


def write_partitions(
    x: sparse.csr_matrix, y: sparse.csr_matrix, folder: str | Path, rows: int
) -> list[Path]:
    """Cut training rows into files; the folder appears whole or not at all.

    Args:
        x: (N, V) csr, token counts or presence.
        y: (N, L) csr, labels.
        folder: must not exist.
        rows: rows per file.

    Returns:
        The files in row order.

    Raises:
        ValueError: the folder exists, rows do not match or are fewer than 1.
    """
    check_request(x, y, VARIANTS[0])
    if rows < 1:
        raise ValueError(f"rows={rows}: a partition needs at least 1 row")
    if Path(folder).exists():
        raise ValueError(f"{folder} exists; give a new folder, or delete this one")
    with atomic_folder(folder, "partitions") as temporary:
        for i, begin in enumerate(range(0, x.shape[0], rows)):
            part = Partition(x[begin : begin + rows], y[begin : begin + rows])
            part.save(temporary / f"part-{i:06d}.safetensors")
    return partitions_in(folder)


def partitions_in(folder: str | Path) -> list[Path]:
    """The files of `write_partitions` in row order; ValueError if there is none."""
    paths = sorted(Path(folder).glob("part-*.safetensors"))
    if not paths:
        fix = "make it with write_partitions(x, y, folder, rows)"
        raise ValueError(f"{folder} holds no part-*.safetensors; {fix}")
    return paths


def _load(source, index: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Presence x (n, V) and y (n, L) of partition `index`: a Partition, a pair or a path."""
    source = Partition.load(source) if isinstance(source, (str, Path)) else source
    pair = (source.x, source.y) if isinstance(source, Partition) else source
    if not isinstance(pair, (tuple, list)) or [sparse.issparse(m) for m in pair] != [True, True]:
        wanted = "a pair (x, y) of csr matrices, dask.delayed of one, or a path"
        raise ValueError(f"partition {index} is {type(source).__name__}; wanted {wanted}")
    x, y = pair
    if x.shape[0] != y.shape[0]:
        sizes = f"tokens {x.shape} and labels {y.shape}"
        raise ValueError(f"partition {index}: {sizes} differ in rows; pass the same rows of both")
    return presence(x), presence(y)


@dataclass(frozen=True, eq=False)
class _Totals:
    """Sums over partitions: rows n, n_t (V,), n_l (L,) and cells (L,), see `tokens_beside`.

    first: index of the first partition. digests: of the partitions' content, in order.
    """

    first: int
    n: int
    n_t: np.ndarray
    n_l: np.ndarray
    cells: np.ndarray
    digests: tuple[str, ...]

    def __add__(self, other: _Totals) -> _Totals:
        a, b = ((len(totals.n_t), len(totals.n_l)) for totals in (self, other))
        if a != b:
            sizes = f"partition {other.first} has (V, L) = {b} and partition {self.first} has {a}"
            raise ValueError(f"{sizes}; build all with one vocabulary and one list of labels")
        names = ("n", "n_t", "n_l", "cells", "digests")
        return _Totals(self.first, *(getattr(self, name) + getattr(other, name) for name in names))


def _scan(source, index: int, tick: Callable) -> _Totals:
    """Totals of one partition."""
    x, y = _load(source, index)
    digest = hashlib.sha256(json.dumps([x.shape, y.shape]).encode())
    for array in (x.indptr, x.indices, y.indptr, y.indices):
        digest.update(array.astype("<i8"))
    tick()
    sums = column_counts(x), column_counts(y), tokens_beside(x, y)
    return _Totals(index, x.shape[0], *sums, (digest.hexdigest(),))


def _count(source, index, begin, end, keep, path: Path | None, key: str, tick: Callable):
    """(end - begin, V) int64 csr: one partition's counts of labels [begin, end) with the tokens
    where keep (V,) is true; also written to `path` if there is one.
    """
    x, y = _load(source, index)
    x.data *= keep[x.indices]
    x.eliminate_zeros()
    counts = (y[:, begin:end].T.tocsr() @ x).tocsr().astype(np.int64)
    counts.sort_indices()
    if path:
        _save(path, about={"key": key}, counts=counts)
    tick()
    return counts


def _sum(parts: list):
    """One delayed value: delayed `parts` are added in pairs, so that few sums are alive at once."""
    add = optional("dask").delayed(operator.add, pure=False)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [add(a, b) for a, b in pairs] + parts[len(parts) // 2 * 2 :]
    return parts[0]


def _run(node, client):
    """The value of a delayed `node`, from the client's cluster or from this process's threads."""
    if client is not None:
        return client.compute(node, sync=True)
    one_thread = ("sync", "synchronous", "single-threaded")
    chosen = optional("dask").config.get("scheduler", None)
    return node.compute(scheduler="sync" if chosen in one_thread else "threads")


def _share(value, client):
    """`value` as an argument of many tasks: sent to a cluster once; a path stays a path."""
    if isinstance(value, (str, Path)):
        return Path(value).absolute()
    if client is not None:
        return client.scatter([value], hash=False)[0]
    return optional("dask").delayed(value, pure=False, traverse=False)


def _log_step(topic: str) -> None:
    """Tell the bar that listens to `topic`, from a worker, that a task is done."""
    optional("distributed").get_worker().log_event(topic, 1)


@contextlib.contextmanager
def _bar(client, total: int, desc: str, progress: bool) -> Iterator[Callable]:
    """A bar of `total` tasks; yields the function that a task calls when it is done."""
    with tqdm(total=total, desc=desc, unit="partition", disable=not progress) as bar:
        if client is None:
            yield bar.update
        else:
            topic = f"plantlib-{uuid.uuid4().hex}"
            client.subscribe_topic(topic, lambda event: bar.update())
            try:
                yield partial(_log_step, topic)
            finally:
                client.unsubscribe_topic(topic)
        bar.update(total - bar.n)


def _checkpoint(folder: str | Path | None, options: dict) -> tuple[Path | None, str]:
    """(folder, key of `options`); ValueError if the folder was begun with other options."""
    text = json.dumps(options, sort_keys=True, default=lambda number: number.item())
    key = hashlib.sha256(text.encode()).hexdigest()
    if folder is None:
        return None, key
    state = Path(folder).absolute() / "state.json"
    options = json.loads(text)
    stored = read_json(state) if state.exists() else options
    changed = [
        f"{name} {stored.get(name)!r}, now {options.get(name)!r}"
        for name in stored | options
        if stored.get(name) != options.get(name)
    ]
    if changed:
        fix = "use another folder or delete it"
        raise ValueError(f"checkpoint {folder} is of another run: {'; '.join(changed)}; {fix}")
    write_json(state, options)
    return state.parent, key


def teach_partitions(
    partitions: Iterable | str | Path,
    *,
    variant: str = "raw",
    top_k: int | None = 64,
    relevance: str = "score",
    min_documents: int = 1,
    memory_mb: float = 256.0,
    client=None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> mig.Teacher:
    """The teacher of partitioned training rows, bit for bit that of `mig.teach` on all of them.

    Args:
        partitions: a folder of `write_partitions`, or a list; each item is a Partition, a pair
            (x (n, V), y (n, L)) of csr matrices, dask.delayed of one, or a path. Each is read once
            for the totals and once per block of labels.
        variant, top_k, relevance: see `mig.teach`; `mig.OTHERS` are not available.
        min_documents: tokens in fewer documents of all partitions are not counted.
        memory_mb: bound on the cells of one block of labels; a worker holds a few blocks.
        client: a distributed.Client; without one, threads of this process do the work.
        checkpoint: a folder that all workers see. It keeps each partition's counts until their
            block is done, then the block's result; the same call resumes after an interruption.
        progress: show bars.

    Raises:
        ValueError: unknown options, unequal or no partitions, or a checkpoint of other ones.
        ImportError: dask is not installed.
    """
    check_choice("variant", variant, VARIANTS)
    check_choice("relevance", relevance, RELEVANCES)
    dask, nothing = optional("dask"), "MIG needs at least one document of the training split"
    folder = isinstance(partitions, (str, Path))
    sources = partitions_in(partitions) if folder else list(partitions)
    if not sources:
        raise ValueError(f"no partition was given; {nothing}")
    # a cluster remembers that a delayed partition failed; a clone has a new key and is tried again
    late = [source for source in sources if dask.is_dask_collection(source)]
    clones = iter(optional("dask.graph_manipulation").clone(late))
    sources = [next(clones) if dask.is_dask_collection(s) else _share(s, client) for s in sources]
    # one pass for the totals
    with _bar(client, len(sources), "scan", progress) as tick:
        scan = dask.delayed(_scan, pure=False)
        total = _run(_sum([scan(source, i, tick) for i, source in enumerate(sources)]), client)
    if total.n == 0:
        raise ValueError(f"no training rows in {len(sources)} partitions; {nothing}")
    # one pass per block of labels for the counts
    options = {"variant": variant, "top_k": top_k}
    options |= {"min_documents": min_documents, "memory_mb": memory_mb}
    content = hashlib.sha256("".join(total.digests).encode()).hexdigest()[:16]
    run = {"format": 1, "partitions": len(sources), "content": content, **options}
    folder, key = _checkpoint(checkpoint, run)
    blocks = _blocks(sources, total, folder, key, client=client, progress=progress, **options)
    scores, ranks = (sparse.vstack(parts, format="csr") for parts in zip(*blocks, strict=True))
    vocabulary = max(int((total.n_t >= max(min_documents, 1)).sum()), 1)
    graded = mig.relevance_of(scores, ranks, relevance, vocabulary)
    return mig.Teacher(scores, graded, variant, total.n)


def _blocks(
    sources, total, folder, key, *, client, progress, variant, top_k, min_documents, memory_mb
) -> list:
    """[scores, ranks] of every block of labels, one at a time; `folder` keeps what is done."""
    delayed = partial(optional("dask").delayed, pure=False)
    # computed here, so that every worker uses the same logarithms whatever its processor
    margins = _share(Margins.of(total.n, total.n_t, total.n_l), client)
    keep = _share(total.n_t >= max(min_documents, 1), client)
    ranges = list(blocks_of_cells(np.minimum(total.cells, len(total.n_t)), memory_mb))
    blocks = []

    def read_block(path: Path) -> list:
        return _read(path, "scores", "ranks", key=key)[0]

    with _bar(client, len(sources) * len(ranges), "count", progress) as tick:
        for begin, end in ranges:
            done = folder and folder / f"block-{begin:07d}.safetensors"
            if done and (block := read_if_whole(done, read_block)) is not None:
                blocks.append(block)
                continue
            counts = []
            for i, source in enumerate(sources):
                path = folder and folder / f"counts-{begin:07d}-{i:06d}.safetensors"
                if path and read_if_whole(path, check_tensors) is not None:
                    counts.append(delayed(_read)(path, "counts", key=key)[0][0])
                else:
                    counts.append(delayed(_count)(source, i, begin, end, keep, path, key, tick))
            scores = delayed(mig.association_of_counts)(_sum(counts), begin, margins, variant)
            blocks.append(_run(delayed(mig.top_tokens)(scores, top_k), client))
            if done:
                _save(done, about={"key": key}, scores=blocks[-1][0], ranks=blocks[-1][1])
                # the block is safe, so its terms can go
                for path in folder.glob(f"counts-{begin:07d}-*.safetensors"):
                    path.unlink()
    return blocks


def save_teacher(teacher: mig.Teacher, path: str | Path, **about: str) -> Path:
    """Write a teacher as one safetensors file, with the texts `about` in its metadata."""
    about |= {"variant": teacher.variant, "n_train": str(teacher.n_train)}
    return _save(Path(path), about=about, scores=teacher.scores, relevance=teacher.relevance)


def load_teacher(path: str | Path) -> mig.Teacher:
    """Read what `save_teacher` wrote; ValueError for any other file."""
    (scores, relevance), about = _read(Path(path), "scores", "relevance")
    return mig.Teacher(scores, relevance, about["variant"], int(about["n_train"]))
