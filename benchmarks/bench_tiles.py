"""Tile sizes of the label attention kernels on this GPU -> results/bench/tiles.csv.

    python benchmarks/bench_tiles.py [--repetitions 10]

`blocks_for` in `kernels/label_attention.py` holds the size chosen from these rows. Sizes are
compiled first, in several processes, so that the GPU does not wait. limit_share is the arithmetic
of a pass (2 products forward, 6 backward, two of which recompute scores and outputs) over its time
and the rate of one large product.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import multiprocessing
import statistics
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from bench_kernels import inputs, matmul_rate
from common import append

from plantlib.kernels import label_attention
from plantlib.kernels.label_attention_torch import Problem
from plantlib.utils.progress import tqdm

COLUMNS = (
    "date device kernel shape dtype columns tokens hidden warps stages workspace_mib ms limit_share"
    " matmul_tflops versions"
).split()
ROOT = Path(__file__).resolve().parent.parent
B, T, D, L = 8, 512, 4096, 8921
CELLS = 4000  # planted cells per document
KEEP = 64  # tokens kept by inattention
SIZES = [
    label_attention.Blocks(*size)
    for size in (
        (64, 256, 64, 8, 3),
        (128, 128, 64, 8, 3),
        (64, 128, 64, 8, 3),
        (64, 128, 64, 4, 3),
        (128, 64, 64, 8, 3),
        (64, 64, 64, 4, 4),
    )
]
KERNELS = ("forward", "forward, planted", "forward, 64 kept", "backward", "backward, planted")


def problem(kernel: str) -> Problem:
    """Random bfloat16 inputs for a name of KERNELS, with planted cells or inattention."""
    torch.manual_seed(0)
    tensors = inputs("label_attention", (B, T, D, L))
    cells = gain = None
    if "planted" in kernel:
        labels = torch.randint(L, (B * CELLS,), device="cuda").sort().values
        positions = torch.randint(B * T, (B * CELLS,), device="cuda")
        cells = (positions, labels, torch.rand(B * CELLS, device="cuda"))
        gain = torch.ones((), device="cuda")
    h, q, w = (tensors[name].detach() for name in "hqw")
    return Problem(h, tensors["offsets"], q, w, cells, gain, KEEP if "kept" in kernel else None)


def passes(kernel: str, size: label_attention.Blocks):
    """A function that runs the pass with tiles of `size`."""
    label_attention.blocks_for = lambda *_: size
    p = problem(kernel)
    if kernel.startswith("forward"):
        return lambda: label_attention.forward(p)
    rows = label_attention.forward(p)
    ones = torch.ones_like(rows.value)
    return lambda: label_attention.backward(p, rows, ones, torch.zeros_like(ones))


def compiles(kernel: str, size: label_attention.Blocks) -> str:
    """The reason why this size cannot run here, or the empty string."""
    try:
        passes(kernel, size)()
        torch.cuda.synchronize()
    # the compiler refuses a size with many kinds of errors
    except Exception as error:
        return f"{kernel} {size}: {type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def milliseconds(function, repetitions: int) -> float:
    """Median by the GPU's clock, after two passes that do not count."""
    function()
    function()
    times = []
    for _ in range(repetitions):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10, help="timed passes per size")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench/tiles.csv")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error(
            "this benchmark measures a GPU and there is none; bench_kernels.py measures CPUs too"
        )
    # compile all sizes
    pairs = list(product(KERNELS, SIZES))
    with concurrent.futures.ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
        results = pool.map(compiles, *zip(*pairs, strict=True))
        reasons = list(tqdm(results, total=len(pairs)))
    # time those that compile
    rate, rows = matmul_rate(False), []
    for (kernel, size), reason in zip(pairs, reasons, strict=True):
        if reason:
            print(reason)
            continue
        ms = milliseconds(passes(kernel, size), options.repetitions)
        flop = 2 * B * T * L * D * (2 if kernel.startswith("forward") else 6)
        rows.append(
            size._asdict()
            | {
                "date": datetime.date.today().isoformat(),
                "device": torch.cuda.get_device_name(),
                "kernel": kernel,
                "shape": f"B={B} T={T} D={D} L={L}",
                "dtype": "bfloat16",
                "ms": round(ms, 3),
                "workspace_mib": label_attention.WORKSPACE // 2**20,
                "limit_share": float(f"{flop / (ms / 1e3) / rate:.3g}"),
                "matmul_tflops": round(rate / 1e12, 1),
                "versions": f"torch {version('torch')} triton {version('triton')}",
            }
        )
    append(rows, options.out, COLUMNS)
    for row in sorted(rows, key=lambda r: (r["kernel"], r["ms"])):
        size = label_attention.Blocks(*(row[name] for name in label_attention.Blocks._fields))
        share = f"{row['limit_share']:5.2f} of the limit"
        print(f"{row['kernel']:20} {row['ms']:8.3f} ms  {share}  {size}")


if __name__ == "__main__":
    main()
