"""The published heads equal their (B, L, D) form with its gradients, and run end to end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from companion.peers import neural_peers
from companion.peers.neural_peers import Caml, PlmIcd
from plantlib.training import schedules

LENGTHS = (5, 1, 12)


def packed(hidden_size: int = 6):
    """Three documents and their positive cells of (3, 4)."""
    torch.manual_seed(0)
    hidden = torch.randn(sum(LENGTHS), hidden_size, dtype=torch.float64)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return hidden, offsets, torch.tensor([0, 0, 2]), torch.tensor([1, 3, 0])


def published_caml(model: Caml, document: torch.Tensor) -> torch.Tensor:
    """Logits (L,) of one document (T, D), with the whole context (L, filters)."""
    width = model.convolution.kernel_size[0] // 2
    wide = nn.functional.pad(document.T[None], (width, width))
    filters = torch.tanh(
        nn.functional.conv1d(wide, model.convolution.weight, model.convolution.bias)
    )[0].T  # (T, filters)
    context = torch.softmax(model.label_queries @ filters.T, -1) @ filters
    return (context * model.label_outputs).sum(1) + model.label_bias


def published_plm_icd(model: PlmIcd, document: torch.Tensor) -> torch.Tensor:
    scores = torch.tanh(model.projection(document)) @ model.label_queries.T  # (T, L)
    context = torch.softmax(scores, 0).T @ document
    return (context * model.label_outputs).sum(1) + model.label_bias


@pytest.mark.parametrize(
    ("head", "published"), [(Caml, published_caml), (PlmIcd, published_plm_icd)]
)
def test_the_folded_head_equals_the_published_one_with_its_gradients(head, published):
    hidden, offsets, rows, columns = packed()
    model = head(4, 6).double().eval()
    with torch.no_grad():
        model.label_bias.normal_()
    documents = hidden.split(list(LENGTHS))
    logits = torch.stack([published(model, d) for d in documents])
    assert torch.allclose(model(None, offsets, hidden).logits, logits, atol=1e-10)
    loss = nn.functional.binary_cross_entropy_with_logits
    target = torch.zeros(3, 4, dtype=torch.float64)
    target[rows, columns] = 1.0
    expected = loss(logits, target, reduction="sum") / 3
    folded = model(None, offsets, hidden, rows, columns).loss
    assert folded.item() == pytest.approx(expected.item(), abs=1e-9)
    names = [n for n, _ in model.named_parameters()]
    gradients = torch.autograd.grad(expected, [p for _, p in model.named_parameters()])
    folded.backward()
    for name, gradient, parameter in zip(
        names, gradients, [p for _, p in model.named_parameters()], strict=True
    ):
        assert torch.allclose(parameter.grad, gradient, atol=1e-9), name


def test_documents_do_not_read_each_other():
    hidden, offsets, *_ = packed()
    model = Caml(4, 6).double().eval()
    before = model(None, offsets, hidden).logits
    changed = hidden.clone()
    changed[LENGTHS[0] :] += 1.0
    after = model(None, offsets, changed).logits
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1:], after[1:])


def test_heads_learn_are_recorded_and_are_not_repeated(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "LR_OUTPUTS", 0.05)
    config = replace(neural_peers.CONFIG, epochs=6, batch_size=4, lr_queries=0.05, lr_backbone=0.01)
    records = neural_peers.run(prepared, config=config, results=tmp_path, progress=False)
    assert [r.system for r in records] == ["CAML head", "PLM-ICD head"] and {
        r.kind for r in records
    } == {"neural"}
    for record in records:
        assert record.history[-1]["train_loss"] < record.history[0]["train_loss"] / 2
        assert (
            record.times["predict"] > 0
            and record.model_size["model_mb"] > 0
            and record.backbone is None
        )
        assert 1 <= record.chosen_epoch <= len(record.history) <= 6
    assert records[1].metrics["ndcg@5"] > 0.7, (
        "labels follow from words; without learning it is 0.5"
    )
    monkeypatch.setattr(
        neural_peers, "run_head", lambda *a, **k: pytest.fail("a finished run was repeated")
    )
    assert neural_peers.run(prepared, config=config, results=tmp_path, progress=False) == records


def test_unknown_heads_and_missing_features_are_refused(prepared):
    with pytest.raises(ValueError, match="'LSTM' is not known; use some of CAML head"):
        neural_peers.run(prepared, ("LSTM",))
    with pytest.raises(ValueError, match="cached features"):
        neural_peers.run(replace(prepared, features=None))
