"""The Triton kernels of mutual information give the bits of the CPU path.

docs/method.md, "Mutual information gain". There is no tolerance: tokens, float64 scores and the
order of ties must be those of `mig`. The kernels run in Triton's interpreter on small tiles, so
that small shapes cross tile borders. They are compiled for two GPU targets without a GPU, and run
on one under `-m gpu`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib.kernels import cooccurrence, machine
from plantlib.kernels.counts import VARIANTS, presence
from plantlib.teacher import mig
from tests.kernels.test_attention import Largest
from tests.teacher.test_mig import toy

if not machine.has_triton():
    pytest.skip(
        "triton is not installed (extra `kernels`); it has no wheel for this platform",
        allow_module_level=True,
    )


TILE = 16
INTERPRETED = pytest.mark.skipif(
    not machine.interpreted() and not torch.cuda.is_available(),
    reason="needs Triton's interpreter or a GPU",
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, request):
    if "gpu" not in request.keywords:
        monkeypatch.setattr(cooccurrence, "TOKENS", TILE)
        monkeypatch.setattr(cooccurrence, "LABELS", TILE)
        monkeypatch.setattr(cooccurrence, "WORDS", 4)


def matrices(x, y):
    return sparse.csr_matrix(np.asarray(x, np.int32)), sparse.csr_matrix(np.asarray(y, np.int32))


def drawn(documents: int, tokens: int, labels: int, seed: int = 0):
    """Random, independent X (N, V) and Y (N, L) of uneven frequencies."""
    rng = np.random.default_rng(seed)
    x = rng.random((documents, tokens)) < rng.uniform(0.1, 0.9, tokens)
    return matrices(x, rng.random((documents, labels)) < rng.uniform(0.1, 0.7, labels))


def copies():
    """Three kinds of token, repeated and shuffled: every edge is a tie, across tile borders."""
    x, y = drawn(40, 3, 4, seed=2)
    return x[:, np.random.default_rng(0).integers(0, 3, 3 * TILE + 5)], y


def rising():
    """Each token agrees with the label a little better, so every tile replaces the list."""
    documents = 6 * TILE
    label = np.arange(documents) < documents // 2
    x = np.repeat(label[:, None], 90, 1)
    for token in range(90):
        x[: documents // 2 - 2 - token // 2, token] = False
    return matrices(x, label[:, None])


def late():
    """Equal tokens fill the lists of two neighbouring labels before the better ones come."""
    documents = 4 * TILE
    label = np.arange(documents) < documents // 2
    x = np.repeat(label[:, None], 6 * TILE, 1)
    x[: documents // 4, : 4 * TILE] = False
    return matrices(x, np.repeat(label[:, None], 2, 1))


def hardly_associated():
    """C N just above n_t n_l: mutual information rounds to 0, but the token is kept."""
    n, n_l = 10_007, 5_000
    x = np.zeros((n, 12), np.int32)
    for token in range(12):
        # so that C N - n_t n_l is 1, 2, ..., 12
        n_t = -(token + 1) * pow(n_l, -1, n) % n
        both = (n_t * n_l + token + 1) // n
        x[:both, token] = x[n_l : n_l + n_t - both, token] = 1
    return matrices(x, np.arange(n)[:, None] < n_l)


CASES = {
    "60 documents: words not full; tokens and labels in none and all of them": (toy(), 3),
    "64 documents: words full": (drawn(64, 20, 5), 4),
    "300 documents: three steps of words, the last not full": (drawn(300, 20, 5), 4),
    "one document: N = 1 is an integer Triton would make a constant": (drawn(1, 9, 3), 2),
    "two documents": (drawn(2, 9, 3), 2),
    "one label": (drawn(30, 19, 1), 5),
    "one token": (drawn(30, 1, 5), 5),
    "one token, one label, one place": (matrices([[1], [0]], [[1], [0]]), 1),
    "one label and one token more than a tile": (drawn(30, TILE + 1, TILE + 1), 6),
    "a label in every document": (matrices(toy()[0].toarray(), np.ones((60, 2))), 4),
    "labels without documents": (matrices(toy()[0].toarray(), np.zeros((60, 3))), 4),
    "no token anywhere": (matrices(np.zeros((20, 5)), toy()[1].toarray()[:20]), 4),
    "ties over tile borders, K in the middle of them": (copies(), 7),
    "ties over tile borders, K = 1": (copies(), 1),
    "ties over tile borders, K over a tile": (copies(), TILE + 4),
    "fewer positive tokens than K": (drawn(30, 12, 4), 100),
    "candidates cut again and again": (rising(), 10),
    "equal candidates fill a list before better ones come": (late(), 10),
    "mutual information rounded to zero": (hardly_associated(), 20),
    "no label column": (matrices(np.ones((3, 4)), np.zeros((3, 0))), 2),
}


def same_bits(result: sparse.csr_matrix, expected: sparse.csr_matrix) -> None:
    assert result.shape == expected.shape and result.dtype == expected.dtype == np.float64
    np.testing.assert_array_equal(result.indptr, expected.indptr)
    np.testing.assert_array_equal(result.indices, expected.indices)
    np.testing.assert_array_equal(result.data.view(np.int64), expected.data.view(np.int64))


def on_cpu(x, y, variant, top_k) -> sparse.csr_matrix:
    return mig.teach(x, y, variant=variant, top_k=top_k, impl="torch").scores


@INTERPRETED
@pytest.mark.parametrize(("corpus", "top_k"), CASES.values(), ids=CASES)
def test_equals_the_cpu_path_to_the_bit(corpus, top_k):
    result = cooccurrence.top_associations(*corpus, variant="jaccard", top_k=top_k)
    same_bits(result, on_cpu(*corpus, "jaccard", top_k))
    assert result.has_sorted_indices


def test_the_cases_are_what_they_say():
    scores = {name: on_cpu(*corpus, "jaccard", None) for name, (corpus, _) in CASES.items()}
    sizes = {name: np.diff(result.indptr) for name, result in scores.items()}
    assert sizes["fewer positive tokens than K"].max() < 100 and sizes["one token"].max() == 1
    assert sizes["a label in every document"].max() == sizes["labels without documents"].max() == 0
    assert (scores["mutual information rounded to zero"].data == 0).any()
    rises = scores["candidates cut again and again"].data
    assert len(rises) > 4 * TILE + 10 and (np.diff(rises) >= 0).all() and len(set(rises)) > 30
    for label in scores["ties over tile borders, K in the middle of them"]:
        edge = np.sort(label.data)[::-1][6:8]
        assert not label.nnz or edge[0] == edge[1]


@INTERPRETED
@pytest.mark.parametrize("variant", VARIANTS[1:])
@pytest.mark.parametrize("corpus", [toy(1), copies()], ids=["toy", "ties"])
def test_other_variants_equal_the_cpu_path_to_the_bit(corpus, variant):
    same_bits(
        cooccurrence.top_associations(*corpus, variant=variant, top_k=5),
        on_cpu(*corpus, variant, 5),
    )


@INTERPRETED
def test_tiles_of_the_gpu_give_the_same(monkeypatch):
    monkeypatch.undo()
    corpus = drawn(140, cooccurrence.TOKENS + 3, cooccurrence.LABELS + 1)
    same_bits(
        cooccurrence.top_associations(*corpus, variant="jaccard", top_k=9),
        on_cpu(*corpus, "jaccard", 9),
    )


@INTERPRETED
def test_neither_uninitialised_memory_nor_a_second_run_shows(monkeypatch):
    corpus, top_k = CASES["candidates cut again and again"]
    first = cooccurrence.top_associations(*corpus, variant="jaccard", top_k=top_k)
    empty = torch.empty

    def poisoned(*shape, **options):
        tensor = empty(*shape, **options)
        return tensor.fill_(
            float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max // 2
        )

    monkeypatch.setattr(torch, "empty", poisoned)
    same_bits(cooccurrence.top_associations(*corpus, variant="jaccard", top_k=top_k), first)


@INTERPRETED
def test_no_table_of_tokens_by_labels_is_stored():
    x, y = drawn(9, 9 * TILE, TILE)
    # uint8 tensors are the interpreter's copies of arguments
    with Largest(ignored=(torch.uint8,)) as largest:
        cooccurrence.top_associations(x, y, variant="jaccard", top_k=2)
    assert largest.numel <= max(TILE * cooccurrence.capacity(2), x.nnz) < 9 * TILE * TILE


def test_bitmaps_hold_every_bit_and_chunks_do_not_show(monkeypatch):
    x = presence(drawn(70, 11, 1)[0])
    expected = cooccurrence.bitmap(x, "cpu")
    monkeypatch.setattr(cooccurrence, "ENTRIES", 7)
    assert torch.equal(cooccurrence.bitmap(x, "cpu"), expected) and expected.shape == (3, 11)
    bits = (expected.numpy()[:, None, :] >> np.arange(32)[None, :, None]) & 1
    np.testing.assert_array_equal(bits.reshape(96, 11)[:70], x.toarray())
    assert not bits.reshape(96, 11)[70:].any()


@pytest.mark.parametrize("top_k", [None, 0, 513])
def test_refuses_what_the_cpu_path_serves(top_k):
    with pytest.raises(ValueError, match=f"top_k={top_k}: .*1 to 512.*impl='torch'"):
        cooccurrence.top_associations(*toy(), variant="raw", top_k=top_k)


def test_refuses_counts_that_float32_cannot_hold_and_rows_that_do_not_match():
    cooccurrence.check_limits(2**24, 512)
    with pytest.raises(ValueError, match="16,777,217 documents.*impl='torch'"):
        cooccurrence.check_limits(2**24 + 1, 5)
    x, y = toy()
    with pytest.raises(ValueError, match="tokens have 60 rows and labels 53"):
        cooccurrence.top_associations(x, y[7:], variant="raw", top_k=5)
    with pytest.raises(ValueError, match="variant='chi2'"):
        cooccurrence.top_associations(x, y, variant="chi2", top_k=5)


AHEAD_OF_TIME = """
import re, sys, triton
from triton.backends.compiler import GPUTarget
from plantlib.kernels.compile import _registers
from plantlib.kernels.cooccurrence import ahead_of_time_specs
arch = int(sys.argv[1])
for name, kernel, signature, constants, warps, stages in ahead_of_time_specs():
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    wrong = re.findall(r"\\b(?:atom|red)\\.\\S+|\\b(?:fma|mul)\\.\\S*f64|ld\\.global\\.nc", ptx)
    right = "mma" in ptx and "div.rn.f64" in ptx
    print(name, compiled.metadata.shared, _registers(ptx)["spilled_bytes"], right, *wrong)
"""


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_without_a_gpu(arch, tmp_path):
    """Little shared memory, hardly any spill, no atomics, no contracted float64 operation."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", AHEAD_OF_TIME, str(arch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(cooccurrence.ahead_of_time_specs())
    for name, shared, spilled, *rest in lines:
        assert int(shared) <= 100 * 1024 and int(spilled) <= 64 and rest == ["True"], (
            name,
            shared,
            spilled,
            rest,
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled kernels need a GPU")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("top_k", [1, 64, 500])
def test_on_a_gpu_equals_the_cpu_path_to_the_bit(variant, top_k):
    rng = np.random.default_rng(0)
    x = sparse.random(5_003, 3_001, 0.02, "csr", rng=rng)
    y = sparse.random(5_003, 517, 0.01, "csr", rng=rng)
    # also with sizes of 1, which a launcher would make constants
    for corpus in (
        (x.ceil(), y.ceil()),
        (x.ceil()[:, :1], y.ceil()[:, :1]),
        (x.ceil()[:1], y.ceil()[:1]),
    ):
        result = cooccurrence.top_associations(*corpus, variant=variant, top_k=top_k, device="cuda")
        same_bits(result, on_cpu(*corpus, variant, top_k))
        same_bits(
            cooccurrence.top_associations(*corpus, variant=variant, top_k=top_k, device="cuda"),
            result,
        )
