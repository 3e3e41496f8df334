"""The first version's ingredients, each against numbers worked by hand: L2R term, contexts,
inattention, state, LM head.

METHOD.md section 4. One toy is used throughout: two or three tokens, hidden states of one number,
one or two labels, so that every softmax can be written down.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from scipy import sparse
from torch import nn

from plantlib import RunConfig, kernels, prepare
from plantlib.backbones.adapters import BackboneOptions
from plantlib.kernels import Cells, machine
from plantlib.model import lm_head
from plantlib.planting import starts, static_l2r
from plantlib.planting.decoder import LabelDecoder, Packed, Scored
from plantlib.planting.starts import V1Config, plant
from plantlib.training.options import TrainConfig
from plantlib.training.runs import build_model, run_start
from plantlib.training.schedules import Inattention

V = 4
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
    """One label, hidden size 1, W = 1: the output of a token is its hidden state. G plants token 1,
    L2R token 2.
    """
    made = LabelDecoder(1, 1, V, 1, keep, num_l2r_cells=1, contexts=contexts, stateful=stateful)
    made.planted.load_relevance(table((1, 1.0)))
    made.l2r.load_relevance(table((2, 1.0)))
    with torch.no_grad():
        for name, value in (
            ("planted_gain", gamma),
            ("l2r_gain", rho),
            ("label_queries", query),
            ("label_bias", bias),
        ):
            getattr(made, name).fill_(value)
        made.label_outputs.fill_(1.0)
        if contexts == "sum":
            made.context_gain.fill_(1.0)
    return made


def document(*tokens, hidden=(1.0, 2.0, 4.0), scored=None) -> Packed:
    """Token i has hidden state hidden[i]; one document."""
    h = torch.tensor(hidden[: len(tokens)])[:, None]
    return Packed(h, torch.tensor(tokens), torch.tensor([0, len(tokens)]), scored)


def weighted(*pairs) -> float:
    """sum e^s o / sum e^s of (score, output) pairs."""
    return sum(math.exp(s) * o for s, o in pairs) / sum(math.exp(s) for s, _ in pairs)


def test_one_softmax_over_the_sum_of_learned_lookup_and_l2r():
    made = toy(gamma=2.0, rho=3.0, query=0.5, bias=-1.0)
    # <H,Q> is .5, 1, 2; token 1 (at the second place) is looked up, token 2 (third) has an L2R
    # score
    wanted = weighted((0.5, 1.0), (1.0 + 2.0, 2.0), (2.0 + 3.0, 4.0)) - 1.0
    assert made(document(0, 1, 2)).item() == pytest.approx(wanted, abs=1e-6)


def test_sum_of_three_contexts():
    made = toy("sum", gamma=2.0, rho=3.0, query=0.5, bias=-1.0)
    learned = weighted((0.5, 1.0), (1.0, 2.0), (2.0, 4.0))
    lookup, l2r = weighted((0, 1.0), (2.0, 2.0), (0, 4.0)), weighted((0, 1.0), (0, 2.0), (3.0, 4.0))
    assert made(document(0, 1, 2)).item() == pytest.approx(learned + lookup + l2r - 1.0, abs=1e-6)
    with torch.no_grad():
        made.context_gain.copy_(torch.tensor([1.0, 0.0, 0.5]))
    assert made(document(0, 1, 2)).item() == pytest.approx(learned + 0.5 * l2r - 1.0, abs=1e-6)


@pytest.mark.parametrize("contexts", ["mixed", "sum"])
@pytest.mark.parametrize("keep", [None, 2])
def test_gradients_of_both_gains_are_those_of_autograd(contexts, keep):
    """The fused loss against the reference, whose gradients autograd takes; some tokens are planted
    by both tables.
    """
    torch.manual_seed(0)
    found = {}
    for impl in ("torch", "reference"):
        made = LabelDecoder(3, 4, V, 5, keep, impl, num_l2r_cells=6, contexts=contexts).double()
        made.planted.load_relevance(sparse.random(3, V, 5 / 12, "csr", random_state=1))
        made.l2r.load_relevance(sparse.random(3, V, 0.5, "csr", random_state=2))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in made.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        h = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
        packed = Packed(h, torch.tensor([0, 1, 2, 3, 1, 2, 3, 3, 0]), torch.tensor([0, 5, 5, 9]))
        loss, logits = made.loss(packed, torch.tensor([0, 2]), torch.tensor([1, 0]))
        loss.backward()
        found[impl] = [
            loss,
            logits,
            h.grad,
            *(p.grad for n, p in made.named_parameters() if n not in UNUSED),
        ]
        assert all(g is not None and g.abs().sum() > 0 for g in found[impl])
    for a, b in zip(found["torch"], found["reference"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "impl", ["torch", "reference", *(["triton"] if machine.has_triton() else [])]
)
def test_gradient_of_a_planted_value_by_hand(impl):
    """Two tokens of equal score: d value / d s = p (o - value) = .5 (3 - 2) for the second."""
    with machine.device():  # without a GPU the interpreter reads tensors of the CPU
        values = torch.tensor([0.0], requires_grad=True)
        cells = Cells(torch.tensor([1]), torch.tensor([0]), values)
        one = torch.ones(1, 1)
        given = (
            torch.tensor([[1.0], [3.0]]),
            torch.tensor([0, 2]),
            0 * one,
            one,
            cells,
            torch.tensor(2.0),
        )
        value, _ = kernels.attend(*given, impl=impl)
    value.sum().backward()
    assert value.item() == pytest.approx(2.0) and values.grad.item() == pytest.approx(
        2.0 * 0.5 * (3 - 2)
    )


@pytest.mark.parametrize(
    ("contexts", "keep"),
    [("mixed", 2), ("sum", (1, 2, None)), ("sum", 1), ("sum", (None, None, 2))],
)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_exact_state_with_k_a_context(contexts, keep, parts):
    """Read in segments or at once: the same, with another K in every context."""
    made = toy(contexts, keep, gamma=2.0, rho=3.0, query=0.5)
    tokens, hidden = (0, 1, 2, 3, 1, 2), (1.0, 2.0, 4.0, -1.0, 3.0, 0.5)
    state, size = made.start_state(1), 6 // parts
    for begin in range(0, 6, size):
        state = made.read(
            document(*tokens[begin : begin + size], hidden=hidden[begin : begin + size]), state
        )
    torch.testing.assert_close(made.finish(state), made(document(*tokens, hidden=hidden)))


def test_inattention_a_context_by_hand():
    """K is 1 for the learned context, 2 for the lookup, all for the L2R one."""
    made = toy("sum", (1, 2, None), gamma=2.0, rho=3.0, query=0.5)
    learned = 4.0  # the highest <H, Q>
    lookup = weighted((2.0, 2.0), (0, 1.0))  # the planted token, then the first of the equal ones
    l2r = weighted((0, 1.0), (0, 2.0), (3.0, 4.0))
    assert made(document(0, 1, 2)).item() == pytest.approx(learned + lookup + l2r, abs=1e-6)


def test_running_state_of_three_segments_by_hand():
    """Uniform attention; beta = -1. Segment means 1.5, 4, -1; a document that ended earlier keeps
    its logits.
    """
    made = toy(stateful="v1", bias=-1.0)
    first = 1.5 - 1
    second = 4.0 - 1 + sigmoid(first)
    third = -1.0 - 1 + sigmoid(second)
    state = made.start_state(2)
    for hidden, offsets, wanted in (
        ([1.0, 2.0, 7.0], [0, 2, 3], [first, 7.0 - 1]),
        ([4.0], [0, 1, 1], [second, 6.0]),
        ([-1.0], [0, 1, 1], [third, 6.0]),
    ):
        ids = torch.zeros(len(hidden), dtype=torch.long)
        state = made.read(Packed(torch.tensor(hidden)[:, None], ids, torch.tensor(offsets)), state)
        assert made.finish(state).squeeze(1).tolist() == pytest.approx(wanted, abs=1e-6)
    assert made.finish(made.start_state(1)).item() == pytest.approx(-1.0), (
        "a document without tokens has its bias"
    )


def test_running_state_carries_no_gradient_and_one_segment_is_exact():
    made = toy("sum", stateful="v1", gamma=2.0, rho=3.0, query=0.5)
    exact = toy("sum", gamma=2.0, rho=3.0, query=0.5)
    torch.testing.assert_close(made(document(0, 1, 2)), exact(document(0, 1, 2)))
    first, second = document(0, 1), document(2, hidden=(3.0,))
    first.hidden_states.requires_grad_()
    second.hidden_states.requires_grad_()
    made.finish(made.read(second, made.read(first, made.start_state(1)))).sum().backward()
    assert not first.hidden_states.grad.any() and second.hidden_states.grad.any()


def test_l2r_score_of_the_likely_and_of_the_expected_token():
    """R plants token 2 alone: a guess of it gives its score whatever was read; half a guess gives
    half the score.
    """
    made = toy(rho=3.0)
    ids = torch.tensor([[2], [0], [2]])
    likely = made(document(0, 1, 2, scored=Scored(ids, torch.ones(3, 1))))
    assert likely.item() == pytest.approx(weighted((3.0, 1.0), (0, 2.0), (3.0, 4.0)), abs=1e-6)
    several = Scored(
        torch.tensor([[2, 0], [1, 3], [2, 1]]), torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    )
    expected = made(document(0, 1, 2, scored=several))
    assert expected.item() == pytest.approx(weighted((1.5, 1.0), (0, 2.0), (0.6, 4.0)), abs=1e-6)


def test_expected_score_is_the_score_of_the_expected_embedding():
    e, f, p = torch.randn(V, 5), torch.randn(5), torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert ((p @ e) @ f).item() == pytest.approx((p * (e @ f)).sum().item(), abs=1e-5)


def head_of(weight) -> nn.Linear:
    head = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        head.bias.zero_()
    return head.requires_grad_(False)


def test_scored_tokens_are_the_heads_best_and_weights_sum_to_one():
    head = head_of([[0.0], [1.0], [2.0], [-1.0]])
    found = lm_head.scored_tokens(head, torch.tensor([[1.0], [-1.0]]), 2)
    assert found.ids.tolist() == [[2, 1], [3, 0]]
    share = math.e / (1 + math.e)
    assert found.weights[0].tolist() == pytest.approx([share, 1 - share])
    assert lm_head.scored_tokens(head, torch.zeros(0, 1), 1).ids.shape == (0, 1)


@pytest.mark.parametrize("backward", [False, True])
def test_language_loss_asks_the_next_token_within_a_document(backward):
    """Two documents of two tokens and one: one pair is asked; zero logits cost ln V."""
    head = head_of([[0.0], [1.0], [0.0], [0.0]])
    hidden = torch.tensor([[1.0], [0.0], [5.0]], requires_grad=True)
    total, count = lm_head.loss_sum(
        head, hidden, torch.tensor([3, 1, 2]), torch.tensor([0, 2, 2, 3]), backward
    )
    # forward: after the first token (h = 1) token 1 is asked; backward: after the second (h = 0)
    # token 3
    wanted = math.log(4) if backward else math.log(3 + math.e) - 1
    assert count == 1 and total.item() == pytest.approx(wanted, abs=1e-6)
    total.backward()
    assert hidden.grad[0].any() != backward and not hidden.grad[2].any()


def test_annealed_k_falls_by_equal_factors_and_dev_sees_the_last():
    decoder = SimpleNamespace(keep=4)
    fall = Inattention(decoder, 64, 2)
    assert [fall.keep_of(e) for e in range(4)] == [64, 16, 4, 4]
    fall.on_epoch_begin(None, SimpleNamespace(epoch=1.0), None)
    assert decoder.keep == 16
    fall.on_epoch_end(None, None, None)
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


def _awd(corpus, folder, direction="forward"):
    """A tiny AWD-LSTM of the corpus's own text."""
    from plantlib.training.awd_pretraining import PretrainConfig, pretrain

    sizes = {"hidden_size": 16, "lstm_size": 16, "num_hidden_layers": 2}
    config = PretrainConfig(
        direction=direction, epochs=1, rows=4, chunk=20, min_documents=1, sizes=sizes
    )
    pretrain(corpus, folder, config=config, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def awd(corpus, tmp_path_factory):
    """Folders of a forward and a backward AWD-LSTM."""
    root = tmp_path_factory.mktemp("awd")
    return {d: _awd(corpus, root / d, d) for d in ("forward", "backward")}


@pytest.fixture(scope="module", autouse=True)
def small_static_model():
    """Short training of the static L2R model, on short lists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_l2r, "EPOCHS", 1)
        for name in ("LABELS_PER_BATCH", "GRADED", "MINED", "NEGATIVES", "PLANTED_TOKENS"):
            patch.setattr(static_l2r, name, 8)
        yield


def options(**changes) -> RunConfig:
    given = {
        "static_dim": 16,
        "train": TrainConfig(epochs=1),
        "backbone": BackboneOptions(dropout=None),
    }
    return RunConfig(**given | changes)


@pytest.mark.parametrize(
    ("tuning", "v1", "keep", "lm_weight"),
    [
        ("frozen", V1Config(l2r_from="likely", stateful="v1"), 4, 0.0),
        ("frozen", V1Config(contexts="sum", l2r_from="expected"), (4, 8, None), 0.0),
        ("full", V1Config(contexts="sum", stateful="v1"), None, 0.5),
        ("full", V1Config(l2r_from="likely"), None, 0.5),
    ],
)
def test_v1_goes_the_whole_road_and_is_saved(tuning, v1, keep, lm_weight, corpus, awd, tmp_path):
    """Trained on windows shorter than the documents, written and read again: same options, same
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
    train = TrainConfig(
        epochs=1, lm_weight=lm_weight, **({"keep_from": 16, "keep_epochs": 1} if keep else {})
    )
    config = options(tuning=tuning, v1=v1, keep=keep, train=train)
    record, model = run_start(ready, "v1", 0, config=config, progress=False)
    assert record.params["final_gains"]["l2r"] != 2.0 and record.teacher["static_l2r"]["dim"] > 1
    assert record.params["v1"]["contexts"] == v1.contexts and record.metrics["p@1"] > 0
    if model.backbone is None:
        model.attach_backbone(ready.load_backbone())
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
    teacher = ready.teacher()
    model = build_model(ready, teacher, v1=V1Config(stateful="v1"))
    monkeypatch.setattr(starts, "INIT_STD", 0.5)
    plant(model.decoder, "lookup", teacher, ready.train_labels)
    model.attach_backbone(ready.load_backbone()).eval()
    ids, offsets = torch.arange(60) % 25 + 3, torch.tensor([0, 31, 31, 36, 60])
    with torch.inference_mode():
        streamed = model(ids, offsets).logits
        cached = model(ids, offsets, model.encode(ids, offsets)).logits
        model.decoder.stateful = "exact"
        exact = model.decoder.finish(model.stream(ids, offsets))
    torch.testing.assert_close(streamed, cached, rtol=1e-4, atol=1e-4)
    assert (streamed[0] - exact[0]).abs().max() > 1e-3, (
        "a document of several windows is read differently"
    )
    torch.testing.assert_close(streamed[2], exact[2], rtol=1e-4, atol=1e-4)


def test_language_loss_is_the_same_streamed_and_at_once(corpus, awd, tmp_path):
    found = []
    for window in (None, 7):
        reading = {
            "max_tokens": None,
            "window": window,
            "frozen": False,
            "root": tmp_path,
            "progress": False,
        }
        ready = prepare(corpus, backbone=awd["forward"], **reading)
        teacher = ready.teacher()
        model = build_model(ready, teacher, lm_weight=1.0)
        plant(model.decoder, "lookup", teacher, ready.train_labels)
        model.attach_backbone(ready.load_backbone(dropout=0.0)).train()
        ids, offsets = torch.arange(60) % 25 + 3, torch.tensor([0, 14, 28, 42, 60])
        losses = []
        for model.lm_weight in (0.0, 1.0):
            losses.append(
                model(ids, offsets, label_rows=torch.arange(4), label_columns=torch.arange(4)).loss
            )
        found.append((losses[1] - losses[0]).item())
        losses[1].backward()
        assert (
            model.backbone.layers[0].weight_hh_l0.grad.any() and model.lm_head.weight.grad is None
        )
    # a window's last token is not asked for the first of the next one: fewer, not other questions
    assert found[0] == pytest.approx(found[1], rel=0.1) and found[0] > 1


def test_every_start_has_the_same_parameters_when_asked_to(corpus, awd, tmp_path):
    ready = prepare(corpus, backbone=awd["forward"], max_tokens=None, root=tmp_path, progress=False)
    config = options(v1=V1Config(l2r_table=True))
    shapes = []
    for start in ("random", "v1"):
        record, model = run_start(ready, start, 0, config=config, progress=False)
        shapes.append(
            {n: p.shape for n, p in model.state_dict().items() if not n.startswith("teacher_score")}
        )
        assert record.model_size["trained_parameters"] == sum(
            p.numel() for p in model.parameters() if p.requires_grad
        )
    assert shapes[0] == shapes[1] and "decoder.l2r_gain" in shapes[0]
    files = list((tmp_path / "static").iterdir())
    assert len(files) == 1, "trained once, read by both"


def test_an_encoder_has_no_guess(backbone_folder, prepared, tmp_path):
    for config in (
        options(v1=V1Config(l2r_from="likely")),
        options(tuning="full", train=TrainConfig(lm_weight=0.1)),
    ):
        with pytest.raises(
            ValueError, match="is no causal language model with its head; use l2r_from='read'"
        ):
            run_start(prepared, "v1", 0, config=config, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: V1Config(l2r_from="mind"), "l2r_from='mind' is not known"),
        (lambda: options(train=TrainConfig(lm_weight=0.1)), "wants a backbone that is trained"),
        (lambda: TrainConfig(keep_from=8), "annealing wants both"),
        (lambda: options(keep=(1, 2, 3)), "three numbers"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
