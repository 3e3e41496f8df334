"""What a PlantModel leaves on disk: the whole model, or the head beside adapters in peft's own
format; and its model card.

A folder of a model with LoRA holds `model.safetensors` (decoder and teacher score alone),
`adapter/` (adapter_model.safetensors and adapter_config.json, which peft reads without this
library) and the tokenizer. The backbone itself is not copied: it is loaded again from where it came
from and its fingerprint must agree. Only safetensors and JSON are read.
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
    """Save `model` to `folder`; `write` is transformers' save_pretrained, a given state_dict a
    Trainer's checkpoint.
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
    """Write into the adapter's configuration which backbone it belongs to, and its fingerprint into
    the model's.
    """
    source = model.backbone_source
    for config in model.backbone.peft_config.values():
        config.base_model_name_or_path = source
    model.config.backbone_fingerprint = loading.fingerprint(source)


def load(read, path, backbone: str | None = None, *args, **kwargs):
    """The model in `path`; `read` is transformers' from_pretrained."""
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
        model.tokenizer, model.backbone_source = AutoTokenizer.from_pretrained(path), str(path)
    return model


def _put_on_backbone(model, path: Path, backbone: str | None):
    """Load the backbone the adapters in `path` belong to, check it and put them on."""
    from transformers import AutoTokenizer

    named = adapters.base_of(path / ADAPTER)
    source, wanted = backbone or named, model.config.backbone_fingerprint
    try:
        found = loading.fingerprint(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the adapters in {path} belong to the backbone {named!r}, which is not here ({error});"
            " pass backbone= with its folder or hub id"
        ) from error
    if found != wanted:
        raise ValueError(
            f"the adapters in {path} were trained on a backbone of fingerprint {wanted}, {source!r}"
            f" has {found}; pass backbone= with the one they were trained on"
        )
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(path)
    reading = {"window": config.window, "overlap": config.overlap}
    model.attach_backbone(
        loading.load(source, tokenizer=tokenizer, dtype=config.backbone_dtype, **reading)
    )
    model.backbone = adapters.load_adapter(model.backbone, path / ADAPTER)
    return model.eval()


def write_card(record, folder: str | Path) -> Path:
    """README.md of a model folder, every number from the run's record; nothing is typed by hand."""
    data, metrics, path = record.dataset, record.metrics, Path(folder) / "README.md"
    shown = [(k, metrics[k]) for k in sorted(metrics) if metrics[k] is not None]
    lines = [
        "---",
        "library_name: plantlib",
        "pipeline_tag: text-classification",
        "tags: [plant, multi-label, label-attention, planted-attention]",
        "---",
        "",
        f"# {record.id}",
        "",
        (
            f"A PLANT model: start `{record.system}`, backbone `{record.backbone}`, tuning "
            f"`{record.params.get('tuning', 'frozen')}`, seed {record.seed}."
        ),
        "",
        (
            f"Trained on **{data['name']}**{' (synthetic)' if data['synthetic'] else ''}:"
            f" {data['train']:,} training, {data['dev']:,} dev and {data['test']:,} test documents;"
            f" label space: {data['labels']:,} {data['label_space']}."
        ),
        "",
        "```python",
        "from plantlib import PlantModel",
        'PlantModel.from_pretrained("this folder").predict(["..."], k=8)',
        "```",
        "",
        "Scores are calibrated on dev; the epoch was chosen on dev and test was read once.",
        "",
        "| test metric | value |",
        "| --- | ---: |",
        *(f"| {k} | {v:.4f} |" for k, v in shown),
        "",
        (
            f"Run of {record.created} on {record.environment['cores']} cores of"
            f" {record.environment['cpu']}; parameters trained: {_sizes(record.model_size)}. All"
            " options and metrics: `run.json`."
        ),
        "",
        "Not for clinical decisions: a ranking of codes for a person to check.",
    ]
    if data.get("credentialed"):
        privacy.check(lines, path)
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        Path(folder) / "run.json",
        {"id": record.id, "params": record.params, "metrics": metrics, "dataset": data},
    )
    return path


def _sizes(sizes) -> str:
    if not isinstance(sizes, dict):
        return f"{sizes or 0:,}"
    return (
        f"{sizes['trained_parameters']:,} ({sizes.get('trained_in_backbone', 0):,} of them in the"
        " backbone)"
    )
