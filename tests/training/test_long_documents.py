"""Long documents: windows that are read one at a time give the attention over the whole document.

docs/method.md, "Long documents", for a backbone that is trained. Gradients are the same too, and
memory holds one window: between windows (B, L) numbers are kept, and a window is read again in the
backward pass.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from plantlib import prepare
from plantlib.backbones import adapters, loading
from plantlib.backbones.features import standard_of
from plantlib.kernels.attention_bce import sparse_bce
from plantlib.model import streaming
from plantlib.model.plant_model import PlantConfig, PlantModel
from plantlib.planting import starts
from plantlib.training import artefacts
from plantlib.training.ingredients import build_model, teacher_of, use_score
from plantlib.training.options import RunConfig
from tests.conftest import OPERATIONS, WINDOW, save_backbone, tiny_tokenizer
from tests.tolerances import assert_within_rounding

LENGTHS = {
    "one window": (3, WINDOW),
    "ragged": (5 * WINDOW + 3, 0, 1, WINDOW + 1),
    "all long": (3 * WINDOW, 2 * WINDOW + 5),
}


def packed(lengths, vocabulary=60, seed=0):
    """Token ids (S,), offsets (B + 1,), and two positive labels per document."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (sum(lengths),), generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = torch.arange(len(lengths)).repeat_interleave(2)
    return ids, offsets, {"label_rows": rows, "label_columns": torch.arange(len(rows)) % 7}


def trainable(prepared, backbone_folder, *, keep=None, overlap=0) -> PlantModel:
    """A planted model whose backbone has adapters with random weights."""
    teacher = teacher_of(prepared)
    model = build_model(prepared, teacher, RunConfig(keep=keep))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts, "INIT_STD", 0.3)
        starts.plant(model.decoder, "lookup+score", teacher, prepared.train_labels)
    use_score(model, ["lookup", "score"], teacher, prepared)
    model.attach_backbone(loading.load(backbone_folder, dropout=0.0, overlap=overlap))
    model.backbone = adapters.add_lora(
        model.backbone.requires_grad_(False), adapters.LoraOptions(r=2, dropout=0.0)
    )
    for name, p in model.backbone.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model.train()


def gradients(model, loss) -> dict[str, torch.Tensor]:
    """The gradient of each trained parameter by name."""
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("overlap", [0, 3], ids=["no overlap", "overlap 3"])
@pytest.mark.parametrize("keep", [None, 4], ids=["all", "keep 4"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_streamed_equals_read_at_once(lengths, keep, overlap, prepared, backbone_folder):
    """Logits and every gradient, against a model that encodes all windows first."""
    model = trainable(prepared, backbone_folder, keep=keep, overlap=overlap)
    ids, offsets, cells = packed(lengths)
    at_once = model(ids, offsets, hidden_states=model.encode(ids, offsets), **cells)
    expected = gradients(model, at_once.loss)
    logits = model.decoder.finish(
        streaming.stream(model, ids, offsets), model.teacher_score(ids, offsets)
    )
    assert_within_rounding(logits, at_once.logits, OPERATIONS)
    loss = sparse_bce(logits, rows=cells["label_rows"], columns=cells["label_columns"])
    streamed = gradients(model, loss)
    assert set(streamed) == set(expected) and any("lora_" in name for name in streamed)
    for name, gradient in expected.items():
        # forward and backward
        assert_within_rounding(streamed[name], gradient, 2 * OPERATIONS, name=name)


def test_only_long_documents_are_streamed(prepared, backbone_folder, monkeypatch):
    model = trainable(prepared, backbone_folder)
    stream = streaming.stream
    calls = []
    monkeypatch.setattr(streaming, "stream", lambda *a: calls.append(1) or stream(*a))
    for lengths, count in (((WINDOW, 2), 0), ((WINDOW + 1, 2), 1)):
        ids, offsets, cells = packed(lengths)
        output = model(ids, offsets, **cells)
        assert len(calls) == count
        assert output.loss.requires_grad and not output.logits.requires_grad
        logits = model(ids, offsets).logits.detach()
        assert_within_rounding(logits, output.logits, OPERATIONS)


def test_a_window_is_read_again_in_the_backward_pass_and_not_before(prepared, backbone_folder):
    """One window of each document at a time, in two forward passes where gradients are computed
    and in one where they are not.
    """
    model = trainable(prepared, backbone_folder)
    ids, offsets, cells = packed((4 * WINDOW, WINDOW))
    shapes = []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    loss = model(ids, offsets, **cells).loss
    assert shapes == [(2, WINDOW + 2)] + 3 * [(1, WINDOW + 2)]
    loss.backward()
    assert len(shapes) == 8
    with torch.inference_mode():
        model.eval()(ids, offsets)
    assert len(shapes) == 12


def saved_bytes(model, lengths, streamed: bool) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, parameters left out."""
    ids, offsets, cells = packed(lengths)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = None if streamed else model.encode(ids, offsets)
        loss = model(ids, offsets, hidden_states=hidden, **cells).loss
    assert loss.requires_grad
    return sum(saved.values())


def test_memory_grows_by_states_and_not_by_windows(prepared, backbone_folder):
    model = trainable(prepared, backbone_folder)
    short = saved_bytes(model, (10 * WINDOW,), streamed=True)
    long = saved_bytes(model, (40 * WINDOW,), streamed=True)
    at_once = saved_bytes(model, (40 * WINDOW,), streamed=False)
    assert long < at_once / 10
    # a window adds its ids and a few (B, L) states, and no tensor of tokens x hidden size
    state = 2 * 7 * 4  # log_sum_exp and value of one document, 7 labels, float32
    assert (long - short) / 30 < 12 * state + 20 * WINDOW


STEPS = """
import resource, sys, torch
from plantlib.backbones import adapters, loading
from plantlib.model.plant_model import PlantConfig, PlantModel
from tests.conftest import OPERATIONS
from tests.tolerances import assert_within_rounding

backbone = loading.load(sys.argv[1])
config = PlantConfig(hidden_size=128, num_tokens=backbone.num_tokens, num_labels=500)
model = PlantModel(config).attach_backbone(backbone)
model.backbone = adapters.add_lora(model.backbone.requires_grad_(False))
model.train()

def step(tokens):
    ids, offsets = torch.randint(5, 60, (tokens,)), torch.tensor([0, tokens])
    cells = {"label_rows": torch.tensor([0]), "label_columns": torch.tensor([3])}
    model(ids, offsets, **cells).loss.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = step(2_000)
after = step(20_000)
print((after - before) // 1024)
assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)
"""


def test_twenty_thousand_tokens_train_within_a_stated_memory(tmp_path):
    """A forward and backward pass through every window of one document of 20,000 tokens takes
    little more than 2,000 tokens: at most a quarter of what the further tokens' activations hold.

    It runs in its own process, and the allocator gives freed blocks back, so the peak is what was
    in use.
    """
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(10**30)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
    )
    folder = save_backbone(tmp_path / "llama", LlamaModel(config), tokenizer)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, folder],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # a layer's queries, keys, values and mixed states, and three products of its perceptron
    numbers = 2 * (4 * config.hidden_size + 3 * config.intermediate_size)
    activations = 18_000 * numbers * 4 / 2**20
    assert int(done.stdout.split()[-1]) < activations / 4


def test_states_of_an_unusual_spread_are_standardised(tmp_path, corpus):
    """Hidden states ten times the usual size are scaled to the usual spread, in the saved model
    too.
    """
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=WINDOW + 2,
        pad_token_id=0,
    )
    backbone = LlamaModel(config)
    backbone.norm.weight.data *= 10
    folder = save_backbone(tmp_path / "llama", backbone, tokenizer)
    for frozen in (True, False):
        reading = {"max_tokens": None, "root": tmp_path / str(frozen), "frozen": frozen}
        prepared = prepare(corpus, backbone=folder, progress=False, **reading)
        assert artefacts.standard(prepared) is not None
        model = build_model(prepared, teacher_of(prepared))
        model.attach_backbone(artefacts.load_backbone(prepared))
        ids, offsets, _ = packed((30, 12))
        states = model.standardise(model.encode(ids, offsets)).detach().numpy()
        assert np.abs(states.mean(0)).max() < 0.3 and 0.2 < states.std(0).mean() < 0.4
    model.save_pretrained(tmp_path / "m")
    loaded = PlantModel.from_pretrained(tmp_path / "m")
    assert loaded.config.standardised and torch.equal(loaded.hidden_scale, model.hidden_scale)
    assert not PlantModel(PlantConfig(num_labels=2)).config.standardised

    # no scaling for a usual spread; a constant dimension has scale 0
    usual = np.random.default_rng(0).normal(0, 0.3, (50, 4))
    assert standard_of(usual) is None and standard_of(np.zeros((0, 4))) is None
    large = usual * 20 + 5
    standard = standard_of(np.column_stack([large, np.ones(50)]))
    assert standard.scale[-1] == 0
    assert_within_rounding(
        standard.shift[:4], large.mean(0).astype(np.float32), 50, size=np.abs(large).max()
    )
