"""A PlantModel on disk: the whole model, or head and adapters, and its model card.

The folder of a model with LoRA holds `model.safetensors` (without the backbone), `adapter/` (in
peft's format) and the tokenizer. The backbone is not copied: it is loaded again from where it came
from, and its fingerprint must agree. Only safetensors and JSON are read.
"""

from __future__ import annotations

from pathlib import Path

import torch

from plantlib.backbones import adapters, loading
from plantlib.data import privacy
from plantlib.utils.io import atomic_path, read_json, write_json
from plantlib.utils.progress import without_library_bars

ADAPTER = "adapter"
WORDS = "words.json"


def save(model, folder: Path, write, state_dict=None, **kwargs) -> None:
    """Save `model` to `folder`; `write` is transformers' save_pretrained and gets `kwargs`.

    state_dict: weights of a Trainer's checkpoint, which gets neither adapters nor a card. Raises
    PrivacyError for a model of a credentialed corpus outside the data folder.
    """
    privacy.check_model_folder(model.record, folder)
    checkpoint = state_dict is not None
    adapted = not checkpoint and adapters.is_adapted(model.backbone)
    if adapted:
        _name_base(model)
        model.config.backbone_saved = "adapter"
        state_dict = {n: t for n, t in model.state_dict().items() if not n.startswith("backbone.")}
    try:
        write(folder, **({} if state_dict is None else {"state_dict": state_dict}), **kwargs)
    finally:
        model.config.backbone_saved = "whole"
    if adapted:
        adapters.save_adapter(model.backbone, folder / ADAPTER)
    if model.word_score is not None and not checkpoint:
        write_json(folder / WORDS, model.word_score.words)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    if model.record is not None and not checkpoint:
        write_card(model.record, folder)


def _name_base(model) -> None:
    """Name the backbone in the adapters' configuration, and its fingerprint in the model's."""
    source = model.backbone_source
    for config in model.backbone.peft_config.values():
        config.base_model_name_or_path = source
    model.config.backbone_fingerprint = loading.fingerprint(source)


def load(read, path, backbone: str | None = None, *args, **kwargs):
    """The model in the folder `path`; `read` is transformers' from_pretrained.

    backbone: see `PlantModel.from_pretrained`. args and kwargs go to `read`.
    """
    with without_library_bars():
        model = read(path, *args, **{"use_safetensors": True, "dtype": torch.float32} | kwargs)
    loading.own_memory(model)
    config = model.config
    if model.word_score is not None:
        model.word_score.set_words(read_json(Path(path) / WORDS))
    if config.backbone_saved == "adapter":
        return _put_on_backbone(model, Path(path), backbone)
    if model.backbone is not None:
        from transformers import AutoTokenizer

        model.backbone.to(getattr(torch, config.backbone_dtype))
        model.tokenizer = AutoTokenizer.from_pretrained(path)
        model.backbone_source = str(path)
    return model


def _put_on_backbone(model, path: Path, backbone: str | None):
    """Load the backbone of the adapters in `path`, check it and put them on."""
    from transformers import AutoTokenizer

    # the right backbone, by its fingerprint
    name = adapters.base_of(path / ADAPTER)
    source, expected = backbone or name, model.config.backbone_fingerprint
    try:
        actual = loading.fingerprint(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the adapters in {path} belong to the backbone {name!r}, which is not here ({error});"
            " pass backbone= with its folder or hub id"
        ) from error
    if actual != expected:
        raise ValueError(
            f"the adapters in {path} were trained on a backbone of fingerprint {expected},"
            f" {source!r} has {actual}; pass backbone= with the one they were trained on"
        )
    # read as in training, with the adapters around it
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(path)
    reading = {"window": config.window, "overlap": config.overlap}
    model.attach_backbone(
        loading.load(source, tokenizer=tokenizer, dtype=config.backbone_dtype, **reading)
    )
    model.backbone = adapters.load_adapter(model.backbone, path / ADAPTER)
    return model.eval()


CARD = """---
library_name: plantlib
pipeline_tag: text-classification
tags: [plant, multi-label, label-attention, planted-attention]
---

# {id}

A PLANT model: start `{system}`, backbone `{backbone}`, tuning `{tuning}`, seed {seed}.

Trained on **{name}**{synthetic}: {train:,} training, {dev:,} dev and \
{test:,} test documents; label space: {labels:,} {label_space}.

```python
from plantlib import PlantModel
PlantModel.from_pretrained("this folder").predict(["..."], k=8)
```

Scores are calibrated on dev; the epoch was chosen on dev and test was read once.

| test metric | value |
| --- | ---: |
{metrics}

Run of {created} on {cores} cores of {cpu}; parameters trained: {sizes}. All options and metrics: \
`run.json`.

Not for clinical decisions: a ranking of codes for a person to check.
"""


def write_card(record, folder: str | Path) -> Path:
    """Write README.md and run.json of a model folder from its RunRecord; the path of the card.

    PrivacyError if the card would hold text of a credentialed corpus.
    """
    data, metrics, path = record.dataset, record.metrics, Path(folder) / "README.md"
    card = CARD.format(
        id=record.id,
        system=record.system,
        backbone=record.backbone,
        tuning=record.params.get("tuning", "frozen"),
        seed=record.seed,
        synthetic=" (synthetic)" if data["synthetic"] else "",
        **{key: data[key] for key in ("name", "train", "dev", "test", "labels", "label_space")},
        metrics="\n".join(
            f"| {name} | {value:.4f} |"
            for name, value in sorted(metrics.items())
            if value is not None
        ),
        created=record.created,
        cores=record.environment["cores"],
        cpu=record.environment["cpu"],
        sizes=_sizes(record.model_size),
    )
    if data.get("credentialed"):
        privacy.check(card.splitlines(), path)
    with atomic_path(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    run = {"id": record.id, "params": record.params, "metrics": metrics, "dataset": data}
    write_json(Path(folder) / "run.json", run)
    return path


def _sizes(sizes) -> str:
    """A record's number of trained parameters, or its numbers by name, as text."""
    if not isinstance(sizes, dict):
        return f"{sizes or 0:,}"
    return (
        f"{sizes['trained_parameters']:,} ({sizes.get('trained_in_backbone', 0):,} of them in the"
        " backbone)"
    )
