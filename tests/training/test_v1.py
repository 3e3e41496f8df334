"""The parts of the first version against numbers worked by hand.

docs/method.md, "The first version (v1)", "The decoder" and "Long documents": the L2R term, the
contexts, inattention, the running state and the language model's head. The toy documents have two
or three tokens and hidden states of one number, so that every softmax can be written down. The last
tests train whole models.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy import sparse
from torch import nn

from plantlib import RunConfig, kernels, prepare
from plantlib.backbones.adapters import BackboneOptions
from plantlib.kernels import Cells, machine
from plantlib.model import lm_head, streaming
from plantlib.planting import starts, static_l2r
from plantlib.planting.decoder import LabelDecoder, Packed, Scored
from plantlib.planting.starts import V1Config, plant
from plantlib.training import artefacts
from plantlib.training.awd_pretraining import PretrainConfig, pretrain
from plantlib.training.ingredients import build_model, teacher_of
from plantlib.training.options import TrainConfig
from plantlib.training.runs import run_start
from plantlib.training.schedules import Inattention
from tests.tolerances import assert_within_rounding, near

V = 4
OPERATIONS = 30  # a few tokens, three contexts, and exponents of at most 8
READ = 3 * 31  # layers and tokens of a document; the sums of 24 units err as their root
UNUSED = ("teacher_gain", "linear_gain")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def table(*cells) -> sparse.csr_matrix:
    """csr (1, V) of (token, value) cells."""
    tokens, values = zip(*cells, strict=True)
    return sparse.csr_matrix((values, ([0] * len(cells), tokens)), shape=(1, V))


def toy(
    contexts="mixed", keep=None, stateful="exact", gamma=0.0, rho=0.0, query=0.0, bias=0.0
) -> LabelDecoder:
    """A decoder of one label and hidden size 1. W = 1, so a token's output is its hidden state.

    The table G plants token 1, the L2R table token 2.

    Args:
        gamma: gain of G.
        rho: gain of the L2R table.
        query, bias: of the label.
    """
    decoder = LabelDecoder(1, 1, V, 1, keep, num_l2r_cells=1, contexts=contexts, stateful=stateful)
    decoder.planted.load_relevance(table((1, 1.0)))
    decoder.l2r.load_relevance(table((2, 1.0)))
    with torch.no_grad():
        decoder.planted_gain.fill_(gamma)
        decoder.l2r_gain.fill_(rho)
        decoder.label_queries.fill_(query)
        decoder.label_bias.fill_(bias)
        decoder.label_outputs.fill_(1.0)
        if contexts == "sum":
            decoder.context_gain.fill_(1.0)
    return decoder


def document(*tokens, hidden=(1.0, 2.0, 4.0), scored=None) -> Packed:
    """One document; the token at place i has hidden state hidden[i]."""
    states = torch.tensor(hidden[: len(tokens)])[:, None]
    return Packed(states, torch.tensor(tokens), torch.tensor([0, len(tokens)]), scored)


def weighted(*pairs) -> float:
    """The attention's result, sum e^s o / sum e^s, for pairs of a score s and an output o."""
    weights = [math.exp(score) for score, _ in pairs]
    return sum(w * output for w, (_, output) in zip(weights, pairs, strict=True)) / sum(weights)


def test_one_softmax_over_the_sum_of_learned_lookup_and_l2r():
    decoder = toy(gamma=2.0, rho=3.0, query=0.5, bias=-1.0)
    # <H, Q> is 0.5, 1 and 2; the second token is planted by G, the third by the L2R table
    expected = weighted((0.5, 1.0), (1.0 + 2.0, 2.0), (2.0 + 3.0, 4.0)) - 1.0
    assert decoder(document(0, 1, 2)).item() == near(expected, OPERATIONS)


def test_sum_of_three_contexts():
    decoder = toy("sum", gamma=2.0, rho=3.0, query=0.5, bias=-1.0)
    learned = weighted((0.5, 1.0), (1.0, 2.0), (2.0, 4.0))
    lookup = weighted((0, 1.0), (2.0, 2.0), (0, 4.0))
    l2r = weighted((0, 1.0), (0, 2.0), (3.0, 4.0))
    expected = learned + lookup + l2r - 1.0
    assert decoder(document(0, 1, 2)).item() == near(expected, OPERATIONS)
    with torch.no_grad():
        decoder.context_gain.copy_(torch.tensor([1.0, 0.0, 0.5]))
    expected = learned + 0.5 * l2r - 1.0
    assert decoder(document(0, 1, 2)).item() == near(expected, OPERATIONS)


@pytest.mark.parametrize("contexts", ["mixed", "sum"])
@pytest.mark.parametrize("keep", [None, 2])
def test_gradients_of_both_gains_are_those_of_autograd(contexts, keep):
    """The fused loss against the reference, whose gradients come from autograd.

    Some tokens are planted by both tables.
    """
    torch.manual_seed(0)
    results = {}
    for impl in ("torch", "reference"):
        decoder = LabelDecoder(3, 4, V, 5, keep, impl, num_l2r_cells=6, contexts=contexts).double()
        decoder.planted.load_relevance(sparse.random(3, V, 5 / 12, "csr", random_state=1))
        decoder.l2r.load_relevance(sparse.random(3, V, 0.5, "csr", random_state=2))
        generator = torch.Generator().manual_seed(3)
        random = {"generator": generator, "dtype": torch.float64}
        with torch.no_grad():
            for p in decoder.parameters():
                p.copy_(torch.randn(p.shape, **random))
        states = torch.randn(9, 4, **random).requires_grad_()
        ids, offsets = torch.tensor([0, 1, 2, 3, 1, 2, 3, 3, 0]), torch.tensor([0, 5, 5, 9])
        packed = Packed(states, ids, offsets)
        loss, logits = decoder.loss(packed, torch.tensor([0, 2]), torch.tensor([1, 0]))
        loss.backward()
        used = [p.grad for name, p in decoder.named_parameters() if name not in UNUSED]
        results[impl] = [loss, logits, states.grad, *used]
        assert all(value is not None and value.abs().sum() > 0 for value in results[impl])
    for fused, reference in zip(results["torch"], results["reference"], strict=True):
        assert_within_rounding(fused, reference, OPERATIONS)


@pytest.mark.parametrize(
    "impl", ["torch", "reference", *(["triton"] if machine.has_triton() else [])]
)
def test_gradient_of_a_planted_value_by_hand(impl):
    """Two tokens of equal score s. For the second, d value / d s = p (o - value) = 0.5 (3 - 2)."""
    with machine.device():  # without a GPU Triton's interpreter reads tensors of the CPU
        planted = torch.tensor([0.0], requires_grad=True)
        cells = Cells(torch.tensor([1]), torch.tensor([0]), planted)
        value, _ = kernels.attend(
            torch.tensor([[1.0], [3.0]]),
            torch.tensor([0, 2]),
            torch.zeros(1, 1),
            torch.ones(1, 1),
            cells,
            torch.tensor(2.0),
            impl=impl,
        )
    value.sum().backward()
    assert value.item() == pytest.approx(2.0)
    assert planted.grad.item() == pytest.approx(2.0 * 0.5 * (3 - 2))


@pytest.mark.parametrize(
    ("contexts", "keep"),
    [("mixed", 2), ("sum", (1, 2, None)), ("sum", 1), ("sum", (None, None, 2))],
)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_exact_state_with_a_k_per_context(contexts, keep, parts):
    """A document read in 1, 2 or 3 segments gives the same logits."""
    decoder = toy(contexts, keep, gamma=2.0, rho=3.0, query=0.5)
    tokens, hidden = (0, 1, 2, 3, 1, 2), (1.0, 2.0, 4.0, -1.0, 3.0, 0.5)
    state = decoder.start_state(1)
    size = 6 // parts
    for begin in range(0, 6, size):
        part = slice(begin, begin + size)
        state = decoder.read(document(*tokens[part], hidden=hidden[part]), state)
    at_once = decoder(document(*tokens, hidden=hidden))
    assert_within_rounding(decoder.finish(state), at_once, OPERATIONS)


def test_inattention_per_context_by_hand():
    """K is 1 for the learned context, 2 for the lookup, and all for the L2R one."""
    decoder = toy("sum", (1, 2, None), gamma=2.0, rho=3.0, query=0.5)
    learned = 4.0  # the highest <H, Q>
    lookup = weighted((2.0, 2.0), (0, 1.0))  # the planted token, then the first of the equal ones
    l2r = weighted((0, 1.0), (0, 2.0), (3.0, 4.0))
    assert decoder(document(0, 1, 2)).item() == near(learned + lookup + l2r, OPERATIONS)


def test_running_state_of_three_segments_by_hand():
    """Attention is uniform, so segments give their means 1.5, 4 and -1; the bias is -1.

    The second document ends after the first segment and keeps its logits.
    """
    decoder = toy(stateful="v1", bias=-1.0)
    first = 1.5 - 1
    second = 4.0 - 1 + sigmoid(first)
    third = -1.0 - 1 + sigmoid(second)
    state = decoder.start_state(2)
    for hidden, offsets, expected in (
        ([1.0, 2.0, 7.0], [0, 2, 3], [first, 7.0 - 1]),
        ([4.0], [0, 1, 1], [second, 6.0]),
        ([-1.0], [0, 1, 1], [third, 6.0]),
    ):
        states = torch.tensor(hidden)[:, None]
        ids = torch.zeros(len(hidden), dtype=torch.long)
        state = decoder.read(Packed(states, ids, torch.tensor(offsets)), state)
        assert decoder.finish(state).squeeze(1).tolist() == near(expected, OPERATIONS)
    # a document without tokens has its bias
    assert decoder.finish(decoder.start_state(1)).item() == pytest.approx(-1.0)


def test_running_state_carries_no_gradient_and_one_segment_is_exact():
    running = toy("sum", stateful="v1", gamma=2.0, rho=3.0, query=0.5)
    exact = toy("sum", gamma=2.0, rho=3.0, query=0.5)
    assert_within_rounding(running(document(0, 1, 2)), exact(document(0, 1, 2)), OPERATIONS)
    first = document(0, 1)
    second = document(2, hidden=(3.0,))
    first.hidden_states.requires_grad_()
    second.hidden_states.requires_grad_()
    state = running.read(second, running.read(first, running.start_state(1)))
    running.finish(state).sum().backward()
    assert not first.hidden_states.grad.any() and second.hidden_states.grad.any()


def test_l2r_score_of_the_likely_and_of_the_expected_token():
    """The L2R table plants token 2 alone. Where the language model guesses it, its score counts
    whatever was read; where it guesses it with probability 0.5, half its score.
    """
    decoder = toy(rho=3.0)
    guesses = Scored(torch.tensor([[2], [0], [2]]), torch.ones(3, 1))
    expected = weighted((3.0, 1.0), (0, 2.0), (3.0, 4.0))
    assert decoder(document(0, 1, 2, scored=guesses)).item() == near(expected, OPERATIONS)
    guesses = Scored(
        torch.tensor([[2, 0], [1, 3], [2, 1]]), torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    )
    expected = weighted((1.5, 1.0), (0, 2.0), (0.6, 4.0))
    assert decoder(document(0, 1, 2, scored=guesses)).item() == near(expected, OPERATIONS)


def test_expected_score_is_the_score_of_the_expected_embedding():
    tokens, label = torch.randn(V, 5), torch.randn(5)
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = (p * (tokens @ label)).sum().item()
    size = float((p @ tokens.abs()) @ label.abs())
    assert ((p @ tokens) @ label).item() == near(expected, operations=V + 5, size=size)


def head_of(weight) -> nn.Linear:
    """A language model's head with this weight (V, D) and no bias."""
    head = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        head.bias.zero_()
    return head.requires_grad_(False)


def test_scored_tokens_are_the_heads_best_and_weights_sum_to_one():
    head = head_of([[0.0], [1.0], [2.0], [-1.0]])
    scored = lm_head.scored_tokens(head, torch.tensor([[1.0], [-1.0]]), 2)
    assert scored.ids.tolist() == [[2, 1], [3, 0]]
    share = math.e / (1 + math.e)
    assert scored.weights[0].tolist() == near([share, 1 - share], OPERATIONS)
    assert lm_head.scored_tokens(head, torch.zeros(0, 1), 1).ids.shape == (0, 1)


@pytest.mark.parametrize("backward", [False, True])
def test_language_loss_predicts_the_next_token_within_a_document(backward):
    """Documents of two tokens, none and one, so one token is predicted; zero logits cost ln V."""
    head = head_of([[0.0], [1.0], [0.0], [0.0]])
    hidden = torch.tensor([[1.0], [0.0], [5.0]], requires_grad=True)
    ids, offsets = torch.tensor([3, 1, 2]), torch.tensor([0, 2, 2, 3])
    total, count = lm_head.loss_sum(head, hidden, ids, offsets, backward)
    # forward: token 1 is predicted from the first state, 1; backward: token 3 from the second, 0
    expected = math.log(4) if backward else math.log(3 + math.e) - 1
    assert count == 1 and total.item() == near(expected, OPERATIONS)
    total.backward()
    assert hidden.grad[0].any() != backward and not hidden.grad[2].any()


def test_annealed_k_falls_by_equal_factors_and_dev_sees_the_last():
    decoder = SimpleNamespace(keep=4)
    annealing = Inattention(decoder, 64, 2)
    assert [annealing.keep_of(epoch) for epoch in range(4)] == [64, 16, 4, 4]
    annealing.on_epoch_begin(None, SimpleNamespace(epoch=1.0), None)
    assert decoder.keep == 16
    annealing.on_epoch_end(None, None, None)
    assert decoder.keep == 4
    assert Inattention(SimpleNamespace(keep=[8, None, 100]), 32, 2).keep_of(1) == [16, None, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": "five"}, "contexts='five' is not known"),
        ({"stateful": "maybe"}, "stateful='maybe' is not known"),
        ({"contexts": "sum", "num_l2r_cells": 0}, "no L2R table"),
        ({"keep": (1, 2, 3)}, "three numbers"),
        ({"contexts": "sum", "keep": (1, 2)}, "three numbers"),
        ({"keep": 0}, "at least 1 token"),
    ],
)
def test_contradictory_decoders_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelDecoder(1, 1, V, 1, **{"num_l2r_cells": 1} | options)


@pytest.fixture(scope="module")
def awd(corpus, tmp_path_factory) -> dict[str, str]:
    """Folders of a forward and a backward AWD-LSTM, pretrained on the corpus's own text."""
    sizes = {"hidden_size": 16, "lstm_size": 16, "num_hidden_layers": 2}
    config = PretrainConfig(epochs=1, rows=4, chunk=20, min_documents=1, sizes=sizes)
    folders = {}
    for direction in ("forward", "backward"):
        folders[direction] = str(tmp_path_factory.mktemp("awd") / direction)
        pretrain(
            corpus, folders[direction], config=replace(config, direction=direction), progress=False
        )
    return folders


@pytest.fixture(scope="module", autouse=True)
def small_static_model():
    """Short training of the static L2R model, on short lists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_l2r, "EPOCHS", 1)
        for name in ("LABELS_PER_BATCH", "GRADED", "MINED", "NEGATIVES", "PLANTED_TOKENS"):
            patch.setattr(static_l2r, name, 8)
        yield


def options(**changes) -> RunConfig:
    """Options of a short run."""
    short = {
        "static_dim": 16,
        "train": TrainConfig(epochs=1),
        "backbone": BackboneOptions(dropout=None),
    }
    return RunConfig(**short | changes)


@pytest.mark.parametrize(
    ("tuning", "v1", "keep", "lm_weight"),
    [
        ("frozen", V1Config(l2r_from="likely", stateful="v1"), 4, 0.0),
        ("frozen", V1Config(contexts="sum", l2r_from="expected"), (4, 8, None), 0.0),
        ("full", V1Config(contexts="sum", stateful="v1"), None, 0.5),
        ("full", V1Config(l2r_from="likely"), None, 0.5),
    ],
)
def test_v1_is_trained_saved_and_loaded(tuning, v1, keep, lm_weight, corpus, awd, tmp_path):
    """Windows are shorter than the documents; the loaded model has the same options and
    predictions.
    """
    ready = prepare(
        corpus,
        backbone=awd["forward"],
        max_tokens=None,
        window=10,
        frozen=tuning == "frozen",
        root=tmp_path,
        progress=False,
    )
    annealing = {"keep_from": 16, "keep_epochs": 1} if keep else {}
    train = TrainConfig(epochs=1, lm_weight=lm_weight, **annealing)
    config = options(tuning=tuning, v1=v1, keep=keep, train=train)
    record, model = run_start(ready, "v1", 0, config=config, progress=False)
    assert record.params["final_gains"]["l2r"] != 2.0 and record.teacher["static_l2r"]["dim"] > 1
    assert record.params["v1"]["contexts"] == v1.contexts and record.metrics["p@1"] > 0
    if model.backbone is None:
        model.attach_backbone(artefacts.load_backbone(ready))
    model.save_pretrained(tmp_path / "m")
    loaded = type(model).from_pretrained(tmp_path / "m")
    assert loaded.config.stateful == v1.stateful and loaded.decoder.contexts == v1.contexts
    assert loaded.decoder.keep == (list(keep) if isinstance(keep, tuple) else keep)
    assert loaded.to(model.device).predict(corpus.texts[80:]) == model.predict(corpus.texts[80:])


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_running_state_from_cached_states_is_that_of_the_backbone(
    direction, corpus, awd, tmp_path, monkeypatch
):
    ready = prepare(
        corpus, backbone=awd[direction], max_tokens=None, window=7, root=tmp_path, progress=False
    )
    teacher = teacher_of(ready)
    model = build_model(ready, teacher, RunConfig(v1=V1Config(stateful="v1")))
    monkeypatch.setattr(starts, "INIT_STD", 0.5)
    plant(model.decoder, "lookup", teacher, ready.train_labels)
    model.attach_backbone(artefacts.load_backbone(ready)).eval()
    ids, offsets = torch.arange(60) % 25 + 3, torch.tensor([0, 31, 31, 36, 60])
    with torch.inference_mode():
        streamed = model(ids, offsets).logits
        cached = model(ids, offsets, model.encode(ids, offsets)).logits
        model.decoder.stateful = "exact"
        exact = model.decoder.finish(streaming.stream(model, ids, offsets))
    assert_within_rounding(streamed, cached, READ)
    # only documents of several windows are read differently
    assert (streamed[0] - exact[0]).abs().max() > 1e-3
    assert_within_rounding(streamed[2], exact[2], READ)


def test_language_loss_is_the_same_streamed_and_at_once(corpus, awd, tmp_path):
    reading = {"max_tokens": None, "frozen": False, "root": tmp_path, "progress": False}
    config = RunConfig(tuning="full", train=TrainConfig(lm_weight=1.0))
    ids, offsets = torch.arange(60) % 25 + 3, torch.tensor([0, 14, 28, 42, 60])
    labels = {"label_rows": torch.arange(4), "label_columns": torch.arange(4)}
    language_losses = []
    for window in (None, 7):
        ready = prepare(corpus, backbone=awd["forward"], window=window, **reading)
        teacher = teacher_of(ready)
        model = build_model(ready, teacher, config)
        plant(model.decoder, "lookup", teacher, ready.train_labels)
        model.attach_backbone(artefacts.load_backbone(ready, dropout=0.0)).train()
        losses = []
        for model.lm_weight in (0.0, 1.0):
            losses.append(model(ids, offsets, **labels).loss)
        language_losses.append((losses[1] - losses[0]).item())
        losses[1].backward()
        assert model.backbone.layers[0].weight_hh_l0.grad.any()
        assert model.lm_head.weight.grad is None
    # streamed, the first token of a window is not predicted from the window before: the mean is
    # over fewer tokens
    at_once, streamed = language_losses
    assert at_once == pytest.approx(streamed, rel=0.1) and at_once > 1


def test_every_start_can_be_given_the_parameters_of_v1(corpus, awd, tmp_path):
    ready = prepare(corpus, backbone=awd["forward"], max_tokens=None, root=tmp_path, progress=False)
    config = options(v1=V1Config(l2r_table=True))
    shapes = []
    for start in ("random", "v1"):
        record, model = run_start(ready, start, 0, config=config, progress=False)
        state = model.state_dict().items()
        shapes.append({n: p.shape for n, p in state if not n.startswith("teacher_score")})
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert record.model_size["trained_parameters"] == trained
    assert shapes[0] == shapes[1] and "decoder.l2r_gain" in shapes[0]
    files = list((tmp_path / "static").iterdir())
    assert len(files) == 1, "the static model is trained once and read by both runs"


def test_an_encoder_without_a_head_has_no_likely_token(backbone_folder, prepared):
    message = "is no causal language model with its head; use l2r_from='read'"
    for config in (
        options(v1=V1Config(l2r_from="likely")),
        options(tuning="full", train=TrainConfig(lm_weight=0.1)),
    ):
        with pytest.raises(ValueError, match=message):
            run_start(prepared, "v1", 0, config=config, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: V1Config(l2r_from="mind"), "l2r_from='mind' is not known"),
        (lambda: options(train=TrainConfig(lm_weight=0.1)), "needs a backbone that is trained"),
        (lambda: TrainConfig(keep_from=8), "annealing wants both"),
        (lambda: options(keep=(1, 2, 3)), "three numbers"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
