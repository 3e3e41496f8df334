"""What a run will need in memory, before it starts: weights, adapters, gradients, optimizer,
activations, head; and a refusal.

Part of METHOD.md section 4's fine-tuning. Parameters are counted exactly, on PyTorch's meta device,
where a model of 671e9 parameters takes no memory and a few seconds. Activations follow a formula a
layer (`layer_bytes`) for fused attention, which keeps no T x T scores; `tests/test_memory.py` holds
it to what autograd keeps. Dropout of the backbone is 0, as `tuning.BackboneOptions` sets it. Not
counted: the library itself, the allocator's leftovers, buffers of several devices. Command: `python
-m plantlib.training.memory llama-3-8b --labels 8921 --tuning lora --dtype bfloat16 --tokens 4096
--batch 1`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from plantlib.backbones import loading
from plantlib.backbones.adapters import TUNINGS, LoraOptions, check_tuning, is_target, lora_targets
from plantlib.data.sources import checkout

ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "head")


# bytes of a weight and its share of a float32 scale for 64; bitsandbytes packs linear layers alone,
# not fused experts
FOUR_BIT = 0.5 + 4 / 64


# what makes a part smaller, and how it is asked for
REMEDIES = {
    "quantise": (("weights",), "quantise=True (4-bit weights, with tuning='lora')"),
    "bfloat16": (("weights", "activations"), "dtype='bfloat16'"),
    "lora": (("gradients", "optimizer"), "tuning='lora'"),
    "checkpointing": (("activations",), "gradient_checkpointing=True"),
    "batch": (("activations",), "a smaller batch_size with more accumulation"),
    "tokens": (("activations",), "fewer tokens"),
    "labels": (("head",), "fewer labels"),
    "devices": (
        ("weights", "adapters", "gradients", "optimizer", "head"),
        "several GPUs with a file of runs/accelerate",
    ),
}


class MemoryExceeded(ValueError):
    """A run needs more memory than there is."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part of a run; parameters and trained count the backbone's parameters, remedies
    what could still help.
    """

    what: str
    parameters: int
    trained: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    remedies: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def largest(self) -> str:
        """Name of the largest part."""
        return max(PARTS, key=lambda part: getattr(self, part))

    def __repr__(self) -> str:
        return (
            f"{self.what}: {readable(self.total)}, most of it {self.largest}"
            f" ({readable(getattr(self, self.largest))})"
        )

    def table(self) -> str:
        """The parts as a Markdown table."""
        rows = [f"| {part} | {readable(getattr(self, part))} |" for part in (*PARTS, "total")]
        counts = f"{self.parameters:,} parameters in the backbone, {self.trained:,} of them trained"
        return "\n".join(
            [f"{self.what}; {counts}", "", "| part | memory |", "| --- | ---: |", *rows]
        )


def readable(size: float) -> str:
    """Bytes in words: 13.4 GiB."""
    power = min(int(math.log2(max(size, 1)) // 10), 4)
    return (
        f"{size / 1024**power:.{(0, 1, 1, 1, 2)[power]}f}"
        f" {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    )


def estimate(
    config,
    *,
    num_labels: int,
    batch_size: int,
    tokens: int,
    window: int | None = None,
    tuning: str = "frozen",
    lora: LoraOptions | None = None,
    dtype: str = "float32",
    quantise: bool = False,
    gradient_checkpointing: bool = False,
    num_planted_cells: int = 0,
    checkpointed_segments: bool = False,
) -> Estimate:
    """Memory of a run on a backbone of this transformers configuration; every part in bytes.

    tokens: read of a document, in windows of at most `window` (None: in one).
    checkpointed_segments: only one window of every document is held at a time, the others are
    computed again. num_planted_cells: cells of G. Frozen backbones are counted as if they stayed
    loaded beside the head. Raises ValueError for sizes and options that no run can have.
    """
    _check(num_labels, batch_size, tokens, window, tuning, dtype, quantise)
    model, element, lora = meta_model(config), ELEMENT[dtype], lora or LoraOptions()
    linear = linear_layers(model)
    adapted = linear_layers(model, lora_targets(model, lora.targets)) if tuning == "lora" else {}
    parameters = sum(p.numel() for p in model.parameters())
    added = lora.r * sum(sum(shape) for shape in adapted.values())
    trained = {"frozen": 0, "lora": added, "full": parameters}[tuning]
    four_bit = sum(a * b for a, b in linear.values())
    length, z, inputs = (
        min(tokens, window or tokens),
        Sizes.of(model),
        adapter_inputs(adapted, element, lora),
    )
    segments = math.ceil(tokens / length)
    states, rows = (segments, batch_size) if checkpointed_segments else (1, batch_size * segments)
    activations = backbone_activations(
        z, element, tuning, inputs, rows, length, gradient_checkpointing
    )
    activations += head_activations(
        z, num_labels, batch_size, rows * length, num_planted_cells, states
    )
    weights = (
        FOUR_BIT * four_bit + element * (parameters - four_bit)
        if quantise
        else element * parameters
    )
    # one layer is unpacked at a time
    activations += element * max(a * b for a, b in linear.values()) * quantise
    remedies = _remedies(
        tuning, dtype, quantise or 2 * four_bit < parameters, gradient_checkpointing, batch_size
    )
    parts = f"{batch_size} x {tokens} tokens" + (f" in windows of {length}" if segments > 1 else "")
    return Estimate(
        what=(
            f"{model.config.model_type}, {tuning}, {'4-bit and ' if quantise else ''}{dtype},"
            f" {parts}, {num_labels} labels"
        ),
        parameters=parameters,
        trained=trained,
        weights=round(weights),
        adapters=4 * added,
        gradients=trained * (element if tuning == "full" else 4),
        optimizer=8 * trained,
        activations=round(activations),
        head=head_bytes(z, num_labels, num_planted_cells),
        remedies=remedies,
    )


def _check(num_labels, batch_size, tokens, window, tuned: str, dtype: str, quantise: bool) -> None:
    for name, value in (
        ("num_labels", num_labels),
        ("batch_size", batch_size),
        ("tokens", tokens),
        ("window", window),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; give at least 1")
    loading.check_dtype(dtype)
    check_tuning(tuned, quantise)


def _remedies(
    tuned: str, dtype: str, four_bit: bool, checkpointing: bool, batch_size: int
) -> tuple[str, ...]:
    """What is not in use yet and would help; four_bit: whether 4-bit weights are, or would not."""
    used = {
        "quantise": four_bit or tuned == "full",
        "bfloat16": dtype != "float32",
        "lora": tuned != "full",
    }
    used |= {"checkpointing": checkpointing or tuned == "frozen", "batch": batch_size == 1}
    return tuple(name for name in REMEDIES if not used.get(name, False))


def meta_model(config):
    """The backbone of a configuration on the meta device, shapes without memory; a hub's own class
    where that was trusted.
    """
    import torch
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    loading.check_architecture(config)
    remote = type(config).__module__.startswith("transformers_modules")
    if config.model_type not in MODEL_MAPPING_NAMES and not remote:
        fix = "estimate with the configuration of an architecture of the same size"
        raise ValueError(
            f"{config.model_type!r} cannot be counted, transformers has no class for it; {fix}"
        )
    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(config), trust_remote_code=remote)


def linear_layers(model, targets: list[str] | None = None) -> dict[str, tuple[int, int]]:
    """(in, out) of every linear layer by name, or of those that LoRA wraps: never experts and
    routers of a mixture.
    """
    import torch

    found = {
        n: (m.in_features, m.out_features)
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    return (
        found
        if targets is None
        else {n: x for n, x in found.items() if any(is_target(n, t) for t in targets)}
    )


def head_bytes(z: Sizes, num_labels: int, num_planted_cells: int) -> int:
    """Queries, outputs and bias in float32, their gradients and two moments; the planted table,
    label and value a cell.
    """
    return (
        16 * (2 * num_labels * z.hidden + num_labels)
        + 8 * (z.vocabulary + 1)
        + 8 * num_planted_cells
    )


def head_activations(
    z: Sizes, num_labels: int, batch_size: int, positions: int, num_planted_cells: int, states: int
) -> int:
    """Bytes of hidden states and their gradient, planted cells and (B, L), in float32.

    (B, L) six times, for logits, loss and gradients, and four times for the state after each of
    several segments. Planted cells: 32 bytes each, as many a token as the table has on average.
    """
    cells = num_planted_cells / z.vocabulary
    return round(positions * (8 * z.hidden + 32 * cells)) + 4 * batch_size * num_labels * (
        6 + 4 * states * (states > 1)
    )


@dataclass(frozen=True)
class Sizes:
    """Widths that decide what a layer keeps.

    attention: of queries, keys, values and output together; written_out: with keys and values
    repeated for every head; latent: of low-rank queries and keys; expert_inner: inner width of all
    experts that see a token.
    """

    layers: int
    hidden: int
    vocabulary: int
    attention: int
    written_out: int
    latent: int
    inner: int
    gated: bool
    rms: bool
    dense_layers: int
    experts: int
    expert_inner: int

    @classmethod
    def of(cls, model) -> Sizes:
        """Read from a model's configuration and from the names of its parameters and modules."""
        config = model.config.get_text_config()
        get = lambda name, default=0: getattr(config, name, None) or default  # noqa: E731
        d, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
        head = get("head_dim", d // heads)
        attention, written_out = (
            2 * head * (heads + get("num_key_value_heads", heads)),
            4 * head * heads,
        )
        if get("kv_lora_rank"):
            nope, v = get("qk_nope_head_dim"), get("v_head_dim")
            # values are a view of what holds keys and values
            attention = written_out = heads * (2 * (nope + get("qk_rope_head_dim")) + nope + v + v)
        inner, experts = (
            get("intermediate_size") or get("hidden_dim") or get("n_inner", 4 * d),
            get("num_experts_per_tok"),
        )
        return cls(
            layers,
            d,
            config.vocab_size,
            attention,
            written_out,
            get("q_lora_rank") + get("kv_lora_rank"),
            inner,
            gated=any(".gate_" in name for name, _ in model.named_parameters()),
            rms=any("RMSNorm" in type(m).__name__ for m in model.modules()),
            dense_layers=get("first_k_dense_replace") if experts else layers,
            experts=experts,
            expert_inner=(experts + get("n_shared_experts")) * get("moe_intermediate_size", inner),
        )


def layer_bytes(
    z: Sizes, element: int, full: bool, dense: bool, padded: bool, length: int
) -> float:
    """Bytes that one layer keeps for its backward pass, a position; s bytes an element, all weights
    trained when `full`.

    norms      RMS: float32 input 4d and, full, 2sd (scaled, weighted); layer norm: sd and, full, sd
    more; two of them attention  s(query + key + value + output), latents like a norm; the
    log-sum-exp is small
               in padded batches keys and values are written out for every head, and the mask is
               kept: sT
    inner      gated: gate, its activation and up, 3s inner; plain: s inner; full: the product or
    activation, one more experts    the same for each expert of a token, and sd in and sd out
    """
    d, s = z.hidden, element
    norm = lambda width: (4 * width + 2 * s * width * full) if z.rms else s * width * (1 + full)  # noqa: E731
    attention = s * (z.written_out + length if padded else z.attention) + norm(z.latent)
    kept = s * ((3 if z.gated else 1) + full)
    return (
        2 * norm(d)
        + attention
        + (kept * z.inner if dense else kept * z.expert_inner + 2 * s * d * z.experts)
    )


def adapter_inputs(adapted: dict[str, tuple[int, int]], element: int, lora: LoraOptions) -> int:
    """Bytes that the adapters of all layers keep a position: r outputs each, and their inputs.

    Adapters compute in float32: 4 bytes for each input of 16-bit weights; 4 and a mask of 1 with
    dropout; else layers that read the same input share it.
    """
    inputs = [(name.rpartition(".")[0], n) for name, (n, _) in adapted.items()]
    if not lora.dropout and element == 4:
        inputs = set(inputs)
    return 4 * lora.r * len(adapted) + (5 if lora.dropout else 4) * sum(n for _, n in inputs)


def backbone_activations(
    z: Sizes, element: int, tuned: str, adapters: int, rows: int, length: int, again: bool
) -> float:
    """Bytes the backbone holds at the worst moment of a step, rows x length positions; again:
    layers are checkpointed.

    All layers' `layer_bytes`; with checkpoints every layer's input and one layer whole; frozen,
    what one layer has in hand. Beside them the embedding, the last norm and states, and half a
    layer of gradients on their way back.
    """
    full, padded = tuned == "full", rows > 1
    layer = [layer_bytes(z, element, full, dense, padded, length) for dense in (True, False)]
    sparse = z.layers - min(z.dense_layers, z.layers)
    largest = max(layer[:1] * (sparse < z.layers) + layer[1:] * (sparse > 0)) + adapters / z.layers
    outside = z.hidden * (3 * element + (4 if z.rms else 0))
    if tuned == "frozen":
        return rows * length * (largest + outside)
    kept = layer[0] * (z.layers - sparse) + layer[1] * sparse + adapters
    if again:
        kept = element * z.hidden * z.layers + largest
    return rows * length * (kept + outside + largest / 2)


def available(device=None, root: str | Path = "/") -> int:
    """Bytes free: of the GPU (device None: where there is one), else RAM within a cgroup's limit;
    root holds proc and sys.
    """
    import torch

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info, limit = Path(root) / "proc/meminfo", Path(root) / "sys/fs/cgroup/memory.max"
    lines = info.read_text().splitlines() if info.exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    free = free or [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        used = limit.with_name("memory.current")
        free.append(max(0, int(text) - (int(used.read_text()) if used.exists() else 0)))
    return min(free)


def check(estimate: Estimate, available_bytes: int) -> None:
    """MemoryExceeded when the estimate is above what there is, with the largest part and what would
    help.
    """
    if estimate.total <= available_bytes:
        return
    # what acts on the largest part comes first
    helpful = sorted(estimate.remedies, key=lambda name: estimate.largest not in REMEDIES[name][0])
    raise MemoryExceeded(
        f"this run needs about {readable(estimate.total)} ({estimate.what}) and"
        f" {readable(available_bytes)} are available; the largest part is {estimate.largest},"
        f" {readable(getattr(estimate, estimate.largest))}: use "
        + " or ".join(REMEDIES[name][1] for name in helpful)
    )


def presets() -> dict[str, Path]:
    """Architectures of published sizes by name: runs/configs/*.json."""
    return {path.stem: path for path in sorted((checkout() / "runs" / "configs").glob("*.json"))}


def config_of(name: str):
    """Configuration of a preset's name, of a config.json, or of anything `backbones.config_of`
    takes.
    """
    from transformers import AutoConfig

    path = presets().get(name, Path(name))
    if path.suffix != ".json":
        return loading.config_of(name)
    if not path.is_file():
        raise ValueError(
            f"{name} is no file; give a config.json, a backbone or one of {', '.join(presets())}"
        )
    fields = json.loads(path.read_text(encoding="utf-8"))
    if "model_type" not in fields:
        raise ValueError(f"{path.name} has no model_type; give a config.json of transformers")
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit status 1 when the estimate is above what is free here or cannot be
    made.
    """
    parser = argparse.ArgumentParser(
        prog="python -m plantlib.training.memory", description="memory a run will need"
    )
    parser.add_argument(
        "backbone", help=f"folder, hub id, config.json or one of {', '.join(presets())}"
    )
    parser.add_argument("--tuning", choices=TUNINGS, default="lora")
    parser.add_argument("--dtype", choices=loading.DTYPES, default="float32")
    parser.add_argument("--labels", type=int, required=True)
    for name, default, text in (
        ("tokens", 512, "tokens read of a document"),
        ("window", None, "tokens of one forward pass, all unless given"),
        ("batch", 1, "documents a step"),
        ("cells", 0, "planted cells"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--quantise", action="store_true", help="4-bit weights")
    parser.add_argument(
        "--checkpointing", action="store_true", help="compute layers again in the backward pass"
    )
    got = parser.parse_args(arguments)
    try:
        found = estimate(
            config_of(got.backbone),
            num_labels=got.labels,
            tuning=got.tuning,
            dtype=got.dtype,
            tokens=got.tokens,
            window=got.window,
            batch_size=got.batch,
            num_planted_cells=got.cells,
            quantise=got.quantise,
            gradient_checkpointing=got.checkpointing,
        )
        print(found.table())
        check(found, available())
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
