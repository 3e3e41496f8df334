"""Cached hidden states: the model's own, also after an interruption; another key is refused.

The file is filled in place, and progress is written down after each stretch of documents. An
interrupted run loses at most one stretch, and its file ends with the same bytes.
"""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig

from plantlib.backbones import features, loading, windows
from plantlib.backbones.features import cached_features
from plantlib.data.tokens import Ragged
from plantlib.kernels import machine
from plantlib.training import artefacts
from tests.conftest import OPERATIONS, WINDOW
from tests.tolerances import assert_within_rounding


def tokens_of(lengths=(5, 0, 14, 15, 1, 29, 3, 61, 9, 2), vocabulary=60, seed=0) -> Ragged:
    """Documents of these lengths: empty, exactly one window, one token more, several windows."""
    rng = np.random.default_rng(seed)
    return Ragged.from_lists([rng.integers(5, vocabulary, n) for n in lengths])


def assert_as_stored(found, expected) -> None:
    """Features are rounded once, to float16."""
    assert_within_rounding(torch.as_tensor(found).half(), expected, operations=1)


def alone(backbone, ids) -> np.ndarray:
    """Hidden states of one document, window by window, with [CLS] and [SEP] added by hand."""
    parts = -(-len(ids) // WINDOW)
    edges = [len(ids) * i // parts for i in range(parts + 1)] if parts else [0]
    states = [np.zeros((0, backbone.hidden_size), np.float32)]
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        with torch.inference_mode():
            out = backbone.model(
                input_ids=torch.tensor([[2, *ids[begin:end].tolist(), 3]])
            ).last_hidden_state
        states.append(out[0, 1:-1].numpy())
    return np.concatenate(states)


class Counting:
    """A backbone that counts the tokens it reads and stops before forward pass number `dies`."""

    def __init__(self, backbone, dies=None):
        self.passes, self.read, self.dies, forward = 0, 0, dies, backbone.model.forward

        def counted(*args, attention_mask, **kwargs):
            if self.passes == self.dies:
                raise KeyboardInterrupt
            self.passes += 1
            self.read += int(attention_mask.sum()) - 2 * len(attention_mask)
            return forward(*args, attention_mask=attention_mask, **kwargs)

        backbone.model.forward = counted
        self.backbone = backbone


def test_equals_the_models_hidden_states(backbone, tmp_path):
    tokens = tokens_of()
    result = cached_features(
        backbone, tokens, tmp_path / "f.safetensors", key="k", batch_tokens=64, progress=False
    )
    assert (
        result.array.shape == (len(tokens.flat), backbone.hidden_size)
        and result.array.dtype == np.float16
    )
    for i in range(len(tokens)):
        assert result.document(i).shape == (tokens.lengths[i], backbone.hidden_size)
        assert_as_stored(result.document(i), alone(backbone, tokens[i]))


def test_documents_are_handed_out_in_the_order_asked_for(backbone, tmp_path):
    result = cached_features(
        backbone, tokens_of(), tmp_path / "f.safetensors", key="k", progress=False
    )
    some = result.documents([8, 1, 0])
    assert some.dtype == np.float32
    np.testing.assert_array_equal(some, np.concatenate([result.document(8), result.document(0)]))
    assert result.documents([]).shape == (0, backbone.hidden_size)


def test_windows_cut_evenly_and_never_span_documents():
    cut = windows.spans(torch.tensor([0, 5, 5, 19, 34, 95]), WINDOW)
    assert [[(w.begin, w.end) for w in document] for document in cut] == [
        [(0, 5)],
        [],
        [(5, 19)],
        [(19, 26), (26, 34)],
        [(34, 46), (46, 58), (58, 70), (70, 82), (82, 95)],
    ]
    assert all((w.first, w.last) == (w.begin, w.end) for document in cut for w in document)


@pytest.mark.parametrize("causal", [False, True], ids=["both sides", "left alone"])
def test_overlapping_windows_keep_every_token_once(causal):
    offsets = torch.tensor([0, 14, 15, 15, 76])
    cut = windows.spans(offsets, WINDOW, overlap=3, causal=causal)
    for (begin, end), document in zip(
        zip(offsets[:-1], offsets[1:], strict=True), cut, strict=True
    ):
        assert [t for w in document for t in range(w.begin, w.end)] == list(range(begin, end))
        assert all(
            begin <= w.first <= w.begin and w.end <= w.last <= end and w.last - w.first <= WINDOW
            for w in document
        )
        for before, after in zip(document[:-1], document[1:], strict=True):
            assert after.first == after.begin - 3 and before.last == before.end + (
                0 if causal else min(3, end - before.end)
            )


def test_overlap_without_room_is_refused():
    with pytest.raises(
        ValueError, match="overlap=7 leaves no room in a window of 14 tokens; give less than 7"
    ):
        windows.spans(torch.tensor([0, 20]), WINDOW, overlap=7)


def test_overlap_lends_context(backbone_folder):
    """A token at a window's edge gets the state it has in a window that holds its neighbours."""
    from plantlib.backbones import loading

    ids = tokens_of((24,))[0]
    whole = loading.load(backbone_folder, overlap=2)
    offsets = torch.tensor([0, 24])
    result = windows.encode(whole, torch.from_numpy(ids).long(), offsets)
    ((first, *_),) = windows.spans(offsets, WINDOW, overlap=2)
    with torch.inference_mode():
        read = [2, *ids[first.first : first.last].tolist(), 3]
        states = whole.model(input_ids=torch.tensor([read])).last_hidden_state
        expected = states[0, 1:-1][: first.end]
    assert_within_rounding(result[: first.end], expected, OPERATIONS)
    bare = windows.encode(loading.load(backbone_folder), torch.from_numpy(ids).long(), offsets)
    assert result.shape == bare.shape and not torch.allclose(result, bare, atol=1e-3)


def test_padding_does_not_change_a_documents_states(backbone):
    short, long = tokens_of((4,)), tokens_of((4, 14))
    assert_as_stored(
        features.hidden_states(backbone, [short[0]])[0],
        features.hidden_states(backbone, [short[0], long[1]])[0],
    )


def test_gradients_reach_the_backbone(backbone):
    tokens = tokens_of((5, 20))
    states = windows.encode(
        backbone, torch.from_numpy(tokens.flat).long(), torch.from_numpy(tokens.offsets)
    )
    states.square().sum().backward()
    assert backbone.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dies", [0, 1, 3, 5], ids=lambda n: f"after {n} batches")
def test_killed_and_resumed_file_is_the_same_to_the_bit(
    dies, backbone_folder, tmp_path, monkeypatch
):
    from plantlib.backbones import loading

    monkeypatch.setattr(features, "STRETCH", 3)
    tokens = tokens_of()

    def run(backbone, name):
        options = {"key": "k", "batch_tokens": 30, "progress": False}
        return cached_features(backbone, tokens, tmp_path / name, **options)

    whole = Counting(loading.load(backbone_folder))
    run(whole.backbone, "whole.safetensors")
    assert whole.passes == 6 and whole.read == len(tokens.flat)

    first = Counting(loading.load(backbone_folder), dies)
    with pytest.raises(KeyboardInterrupt):
        run(first.backbone, "cut.safetensors")
    assert not (tmp_path / "cut.safetensors").exists()
    second = Counting(loading.load(backbone_folder))
    run(second.backbone, "cut.safetensors")
    assert (tmp_path / "cut.safetensors").read_bytes() == (
        tmp_path / "whole.safetensors"
    ).read_bytes()
    longest = np.sort(tokens.lengths)[::-1]
    twice = first.read + second.read - len(tokens.flat)
    assert 0 <= twice <= max(longest[i : i + 3].sum() for i in range(0, len(longest), 3))
    if dies == 5:
        assert second.read < len(tokens.flat)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


def test_a_damaged_file_is_named_and_made_again(backbone, tmp_path, capsys):
    path = tmp_path / "f.safetensors"
    options = {"key": "k", "progress": False}
    whole = cached_features(backbone, tokens_of(), path, **options)
    content = path.read_bytes()
    for place in (3, 20, 100, len(content) // 2, len(content) - 1):
        path.unlink()
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        again = cached_features(backbone, tokens_of(), path, **options)
        assert "f.safetensors is damaged" in capsys.readouterr().err
        np.testing.assert_array_equal(again.array, whole.array)
    path.unlink()
    path.write_bytes(content[:-500])
    again = cached_features(backbone, tokens_of(), path, **options)
    np.testing.assert_array_equal(again.array, whole.array)
    assert path.read_bytes() == content


@pytest.mark.parametrize("damaged", ["states", "marks"])
def test_half_a_file_that_is_damaged_is_not_continued(
    damaged, backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(features, "STRETCH", 2)
    path, tokens = tmp_path / "f.safetensors", tokens_of()
    options = {"key": "k", "batch_tokens": 30, "progress": False}
    dies = Counting(loading.load(backbone_folder), 4)
    with pytest.raises(KeyboardInterrupt):
        cached_features(dies.backbone, tokens, path, **options)
    (half,) = tmp_path.glob(".f.*.partial/f.safetensors")
    if damaged == "states":  # of the longest document, which comes first
        array = features._map(half, "r+")
        array[tokens.offsets[7]] += 1
        array.flush()
    else:
        (half.parent / "progress.json").write_text("{")
    fresh = Counting(loading.load(backbone_folder))
    result = cached_features(fresh.backbone, tokens, path, **options)
    assert fresh.read == len(tokens.flat)
    expected = alone(loading.load(backbone_folder), tokens[7])
    assert_as_stored(result.document(7), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_a_full_disk_is_one_line_before_any_work(backbone, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    counting = Counting(backbone)
    with pytest.raises(OSError, match=r"hidden states of 139 tokens need 0 MB in .* are free"):
        cached_features(
            counting.backbone, tokens_of(), tmp_path / "f.safetensors", key="k", progress=False
        )
    assert not counting.passes and not list(tmp_path.iterdir())


def test_what_a_live_process_writes_is_neither_continued_nor_removed(backbone, tmp_path):
    """Without the lock of the file, as on a file system that has none between machines."""
    path = tmp_path / "f.safetensors"
    order = np.argsort(-tokens_of().lengths, kind="stable")
    arguments = (path, "k", (139, backbone.hidden_size), tokens_of(), order)
    with features._begun(*arguments) as (first, _), features._begun(*arguments) as (second, done):
        assert first != second and first.exists() and not done.documents
        assert first.stat().st_size == second.stat().st_size
    cached_features(backbone, tokens_of(), path, key="k", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_half_a_file_of_another_key_is_not_continued(backbone_folder, tmp_path, monkeypatch):
    from plantlib.backbones import loading

    monkeypatch.setattr(features, "STRETCH", 2)
    tokens, other = tokens_of(), tokens_of(seed=1)
    options = {"path": tmp_path / "f.safetensors", "batch_tokens": 30, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        cached_features(
            Counting(loading.load(backbone_folder), 4).backbone, other, key="other", **options
        )
    result = cached_features(loading.load(backbone_folder), tokens, key="k", **options)
    fresh = cached_features(
        loading.load(backbone_folder),
        tokens,
        key="k",
        **options | {"path": tmp_path / "g.safetensors"},
    )
    np.testing.assert_array_equal(result.array, fresh.array)


def test_second_call_reads_the_file_and_loads_no_backbone(backbone, tmp_path):
    tokens = tokens_of()
    first = cached_features(backbone, tokens, tmp_path / "f.safetensors", key="k", progress=False)

    def never():
        pytest.fail("the backbone was loaded although nothing is missing")

    second = cached_features(never, tokens, tmp_path / "f.safetensors", key="k", progress=False)
    np.testing.assert_array_equal(first.array, second.array)


@pytest.mark.parametrize(
    ("tokens", "key"),
    [(tokens_of(), "new"), (tokens_of((3, 4)), "k")],
    ids=["other key", "other size"],
)
def test_file_of_something_else_is_refused(tokens, key, backbone, tmp_path):
    cached_features(backbone, tokens_of(), tmp_path / "f.safetensors", key="k", progress=False)
    with pytest.raises(
        ValueError, match=rf"139 tokens of k, wanted {len(tokens.flat)} of {key}; delete the file"
    ):
        cached_features(backbone, tokens, tmp_path / "f.safetensors", key=key, progress=False)


@pytest.mark.parametrize("lengths", [(5, 0, 20), (0, 0)], ids=["documents", "no tokens at all"])
def test_file_is_plain_safetensors(lengths, backbone, tmp_path):
    tokens = tokens_of(lengths)
    result = cached_features(backbone, tokens, tmp_path / "f.safetensors", key="k", progress=False)
    with safe_open(tmp_path / "f.safetensors", "np") as f:
        assert f.metadata().keys() == {"key", "sha256"} and f.metadata()["key"] == "k"
        np.testing.assert_array_equal(f.get_tensor("hidden_states"), result.array)


@pytest.mark.parametrize(
    ("stored", "device", "expected"),
    [
        ("bfloat16", "cuda", "bfloat16"),
        ("float16", "cuda", "float16"),
        ("bfloat16", "cpu", "float32"),
        (None, "cuda", "float32"),
    ],
    ids=["large models as they are stored", "float16", "float32 on a CPU", "unknown"],
)
def test_a_frozen_backbone_reads_in_its_own_type_on_a_gpu(stored, device, expected):
    config = LlamaConfig(dtype=stored)
    assert loading.reading_dtype(config, device) == expected


def test_features_are_made_where_the_machine_reads_fastest(prepared, monkeypatch, tmp_path):
    moved = []
    monkeypatch.setattr(machine, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, where: moved.append(where) or self)
    assert artefacts.frozen_backbone(prepared).hidden_size == prepared.hidden_size
    assert moved == [torch.device("meta")]


@pytest.mark.gpu
def test_features_of_a_gpu_are_those_of_a_cpu(backbone_folder, tmp_path):
    backbone, tokens = loading.load(backbone_folder), tokens_of()
    expected = cached_features(
        backbone, tokens, tmp_path / "cpu.safetensors", key="k", progress=False
    ).array
    backbone.model.to("cuda")
    result = cached_features(
        backbone, tokens, tmp_path / "gpu.safetensors", key="k", progress=False
    ).array
    assert_as_stored(result, expected)
