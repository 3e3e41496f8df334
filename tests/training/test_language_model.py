"""Domain adaptation: the perplexity of dev text falls, test text is never read, and what follows is
computed with the adapter.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from plantlib import prepare
from plantlib.backbones import adapters, loading, windows
from plantlib.training import language_model
from plantlib.training.language_model import AdaptConfig, adapt
from plantlib.utils.io import read_json
from tests.conftest import WINDOW, tiny_tokenizer
from tests.tolerances import assert_as_exact

# on the longest way through the base: three products over 24 units, one over 32, and attention
MULTIPLICATIONS = 3 * 24 + 32 + WINDOW


@pytest.fixture(scope="module", params=["causal", "masked"])
def base(request, tmp_path_factory):
    """(objective, folder): a tiny causal LM or encoder saved with its language-modelling head."""
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": WINDOW + 2,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
    }
    if request.param == "causal":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = BertForMaskedLM(BertConfig(**sizes))
    folder = tmp_path_factory.mktemp(request.param) / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return request.param, str(folder)


@pytest.fixture(scope="module")
def adapted(base, corpus, tmp_path_factory):
    """(objective, base folder, adapter folder, what `adapt` returned)."""
    objective, base_folder = base
    folder = tmp_path_factory.mktemp("adapted") / "adapter"
    config = AdaptConfig(epochs=6, block=12, batch_size=16, learning_rate=0.05)
    lora = adapters.LoraOptions(r=8, dropout=0.0)
    about = adapt(corpus, base_folder, folder, config=config, lora=lora, progress=False)
    return objective, base_folder, folder, about


def test_perplexity_of_dev_text_falls(adapted):
    objective, _, folder, about = adapted
    assert about["objective"] == objective and about["documents"] == 60
    # the base is random and its hidden size is 24, so adapters cannot do much more
    assert 1 < about["perplexity_after"] < 0.97 * about["perplexity_before"]
    assert read_json(folder / "adaptation.json")["perplexity_after"] == about["perplexity_after"]
    files = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} >= files
    assert not list(folder.parent.glob(".*")), "no checkpoints are left"


def test_an_adapter_folder_is_a_backbone(adapted, corpus, tmp_path):
    """Its states differ from the base's, in cached features too, and so does its fingerprint."""
    _, base_folder, folder, _ = adapted
    ids, offsets = torch.arange(5, 25), torch.tensor([0, 8, 20])
    base = loading.load(base_folder)
    base_states = windows.encode(base, ids, offsets).detach()
    states = windows.encode(loading.load(str(folder)), ids, offsets).detach()
    assert not torch.allclose(base_states, states, atol=1e-3)
    assert loading.fingerprint(base_folder) != loading.fingerprint(str(folder))

    # the merged adapter computes what peft computes with it: it errs as much from float64
    model = adapters.load_adapter(loading.load(base_folder).model, folder).eval()
    unmerged = loading.Backbone("x", model, base.tokenizer, base.window)
    merged = loading.load(str(folder))
    draws = [torch.randint(5, 60, (20,)) for _ in range(8)]
    found, peft = (
        [windows.encode(backbone, draw, offsets).detach() for draw in draws]
        for backbone in (merged, unmerged)
    )
    model.double()
    exact = [windows.encode(unmerged, draw, offsets).detach() for draw in draws]
    assert_as_exact(found, peft, exact, operations=MULTIPLICATIONS, name="merged")

    # cached features
    prepared = prepare(corpus, backbone=str(folder), max_tokens=None, root=tmp_path, progress=False)
    i = int(prepared.rows["train"][0])
    ids = torch.from_numpy(prepared.tokens[i]).long()
    states = windows.encode(loading.load(str(folder)), ids, torch.tensor([0, len(ids)])).detach()
    np.testing.assert_allclose(prepared.features.document(i), states.numpy(), rtol=1e-2, atol=1e-2)


def test_test_text_is_not_read(base, corpus, tmp_path, monkeypatch):
    """With other test documents the adapter is the same to the bit."""
    monkeypatch.setattr(language_model, "perplexity", lambda *_: 1.0)
    weights = []
    for marker in ("", " comet comet comet"):
        texts = [
            text + marker * (split == "test")
            for text, split in zip(corpus.texts, corpus.split, strict=True)
        ]
        changed = dataclasses.replace(corpus, texts=texts)
        folder = tmp_path / f"a{len(marker)}"
        adapt(changed, base[1], folder, config=AdaptConfig(block=12), progress=False)
        weights.append((folder / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_backbone_without_its_head_is_refused(corpus, backbone_folder, tmp_path):
    with pytest.raises(ValueError, match="was saved without its language-modelling head"):
        adapt(corpus, backbone_folder, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_an_adapted_backbone_is_not_adapted_again(adapted, corpus, tmp_path):
    _, base_folder, folder, _ = adapted
    message = f"is an adapted backbone already; adapt '{base_folder}'"
    with pytest.raises(ValueError, match=message):
        adapt(corpus, str(folder), tmp_path / "a", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "next"}, "objective='next' is not known"),
        ({"block": 1}, "block=1"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**options)


def test_too_little_text_and_no_dev_text_are_refused(base, corpus, tmp_path):
    long = AdaptConfig(block=100_000)
    message = "an example takes 100000; give more text or a smaller block"
    with pytest.raises(ValueError, match=message):
        adapt(corpus, base[1], tmp_path / "a", config=long, progress=False)
    split = np.where(corpus.split == "dev", "train", corpus.split)
    without_dev = dataclasses.replace(corpus, split=split)
    with pytest.raises(ValueError, match="perplexity is measured on dev text and there is none"):
        adapt(without_dev, base[1], tmp_path / "a", progress=False)
