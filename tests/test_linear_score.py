"""The linear score over words: each term against its definition, honest out-of-fold scores, and a start that equals it."""

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib import linear_score, peers, planting
from plantlib.linear_score import LinearConfig, Table
from plantlib.model import PlantModel
from plantlib.runs import RunConfig, build_model, run_start, use_score
from plantlib.tokens import Words, tfidf, words
from plantlib.train import TrainConfig, score
from plantlib.word_score import WordScore


@pytest.fixture(scope="module")
def fitted(prepared):
    config, rows = LinearConfig(folds=3), prepared.rows["train"]
    found = words(prepared.corpus.texts, rows)
    return linear_score.fit(found, prepared.corpus.labels, rows, config=config, progress=False), config


def test_svm_equals_the_peer_where_nothing_is_pruned(prepared):
    rows, labels = prepared.rows["train"], prepared.corpus.labels
    weights = tfidf(words(prepared.corpus.texts, rows).counts, rows)
    wanted = peers.linear_svm(weights, labels, rows, progress=False)(prepared.rows["dev"])
    found = linear_score.svm(weights[rows], labels[rows], LinearConfig(prune=0.0)).scores(weights[prepared.rows["dev"]])
    assert np.allclose(found, wanted, atol=1e-4)
    pruned = linear_score.svm(weights[rows], labels[rows], LinearConfig(prune=0.1)).cells
    assert np.abs(pruned.data).min() > 0.1 and pruned.nnz < np.count_nonzero(wanted) * weights.shape[1]


def test_folded_table_is_the_weighted_sum_of_its_terms(prepared, fitted):
    linear, config = fitted
    rows, dev = prepared.rows["train"], prepared.rows["dev"]
    parts = linear_score.terms_of(linear.tfidf[rows], prepared.corpus.labels[rows], config)
    assert list(linear.weights) == list(config.terms) and min(linear.weights.values()) >= 0 < linear.weights["svm"]
    total = sum(w * parts[term].scores(linear.tfidf[dev]) for term, w in linear.weights.items())
    shift = linear.scores(dev) - total
    assert np.allclose(shift, shift[0, 0], atol=1e-3)  # one intercept for all cells


def test_a_training_document_is_scored_by_a_table_that_has_not_seen_it(prepared, fitted):
    linear, config = fitted
    rows, labels = prepared.rows["train"], prepared.corpus.labels
    row = rows[4]
    k = linear.part[row]
    without = rows[linear.part[rows] != k]
    parts = linear_score.terms_of(linear.tfidf[without], labels[without], config)
    seen = linear_score._fold_up(parts, linear.weights, 0.0).scores(linear.tfidf[[row]])
    difference = linear.scores([row]) - seen
    assert np.allclose(difference, difference[0, 0], atol=1e-3)
    # and its own labels do not sway it: flip them, and its score stays
    flipped = labels.tolil()
    flipped[row] = 0
    again = linear_score.terms_of(linear.tfidf[without], flipped.tocsr()[without], config)["svm"]
    assert (again.cells != parts["svm"].cells).nnz == 0


def test_no_dev_or_test_row_is_read(prepared, fitted):
    linear, config = fitted
    rows, counts = prepared.rows["train"], words(prepared.corpus.texts, prepared.rows["train"])
    labels, other = prepared.corpus.labels.tolil(), np.setdiff1d(np.arange(prepared.corpus.N), rows)
    labels[other] = 1 - labels[other].toarray()
    changed = counts.counts.tolil()
    changed[other] = 3
    again = linear_score.fit(Words(counts.names, changed.tocsr()), labels.tocsr(), rows, config=config, progress=False)
    assert again.weights == linear.weights
    assert all((a.cells != b.cells).nnz == 0 for a, b in zip(again.tables, linear.tables, strict=True))


def test_stack_finds_the_informative_term_and_no_negative_weight():
    rng = np.random.default_rng(0)
    weights = sparse.csr_matrix(np.eye(40))
    labels = sparse.csr_matrix(rng.random((40, 6)) < 0.3, dtype=np.int32)
    truth, noise = labels.toarray() * 2.0 - 1, rng.normal(size=(40, 6))
    table = lambda dense: Table(sparse.csr_matrix(dense.T.astype(np.float32)), np.zeros(6, np.float32))  # noqa: E731
    part = {"svm": table(truth), "raw": table(noise), "ppmi": table(-truth)}
    config = LinearConfig(terms=("svm", "raw", "ppmi"))
    found, intercept = linear_score.stack([part], weights, labels, np.zeros(40, int), config)
    assert found[0] > 5 * abs(found[1]) and found[2] < 1e-6 and np.all(found >= 0)


def test_few_rows_are_learnt_from_where_the_problem_is_large(prepared):
    rows, labels = prepared.rows["train"], prepared.corpus.labels[prepared.rows["train"]]
    weights = tfidf(words(prepared.corpus.texts, rows).counts, rows)[rows]
    small = LinearConfig(dense_cells=0, hard=20, easy=15)
    choose = linear_score._negatives(weights, labels, small)
    positive = labels[:, [0]].toarray().ravel() > 0
    chosen = choose(0, positive)
    assert set(np.flatnonzero(positive)) <= set(chosen) and len(chosen) <= positive.sum() + 35
    assert np.array_equal(chosen, choose(0, positive))
    assert len(linear_score._negatives(weights, labels, LinearConfig())(0, positive)) == len(rows)


def test_a_killed_fit_goes_on_with_the_next_part(prepared, fitted, tmp_path, monkeypatch):
    linear, config = fitted
    arguments = (words(prepared.corpus.texts, prepared.rows["train"]), prepared.corpus.labels, prepared.rows["train"])
    made, real = [], linear_score.terms_of

    def dies(*a):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(*a)

    monkeypatch.setattr(linear_score, "terms_of", dies)
    with pytest.raises(KeyboardInterrupt):
        linear_score.fit(*arguments, config=config, folder=tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part0.safetensors", "part1.safetensors"]
    monkeypatch.setattr(linear_score, "terms_of", lambda *a: made.append(1) or real(*a))
    again = linear_score.fit(*arguments, config=config, folder=tmp_path, progress=False)
    assert len(made) == 4 and again.weights == linear.weights


@pytest.mark.parametrize(("options", "message"), [({"terms": ("svm", "bm25")}, "bm25"), ({"folds": 1}, "at least 2")])
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LinearConfig(**options)


def test_too_few_documents_for_the_folds(prepared):
    with pytest.raises(ValueError, match="cannot be cut into"):
        linear_score.fit(words(["aa bb", "aa bb"], np.arange(2)), sparse.csr_matrix(np.eye(2)), [0, 1], progress=False)


def planted_model(prepared, linear, start="lookup+linear") -> PlantModel:
    teacher = prepared.teacher()
    model = build_model(prepared, teacher, linear=linear)
    planting.plant(model.decoder, start, teacher, prepared.train_labels)
    use_score(model, start.split("+"), teacher, prepared)
    return model.eval()


def test_training_begins_from_the_linear_score_exactly(prepared, fitted):
    linear, _ = fitted
    model = planted_model(prepared, linear)
    documents = prepared.documents("test", linear=linear)
    scores, _ = score(model, documents, prepared.train_counts, auc=False)
    wanted = peers.scored(linear.scores, prepared.corpus.labels, prepared.rows["test"], prepared.train_counts, auc=False)
    assert np.array_equal(scores.topk.ids[:, :5], wanted.topk.ids[:, :5])
    assert np.allclose(scores.topk.scores[:, :5], wanted.topk.scores[:, :5], atol=1e-4)


def test_the_module_scores_text_as_the_stack_scores_rows(prepared, fitted):
    linear, _ = fitted
    model, rows = planted_model(prepared, linear), prepared.rows["test"][:7]
    texts = [prepared.corpus.texts[i] for i in rows]
    assert np.allclose(model.word_scores(texts).numpy(), linear.scores(rows), atol=1e-3)
    empty = model.word_scores(["", "zzzzqqq"]).numpy()
    assert np.allclose(empty, linear.tables[0].intercept[None], atol=1e-6)


def test_gain_and_attention_are_trained_and_saved(prepared, tmp_path):
    config = RunConfig(linear=LinearConfig(folds=2), train=TrainConfig(epochs=1))
    record, model = run_start(prepared, "lookup+linear", config=config, progress=False)
    assert record.params["final_gains"]["linear"] != 1.0 and record.teacher["linear"]["svm"] > 0
    assert model.decoder.label_outputs.abs().sum() > 0
    model.attach_backbone(prepared.load_backbone())
    texts = [prepared.corpus.texts[i] for i in prepared.rows["test"][:3]]
    model.save_pretrained(tmp_path / "m")
    again = PlantModel.from_pretrained(tmp_path / "m")
    assert isinstance(again.word_score, WordScore) and again.word_score.words == model.word_score.words
    assert again.predict(texts, k=4) == model.predict(texts, k=4)
    label = model.predict(texts[:1], k=1)[0][0][0]
    assert abs(again.explain(texts[0], label).logit - model.explain(texts[0], label).logit) < 1e-4


def test_a_model_says_when_its_linear_scores_are_missing_or_unwanted(prepared, fitted):
    model = planted_model(prepared, fitted[0])
    batch = prepared.documents("test").collate([int(prepared.rows["test"][0])])
    with pytest.raises(ValueError, match="linear_scores=model.word_scores"):
        model(**batch)
    bare = build_model(prepared, prepared.teacher())
    bare.teacher_score = None
    with pytest.raises(ValueError, match="plants none"):
        bare(**batch, linear_scores=torch.zeros(1, prepared.corpus.L))
    with pytest.raises(ValueError, match="no word list"):
        WordScore(3, 2, 0).word_ids(["a"])


def test_the_head_takes_smaller_steps_from_the_linear_score_and_nowhere_else():
    config = RunConfig()
    assert config.train_for(["lookup"]) == config.train
    slow = config.train_for(["lookup", "linear"])
    assert slow.lr_outputs == slow.lr_queries == pytest.approx(0.3 * config.train.lr_queries)
    assert slow.lr_gains == config.train.lr_gains and slow.epochs == config.train.epochs
