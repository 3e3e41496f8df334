"""Label attention in Triton against its specification, in the interpreter or on a GPU.

docs/method.md, "Planted attention". In float32, bfloat16 and float16 the error of values and
gradients against float64 is that of the reference in the same precision (`tests.tolerances`). Small
tiles make small shapes cross tile borders; the id of a shape says why it was chosen. What the
interpreter cannot find, the ahead-of-time compiler finds (`test_compiles`).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from plantlib import kernels
from plantlib.kernels import label_attention, machine
from plantlib.kernels.label_attention_torch import Workspace
from tests.kernels.test_attention import GRADIENTS, Largest, operations, problem, run
from tests.tolerances import assert_as_exact, assert_within_rounding

if not machine.has_triton():
    pytest.skip(
        "triton is not installed (extra `kernels`); it has no wheel for this platform",
        allow_module_level=True,
    )


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = 16
SHAPES = {
    "prime sizes, three dims under a tile": ([7, 13, 5], 31, 11, None),
    "one label": ([4, 9], 1, 8, None),
    "one token, one label, one unit": ([1], 1, 1, None),
    "documents of no and one token": ([0, 1, 5, 0], 9, 8, None),
    "one more of everything than a tile": ([TILE + 1, 2], TILE + 1, TILE + 1, None),
    "three tiles of tokens, two of labels, D no power of two": ([2 * TILE + 5], TILE + 3, 37, None),
    "keep over two tiles": ([TILE + 9, 3], 5, 6, 3),
    "keep one": ([TILE + 2], 3, 4, 1),
    "keep more than a document has": ([3, TILE], 3, 4, 7),
    "keep more than a tile, of two documents": ([2 * TILE + 5, TILE + 9], 3, 4, TILE + 3),
}
KINDS = [torch.float32, torch.bfloat16, torch.float16]
# in half precision the reference ranks rounded scores and may keep other tokens than float64
CASES = [
    pytest.param(*shape, kind, id=f"{name}, {str(kind).split('.')[1]}")
    for name, shape in SHAPES.items()
    for kind in (KINDS if shape[-1] is None else KINDS[:1])
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(
        label_attention, "blocks_for", lambda *_: label_attention.Blocks(TILE, TILE, TILE, 4, 2)
    )


def cast(inputs: dict, dtype, device=DEVICE) -> dict:
    """The same numbers in another precision, on `device`."""
    moved = {
        n: v.detach().to(device, dtype) if v.is_floating_point() else v.to(device)
        for n, v in inputs.items()
        if isinstance(v, torch.Tensor)
    }
    cells = inputs["cells"]
    return inputs | moved | {"cells": cells and type(cells)(*(x.to(device) for x in cells))}


def check_errors(names, dtype, lengths, labels, dim, keep, seeds=6):
    """The kernel errs as the reference in `dtype` does, against float64, on the worst draw."""
    draws = [cast(problem(lengths, labels, dim, seed=seed), dtype) for seed in range(seeds)]
    exact = [run("reference", cast(inputs, torch.float64), keep) for inputs in draws]
    found = {i: [run(i, inputs, keep) for inputs in draws] for i in ("triton", "reference")}
    for name in names:
        parts = ([draw[name] for draw in draws_of] for draws_of in (*found.values(), exact))
        # a gradient adds over tokens, labels or units
        assert_as_exact(*parts, operations=sum(lengths) + labels + dim, name=name)


@pytest.mark.parametrize(("lengths", "labels", "dim", "keep", "dtype"), CASES)
def test_error_is_that_of_the_reference(lengths, labels, dim, keep, dtype):
    check_errors(("value", "log_sum", *GRADIENTS[:3]), dtype, lengths, labels, dim, keep)


@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: str(d).split(".")[1])
def test_error_of_the_gain(dtype):
    """The gain is one number per draw, so more draws are needed."""
    check_errors(("gain",), dtype, [5, 7], 9, 8, None, seeds=30)


@pytest.mark.parametrize("cells", [None, "duplicate"])
@pytest.mark.parametrize("gain", [1.7, -2.5], ids=["gain for", "gain against"])
def test_planted_cells_are_added_exactly(cells, gain):
    inputs = cast(problem([TILE + 3, 5], TILE + 2, 5, cells=cells), torch.float32)
    inputs["gain"] = torch.tensor(gain, device=DEVICE)
    result, expected = run("triton", inputs), run("reference", inputs)
    for name in expected:
        assert_within_rounding(result[name], expected[name], operations(inputs), name=name)


@pytest.mark.parametrize("candidates", [False, True], ids=["all labels", "candidates"])
@pytest.mark.parametrize("keep", [None, 3])
def test_gradients_of_planted_values(monkeypatch, keep, candidates):
    """Gradients of every cell, with cells in several tiles and parts of columns."""
    monkeypatch.setattr(label_attention, "WORKSPACE", 1)
    result = {}
    for impl in ("triton", "reference"):
        inputs = (
            candidate_problem()
            if candidates
            else cast(problem([TILE + 3, 0, 5], 2 * TILE + 1, 5), torch.float32)
        )
        cells = inputs["cells"]
        values = cells.values.clone().requires_grad_()
        inputs["cells"] = type(cells)(cells.positions, cells.labels, values)
        value, log_sum = kernels.attend(**inputs, keep=keep, impl=impl)
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(2)).to(value)
        finite = log_sum.isfinite()
        ((value * weights).sum() + (log_sum[finite] * weights[finite]).sum()).backward()
        result[impl] = values.grad
    assert result["reference"].abs().sum() > 0
    # planted values are float64, what they are added to is not
    results = result["triton"], result["reference"]
    assert_within_rounding(*results, operations(inputs), dtype=torch.float32)


@pytest.mark.parametrize("dtype", KINDS[1:], ids=lambda d: str(d).split(".")[1])
def test_gradients_of_planted_values_in_half_precision(dtype):
    found = {"exact": [], "triton": [], "reference": []}
    for seed in range(6):
        inputs = cast(problem([TILE + 3, 5], TILE + 1, 8, seed=seed), dtype)
        for impl, kind in (("exact", torch.float64), ("triton", dtype), ("reference", dtype)):
            cast_inputs = cast(inputs, kind)
            values = cast_inputs["cells"].values.detach().to(kind).clone().requires_grad_()
            cast_inputs["cells"] = cast_inputs["cells"]._replace(values=values)
            kernels.attend(**cast_inputs, impl="reference" if impl == "exact" else impl)[
                0
            ].sum().backward()
            found[impl].append(values.grad)
    draws_of = (found[impl] for impl in ("triton", "reference", "exact"))
    assert_as_exact(*draws_of, operations=2 * TILE + 17)  # tokens, labels, units
    assert all(grad.abs().sum() > 0 for grad in found["exact"])


def candidate_problem(seed=0):
    inputs = cast(problem([TILE + 1, 0, 5], 2 * TILE, 6, seed=seed), torch.float32)
    generator = torch.Generator().manual_seed(seed)
    inputs["candidates"] = torch.stack(
        [torch.randperm(2 * TILE, generator=generator)[: TILE + 2] for _ in range(3)]
    ).to(DEVICE)
    inputs["candidates"][0, 1] = inputs["candidates"][2, -2:] = -1
    return inputs


@pytest.mark.parametrize("keep", [None, 2])
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_candidates_equal_the_columns_of_all_labels(impl, keep):
    result, expected = (
        run(impl, candidate_problem(), keep),
        run("reference", candidate_problem(), keep),
    )
    for name in expected:
        inputs = candidate_problem()
        assert_within_rounding(result[name], expected[name], operations(inputs), name=name)
    absent = candidate_problem()["candidates"] < 0
    assert (result["value"][absent] == 0).all() and (
        result["log_sum"][absent] == float("-inf")
    ).all()


@pytest.mark.parametrize("impl", ["triton", "torch", "reference"])
def test_state_carried_over_segments_equals_one_reading(impl):
    """Values and gradients of two segments are those of the whole document."""
    whole = cast(problem([2 * TILE + 3, 6], 7, 5, cells=None), torch.float32)
    cut = [TILE - 2, 4]
    parts = {
        n: whole[n].clone().requires_grad_()
        for n in ("hidden_states", "label_queries", "label_outputs")
    }
    documents = parts["hidden_states"].split([2 * TILE + 3, 6])
    bias = torch.randn(7, generator=torch.Generator().manual_seed(1)).to(DEVICE).requires_grad_()
    state = None
    for piece in (0, 1):
        segment = [d[:c] if piece == 0 else d[c:] for d, c in zip(documents, cut, strict=True)]
        offsets = torch.tensor([0, *map(len, segment)], device=DEVICE).cumsum(0)
        value, log_sum = kernels.attend(
            torch.cat(segment),
            offsets,
            parts["label_queries"],
            parts["label_outputs"],
            state=state,
            label_bias=bias if piece else None,
            impl=impl,
        )
        state = (log_sum, value)
    (value * torch.arange(7.0, device=DEVICE)).sum().backward()
    wanted_parts = {n: whole[n].clone().requires_grad_() for n in parts}
    expected, wanted_sum = kernels.attend(
        **wanted_parts, offsets=whole["offsets"], impl="reference"
    )
    ((expected + bias.detach()) * torch.arange(7.0, device=DEVICE)).sum().backward()
    assert_within_rounding(value, expected + bias, operations(whole))
    assert_within_rounding(log_sum, wanted_sum, operations(whole))
    for name in parts:
        grads = parts[name].grad, wanted_parts[name].grad
        assert_within_rounding(*grads, operations(whole), name=name)
    assert torch.equal(bias.grad, 2 * torch.arange(7.0, device=DEVICE))  # a sum of two integers


@pytest.mark.parametrize("keep", [None, 2])
def test_poisoned_memory_does_not_show_and_two_runs_give_equal_bits(monkeypatch, keep):
    inputs = cast(problem([TILE + 1, 0, 5], TILE + 1, 5), torch.float32)
    first, empty, new_empty = run("triton", inputs, keep), torch.empty, torch.Tensor.new_empty

    def poison(x):
        return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(-(2**31))

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
    second = run("triton", inputs, keep)
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(
    "scores",
    [[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 1.0, 1.0, 1.0], [0.0, -0.0, 0.0], [-1.0, -3.0, -2.0]],
    ids=["all equal", "tie at the edge", "zeros of both signs", "negative scores"],
)
def test_ties_go_to_the_earlier_token(scores):
    tokens = len(scores)
    hidden = torch.cat([torch.tensor(scores)[:, None], torch.eye(tokens)], 1).to(DEVICE)
    query = torch.tensor([[1.0] + [0.0] * tokens], device=DEVICE)
    places = {}
    for impl in ("triton", "torch", "reference"):
        outputs = torch.zeros(1, tokens + 1, device=DEVICE, requires_grad=True)
        value, _ = kernels.attend(
            hidden, torch.tensor([0, tokens], device=DEVICE), query, outputs, keep=2, impl=impl
        )
        weights = torch.autograd.grad(value.sum(), outputs)[0][0, 1:]
        places[impl] = weights.nonzero().ravel().tolist()
    assert places["triton"] == places["torch"] == places["reference"]


def test_gradients_in_parts_equal_gradients_at_once(monkeypatch):
    inputs = cast(problem([9, 4], 3 * TILE + 1, 5), torch.float32)
    whole = run("triton", inputs)
    monkeypatch.setattr(label_attention, "WORKSPACE", 1)  # one block of labels at a time
    parts = run("triton", inputs)
    for name in whole:
        # a product of another size may add in another order
        assert_within_rounding(parts[name], whole[name], operations(inputs), name=name)


@pytest.mark.parametrize("keep", [None, 3])
def test_memory_law(monkeypatch, keep):
    """No tensor of (S, L) or (B, L, D): only inputs, outputs, gradients and one workspace."""
    inputs = cast(problem([6, 10], 3 * TILE, 4, cells=None), torch.float32)
    monkeypatch.setattr(label_attention, "WORKSPACE", 2 * 16 * 4 * TILE)
    spaces = []
    take = Workspace.take
    monkeypatch.setattr(
        Workspace, "take", lambda self, *size: spaces.append(take(self, *size)) or spaces[-1]
    )
    # uint8 tensors are the interpreter's copies of arguments
    with Largest(ignored=(torch.uint8,)) as largest:
        run("triton", inputs, keep)
    assert len(spaces) > 2 and len({s.untyped_storage().data_ptr() for s in spaces[-3:]}) == 1, (
        "parts share their memory"
    )
    assert largest.numel <= max(2 * 16 * TILE, 3 * TILE * 4, 2 * 3 * TILE) < 16 * 3 * TILE


def test_refusals_name_the_fix():
    for inputs, message in (
        (cast(problem([200], 2, 4), torch.float64), "not torch.float64; use impl='torch'"),
        (
            cast(problem([2], 2, label_attention.MAX_DIM + 1), torch.float32),
            "at most 8192 hidden units; use impl='torch'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.attend(**inputs, impl="triton")


@pytest.mark.parametrize("arch", [80, 90])
def test_compiles(arch):
    """Every kernel compiles for an A100 and an H100 and fits shared memory; needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "plantlib.kernels.compile", "--arch", str(arch)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "backward_kernel[bf16" in done.stdout and "DOES NOT FIT" not in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: compiled kernels at full tile sizes"
)
@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize(
    ("lengths", "labels", "dim", "keep"),
    [([512, 37, 0], 1003, 768, None), ([300, 500], 517, 384, 64)],
)
def test_compiled_kernels_at_real_sizes(monkeypatch, lengths, labels, dim, keep, dtype):
    monkeypatch.undo()
    check_errors(("value", "log_sum", *GRADIENTS), dtype, lengths, labels, dim, keep, seeds=2)
