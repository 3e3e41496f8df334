"""Label attention in PyTorch against its specification: values, gradients, inattention, memory.

docs/method.md, "Planted attention" and "The decoder". `impl="torch"` is compared with
`kernels.reference` in float64 on shapes that break careless code; the id of a shape says why it was
chosen. Tolerances are those of `tests.tolerances`.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plantlib import kernels
from plantlib.kernels import Cells, label_attention_torch, reference
from tests.tolerances import assert_as_exact, assert_within_rounding

SIZES = label_attention_torch.SIZES["cpu"]
GRADIENTS = ("hidden_states", "label_queries", "label_outputs", "gain")
SHAPES = {
    "prime sizes": ([7, 13, 5], 31, 11),
    "one label": ([4, 9], 1, 8),
    "one token": ([1], 5, 8),
    "one token per document": ([1, 1, 1], 6, 4),
    "one hidden unit": ([3, 4], 5, 1),
    "empty document in the middle": ([5, 0, 6], 9, 8),
    "empty documents at both ends": ([0, 5, 0], 9, 8),
    "all documents empty": ([0, 0, 0], 4, 8),
    "labels an exact block": ([3, 4], SIZES.block, 4),
    "one label more than a block": ([3, 4], SIZES.block + 1, 4),
    "labels of three blocks": ([6, 2], 2 * SIZES.block + 77, 3),
    "document longer than a chunk": ([3, SIZES.chunk + 37, 4], 5, 8),
    "documents fill a chunk exactly": ([SIZES.chunk - 8, 8, 5], 5, 4),
    "many chunks and many blocks": ([300, 290, 0, 513, 20], SIZES.block + 3, 3),
    "D not a power of two": ([8, 3], 12, 37),
}
CASES = [pytest.param(*shape, id=name) for name, shape in SHAPES.items()]


@pytest.fixture(params=["nothing", "a block", "what fits"])
def set_weights(request, monkeypatch):
    """A function that sets how many weights the forward pass saves for the backward pass."""

    def set_for(inputs) -> None:
        weights = {
            "nothing": 0,
            "a block": SIZES.block * len(inputs["hidden_states"]),
            "what fits": SIZES.weights,
        }[request.param]
        monkeypatch.setitem(label_attention_torch.SIZES, "cpu", SIZES._replace(weights=weights))

    return set_for


def problem(lengths, num_labels, dim, *, cells="some", dtype=torch.float64, seed=0, scale=1.0):
    """Arguments of `attend` by name.

    cells: None, "some", or "duplicate" (the same cell planted up to three times).
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens, planted = int(offsets[-1]), None
    inputs = {
        "hidden_states": randn(tokens, dim) * scale,
        "label_queries": randn(num_labels, dim) * scale,
        "label_outputs": randn(num_labels, dim),
        "gain": torch.tensor(1.7, dtype=torch.float64),
    }
    if cells is not None and tokens:
        count = max(tokens * num_labels // 3, 1)
        flat = torch.randint(tokens * num_labels, (count,), generator=generator)
        flat = flat.repeat(3) if cells == "duplicate" else flat.unique()
        labels, order = (flat % num_labels).sort(stable=True)
        planted = Cells((flat // num_labels)[order], labels, randn(len(flat)))
    inputs = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
    return inputs | {
        "offsets": offsets,
        "cells": planted and planted._replace(values=planted.values.to(dtype)),
    }


def run(impl, inputs, keep=None, upstream=2):
    """Value, log-sum and the gradients of GRADIENTS.

    upstream: whether the gradient comes from the value (0), the log-sum (1) or both (2).
    """
    inputs = dict(inputs) | {n: inputs[n].detach().clone().requires_grad_() for n in GRADIENTS}
    value, log_sum = kernels.attend(**inputs, keep=keep, impl=impl)
    generator = torch.Generator().manual_seed(9)
    weights = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for _ in range(2)
    ]
    finite = log_sum.isfinite()
    parts = [(value * weights[0]).sum(), (log_sum[finite] * weights[1][finite]).sum()]
    (parts[0] + parts[1] if upstream == 2 else parts[upstream]).backward()
    gradients = {
        n: torch.zeros_like(inputs[n]) if inputs[n].grad is None else inputs[n].grad
        for n in GRADIENTS
    }
    return {"value": value.detach(), "log_sum": log_sum.detach()} | gradients


def exponent(inputs) -> int:
    """The size of the largest score, planted cells included."""
    scores = inputs["hidden_states"].double() @ inputs["label_queries"].double().T
    largest = float(scores.abs().max()) if scores.numel() else 0.0
    if inputs["cells"] is not None and len(inputs["cells"].values):
        largest += float(inputs["gain"].abs() * inputs["cells"].values.double().abs().max())
    return math.ceil(largest)


def operations(inputs) -> int:
    """A gradient adds over the units, the tokens and the labels, and passes an exponential."""
    tokens, dim = inputs["hidden_states"].shape
    return tokens + dim + len(inputs["label_queries"]) + dim * exponent(inputs)


def largest(results: dict) -> float:
    """The largest finite number: terms of this size may cancel where a gradient is zero."""
    return max(float(x[x.isfinite()].abs().max()) for x in results.values() if x.isfinite().any())


def test_larger_tiles_give_the_same(monkeypatch):
    """With the sizes of a GPU there is one tile instead of many."""
    inputs = problem([300, 290, 0, 513, 20], SIZES.block + 3, 3)
    result = run("torch", inputs)
    monkeypatch.setitem(label_attention_torch.SIZES, "cpu", label_attention_torch.SIZES["cuda"])
    for name, value in run("torch", problem([300, 290, 0, 513, 20], SIZES.block + 3, 3)).items():
        assert_within_rounding(value, result[name], operations(inputs), name=name)


def check_equal(inputs, keep=None, upstream=2):
    result, expected = (
        run("torch", inputs, keep, upstream),
        run("reference", inputs, keep, upstream),
    )
    for name in expected:
        size = largest(expected)
        assert_within_rounding(result[name], expected[name], operations(inputs), size, name)
    return result


@pytest.mark.parametrize(
    "keep", [None, 1, 3, 10**6], ids=["all", "keep 1", "keep 3", "keep more than there are"]
)
@pytest.mark.parametrize("cells", [None, "some"], ids=["bare", "planted"])
@pytest.mark.parametrize(("lengths", "num_labels", "dim"), CASES)
def test_equals_reference(lengths, num_labels, dim, cells, keep, set_weights):
    inputs = problem(lengths, num_labels, dim, cells=cells)
    set_weights(inputs)
    result = check_equal(inputs, keep)
    assert all(x.isfinite().all() for n, x in result.items() if n != "log_sum")
    empty = torch.tensor(lengths) == 0
    assert (result["value"][empty] == 0).all() and (result["log_sum"][empty] == float("-inf")).all()
    assert result["log_sum"][~empty].isfinite().all()


def test_ties_are_resolved_by_position_in_the_rows_that_have_them_alone():
    """Rows without ties, tied at the edge, all equal, and with fewer finite scores than keep."""
    low = float("-inf")
    scores = torch.tensor(
        [[5.0, 1.0, 4.0, 2.0, 3.0], [1.0, 2.0, 1.0, 3.0, 1.0], [0.0] * 5, [1.0, low, low, low, low]]
    )
    for rows in ([0], [0, 1], [0, 1, 2, 3]):
        result = scores[rows].clone()
        label_attention_torch.keep_highest(result, 3)
        finite = [result[i].isfinite().nonzero().squeeze(1).tolist() for i in range(len(rows))]
        assert finite == [[0, 2, 4], [0, 1, 3], [0, 1, 2], [0]][: len(rows)]
        assert torch.equal(result[result.isfinite()], scores[rows][result.isfinite()])


@pytest.mark.parametrize("upstream", [0, 1], ids=["only value", "only log-sum"])
@pytest.mark.parametrize("keep", [None, 2])
def test_each_output_has_its_own_gradient(upstream, keep):
    result = check_equal(problem([5, 0, 7], 9, 4), keep, upstream)
    assert bool(result["label_outputs"].any()) == (upstream == 0)


@pytest.mark.parametrize("keep", [None, 2])
def test_duplicate_cells_add_up(keep):
    inputs = problem([5, 6], 9, 4, cells="duplicate")
    check_equal(inputs, keep)
    once = problem([5, 6], 9, 4, cells="duplicate")
    keys = once["cells"].positions * 9 + once["cells"].labels
    unique, where = keys.unique(return_inverse=True)
    total = torch.zeros(len(unique), dtype=torch.float64).index_add_(0, where, once["cells"].values)
    labels, order = (unique % 9).sort(stable=True)
    once["cells"] = Cells((unique // 9)[order], labels, total[order])
    assert_within_rounding(
        run("torch", inputs, keep)["value"], run("torch", once, keep)["value"], operations(inputs)
    )


def test_gradcheck():
    inputs = problem([3, 0, 4], 5, 3)

    def function(hidden_states, label_queries, label_outputs, gain):
        value, log_sum = kernels.attend(
            hidden_states,
            inputs["offsets"],
            label_queries,
            label_outputs,
            inputs["cells"],
            gain,
            impl="torch",
        )
        return value, log_sum[[0, 2]]

    assert torch.autograd.gradcheck(function, [inputs[n] for n in GRADIENTS])


def test_reference_is_the_formula():
    """The specification against loops over documents, labels and tokens."""
    inputs = problem([3, 2], 4, 5)
    value, log_sum = kernels.attend(**inputs, impl="reference")
    h, q, w, c = (inputs[n] for n in ("hidden_states", "label_queries", "label_outputs", "cells"))
    for b, (begin, end) in enumerate([(0, 3), (3, 5)]):
        for label in range(4):
            planted = {int(p): float(v) for p, k, v in zip(*c, strict=True) if k == label}
            scores = torch.stack(
                [h[t] @ q[label] + inputs["gain"] * planted.get(t, 0.0) for t in range(begin, end)]
            )
            weights = scores.exp() / scores.exp().sum()
            outputs = h[begin:end] @ w[label]
            assert_within_rounding(
                value[b, label], weights @ outputs, operations(inputs), size=outputs.abs().max()
            )
            assert_within_rounding(
                log_sum[b, label], scores.exp().sum().log(), operations(inputs), size=1
            )


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_inattention_keeps_exactly_k_tokens(keep):
    """Each token has another unit vector, so the gradient shows which tokens were read."""
    tokens, num_labels = 8, 5
    inputs = problem([tokens], num_labels, tokens, cells="some")
    inputs["hidden_states"] = torch.eye(tokens, dtype=torch.float64)
    weights = torch.autograd.grad(
        kernels.attend(**inputs, keep=keep, impl="torch")[0].sum(), inputs["label_outputs"]
    )[0]
    assert (weights > 0).sum(1).tolist() == [keep] * num_labels
    ones = torch.ones(num_labels, dtype=torch.float64)
    assert_within_rounding(weights.sum(1), ones, operations(inputs))
    scores = (
        inputs["label_queries"]
        + 1.7 * reference.planted_scores(inputs["cells"], tokens, num_labels, torch.float64).T
    )
    best = scores.topk(keep, 1).indices.sort(1).values
    assert torch.equal((weights > 0).nonzero()[:, 1].view(num_labels, keep), best)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize(
    ("scores", "keep", "places"),
    [
        ([1.0, 1.0, 1.0, 1.0], 2, [0, 1]),
        ([0.0, 2.0, 1.0, 1.0, 1.0], 3, [1, 2, 3]),
        ([3.0, 1.0, 3.0, 2.0], 1, [0]),
    ],
    ids=["all equal", "tie at the edge", "tie at the top"],
)
def test_ties_go_to_the_earlier_token(impl, scores, keep, places):
    tokens = len(scores)
    hidden = torch.cat([torch.tensor(scores)[:, None], torch.eye(tokens)], 1).double()
    query = torch.tensor([[1.0] + [0.0] * tokens]).double()
    outputs = torch.zeros(1, tokens + 1, dtype=torch.float64, requires_grad=True)
    value, _ = kernels.attend(
        hidden, torch.tensor([0, tokens]), query, outputs, keep=keep, impl=impl
    )
    weights = torch.autograd.grad(value.sum(), outputs)[0][0, 1:]
    assert weights.nonzero().ravel().tolist() == places


class Largest(TorchDispatchMode):
    """Remembers the largest number of elements that an operation returned."""

    def __init__(self, ignored=()):
        super().__init__()
        self.numel, self.ignored = 0, ignored

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.dtype not in self.ignored:
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("keep", [None, 4])
@pytest.mark.parametrize("tokens", [3000, 6000])
def test_memory_law(tokens, keep):
    """Nothing of size (B, L, D) or (S, L) in either pass.

    The largest tensors are inputs, outputs, one block and the saved weights.
    """
    num_labels, dim, lengths = 5 * SIZES.block + 9, 6, [tokens // 6] * 6
    inputs = problem(lengths, num_labels, dim, cells=None, dtype=torch.float32)
    with Largest() as largest:
        run("torch", inputs, keep)
    block = 2 * SIZES.block * max(SIZES.chunk, *lengths)
    most = max(tokens * dim, 6 * num_labels, block)
    assert largest.numel <= max(most, num_labels * dim, SIZES.weights)
    assert largest.numel < tokens * num_labels / 4
    with Largest() as largest, torch.no_grad():
        kernels.attend(**inputs, keep=keep, impl="torch")
    # no weights are saved where no backward pass follows
    assert largest.numel <= most
    with Largest() as largest:
        run("reference", inputs, keep)
    assert largest.numel >= tokens * num_labels  # the measure sees such a tensor


@pytest.mark.parametrize("keep", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_ten_thousand_do_not_overflow(dtype, keep):
    inputs = problem([5, 7, 1], 6, 4, dtype=dtype, scale=100.0)
    assert (inputs["hidden_states"] @ inputs["label_queries"].T).abs().max() > 1e4
    result = run("torch", inputs, keep)
    assert all(x.isfinite().all() for x in result.values())
    check_equal(inputs | {"cells": None}, keep)


def long_document(seed=0):
    """One document longer than two widths: its context becomes the gradient of the outputs."""
    inputs = problem([97], SIZES.block + 5, 4, seed=seed)
    assert len(inputs["hidden_states"]) >= 2 * inputs["hidden_states"].shape[1]
    return inputs


@pytest.mark.parametrize("keep", [None, 9])
def test_a_long_document_through_its_context(keep):
    check_equal(long_document(), keep)


def test_weights_are_saved_in_whole_blocks_or_of_all_labels(monkeypatch):
    inputs = problem([6, 2], 2 * SIZES.block + 77, 3, cells=None)
    names = ("hidden_states", "offsets", "label_queries", "label_outputs")
    p = label_attention_torch.Problem(*(inputs[name].detach() for name in names))
    for labels, expected in (
        (SIZES.block - 1, 0),
        (2 * SIZES.block + 76, 2 * SIZES.block),
        (2 * SIZES.block + 77,) * 2,
    ):
        monkeypatch.setitem(label_attention_torch.SIZES, "cpu", SIZES._replace(weights=8 * labels))
        result = label_attention_torch.forward(p, keep_weights=True).weights
        assert (0 if result is None else len(result)) == expected
    assert label_attention_torch.forward(p).weights is None
    scores = p.queries @ p.hidden.T
    expected = torch.cat(
        [part.sub(part.amax(1, keepdim=True)).exp() for part in scores.split([6, 2], 1)], 1
    )
    assert_within_rounding(result, expected, operations(inputs))


@pytest.mark.parametrize("of", ["a long document", "several"])
def test_a_second_backward_pass_gives_the_same_gradients(of, set_weights):
    inputs = long_document() if of == "a long document" else problem([9, 0, 13], SIZES.block + 5, 4)
    set_weights(inputs)
    value, _ = kernels.attend(**inputs, impl="torch")
    leaves = [inputs[n] for n in GRADIENTS]
    first = torch.autograd.grad(value.square().sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(value.square().sum(), leaves)
    for a, b in zip(first, second, strict=True):
        assert_within_rounding(a, b, operations(inputs))


@pytest.mark.parametrize("frozen", GRADIENTS[:3])
def test_frozen_inputs_get_no_gradient_and_change_no_other(frozen):
    inputs, expected = long_document(), run("torch", long_document())
    inputs[frozen] = inputs[frozen].detach()
    value, log_sum = kernels.attend(**inputs, impl="torch")
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    ((value * weights[0]).sum() + (log_sum * weights[1]).sum()).backward()
    for name in GRADIENTS:
        if name == frozen:
            assert inputs[name].grad is None
        else:
            assert_within_rounding(inputs[name].grad, expected[name], operations(inputs))


def test_two_runs_give_equal_bits():
    inputs = problem([300, 290, 0, 20], SIZES.block + 3, 7, dtype=torch.float32)
    first, second = run("torch", inputs), run("torch", inputs)
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("keep", [None, 3])
def test_poisoned_memory_does_not_show(monkeypatch, keep):
    inputs = problem([5, 0, 7], 9, 4)
    clean, empty, new_empty = run("torch", inputs, keep), torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan"))
    )
    poisoned, of_long = run("torch", inputs, keep), run("torch", long_document(), keep)
    assert all(torch.equal(clean[n], poisoned[n]) for n in clean)
    assert all(x.isfinite().all() for x in of_long.values())


def test_compile_and_autocast_change_nothing():
    inputs = problem([5, 0, 7], 9, 4, dtype=torch.float32)
    plain = kernels.attend(**inputs, impl="torch")[0]
    compiled = torch.compile(
        lambda: kernels.attend(**inputs, impl="torch")[0] * 2.0, backend="eager"
    )()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = kernels.attend(**inputs, impl="torch")[0]
    assert torch.equal(compiled, plain * 2.0)  # twice a number is exact
    assert torch.equal(mixed, plain)
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.grad(mixed.sum(), inputs["label_queries"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_summed_in_float32(dtype):
    inputs = problem([40, 30], 9, 16, dtype=dtype)
    cells = inputs["cells"]._replace(values=inputs["cells"].values.double())
    exact = run(
        "reference", inputs | {n: inputs[n].detach().double() for n in GRADIENTS} | {"cells": cells}
    )
    result = run("torch", inputs)
    assert result["value"].dtype == torch.float32 and result["label_queries"].dtype == dtype
    assert_within_rounding(result["value"], exact["value"], operations(inputs))


def run_loss(impl, inputs, keep=None, factor=1.0):
    """Loss, logits and every gradient of `attend_bce` with random `added` and positive cells."""
    generator = torch.Generator().manual_seed(4)
    shape = (len(inputs["offsets"]) - 1, len(inputs["label_queries"]))
    gold = torch.rand(shape, generator=generator) < 0.3
    leaves = {n: inputs[n].detach().clone().requires_grad_() for n in GRADIENTS}
    leaves["added"] = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    rows, columns = gold.nonzero(as_tuple=True)
    loss, logits = kernels.attend_bce(
        **leaves,
        offsets=inputs["offsets"],
        rows=rows,
        columns=columns,
        cells=inputs["cells"],
        keep=keep,
        impl=impl,
    )
    (loss * factor).backward()
    gradients = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}
    return {"loss": loss.detach(), "logits": logits} | gradients


@pytest.mark.parametrize("keep", [None, 3], ids=["all", "keep 3"])
@pytest.mark.parametrize(("lengths", "num_labels", "dim"), CASES)
def test_loss_in_one_pass_equals_attention_then_loss(lengths, num_labels, dim, keep):
    inputs = problem(lengths, num_labels, dim)
    result = run_loss("torch", inputs, keep, factor=0.3)
    expected = run_loss("reference", inputs, keep, factor=0.3)
    for name in expected:
        size = largest(expected)
        assert_within_rounding(result[name], expected[name], operations(inputs), size, name)


def test_loss_without_gradients_is_the_same_number():
    inputs = problem([5, 0, 7], 9, 4)
    with torch.no_grad():
        shape, rows = (3, 9), torch.tensor([0, 2])
        arguments = dict(
            inputs,
            rows=rows,
            columns=rows,
            added=torch.zeros(shape, dtype=torch.float64),
            impl="torch",
        )
        loss, logits = kernels.attend_bce(**arguments)
    with_gradients, same = kernels.attend_bce(**arguments)
    assert not loss.requires_grad and with_gradients.requires_grad and not same.requires_grad
    assert_within_rounding(loss, with_gradients, operations(inputs))
    assert_within_rounding(logits, same, operations(inputs))


def test_a_loss_hands_its_gradients_out_once():
    inputs = problem([5, 7], 9, 4)
    arguments = dict(
        inputs,
        rows=torch.tensor([0]),
        columns=torch.tensor([1]),
        added=torch.zeros(2, 9, dtype=torch.float64),
    )
    loss, _ = kernels.attend_bce(**arguments, impl="torch")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call attend_bce again"):
        loss.backward()


def test_documents_do_not_touch_each_other():
    """With all tokens of one document NaN, every other document keeps its values to the bit."""
    inputs = problem([4, 6, 3], 7, 5)
    clean, _ = kernels.attend(**inputs, impl="torch")
    poisoned = inputs["hidden_states"].detach().clone()
    poisoned[4:10] = float("nan")
    value, log_sum = kernels.attend(**inputs | {"hidden_states": poisoned}, impl="torch")
    assert value[1].isnan().all() and log_sum[1].isnan().all()
    assert torch.equal(value[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("keep", [None, 3])
@pytest.mark.parametrize(("lengths", "num_labels", "dim"), [CASES[0], CASES[10], CASES[11]])
def test_float32_errs_as_the_reference_does(lengths, num_labels, dim, keep):
    """On the worst of twenty draws, because the gain is one number in each."""
    sizes, seeds = (lengths, num_labels, dim), range(20)
    exact = [run("reference", problem(*sizes, seed=seed), keep) for seed in seeds]
    single = [problem(*sizes, dtype=torch.float32, seed=seed) for seed in seeds]
    found, plain = ([run(i, inputs, keep) for inputs in single] for i in ("torch", "reference"))
    for name in exact[0]:
        draws_of = ([draw[name] for draw in of_draws] for of_draws in (found, plain, exact))
        assert_as_exact(*draws_of, operations=sum(lengths) + num_labels + dim, name=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": None}, "without a gain"),
        ({"keep": 0}, "at least 1 token"),
        ({"impl": "cuda"}, "use one of auto, triton, torch, reference"),
        ({"keep": 1, "state": (0, 0)}, "use LabelDecoder.read"),
        ({"candidates": torch.tensor([[0, 1], [0, 1]])}, "must be .B, C. with B=1"),
        ({"candidates": torch.tensor([[1, 1]])}, "distinct label ids below 2"),
        ({"candidates": torch.tensor([[0, 2]])}, "distinct label ids below 2"),
        ({"label_outputs": torch.zeros(3, 4)}, "must be one"),
    ],
    ids=[
        "cells without gain",
        "keep nothing",
        "unknown implementation",
        "keep with a state",
        "candidates of other documents",
        "a candidate twice",
        "a candidate too high",
        "outputs of other labels",
    ],
)
def test_refusals_name_the_fix(change, message):
    with pytest.raises(ValueError, match=message):
        kernels.attend(**problem([3], 2, 4) | {"impl": "torch"} | change)
