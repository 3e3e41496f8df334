"""Partitions give the bits of `mig.teach` on the stacked rows, however they are cut and stored.

Most tests count in this process, a few on a cluster of two worker processes. A run is interrupted
by a partition that fails when it is loaded the second time.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from plantlib.cli.dask import main
from plantlib.kernels.counts import (
    VARIANTS,
    blocks_of_labels,
    column_counts,
    dense_mutual_information,
    presence,
)
from plantlib.teacher import dask as mig_dask
from plantlib.teacher import mig
from plantlib.teacher.dask import Partition, partitions_in, teach_partitions, write_partitions
from plantlib.training.ingredients import teacher_of
from plantlib.utils.tensors import save_tensors

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


N, V, L = 90, 23, 11
CUTS = {
    "one": [],
    "four": [20, 41, 77],
    "empty": [30, 30, 60],
    "first empty": [0, 45],
    "a row each": list(range(1, N)),
}
SMALL_MB = 0.004  # several blocks of labels


def toy(seed: int = 0) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Counts X (N, V) and int8 labels Y (N, L), with ties, full, empty and nearly empty columns."""
    rng = np.random.default_rng(seed)
    y = rng.random((N, L)) < np.linspace(0.05, 0.5, L)
    x = rng.random((N, V)) < rng.random(V)
    x[:, 0], x[:, 3] = y[:, 4], x[:, 2]
    x[:, 5], x[:, 6], y[:, 7], y[:, 8] = False, True, False, True
    # label 9 and token 7 are in the last rows only
    y[:80, 9], y[80:, 9], x[:85, 7] = False, True, False
    return sparse.csr_matrix(x * rng.integers(1, 5, x.shape)), sparse.csr_matrix(y.astype(np.int8))


def cut(x, y, at) -> list[tuple[sparse.csr_matrix, sparse.csr_matrix]]:
    edges = [0, *at, x.shape[0]]
    return [(x[a:b], y[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def teach(partitions, **options) -> mig.Teacher:
    return teach_partitions(partitions, **{"progress": False, **options})


def assert_same(result: mig.Teacher, expected: mig.Teacher) -> None:
    """Equal bits and types of arrays."""
    assert (result.variant, result.n_train) == (expected.variant, expected.n_train)
    for a, b in ((result.scores, expected.scores), (result.relevance, expected.relevance)):
        assert a.shape == b.shape
        for part in ("indptr", "indices", "data"):
            got, want = getattr(a, part), getattr(b, part)
            assert got.dtype == want.dtype and got.tobytes() == want.tobytes(), part


@pytest.fixture(autouse=True)
def in_order(request):
    """Tasks run one at a time in this thread, unless a test sets another scheduler."""
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two worker processes of one thread."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    folder = tmp_path_factory.mktemp("workers")
    with (
        distributed.LocalCluster(**options, local_directory=str(folder)) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("at", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_partitions_give_the_bits_of_the_stacked_rows(variant, at):
    x, y = toy()
    for top_k, relevance in ((4, "grade"), (None, "score")):
        options = {"variant": variant, "top_k": top_k, "relevance": relevance}
        expected = mig.teach(x, y, **options)
        assert expected.scores.nnz > 20 and expected.taught[9], (
            "a teacher that would show a difference"
        )
        assert_same(teach(cut(x, y, at), **options), expected)


@pytest.mark.parametrize("memory_mb", [1e-9, SMALL_MB])
@pytest.mark.parametrize("min_documents", [1, 12])
def test_blocks_of_labels_and_rare_tokens_change_no_bit(memory_mb, min_documents):
    x, y = toy()
    expected = mig.teach(x, y, min_documents=min_documents, relevance="score")
    ranges = list(blocks_of_labels(presence(x), presence(y), memory_mb))
    assert len(ranges) > 2
    result = teach(
        cut(x, y, CUTS["four"]), min_documents=min_documents, relevance="score", memory_mb=memory_mb
    )
    assert_same(result, expected)


def test_min_documents_counts_documents_of_all_partitions():
    x, y = toy()
    parts = cut(x, y, list(range(10, N, 10)))
    most = max(column_counts(presence(a)).max() for a, _ in parts)
    assert most < 12, "every token is rare in every partition"
    result = teach(parts, min_documents=12, top_k=None)
    seen = column_counts(presence(x))
    assert set(result.scores.indices) <= set(np.flatnonzero(seen >= 12)) and result.scores.nnz > 20
    assert set(teach(parts, top_k=None).scores.indices) > set(result.scores.indices)
    assert_same(result, mig.teach(x, y, min_documents=12, top_k=None))


def test_an_entry_stored_twice_is_one_document_in_memory_and_on_disk(tmp_path):
    x, y = toy()

    def double(m):
        parts = (np.repeat(m.data, 2), np.repeat(m.indices, 2), 2 * m.indptr)
        return sparse.csr_matrix(parts, shape=m.shape)

    parts = [(double(a), double(b)) for a, b in cut(x, y, CUTS["four"])]
    assert parts[0][0].nnz == 2 * x[:20].nnz
    assert_same(teach(parts), mig.teach(x, y))
    assert_same(
        teach(write_partitions(double(x), double(y), tmp_path / "parts", 40)), mig.teach(x, y)
    )


def test_int8_labels_and_counts_beyond_127_do_not_wrap():
    rng = np.random.default_rng(1)
    y = sparse.csr_matrix((rng.random((700, 2)) < 0.6).astype(np.int8))
    x = sparse.csr_matrix((rng.random((700, 3)) < 0.5).astype(np.int8) * np.int8(100))
    assert (presence(x).T @ presence(y)).max() > 127
    result = teach(cut(x, y, [300]), top_k=None, variant="raw")
    assert_same(result, mig.teach(x, y, top_k=None, variant="raw"))
    both, info = (presence(x).T @ presence(y)).toarray(), dense_mutual_information(x, y)
    n_t, n_l = column_counts(x), column_counts(y)
    expected = np.where(both * 700 > n_t[:, None] * n_l, info, 0).T
    np.testing.assert_array_equal(result.scores.toarray(), expected)


def test_files_delayed_and_memory_mix_and_survive_a_round_trip(tmp_path):
    x, y = toy()
    paths = write_partitions(x, y, tmp_path / "parts", 25)
    assert [Partition.load(p).x.shape for p in paths] == [(25, V)] * 3 + [(15, V)]
    assert partitions_in(tmp_path / "parts") == paths
    first = Partition.load(paths[0])
    assert (first.x != presence(x[:25])).nnz == 0 and (first.y != presence(y[:25])).nnz == 0
    expected = mig.teach(x, y)
    assert_same(teach(tmp_path / "parts"), expected)
    late = dask.delayed((x[25:50], y[25:50])), dask.delayed(Partition.load)(paths[3])
    mixed = [str(paths[0]), late[0], Partition(x[50:75], y[50:75]), late[1]]
    assert_same(teach(iter(mixed)), expected)
    with pytest.raises(ValueError, match="parts exists; give a new folder"):
        write_partitions(x, y, tmp_path / "parts", 30)
    assert len(write_partitions(x, y, tmp_path / "wide", 10 * N)) == 1, (
        "fewer rows than a partition holds"
    )


def test_a_delayed_partition_persisted_on_a_cluster_is_not_made_again(client, tmp_path):
    x, y = toy()
    (calls := tmp_path / "calls").mkdir()
    part = client.persist(last_of(write_partitions(x, y, tmp_path / "parts", N)[0], calls))
    assert_same(teach([part], client=client, memory_mb=SMALL_MB), mig.teach(x, y))
    assert len(list(calls.iterdir())) == 1


def test_the_stored_format_is_safetensors_without_values(tmp_path):
    from safetensors.numpy import load_file

    path = write_partitions(*toy(), tmp_path / "parts", N)[0]
    assert set(load_file(path)) == {
        f"{m}.{part}" for m in "xy" for part in ("indptr", "indices", "shape")
    }
    assert sorted(p.name for p in path.parent.iterdir()) == ["contents.json", path.name], (
        "no half-written file stays"
    )


def test_threads_count_as_one_thread_does():
    x, y = toy()
    with dask.config.set(scheduler="threads", num_workers=2):
        assert_same(teach(cut(x, y, list(range(9, N, 9))), memory_mb=SMALL_MB), mig.teach(x, y))


def test_a_cluster_of_two_processes_gives_the_same_bits(client, tmp_path, capfd):
    x, y = toy()
    paths = write_partitions(x, y, tmp_path / "parts", 30)
    mixed = [paths[0], (x[30:60], y[30:60]), dask.delayed(Partition.load)(paths[2])]
    result = teach(mixed, client=client, memory_mb=SMALL_MB, min_documents=5, progress=True)
    assert_same(result, mig.teach(x, y, min_documents=5))
    bars = capfd.readouterr().err
    assert "scan: 100%" in bars and "count: 100%" in bars


def counts_written(folder: Path) -> set[int]:
    """Partitions whose counts are in a checkpoint."""
    return {int(path.stem.split("-")[2]) for path in folder.glob("counts-*")}


@dask.delayed(pure=False)
def fragile(part, calls: Path, fail_at: int):
    """Partition number `part` of the toy. Every call leaves a file; call number `fail_at` fails."""
    number = 1
    while (calls / f"{number}").exists():
        number += 1
    (calls / f"{number}").write_text(f"{part}")
    if number == fail_at:
        raise RuntimeError("the disk went away")
    return cut(*toy(), CUTS["four"])[part]


def loads(calls: Path) -> np.ndarray:
    """(4,) how often each partition was loaded."""
    return np.bincount([int(mark.read_text()) for mark in calls.iterdir()], minlength=4)


def test_an_interrupted_run_counts_only_what_is_missing(tmp_path):
    (calls := tmp_path / "calls").mkdir()
    # four scans, then the last of four counts fails
    parts = [fragile(i, calls, 8) for i in range(4)]
    with pytest.raises(RuntimeError, match="the disk went away"):
        teach(parts, checkpoint=tmp_path / "kept")
    finished, before = counts_written(tmp_path / "kept"), loads(calls)
    assert finished and before.tolist() == [2] * 4
    assert_same(teach(parts, checkpoint=tmp_path / "kept"), mig.teach(*toy()))
    later = loads(calls) - before
    assert later.tolist() == [1 if i in finished else 2 for i in range(4)], (
        "all are scanned, only the missing ones counted"
    )
    assert not counts_written(tmp_path / "kept"), "counts are deleted once their block is written"


def test_a_cluster_goes_on_where_it_was_interrupted(client, tmp_path):
    """Partition 2 fails when it is counted and works in the next call.

    The cluster still remembers its failure, which `failure` refers to, and must not reuse it.
    """
    (calls := tmp_path / "calls").mkdir()
    paths = write_partitions(*toy(), tmp_path / "parts", 30)
    once = [*paths[:2], last_of(paths[2], calls)]
    with pytest.raises(RuntimeError, match="the disk went away") as failure:
        teach(once, client=client, checkpoint=tmp_path / "kept")
    assert failure.value and 2 not in counts_written(tmp_path / "kept")
    assert_same(teach(once, client=client, checkpoint=tmp_path / "kept"), mig.teach(*toy()))
    assert len(list(calls.iterdir())) == 4 and not counts_written(tmp_path / "kept")


@dask.delayed(pure=False)
def last_of(path: Path, calls: Path) -> Partition:
    """The partition at `path`; the second call fails."""
    number = len(list(calls.iterdir())) + 1
    (calls / f"{number}").touch()
    if number == 2:
        raise RuntimeError("the disk went away")
    return Partition.load(path)


def test_finished_blocks_are_read_and_later_ones_made(tmp_path):
    x, y = toy()
    blocks = len(list(blocks_of_labels(presence(x), presence(y), SMALL_MB)))
    (calls := tmp_path / "calls").mkdir()
    # four scans, four counts for each of two blocks, then a failure in the third
    parts = [fragile(i, calls, 13) for i in range(4)]
    options = {
        "memory_mb": SMALL_MB,
        "checkpoint": tmp_path / "kept",
        "relevance": "score",
        "top_k": np.int64(5),
    }
    with pytest.raises(RuntimeError, match="the disk went away"):
        teach(parts, **options)
    assert (
        blocks > 3
        and len(list((tmp_path / "kept").glob("block-*"))) == 2
        and not counts_written(tmp_path / "kept")
    )
    before, expected = loads(calls), mig.teach(x, y, relevance="score", top_k=5)
    assert_same(teach(parts, **options), expected)
    assert (loads(calls) - before).tolist() == [1 + blocks - 2] * 4
    before = loads(calls)
    assert_same(teach(parts, **options | {"top_k": 5}), expected)
    assert (loads(calls) - before).tolist() == [1] * 4, "a finished run is only scanned"


@pytest.mark.parametrize(
    "change", [{"top_k": 3}, {"variant": "jaccard"}, {"min_documents": 9}, {"memory_mb": 1.0}]
)
def test_a_checkpoint_of_other_options_is_an_error(change, tmp_path):
    parts = cut(*toy(), [45])
    teach(parts, checkpoint=tmp_path)
    name, value = next(iter(change.items()))
    with pytest.raises(
        ValueError, match=rf"is of another run: {name} .*, now {value!r}; use another folder"
    ):
        teach(parts, checkpoint=tmp_path, **change)
    assert_same(
        teach(parts, checkpoint=tmp_path, relevance="score"), mig.teach(*toy(), relevance="score")
    )


def test_a_checkpoint_of_other_partitions_is_an_error(tmp_path):
    x, y = toy()
    teach(cut(x, y, [45]), checkpoint=tmp_path / "kept")
    moved = x.copy()
    moved.data[0] += 1
    teach(cut(moved, y, [45]), checkpoint=tmp_path / "kept")  # a count above 1 is the same presence
    moved = moved + sparse.csr_matrix(([1], ([0], [5])), shape=(N, V))
    for parts in (cut(moved, y, [45]), cut(x, y, [44])):
        with pytest.raises(ValueError, match="is of another run: content"):
            teach(parts, checkpoint=tmp_path / "kept")
    with pytest.raises(ValueError, match="is of another run: .*partitions 2, now 3"):
        teach(cut(x, y, [45, 60]), checkpoint=tmp_path / "kept")


def test_a_file_of_another_checkpoint_is_never_read(tmp_path):
    x, y = toy()
    for name, labels in (("a", y), ("b", y[:, ::-1])):
        teach(cut(x, labels, [45]), checkpoint=tmp_path / name)
    (tmp_path / "a" / "block-0000000.safetensors").replace(
        tmp_path / "b" / "block-0000000.safetensors"
    )
    with pytest.raises(
        ValueError, match="block-0000000.safetensors was written for other partitions or options"
    ):
        teach(cut(x, y[:, ::-1], [45]), checkpoint=tmp_path / "b")


def test_errors_name_the_partition_and_the_shapes(tmp_path):
    x, y = toy()
    wrong = cut(x, y, [30, 60])
    wrong[2] = (x[60:, :-1], y[60:])
    with pytest.raises(
        ValueError,
        match=rf"partition 2 has \(V, L\) = \({V - 1}, {L}\) and partition 0 has \({V}, {L}\)",
    ):
        teach(wrong)
    with pytest.raises(
        ValueError,
        match=rf"partition 1 has \(V, L\) = \({V}, {L - 1}\) and partition 0 has \({V}, {L}\)",
    ):
        teach([(x[:30], y[:30]), (x[30:], y[30:, 1:])])
    with pytest.raises(
        ValueError, match=rf"partition 1: tokens \(60, {V}\) and labels \(59, {L}\) differ in rows"
    ):
        teach([(x[:30], y[:30]), (x[30:], y[31:])])
    with pytest.raises(ValueError, match=r"partition \d is csr_matrix; wanted a pair"):
        teach((x, y))
    for nothing in ([], [(x[:0], y[:0])] * 2):
        with pytest.raises(ValueError, match="MIG needs at least one document"):
            teach(nothing)
    with pytest.raises(ValueError, match="variant='chi2'.*jaccard"):
        teach([(x, y)], variant="chi2")
    with pytest.raises(ValueError, match="relevance='rank'.*grade"):
        teach([(x, y)], relevance="rank")
    with pytest.raises(ValueError, match="holds no part-"):
        teach(tmp_path)
    with pytest.raises(ValueError, match="rows=0: a partition needs"):
        write_partitions(x, y, tmp_path / "parts", 0)
    (tmp_path / "torn.safetensors").write_bytes(b"no such file")
    for name, fault in (
        ("torn.safetensors", "is damaged"),
        ("absent.safetensors", "holds no csr matrices"),
    ):
        with pytest.raises(ValueError, match=f"{name} {fault}"):
            teach([(x, y), tmp_path / name])


def test_a_file_whose_indices_leave_the_matrix_is_an_error(tmp_path):
    from safetensors.numpy import load_file

    path = write_partitions(*toy(), tmp_path / "parts", N)[0]
    tensors = load_file(path)
    tensors["x.indices"][3] = V + 1000
    save_tensors(path, tensors)
    with pytest.raises(ValueError, match="holds no csr matrices"):
        teach([path])


@pytest.mark.parametrize("missing", ["dask", "distributed"])
def test_without_dask_the_error_says_what_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ImportError, match=rf"{missing} is not installed.*pip install plantlib\[scale\]"
    ):
        mig_dask.optional(missing)
    if missing == "dask":
        with pytest.raises(ImportError, match="pip install plantlib"):
            teach([toy()])


def test_importing_the_module_imports_no_dask():
    code = (
        "import sys, plantlib.teacher.dask; sys.exit(any(m in sys.modules for m in ('dask',"
        " 'distributed', 'torch')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
    )


def test_a_teacher_survives_its_file(tmp_path):
    teacher = mig.teach(*toy(), variant="raw").shuffled(3)
    path = mig_dask.save_teacher(teacher, tmp_path / "deep" / "teacher.safetensors", corpus="toy")
    assert_same(mig_dask.load_teacher(path), teacher)
    with pytest.raises(ValueError, match="holds no csr matrices"):
        mig_dask.load_teacher(write_partitions(*toy(), tmp_path / "parts", N)[0])


@pytest.mark.parametrize("where", ["here", "scheduler"])
def test_the_command_teaches_a_corpus_as_a_run_does(
    where, prepared, corpus, backbone_folder, tmp_path, capsys, request
):
    from plantlib.teacher.mig import TeacherConfig

    folder = corpus.save(tmp_path / "tiny")
    place = ["--workers", "0"]
    if where == "scheduler":
        place = ["--scheduler", request.getfixturevalue("client").scheduler.address]
    out = tmp_path / "out"
    call = [str(folder), "--out", str(out), *place]
    main([*call, "--partitions", "3", "--tokens", "900", "--backbone", backbone_folder])
    result, expected = mig_dask.load_teacher(out / "teacher.safetensors"), teacher_of(prepared)
    assert_same(result, expected)
    assert asdict(TeacherConfig())["variant"] == result.variant and result.n_train == 60
    printed = capsys.readouterr().out.splitlines()
    assert (
        len(printed) == 1 and "60 documents" in printed[0] and "teacher.safetensors" in printed[0]
    )
    assert [p.name for p in out.iterdir()] == ["teacher.safetensors"], (
        "the work folder is deleted once the teacher is written"
    )


def test_the_command_goes_on_with_its_partitions(corpus, backbone_folder, tmp_path, monkeypatch):
    folder, out = corpus.save(tmp_path / "tiny"), tmp_path / "out"
    call = [str(folder), "--out", str(out), "--workers", "0", "--backbone", backbone_folder]
    with monkeypatch.context() as broken:
        broken.setattr(mig, "relevance_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(call)
    assert (
        len(list(out.glob("work-*/partitions/part-*"))) == 8
        and len(list(out.glob("work-*/checkpoint/block-*"))) == 1
    )
    monkeypatch.setattr(mig_dask, "write_partitions", None)
    monkeypatch.setattr(mig_dask, "_count", None)
    main(call)
    assert mig_dask.load_teacher(out / "teacher.safetensors").n_train == 60
    with pytest.raises(SystemExit):
        main([*call, "--partitions", "0"])
