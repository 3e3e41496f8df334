"""Counts -> mutual information -> best tokens in Triton: the bits of the CPU path, in shapes that
break careless kernels.

METHOD.md section 1. There is no tolerance: tokens, float64 scores and the order of ties must be
those of `mig`. Here the kernels run in Triton's interpreter on small tiles, so that small shapes
cross tile borders; they are compiled for two GPU targets without a GPU, and meet a real one under
`-m gpu`.
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
    reason="neither Triton's interpreter nor a GPU is there",
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
    """Independent X (N, V) and Y (N, L) of uneven frequencies."""
    rng = np.random.default_rng(seed)
    x = rng.random((documents, tokens)) < rng.uniform(0.1, 0.9, tokens)
    return matrices(x, rng.random((documents, labels)) < rng.uniform(0.1, 0.7, labels))


def copies():
    """Three kinds of token, each many times, shuffled: every edge is a tie, and ties cross tile
    borders.
    """
    x, y = drawn(40, 3, 4, seed=2)
    return x[:, np.random.default_rng(0).integers(0, 3, 3 * TILE + 5)], y


def rising():
    """Each token agrees with the label a little better than the one before: every tile overturns
    the list.
    """
    documents = 6 * TILE
    label = np.arange(documents) < documents // 2
    x = np.repeat(label[:, None], 90, 1)
    for token in range(90):
        x[: documents // 2 - 2 - token // 2, token] = False
    return matrices(x, label[:, None])


def late():
    """A list full of equal tokens before the better ones come, for two labels whose lists are
    neighbours in memory.
    """
    documents = 4 * TILE
    label = np.arange(documents) < documents // 2
    x = np.repeat(label[:, None], 6 * TILE, 1)
    x[: documents // 4, : 4 * TILE] = False
    return matrices(x, np.repeat(label[:, None], 2, 1))


def hardly_associated():
    """C N just above n_t n_l: mutual information rounds to 0, and such a token is kept all the
    same.
    """
    n, n_l = 10_007, 5_000
    x = np.zeros((n, 12), np.int32)
    for token in range(12):
        # so that C N - n_t n_l is 1, 2, ..., 12
        n_t = -(token + 1) * pow(n_l, -1, n) % n
        both = (n_t * n_l + token + 1) // n
        x[:both, token] = x[n_l : n_l + n_t - both, token] = 1
    return matrices(x, np.arange(n)[:, None] < n_l)


CASES = {
    "60 documents: words not full; tokens and labels never and always there": (toy(), 3),
    "64 documents: words full": (drawn(64, 20, 5), 4),
    "300 documents: three steps of words, the last not full": (drawn(300, 20, 5), 4),
    "one document: N = 1 is an integer Triton would make a constant": (drawn(1, 9, 3), 2),
    "two documents": (drawn(2, 9, 3), 2),
    "one label": (drawn(30, 19, 1), 5),
    "one token": (drawn(30, 1, 5), 5),
    "one token, one label, one place": (matrices([[1], [0]], [[1], [0]]), 1),
    "a label more and a token more than a tile": (drawn(30, TILE + 1, TILE + 1), 6),
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


def same_bits(found: sparse.csr_matrix, wanted: sparse.csr_matrix) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == np.float64
    np.testing.assert_array_equal(found.indptr, wanted.indptr)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.data.view(np.int64), wanted.data.view(np.int64))


def on_cpu(x, y, variant, top_k) -> sparse.csr_matrix:
    return mig.teach(x, y, variant=variant, top_k=top_k, impl="torch").scores


@INTERPRETED
@pytest.mark.parametrize(("corpus", "top_k"), CASES.values(), ids=CASES)
def test_equals_the_cpu_path_to_the_bit(corpus, top_k):
    found = cooccurrence.top_associations(*corpus, variant="jaccard", top_k=top_k)
    same_bits(found, on_cpu(*corpus, "jaccard", top_k))
    assert found.has_sorted_indices


def test_the_cases_are_what_they_say():
    scores = {name: on_cpu(*corpus, "jaccard", None) for name, (corpus, _) in CASES.items()}
    sizes = {name: np.diff(found.indptr) for name, found in scores.items()}
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
        made = empty(*shape, **options)
        return made.fill_(
            float("nan") if made.is_floating_point() else torch.iinfo(made.dtype).max // 2
        )

    monkeypatch.setattr(torch, "empty", poisoned)
    same_bits(cooccurrence.top_associations(*corpus, variant="jaccard", top_k=top_k), first)


@INTERPRETED
def test_no_table_of_tokens_by_labels_is_stored():
    x, y = drawn(9, 9 * TILE, TILE)
    # bytes are the interpreter's own copies of arguments
    with Largest(ignored=(torch.uint8,)) as largest:
        cooccurrence.top_associations(x, y, variant="jaccard", top_k=2)
    assert largest.numel <= max(TILE * cooccurrence.capacity(2), x.nnz) < 9 * TILE * TILE


def test_bitmaps_hold_every_bit_and_chunks_do_not_show(monkeypatch):
    x = presence(drawn(70, 11, 1)[0])
    wanted = cooccurrence.bitmap(x, "cpu")
    monkeypatch.setattr(cooccurrence, "ENTRIES", 7)
    assert torch.equal(cooccurrence.bitmap(x, "cpu"), wanted) and wanted.shape == (3, 11)
    bits = (wanted.numpy()[:, None, :] >> np.arange(32)[None, :, None]) & 1
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
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = made.asm["ptx"]
    wrong = re.findall(r"\\b(?:atom|red)\\.\\S+|\\b(?:fma|mul)\\.\\S*f64|ld\\.global\\.nc", ptx)
    right = "mma" in ptx and "div.rn.f64" in ptx
    print(name, made.metadata.shared, _registers(ptx)["spilled_bytes"], right, *wrong)
"""


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_without_a_gpu(arch, tmp_path):
    """Small in shared memory, next to nothing spilled, no atomics, and in float64 nothing a
    compiler could contract.
    """
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path)
    }
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
    # whole, and cut to sizes of 1, which a launcher would make constants
    for corpus in (
        (x.ceil(), y.ceil()),
        (x.ceil()[:, :1], y.ceil()[:, :1]),
        (x.ceil()[:1], y.ceil()[:1]),
    ):
        found = cooccurrence.top_associations(*corpus, variant=variant, top_k=top_k, device="cuda")
        same_bits(found, on_cpu(*corpus, variant, top_k))
        same_bits(
            cooccurrence.top_associations(*corpus, variant=variant, top_k=top_k, device="cuda"),
            found,
        )
