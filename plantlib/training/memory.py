"""The memory that a run will need, estimated before it starts, and a refusal if it does not fit.

See docs/method.md, "Training". Parameters are counted exactly, on PyTorch's meta device, where even
671e9 of them take no memory. Activations follow a formula per layer (`layer_bytes`) for fused
attention, which keeps no T x T scores; tests/training/test_memory.py compares them with what
autograd keeps. The backbone is taken to have no dropout, the default of `adapters.BackboneOptions`.
Not counted: the libraries themselves, memory that the allocator reserves but does not use, and
buffers for communication between devices.

    python -m plantlib.training.memory llama-3-8b --labels 8921 --dtype bfloat16 --tokens 4096
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from plantlib.backbones import loading
from plantlib.backbones.adapters import TUNINGS, LoraOptions, check_tuning, is_target, lora_targets
from plantlib.data.sources import checkout
from plantlib.utils.io import read_json

ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "head")

# bytes of a 4-bit weight: half a byte, and one float32 scale per 64 weights
FOUR_BIT = 0.5 + 4 / 64

# the parts that a remedy makes smaller, and how a user asks for it
REMEDIES = {
    "quantise": (("weights",), "quantise=True (4-bit weights, with tuning='lora')"),
    "bfloat16": (("weights", "activations"), "dtype='bfloat16'"),
    "lora": (("gradients", "optimizer"), "tuning='lora'"),
    "checkpointing": (("activations",), "gradient_checkpointing=True"),
    "batch": (("activations",), "a smaller batch_size with more accumulation"),
    "tokens": (("activations",), "fewer tokens"),
    "labels": (("head",), "fewer labels"),
    "devices": ({*PARTS} - {"activations"}, "several GPUs with a file of runs/accelerate"),
}


class MemoryExceeded(ValueError):
    """A run needs more memory than is available."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part of a run.

    Attributes:
        what: the run in words: model, options, sizes.
        parameters, trained: numbers of parameters of the backbone, and of those that are trained.
        remedies: keys of `REMEDIES` that the run does not use yet.
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
        """Bytes of all parts."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def largest(self) -> str:
        """Name of the largest part."""
        return max(PARTS, key=lambda part: getattr(self, part))

    def __repr__(self) -> str:
        largest = f"{self.largest} ({readable(getattr(self, self.largest))})"
        return f"{self.what}: {readable(self.total)}, most of it {largest}"

    def table(self) -> str:
        """The parts as a Markdown table."""
        counts = f"{self.parameters:,} parameters in the backbone, {self.trained:,} of them trained"
        head = [f"{self.what}; {counts}", "", "| part | memory |", "| --- | ---: |"]
        rows = [f"| {part} | {readable(getattr(self, part))} |" for part in (*PARTS, "total")]
        return "\n".join(head + rows)


def readable(size: float) -> str:
    """Bytes with a unit: "13.4 GiB"."""
    power = min(int(math.log2(max(size, 1)) // 10), 4)
    unit, digits = (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 1), ("TiB", 2))[power]
    return f"{size / 1024**power:.{digits}f} {unit}"


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
    """The memory that training on a backbone of this configuration needs.

    Args:
        config: configuration of a transformers model.
        num_labels: L.
        batch_size: documents per step.
        tokens: tokens read per document.
        window: tokens the backbone reads at a time; all when None.
        tuning: "frozen", "lora" or "full"; a frozen backbone is counted as loaded.
        lora: sizes of the adapters.
        dtype: of the backbone's weights.
        quantise: keep the weights of linear layers in 4 bits.
        gradient_checkpointing: compute layers again in the backward pass.
        num_planted_cells: non-zero cells of the relevance G (L, V).
        checkpointed_segments: hold one window of each document and compute the others again.

    Raises:
        ValueError: a size below 1, an unknown option, or an architecture that cannot be counted.
    """
    # a wrong option is an error before the model is made
    sizes = {"num_labels": num_labels, "batch_size": batch_size, "tokens": tokens, "window": window}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}={size}; give at least 1")
    if num_planted_cells < 0:
        raise ValueError(f"num_planted_cells={num_planted_cells}; give at least 0")
    loading.check_dtype(dtype)
    check_tuning(tuning, quantise)
    lora = lora or LoraOptions()

    # the backbone and its weights; bitsandbytes packs linear layers alone, not fused experts
    element = ELEMENT[dtype]
    model = meta_model(config)
    parameters = sum(p.numel() for p in model.parameters())
    matrices = [inputs * outputs for inputs, outputs in linear_layers(model).values()]
    weights = element * parameters
    if quantise:
        weights = FOUR_BIT * sum(matrices) + element * (parameters - sum(matrices))

    # what is trained
    targets = lora_targets(model, lora.targets) if tuning == "lora" else []
    adapted = linear_layers(model, targets)
    adapter_parameters = lora.r * sum(inputs + outputs for inputs, outputs in adapted.values())
    trained = {"frozen": 0, "lora": adapter_parameters, "full": parameters}[tuning]

    # activations: windows of one length, all of them at once or one per document
    length = min(tokens, window or tokens)
    windows = math.ceil(tokens / length)
    rows = batch_size if checkpointed_segments else batch_size * windows
    states = windows if checkpointed_segments else 1
    widths = Widths(model, element)
    adapter_states = adapter_bytes(adapted, element, lora)
    activations = backbone_activations(
        widths, tuning, adapter_states, rows, length, gradient_checkpointing
    )
    cells_per_token = num_planted_cells / widths.vocabulary
    activations += head_activations(
        widths.hidden, rows * length, batch_size * num_labels, cells_per_token, states
    )
    if quantise:
        activations += element * max(matrices)  # one layer is unpacked at a time

    # remedies that are in use, or would not help
    useless = {
        "quantise": quantise or tuning == "full" or 2 * sum(matrices) < parameters,
        "bfloat16": dtype != "float32",
        "lora": tuning != "full",
        "checkpointing": gradient_checkpointing or tuning == "frozen",
        "batch": batch_size == 1,
    }
    read = f"{batch_size} x {tokens} tokens" + (f" in windows of {length}" if windows > 1 else "")
    weight_type = f"{'4-bit and ' if quantise else ''}{dtype}"
    return Estimate(
        f"{model.config.model_type}, {tuning}, {weight_type}, {read}, {num_labels} labels",
        parameters=parameters,
        trained=trained,
        weights=round(weights),
        adapters=4 * adapter_parameters,
        gradients=trained * (element if tuning == "full" else 4),
        optimizer=8 * trained,
        activations=round(activations),
        head=head_bytes(widths, num_labels, num_planted_cells),
        remedies=tuple(name for name in REMEDIES if not useless.get(name, False)),
    )


def meta_model(config):
    """A backbone of this configuration on the meta device: shapes without memory.

    ValueError for an architecture that transformers has no class for, unless `config` is of a hub's
    own class, which was trusted when it was loaded.
    """
    loading.check_architecture(config)
    remote = type(config).__module__.startswith("transformers_modules")
    if config.model_type not in MODEL_MAPPING_NAMES and not remote:
        raise ValueError(
            f"{config.model_type!r} cannot be counted, transformers has no class for it; estimate"
            " with the configuration of an architecture of the same size"
        )
    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(config), trust_remote_code=remote)


def linear_layers(model, targets: list[str] | None = None) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every linear layer by name, or of the LoRA `targets` among them.

    Experts and routers of a mixture are not linear layers here: each kind is one fused tensor.
    """
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (targets is None or any(is_target(name, target) for target in targets))
    }


def head_bytes(widths: Widths, num_labels: int, num_planted_cells: int) -> int:
    """Bytes of the head: queries, outputs and bias in float32 with gradients and two moments, and
    the planted table with a label and a value per cell.
    """
    table = 8 * (widths.vocabulary + 1) + 8 * num_planted_cells
    return 16 * (2 * num_labels * widths.hidden + num_labels) + table


def head_activations(hidden: int, positions: int, pairs: int, cells: float, states: int) -> int:
    """Bytes of the head's float32 tensors in a step.

    Args:
        hidden: D; hidden states and their gradient are kept.
        positions: tokens that are attended to at a time.
        pairs: documents times labels; kept six times, for logits, loss and gradients.
        cells: planted cells per position on average, 32 bytes each.
        states: windows per document whose attention state is kept, four numbers per pair.
    """
    per_pair = 6 + (4 * states if states > 1 else 0)
    return round(positions * (8 * hidden + 32 * cells)) + 4 * pairs * per_pair


class Widths:
    """Widths of a backbone that decide what a layer keeps for its backward pass.

    Args:
        model: read for its configuration and the names of its parameters and modules.
        element: bytes per number.
    """

    def __init__(self, model, element: int):
        config = model.config.get_text_config()

        def get(name: str, default: int = 0) -> int:
            return getattr(config, name, None) or default

        self.element = element
        self.layers = config.num_hidden_layers
        self.hidden = config.hidden_size
        self.vocabulary = config.vocab_size
        self.rms = any("RMSNorm" in type(module).__name__ for module in model.modules())

        # attention: query, key, value and output; in padded batches key and value for every head
        heads = config.num_attention_heads
        head = get("head_dim", self.hidden // heads)
        self.attention = 2 * head * (heads + get("num_key_value_heads", heads))
        self.attention_padded = 4 * head * heads
        self.latent = get("q_lora_rank") + get("kv_lora_rank")
        if get("kv_lora_rank"):
            # query, key, the tensor that holds keys and values (values are a view of it), output
            key, value = get("qk_nope_head_dim"), get("v_head_dim")
            query_and_key = 2 * (key + get("qk_rope_head_dim"))
            self.attention = heads * (query_and_key + key + value + value)
            self.attention_padded = self.attention

        # feed-forward layers; expert_inner: of all experts that see a token
        self.gated = any(".gate_" in name for name, _ in model.named_parameters())
        self.inner = (
            get("intermediate_size") or get("hidden_dim") or get("n_inner", 4 * self.hidden)
        )
        self.experts = get("num_experts_per_tok")
        self.expert_inner = get("moe_intermediate_size", self.inner) * (
            self.experts + get("n_shared_experts")
        )
        self.dense_layers = get("first_k_dense_replace") if self.experts else self.layers


def layer_bytes(widths: Widths, full: bool, dense: bool, mask: int) -> float:
    """Bytes per position that one layer keeps for its backward pass.

    With d the hidden size and s bytes per number; "full" where all weights are trained:

    norms      two of width d. RMS: the input in float32, 4d; full: scaled and weighted, 2sd.
               Layer norm: sd; full: sd more.
    attention  s (query + key + value + output); the log-sum-exp is small and left out. Latents are
               kept as a norm of their width. In padded batches keys and values are repeated for
               every head, and `mask` places of the mask are kept, s each.
    inner      s times the inner width: gate, its activation and up where gated, else once; full:
               the product or the activation, once more.
    experts    the same for each expert of a token, and its input and output, 2sd.
    """
    element = widths.element

    def norm(width: int) -> int:
        if widths.rms:
            return 4 * width + (2 * element * width if full else 0)
        return element * width * (2 if full else 1)

    attention = widths.attention_padded + mask if mask else widths.attention
    inner = (3 if widths.gated else 1) + full
    feed_forward = inner * widths.inner
    if not dense:
        feed_forward = inner * widths.expert_inner + 2 * widths.hidden * widths.experts
    return 2 * norm(widths.hidden) + norm(widths.latent) + element * (attention + feed_forward)


def adapter_bytes(adapted: dict[str, tuple[int, int]], element: int, lora: LoraOptions) -> int:
    """Bytes per position that the adapters of all layers keep: r outputs each, and their inputs.

    Adapters compute in float32. Each keeps a copy of its input where weights have 16 bits, and a
    copy with a mask of 1 byte where there is dropout; else layers of the same input share it.
    """
    inputs = [(name.rpartition(".")[0], width) for name, (width, _) in adapted.items()]
    shared = not lora.dropout and element == 4
    width = sum(width for _, width in (set(inputs) if shared else inputs))
    return 4 * lora.r * len(adapted) + (5 if lora.dropout else 4) * width


def backbone_activations(
    widths: Widths, tuning: str, adapters: int, rows: int, length: int, checkpointing: bool
) -> float:
    """Bytes that the backbone holds at the worst moment of a step of rows x length positions.

    All layers' `layer_bytes` and the adapters'. With checkpointing: every layer's input, and one
    layer whole. Frozen: one layer. Beside them the embedding, the last norm and the last states,
    and, where there is a backward pass, half a layer of gradients.
    """
    mask = length if rows > 1 else 0
    dense_layers = min(widths.dense_layers, widths.layers)
    all_layers: float = adapters
    largest: float = 0
    for dense, layers in ((True, dense_layers), (False, widths.layers - dense_layers)):
        if layers:
            layer = layer_bytes(widths, tuning == "full", dense, mask)
            all_layers += layer * layers
            largest = max(largest, layer)
    largest += adapters / widths.layers
    outside = widths.hidden * (3 * widths.element + (4 if widths.rms else 0))
    if tuning == "frozen":
        return rows * length * (largest + outside)
    if checkpointing:
        all_layers = widths.element * widths.hidden * widths.layers + largest
    return rows * length * (all_layers + outside + largest / 2)


def available(device=None, root: str | Path = "/") -> int:
    """Free bytes: of the GPU, or of RAM within the limit of the process's cgroup.

    Args:
        device: a torch device; the GPU where there is one when None.
        root: folder that holds proc and sys.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # what the machine has free
    info = Path(root) / "proc/meminfo"
    lines = info.read_text().splitlines() if info.exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    free = free or [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    # what the group may still take
    limit = Path(root) / "sys/fs/cgroup/memory.max"
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        current = limit.with_name("memory.current")
        used = int(current.read_text()) if current.exists() else 0
        free.append(max(0, int(text) - used))
    return min(free)


def check(estimate: Estimate, available_bytes: int) -> None:
    """MemoryExceeded if the estimate is above `available_bytes`; the message says what would help,
    remedies for the largest part first.
    """
    if estimate.total <= available_bytes:
        return
    largest = estimate.largest
    remedies = sorted(estimate.remedies, key=lambda name: largest not in REMEDIES[name][0])
    raise MemoryExceeded(
        f"this run needs about {readable(estimate.total)} ({estimate.what}) and"
        f" {readable(available_bytes)} are available; the largest part is {largest},"
        f" {readable(getattr(estimate, largest))}: use "
        + " or ".join(REMEDIES[name][1] for name in remedies)
    )


def presets() -> dict[str, Path]:
    """Files of architectures of published sizes by name: runs/configs/*.json."""
    return {path.stem: path for path in sorted((checkout() / "runs" / "configs").glob("*.json"))}


def config_of(name: str):
    """The configuration of a preset, of a config.json, or of a backbone (`loading.config_of`).

    ValueError for a JSON file that does not exist or has no model_type.
    """
    path = presets().get(name, Path(name))
    if path.suffix != ".json":
        return loading.config_of(name)
    if not path.is_file():
        known = ", ".join(presets())
        raise ValueError(f"{name} does not exist; give a config.json, a backbone or one of {known}")
    fields = read_json(path)
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ValueError(f"{path.name} has no model_type; give a config.json of transformers")
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except loading.NOT_OF_TRANSFORMERS as error:
        about = " ".join(str(error).split())
        raise ValueError(f"{path.name} is no config.json of transformers ({about:.200})") from error


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit status 1 if the run does not fit here or cannot be estimated."""
    parser = argparse.ArgumentParser(
        prog="python -m plantlib.training.memory", description="estimate the memory of a run"
    )
    add = parser.add_argument
    add("backbone", help=f"folder, hub id, config.json or one of {', '.join(presets())}")
    add("--tuning", choices=TUNINGS, default="lora")
    add("--dtype", choices=loading.DTYPES, default="float32")
    add("--labels", dest="num_labels", type=int, required=True, help="number of labels")
    add("--tokens", type=int, default=512, help="tokens read per document")
    add("--window", type=int, help="tokens the backbone reads at a time; all by default")
    add("--batch", dest="batch_size", type=int, default=1, help="documents per step")
    add("--cells", dest="num_planted_cells", type=int, default=0, help="planted cells")
    add("--quantise", action="store_true", help="4-bit weights")
    text = "compute layers again in the backward pass"
    add("--checkpointing", dest="gradient_checkpointing", action="store_true", help=text)
    options = vars(parser.parse_args(arguments))
    try:
        expected = estimate(config_of(options.pop("backbone")), **options)
        print(expected.table())
        check(expected, available())
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
