"""LabelDecoder: segments equal the whole document, padding is never read, the planted table finds
its cells.

docs/method.md, "The decoder" and "Long documents": the streaming state is exact for any cut, with
inattention too, and so are its gradients. The planted table is checked against a dense gather.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib.kernels.reference import planted_scores
from plantlib.planting.decoder import LabelDecoder, Packed, PlantedTable, merge, pack
from tests.tolerances import assert_within_rounding

VOCABULARY, LABELS, DIM = 23, 7, 6
OPERATIONS = 100  # 40 tokens in segments, 6 units, 7 labels, and exponents below 20


def relevance(seed: int = 0) -> sparse.csr_matrix:
    """G (L, V), a fifth of the cells planted; label 2 has no teacher, token 5 plants nothing."""
    rng = np.random.default_rng(seed)
    dense = rng.random((LABELS, VOCABULARY)) * (rng.random((LABELS, VOCABULARY)) < 0.2)
    dense[2], dense[:, 5] = 0, 0
    return sparse.csr_matrix(dense)


def decoder(keep=None, dtype=torch.float32, gain=1.5, impl="auto") -> LabelDecoder:
    """A decoder with random values and the table of `relevance()`."""
    teacher = relevance()
    made = LabelDecoder(LABELS, DIM, VOCABULARY, teacher.nnz, keep, impl)
    made.planted.load_relevance(teacher)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("label_queries", "label_outputs", "label_bias"):
            getattr(made, name).normal_(generator=generator)
        made.planted_gain.fill_(gain)
        made.teacher_gain.fill_(0.7)
    return made.to(dtype)


def documents(lengths, dtype=torch.float32, ties=False, seed=2) -> Packed:
    """Packed random documents; with ties, every token has one of two hidden states."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    hidden = torch.randn(int(offsets[-1]), DIM, generator=generator, dtype=torch.float64)
    ids = torch.randint(VOCABULARY, (len(hidden),), generator=generator)
    if ties:
        # small whole numbers: products are exact in float32, so that equal scores are equal to the
        # bit
        which = torch.randint(2, (len(hidden),), generator=generator)
        hidden, ids = (
            torch.tensor([[1.0] * DIM, [0.0, 2.0] * (DIM // 2)])[which],
            torch.full_like(ids, 5),
        )
    return Packed(hidden.to(dtype), ids, offsets)


def segments(packed: Packed, parts: int):
    """Every document cut into `parts` segments of uneven length, some of them empty."""
    for i in range(parts):
        rows, lengths = [], []
        for begin, end in zip(
            packed.offsets[:-1].tolist(), packed.offsets[1:].tolist(), strict=True
        ):
            cut = [begin + round((end - begin) * (j / parts) ** 1.5) for j in range(parts + 1)]
            rows += range(cut[i], cut[i + 1])
            lengths.append(cut[i + 1] - cut[i])
        yield Packed(
            packed.hidden_states[rows],
            packed.token_ids[rows],
            torch.tensor([0, *lengths]).cumsum(0),
        )


def streamed(made: LabelDecoder, packed: Packed, parts: int, z=None) -> torch.Tensor:
    state = made.start_state(len(packed.offsets) - 1)
    for part in segments(packed, parts):
        state = made.read(part, state)
    return made.finish(state, z)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("keep", [None, 1, 4], ids=["all", "keep 1", "keep 4"])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_segments_give_the_same_logits(parts, keep, ties, impl):
    made, packed = decoder(keep, impl=impl), documents([11, 1, 0, 29], ties=ties)
    z = torch.randn(4, LABELS, generator=torch.Generator().manual_seed(3))
    assert_within_rounding(streamed(made, packed, parts, z), made(packed, z), OPERATIONS)


def test_ties_across_segments_keep_the_earlier_token():
    """Equal scores everywhere: the first two tokens are read, however the document is cut."""
    made = decoder(keep=2)
    with torch.no_grad():
        made.label_queries.zero_()
    packed = documents([9])._replace(token_ids=torch.full((9,), 5))
    wanted = (packed.hidden_states[:2] @ made.label_outputs.T).mean(0) + made.label_bias
    for parts in (1, 2, 7):
        assert_within_rounding(streamed(made, packed, parts)[0], wanted, OPERATIONS)


@pytest.mark.parametrize("keep", [None, 3], ids=["all", "keep 3"])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_gradients_through_the_state(parts, keep):
    made, gradients = decoder(keep, torch.float64), []
    for stream in (True, False):
        packed = documents([11, 0, 29, 2], torch.float64)
        packed.hidden_states.requires_grad_()
        made.zero_grad()
        logits = streamed(made, packed, parts) if stream else made(packed)
        (
            logits * torch.linspace(-1, 2, logits.numel(), dtype=torch.float64).view_as(logits)
        ).sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
        )
        gradients[-1]["hidden_states"] = packed.hidden_states.grad
    assert set(gradients[0]) == {
        "label_queries",
        "label_outputs",
        "label_bias",
        "planted_gain",
        "hidden_states",
    }
    for name, wanted in gradients[1].items():
        assert gradients[0][name].isfinite().all(), name
        assert_within_rounding(gradients[0][name], wanted, OPERATIONS, name=name)


def test_merge_is_associative_and_an_empty_segment_changes_nothing():
    made, packed = decoder(dtype=torch.float64), documents([11, 5], torch.float64)
    a, b, c = (made.read(part) for part in segments(packed, 3))
    for left, right in zip(merge(merge(a, b), c)[:2], merge(a, merge(b, c))[:2], strict=True):
        assert_within_rounding(left, right, OPERATIONS)
    for both in (merge(a, made.start_state(2)), merge(made.start_state(2), a)):
        assert_within_rounding(both.value, a.value, OPERATIONS)
        assert_within_rounding(both.log_sum_exp, a.log_sum_exp, OPERATIONS)


def test_streaming_with_inattention_needs_a_start_state():
    made = decoder(keep=2)
    first = made.read(documents([3]))
    with pytest.raises(ValueError, match="start_state"):
        made.read(documents([3]), first)


def test_a_running_state_remembers_no_tokens():
    """With stateful="v1" a segment is read alone, with inattention too."""
    running = LabelDecoder(LABELS, DIM, keep=2, stateful="v1").start_state(3)
    assert running.kept_scores is None and running.kept_outputs is None
    exact = LabelDecoder(LABELS, DIM, keep=2).start_state(3)
    assert exact.kept_scores.shape == exact.kept_outputs.shape == (3, LABELS, 0)


@pytest.mark.parametrize("keep", [None, 2])
def test_padding_and_special_tokens_are_never_attended_to(keep):
    """Their hidden states are NaN: one that were read would show."""
    made, generator = decoder(keep), torch.Generator().manual_seed(4)
    mask = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    hidden, ids = (
        torch.randn(3, 6, DIM, generator=generator),
        torch.randint(VOCABULARY, (3, 6), generator=generator),
    )
    poisoned = hidden.masked_fill(mask[..., None] == 0, float("nan"))
    packed = pack(poisoned, ids, mask)
    assert packed.offsets.tolist() == [0, 3, 7, 7]
    assert torch.equal(packed.token_ids, torch.cat([ids[0, 1:4], ids[1, 1:5]]))
    logits = made(packed)
    assert logits.isfinite().all()
    alone = made(Packed(hidden[1, 1:5], ids[1, 1:5], torch.tensor([0, 4])))
    assert_within_rounding(logits[1], alone[0], OPERATIONS)


def test_table_equals_the_dense_gather():
    teacher, ids = relevance(), torch.tensor([3, 5, 3, 22, 0, 11, 5])
    table = PlantedTable(VOCABULARY, teacher.nnz)
    table.load_relevance(teacher)
    cells = table.cells(ids)
    assert (cells.labels.diff() >= 0).all()
    dense = planted_scores(cells, len(ids), LABELS, torch.float32)
    # every cell is planted once, so nothing is added
    assert torch.equal(dense, torch.from_numpy(teacher.toarray().T[ids.numpy()]).float())


@pytest.mark.parametrize("ids", [[], [5, 5]], ids=["no tokens", "tokens without a teacher"])
def test_table_without_cells(ids):
    table = PlantedTable(VOCABULARY, relevance().nnz)
    table.load_relevance(relevance())
    assert table.cells(torch.tensor(ids, dtype=torch.long)) is None


@pytest.mark.parametrize(
    ("tokens", "cells"),
    [(VOCABULARY + 1, 0), (VOCABULARY, 1)],
    ids=["one token more", "one cell more"],
)
def test_table_of_another_size_is_refused(tokens, cells):
    table = PlantedTable(tokens, relevance().nnz + cells)
    with pytest.raises(
        ValueError, match=f"holds {tokens} tokens and {relevance().nnz + cells} cells.*{VOCABULARY}"
    ):
        table.load_relevance(relevance())


@pytest.mark.parametrize("keep", [None, 2])
def test_document_without_tokens_gives_the_bias(keep):
    made, z = decoder(keep), torch.randn(2, LABELS, generator=torch.Generator().manual_seed(5))
    nothing = documents([0, 0])
    assert torch.equal(made(nothing), made.label_bias.expand(2, -1))
    for logits in (made(nothing, z), streamed(made, nothing, 2, z)):
        assert_within_rounding(logits, made.label_bias + 0.7 * z, operations=2)


def test_planted_gain_raises_attention_on_planted_tokens():
    packed, teacher, shares = documents([40]), relevance().toarray(), []
    planted = torch.from_numpy(teacher.T[packed.token_ids.numpy()] > 0)
    for gain in (0.0, 2.0, 8.0):
        made = decoder(gain=gain)
        scores, _ = made.token_scores(packed.hidden_states, made.planted.cells(packed.token_ids))
        shares.append((scores.softmax(0) * planted).sum(0))
    taught = planted.any(0)
    assert taught.any() and not taught[2]
    assert (shares[0][taught] < shares[1][taught]).all() and (
        shares[1][taught] < shares[2][taught]
    ).all()
    assert shares[2][2] == 0


def test_token_scores_of_chosen_labels_are_the_same_numbers():
    """What explanations read: all labels at once or one, planted cells included."""
    made, packed = decoder(), documents([12])
    cells, chosen = made.planted.cells(packed.token_ids), torch.tensor([6, 0])
    for whole, part in zip(
        made.token_scores(packed.hidden_states, cells),
        made.token_scores(packed.hidden_states, cells, chosen),
        strict=True,
    ):
        assert_within_rounding(part, whole[:, chosen], OPERATIONS)
    scores, outputs = made.token_scores(packed.hidden_states, cells)
    logits = (scores.softmax(0) * outputs).sum(0) + made.label_bias
    assert_within_rounding(logits, made(packed)[0], OPERATIONS)
