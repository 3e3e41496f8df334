"""The linear score over words: each term against its definition, honest out-of-fold scores, and a
start that equals it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from companion.peers import bare as peers
from plantlib.data.tokens import Words, words
from plantlib.linear import score as linear_score
from plantlib.linear import stacking
from plantlib.linear.score import LinearConfig, Table
from plantlib.linear.tables import raised
from plantlib.model.plant_model import PlantModel
from plantlib.planting import starts as planting
from plantlib.planting.scores import WordScore
from plantlib.training import artefacts, train
from plantlib.training.ingredients import Ingredients, teacher_of
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.runs import build_model, run_start, use_score
from plantlib.training.train import score
from tests.tolerances import assert_within_rounding, near

WORDS = 100  # words of a document, five terms with their own sums, and the weights of the stack


@pytest.fixture(scope="module")
def fitted(prepared):
    config, rows = LinearConfig(folds=3), prepared.rows["train"]
    found = words(prepared.corpus.texts, rows)
    return linear_score.fit(
        found, prepared.corpus.labels, rows, config=config, progress=False
    ), config


def test_folded_table_is_the_weighted_sum_of_its_terms(prepared, fitted):
    linear, _ = fitted
    rows, dev = prepared.rows["train"], prepared.rows["dev"]
    parts = linear_score.terms_of(linear.tfidf[rows], prepared.corpus.labels[rows])
    weights, shift = linear.stack.of_labels(prepared.train_counts)
    assert list(weights) == list(parts) == list(linear_score.columns_of())
    assert min(w.min() for w in weights.values()) >= 0 < weights["ridge 0.2"].max()
    total = sum(w * parts[term].scores(linear.tfidf[dev]) for term, w in weights.items())
    assert_within_rounding(linear.scores(dev), np.float32(total + shift), WORDS)


def test_raised_scores_are_the_line_of_each_documents_own_table(prepared, fitted):
    linear, _ = fitted
    rows, labels = prepared.rows["train"], prepared.corpus.labels
    stack = replace(linear.stack, scale=linear.stack.scale * 0.5, shift=linear.stack.shift + 2.0)
    counts = [
        np.asarray(labels[rows[linear.part[rows] != k]].sum(0)).ravel()
        for k in range(len(linear.tables))
    ]
    line = replace(linear, stack=stack, lines=[stack.line_of(n) for n in counts])
    for row in (rows[4], prepared.rows["test"][0]):
        k = linear.part[row]
        table = raised(linear.tables[k], stack, counts[k])
        assert_within_rounding(
            line.raised([row]), np.float32(table.scores(linear.tfidf[[row]])), WORDS
        )
        np.testing.assert_array_equal(line.scores([row]), linear.scores([row]))


def test_a_training_document_is_scored_by_a_table_that_has_not_seen_it(prepared, fitted):
    linear, _ = fitted
    rows, labels = prepared.rows["train"], prepared.corpus.labels
    row = rows[4]
    k = linear.part[row]
    without = rows[linear.part[rows] != k]
    parts = linear_score.terms_of(linear.tfidf[without], labels[without])
    counts = np.asarray(labels[without].sum(0)).ravel()
    seen = linear_score.fold_up(parts, linear.stack, counts).scores(linear.tfidf[[row]])
    assert_within_rounding(linear.scores([row]), np.float32(seen), WORDS)
    # and its own labels do not sway it: flip them, and its score stays
    flipped = labels.tolil()
    flipped[row] = 0
    again = linear_score.terms_of(linear.tfidf[without], flipped.tocsr()[without])["ridge 0.2"]
    assert (again.cells != parts["ridge 0.2"].cells).nnz == 0


def test_no_dev_or_test_row_is_read(prepared, fitted):
    linear, config = fitted
    rows, counts = prepared.rows["train"], words(prepared.corpus.texts, prepared.rows["train"])
    labels, other = prepared.corpus.labels.tolil(), np.setdiff1d(np.arange(prepared.corpus.N), rows)
    labels[other] = 1 - labels[other].toarray()
    changed = counts.counts.tolil()
    changed[other] = 3
    again = linear_score.fit(
        Words(counts.names, changed.tocsr()), labels.tocsr(), rows, config=config, progress=False
    )
    assert again.stack.about() == linear.stack.about()
    assert all(
        (a.cells != b.cells).nnz == 0 for a, b in zip(again.tables, linear.tables, strict=True)
    )


def table(dense) -> Table:
    return Table(
        sparse.csr_matrix(dense.T.astype(np.float32)), np.zeros(dense.shape[1], np.float32)
    )


def test_stack_finds_the_informative_term_and_no_negative_weight(monkeypatch):
    monkeypatch.setattr(stacking, "KNOTS", (1,))
    rng = np.random.default_rng(0)
    weights = sparse.csr_matrix(np.eye(40))
    labels = sparse.csr_matrix(rng.random((40, 6)) < 0.3, dtype=np.int32)
    truth, noise = labels.toarray() * 2.0 - 1, rng.normal(size=(40, 6))
    part = {"svm": table(truth), "raw": table(noise), "ppmi": table(-truth)}
    found = stacking.fit([part], [np.full(6, 4)], weights, labels, np.zeros(40, int), tuple(part))
    assert (
        found.weights[0, 0] > 5 * abs(found.weights[1, 0])
        and found.weights[2, 0] < 1e-6
        and np.all(found.weights >= 0)
    )


def test_weights_follow_a_labels_frequency_and_unknown_labels_do_not_count(monkeypatch):
    monkeypatch.setattr(stacking, "KNOTS", (1, 100))
    rng = np.random.default_rng(1)
    n, counts = 300, np.array([1, 1, 100, 100, 0])
    labels = sparse.csr_matrix(rng.random((n, 5)) < 0.3, dtype=np.int32)
    truth, noise = labels.toarray() * 2.0 - 1, rng.normal(size=(n, 5))
    rare = np.array([1, 1, 0, 0, 0])
    # one term knows the rare labels, the other the frequent ones; both are wrong about the label
    # without documents
    first, second = np.where(rare, truth, noise), np.where(rare, noise, truth)
    first[:, 4] = second[:, 4] = -truth[:, 4]
    parts, fold = [{"svm": table(first), "raw": table(second)}], np.zeros(n, int)
    found = stacking.fit(
        parts, [counts], sparse.csr_matrix(np.eye(n)), labels, fold, ("svm", "raw")
    )
    weights, _ = found.of_labels(counts)
    assert (weights["svm"][:2] > 3 * weights["raw"][:2]).all() and (
        weights["raw"][2:4] > 3 * weights["svm"][2:4]
    ).all()
    assert weights["svm"][4] == weights["svm"][0], (
        "a label without documents is weighed as the rarest"
    )


def test_hats_interpolate_between_knots_on_a_logarithmic_scale():
    found = stacking.hats_of(np.array([0, 1, 2, 4, 8, 16, 99]), (1, 4, 16)).toarray()
    wanted = [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(found, wanted)


def test_the_slope_of_the_stack_is_that_of_its_loss():
    rng = np.random.default_rng(2)
    x, y, w = rng.normal(size=(50, 2)), rng.random(50) < 0.4, rng.random(50)
    hats = stacking.hats_of(rng.integers(1, 20, 50), (1, 5, 20))
    weights, intercept = stacking.logistic(x, y, w, hats, 0.5)

    def loss(weights, intercept):
        s = np.einsum("nt,tk,nk->n", x, weights, hats.toarray()) + hats @ intercept
        spread = np.sqrt(w @ (x - w @ x / w.sum()) ** 2 / w.sum())
        change = np.diff(weights * spread[:, None], axis=1), np.diff(intercept)
        return w @ (np.logaddexp(0, s) - y * s) + 0.5 * sum((c**2).sum() for c in change)

    best = loss(weights, intercept)
    for _ in range(50):
        moved = (
            np.maximum(weights + rng.normal(size=weights.shape) * 0.03, 0),
            intercept + rng.normal(size=3) * 0.03,
        )
        assert loss(*moved) > best, "no allowed step away is better"


def test_a_large_problem_has_fewer_folds_and_support_vector_machines(prepared, monkeypatch):
    most = int(linear_score.LARGE_CELLS)
    assert linear_score.is_large(most + 1) and not linear_score.is_large(most)
    found = words(prepared.corpus.texts, prepared.rows["train"])
    monkeypatch.setattr(linear_score, "LARGE_CELLS", 1)
    linear = linear_score.fit(found, prepared.corpus.labels, prepared.rows["train"], progress=False)
    assert len(linear.tables) == 1 + linear_score.LARGE_FOLDS < 1 + LinearConfig().folds
    names = linear_score.columns_of(large=True)
    assert tuple(linear.stack.terms) == names != linear_score.columns_of()
    assert max(linear.stack.weights[names.index(linear_score.SVM)]) > 0


def test_copies_of_a_text_share_a_fold():
    weights = sparse.random(60, 9, 0.5, format="csr", random_state=0)
    repeated = sparse.vstack([weights, weights[:30]], format="csr")
    fold = linear_score.folds_of(repeated, 5, seed=1)
    assert np.array_equal(fold[:30], fold[60:]) and set(fold) == set(range(5))
    assert np.array_equal(np.bincount(linear_score.folds_of(weights, 5)), [12] * 5), (
        "without copies as even as can be"
    )


def test_a_killed_fit_goes_on_with_the_next_part(prepared, fitted, tmp_path, monkeypatch):
    linear, config = fitted
    arguments = (
        words(prepared.corpus.texts, prepared.rows["train"]),
        prepared.corpus.labels,
        prepared.rows["train"],
    )
    made, real = [], linear_score.terms_of

    def dies(*a, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(*a, **options)

    monkeypatch.setattr(linear_score, "terms_of", dies)
    with pytest.raises(KeyboardInterrupt):
        linear_score.fit(*arguments, config=config, folder=tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part0.safetensors", "part1.safetensors"]
    monkeypatch.setattr(linear_score, "terms_of", lambda *a, **o: made.append(1) or real(*a, **o))
    again = linear_score.fit(*arguments, config=config, folder=tmp_path, progress=False)
    assert len(made) == 4 and again.stack.about() == linear.stack.about()


def test_options_are_checked():
    with pytest.raises(ValueError, match="folds=1: out-of-fold scores need at least 2"):
        LinearConfig(folds=1)


def test_too_few_documents_for_the_folds(prepared):
    with pytest.raises(ValueError, match="2 training documents have the same words"):
        linear_score.fit(
            words(["aa bb", "aa bb"], np.arange(2)),
            sparse.csr_matrix(np.eye(2)),
            [0, 1],
            progress=False,
        )


def planted_model(prepared, linear, start="lookup+linear") -> PlantModel:
    teacher = teacher_of(prepared)
    model = build_model(prepared, Ingredients(teacher, linear=linear))
    planting.plant(model.decoder, start, teacher, prepared.train_labels)
    use_score(model, start.split("+"), teacher, prepared)
    return model.eval()


def test_training_begins_from_the_linear_score_exactly(prepared, fitted):
    linear, _ = fitted
    model = planted_model(prepared, linear)
    documents = prepared.documents("test", linear=linear)
    scores, _ = score(model, documents, prepared.train_counts, auc=False)
    wanted = peers.scored(
        linear.scores,
        prepared.corpus.labels,
        prepared.rows["test"],
        prepared.train_counts,
        auc=False,
    )
    assert np.array_equal(scores.topk.ids[:, :5], wanted.topk.ids[:, :5])
    assert_within_rounding(scores.topk.scores[:, :5], wanted.topk.scores[:, :5], WORDS)


def test_the_module_scores_text_as_the_stack_scores_rows(prepared, fitted):
    linear, _ = fitted
    model, rows = planted_model(prepared, linear), prepared.rows["test"][:7]
    texts = [prepared.corpus.texts[i] for i in rows]
    assert_within_rounding(model.word_scores(texts), linear.scores(rows), WORDS)
    empty = model.word_scores(["", "zzzzqqq"]).numpy()
    assert np.array_equal(empty, np.float32([linear.tables[0].intercept] * 2))  # nothing is added


def test_an_explanation_names_the_words_of_the_linear_score(prepared, fitted):
    linear, _ = fitted
    model = planted_model(prepared, linear)
    text = prepared.corpus.texts[prepared.rows["test"][0]]
    weights = linear.tfidf[prepared.rows["test"][0]]
    cells = linear.tables[0].cells.multiply(weights).tocsr()
    column = int(cells.max(axis=1).toarray().argmax())
    spans, ids = model.word_score.places(text)
    added = model.word_score.added(ids, torch.tensor([column]))[:, 0]
    parts = dict.fromkeys((text[b:e].lower() for b, e in spans), 0.0)
    for (begin, end), value in zip(spans, added.tolist(), strict=True):
        parts[text[begin:end].lower()] += value
    row = cells[column]
    wanted = {linear.words[i]: v for i, v in zip(row.indices, row.data, strict=True)}
    assert {w: v for w, v in parts.items() if v} == near(wanted, WORDS)
    assert len(wanted) > 2
    nothing = model.word_score.places("zzzzqqq")
    assert nothing[0] == [] and model.word_score.added(
        nothing[1], torch.tensor([column])
    ).shape == (0, 1)


def test_gain_and_attention_are_trained_and_saved(prepared, tmp_path):
    config = RunConfig(linear=LinearConfig(folds=2), train=TrainConfig(epochs=1))
    record, model = run_start(prepared, "lookup+linear", config=config, progress=False)
    assert (
        record.params["final_gains"]["linear"] != 1.0
        and max(record.teacher["linear"]["ridge 0.2"]) > 0
    )
    assert model.decoder.label_outputs.abs().sum() > 0
    model.attach_backbone(artefacts.load_backbone(prepared))
    texts = [prepared.corpus.texts[i] for i in prepared.rows["test"][:3]]
    model.save_pretrained(tmp_path / "m")
    again = PlantModel.from_pretrained(tmp_path / "m").to(model.device)
    assert (
        isinstance(again.word_score, WordScore) and again.word_score.words == model.word_score.words
    )
    assert again.predict(texts, k=4) == model.predict(texts, k=4)
    label = model.predict(texts[:1], k=1)[0][0][0]
    found = again.explain(texts[0], label)
    assert abs(found.logit - model.explain(texts[0], label).logit) < 1e-4
    assert "linear score" in found._repr_html_() and found.parts["linear score"] != 0


def test_a_model_says_when_its_linear_scores_are_missing_or_unwanted(prepared, fitted):
    model = planted_model(prepared, fitted[0])
    batch = prepared.documents("test").collate([int(prepared.rows["test"][0])])
    with pytest.raises(ValueError, match="linear_scores=model.word_scores"):
        model(**batch)
    bare = build_model(prepared, teacher_of(prepared))
    bare.teacher_score = None
    with pytest.raises(ValueError, match="plants none"):
        bare(**batch, linear_scores=torch.zeros(1, prepared.corpus.L))
    with pytest.raises(ValueError, match="no word list"):
        WordScore(3, 2, 0).word_ids(["a"])


def test_the_head_takes_smaller_steps_from_the_linear_score_and_nowhere_else(
    prepared, fitted, tmp_path
):
    config, found = TrainConfig(lr_queries=0.5), {}
    for from_linear in (True, False):
        trainer = train.PlantTrainer(
            model=planted_model(prepared, fitted[0]),
            args=train._arguments(tmp_path, config),
            eval_dataset=prepared.documents("dev"),
            plant_config=config,
            train_counts=prepared.train_counts,
            from_linear=from_linear,
        )
        groups = trainer.create_optimizer().param_groups
        assert {group["eps"] for group in groups} == {1e-4 if from_linear else 1e-8}
        found[from_linear] = [group["lr"] for group in groups]
    assert found[False] == [0.5, 1e-2, 1e-2], "queries, outputs, gains"
    assert found[True] == pytest.approx([0.15, 3e-3, 1e-2])


def test_runs_from_the_linear_score_alone_take_them(prepared, monkeypatch):
    seen, fine_tune = {}, train.fine_tune

    def watched(*args, **options):
        seen[start] = options["from_linear"]
        return fine_tune(*args, **options)

    monkeypatch.setattr(train, "fine_tune", watched)
    config = RunConfig(linear=LinearConfig(folds=2), train=TrainConfig(epochs=1))
    for start in ("linear", "lookup"):
        run_start(prepared, start, config=config, progress=False)
    assert seen == {"linear": True, "lookup": False}
