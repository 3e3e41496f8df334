"""Domain-adaptive step: perplexity of dev text falls, test text is never read, and the adapter is
the one used afterwards.
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


@pytest.fixture(scope="module", params=["causal", "masked"])
def folder(request, tmp_path_factory):
    """A tiny causal LM or encoder saved with its language-modelling head."""
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer, sizes = (
        tiny_tokenizer(),
        {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": WINDOW + 2,
        },
    )
    kind = {"causal": (LlamaForCausalLM, LlamaConfig), "masked": (BertForMaskedLM, BertConfig)}[
        request.param
    ]
    model = kind[0](kind[1](**sizes, vocab_size=len(tokenizer), pad_token_id=0))
    path = tmp_path_factory.mktemp(request.param) / "base"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return request.param, str(path)


@pytest.fixture(scope="module")
def adapted(folder, corpus, tmp_path_factory):
    """(objective, base folder, adapter folder, what `adapt` found)."""
    out = tmp_path_factory.mktemp("adapted") / "adapter"
    config = AdaptConfig(epochs=6, block=12, batch_size=16, learning_rate=0.05)
    found = adapt(
        corpus,
        folder[1],
        out,
        config=config,
        lora=adapters.LoraOptions(r=8, dropout=0.0),
        progress=False,
    )
    return *folder, out, found


def test_perplexity_of_dev_text_falls(adapted):
    objective, _, out, found = adapted
    assert found["objective"] == objective and found["documents"] == 60
    # adapters alone cannot do more for a random base of hidden size 24
    assert 1 < found["perplexity_after"] < 0.97 * found["perplexity_before"]
    assert read_json(out / "adaptation.json")["perplexity_after"] == found["perplexity_after"]
    assert {p.name for p in out.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
    }
    assert not list(out.parent.glob(".*")), "no checkpoints are left"


def test_adapter_is_used_afterwards(adapted, corpus, tmp_path):
    """Given as a backbone the folder reads differently from its base, in cached features too, and
    keeps its own fingerprint.
    """
    _, base, out, _ = adapted
    ids, offsets = torch.arange(5, 25), torch.tensor([0, 8, 20])
    states = {
        name: windows.encode(loading.load(str(name)), ids, offsets).detach() for name in (base, out)
    }
    assert not torch.allclose(states[base], states[out], atol=1e-3)
    by_hand = adapters.load_adapter(loading.load(base).model, out).eval()
    bare = loading.load(base)
    wanted = windows.encode(
        loading.Backbone("x", by_hand, bare.tokenizer, bare.window), ids, offsets
    ).detach()
    torch.testing.assert_close(states[out], wanted, rtol=1e-4, atol=1e-5)
    assert loading.fingerprint(base) != loading.fingerprint(str(out))
    prepared = prepare(corpus, backbone=str(out), max_tokens=None, root=tmp_path, progress=False)
    i = int(prepared.rows["train"][0])
    direct = (
        windows.encode(
            loading.load(str(out)),
            torch.from_numpy(prepared.tokens[i]).long(),
            torch.tensor([0, len(prepared.tokens[i])]),
        )
        .detach()
        .numpy()
    )
    np.testing.assert_allclose(prepared.features.document(i), direct, rtol=1e-2, atol=1e-2)


def test_only_training_and_unlabelled_text_is_learnt(folder, corpus, tmp_path, monkeypatch):
    """Test documents may say anything: the adapter is the same to the bit."""
    monkeypatch.setattr(language_model, "perplexity", lambda *a: 1.0)
    found = []
    for marker in ("", " comet comet comet"):
        texts = [
            t + marker * (s == "test") for t, s in zip(corpus.texts, corpus.split, strict=True)
        ]
        out = tmp_path / f"a{len(marker)}"
        adapt(
            dataclasses.replace(corpus, texts=texts),
            folder[1],
            out,
            config=AdaptConfig(block=12),
            progress=False,
        )
        found.append((out / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_backbone_without_head_is_refused(corpus, backbone_folder, tmp_path):
    with pytest.raises(ValueError, match="was saved without its language-modelling head"):
        adapt(corpus, backbone_folder, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_an_adapted_backbone_is_not_adapted_again(adapted, corpus, tmp_path):
    _, base, out, _ = adapted
    with pytest.raises(ValueError, match=f"is an adapted backbone already; adapt '{base}'"):
        adapt(corpus, str(out), tmp_path / "a", progress=False)


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


def test_too_little_text_and_no_dev_are_refused(folder, corpus, tmp_path):
    with pytest.raises(
        ValueError, match="an example takes 100000; give more text or a smaller block"
    ):
        adapt(corpus, folder[1], tmp_path / "a", config=AdaptConfig(block=100_000), progress=False)
    split = np.where(corpus.split == "dev", "train", corpus.split)
    with pytest.raises(ValueError, match="perplexity is stated on dev text and there is none"):
        adapt(dataclasses.replace(corpus, split=split), folder[1], tmp_path / "a", progress=False)
