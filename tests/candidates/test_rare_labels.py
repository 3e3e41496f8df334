"""Rare labels raised after training, and nothing planted where dev sees no gain, in runs on
candidates.
"""

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib.candidates import training as candidate_training
from plantlib.candidates.decoder import CandidateConfig
from plantlib.linear import rare
from plantlib.metrics.documents import Scores, evaluate
from plantlib.metrics.topk import TopK
from plantlib.training import candidate_runs

CONFIG = CandidateConfig(width=4, rank=8, epochs=1)


def lists(scores: np.ndarray, gold: np.ndarray, counts: np.ndarray, k: int):
    """The arguments of `rare.added_to` of dense scores (n, L) and gold (n, L)."""
    masks = {"few": counts <= 5, "many": counts > 5}
    buckets = {
        name: TopK.from_dense(np.where(mask, scores, -np.inf).astype(np.float32), k)
        for name, mask in masks.items()
    }
    topk = TopK.from_dense(scores.astype(np.float32), k)
    return Scores(topk, buckets, masks), sparse.csr_matrix(gold.astype(np.int32)), counts


def problem(seed: int = 0):
    """40 labels; the last 20 have three documents and are likelier than their scores say."""
    rng = np.random.default_rng(seed)
    counts = np.repeat([60, 3], 20)
    scores = rng.normal(-4, 2, (400, 40))
    chance = 1 / (1 + np.exp(-(scores + np.where(counts < 6, 1.5, 0))))
    return scores, rng.random(scores.shape) < chance, counts


def test_what_is_added_finds_more_rare_labels_and_leaves_the_first_places():
    scores, gold, counts = problem()
    arguments = lists(scores, gold, counts, 15)
    added = rare.added_to(*arguments)
    assert (added[:20] == 0).all() and len(set(added[20:].tolist())) == 1 and added[-1] > 0.5

    def metrics(values):
        found = rare.listed(*lists(values, gold, counts, 40))
        return found.metrics(found.mapped(1.0, 0.0))

    before, after = metrics(scores), metrics(scores + added)
    assert after[1] > before[1] + 0.03 and after[0] > before[0] - rare.LOSS


def test_lists_of_every_bucket_rank_as_all_scores_do():
    scores, gold, counts = problem(1)
    short, whole = (rare.listed(*lists(scores, gold, counts, k)) for k in (15, 40))
    for added in rare.RAISES:
        values = [
            found.metrics(found.mapped(1.0, added * rare.share_of(found.known).ravel()))
            for found in (short, whole)
        ]
        np.testing.assert_allclose(*values, rtol=1e-6)


def test_few_documents_raise_less():
    scores, gold, counts = problem()
    whole, less = (rare.added_to(*lists(scores[:n], gold[:n], counts, 15)) for n in (400, 50))
    found = rare.listed(*lists(scores[:50], gold[:50], counts, 15))
    share = rare.share_of(found.known).ravel()
    best = rare.RAISES[found.best(found.mapped(1.0, added * share) for added in rare.RAISES)]
    labelled = gold[:50].any(1).sum()
    assert whole.max() in rare.RAISES and less.max() == pytest.approx(best * labelled / 200)


def test_without_a_gold_label_of_few_documents_nothing_is_added():
    scores, gold, counts = problem()
    gold[:, 20:] = False
    assert not rare.added_to(*lists(scores, gold, counts, 15)).any()


def test_the_share_of_a_line_falls_with_the_number_of_documents():
    assert rare.share_of([0, 1, 3, 30, 500]).tolist() == [0, 1, 1, 0, 0]
    assert rare.share_of([10])[0] == pytest.approx(np.log(3) / np.log(10))


def test_a_run_raises_rare_labels_in_its_biases(prepared, monkeypatch):
    quiet = {"progress": False}
    plain, usual = candidate_runs.run_candidates(prepared, CONFIG, "linear", **quiet)
    assert plain.params["rare_added"] == usual.label_bias.weight.max() == 0

    def six(scores, gold, counts):
        return (6.0 * (counts <= 5)).astype(np.float32)

    monkeypatch.setattr(rare, "added_to", six)
    record, decoder = candidate_runs.run_candidates(prepared, CONFIG, "linear", **quiet)
    which = torch.from_numpy(prepared.train_counts <= 5)
    assert record.params["rare_added"] == 6 and which.any() and not which.all()
    moved = (decoder.label_bias.weight - usual.label_bias.weight)[:, 0]
    torch.testing.assert_close(moved, 6.0 * which)
    data, _ = candidate_runs.data_of(prepared, CONFIG, "linear", progress=False)
    test, labels = prepared.rows["test"], prepared.corpus.labels
    scored = candidate_training.score(
        decoder, data, test, CONFIG, prepared.train_counts, edges=prepared.edges
    )
    found = evaluate(scored, labels[test], prepared.train_counts, len(prepared.rows["train"]))
    assert found["few/overall_r@15"] == pytest.approx(record.metrics["few/overall_r@15"])
    first = [candidate_training.predict(d, data, test, CONFIG, k=2).ids for d in (usual, decoder)]
    assert which[first[1]].sum() > which[first[0]].sum(), "more of the first places are rare labels"


@pytest.mark.parametrize("preferred", [0.0, 4.0])
def test_dev_chooses_whether_anything_is_planted(prepared, monkeypatch, preferred):
    monkeypatch.setattr(candidate_runs, "LEARNING_RATE", 0.3)

    def values(training):
        return np.full(20, 0.5 if training.gain == preferred else 0.4)

    monkeypatch.setattr(candidate_runs.Training, "dev_values", values)
    quiet = {"progress": False}
    record, decoder = candidate_runs.run_candidates(prepared, CONFIG, "lookup+linear", **quiet)
    assert record.params["gain_chosen"] == preferred
    tried = {"4": 0.5, "0": 0.4} if preferred else {"4": 0.4, "0": 0.5}
    assert record.params["gains_tried"] == tried
    assert (decoder.planted_gain.item() == 0) == (preferred == 0)
    if not preferred:
        alone, same = candidate_runs.run_candidates(prepared, CONFIG, "linear", **quiet)
        for name, value in same.named_parameters():
            assert torch.equal(value, dict(decoder.named_parameters())[name]), name
        assert alone.metrics == record.metrics


def test_starts_of_a_grid_share_the_training_without_planting(prepared, tmp_path, monkeypatch):
    trained = []
    fit = candidate_runs.fit

    def counted(*arguments, **options):
        trained.append(1)
        return fit(*arguments, **options)

    monkeypatch.setattr(candidate_runs, "fit", counted)
    starts = ["lookup+linear", "linear", "shuffled+linear"]
    grid = {"config": CONFIG, "results": tmp_path, "progress": False}
    records = candidate_runs.candidate_grid(prepared, starts, [0], **grid)
    assert len(trained) == 3, "with the lists, without, and with shuffled ones"
    alone, _ = candidate_runs.run_candidates(prepared, CONFIG, "linear", progress=False)
    assert records[1].metrics == alone.metrics and records[1].history[0] == alone.history[0] | {
        "seconds": records[1].history[0]["seconds"]
    }
    assert candidate_runs.candidate_grid(prepared, starts, [0], **grid) == records


def test_a_start_without_the_linear_score_plants_what_it_says(prepared):
    record, _ = candidate_runs.run_candidates(prepared, CONFIG, "lookup", progress=False)
    assert "gain_chosen" not in record.params and record.params["final_gains"]["planted"] > 0
