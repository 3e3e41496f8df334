"""Label attention and ranking losses against what they replace -> results/bench/kernels.csv.

    python benchmarks/bench_kernels.py [--repetitions N] [--quick]

All contenders read the same inputs in the same run. Times are medians in one process, the
contenders taking turns. Peak memory beyond inputs, outputs and gradients comes from one process per
contender or, on a GPU, from the allocator. limit_share is the arithmetic of the contender's form,
divided by its time and by the rate of one large product on this machine. forward_memory (GPU) is
the peak of a forward pass without gradients over inputs and output. The bars (targets for time and
memory) printed at the end are computed from the rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from common import append, peak_mib, restart_peak
from torch.nn import functional

from plantlib import kernels
from plantlib.kernels.attention_bce import sparse_bce
from plantlib.planting import ranking
from plantlib.training.records import environment
from plantlib.utils.progress import tqdm

COLUMNS = (
    "date device threads op shape dtype implementation forward_ms both_ms cpu_ms extra_mib"
    " forward_memory time_ratio baseline limit_share matmul_tflops bandwidth_gbs versions"
).split()
ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
SHAPES = (
    [(batch, 4096 // batch, 4096, labels) for labels in (8921, 30938) for batch in (8, 1)]
    if CUDA
    else [(1, 3072, 768, 8921), (4, 512, 384, 8921)]
)
QUICK = [(2, 24, 8, 50)]
LAW = [(1, 1024, 256, labels) for labels in (2000, 4000, 8000, 16000, 32000)]
LISTS = (256, 512)


def padded(tensors):
    """H (B, T, D) of equally long documents."""
    return tensors["h"].view(tensors["batch"], -1, tensors["h"].shape[1])


def ours(tensors):
    return kernels.attend(tensors["h"], tensors["offsets"], tensors["q"], tensors["w"])[0]


def eager(tensors):
    """The best plain form: scores (B, L, T) with the mask in the product, softmax, outputs."""
    h, batch = padded(tensors), tensors["batch"]
    queries = tensors["q"].expand(batch, *tensors["q"].shape)
    scores = torch.baddbmm(tensors["mask"], queries, h.transpose(1, 2))
    return (scores.softmax(-1) * (tensors["w"] @ h.transpose(1, 2))).sum(-1)


def sdpa(tensors):
    """scaled_dot_product_attention with labels as queries, then W on the context (B, L, D)."""
    h = padded(tensors)[:, None]
    queries = tensors["q"].expand(tensors["batch"], 1, *tensors["q"].shape)
    context = functional.scaled_dot_product_attention(queries, h, h, scale=1.0)[:, 0]
    return (context * tensors["w"]).sum(-1)


def published(tensors):
    """nn.MultiheadAttention with one head over label queries, weights returned, and W."""
    h = padded(tensors)
    queries = tensors["q"].expand(tensors["batch"], *tensors["q"].shape)
    context, _ = tensors["mha"](queries, h, h, need_weights=True)
    return (context * tensors["w"]).sum(-1)


def reference(tensors):
    return kernels.attend(
        tensors["h"], tensors["offsets"], tensors["q"], tensors["w"], impl="reference"
    )[0]


def with_loss(form):
    """A form followed by the loss; `ours` computes the gradients in the same pass."""

    def run(tensors):
        if form is ours:
            added = tensors["bias"].expand(tensors["batch"], -1)
            return kernels.attend_bce(
                tensors["h"],
                tensors["offsets"],
                tensors["q"],
                tensors["w"],
                *tensors["gold"],
                added=added,
            )[0]
        return sparse_bce(form(tensors) + tensors["bias"], *tensors["gold"])

    return run


def listwise(name: str, impl: str):
    """A ranking loss; the pairwise form takes up to 1.5 GiB for 256 x 512 x 512 pairs."""
    return lambda tensors: ranking.LOSSES[name](tensors["scores"], tensors["relevance"], impl=impl)


ATTENTION = {"eager": eager, "ours": ours, "sdpa": sdpa, "published": published} | (
    {"reference": reference} if CUDA else {}
)
# products of B T L D multiply-adds, forward and backward, in each form
PRODUCTS = {"eager": 6, "ours": 8, "sdpa": 7, "published": 6, "reference": 6}
OUT_OF_MEMORY = "out of memory"


def flop(op: str, shape: tuple, name: str) -> int:
    """Floating-point operations of the matrix products of a form, forward and backward."""
    batch, tokens, dim, labels = shape
    products = PRODUCTS[name]
    if name == "ours" and not CUDA:
        # the loss inside the pass saves recomputation; the context of a single long document saves
        # one product
        products = 6 if op.endswith("bce") else 8 - (batch == 1 and tokens >= 2 * dim)
    # queries and context are projected per document and label, keys and values per token
    projections = 3 * 2 * batch * (labels + tokens) * dim if name == "published" else 0
    return 2 * dim * (products * batch * tokens * labels + projections)


def operations(quick: bool) -> dict:
    """op -> (shapes, {implementation: function}, baseline)."""
    rows, items = (8, 16) if quick else LISTS
    shapes = QUICK if quick else SHAPES
    with_losses = {n: with_loss(f) for n, f in ATTENTION.items()}
    some = {n: ATTENTION[n] for n in ("eager", "ours", "sdpa")}
    table = {
        "label_attention": (shapes, ATTENTION, "eager"),
        "label_attention_bce": (shapes, with_losses, "eager"),
        "label_attention_memory": (QUICK if quick else LAW, some, "eager"),
    }
    for name in ("approx_ndcg", "lambdarank"):
        forms = {"pairwise": listwise(name, "reference"), "ours": listwise(name, "auto")}
        table[name] = ([(rows, items)], forms, "pairwise")
    return table


def inputs(op: str, shape: tuple) -> dict:
    """Tensors of a shape, the same in every process; 'leaves' lists those with gradients."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=DEVICE)

    # lists to rank, or documents and labels
    if not op.startswith("label_attention"):
        scores = draw(*shape).requires_grad_()
        relevance = torch.randint(0, 101, shape, generator=generator, device=DEVICE).float()
        return {"scores": scores, "relevance": relevance, "leaves": [scores]}
    batch, tokens, dim, labels = shape
    tensors = {
        "h": draw(batch * tokens, dim),
        "q": draw(labels, dim) * 1.4 / dim**0.5,
        "w": draw(labels, dim) * dim**-0.5,
    }
    tensors = {n: x.to(DTYPE).requires_grad_() for n, x in tensors.items()}
    tensors["bias"] = torch.zeros(labels, device=DEVICE, requires_grad=True)
    # what only some forms read
    tensors["leaves"] = list(tensors.values())
    tensors["offsets"] = torch.arange(0, batch * tokens + 1, tokens, device=DEVICE)
    tensors["mask"] = torch.zeros(batch, 1, tokens, device=DEVICE, dtype=DTYPE)
    columns = torch.randint(labels, (5 * batch,), generator=generator, device=DEVICE)
    tensors["gold"] = (torch.arange(batch, device=DEVICE).repeat_interleave(5), columns)
    tensors["mha"] = torch.nn.MultiheadAttention(
        dim, 1, bias=False, batch_first=True, device=DEVICE, dtype=DTYPE
    )
    return tensors | {"batch": batch}


def once(function, tensors) -> tuple[float, float, float]:
    """(forward ms, forward + backward ms, CPU ms of both); gradients are dropped before."""
    for leaf in [*tensors["leaves"], *(tensors["mha"].parameters() if "mha" in tensors else ())]:
        leaf.grad = None
    began, cpu = clock(), time.process_time()
    out = function(tensors)
    middle = clock()
    out.backward(torch.ones_like(out))
    return 1e3 * (middle - began), 1e3 * (clock() - began), 1e3 * (time.process_time() - cpu)


def clock() -> float:
    """Seconds, read when the GPU has finished."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(quick: bool) -> float:
    """FLOP per second of one large product, the best of several."""
    size = 256 if quick else 8192 if CUDA else 2048
    a, b, out = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(3))
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, b, out=out)) for _ in range(12))


def bandwidth(quick: bool) -> float:
    """Bytes per second read and written by one copy that fits no cache."""
    a = torch.zeros(2 ** (20 if quick else 28 if CUDA else 26), device=DEVICE)
    b = torch.empty_like(a)
    return 2 * 4 * a.numel() / min(_seconds(lambda: b.copy_(a)) for _ in range(5))


def _seconds(function) -> float:
    began = time.perf_counter()
    function()
    return clock() - began


def measure_memory(op: str, shape: tuple, name: str, quick: bool) -> float:
    """MiB beyond inputs, output and gradients at the peak of one forward and backward pass.

    On a CPU this is the process's peak, so each measurement needs a process.
    """
    function, tensors = operations(quick)[op][1][name], inputs(op, shape)
    # libraries allocate their workspaces here, not below
    once(function, inputs(op, QUICK[0] if op.startswith("label_attention") else (8, 16)))
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    else:
        restart_peak()
    before = torch.cuda.memory_allocated() / 2**20 if CUDA else peak_mib()
    out = function(tensors)
    out.backward(torch.ones_like(out))
    peak = torch.cuda.max_memory_allocated() / 2**20 if CUDA else peak_mib()
    weights = tensors["mha"].parameters() if "mha" in tensors else ()
    results = [out, *(x.grad for x in (*tensors["leaves"], *weights) if x.grad is not None)]
    return max(peak - before - sum(x.numel() * x.element_size() for x in results) / 2**20, 0.0)


def forward_memory(op: str, shape: tuple, name: str, quick: bool) -> float:
    """Peak memory of a forward pass without gradients on a GPU, over inputs and output."""
    function, tensors = operations(quick)[op][1][name], inputs(op, shape)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        out = function(tensors)
    size = sum(x.numel() * x.element_size() for x in tensors["leaves"])
    beyond = torch.cuda.max_memory_allocated() - before
    return round((size + beyond) / (size + out.numel() * out.element_size()), 3)


def memory(op: str, shape: tuple, name: str, quick: bool) -> float | str:
    """`measure_memory` on the GPU or in a process that it may exhaust, or OUT_OF_MEMORY."""
    if CUDA:
        try:
            return measure_memory(op, shape, name, quick)
        except torch.cuda.OutOfMemoryError:
            return OUT_OF_MEMORY
        finally:
            torch.cuda.empty_cache()
    command = [sys.executable, __file__, "--measure", json.dumps([op, shape, name, quick])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return float(done.stdout.split()[-1])
    if "out of memory" in done.stderr.lower() or done.returncode == -9:
        return OUT_OF_MEMORY
    raise RuntimeError(f"{name} at {shape} failed: {done.stderr[-500:]}")


def run(options) -> list[dict]:
    """One row per operation, shape and implementation; those of a shape are written together."""
    rate = matmul_rate(options.quick)
    common = about_the_machine(options.quick) | {"matmul_tflops": round(rate / 1e12, 3)}
    table = {n: o for n, o in operations(options.quick).items() if options.only in n}
    bar = tqdm(total=sum(len(s) * len(f) for s, f, _ in table.values()), unit="row")
    # toy shapes need no process each
    memory_of = measure_memory if options.quick else memory
    rows = []
    for op, (shapes, forms, baseline) in table.items():
        dtype = DTYPE if op.startswith("label_attention") else torch.float32
        for shape in shapes:
            # memory, then times of the contenders that fit
            extra = {n: memory_of(op, shape, n, options.quick) for n in forms}
            fits = [n for n in forms if extra[n] != OUT_OF_MEMORY]
            for name in set(forms) - set(fits):
                bar.write(f"{op} {label(op, shape)}: {name} is not timed, {extra[name]}")
            timed = {}
            if op != "label_attention_memory":
                timed = times(forms, fits, inputs(op, shape), options.repetitions)
            for name in forms:
                row = common | {"op": op, "shape": label(op, shape), "implementation": name}
                row["dtype"] = str(dtype).split(".")[1]
                row["extra_mib"] = extra[name] if name not in fits else round(extra[name], 1)
                if CUDA and name in fits and op == "label_attention":
                    row["forward_memory"] = forward_memory(op, shape, name, options.quick)
                rows.append(row | time_columns(op, shape, name, timed, baseline, rate))
                bar.update()
            append(rows[-len(forms) :], options.out, COLUMNS)
    bar.close()
    return rows


def about_the_machine(quick: bool) -> dict:
    """Columns that all rows of a run share."""
    device = torch.cuda.get_device_name() if CUDA else environment()["cpu"]
    packages = ("plantlib", "torch", "triton") if CUDA else ("plantlib", "torch")
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "threads": torch.get_num_threads(),
        "bandwidth_gbs": round(bandwidth(quick) / 1e9, 1),
        "versions": " ".join(f"{p} {version(p)}" for p in packages),
    }


def time_columns(op: str, shape: tuple, name: str, timed: dict, baseline: str, rate: float) -> dict:
    """Time columns of a contender; no ratio without the baseline's time, none without its time."""
    if name not in timed:
        return {}
    forward, both, cpu = timed[name]
    columns = {
        "forward_ms": round(forward, 3),
        "both_ms": round(both, 3),
        "cpu_ms": "" if CUDA else round(cpu, 3),
    }
    if baseline in timed:
        columns |= {"baseline": baseline, "time_ratio": round(both / timed[baseline][1], 3)}
    if op.startswith("label_attention"):
        columns["limit_share"] = float(f"{flop(op, shape, name) / (both / 1e3) / rate:.3g}")
    return columns


def times(forms, names, tensors, repetitions: int) -> dict:
    """name -> medians of `once`, the contenders taking turns after a warm-up."""
    turns = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        for name in names:
            turn = once(forms[name], tensors)
            if repetition:
                turns[name].append(turn)
    return {
        name: [statistics.median(column) for column in zip(*of_name, strict=True)]
        for name, of_name in turns.items()
    }


def label(op: str, shape: tuple) -> str:
    names = ("B", "T", "D", "L") if op.startswith("label_attention") else ("R", "T")
    return " ".join(f"{n}={size}" for n, size in zip(names, shape, strict=True))


def bars(rows: list[dict]) -> list[tuple[str, float, float]]:
    """(what, value, at most) of every bar; the value is nan where a side was not measured."""
    values = []
    by = {(r["op"], r["shape"], r["implementation"]): r for r in rows}
    for (op, shape, name), row in by.items():
        if name != "ours" or op == "label_attention_memory":
            continue
        others = {n: r for (o, s, n), r in by.items() if (o, s) == (op, shape)}
        bars_of = attention_bars if op.startswith("label_attention") else ranking_bars
        values += [
            (f"{op} {shape}: {what}", value, most) for what, value, most in bars_of(row, others)
        ]
    return values


def attention_bars(row: dict, others: dict) -> list[tuple[str, float, float]]:
    """Bars of label attention, `row` being ours; a GPU has other bars for time."""

    def time_to(name: str) -> float:
        return ratio(row, others.get(name, {}), "both_ms")

    memory = [
        (f"memory / {name}", ratio(row, others.get(name, {}), "extra_mib"), most)
        for name, most in (("eager", 1 / 6), ("sdpa", 1 / 2))
    ]
    if row["cpu_ms"] != "":
        single = row["shape"].startswith("B=1 ")
        times = [("eager", 0.75 if single else 0.8), ("sdpa", 1.0 if single else 1.2)]
        return [*((f"time / {n}", time_to(n), most) for n, most in times), *memory]
    # the method needs two products forward and four backward; forward should reach half the rate of
    # a large product, both passes six tenths
    share = row["limit_share"] * row["both_ms"] / row["forward_ms"] * 2 / PRODUCTS["ours"]
    needed = row["limit_share"] * 6 / PRODUCTS["ours"]
    forward = []
    if row["op"] == "label_attention":
        forward = [
            ("forward time / its limit", 1 / share, 2.0),
            ("time / its limit", 1 / needed, 1 / 0.6),
            ("forward memory / inputs and outputs", row["forward_memory"], 1.2),
        ]
    return [("time / published", time_to("published"), 1 / 3), *forward, *memory]


def ranking_bars(row: dict, others: dict) -> list[tuple[str, float, float]]:
    """Bars of a ranking loss, `row` being ours."""
    lists = int(row["shape"].split()[0][2:])
    if row["cpu_ms"] == "":
        time_per_row = ("ms per row", row["both_ms"] / lists, 1.0)
    else:
        time_per_row = ("CPU ms per row", row["cpu_ms"] / lists, 6.0)
    return [
        time_per_row,
        ("extra MiB", row["extra_mib"], 150.0),
        ("time / pairwise", ratio(row, others.get("pairwise", {}), "both_ms"), 1 / 3),
    ]


def ratio(row: dict, other: dict, column: str) -> float:
    """row / other of a column, nan where either was not measured."""
    pair = (row.get(column), other.get(column))
    if any(not isinstance(x, (int, float)) for x in pair):
        return math.nan
    return pair[0] / max(pair[1], 1e-9)


def verdict(value: float, most: float) -> str:
    return "not measured" if math.isnan(value) else "yes" if value <= most else "no"


def show(rows: list[dict]) -> None:
    """Print the rows, the fastest of each shape first."""
    widths = {
        "op": 22,
        "shape": 24,
        "implementation": 14,
        "forward_ms": 10,
        "both_ms": 10,
        "cpu_ms": 10,
        "extra_mib": 13,
        "time_ratio": 10,
        "limit_share": 11,
    }
    print("  ".join(f"{c:>{w}}" for c, w in widths.items()))
    for row in sorted(rows, key=lambda r: (r["op"], r["shape"], r.get("both_ms", math.inf))):
        print("  ".join(f"{row.get(c, '')!s:>{w}}" for c, w in widths.items()))


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    turns = {"type": int, "default": 20 if CUDA else 5}
    parser.add_argument("--repetitions", **turns, help="timed turns per contender")
    parser.add_argument("--only", default="", help="only operations whose name contains this")
    parser.add_argument("--quick", action="store_true", help="toy shapes, to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench/kernels.csv")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        op, shape, name, quick = json.loads(options.measure)
        print(measure_memory(op, tuple(shape), name, quick))
        return
    if not any(options.only in op for op in operations(options.quick)):
        parser.error(
            f"--only {options.only} names no operation; there are"
            f" {', '.join(operations(options.quick))}"
        )
    duration = "a minute on a GPU" if CUDA else "8 minutes on 2 CPU cores"
    print(f"price: about {duration}; other work on the machine spoils the times", flush=True)
    rows = run(options)
    show(rows)
    for what, value, most in [] if options.quick else bars(rows):
        print(f"{verdict(value, most):12} {what}: {value:.2f}, at most {most:.2f}")


if __name__ == "__main__":
    main()
