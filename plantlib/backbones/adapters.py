"""LoRA on any backbone: which layers by architecture, wrapping, and adapters saved as adapters
(peft's own format).

Realises METHOD.md section 4's "LoRA r 16, alpha 32, dropout .05" and its list of targets. Silent
partial matches are an error: every listed target must match a linear layer, and what must stay
frozen (DeepSeek's router and experts) is never matched.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from plantlib.utils.io import read_json

TUNINGS = ("frozen", "lora", "full")


@dataclass(frozen=True)
class BackboneOptions:
    """How a backbone is loaded for training; see `backbones.load`."""

    dtype: str = "float32"
    dropout: float | None = 0.0
    quantise: bool = False
    gradient_checkpointing: bool = False


def check_tuning(tuning: str, quantise: bool) -> None:
    """ValueError for a tuning that is not known, and for one that 4-bit weights cannot have."""
    if tuning not in TUNINGS:
        raise ValueError(f"tuning={tuning!r} is not known; use one of {', '.join(TUNINGS)}")
    if tuning == "full" and quantise:
        raise ValueError(
            "4-bit weights cannot be trained in full; use tuning='lora', or quantise=False"
        )


def open_backbone(
    model, prepared, tuning: str, lora: LoraOptions, options: BackboneOptions
) -> None:
    """Attach the backbone of `prepared`: "lora" adds adapters and freezes the rest, "full" trains
    all, "frozen" nothing.
    """
    check_tuning(tuning, options.quantise)
    backbone = prepared.load_backbone(
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
    """Numbers of parameters: trained_parameters in all, those of the backbone, and all there are."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    backbone = sum(n for name, n in trained.items() if name.startswith("backbone."))
    total = sum(p.numel() for p in model.parameters())
    return {
        "trained_parameters": sum(trained.values()),
        "trained_in_backbone": backbone,
        "parameters": total,
    }


CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


# a list of targets by `config.model_type`; every one of them must match, `lora_targets` refuses
# otherwise
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "mistral",
            "llama",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "olmo2",
            "smollm3",
        ),
        ATTENTION,
    ),
    "phi3": ("qkv_proj", "o_proj"),
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        ("query", "key", "value", "output.dense"),
    ),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
}


@dataclass(frozen=True)
class LoraOptions:
    """LoRA's sizes. targets None takes the architecture's own list."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"r={self.r}, dropout={self.dropout}: give a rank of at least 1 and a dropout in"
                " [0, 1)"
            )


def linear_layers(model) -> list[str]:
    """The last two parts of the names of all linear layers, sorted."""
    return sorted({".".join(name.split(".")[-2:]) for name in _linear_names(model)})


def is_target(name: str, target: str) -> bool:
    """Whether LoRA's `target` means the layer `name`: all of it or its last parts, as peft matches."""
    return name == target or name.endswith("." + target)


def lora_targets(model, wanted: tuple[str, ...] | None = None) -> list[str]:
    """LoRA target names for `model`; raises ValueError with the model's linear layers when one of
    them matches nothing.
    """
    kind = model.config.model_type
    targets = list(wanted or LORA_TARGETS.get(kind, ()))
    if not wanted and kind == "deepseek_v3" and getattr(model.config, "q_lora_rank", None) is None:
        targets = ["q_proj", *targets[2:]]
    linear = _linear_names(model)
    missing = [t for t in targets if not any(is_target(n, t) for n in linear)]
    if not targets or missing:
        known = ", ".join(LORA_TARGETS)
        raise ValueError(
            f"no LoRA targets for {kind!r}:"
            f" {'unmatched ' + ', '.join(missing) if missing else 'known are ' + known}; pass"
            f" targets from its linear layers: {', '.join(linear_layers(model))}"
        )
    return targets


def _linear_names(model) -> list[str]:
    import torch

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def add_lora(model, options: LoraOptions = LoraOptions()):
    """Wrap `model` with LoRA adapters on its attention; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=lora_targets(model, options.targets),
    )
    with warnings.catch_warnings():
        # peft asks transformers for a name that is being renamed; nothing a user could act on
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def is_adapted(model) -> bool:
    """Whether `model` carries peft adapters."""
    return hasattr(model, "peft_config")


def save_adapter(model, folder: str | Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json, as peft does: loadable without this
    library.
    """
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    # peft adds an empty form of a model card; ours is written from the run's record
    (Path(folder) / "README.md").unlink(missing_ok=True)


def holds_adapter(path: str | Path) -> bool:
    """Whether `path` is a folder in peft's format."""
    return (Path(path).expanduser() / CONFIGURATION).is_file()


def base_of(folder: str | Path) -> str:
    """Name or path of the backbone that an adapter folder belongs to."""
    named = read_json(Path(folder).expanduser() / CONFIGURATION)["base_model_name_or_path"]
    if not named:
        raise ValueError(
            f"{folder}/{CONFIGURATION} names no base_model_name_or_path; write the backbone's name"
            " into it"
        )
    return named


def load_adapter(model, folder: str | Path, *, trainable: bool = False):
    """`model` wrapped with the adapter in `folder`; raises ValueError when the folder holds none."""
    from peft import PeftModel

    if not holds_adapter(folder):
        raise ValueError(
            f"{folder} has no adapter_config.json; give a folder written by save_adapter or peft"
        )
    if not (Path(folder) / WEIGHTS).exists():
        raise ValueError(
            f"{folder} has no adapter_model.safetensors; adapters are read from safetensors alone"
        )
    with warnings.catch_warnings():
        # a file whose names do not match only warns; here it is an error, below
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    _check_names(adapted, folder)
    return adapted


def _check_names(adapted, folder: str | Path) -> None:
    """ValueError when the file's names are not the model's: an adapter of a whole causal LM has one
    more part in each.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(Path(folder) / WEIGHTS, "pt") as f:
        found = set(f.keys())
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if found != wanted:
        first = sorted(found ^ wanted)[0]
        raise ValueError(
            f"the adapter in {folder} has {len(found)} tensors, this backbone takes {len(wanted)};"
            f" first difference {first!r}; adapt the backbone itself (AutoModel), not a model with"
            " a head around it"
        )
