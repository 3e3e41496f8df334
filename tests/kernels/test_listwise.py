"""approxNDCG and LambdaRank in PyTorch blocks and in Triton against `kernels.reference`.

docs/method.md, "Learning to rank". The PyTorch form is compared in float64 on shapes that break
careless code. Triton's kernels run in the interpreter on a few items, are compiled for two GPU
targets without a GPU, and run on one under `-m gpu`. Tolerances are those of
`tests.tolerances`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from plantlib.kernels import listwise_torch, machine
from plantlib.planting import ranking
from tests.kernels.test_attention import Largest
from tests.tolerances import assert_as_exact, assert_within_rounding

SMALL_TILE = 2**10
GAINS = 2**5  # relevance 5 and exponential gains make the largest term this much larger
LOSSES = pytest.mark.parametrize("name", ["approx_ndcg", "lambdarank"])
TRITON = pytest.mark.skipif(not machine.has_triton(), reason="triton is not installed")
INTERPRETED = pytest.mark.skipif(
    not (machine.has_triton() and machine.interpreted()) or torch.cuda.is_available(),
    reason="Triton's interpreter is off: TRITON_INTERPRET=1 without a GPU turns it on",
)
IMPLEMENTATIONS = pytest.mark.parametrize(
    "impl", ["torch", pytest.param("triton", marks=INTERPRETED)]
)
SHAPES = {
    "one item": (3, 1, "dense"),
    "one row": (1, 9, "some"),
    "prime T": (5, 31, "some"),
    "a tile of several rows": (40, 7, "some"),
    "rows of more pairs than a tile": (3, 83, "dense"),
    "T over a tile": (2, SMALL_TILE + 3, "one positive"),
    "items over a tile's height": (2, listwise_torch.HEIGHT + 5, "dense"),
    "all scores tied": (4, 12, "tied"),
    "all gains equal, no pair": (3, 8, "equal"),
    "all gains zero": (3, 8, "zero"),
    "all masked": (3, 8, "masked"),
    "one positive": (4, 17, "one positive"),
    "dense": (4, 40, "dense"),
    "full and empty rows together": (6, 40, "uneven"),
}
CASES = [pytest.param(*shape, id=name) for name, shape in SHAPES.items()]


def problem(rows: int, items: int, kind: str = "some", *, seed: int = 0, dtype=torch.float64):
    """Scores, relevance 0 to 4 and mask (rows, items); all values are exact in float32."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, items, generator=g)
    relevance = torch.randint(0, 5, (rows, items), generator=g).float()
    mask = torch.rand(rows, items, generator=g) > 0.2
    if kind == "some":
        relevance *= torch.rand(rows, items, generator=g) < 0.3
    elif kind == "dense":
        relevance, mask = relevance + 1, torch.ones_like(mask)
    elif kind == "one positive":
        relevance = torch.zeros_like(relevance).index_fill_(1, torch.tensor([items // 2]), 3.0)
    elif kind == "uneven":
        relevance[::2], mask[1::3] = 0.0, False
    elif kind in ("zero", "equal"):
        relevance = torch.full_like(relevance, 2.0 * (kind == "equal"))
    elif kind == "tied":
        scores = torch.zeros_like(scores)
    elif kind == "masked":
        mask = torch.zeros_like(mask)
    return scores.to(dtype), relevance.to(dtype), mask


def run(name: str, impl: str, inputs, **options):
    """Loss and gradient; the upstream gradient is 3, so a backward pass must not ignore it."""
    scores = inputs[0].clone().requires_grad_()
    loss = getattr(ranking, name)(scores, *inputs[1:], impl=impl, **options)
    (3 * loss).backward()
    return loss.detach(), scores.grad


def operations(scores: torch.Tensor) -> int:
    """Each pair is summed over its items twice, then over the rows; GAINS bounds the gains.

    The exponents do not count: the slope of a sigmoid falls faster than its argument grows.
    """
    rows, items = scores.shape
    return rows + 2 * items + GAINS


def check_equal(name, impl, inputs, **options):
    result, expected = run(name, impl, inputs, **options), run(name, "reference", inputs, **options)
    for x, y in zip(result, expected, strict=True):
        # the loss is one less a sum of that size
        assert_within_rounding(x, y, operations(inputs[0]), size=max(1.0, float(y.abs().max())))
    assert all(x.isfinite().all() for x in result)
    return result


@LOSSES
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("gains", ranking.GAINS)
@pytest.mark.parametrize(("rows", "items", "kind"), CASES)
def test_torch_equals_reference(monkeypatch, name, rows, items, kind, gains, k):
    monkeypatch.setattr(listwise_torch, "TILE", SMALL_TILE)
    check_equal(name, "torch", problem(rows, items, kind), gains=gains, k=k)


@LOSSES
@pytest.mark.parametrize("tile", [1, 7, 64, 2**18], ids="tiles of {} pairs".format)
def test_size_of_tiles_changes_nothing(monkeypatch, name, tile):
    monkeypatch.setattr(listwise_torch, "TILE", tile)
    check_equal(name, "torch", problem(7, 23, "uneven"))


@pytest.mark.parametrize("tile", [1, 30, 200, 4000])
def test_tiles_cover_each_positive_item_once_and_fit_the_workspace(monkeypatch, tile):
    monkeypatch.setattr(listwise_torch, "TILE", tile)
    # later rows have fewer positives but more items: a tile sized by its first row would overflow
    positives, real = [70, 9, 9, 2, 1, 0], [70, 9, 12, 90, 90, 95]
    seen = []
    for rows, items, columns in listwise_torch._tiles(positives, real):
        height = items.stop - items.start
        assert columns == max(real[rows]) and (
            (rows.stop - rows.start) * height * columns <= tile or height == 1
        )
        assert (rows.stop - rows.start) * height * columns <= max(tile, max(real))
        seen += [
            (row, item)
            for row in range(rows.start, rows.stop)
            for item in range(items.start, items.stop)
        ]
    assert len(seen) == len(set(seen)) and set(seen) >= {
        (r, i) for r, p in enumerate(positives) for i in range(p)
    }


@LOSSES
@pytest.mark.parametrize("k", [None, 2])
def test_gradcheck(monkeypatch, name, k):
    monkeypatch.setattr(listwise_torch, "TILE", 40)
    scores, relevance, mask = problem(4, 9)

    def loss(s):
        return getattr(ranking, name)(s, relevance, mask, k=k, impl="torch")

    assert torch.autograd.gradcheck(loss, (scores.requires_grad_(),), eps=1e-7, atol=1e-6)


@INTERPRETED
@LOSSES
@pytest.mark.parametrize("gains", ranking.GAINS)
@pytest.mark.parametrize(
    ("rows", "items", "kind"),
    [
        pytest.param(1, 1, "dense", id="one item"),
        pytest.param(2, 19, "some", id="prime T over a block"),
        pytest.param(1, 190, "one positive", id="real items over a tile, blocks without gain"),
        pytest.param(1, 131, "dense", id="T over a tile, all positive"),
        pytest.param(4, 17, "uneven", id="full, empty and masked rows together"),
        pytest.param(2, 9, "tied", id="all scores tied"),
        pytest.param(1, 5, "zero", id="all gains zero"),
        pytest.param(1, 5, "masked", id="all masked"),
    ],
)
def test_triton_equals_reference(name, rows, items, kind, gains):
    check_equal(name, "triton", problem(rows, items, kind, dtype=torch.float32), gains=gains)


@LOSSES
@IMPLEMENTATIONS
def test_float32_errs_as_the_reference_does(name, impl):
    rows, items, draws = (1, 17, 12) if impl == "triton" else (4, 90, 20)
    double = [problem(rows, items, "dense", seed=seed) for seed in range(draws)]
    single = [problem(rows, items, "dense", seed=s, dtype=torch.float32) for s in range(draws)]
    exact = [run(name, "reference", inputs) for inputs in double]
    found, plain = ([run(name, i, inputs) for inputs in single] for i in (impl, "reference"))
    for part, of in enumerate(("loss", "gradient")):
        draws_of = ([draw[part] for draw in of_draws] for of_draws in (found, plain, exact))
        assert_as_exact(*draws_of, operations(double[0][0]), name=of)


@LOSSES
@IMPLEMENTATIONS
@pytest.mark.parametrize("scale", [1e4, 30.0, 1e-4], ids="scores of {:g}".format)
def test_extreme_scores_stay_right(name, impl, scale):
    scores, relevance, mask = problem(4, 13, "uneven", dtype=torch.float32)
    check_equal(name, impl, (scores * scale, relevance, mask))


@LOSSES
@IMPLEMENTATIONS
def test_uninitialised_memory_is_not_read(monkeypatch, name, impl):
    inputs = problem(4, 17, "uneven", dtype=torch.float32)
    expected = run(name, impl, inputs)
    for maker in ("empty", "empty_like"):
        original = getattr(torch, maker)

        def poisoned(*args, original=original, **kwargs):
            out = original(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        monkeypatch.setattr(torch, maker, poisoned)
    assert torch.empty(2).isnan().all() and torch.empty_like(inputs[0]).isnan().all()
    for x, y in zip(run(name, impl, inputs), expected, strict=True):
        assert torch.equal(x, y)


@LOSSES
@IMPLEMENTATIONS
def test_two_runs_give_equal_bits_and_need_no_gradient(name, impl):
    inputs = problem(2, 19, dtype=torch.float32)
    first, second = run(name, impl, inputs), run(name, impl, inputs)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    bare = getattr(ranking, name)(*inputs, impl=impl)
    assert not bare.requires_grad and torch.equal(bare, first[0])


@LOSSES
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_compile_and_autocast_change_nothing(name, impl):
    inputs = problem(4, 30, dtype=torch.float32)
    expected = run(name, impl, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(name, impl, inputs)
    scores = inputs[0].clone().requires_grad_()
    # the operations around the loss are compiled, the loss is not
    step = torch.compile(
        lambda s: 3 * getattr(ranking, name)(s * 1.0, *inputs[1:], impl=impl), backend="aot_eager"
    )
    loss = step(scores)
    loss.backward()
    for result in (cast, (loss.detach() / 3, scores.grad)):
        for x, y in zip(result, expected, strict=True):
            assert_within_rounding(x, y, operations=2)  # times 3 and divided by 3


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    scores, relevance, mask = problem(3, 20, dtype=torch.float32)
    loss, gradient = run(name, "torch", (scores.to(dtype), relevance, mask))
    expected = run(name, "torch", (scores.to(dtype).float(), relevance, mask))
    assert torch.equal(loss, expected[0]) and gradient.dtype == dtype
    assert torch.equal(gradient, expected[1].to(dtype))


@LOSSES
def test_second_derivatives_are_refused(name):
    scores, relevance, mask = problem(2, 6)
    loss = getattr(ranking, name)(scores.requires_grad_(), relevance, mask, impl="torch")
    with pytest.raises(RuntimeError, match="second derivatives.*impl='reference'"):
        torch.autograd.grad(loss, scores, create_graph=True)


@LOSSES
@pytest.mark.parametrize(("rows", "items"), [(40, 100), (3, 3000), (9, 400)])
def test_memory_law(monkeypatch, name, rows, items):
    """No tensor above max(R T, tile) in either pass; the reference makes (R, T, T)."""
    monkeypatch.setattr(listwise_torch, "TILE", SMALL_TILE)
    for impl, low, high in (
        ("torch", 0, max(rows * items, SMALL_TILE)),
        ("reference", 4 * rows * items, 1e9),
    ):
        if impl == "reference" and items > 1000:
            continue
        with Largest() as largest:
            run(name, impl, problem(rows, items, "some"))
        assert low <= largest.numel <= high, impl


AHEAD_OF_TIME = """
import sys, triton
from triton.backends.compiler import GPUTarget
from plantlib.kernels.listwise import ahead_of_time_specs
for name, kernel, signature, constants, warps, stages in ahead_of_time_specs():
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": stages}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    code = triton.compile(source, target=target, options=options).asm
    assert len(code["cubin"]) > 1000, name
    print(name, "atom" in code["ptx"], ".local" in code["ptx"])
"""


@TRITON
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_a_gpu(capability, tmp_path):
    """No atomics, and no registers are spilled."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", AHEAD_OF_TIME, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(line.endswith("False False") for line in lines), done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled kernels need a GPU")
@TRITON
@LOSSES
@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize(
    ("rows", "items", "kind"), [*CASES, pytest.param(2, 3001, "dense", id="long")]
)
def test_on_a_gpu_equals_reference(name, impl, rows, items, kind):
    inputs = tuple(x.cuda() for x in problem(rows, items, kind, dtype=torch.float32))
    check_equal(name, impl, inputs)
    first, second = run(name, impl, inputs), run(name, impl, inputs)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
