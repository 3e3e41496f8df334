"""What is trained of a backbone: nothing (cached features), LoRA adapters, or everything; one interface for the three.

Realises METHOD.md section 4, "LoRA r 16 alpha 32 dropout .05". `open_backbone` makes a planted head and its backbone one model
to train; nothing is merged afterwards, so adapters stay adapters and are saved as such.
"""

from __future__ import annotations

from dataclasses import dataclass

from plantlib import adapters
from plantlib.adapters import LoraOptions

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
        raise ValueError("4-bit weights cannot be trained in full; use tuning='lora', or quantise=False")


def open_backbone(model, prepared, tuning: str, lora: LoraOptions, options: BackboneOptions) -> None:
    """Attach the backbone of `prepared`: "lora" adds adapters and freezes the rest, "full" trains all, "frozen" nothing."""
    check_tuning(tuning, options.quantise)
    backbone = prepared.load_backbone(
        dtype=options.dtype, dropout=options.dropout, quantise=options.quantise,
        gradient_checkpointing=options.gradient_checkpointing and tuning != "frozen",
    )  # fmt: skip
    model.attach_backbone(backbone)
    model.backbone.requires_grad_(tuning == "full")
    if tuning == "lora":
        model.backbone = adapters.add_lora(model.backbone, lora)


def trained_parameters(model) -> dict[str, int]:
    """Numbers of parameters: trained_parameters in all, those of the backbone, and all there are."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    backbone = sum(n for name, n in trained.items() if name.startswith("backbone."))
    total = sum(p.numel() for p in model.parameters())
    return {"trained_parameters": sum(trained.values()), "trained_in_backbone": backbone, "parameters": total}
