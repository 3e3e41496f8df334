"""Rare labels raised: by hand, by dev, and in a run on candidates, where lists, biases and the
record follow.
"""

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib.candidates import training as candidate_training
from plantlib.candidates.decoder import CandidateConfig, CandidateDecoder, plant
from plantlib.metrics.documents import evaluate
from plantlib.metrics.topk import TopK
from plantlib.training import candidate_runs

# label 3 is the rare one; it is true in the second document and stands behind two others there
RANKING = TopK(
    np.array([[0, 1, 3], [1, 0, 3], [2, 1, -1]]),
    np.float32([[5, 3, 2], [4, 3, 2.5], [1, 0, -np.inf]]),
)
GOLD = sparse.csr_matrix(np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]))
COUNTS = np.array([60, 60, 60, 5])


def test_rare_labels_are_those_of_the_few_bucket_and_below():
    assert candidate_runs.rare(np.array([0, 1, 5, 6, 51])).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert candidate_runs.rare(np.array([0, 7, 8]), (0, 7, 7)).tolist() == [True, True, False]


def test_a_raised_label_moves_and_the_others_keep_their_order():
    found = RANKING.raised(1.0 * candidate_runs.rare(COUNTS))
    assert found.ids.tolist() == [[0, 1, 3], [1, 3, 0], [2, 1, -1]], (
        "a tie goes to the smaller id, an empty place stays last"
    )
    np.testing.assert_array_equal(
        found.scores, np.float32([[5, 3, 3], [4, 3.5, 3], [1, 0, -np.inf]])
    )
    same = RANKING.raised(np.zeros(4))
    np.testing.assert_array_equal(same.ids, RANKING.ids)


def test_dev_allows_as_much_as_costs_it_next_to_nothing():
    which = candidate_runs.rare(COUNTS)
    # one logit helps the second document, four put the rare label first in the first document,
    # where it is wrong
    added, tried = candidate_runs.choose(RANKING, GOLD, which, 4.0, 0.0)
    assert added == 3.0 and list(tried) == ["0", "1", "2", "3", "4"]
    assert tried["1"] == tried["3"] == 1.0 > tried["0"] > tried["4"]
    assert candidate_runs.choose(RANKING, GOLD, which, 4.0, 1.0)[0] == 4.0, (
        "a user who gives all of it away gets all of it"
    )
    assert candidate_runs.choose(RANKING, GOLD, np.zeros(4, bool), 4.0, 0.0)[0] == 4.0, (
        "without rare labels nothing moves"
    )


def test_a_run_lists_rare_labels_and_raises_them(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(candidate_runs, "RARE_LOSS", 1.0)
    config = CandidateConfig(width=4, rank=8, epochs=1, rare=3.0)
    which = candidate_runs.rare(prepared.train_counts, prepared.edges)
    assert which.any() and not which.all()
    record, decoder = candidate_runs.run_candidates(
        prepared, config, "linear", results=tmp_path, progress=False
    )
    assert record.system == "linear, rare raised" and record.id.endswith("linear-4c-rare-s0")
    assert record.params["rare_added"] == 3.0 and list(record.params["rare_tried"]) == [
        "0",
        "0.75",
        "1.5",
        "2.25",
        "3",
    ]
    plain, usual = candidate_runs.run_candidates(
        prepared, CandidateConfig(width=4, rank=8, epochs=1), "linear", progress=False
    )
    assert "rare_added" not in plain.params and plain.system == "linear"
    data, other = (
        candidate_runs.data_of(prepared, c, "linear", progress=False)[0]
        for c in (config, CandidateConfig(width=4))
    )
    listed = [which[d.ranked[:, :4]].sum() for d in (data, other)]
    assert listed[0] > listed[1], "more of the candidates are rare labels"
    test, labels = prepared.rows["test"], prepared.corpus.labels
    first = [
        candidate_training.predict(d, x, test, config, k=2).ids
        for d, x in ((decoder, data), (usual, other))
    ]
    assert which[first[0]].sum() > which[first[1]].sum(), "and more of the first places"
    scored = candidate_training.score(
        decoder, data, test, config, prepared.train_counts, edges=prepared.edges
    )
    found = evaluate(scored, labels[test], prepared.train_counts, len(prepared.rows["train"]))
    assert found["few/overall_r@15"] == pytest.approx(record.metrics["few/overall_r@15"])
    held = torch.from_numpy(which)
    assert (decoder.label_bias.weight[held] == 3).all(), (
        "the biases hold it, so that prediction needs nothing else"
    )


def test_held_labels_keep_their_score_while_the_others_learn(prepared):
    config = CandidateConfig(width=4, rank=8, epochs=2, rare=3.0)
    data, _ = candidate_runs.data_of(prepared, config, "linear", progress=False)
    which, rows = candidate_runs.rare(prepared.train_counts, prepared.edges), prepared.rows["train"]
    held = torch.from_numpy(which)
    for still in (which, None):
        decoder = CandidateDecoder(prepared.corpus.L, prepared.hidden_size, config.rank)
        plant(decoder, prepared.train_labels, "linear")
        candidate_training.fit(
            decoder, data, rows, prepared.corpus.labels, config, still=still, progress=False
        )
        tables = (decoder.output_rows.weight, decoder.label_bias.weight)
        assert all(table[~held].any() for table in tables)
        assert [bool(table[held].any()) for table in tables] == [still is None] * 2
        ids = np.tile(np.flatnonzero(which), (len(rows), 1))
        with torch.inference_mode():
            own = data.logits(decoder, rows, ids) - decoder.score_gain * torch.from_numpy(
                data.scores(rows, ids)
            )
        assert (own.abs().max().item() < 1e-5) == (still is not None), (
            "what a held label has beside its score"
        )


def test_a_record_without_raised_labels_stands_for_none_with_them(prepared, tmp_path, monkeypatch):
    config = CandidateConfig(width=4, rank=8, epochs=1)
    record, _ = candidate_runs.run_candidates(
        prepared, config, "linear", results=tmp_path, progress=False
    )
    monkeypatch.setattr(candidate_runs, "run_candidates", lambda *a, **k: pytest.fail("made again"))
    grid = {"config": config, "results": tmp_path, "progress": False}
    assert candidate_runs.candidate_grid(prepared, ["linear"], [0], **grid) == [record]
    with pytest.raises(BaseException, match="made again"):
        raised = CandidateConfig(width=4, rank=8, epochs=1, rare=1.0)
        candidate_runs.candidate_grid(prepared, ["linear"], [0], **grid | {"config": raised})


def test_options_are_checked():
    with pytest.raises(ValueError, match="rare=-1.*0 or more"):
        CandidateConfig(rare=-1.0)


def test_a_start_without_the_linear_score_has_nothing_to_raise(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(
        candidate_runs, "data_of", lambda *a, **k: pytest.fail("the rankings were made first")
    )
    config = CandidateConfig(width=5, rare=2.0)
    with pytest.raises(ValueError, match="'lookup\\+score' has none; use linear"):
        candidate_runs.run_candidates(prepared, config, "lookup+score", progress=False)
    with pytest.raises(ValueError, match="'random' has none; use linear"):
        candidate_runs.candidate_grid(
            prepared, ["linear", "random"], [0], config=config, results=tmp_path, progress=False
        )
