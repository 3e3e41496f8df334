"""LoRA on any backbone: its targets by architecture, wrapping, saving and loading in peft's format.

See docs/method.md, "Training". Every target must match a linear layer, otherwise an error names the
layers; what must stay frozen (DeepSeek's router and experts) is on no list. Also here: how much of
a backbone a run trains (`TUNINGS`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plantlib.utils.checks import check_fields
from plantlib.utils.io import read_json

TUNINGS = ("frozen", "lora", "full")
CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LLAMA_LIKE = "mistral llama qwen2 qwen3 gemma gemma2 gemma3_text olmo2 smollm3".split()
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")

# targets by `config.model_type`
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LLAMA_LIKE, ATTENTION),
    "phi3": ("qkv_proj", "o_proj"),
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    **dict.fromkeys(BERT_LIKE, ("query", "key", "value", "output.dense")),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
}


@dataclass(frozen=True)
class BackboneOptions:
    """How a backbone is loaded for training; see `loading.load`."""

    dtype: str = "float32"
    dropout: float | None = 0.0
    quantise: bool = False
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class LoraOptions:
    """LoRA's rank r, alpha and dropout; targets None takes the architecture's `LORA_TARGETS`."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None

    def __post_init__(self):
        check_fields(self)
        if self.r < 1 or not 0 <= self.dropout < 1:
            wanted = "give a rank of at least 1 and a dropout in [0, 1)"
            raise ValueError(f"r={self.r}, dropout={self.dropout}: {wanted}")


def check_tuning(tuning: str, quantise: bool) -> None:
    """ValueError for an unknown tuning, and for full tuning of 4-bit weights."""
    if tuning not in TUNINGS:
        raise ValueError(f"tuning={tuning!r} is not known; use one of {', '.join(TUNINGS)}")
    if tuning == "full" and quantise:
        fix = "use tuning='lora', or quantise=False"
        raise ValueError(f"4-bit weights cannot be trained in full; {fix}")


def open_backbone(
    model, load: Callable, tuning: str, lora: LoraOptions, options: BackboneOptions
) -> None:
    """Load a backbone, attach it to `model` and choose what of it is trained.

    Args:
        model: a PlantModel.
        load: loads the backbone, with keywords of `loading.load`.
        tuning: "frozen", "lora" (adapters are added and trained) or "full".
        lora: sizes of the adapters.
        options: how the backbone is loaded.

    Raises:
        ValueError: see `check_tuning`.
    """
    check_tuning(tuning, options.quantise)
    backbone = load(
        dtype=options.dtype,
        dropout=options.dropout,
        quantise=options.quantise,
        gradient_checkpointing=options.gradient_checkpointing and tuning != "frozen",
    )
    model.attach_backbone(backbone)
    model.backbone.requires_grad_(tuning == "full")
    if tuning == "lora":
        model.backbone = add_lora(model.backbone, lora)


def trained_parameters(model) -> dict[str, int]:
    """Numbers of parameters: trained, trained in the backbone, and all."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    backbone = sum(n for name, n in trained.items() if name.startswith("backbone."))
    total = sum(p.numel() for p in model.parameters())
    return {
        "trained_parameters": sum(trained.values()),
        "trained_in_backbone": backbone,
        "parameters": total,
    }


def linear_layers(model) -> list[str]:
    """The last two parts of the names of all linear layers, sorted."""
    return sorted({".".join(name.split(".")[-2:]) for name in _linear_names(model)})


def is_target(name: str, target: str) -> bool:
    """Whether `target` is the layer's `name` or its last parts, which is how peft matches."""
    return name == target or name.endswith("." + target)


def lora_targets(model, wanted: tuple[str, ...] | None = None) -> list[str]:
    """LoRA targets of `model`: `wanted`, or those of its architecture.

    ValueError, with the model's linear layers, if the architecture is unknown or a target matches
    no layer.
    """
    kind = model.config.model_type
    targets = list(wanted or LORA_TARGETS.get(kind, ()))
    if not wanted and kind == "deepseek_v3" and getattr(model.config, "q_lora_rank", None) is None:
        targets = ["q_proj", *targets[2:]]
    linear = _linear_names(model)
    missing = [t for t in targets if not any(is_target(n, t) for n in linear)]
    if not targets or missing:
        reason = (
            f"unmatched {', '.join(missing)}" if missing else f"known are {', '.join(LORA_TARGETS)}"
        )
        raise ValueError(
            f"no LoRA targets for {kind!r}: {reason}; pass targets from its linear layers:"
            f" {', '.join(linear_layers(model))}"
        )
    return targets


def _linear_names(model) -> list[str]:
    import torch

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def add_lora(model, options: LoraOptions = LoraOptions()):
    """`model` wrapped with LoRA adapters on its attention; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=lora_targets(model, options.targets),
    )
    with warnings.catch_warnings():
        # peft uses a name that transformers is about to rename
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def is_adapted(model) -> bool:
    """Whether `model` carries peft adapters."""
    return hasattr(model, "peft_config")


def save_adapter(model, folder: str | Path) -> None:
    """Write the adapters of `model` as peft does, so that peft alone can load them."""
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    # peft adds an empty model card; `saving.write_card` writes a real one
    (Path(folder) / "README.md").unlink(missing_ok=True)


def holds_adapter(path: str | Path) -> bool:
    """Whether `path` is a folder in peft's format."""
    return (Path(path).expanduser() / CONFIGURATION).is_file()


def base_of(folder: str | Path) -> str:
    """Name or path of the backbone that an adapter folder belongs to; ValueError if it has none."""
    about = read_json(Path(folder).expanduser() / CONFIGURATION)
    name = about.get("base_model_name_or_path") if isinstance(about, dict) else None
    if not name or not isinstance(name, str):
        fix = "write the backbone's name into it"
        raise ValueError(f"{folder}/{CONFIGURATION} names no base_model_name_or_path; {fix}")
    return name


def load_adapter(model, folder: str | Path, *, trainable: bool = False):
    """`model` wrapped with the adapter in `folder`.

    Raises:
        ValueError: the folder holds no adapter in safetensors, or one of another architecture.
    """
    from peft import PeftModel

    if not holds_adapter(folder):
        fix = "give a folder written by save_adapter or peft"
        raise ValueError(f"{folder} has no {CONFIGURATION}; {fix}")
    if not (Path(folder) / WEIGHTS).exists():
        fix = "adapters are read from safetensors alone"
        raise ValueError(f"{folder} has no {WEIGHTS}; {fix}")
    with warnings.catch_warnings():
        # peft only warns of names that do not match; `_check_names` raises an error
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    _check_names(adapted, folder)
    return adapted


def _check_names(adapted, folder: str | Path) -> None:
    """ValueError if the file's tensors are not named as the model's.

    An adapter of a causal LM with its head has one more part in each name.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(Path(folder) / WEIGHTS, "pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if stored != expected:
        raise ValueError(
            f"the adapter in {folder} has {len(stored)} tensors, this backbone takes"
            f" {len(expected)}; first difference {min(stored ^ expected)!r}; adapt the backbone"
            " itself (AutoModel), not a model with a head around it"
        )
