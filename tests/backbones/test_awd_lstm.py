"""AWD-LSTM: torch's LSTM if nothing is dropped, each dropout by hand, state, pretraining.

docs/method.md, "The first version (v1)". Pretraining is tried on the tiny corpus: the perplexity of
dev text falls, test text is not read, and the result serves as a backbone, frozen and trained.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from plantlib import RunConfig, prepare
from plantlib.backbones import loading, windows
from plantlib.backbones.adapters import BackboneOptions
from plantlib.backbones.awd_lstm import (
    AwdLstmConfig,
    AwdLstmForCausalLM,
    AwdLstmModel,
    reverse,
    variational_dropout,
    word_dropout,
)
from plantlib.training import artefacts
from plantlib.training.awd_pretraining import (
    Chunks,
    PretrainConfig,
    pretrain,
    stream,
    word_tokenizer,
)
from plantlib.training.ingredients import teacher_of
from plantlib.training.options import TrainConfig
from plantlib.training.runs import run_start
from plantlib.utils.io import read_json
from tests.tolerances import assert_within_rounding, near

NONE = dict.fromkeys(
    ("embedding_dropout", "input_dropout", "hidden_dropout", "weight_dropout", "output_dropout"),
    0.0,
)
SIZES = {"vocab_size": 50, "hidden_size": 12, "lstm_size": 12, "num_hidden_layers": 3}
STEPS = 9 * 3 * 24  # tokens, layers, and the sums over inputs and states
TRAINED = 3 * 31  # layers of the pretrained model and steps; the sums of 24 err as their root


def encoder(seed=0, **options) -> AwdLstmModel:
    torch.manual_seed(seed)
    return AwdLstmModel(AwdLstmConfig(**SIZES | NONE | options))


def torch_lstm(model: AwdLstmModel) -> nn.LSTM:
    """A torch.nn.LSTM of three layers with the model's weights."""
    lstm = nn.LSTM(12, 12, num_layers=3, batch_first=True)
    for i, layer in enumerate(model.layers):
        for name, parameter in layer.named_parameters():
            getattr(lstm, name.replace("l0", f"l{i}")).data.copy_(parameter.data)
    return lstm


def batch(lengths=(7, 3, 0, 5), seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, 50, mask.shape, generator=generator) * mask, mask


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_without_dropout_it_is_torchs_lstm(training):
    """Outputs, final states and every gradient, in ragged batches with an empty row."""
    model = encoder().train(training)
    lstm, (ids, mask) = torch_lstm(model), batch()
    result = model(ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        if length:
            expected, (h, c) = lstm(model.embeddings(ids[row : row + 1, :length]))
            assert_within_rounding(result.last_hidden_state[row, :length], expected[0], STEPS)
            for i, (own_h, own_c) in enumerate(result.state):
                assert_within_rounding(own_h[0, row], h[i, 0], STEPS)
                assert_within_rounding(own_c[0, row], c[i, 0], STEPS)
        else:
            assert all(not s[0, row].any() for pair in result.state for s in pair), (
                "an empty row must not change its state"
            )
    result.last_hidden_state[mask].square().sum().backward()
    rows = [
        lstm(model.embeddings(ids[r : r + 1, :n]).detach())[0]
        for r, n in enumerate((7, 3, 0, 5))
        if n
    ]
    sum(row.square().sum() for row in rows).backward()
    for i, layer in enumerate(model.layers):
        for name, parameter in layer.named_parameters():
            expected = getattr(lstm, name.replace("l0", f"l{i}")).grad
            assert_within_rounding(parameter.grad, expected, STEPS, name=name)


def test_carried_state_makes_segments_one_document():
    model, (ids, _) = encoder().eval(), batch((9, 9))
    whole = model(ids).last_hidden_state
    first = model(ids[:, :4])
    second = model(ids[:, 4:], state=first.state).last_hidden_state
    assert_within_rounding(torch.cat([first.last_hidden_state, second], 1), whole, STEPS)


def test_weight_drop_drops_recurrent_connections_by_hand():
    """torch's LSTM with the dropped matrix is the same; dropped weights get no gradient."""
    model = encoder(num_hidden_layers=1, weight_dropout=0.5).train()
    ids, _ = batch((6, 6))
    torch.manual_seed(3)
    result = model(ids).last_hidden_state
    result.square().sum().backward()
    torch.manual_seed(3)
    dropped = nn.functional.dropout(model.layers[0].weight_hh_l0.detach(), 0.5)
    lstm = nn.LSTM(12, 12, batch_first=True)
    lstm.load_state_dict(model.layers[0].state_dict() | {"weight_hh_l0": dropped})
    assert_within_rounding(result, lstm(model.embeddings(ids))[0], STEPS)
    gone = dropped == 0
    assert 0.3 < gone.float().mean() < 0.7
    gradient = model.layers[0].weight_hh_l0.grad
    assert (
        not gradient[gone].any()
        and gradient[~gone].abs().sum() > 0
        and model.layers[0].weight_ih_l0.grad.all()
    )
    whole = torch_lstm_of_one(model)(model.embeddings(ids))[0]
    assert_within_rounding(model.eval()(ids).last_hidden_state, whole, STEPS)


def torch_lstm_of_one(model) -> nn.LSTM:
    lstm = nn.LSTM(12, 12, batch_first=True)
    lstm.load_state_dict(model.layers[0].state_dict())
    return lstm


def test_words_are_dropped_everywhere_or_nowhere():
    ids = torch.tensor([[1, 2, 1, 3], [1, 3, 2, 2]])
    torch.manual_seed(0)
    seen = torch.stack([word_dropout(torch.ones(2, 4, 5), ids, 9, 0.4, True) for _ in range(200)])
    for word in (1, 2, 3):
        factors = seen[:, ids == word]
        assert (factors == factors[:, :1, :1]).all(), "one draw per word and batch"
        assert factors.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert seen.mean() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(word_dropout(seen[0], ids, 9, 0.4, False), seen[0])


def test_variational_dropout_is_one_mask_for_all_times():
    torch.manual_seed(0)
    result = variational_dropout(torch.ones(3, 8, 40), 0.5, True)
    assert (
        (result == result[:, :1]).all()
        and not torch.equal(result[0], result[1])
        and result.mean() == pytest.approx(1, abs=0.3)
    )


def test_backward_direction_reads_from_the_end():
    forward, backward = encoder().eval(), encoder(direction="backward").eval()
    ids, mask = batch()
    lengths = mask.sum(1)
    assert torch.equal(reverse(reverse(ids, lengths), lengths), ids)
    turned = forward(reverse(ids, lengths), mask).last_hidden_state
    states = backward(ids, mask).last_hidden_state
    assert_within_rounding(states[mask], reverse(turned, lengths)[mask], STEPS)
    assert windows.is_causal(forward) and not windows.is_causal(backward)


def test_padding_changes_nothing_and_stands_on_the_right():
    model, (ids, mask) = encoder().eval(), batch()
    together = model(ids, mask).last_hidden_state
    assert_within_rounding(together[1, :3], model(ids[1:2, :3]).last_hidden_state[0], STEPS)
    with pytest.raises(ValueError, match="pad on the right"):
        model(ids.flip(1), mask.flip(1))


@pytest.mark.parametrize("how", ["checkpoint", "checkpointed layers", "autocast", "compile"])
def test_weight_drop_survives(how):
    """Gradients are the same when layers are recomputed, under autocast and when compiled."""
    model = encoder(
        weight_dropout=0.3, hidden_dropout=0.2, input_dropout=0.2, embedding_dropout=0.1
    ).train()
    ids, mask = batch()

    def gradients(call):
        model.zero_grad()
        torch.manual_seed(5)
        call().float()[mask].square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients(lambda: model(ids, mask).last_hidden_state)
    if how == "checkpoint":
        from torch.utils.checkpoint import checkpoint

        result = gradients(
            lambda: checkpoint(
                lambda i, m: model(i, m).last_hidden_state, ids, mask, use_reentrant=False
            )
        )
    elif how == "checkpointed layers":
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
        runs, drop = [], nn.functional.dropout
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                nn.functional, "dropout", lambda *arguments: runs.append(1) or drop(*arguments)
            )
            result = gradients(lambda: model(ids, mask).last_hidden_state)
        assert len(runs) == 2 * len(model.layers), "every layer must run twice"
    elif how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            result = gradients(lambda: model(ids, mask).last_hidden_state)
    else:
        compiled = torch.compile(model, backend="eager")
        result = gradients(lambda: compiled(ids, mask).last_hidden_state)
    for a, b in zip(result, expected, strict=True):
        if how == "autocast":  # each of three layers rounds its outputs and their gradient
            assert_within_rounding(a.bfloat16(), b, operations=2 * 3)
        else:
            assert_within_rounding(a, b, STEPS)


def test_decoder_is_tied_and_stays_so(tmp_path):
    torch.manual_seed(0)
    model = AwdLstmForCausalLM(AwdLstmConfig(**SIZES | NONE))
    assert model.decoder.weight is model.encoder.embeddings.weight
    model.save_pretrained(tmp_path)
    loaded = AwdLstmForCausalLM.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.encoder.embeddings.weight
    ids, _ = batch((5, 5))
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    expected = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
    assert_within_rounding(model(ids, labels=ids).loss, expected, operations=60)


def test_unknown_direction_is_refused():
    with pytest.raises(
        ValueError, match="direction='sideways' is not known; use one of forward, backward"
    ):
        encoder(direction="sideways")


QUICK = PretrainConfig(
    epochs=6,
    rows=4,
    chunk=20,
    learning_rate=0.02,
    min_documents=1,
    sizes={"hidden_size": 24, "lstm_size": 32, "num_hidden_layers": 2, "weight_dropout": 0.1},
)


@pytest.fixture(scope="module", params=["forward", "backward"])
def pretrained(request, corpus, tmp_path_factory):
    """(direction, folder, report of `pretrain`)."""
    folder = tmp_path_factory.mktemp(request.param) / "awd"
    config = dataclasses.replace(QUICK, direction=request.param)
    return request.param, folder, pretrain(corpus, folder, config=config, progress=False)


def test_perplexity_falls_and_the_folder_is_a_backbone(pretrained, corpus):
    direction, folder, result = pretrained
    assert result["perplexity"] < 0.7 * result["perplexity_before"] < result["perplexity_before"]
    assert (
        read_json(folder / "pretraining.json")["perplexity"] == result["perplexity"]
        and result["documents"] == 60
    )
    backbone = loading.load(str(folder), window=14)
    assert (
        backbone.model.config.direction == direction
        and backbone.hidden_size == 24
        and backbone.window == 14
    )
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors"} and not list(
        folder.parent.glob(".awd*")
    )
    states = windows.encode(backbone, torch.arange(3, 33), torch.tensor([0, 10, 10, 30]))
    assert states.shape == (30, 24) and torch.isfinite(states).all()


def test_state_is_carried_over_windows(pretrained, corpus, tmp_path):
    """Short windows give the logits, gradients and cached features of one long window."""
    from plantlib.kernels.attention_bce import sparse_bce
    from plantlib.model import streaming
    from plantlib.planting.starts import plant
    from plantlib.training.runs import build_model

    _, folder, _ = pretrained
    ids, offsets = torch.arange(60) % 25 + 3, torch.tensor([0, 31, 31, 36, 60])
    result = []
    for window in (None, 7):
        prepared = prepare(
            corpus,
            backbone=str(folder),
            max_tokens=None,
            window=window,
            root=tmp_path,
            progress=False,
        )
        model = build_model(prepared, teacher_of(prepared))
        plant(model.decoder, "lookup", teacher_of(prepared), prepared.train_labels)
        torch.nn.init.normal_(
            model.decoder.label_outputs, std=0.5, generator=torch.Generator().manual_seed(0)
        )
        model.attach_backbone(artefacts.load_backbone(prepared, dropout=0.0)).train()
        states = model.encode(ids, offsets).detach()
        logits = model.decoder.finish(streaming.stream(model, ids, offsets))
        sparse_bce(logits, torch.arange(4), torch.arange(4)).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        result.append((states, logits.detach(), gradients, prepared.features.array))
    for one, many in zip(*result, strict=True):
        if isinstance(one, dict):
            assert set(one) == set(many) and any(n.startswith("backbone.layers") for n in one)
            for name in one:
                # cuDNN multiplies in TF32, which has float16's digits
                kind = torch.float16 if torch.cuda.is_available() else torch.float32
                operations = 2 if torch.cuda.is_available() else TRAINED
                assert_within_rounding(many[name].to(kind), one[name], operations, name=name)
        else:  # cached features are float16
            assert_within_rounding(torch.as_tensor(many).half(), one, operations=1)


@pytest.mark.parametrize(
    ("tuning", "recompute"), [("frozen", False), ("full", False), ("full", True)]
)
def test_it_serves_as_a_backbone(tuning, recompute, pretrained, corpus, tmp_path):
    """recompute: in the backward pass windows are read again, and layers within them too."""
    _, folder, _ = pretrained
    prepared = prepare(
        corpus,
        backbone=str(folder),
        max_tokens=None,
        frozen=tuning == "frozen",
        root=tmp_path,
        progress=False,
        window=7 if recompute else None,
    )
    options = BackboneOptions(dropout=None, gradient_checkpointing=recompute)
    config = RunConfig(tuning=tuning, train=TrainConfig(epochs=1), backbone=options)
    record, model = run_start(prepared, "lookup", 0, config=config, progress=False)
    assert record.metrics["p@1"] > 0 and (record.model_size["trained_in_backbone"] > 0) == (
        tuning == "full"
    )
    if tuning == "full":
        assert model.backbone.config.weight_dropout == 0.1, "the configuration's dropout must stay"
        model.save_pretrained(tmp_path / "m")
        texts = corpus.texts[80:]
        expected = by_label(model.predict(texts))
        loaded = type(model).from_pretrained(tmp_path / "m").to(model.device)
        assert [dict(pairs) for pairs in loaded.predict(texts)] == expected
        # a new process has not imported the classes yet
        program = (
            "import sys, json; from plantlib.model.plant_model import PlantModel\n"
            "model = PlantModel.from_pretrained(sys.argv[1]).to(sys.argv[2])\n"
            "print(json.dumps(model.predict(sys.argv[3:])))"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "m"), str(model.device), *texts]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert [dict(pairs) for pairs in json.loads(done.stdout)] == expected


def by_label(predictions) -> list:
    """Scores by label of every text; a new process may add on another number of threads."""
    return [near(dict(pairs), TRAINED) for pairs in predictions]


def test_test_text_is_not_read(corpus, tmp_path):
    result = []
    for marker in ("", " comet comet comet"):
        texts = [
            t + marker * (s == "test") for t, s in zip(corpus.texts, corpus.split, strict=True)
        ]
        out = tmp_path / f"a{len(marker)}"
        pretrain(
            dataclasses.replace(corpus, texts=texts),
            out,
            config=dataclasses.replace(QUICK, epochs=1),
            progress=False,
        )
        result.append((out / "model.safetensors").read_bytes())
    assert result[0] == result[1]


def test_stream_holds_every_document_once_and_labels_are_one_later(corpus):
    tokenizer = word_tokenizer(corpus.texts[:9], min_documents=1)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["[PAD]", "[UNK]", "[EOS]"]
    config = PretrainConfig(rows=1, chunk=8)
    rows = stream(corpus.texts[:9], tokenizer, config)
    documents = sorted(tokenizer(t)["input_ids"] for t in corpus.texts[:9])

    def cut(flat):
        parts = np.split(flat, np.flatnonzero(flat == 2) + 1)
        return [part.tolist()[:-1] for part in parts if len(part)]

    assert sorted(cut(rows[0])) == documents
    turned = stream(corpus.texts[:9], tokenizer, dataclasses.replace(config, direction="backward"))
    assert sorted(part[::-1] for part in cut(turned[0])) == documents
    chunks = list(Chunks(rows, 8))
    assert np.concatenate([c["input_ids"] for c in chunks], 1).tolist() == rows[:, :-1].tolist()
    assert np.concatenate([c["labels"] for c in chunks], 1).tolist() == rows[:, 1:].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs=0"), ({"chunk": 1}, "chunk=1"), ({"rows": 0}, "rows=0")],
)
def test_pretraining_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**options)


def test_killed_pretraining_resumes_and_another_one_does_not_take_its_checkpoint(
    corpus, tmp_path, monkeypatch
):
    from plantlib.training import awd_pretraining, train

    config = dataclasses.replace(QUICK, epochs=3)
    pretrain(corpus, tmp_path / "whole", config=config, progress=False)

    class Dies(train.StepBar):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.epoch > 2.2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(awd_pretraining, "StepBar", Dies)
        with pytest.raises(KeyboardInterrupt):
            pretrain(corpus, tmp_path / "cut", config=config, progress=False)
    assert not (tmp_path / "cut").exists() and list(
        tmp_path.glob(".cut-*.checkpoints/checkpoint-*")
    )
    pretrain(corpus, tmp_path / "cut", config=dataclasses.replace(config, seed=1), progress=False)
    pretrain(corpus, tmp_path / "cut", config=config, progress=False)
    assert not list(tmp_path.glob(".cut*"))
    whole, cut = (
        AwdLstmForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("whole", "cut")
    )
    for name, value in whole.items():
        assert torch.equal(cut[name], value), name


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_a_rate_that_drops_everything_is_refused(rate):
    with pytest.raises(ValueError, match=f"hidden_dropout={rate}; give a rate from 0 to below 1"):
        encoder(hidden_dropout=rate)
