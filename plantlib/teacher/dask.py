"""Mutual information of a corpus that outgrows one machine: C = X'Y summed over partitions on Dask,
then `mig` itself.

Realises METHOD.md sections 1 and 2 as `mig.teach` does, to the bit: counts are exact integers, so
their sum does not depend on how rows are cut, and closed form and best K tokens are functions of
`mig`. Blocks of labels bound memory; a checkpoint folder keeps finished parts. It chooses no rows:
hand over training rows alone, or the teacher has seen the test set. dask and distributed are
optional (plantlib[scale]). `python -m plantlib.teacher.dask CORPUS --out FOLDER` teaches from a
whole corpus.
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
from plantlib.utils.io import atomic_path, read_json, write_json
from plantlib.utils.progress import tqdm


def _need(name: str):
    """The optional module `name`; ImportError with the fix when it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} is not installed, and plantlib.teacher.dask runs on it: pip install"
            " plantlib[scale]"
        ) from error


def _save(
    path: Path, *, ones: bool = False, about: dict[str, str], **matrices: sparse.csr_matrix
) -> Path:
    """Write csr matrices as one safetensors file, atomically; values are left out where all are
    `ones`.
    """
    from safetensors.numpy import save_file

    tensors = {}
    for name, matrix in matrices.items():
        parts = {
            "indptr": matrix.indptr,
            "indices": matrix.indices,
            "shape": np.asarray(matrix.shape, np.int64),
        }
        parts |= {} if ones else {"data": matrix.data}
        tensors |= {f"{name}.{part}": np.ascontiguousarray(array) for part, array in parts.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=about)
    return Path(path)


def _read(
    path: Path, *names: str, key: str | None = None
) -> tuple[list[sparse.csr_matrix], dict[str, str]]:
    """The named csr matrices of a file of `_save` and what is said about them. ValueError when it
    is none or of another key.
    """
    from safetensors import SafetensorError, safe_open

    matrices = []
    try:
        with safe_open(path, framework="numpy") as file:
            stored, about = (
                {key: file.get_tensor(key) for key in file.keys()},
                file.metadata() or {},
            )
        for name in names:
            indptr, indices, shape = (
                stored[f"{name}.{part}"] for part in ("indptr", "indices", "shape")
            )
            data = stored.get(f"{name}.data", np.ones(len(indices), np.int32))
            matrices.append(sparse.csr_matrix((data, indices, indptr), shape=tuple(shape.tolist())))
            matrices[-1].check_format(full_check=True)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} holds no csr matrices {names} ({error}); write it anew where all workers"
            " see it"
        ) from error
    if key is not None and about.get("key") != key:
        raise ValueError(
            f"{path} was written for other partitions or options; use another checkpoint folder or"
            " delete it"
        )
    return matrices, about


@dataclass(frozen=True, eq=False)
class Partition:
    """Some training rows: x (n, V) token counts or presence, y (n, L) labels, both csr. n may be 0."""

    x: sparse.csr_matrix
    y: sparse.csr_matrix

    def save(self, path: str | Path) -> Path:
        """Write the presence of both, the only thing MIG reads, as one safetensors file."""
        return _save(
            Path(path), ones=True, about={"format": "1"}, x=presence(self.x), y=presence(self.y)
        )

    @classmethod
    def load(cls, path: str | Path) -> Partition:
        return cls(*_read(Path(path), "x", "y")[0])


def write_partitions(
    x: sparse.csr_matrix, y: sparse.csr_matrix, folder: str | Path, rows: int
) -> list[Path]:
    """Cut x (N, V) and y (N, L), training rows only, into files of `rows` rows; their paths, in row
    order.

    The folder appears whole or not at all. ValueError when it is there already.
    """
    check_request(x, y, VARIANTS[0])
    if rows < 1:
        raise ValueError(f"rows={rows}: a partition needs at least 1 row")
    if Path(folder).exists():
        raise ValueError(
            f"{folder} is there already; give a new folder, or delete it when its partitions are"
            " not needed"
        )
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for i, begin in enumerate(range(0, x.shape[0], rows)):
            Partition(x[begin : begin + rows], y[begin : begin + rows]).save(
                temporary / f"part-{i:06d}.safetensors"
            )
    return partitions_in(folder)


def partitions_in(folder: str | Path) -> list[Path]:
    """Paths of the partitions in a folder of `write_partitions`, in row order. ValueError when
    there is none.
    """
    paths = sorted(Path(folder).glob("part-*.safetensors"))
    if not paths:
        raise ValueError(
            f"{folder} holds no part-*.safetensors; make it with write_partitions(x, y, folder,"
            " rows)"
        )
    return paths


def _load(source, index: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Presence x (n, V) and y (n, L) of partition `index`: a Partition, a pair or a path."""
    source = Partition.load(source) if isinstance(source, (str, Path)) else source
    pair = (source.x, source.y) if isinstance(source, Partition) else source
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(sparse.issparse(m) for m in pair)
    ):
        got = f"partition {index} is {type(source).__name__}"
        raise ValueError(
            f"{got}; wanted a pair (x, y) of csr matrices, dask.delayed of one, or a path"
        )
    if pair[0].shape[0] != pair[1].shape[0]:
        raise ValueError(
            f"partition {index}: tokens {pair[0].shape} and labels {pair[1].shape} differ in rows;"
            " pass the same"
        )
    return presence(pair[0]), presence(pair[1])


@dataclass(frozen=True, eq=False)
class _Scan:
    """Sums over partitions: rows n, n_t (V,), n_l (L,), cells (L,) as in `mig.tokens_beside`;
    digests in partition order.
    """

    first: int
    n: int
    n_t: np.ndarray
    n_l: np.ndarray
    cells: np.ndarray
    digests: tuple[str, ...]

    def __add__(self, other: _Scan) -> _Scan:
        a, b = ((len(s.n_t), len(s.n_l)) for s in (self, other))
        if a != b:
            got = f"partition {other.first} has (V, L) = {b} and partition {self.first} has {a}"
            raise ValueError(
                f"{got}; build all partitions over one vocabulary and one list of labels"
            )
        n_t, n_l, cells = self.n_t + other.n_t, self.n_l + other.n_l, self.cells + other.cells
        return _Scan(self.first, self.n + other.n, n_t, n_l, cells, self.digests + other.digests)


def _scan(source, index: int, tick: Callable) -> _Scan:
    x, y = _load(source, index)
    digest = hashlib.sha256(json.dumps([x.shape, y.shape]).encode())
    for array in (x.indptr, x.indices, y.indptr, y.indices):
        digest.update(array.astype("<i8"))
    tick()
    n_t, n_l, cells = column_counts(x), column_counts(y), tokens_beside(x, y)
    return _Scan(index, x.shape[0], n_t, n_l, cells, (digest.hexdigest(),))


def _count(
    source, index: int, begin: int, end: int, keep, path: Path | None, key: str, tick
) -> sparse.csr_matrix:
    """C_i' (end - begin, V) int64 of one partition and one block of labels; tokens outside `keep`
    (V,) bool left out.
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
    """One delayed value: `parts` added in pairs, then pairs of pairs, so that few partial sums are
    alive at once.
    """
    add = _need("dask").delayed(operator.add, pure=False)
    while len(parts) > 1:
        parts = [add(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)] + parts[
            len(parts) // 2 * 2 :
        ]
    return parts[0]


def _run(node, client):
    """The value of a delayed `node`: on the client's cluster, else on this process's threads (or
    dask's "sync" scheduler).
    """
    if client is not None:
        return client.compute(node, sync=True)
    chosen = _need("dask").config.get("scheduler", None)
    return node.compute(
        scheduler="sync" if chosen in ("sync", "synchronous", "single-threaded") else "threads"
    )


def _share(value, client):
    """`value` as an argument of many tasks: a path as it is, else sent to the cluster once or
    untouched by dask.
    """
    if isinstance(value, (str, Path)):
        return Path(value).absolute()
    if client is not None:
        return client.scatter([value], hash=False)[0]
    return _need("dask").delayed(value, pure=False, traverse=False)


def _tell(topic: str) -> None:
    """One step of the bar that listens to `topic`, from a worker."""
    _need("distributed").get_worker().log_event(topic, 1)


@contextlib.contextmanager
def _bar(client, total: int, desc: str, progress: bool) -> Iterator[Callable]:
    """A bar of `total` partitions; yields what a task calls when it has done one."""
    with tqdm(total=total, desc=desc, unit="partition", disable=not progress) as bar:
        if client is None:
            yield bar.update
        else:
            topic = f"plantlib-{uuid.uuid4().hex}"
            client.subscribe_topic(topic, lambda event: bar.update())
            try:
                yield partial(_tell, topic)
            finally:
                client.unsubscribe_topic(topic)
        bar.update(total - bar.n)


def _checkpoint(folder: str | Path | None, options: dict) -> tuple[Path | None, str]:
    """(folder, key of these partitions and options). ValueError when the folder was begun with
    others.
    """
    text = json.dumps(options, sort_keys=True, default=lambda number: number.item())
    options, key = json.loads(text), hashlib.sha256(text.encode()).hexdigest()
    if folder is None:
        return None, key
    state = Path(folder).absolute() / "state.json"
    found = read_json(state) if state.exists() else options
    if found != options:
        changed = [
            f"{k} {found.get(k)!r}, now {options.get(k)!r}"
            for k in found | options
            if found.get(k) != options.get(k)
        ]
        raise ValueError(
            f"checkpoint {folder} is of another run: {'; '.join(changed)}; use another folder or"
            " delete it"
        )
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
    """The teacher `mig.teach` builds from the stacked partitions, bit for bit; training rows only,
    as there.

    partitions: a folder of `write_partitions`, or a list of Partition, pair (x, y) of csr matrices,
    dask.delayed of one, or path of one. Each is read once for its sums and once a block of labels;
    a delayed one is computed as often. min_documents counts documents of all partitions; memory_mb
    bounds the cells of one block, of which a worker holds a few. client: a distributed.Client;
    without one this process's threads count. checkpoint: a folder that all workers see, where each
    partition's counts are kept until their block is done, then the block's result; a call that was
    interrupted goes on from there. ValueError for a checkpoint of other partitions or options,
    ImportError without dask.
    """
    check_choice("variant", variant, VARIANTS)
    check_choice("relevance", relevance, RELEVANCES)
    dask, sources = (
        _need("dask"),
        partitions_in(partitions) if isinstance(partitions, (str, Path)) else list(partitions),
    )
    if not sources:
        raise ValueError(
            "no partition was given; MIG needs at least one document of the training split"
        )
    # new keys, or a cluster answers with the failure that it remembers of a partition
    late = iter(
        _need("dask.graph_manipulation").clone([s for s in sources if dask.is_dask_collection(s)])
    )
    sources = [next(late) if dask.is_dask_collection(s) else _share(s, client) for s in sources]
    with _bar(client, len(sources), "scan", progress) as tick:
        total = _run(
            _sum([dask.delayed(_scan, pure=False)(s, i, tick) for i, s in enumerate(sources)]),
            client,
        )
    if total.n == 0:
        raise ValueError(
            f"no training rows in {len(sources)} partitions; MIG needs at least one document of"
            " that split"
        )
    content = hashlib.sha256("".join(total.digests).encode()).hexdigest()[:16]
    options = {
        "variant": variant,
        "top_k": top_k,
        "min_documents": min_documents,
        "memory_mb": memory_mb,
    }
    kept = _checkpoint(
        checkpoint, {"format": 1, "partitions": len(sources), "content": content, **options}
    )
    parts = _blocks(sources, total, *kept, client=client, progress=progress, **options)
    scores, ranks = (sparse.vstack(matrices, format="csr") for matrices in zip(*parts, strict=True))
    vocabulary = max(int((total.n_t >= max(min_documents, 1)).sum()), 1)
    return mig.Teacher(
        scores, mig.relevance_of(scores, ranks, relevance, vocabulary), variant, total.n
    )


def _blocks(
    sources,
    total: _Scan,
    folder,
    key,
    *,
    client,
    progress,
    variant,
    top_k,
    min_documents,
    memory_mb,
) -> list:
    """[scores, ranks] of every block of labels, one block at a time; finished ones are read from
    the checkpoint `folder`.
    """
    delayed, keep = partial(_need("dask").delayed, pure=False), total.n_t >= max(min_documents, 1)
    # made here, so that every worker reads the same logarithms whatever its processor
    margins = _share(Margins.of(total.n, total.n_t, total.n_l), client)
    shared, results = _share(keep, client), []
    ranges = list(blocks_of_cells(np.minimum(total.cells, len(keep)), memory_mb))
    with _bar(client, len(sources) * len(ranges), "count", progress) as tick:
        for begin, end in ranges:
            final = folder and folder / f"block-{begin:07d}.safetensors"
            if final and final.exists():
                results.append(_read(final, "scores", "ranks", key=key)[0])
                continue
            leaves = []
            for i, source in enumerate(sources):
                path = folder and folder / f"counts-{begin:07d}-{i:06d}.safetensors"
                if path and path.exists():
                    leaves.append(delayed(_read)(path, "counts", key=key)[0][0])
                else:
                    leaves.append(delayed(_count)(source, i, begin, end, shared, path, key, tick))
            scores = delayed(mig.association_of_counts)(_sum(leaves), begin, margins, variant)
            results.append(_run(delayed(mig.top_tokens)(scores, top_k), client))
            if final:
                _save(final, about={"key": key}, scores=results[-1][0], ranks=results[-1][1])
                # the sum is safe, its terms are not needed any more
                for path in folder.glob(f"counts-{begin:07d}-*.safetensors"):
                    path.unlink()
    return results


def save_teacher(teacher: mig.Teacher, path: str | Path, **about: str) -> Path:
    """Write scores and relevance as one safetensors file; `about` is stored beside them as text."""
    about |= {"variant": teacher.variant, "n_train": str(teacher.n_train)}
    return _save(Path(path), about=about, scores=teacher.scores, relevance=teacher.relevance)


def load_teacher(path: str | Path) -> mig.Teacher:
    """The teacher of a file of `save_teacher`. ValueError when it is none."""
    (scores, relevance), about = _read(Path(path), "scores", "relevance")
    return mig.Teacher(scores, relevance, about["variant"], int(about["n_train"]))
