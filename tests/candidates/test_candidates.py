"""Candidates against dense definitions, the decoder on them against the reference, and factors that
all learn.

docs/method.md, "Candidate labels", and two of the "Faults of the published code": factors that
never leave zero, and candidates drawn from the true labels at test time.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from scipy import sparse

from companion.studies import convergence
from plantlib.candidates import lists as candidates
from plantlib.candidates import training as candidate_training
from plantlib.candidates.decoder import (
    CandidateConfig,
    CandidateDecoder,
    candidate_bce,
    factors,
    parts_of,
    plant,
)
from plantlib.candidates.lists import Ranker
from plantlib.kernels import Cells, reference
from plantlib.metrics.documents import Scores, StreamingEvaluator, evaluate, precision_at_k
from plantlib.planting import starts
from plantlib.planting.decoder import Packed
from plantlib.training import candidate_runs
from plantlib.training.records import RunRecord
from plantlib.utils.base import DataError
from tests.tolerances import assert_within_rounding, near

L, V, D, R = 23, 17, 6, 3


def random_csr(rows: int, columns: int, density: float, seed: int) -> sparse.csr_matrix:
    return sparse.random(
        rows, columns, density, "csr", rng=np.random.default_rng(seed), dtype=np.float64
    )


@pytest.fixture
def scores():
    return random_csr(L, V, 0.4, 0)


@pytest.fixture
def weights():
    w = random_csr(9, V, 0.5, 1).tolil()
    w[4] = 0  # a document without tokens
    return w.tocsr()


@pytest.mark.parametrize("width", [1, 5, 40])
def test_an_unpruned_ranker_is_the_dense_ranking(scores, weights, width):
    ids, found = Ranker.of(scores, V + L).rank(weights, width)
    dense = (weights @ scores.T).toarray()
    for i, row in enumerate(dense):
        order = [j for j in np.lexsort((np.arange(L), -row.astype(np.float32))) if row[j] > 0][
            :width
        ]
        assert_within_rounding(found[i, : len(order)], row[order].astype(np.float32), operations=V)
        assert sorted(ids[i, : len(order)]) == sorted(order) and (ids[i, len(order) :] == -1).all()
    assert (ids[4] == -1).all() and (found[4] == -np.inf).all()


def test_equal_scores_go_to_the_smaller_label():
    ranker = Ranker.of(sparse.csr_matrix(np.ones((5, 1))), 5)
    assert ranker.rank(sparse.csr_matrix([[2.0]]), 3)[0].tolist() == [[0, 1, 2]]


def test_pruning_keeps_the_best_labels_of_a_token(scores):
    pruned = Ranker.of(scores, 2)
    assert np.diff(pruned.indptr).max() == 2 and pruned.num_labels == L
    for token in range(V):
        own = pruned.values[pruned.indptr[token] : pruned.indptr[token + 1]]
        column = np.sort(scores[:, [token]].toarray().ravel())[::-1]
        assert np.array_equal(np.sort(own)[::-1], column[: own.size].astype(own.dtype))
    with pytest.raises(ValueError, match="per_token=0"):
        Ranker.of(scores, 0)


def test_interleaving_takes_turns_and_each_label_once():
    first, second = np.array([[3, 1, 2], [5, -1, -1]]), np.array([[1, 4, 3], [-1, -1, -1]])
    assert candidates.interleaved(first, second, 4).tolist() == [[3, 1, 4, 2], [5, -1, -1, -1]]


def test_recall_by_hand():
    gold = sparse.csr_matrix(np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]))
    ids = np.array([[0, 2, 1], [2, 3, -1], [0, 1, 2]])
    assert candidates.recall(ids, gold, (1, 2, 3)) == {1: 0.25, 2: 0.75, 3: 1.0}
    with pytest.raises(ValueError, match="recall at 4 of 3 candidates"):
        candidates.recall(ids, gold, (4,))


def test_training_lists_hold_every_positive_and_hard_negatives():
    ranked = np.array([[7, 2, 9, 4, 1, 8], [0, 1, -1, -1, -1, -1], [5, 6, 7, 8, 9, 3]])
    gold = sparse.csr_matrix(
        np.eye(12, dtype=int)[[2, 11, 0]] + np.eye(12, dtype=int)[[11, 10, 0]] > 0
    )
    drawn = set()
    for seed in range(20):
        ids, positive = candidates.training_candidates(
            ranked, gold, 4, np.random.default_rng(seed), hard=0.5
        )
        assert ids[0, :3].tolist() == [2, 11, 7], (
            "positives, one of them unknown to the ranker, then the hardest"
        )
        assert ids[0, 3] in {9, 4, 1, 8} and positive[0].tolist() == [True, True, False, False]
        assert ids[1].tolist() == [10, 11, 0, 1] and ids[2, :2].tolist() == [0, 5]
        drawn.add(ids[0, 3])
    assert len(drawn) > 1, "the rest is drawn"
    hardest, _ = candidates.training_candidates(ranked, gold, 4, np.random.default_rng(0), hard=1.0)
    assert hardest[0].tolist() == [2, 11, 7, 9]
    known, positive = candidates.training_candidates(
        ranked, gold, 4, np.random.default_rng(0), hard=1.0, unlisted=False
    )
    assert known.tolist() == [[2, 7, 9, 4], [0, 1, -1, -1], [5, 6, 7, 8]], (
        "11, 10 and 0 are not listed"
    )
    assert positive.sum(1).tolist() == [1, 0, 0] and positive[0, 0]
    with pytest.raises(DataError, match="has 2 labels and 1 candidate places"):
        candidates.training_candidates(ranked, gold, 1, np.random.default_rng(0))


def test_pair_scores_and_planted_cells_equal_the_dense_tables(scores, weights):
    ids = np.random.default_rng(2).permuted(np.tile(np.arange(L), (9, 1)), axis=1)[:, :7]
    ids[3, 2] = -1
    found, dense = candidates.pair_scores(scores, weights, ids), (weights @ scores.T).toarray()
    wanted = np.take_along_axis(dense, ids.clip(0), 1)
    wanted[3, 2] = 0
    assert_within_rounding(found, wanted.astype(np.float32), operations=V)
    tokens, labels = np.array([4, 4, 0, 9, 4]), np.array([3, 0, 21])
    table = np.zeros((5, 3))
    positions, places, values = candidates.planted_cells(scores, labels, tokens)
    np.add.at(table, (positions, places), values)
    # each cell is added to zero once
    assert np.array_equal(table, scores.toarray()[labels][:, tokens].T.astype(values.dtype))
    assert (np.diff(places) >= 0).all(), "by label, as the kernels want them"


def packed_of(lengths, seed: int = 3) -> Packed:
    generator, size = torch.Generator().manual_seed(seed), sum(lengths)
    return Packed(
        torch.randn(size, D, generator=generator),
        torch.randint(V, (size,), generator=generator),
        torch.tensor([0, *lengths]).cumsum(0),
    )


def planted_decoder(queries=None, start="lookup+score", **options) -> CandidateDecoder:
    decoder = CandidateDecoder(L, D, R)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts, "INIT_STD", 0.3)
        plant(decoder, sparse.csr_matrix(np.eye(L, dtype=int)), start, queries, **options)
    return decoder


def test_logits_equal_the_reference_on_the_whole_label_space(scores):
    decoder, packed = planted_decoder(), packed_of([4, 0, 7])
    chosen = torch.tensor([[3, 0, 21, -1], [5, 3, -1, -1], [22, 7, 3, 1]])
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    dense = scores.T.toarray()[packed.token_ids.numpy()]
    cells = Cells(
        *torch.from_numpy(np.stack(dense.nonzero())),
        torch.from_numpy(dense[dense.nonzero()]).float(),
    )
    queries = decoder.query_rows.weight @ decoder.query_basis
    outputs = decoder.output_rows.weight @ decoder.output_basis
    whole, _ = reference.label_attention(
        packed.hidden_states,
        packed.offsets,
        queries,
        outputs,
        cells,
        decoder.planted_gain,
        label_bias=decoder.label_bias.weight[:, 0],
    )
    wanted = whole.gather(1, chosen.clamp(min=0)) + z
    found = decoder(packed, chosen, scores, z)
    assert torch.equal(found.isinf(), chosen < 0)
    # tokens, units and exponents
    assert_within_rounding(found[chosen >= 0], wanted[chosen >= 0], operations=100)


def test_an_empty_place_moves_no_label(scores):
    decoder, packed = planted_decoder(), packed_of([4, 3])
    optimisers = decoder.optimisers(1e-2)

    def step(chosen):
        for optimiser in optimisers:
            optimiser.zero_grad()
        chosen = torch.tensor(chosen)
        candidate_bce(decoder(packed, chosen, scores), chosen == 3).backward()
        for optimiser in optimisers:
            optimiser.step()

    step([[0, 3], [3, 5]])
    before = decoder.label_bias.weight[0].clone()
    step([[3, -1], [5, -1]])
    assert torch.equal(decoder.label_bias.weight[0], before), (
        "label 0 is no candidate where a place is -1"
    )
    assert decoder(packed, torch.full((2, 1), -1), scores).isinf().all()


@pytest.mark.parametrize("start", ["random", "planted"])
def test_every_factor_learns_from_the_first_step(scores, start):
    queries = (
        torch.randn(L, D, generator=torch.Generator().manual_seed(7))
        if start == "planted"
        else None
    )
    decoder, packed = planted_decoder(queries), packed_of([5, 6])
    chosen, positive = (
        torch.tensor([[3, 0, 21], [5, 3, 8]]),
        torch.tensor([[True, False, False], [False, True, False]]),
    )
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    optimisers = decoder.optimisers(1e-2)
    candidate_bce(decoder(packed, chosen, scores, torch.rand(2, 3)), positive).backward()
    used = torch.unique(chosen)
    for name, p in decoder.named_parameters():
        grad = p.grad.to_dense() if p.grad.is_sparse else p.grad
        assert p.grad.is_sparse == name.endswith(".weight"), name
        rows = (
            grad[used]
            if p.grad.is_sparse
            else grad.reshape(len(grad), -1)
            if grad.dim()
            else grad[None, None]
        )
        assert rows.isfinite().all() and (rows.abs().sum(1) > 0).all(), (
            f"{start}: {name} gets no gradient"
        )
    for optimiser in optimisers:
        optimiser.step()
    others = np.setdiff1d(np.arange(L), used)
    for name, p in decoder.named_parameters():
        assert not torch.equal(p, before[name]), name
        if name.endswith(".weight"):
            assert torch.equal(p[others], before[name][others]), (
                "rows of labels that were no candidates stay"
            )
            assert p.grad._nnz() <= chosen.numel(), "no gradient of L rows is ever made"


def test_factors_are_exact_at_full_rank_and_best_below():
    queries = torch.randn(L, D, generator=torch.Generator().manual_seed(8))
    left, right = factors(queries, D)
    solved = 10 * (L + D)  # a few sweeps of the decomposition over rows and columns
    assert_within_rounding(left @ right, queries, solved)
    u, s, v = torch.linalg.svd(queries, full_matrices=False)
    left, right = factors(queries, R)
    assert_within_rounding(left @ right, (u[:, :R] * s[:R]) @ v[:R], solved)
    assert left.norm().item() == near(right.norm().item(), solved), "the scale is shared"
    with pytest.raises(ValueError, match="rank=7: wanted 1 to the hidden size 6"):
        CandidateDecoder(L, D, D + 1)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"width": 0}, "width=0; give at least 1"), ({"rank": 0}, "rank=0; give at least 1")],
)
def test_options_are_checked(option, message):
    with pytest.raises(ValueError, match=message):
        CandidateConfig(**option)


def with_labels(prepared, labels):
    return dataclasses.replace(prepared, corpus=dataclasses.replace(prepared.corpus, labels=labels))


def test_training_works_and_prediction_needs_no_labels(prepared):
    config = CandidateConfig(width=4, rank=8, epochs=6)
    labels, train, test = prepared.corpus.labels, prepared.rows["train"], prepared.rows["test"]
    made = []
    for y in (labels, _scrambled_outside(labels, train)):
        data, _ = candidate_runs.data_of(with_labels(prepared, y), config, progress=False)
        decoder = CandidateDecoder(labels.shape[1], prepared.hidden_size, config.rank)
        plant(decoder, y[train])
        losses = candidate_training.fit(decoder, data, train, y, config, rate=3e-2, progress=False)
        made.append(
            (data.ranked, losses, candidate_training.predict(decoder, data, test, config, k=4))
        )
    assert losses[-1] < 0.7 * losses[0]
    assert precision_at_k(made[0][2], labels[test], 1).mean() > 0.6
    # fault 11: whatever the labels of dev and test are, candidates, training and predictions are
    # the same
    assert np.array_equal(made[0][0], made[1][0]) and made[0][1] == made[1][1]
    assert np.array_equal(made[0][2].ids, made[1][2].ids)
    assert "labels" not in inspect.signature(candidate_training.predict).parameters
    listed = made[0][0][test][:, : config.width]
    assert all(
        set(row[row >= 0]) <= set(own) for row, own in zip(made[0][2].ids, listed, strict=True)
    )


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no GPU here: the same code runs on the CPU in the tests around",
)
def test_a_run_on_the_gpu_is_that_of_the_cpu(prepared, monkeypatch):
    monkeypatch.setattr(candidate_runs, "LEARNING_RATE", 3e-2)
    config = CandidateConfig(width=5, rank=8, epochs=2)
    there, decoder = candidate_runs.run_candidates(prepared, config, progress=False)
    assert decoder.planted_gain.is_cuda
    monkeypatch.setattr(candidate_runs.machine, "device", lambda: torch.device("cpu"))
    here, _ = candidate_runs.run_candidates(prepared, config, progress=False)
    # the first row is of no training: dev alone
    losses = [[row["train_loss"] for row in run.history[1:]] for run in (there, here)]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_run_is_a_record_that_states_what_its_candidates_reach(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(candidate_runs, "LEARNING_RATE", 3e-2)
    config = CandidateConfig(width=5, rank=8, epochs=3)
    record, decoder = candidate_runs.run_candidates(
        prepared, config, results=tmp_path, progress=False
    )
    again = RunRecord.load(tmp_path / f"{record.id}.json")
    assert again.system == "lookup+score" and again.metrics["p@1"] == record.metrics["p@1"] > 0.5
    assert (
        0.5 < record.metrics["recall@5 of candidates"] <= 1
        and record.metrics["r@5"] <= record.metrics["recall@5 of candidates"] + 1e-9
    ), "candidates bound every recall"
    assert (
        record.chosen_epoch == int(np.argmax([e["ndcg@5"] for e in record.history]))
        and len(record.history) == 4
    )
    assert list(convergence.steps([record])["step"]) == [0, 4, 8, 12], (
        "60 documents in batches of 16"
    )
    assert {"few/rp@5", "p@5"} <= set(record.history[-1]) and len(
        record.per_document["few/rp@5"]
    ) == len(prepared.rows["test"])
    assert [row["seconds"] for row in record.history] == sorted(
        row["seconds"] for row in record.history
    )
    assert record.model_size["trained_parameters"] == sum(p.numel() for p in decoder.parameters())
    with pytest.raises(DataError, match="frozen=True"):
        candidate_runs.data_of(dataclasses.replace(prepared, features=None), config)


def test_buckets_are_ranked_among_all_candidates(prepared):
    """With every label a candidate the metrics are those of the evaluator that sees all scores,
    buckets included.
    """
    labels, test = prepared.corpus.labels, prepared.rows["test"]
    config = CandidateConfig(width=labels.shape[1], rank=8)
    data, _ = candidate_runs.data_of(prepared, config, "linear", progress=False)
    decoder = CandidateDecoder(labels.shape[1], prepared.hidden_size, config.rank)
    plant(decoder, prepared.train_labels, "linear")
    # half of the labels are rare, whatever the corpus says, and five places are kept of all labels
    counts = np.where(np.arange(labels.shape[1]) % 2, 1, 60)
    found = candidate_training.score(decoder, data, test, config, counts, k=5)
    exact = StreamingEvaluator(labels[test], counts, k=5)
    ids = np.tile(np.arange(labels.shape[1]), (len(test), 1))
    with torch.inference_mode():
        exact.update(np.arange(len(test)), data.logits(decoder, test, ids))
    wanted, own = (evaluate(s, labels[test], counts, 60) for s in (exact.result(), found))
    for name in ("p@1", "few/rp@5", "few/r@15", "head/ndcg@5"):
        assert own[name] == pytest.approx(wanted[name]), name
    lower = evaluate(Scores(found.topk), labels[test], counts, 60)
    assert lower["few/rp@5"] < own["few/rp@5"], (
        "what the bucket would be among the kept places alone"
    )


def test_too_few_candidates_for_a_document_are_refused_before_long_work(prepared, monkeypatch):
    monkeypatch.setattr(
        candidate_runs, "data_of", lambda *a, **k: pytest.fail("the rankings were made first")
    )
    most = int(np.diff(prepared.train_labels.indptr).max())
    with pytest.raises(
        DataError, match=f"has {most} labels and {most - 1} candidate places; use {most} candidates"
    ):
        candidate_runs.run_candidates(prepared, CandidateConfig(width=most - 1), progress=False)


def _scrambled_outside(labels: sparse.csr_matrix, train: np.ndarray) -> sparse.csr_matrix:
    """All labels on every document outside train."""
    dense = np.ones(labels.shape, np.int32)
    dense[train] = labels[train].toarray()
    return sparse.csr_matrix(dense)


@pytest.mark.parametrize("start", ["l2r", "score+linear", "lookup+score+linear", "text"])
def test_starts_that_candidates_do_not_know_are_refused(start):
    with pytest.raises(ValueError, match="not one of candidates"):
        parts_of(start)


def test_listed_scores_by_hand():
    ranked, scores = np.array([[3, 0, 2], [1, 3, -1]]), np.float32([[9, 8, 7], [6, 5, -np.inf]])
    found = candidates.listed_scores(ranked, scores, np.array([[2, -1, 3], [3, 1, -1]]))
    np.testing.assert_array_equal(found, np.float32([[7, 0, 9], [5, 6, 0]]))
    # 3 is the largest label, and an empty place of the second document must not be taken for the
    # first one's
    with pytest.raises(ValueError, match="label 3 is not among the listed candidates"):
        candidates.listed_scores(ranked[:, 1:], scores[:, 1:], np.array([[3], [3]]))


def test_training_from_the_linear_score_begins_with_its_ranking(prepared):
    config = CandidateConfig(width=4, rank=8)
    data, linear = candidate_runs.data_of(prepared, config, "lookup+linear", progress=False)
    train, test = prepared.rows["train"], prepared.rows["test"]
    decoder = CandidateDecoder(prepared.corpus.L, prepared.hidden_size, config.rank)
    plant(decoder, prepared.train_labels, "lookup+linear")
    found = candidate_training.predict(decoder, data, test, config, k=4)
    # listed where rare labels are raised, scored as training knows it
    listed = candidates.best_of(linear.raised(test), 4)
    wanted = -np.sort(-np.take_along_axis(linear.scores(test), listed, 1), axis=1)
    assert_within_rounding(found.scores, wanted.astype(np.float32), operations=100)  # words
    assert not np.array_equal(linear.scores(train), linear.tables[0].scores(linear.tfidf[train])), (
        "out of fold"
    )
    ids = data.ranked[train[:5]][:, :3].copy()
    ids[0, 1] = -1
    wanted = np.take_along_axis(linear.scores(train[:5]), ids.clip(min=0), 1)
    wanted[0, 1] = 0
    np.testing.assert_array_equal(data.scores(train[:5], ids), wanted)
    losses = candidate_training.fit(
        decoder, data, train, prepared.corpus.labels, config, progress=False
    )
    assert decoder.output_rows.weight.abs().sum() > 0 and losses[-1] < losses[0], (
        "attention learns beside the score"
    )


def test_the_best_places_are_those_of_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 5, (40, 13)).astype(np.float32)
    for depth in (1, 6, 13):
        wanted = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        found = candidates.best_of(scores, depth)
        np.testing.assert_array_equal(
            np.take_along_axis(scores, found, 1), np.take_along_axis(scores, wanted, 1)
        )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("start", ["random", "lookup+score", "shuffled+linear"])
def test_a_killed_run_goes_on_to_the_same_numbers(prepared, tmp_path, monkeypatch, start):
    monkeypatch.setattr(candidate_runs, "LEARNING_RATE", 3e-2)
    config = CandidateConfig(width=5, rank=8, epochs=3)
    whole, _ = candidate_runs.run_candidates(prepared, config, start, progress=False)
    offer = candidate_runs.Kept.offer

    def killed(self, row):
        offer(self, row)
        if row["epoch"] == 2:  # before the epoch is on disk: it is done again
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(candidate_runs.Kept, "offer", killed)
        candidate_runs.run_candidates(prepared, config, start, progress=False)
    [folder] = (prepared.root / "checkpoints").glob(f"*{start}-5c*")
    trained = folder / "gain-4.0" if "linear" in start else folder
    assert sorted(p.name for p in trained.iterdir()) == [
        "best.safetensors",
        "epoch.safetensors",
        "history.json",
    ]
    again, _ = candidate_runs.run_candidates(prepared, config, start, progress=False)

    def without_times(history):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in history]

    assert without_times(again.history) == without_times(whole.history)
    assert again.metrics == whole.metrics and not folder.exists()
    gains = whole.params["final_gains"]
    assert (gains["linear"] > 0, gains["teacher"] > 0) == (
        "linear" in start,
        start == "lookup+score",
    )


def test_a_grid_reads_what_is_finished(prepared, tmp_path, monkeypatch):
    config, starts = CandidateConfig(width=5, rank=8, epochs=1), ("random", "lookup+score")
    made = candidate_runs.candidate_grid(
        prepared, starts, (0, 1), config=config, results=tmp_path, progress=False
    )
    assert {(r.system, r.seed) for r in made} == {(s, i) for s in starts for i in (0, 1)} and len(
        set(r.id for r in made)
    ) == 4
    monkeypatch.setattr(candidate_runs, "run_candidates", None)
    again = candidate_runs.candidate_grid(
        prepared, starts, (0, 1), config=config, results=tmp_path, progress=False
    )
    assert [r.metrics for r in again] == [r.metrics for r in made]
    with pytest.raises(TypeError):  # other parameters: the record does not count
        candidate_runs.candidate_grid(
            prepared,
            starts,
            (0,),
            config=CandidateConfig(width=5, rank=7, epochs=1),
            results=tmp_path,
            progress=False,
        )
