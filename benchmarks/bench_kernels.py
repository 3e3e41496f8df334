"""Label attention and ranking losses against what they replace, same run, same inputs, medians ->
results/bench/kernels.csv.

    python benchmarks/bench_kernels.py [--repetitions N] [--quick]

Times come from one process with the contenders taking turns; peak memory, beyond inputs, outputs
and the gradients themselves, from a process of its own a contender or, on a GPU, from the
allocator's count. limit_share is the arithmetic of the contender's own form, divided by its time
and by the rate this machine reaches in one large product. forward_memory (GPU) is the peak of a
forward pass without gradients over inputs and output. The bars printed at the end are computed from
the rows.
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
from tqdm import tqdm

from plantlib import kernels
from plantlib.kernels.attention_bce import sparse_bce
from plantlib.planting import ranking
from plantlib.training.records import environment

COLUMNS = (
    "date device threads op shape dtype implementation forward_ms both_ms cpu_ms extra_mib"
    " forward_memory time_ratio baseline limit_share matmul_tflops bandwidth_gbs versions"
).split()
ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
SHAPES = (
    [(8, 512, 4096, 8921), (8, 512, 4096, 30938)]
    if CUDA
    else [(1, 3072, 768, 8921), (4, 512, 384, 8921)]
)
QUICK = [(2, 24, 8, 50)]
LAW = [(1, 1024, 256, labels) for labels in (2000, 4000, 8000, 16000, 32000)]
LISTS = (256, 512)


def padded(made):
    """H (B, T, D) of equally long documents."""
    return made["h"].view(made["batch"], -1, made["h"].shape[1])


def ours(made):
    return kernels.attend(made["h"], made["offsets"], made["q"], made["w"])[0]


def eager(made):
    """The best plain form: scores (B, L, T) with the mask folded into the product, softmax,
    weighted outputs.
    """
    h, batch = padded(made), made["batch"]
    scores = torch.baddbmm(
        made["mask"], made["q"].expand(batch, *made["q"].shape), h.transpose(1, 2)
    )
    return (scores.softmax(-1) * (made["w"] @ h.transpose(1, 2))).sum(-1)


def sdpa(made):
    """scaled_dot_product_attention with labels as queries, then the context (B, L, D) read by W."""
    h = padded(made)[:, None]
    queries = made["q"].expand(made["batch"], 1, *made["q"].shape)
    return (
        functional.scaled_dot_product_attention(queries, h, h, scale=1.0)[:, 0] * made["w"]
    ).sum(-1)


def published(made):
    """nn.MultiheadAttention over label queries, one head, weights returned, and the head that reads
    the context.
    """
    h = padded(made)
    context, _ = made["mha"](
        made["q"].expand(made["batch"], *made["q"].shape), h, h, need_weights=True
    )
    return (context * made["w"]).sum(-1)


def reference(made):
    return kernels.attend(made["h"], made["offsets"], made["q"], made["w"], impl="reference")[0]


def with_loss(form):
    """A form followed by the loss; `ours` takes its gradients in the same pass."""

    def run(made):
        if form is ours:
            added = made["bias"].expand(made["batch"], -1)
            return kernels.attend_bce(
                made["h"], made["offsets"], made["q"], made["w"], *made["gold"], added=added
            )[0]
        return sparse_bce(form(made) + made["bias"], *made["gold"])

    return run


def listwise(name: str, impl: str):
    """A ranking loss of all rows at once; the pairwise form of 256 x 512 x 512 pairs keeps 1.5 GiB
    at most.
    """
    return lambda made: ranking.LOSSES[name](made["scores"], made["relevance"], impl=impl)


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
        # the loss taken in saves recomputation; a single long document saves one product by its
        # context
        products = 6 if op.endswith("bce") else 8 - (batch == 1 and tokens >= 2 * dim)
    # queries and context are projected a document and label, keys and values a token
    projections = 3 * 2 * batch * (labels + tokens) * dim if name == "published" else 0
    return 2 * dim * (products * batch * tokens * labels + projections)


def operations(quick: bool) -> dict:
    """op -> (shapes, {implementation: function}, baseline)."""
    rows, items = (8, 16) if quick else LISTS
    shapes = QUICK if quick else SHAPES
    found = {
        "label_attention": (shapes, ATTENTION, "eager"),
        "label_attention_bce": (shapes, {n: with_loss(f) for n, f in ATTENTION.items()}, "eager"),
        "label_attention_memory": (
            QUICK if quick else LAW,
            {n: ATTENTION[n] for n in ("eager", "ours", "sdpa")},
            "eager",
        ),
    }
    for name in ("approx_ndcg", "lambdarank"):
        forms = {"pairwise": listwise(name, "reference"), "ours": listwise(name, "auto")}
        found[name] = ([(rows, items)], forms, "pairwise")
    return found


def inputs(op: str, shape: tuple) -> dict:
    """Tensors of a shape, the same in every process; leaves that want gradients stand under
    'leaves'.
    """
    generator = torch.Generator(DEVICE).manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator, device=DEVICE)  # noqa: E731
    if not op.startswith("label_attention"):
        scores = draw(*shape).requires_grad_()
        relevance = torch.randint(0, 101, shape, generator=generator, device=DEVICE).float()
        return {"scores": scores, "relevance": relevance, "leaves": [scores]}
    batch, tokens, dim, labels = shape
    made = {
        "h": draw(batch * tokens, dim),
        "q": draw(labels, dim) * 1.4 / dim**0.5,
        "w": draw(labels, dim) * dim**-0.5,
    }
    made = {n: x.to(DTYPE).requires_grad_() for n, x in made.items()}
    made["bias"] = torch.zeros(labels, device=DEVICE, requires_grad=True)
    made["leaves"] = list(made.values())
    made["offsets"] = torch.arange(0, batch * tokens + 1, tokens, device=DEVICE)
    made["mask"] = torch.zeros(batch, 1, tokens, device=DEVICE, dtype=DTYPE)
    columns = torch.randint(labels, (5 * batch,), generator=generator, device=DEVICE)
    made["gold"] = (torch.arange(batch, device=DEVICE).repeat_interleave(5), columns)
    made["mha"] = torch.nn.MultiheadAttention(
        dim, 1, bias=False, batch_first=True, device=DEVICE, dtype=DTYPE
    )
    return made | {"batch": batch}


def once(function, made) -> tuple[float, float, float]:
    """(forward ms, forward + backward ms, CPU ms of both); gradients are dropped before."""
    for leaf in [*made["leaves"], *(made["mha"].parameters() if "mha" in made else ())]:
        leaf.grad = None
    clock = lambda: (torch.cuda.synchronize() if CUDA else None, time.perf_counter())[1]  # noqa: E731
    began, cpu = clock(), time.process_time()
    out = function(made)
    middle = clock()
    out.backward(torch.ones_like(out))
    return 1e3 * (middle - began), 1e3 * (clock() - began), 1e3 * (time.process_time() - cpu)


def matmul_rate(quick: bool) -> float:
    """FLOP a second of one large product, the best of several."""
    size = 256 if quick else 8192 if CUDA else 2048
    a, b, out = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(3))
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, b, out=out)) for _ in range(12))


def bandwidth(quick: bool) -> float:
    """Bytes a second read and written by one copy that fits no cache."""
    a = torch.zeros(2 ** (20 if quick else 28 if CUDA else 26), device=DEVICE)
    b = torch.empty_like(a)
    return 2 * 4 * a.numel() / min(_seconds(lambda: b.copy_(a)) for _ in range(5))


def _seconds(function) -> float:
    began = time.perf_counter()
    function()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_memory(op: str, shape: tuple, name: str, quick: bool) -> float:
    """MiB beyond inputs, output and gradients at the peak of one forward and backward pass; a CPU
    wants a process for it.
    """
    function, made = operations(quick)[op][1][name], inputs(op, shape)
    # libraries allocate their own workspaces here, not below
    once(function, inputs(op, QUICK[0] if op.startswith("label_attention") else (8, 16)))
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    else:
        restart_peak()
    before = torch.cuda.memory_allocated() / 2**20 if CUDA else peak_mib()
    out = function(made)
    out.backward(torch.ones_like(out))
    peak = torch.cuda.max_memory_allocated() / 2**20 if CUDA else peak_mib()
    weights = made["mha"].parameters() if "mha" in made else ()
    kept = [out, *(x.grad for x in (*made["leaves"], *weights) if x.grad is not None)]
    return max(peak - before - sum(x.numel() * x.element_size() for x in kept) / 2**20, 0.0)


def forward_memory(op: str, shape: tuple, name: str, quick: bool) -> float:
    """(inputs + output + what a forward pass without gradients takes beyond them) / (inputs +
    output); on a GPU.
    """
    function, made = operations(quick)[op][1][name], inputs(op, shape)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        out = function(made)
    given = sum(x.numel() * x.element_size() for x in made["leaves"])
    beyond = torch.cuda.max_memory_allocated() - before
    return round((given + beyond) / (given + out.numel() * out.element_size()), 3)


def memory(op: str, shape: tuple, name: str, quick: bool) -> float | str:
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
    """One row an operation, shape and implementation."""
    rate = matmul_rate(options.quick)
    common = about_the_machine(options.quick) | {"matmul_tflops": round(rate / 1e12, 3)}
    wanted = {n: o for n, o in operations(options.quick).items() if options.only in n}
    bar = tqdm(total=sum(len(s) * len(f) for s, f, _ in wanted.values()), unit="row")
    # a toy needs no process of its own
    measured, rows = measure_memory if options.quick else memory, []
    for op, (shapes, forms, baseline) in wanted.items():
        for shape in shapes:
            extra = {n: measured(op, shape, n, options.quick) for n in forms}
            fits = [n for n in forms if extra[n] != OUT_OF_MEMORY]
            for name in set(forms) - set(fits):
                bar.write(f"{op} {label(op, shape)}: {name} is not timed, {extra[name]}")
            timed = (
                {}
                if op == "label_attention_memory"
                else times(forms, fits, inputs(op, shape), options.repetitions)
            )
            for name in forms:
                row = common | {"op": op, "shape": label(op, shape), "implementation": name}
                row["dtype"] = str(
                    DTYPE if op.startswith("label_attention") else torch.float32
                ).split(".")[1]
                row["extra_mib"] = extra[name] if name not in fits else round(extra[name], 1)
                if CUDA and name in fits and op == "label_attention":
                    row["forward_memory"] = forward_memory(op, shape, name, options.quick)
                rows.append(row | time_columns(op, shape, name, timed, baseline, rate))
                bar.update()
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
    """Columns of a contender that was timed; those that need the baseline stay empty where it was
    not.
    """
    if name not in timed:
        return {}
    forward, both, cpu = timed[name]
    found = {
        "forward_ms": round(forward, 3),
        "both_ms": round(both, 3),
        "cpu_ms": "" if CUDA else round(cpu, 3),
    }
    if baseline in timed:
        found |= {"baseline": baseline, "time_ratio": round(both / timed[baseline][1], 3)}
    if op.startswith("label_attention"):
        found["limit_share"] = float(f"{flop(op, shape, name) / (both / 1e3) / rate:.3g}")
    return found


def times(forms, names, made, repetitions: int) -> dict:
    """name -> medians of `once`, the contenders taking turns after a warm-up."""
    found = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        for name in names:
            taken = once(forms[name], made)
            if repetition:
                found[name].append(taken)
    return {
        name: [statistics.median(column) for column in zip(*taken, strict=True)]
        for name, taken in found.items()
    }


def label(op: str, shape: tuple) -> str:
    names = ("B", "T", "D", "L") if op.startswith("label_attention") else ("R", "T")
    return " ".join(f"{n}={size}" for n, size in zip(names, shape, strict=True))


def bars(rows: list[dict]) -> list[tuple[str, float, float]]:
    """(what, found, at most) of the promises about time and memory; found is nan where a side was
    not measured.
    """
    found = []
    by = {(r["op"], r["shape"], r["implementation"]): r for r in rows}
    for (op, shape, name), row in by.items():
        if name != "ours" or op == "label_attention_memory":
            continue
        others = {n: r for (o, s, n), r in by.items() if (o, s) == (op, shape)}
        promises = attention_bars if op.startswith("label_attention") else ranking_bars
        found += [
            (f"{op} {shape}: {what}", value, most) for what, value, most in promises(row, others)
        ]
    return found


def attention_bars(row: dict, others: dict) -> list[tuple[str, float, float]]:
    """Promises about label attention, `row` being ours; on a GPU its time is held to other ones."""
    time_to, memory_to = (
        lambda n, c=c: ratio(row, others.get(n, {}), c) for c in ("both_ms", "extra_mib")
    )
    first = row["shape"].startswith("B=1 ")
    memory = [
        ("memory / eager", memory_to("eager"), 1 / 6),
        ("memory / sdpa", memory_to("sdpa"), 1 / 2),
    ]
    if row["cpu_ms"] != "":
        times = [("eager", 0.75 if first else 0.8), ("sdpa", 1.0 if first else 1.2)]
        return [*((f"time / {n}", time_to(n), most) for n, most in times), *memory]
    # forward has two products; half the rate of a large product is the promise
    share = row["limit_share"] * row["both_ms"] / row["forward_ms"] * 2 / PRODUCTS["ours"]
    forward = []
    if row["op"] == "label_attention":
        beside = ("forward memory / inputs and outputs", row["forward_memory"], 1.2)
        forward = [("forward time / its limit", 1 / share, 2.0), beside]
    return [("time / published", time_to("published"), 1 / 3), *forward, *memory]


def ranking_bars(row: dict, others: dict) -> list[tuple[str, float, float]]:
    """Promises about a ranking loss, `row` being ours."""
    lists = int(row["shape"].split()[0][2:])
    on_gpu = row["cpu_ms"] == ""
    time_a_row = (
        ("ms a row", row["both_ms"] / lists, 1.0)
        if on_gpu
        else ("CPU ms a row", row["cpu_ms"] / lists, 6.0)
    )
    return [
        time_a_row,
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
    parser.add_argument(
        "--repetitions",
        type=int,
        default=20 if CUDA else 5,
        help="timed turns a contender; the median counts",
    )
    parser.add_argument("--only", default="", help="operations whose name holds this")
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
    print(
        f"price: about {'a minute on a GPU' if CUDA else '8 minutes on 2 CPU cores'}; other work"
        " spoils it",
        flush=True,
    )
    rows = run(options)
    append(rows, options.out, COLUMNS)
    show(rows)
    for what, value, most in [] if options.quick else bars(rows):
        print(f"{verdict(value, most):12} {what}: {value:.2f}, at most {most:.2f}")


if __name__ == "__main__":
    main()
