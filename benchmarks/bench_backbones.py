"""Backbones of published sizes with a planted head -> results/bench/backbones.csv.

    python benchmarks/bench_backbones.py            # one GPU of 80 GB, at most 8 minutes
    python benchmarks/bench_backbones.py --tiny     # a CPU, seconds: the same code on small widths

Weights are random, since speed, memory and correctness do not depend on them; the classes, widths
and layers are those of runs/configs/, of DeepSeek-V3 as many layers as fit. Every family is trained
with LoRA for some steps on one batch, with and without gradient checkpointing, reads documents for
cached features, and predicts. A row is written after each measurement, and rows that the file has
from this device are not measured again, so a stopped run loses one row at most.

matmul_share: the products that the method needs (one pass forward, one backward through
activations, and one more with checkpointing; causal attention counts half), against the rate of a
large product measured on the same device. head_share: time of the head alone, forward and backward.
estimate_mib: what `plant memory` says of the same run.
"""

from __future__ import annotations

import argparse
import csv
import gc
import platform
import statistics
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import append, peak_mib, restart_peak
from plantlib.backbones import adapters, loading, weights
from plantlib.kernels import machine
from plantlib.model.plant_model import PlantConfig, PlantModel
from plantlib.planting import starts
from plantlib.planting.decoder import Packed
from plantlib.teacher.mig import Teacher
from plantlib.training import memory, schedules
from plantlib.training.options import TrainConfig

OUT = ROOT / "results" / "bench" / "backbones.csv"
# family of runs/configs -> the small configuration of the same class
FAMILIES = {
    "mistral-7b-v0.3": "mistral",
    "llama-3-8b": "llama",
    "phi-3-mini": "phi3",
    "deepseek-v3": "deepseek-v3",
}
COLUMNS = [
    "family",
    "layers",
    "parameters",
    "device",
    "dtype",
    "stage",
    "tokens",
    "batch",
    "checkpointing",
    "seconds",
    "tokens_per_second",
    "matmul_share",
    "head_share",
    "peak_mib",
    "estimate_mib",
    "first_loss",
    "last_loss",
    "note",
]
KEY = ("family", "device", "stage", "tokens", "checkpointing")
TOP_K = 64  # planted tokens of a label
GOLD = 15  # labels of a document
FIT = 0.85  # of the memory that is free may be filled, by the estimate


@dataclass(frozen=True)
class Sizes:
    """What a run measures: documents of `tokens` tokens in batches of `positions` tokens.

    labels: L. steps: of training on one batch. repeats: of reading and predicting. product: rows
    and columns of the matrices whose product gives the rate.
    """

    tokens: tuple[int, ...] = (1024, 4096)
    positions: int = 4096
    labels: int = 8921
    steps: int = 20
    repeats: int = 3
    product: int = 8192


TINY = Sizes(tokens=(32,), positions=64, labels=60, steps=20, repeats=1, product=256)


class NoText:
    """Stands for a tokenizer where documents are numbers already: no special tokens, no padding."""

    pad_token_id = None

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1]}


def config_of(family: str, tiny: bool) -> Any:
    """The published configuration of a family, or the small one of the same class."""
    if not tiny:
        return memory.config_of(family)
    import transformers

    kind, sizes = weights.TINY_FAMILIES[FAMILIES[family]]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return getattr(transformers, kind)(
        **sizes, **special, vocab_size=300, max_position_embeddings=64
    )


def teacher_of(labels: int, vocabulary: int) -> Teacher:
    """A generated teacher of `TOP_K` tokens per label."""
    rng = np.random.default_rng(0)
    kept = min(TOP_K, vocabulary)
    # one token from each of `kept` parts of the vocabulary
    part = vocabulary // kept
    chosen = (np.arange(kept) * part + rng.integers(0, part, (labels, kept))).ravel()
    values = rng.uniform(0.1, 1, labels * kept).astype(np.float32)
    indptr = np.arange(labels + 1) * kept
    cells = sparse.csr_matrix((values, chosen, indptr), (labels, vocabulary))
    return Teacher(cells, cells, "jaccard", 1000)


def layers_that_fit(config: Any, sizes: Sizes, dtype: str, free: int) -> int:
    """The most layers whose training fits into `free` bytes by the estimate; at least 1."""
    whole = config.num_hidden_layers

    def needed(layers: int) -> int:
        config.num_hidden_layers = layers
        return _estimate(config, sizes, dtype, min(sizes.tokens), True)

    fitting = bisect_right(range(1, whole + 1), FIT * free, key=needed)
    config.num_hidden_layers = whole
    return max(fitting, 1)


def _estimate(config: Any, sizes: Sizes, dtype: str, tokens: int, checkpointing: bool) -> int:
    """Bytes of a training step, as `plant memory` counts them."""
    return memory.estimate(
        config,
        num_labels=sizes.labels,
        batch_size=sizes.positions // tokens,
        tokens=tokens,
        tuning="lora",
        dtype=dtype,
        gradient_checkpointing=checkpointing,
        num_planted_cells=sizes.labels * min(TOP_K, config.vocab_size),
    ).total


def build(
    config: Any, dtype: str, device: torch.device, window: int, checkpointing: bool = False
) -> loading.Backbone:
    """A backbone with random weights, made on the device in its own type."""
    from transformers import AutoModel

    torch.manual_seed(0)
    config.use_cache = False
    with torch.device(device):
        model = AutoModel.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    if checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    name = config.model_type
    return loading.Backbone(name, model.eval(), NoText(config.vocab_size), window)


def planted(
    config: Any,
    sizes: Sizes,
    dtype: str,
    device: torch.device,
    window: int,
    tuning: str,
    checkpointing: bool = False,
) -> PlantModel:
    """A model with a planted head and a backbone, on the device.

    Raises:
        RuntimeError: the planted values on the device are not those that were planted.
    """
    names = {i: f"label {i}" for i in range(sizes.labels)}
    teacher = teacher_of(sizes.labels, config.vocab_size)
    model = PlantModel(
        PlantConfig(
            hidden_size=config.hidden_size,
            num_tokens=config.vocab_size,
            num_planted_cells=teacher.relevance.nnz,
            id2label=names,
            window=window,
        )
    )
    gold = sparse.csr_matrix((teacher.n_train, sizes.labels), dtype=np.int32)
    starts.plant(model.decoder, "lookup", teacher, gold, seed=0)
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    model.to(device)
    options = adapters.BackboneOptions(dtype=dtype)
    adapters.open_backbone(
        model,
        lambda **_: build(config, dtype, device, window, checkpointing),
        tuning,
        adapters.LoraOptions(dropout=0.0),
        options,
    )
    changed = [
        name
        for name, value in model.decoder.state_dict().items()
        if not torch.equal(value.cpu(), before[name])
    ]
    if changed:
        raise RuntimeError(f"planted values changed on {device}: {', '.join(changed)}")
    for gain in (model.decoder.teacher_gain, model.decoder.linear_gain):
        gain.requires_grad_(False)
    return model


def batch_of(sizes: Sizes, vocabulary: int, tokens: int, device: torch.device) -> dict:
    """One packed batch of documents with GOLD labels each."""
    rng = np.random.default_rng(1)
    documents = sizes.positions // tokens
    gold = [np.sort(rng.choice(sizes.labels, GOLD, replace=False)) for _ in range(documents)]
    parts = {
        "token_ids": rng.integers(1, vocabulary, documents * tokens),
        "offsets": np.arange(documents + 1) * tokens,
        "label_rows": np.repeat(np.arange(documents), GOLD),
        "label_columns": np.concatenate(gold),
    }
    return {name: torch.from_numpy(value).to(device) for name, value in parts.items()}


def products(model: torch.nn.Module, config: Any) -> float:
    """Multiplied and added numbers of one forward pass per token, attention over tokens left out.

    Of routed experts those count that a token goes through.
    """
    total = 0.0
    for name, p in model.named_parameters():
        if "embed" in name or p.dim() < 2 or "lora_" in name:
            continue
        routed = ".experts." in name and "shared" not in name
        share = config.num_experts_per_tok / config.n_routed_experts if routed else 1.0
        total += share * p.numel()
    return total


def operations(passes: int, per_token: float, config: Any, sizes: Sizes, tokens: int) -> float:
    """Floating point operations of so many passes through the backbone over one batch."""
    heads = config.num_attention_heads
    wide = getattr(config, "v_head_dim", None) or config.hidden_size // heads
    attention = config.num_hidden_layers * heads * wide * tokens  # causal: half of 2 x 2
    return passes * sizes.positions * 2.0 * (per_token + attention)


def head_operations(passes: int, config: Any, sizes: Sizes) -> float:
    """Floating point operations of the head's two products over one batch."""
    return passes * 4.0 * sizes.positions * sizes.labels * config.hidden_size


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """The median time of `work`, which is run once before."""
    work()
    times = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_rate(size: int, dtype: str, device: torch.device) -> float:
    """Floating point operations per second of a large product on this device."""
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    return 2.0 * size**3 / median_seconds(lambda: a @ b, 5, device)


@contextmanager
def peak(device: torch.device) -> Iterator[dict[str, float]]:
    """The most memory in use inside, in MiB: of the device, or of this process on a CPU."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        restart_peak()
    yield found
    on_gpu = device.type == "cuda"
    found["peak_mib"] = round(
        torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else peak_mib(), 1
    )


def train(model: PlantModel, batch: dict, steps: int, device: torch.device) -> dict:
    """Train on one batch; the median seconds of a step, the losses and the peak."""
    model.train()
    optimiser = torch.optim.AdamW(schedules.parameter_groups(model, TrainConfig()))
    losses, times = [], []
    with peak(device) as used:
        for _ in range(steps):
            wait(device)
            began = time.perf_counter()
            loss = model(**batch).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            wait(device)
            times.append(time.perf_counter() - began)
            losses.append(float(loss.detach()))
    found = {"seconds": statistics.median(times[2:] or times), **used}
    return found | {"first_loss": losses[0], "last_loss": losses[-1]}


def head_seconds(model: PlantModel, batch: dict, repeats: int, device: torch.device) -> float:
    """Seconds of the head alone, forward and backward, over hidden states of the same size."""
    positions = len(batch["token_ids"])
    hidden = torch.randn(positions, model.config.hidden_size, device=device, requires_grad=True)
    packed = Packed(hidden, batch["token_ids"], batch["offsets"])

    def work() -> None:
        loss, _ = model.decoder.loss(packed, batch["label_rows"], batch["label_columns"])
        loss.backward()
        model.zero_grad(set_to_none=True)
        hidden.grad = None

    return median_seconds(work, repeats, device)


def read_only(model: PlantModel, batch: dict) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """The stages without training: name, what to time, passes through the head."""
    ids, offsets = batch["token_ids"], batch["offsets"]

    @torch.inference_mode()
    def features() -> torch.Tensor:
        return model.encode(ids, offsets)

    @torch.inference_mode()
    def predict() -> torch.Tensor:
        return model(token_ids=ids, offsets=offsets).logits.topk(10).indices

    yield "features", features, 0
    yield "predict", predict, 1


def same_loss(family: str, device: torch.device) -> dict:
    """The loss of a small model on the CPU in float32 beside that on the device, in both types."""
    values = {}
    for name, dtype, place in (
        ("cpu float32", "float32", torch.device("cpu")),
        ("device float32", "float32", device),
        ("device bfloat16", "bfloat16", device),
    ):
        config = config_of(family, True)
        state = build(config, "float32", torch.device("cpu"), 32).model.state_dict()
        model = planted(config, TINY, dtype, place, 32, "frozen").eval()
        model.backbone.load_state_dict(state)
        with torch.no_grad():
            batch = batch_of(TINY, config.vocab_size, 32, place)
            values[name] = float(model(**batch).loss)
    reference = values["cpu float32"]
    apart = {name: abs(value / reference - 1) for name, value in values.items()}
    note = ", ".join(f"{name} {value:.1e} apart" for name, value in apart.items())
    return {
        "stage": "loss of a small width",
        "first_loss": reference,
        "last_loss": values["device bfloat16"],
        "note": note,
    }


class Rows:
    """The rows of the file, and which are measured already."""

    def __init__(self, out: Path, about: dict, seconds: float) -> None:
        self.out = out
        self.about = about
        self.ends = time.perf_counter() + seconds
        self.known = set()
        if out.exists():
            with out.open(newline="") as file:
                self.known = {self.key(row) for row in csv.DictReader(file)}

    @staticmethod
    def key(row: dict) -> tuple[str, ...]:
        return tuple(str(row.get(name, "")) for name in KEY)

    def wanted(self, row: dict) -> bool:
        """Whether a row is not in the file and there is time left for it."""
        return self.key(self.about | row) not in self.known and time.perf_counter() < self.ends

    def add(self, row: dict) -> None:
        row = self.about | row
        for name, value in row.items():
            if isinstance(value, float):
                row[name] = float(f"{value:.5g}")
        append([row], self.out, COLUMNS)
        self.known.add(self.key(row))
        print({name: value for name, value in row.items() if value != ""}, flush=True)


def measure(family: str, tiny: bool, sizes: Sizes, device: torch.device, rows: Rows) -> None:
    """All rows of one family."""
    dtype = "bfloat16"
    common = {"family": family, "dtype": dtype}
    if rows.wanted(common | {"stage": "loss of a small width"}):
        rows.add(common | same_loss(family, device))
    config = config_of(family, tiny)
    free = memory.available(device if device.type == "cuda" else None)
    config.num_hidden_layers = layers_that_fit(config, sizes, dtype, free)
    rate = matmul_rate(sizes.product, dtype, device)
    for tokens in sizes.tokens:
        for checkpointing in (True, False):
            about = common | {"tokens": tokens, "checkpointing": checkpointing}
            stages = ["train", *(["features", "predict"] if checkpointing else [])]
            if not any(rows.wanted(about | {"stage": stage}) for stage in stages):
                continue
            about |= {"batch": sizes.positions // tokens, "layers": config.num_hidden_layers}
            try:
                _measure_one(config, sizes, device, rows, about, rate)
            except torch.OutOfMemoryError:
                expected = round(_estimate(config, sizes, dtype, tokens, checkpointing) / 2**20, 1)
                note = {"note": "out of memory", "estimate_mib": expected}
                rows.add(about | {"stage": "train"} | note)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _measure_one(
    config: Any, sizes: Sizes, device: torch.device, rows: Rows, about: dict, rate: float
) -> None:
    """Training, and with checkpointing reading and predicting, at one length."""
    dtype, tokens, checkpointing = about["dtype"], about["tokens"], about["checkpointing"]
    model = planted(config, sizes, dtype, device, tokens, "lora", checkpointing)
    per_token = products(model.backbone, config)
    about |= {"parameters": sum(p.numel() for p in model.backbone.parameters())}
    batch = batch_of(sizes, config.vocab_size, tokens, device)
    if rows.wanted(about | {"stage": "train"}):
        found = train(model, batch, sizes.steps, device)
        needed = operations(3 if checkpointing else 2, per_token, config, sizes, tokens)
        needed += head_operations(3, config, sizes)
        head = head_seconds(model, batch, sizes.repeats, device)
        rows.add(
            about
            | found
            | {
                "stage": "train",
                "tokens_per_second": sizes.positions / found["seconds"],
                "matmul_share": needed / found["seconds"] / rate,
                "head_share": head / found["seconds"],
                "estimate_mib": _estimate(config, sizes, dtype, tokens, checkpointing) / 2**20,
            }
        )
    model.eval()
    for stage, work, passes in read_only(model, batch) if checkpointing else ():
        if rows.wanted(about | {"stage": stage}):
            with peak(device) as used:
                seconds = median_seconds(work, sizes.repeats, device)
            needed = operations(1, per_token, config, sizes, tokens)
            needed += head_operations(passes, config, sizes)
            rows.add(
                about
                | {
                    "stage": stage,
                    "seconds": seconds,
                    "tokens_per_second": sizes.positions / seconds,
                    "matmul_share": needed / seconds / rate,
                    **used,
                }
            )


def main(arguments: list[str] | None = None) -> None:
    """Measure the families and add a row to the file after each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small widths, for a CPU")
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--seconds", type=float, default=440.0, help="no row begins after so many")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    device = machine.device()
    if not options.tiny and device.type != "cuda":
        parser.error("there is no GPU here: give --tiny for small widths on a CPU")
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
    rows = Rows(options.out, {"device": name}, options.seconds)
    for family in options.families:
        measure(family, options.tiny, TINY if options.tiny else Sizes(), device, rows)


if __name__ == "__main__":
    main()
