"""Four families from text to a saved model: MIG, L2R, planting and LoRA, with random weights.

Mistral, LLaMA, Phi-3 with fused projections, and DeepSeek-V3 with low-rank projections and frozen
experts; docs/method.md, "Training". The backbones come from `weights.tiny_folder`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plantlib import RunConfig, prepare
from plantlib.backbones import adapters, loading, weights
from plantlib.model import saving
from plantlib.model.plant_model import PlantModel
from plantlib.planting.l2r import L2RConfig
from plantlib.training.options import TrainConfig
from plantlib.training.runs import run_start
from plantlib.utils.io import read_json
from tests.conftest import OPERATIONS
from tests.tolerances import assert_within_rounding

QUICK = RunConfig(
    tuning="lora",
    train=TrainConfig(epochs=1, batch_size=16, lr_backbone=0.01),
    l2r=L2RConfig(epochs=1),
)


@pytest.fixture(scope="module", params=list(weights.TINY_FAMILIES))
def road(request, corpus, tmp_path_factory):
    """(family, inputs, record, model, folder) of a LoRA run; documents are longer than a window."""
    folder = tmp_path_factory.mktemp(request.param)
    prepared = prepare(
        corpus,
        backbone=f"tiny-{request.param}",
        max_tokens=None,
        window=20,
        overlap=2,
        frozen=False,
        root=folder / "artefacts",
        progress=False,
    )
    record, model = run_start(prepared, "l2r", 0, config=QUICK, results=folder, progress=False)
    return request.param, prepared, record, model, folder


def test_run_ends_in_a_record(road):
    family, _, record, model, folder = road
    assert (folder / f"{record.id}.json").exists() and f"tiny-{family}-lora" in record.id
    assert record.metrics["p@1"] > 0 and record.teacher["l2r"]["ndcg@25"] > 0
    sizes = record.model_size
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert sizes["trained_in_backbone"] == lora and lora < 0.2 * sizes["parameters"]
    assert any(p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n), (
        "adapters were trained"
    )


def test_saved_as_adapters_and_head_and_loaded_again(road, tmp_path):
    family, prepared, record, model, _ = road
    folder = tmp_path / "m"
    model.save_pretrained(folder)
    names = {p.name for p in (folder / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert (
        read_json(folder / "adapter" / "adapter_config.json")["base_model_name_or_path"]
        == f"tiny-{family}"
    )
    backbone = sum(p.numel() for n, p in model.named_parameters() if n.startswith("backbone."))
    written = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    assert written < backbone, "the backbone is not copied"
    loaded = PlantModel.from_pretrained(folder)
    assert (loaded.config.window, loaded.config.overlap, loaded.training) == (20, 2, False)
    texts = prepared.corpus.texts[80:]
    assert loaded.predict(texts) == model.predict(texts)
    assert loaded.explain("the pulse was seen", "heart").top(1) == model.explain(
        "the pulse was seen", "heart"
    ).top(1)
    loaded.save_pretrained(tmp_path / "again")
    assert PlantModel.from_pretrained(tmp_path / "again").predict(texts) == model.predict(texts)
    assert (
        read_json(folder / "config.json")["backbone_saved"] == "adapter"
        and model.config.backbone_saved == "whole"
    )


def test_offsets_of_explanations_point_into_the_text(road):
    model = road[3]
    text = "Pulse  and valve, seen today; again?"
    explanation = model.explain(text, "heart")
    assert [text[slice(*s)] for s in explanation.spans] == [
        "Pulse",
        "and",
        "valve",
        ",",
        "seen",
        "today",
        ";",
        "again",
        "?",
    ]


def test_card_is_written_from_the_record(road, tmp_path):
    _, _, record, model, _ = road
    model.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m" / "README.md").read_text()
    assert (
        f"# {record.id}" in text
        and f"| p@1 | {record.metrics['p@1']:.4f} |" in text
        and "tuning `lora`" in text
    )
    run = read_json(tmp_path / "m" / "run.json")
    assert run["metrics"]["p@1"] == record.metrics["p@1"]
    assert run["history"] == record.history and run["times"] == record.times
    other = replace(record, metrics=record.metrics | {"p@1": 0.1234})
    assert "| p@1 | 0.1234 |" in saving.write_card(other, tmp_path / "m").read_text()


def test_another_backbone_under_the_adapters_is_refused(road, tmp_path):
    family, _, _, model, _ = road
    other = "tiny-phi3" if family != "phi3" else "tiny-llama"
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(
        ValueError, match=f"were trained on a backbone of fingerprint .*, '{other}' has"
    ):
        PlantModel.from_pretrained(tmp_path / "m", backbone=other)
    with pytest.raises(
        ValueError,
        match=f"belong to the backbone 'tiny-{family}', which is not here .*; pass backbone= with",
    ):
        PlantModel.from_pretrained(tmp_path / "m", backbone="nowhere")


@pytest.mark.parametrize("family", list(weights.TINY_FAMILIES))
def test_padding_and_missing_pad_token_change_nothing(family):
    """Padding is on the right whatever the tokenizer's side; without a pad token, id 0 is used."""
    from plantlib.backbones import windows

    ids, offsets = torch.tensor([*range(1000, 1012), 1000, 1001, 1002]), torch.tensor([0, 12, 15])
    states = []
    for side, pad in (("right", "[PAD]"), ("left", "[PAD]"), ("left", None)):
        backbone = loading.load(f"tiny-{family}")
        backbone.tokenizer.padding_side, backbone.tokenizer.pad_token = side, pad
        states.append(windows.encode(backbone, ids, offsets).detach())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    alone = windows.encode(backbone, ids[12:], torch.tensor([0, 3])).detach()
    assert_within_rounding(alone, states[0][12:], OPERATIONS)


@pytest.mark.parametrize("family", list(weights.TINY_FAMILIES))
def test_causal_models_see_the_past_alone(family):
    from plantlib.backbones import windows

    backbone = loading.load(f"tiny-{family}")
    assert windows.is_causal(backbone.model) and not windows.is_causal(loading.load("minilm").model)
    ids = torch.arange(1000, 1012)
    one, other = (
        windows.encode(backbone, x, torch.tensor([0, 12]))
        for x in (ids, torch.cat([ids[:-1], ids[:1]]))
    )
    assert_within_rounding(one[:-1], other[:-1], OPERATIONS)
    assert not torch.allclose(one[-1], other[-1])


def test_third_party_adapters_of_a_whole_language_model_are_refused(tmp_path):
    """Their tensors' names have one more part; peft would only warn and load nothing."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_config(loading.config_of("tiny-llama"))
    adapters.save_adapter(adapters.add_lora(whole), tmp_path / "a")
    with pytest.raises(ValueError, match="adapt the backbone itself"):
        adapters.load_adapter(loading.load("tiny-llama").model, tmp_path / "a")
