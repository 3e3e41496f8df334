"""PlantClassifier in the hands of a scikit-learn user: every form of labels, the tools that fit
clones of it, and what estimators promise.

scikit-learn runs one of its own checks on estimators that read texts. The others fit tables of
numbers, so `OfNumbers` writes each row as a text, and they are run on it.
"""

from __future__ import annotations

import copy
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn import model_selection
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from plantlib import PlantClassifier, PlantModel, RunConfig
from plantlib.data.credentials import PrivacyError
from plantlib.utils.base import DataError
from tests.conftest import THEMES

pytestmark = pytest.mark.filterwarnings("ignore:dev has .* right labels")
WORDS = tuple(word for words in THEMES.values() for word in words)


@pytest.fixture(scope="module")
def documents(corpus):
    """Texts and an indicator matrix of the training and dev rows, and the same of test."""
    rows, held = np.flatnonzero(corpus.split != "test"), corpus.rows("test")
    labels = corpus.labels.toarray()
    texts = np.array(corpus.texts, dtype=object)
    return texts[rows].tolist(), labels[rows], texts[held].tolist(), labels[held]


@pytest.fixture(scope="module")
def classifier(backbone_folder):
    config = RunConfig(other_gains=(), linear_weights=())
    return PlantClassifier(backbone_folder, max_tokens=None, epochs=1, config=config)


@pytest.fixture(scope="module")
def quick(backbone_folder):
    """A classifier that trains in a fraction of a second: one term is planted, for one epoch."""
    return PlantClassifier(backbone_folder, start="score", max_tokens=None, epochs=1)


@pytest.fixture(scope="module")
def fitted(classifier, documents):
    return clone(classifier).fit(*documents[:2])


def lists_of(matrix: np.ndarray) -> list[list[str]]:
    return [[f"label {j}" for j in np.flatnonzero(row)] for row in matrix]


def test_predict_is_predict_proba_cut_at_the_thresholds(fitted, documents):
    texts, labels, held, truth = documents
    chance = fitted.predict_proba(held)
    assert chance.shape == truth.shape and (chance > 0).all() and (chance < 1).all()
    assert np.array_equal(fitted.predict(held), (chance >= fitted.thresholds_).astype(int))
    # chances follow the logits, and the best labels are those of the model itself
    order = np.argsort(-fitted.decision_function(held), axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(chance, order, 1)) <= 0).all()
    best = fitted.model_.predict(held, k=1)
    assert [int(ranked[0][0]) for ranked in best] == order[:, 0].tolist()
    assert fitted.score(held, truth) > 0.8 > fitted.score(held, np.roll(truth, 1, axis=1))
    assert fitted.record_.metrics == {} and fitted.record_.dataset["test"] == 0


@pytest.mark.parametrize("rule", ["places", "budget"])
def test_predict_accepts_by_a_rule_without_thresholds(rule, quick, documents, tmp_path):
    texts, labels, held, truth = documents
    model = clone(quick).set_params(rule=rule).fit(texts, labels)
    accepted = model.predict(held)
    assert model.thresholds_ is None and model.rule_.kind == rule
    assert np.array_equal(accepted, model.rule_.accepts(model.decision_function(held)))
    joblib.dump(model, tmp_path / "model")
    assert np.array_equal(joblib.load(tmp_path / "model").predict(held), accepted)
    model.partial_fit(held, truth)
    assert model.rule_.kind == rule and model.thresholds_ is None


def test_every_form_of_labels_trains_the_same_model(classifier, fitted, documents):
    texts, labels, held, truth = documents
    expected = fitted.predict_proba(held)
    accepted = fitted.predict(held)
    assert isinstance(accepted, np.ndarray) and fitted.classes_.tolist() == list(range(8))

    by_csr = clone(classifier).fit(pd.Series(texts), sparse.csr_matrix(labels))
    assert sparse.issparse(by_csr.predict(held))
    assert np.array_equal(by_csr.predict(held).toarray(), accepted)
    assert np.array_equal(by_csr.predict_proba(held), expected)

    seen = labels[:, labels.any(0)]
    lists = clone(classifier).fit(tuple(texts), lists_of(labels))
    assert lists.classes_.tolist() == [f"label {j}" for j in np.flatnonzero(labels.any(0))]
    binary = MultiLabelBinarizer().fit(lists_of(labels))
    frame = pd.DataFrame(binary.transform(lists_of(labels)), columns=binary.classes_)
    named = clone(classifier).fit(np.array(texts), frame)
    assert named.classes_.tolist() == lists.classes_.tolist()
    assert np.array_equal(named.predict_proba(held), lists.predict_proba(held))
    assert binary.transform(lists.predict(held)).tolist() == named.predict(held).tolist()
    truth_lists = lists_of(truth)
    assert lists.score(held, truth_lists) == pytest.approx(
        2
        * (binary.transform(lists.predict(held)) * truth[:, labels.any(0)]).sum()
        / (truth.sum() + lists.predict_proba(held).__ge__(lists.thresholds_).sum())
    )
    assert seen.shape[1] == len(lists.classes_)


def test_dev_documents_choose_where_they_are_given(classifier, documents):
    texts, labels, held, truth = documents
    model = clone(classifier).fit(texts, labels, dev=(held, truth))
    sizes = model.record_.dataset
    assert (sizes["train"], sizes["dev"]) == (len(texts), len(held))
    with_lists = clone(classifier).fit(texts, lists_of(labels), dev=(held, lists_of(truth)))
    assert with_lists.record_.dataset["dev"] == len(held)
    with pytest.raises(ValueError, match="same columns"):
        clone(classifier).fit(texts, labels, dev=(held, truth[:, :3]))
    drawn = [
        clone(classifier).set_params(random_state=seed)._corpus(texts, labels, None)[0].split
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    assert (drawn[0] == "dev").sum() == 8


@pytest.mark.parametrize("tier", ["language model", "words"])
def test_the_tools_of_scikit_learn_fit_clones(quick, documents, tier):
    texts, labels = documents[:2]
    if tier == "words":
        quick = clone(quick).set_params(backbone="words")
    lower = FunctionTransformer(lambda part: [text.lower() for text in part])
    pipeline = make_pipeline(lower, quick)
    folds = model_selection.KFold(2)
    scores = model_selection.cross_validate(
        pipeline, texts, labels, cv=folds, scoring=["f1_micro", "average_precision"]
    )
    own = model_selection.cross_val_score(pipeline, texts, labels, cv=folds)
    assert scores["test_f1_micro"] == pytest.approx(own) and own.min() > 0.5
    assert scores["test_average_precision"].min() > 0.3
    search = model_selection.GridSearchCV(quick, {"start": ["score", "random"]}, cv=folds)
    search.fit(texts, labels)
    assert search.best_params_ == {"start": "score"}
    assert search.predict(texts).shape == labels.shape
    score, permuted, chance = model_selection.permutation_test_score(
        quick, texts, labels, cv=folds, n_permutations=1
    )
    assert score > permuted.max() and chance == pytest.approx(1 / 2)


def test_a_grid_is_searched_in_two_processes(documents, tmp_path):
    """Each process fits clones of its own, and what comes of it is what one process finds."""
    texts, labels = documents[:2]
    quick_tier = PlantClassifier("words", start="score", epochs=1)
    pipeline = make_pipeline(FunctionTransformer(shouted), quick_tier)
    grid = {"plantclassifier__start": ["score", "random"]}
    searches = [
        model_selection.GridSearchCV(pipeline, grid, cv=model_selection.KFold(2), n_jobs=jobs)
        for jobs in (1, 2)
    ]
    alone, together = (search.fit(texts, labels) for search in searches)
    assert together.best_params_ == {"plantclassifier__start": "score"}
    scores = [search.cv_results_["mean_test_score"] for search in (alone, together)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    assert np.array_equal(alone.predict(texts), together.predict(texts))
    joblib.dump(together.best_estimator_, tmp_path / "pipeline.joblib")
    loaded = joblib.load(tmp_path / "pipeline.joblib")
    assert np.array_equal(loaded.predict_proba(texts), together.predict_proba(texts))


def shouted(texts: list[str]) -> list[str]:
    """A step of a pipeline that another process can import."""
    return [text.upper() for text in texts]


AFRESH = """
import sys, joblib
classifier = joblib.load(sys.argv[1])
texts, labels, held = joblib.load(sys.argv[2])
first = classifier.predict_proba(held)
classifier.partial_fit(texts, labels)
found = classifier.predict(held), classifier.predict_proba(held), classifier.classes_
joblib.dump((first, *found), sys.argv[3])
"""


def test_a_classifier_is_loaded_and_learns_on_in_a_fresh_process(documents, tmp_path):
    texts, labels, held, _ = documents
    classifier = PlantClassifier("words", epochs=1).fit(texts[:60], lists_of(labels[:60]))
    later = texts[60:], [[*row, "new"] for row in lists_of(labels[60:])]
    before = classifier.predict_proba(held)
    files = [tmp_path / f"{name}.joblib" for name in ("classifier", "documents", "found")]
    joblib.dump(classifier, files[0])
    joblib.dump((*later, held), files[1])
    subprocess.run([sys.executable, "-c", AFRESH, *map(str, files)], check=True)
    first, sets, chances, classes = joblib.load(files[2])
    assert np.array_equal(first, before)
    classifier.partial_fit(*later)
    assert classes.tolist() == classifier.classes_.tolist() and classes[-1] == "new"
    assert chances == pytest.approx(classifier.predict_proba(held), abs=1e-6)
    assert sets == classifier.predict(held) and chances.shape[1] == before.shape[1] + 1


def test_joblib_carries_a_fitted_classifier(fitted, documents, tmp_path):
    held = documents[2]
    joblib.dump(fitted, tmp_path / "classifier.joblib")
    loaded = joblib.load(tmp_path / "classifier.joblib")
    assert np.array_equal(loaded.predict_proba(held), fitted.predict_proba(held))
    # threads read one classifier at once
    parts = joblib.Parallel(n_jobs=2, prefer="threads")(
        joblib.delayed(fitted.predict_proba)(held[i::2]) for i in range(2)
    )
    assert parts[0] == pytest.approx(fitted.predict_proba(held[::2]), abs=1e-6)
    fitted.model_.save_pretrained(tmp_path / "model")
    again = PlantModel.from_pretrained(tmp_path / "model")
    assert again.predict(held[:3], k=2) == fitted.model_.predict(held[:3], k=2)


def test_a_classifier_without_a_language_model_is_carried_too(documents, tmp_path):
    texts, labels, held, truth = documents
    quick_tier = PlantClassifier("words", epochs=1).fit(texts, labels)
    assert quick_tier.score(held, truth) > 0.8
    joblib.dump(quick_tier, tmp_path / "classifier.joblib")
    loaded = joblib.load(tmp_path / "classifier.joblib")
    assert np.array_equal(loaded.predict_proba(held), quick_tier.predict_proba(held))
    quick_tier.model_.save_pretrained(tmp_path / "model")
    again = PlantModel.from_pretrained(tmp_path / "model")
    assert again.predict(held[:3], k=2) == quick_tier.model_.predict(held[:3], k=2)


def test_intermediate_files_are_left_only_where_a_folder_is_named(
    quick, documents, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    clone(quick).fit(*documents[:2])
    assert not list((tmp_path / "temporary").iterdir())
    root = tmp_path / "kept"
    clone(quick).set_params(root=root).fit(*documents[:2])
    assert list((root / "tokens").iterdir())


def test_a_credentialed_model_stays_in_the_data_folder(quick, documents, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    model = clone(quick).set_params(credentialed=True).fit(*documents[:2])
    assert not list((tmp_path / "home" / "temporary").iterdir())
    with pytest.raises(PrivacyError):
        model.model_.save_pretrained(tmp_path / "elsewhere")
    model.model_.save_pretrained(tmp_path / "home" / "model")


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("one text", [["a"]], "one text"),
        ([], [], "no documents"),
        ([["a"], ["b"]], [["x"], ["y"]], "document 0 of X is a list"),
        (["a", None], [["x"], ["y"]], "document 1 of X is a NoneType"),
        (np.array([["a"], ["b"]]), [["x"], ["y"]], r"shape \(2, 1\)"),
        (["a", "b"], ["x", "y"], "one str for document 0"),
        (["a", "b"], np.array(["x", "y"]), "document 0"),
        (["a", "b"], [[0, 1], [1, 0]], "rows of a matrix"),
        (["a", "b"], np.array([[0, 2], [1, 0]]), "other values"),
        (["a", "b"], np.array([[0, np.nan], [1, 0]]), "NaN"),
        (["a", "b"], np.array([["x", "y"], ["z", "x"]]), "other values"),
        (["a", "b"], [["x", 1], ["y"]], "several types"),
        (["a", "b"], [[], []], "no document of y"),
        (["a", "b"], None, "y"),
        (["a", "b", "c"], [["x"], ["y"]], "inconsistent numbers"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_work(classifier, texts, labels, message):
    with pytest.raises(ValueError, match=message):
        clone(classifier).fit(texts, labels)


def test_options_are_checked_when_fit_begins(classifier, documents):
    texts, labels = documents[:2]
    for name, value, message in (
        ("epochs", 0, "epochs=0"),
        ("random_state", -1, "random_state"),
        ("random_state", None, "random_state"),
        ("start", "nowhere", "nowhere"),
        ("dev_fraction", 0.0, "fraction=0.0"),
        ("max_tokens", 0, "max_tokens=0"),
    ):
        with pytest.raises((ValueError, DataError), match=message):
            clone(classifier).set_params(**{name: value}).fit(texts, labels)
    with pytest.raises(ValueError, match="fitted"):
        clone(classifier).predict(texts)


class OfNumbers(PlantClassifier):
    """Tables of numbers as texts: a word per cell, by its column and its first decimal.

    One class per document becomes a matrix of 0 and 1.
    """

    def _written(self, X, reset: bool) -> list[str]:
        table = np.floor(10 * validate_data(self, X, reset=reset)).astype(int)
        places = (table + 3 * np.arange(table.shape[1])) % len(WORDS)
        return [" ".join(WORDS[place] for place in row) for row in places]

    def fit(self, X, y):
        if y is None:
            return super().fit(["a text"], y)
        return super().fit(self._written(X, True), self._columns(y))

    def partial_fit(self, X, y, classes=None):
        if not hasattr(self, "model_"):
            return self.fit(X, y)
        return super().partial_fit(self._written(X, False), self._columns(y))

    def _columns(self, y) -> np.ndarray:
        y = np.asarray(y)
        several = y.ndim == 2 and y.shape[1] > 1
        return y if several else (y.reshape(-1, 1) == np.unique(y)).astype(int)

    def score(self, X, y):
        return super().score(X, self._columns(y))

    def decision_function(self, X):
        check_is_fitted(self)
        return super().decision_function(self._written(X, False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.string = tags.input_tags.one_d_array = False
        return tags


CHECKS = """
check_estimator_tags_renamed check_valid_tag_types check_estimator_repr
check_no_attributes_set_in_init check_fit_score_takes_y check_estimators_overwrite_params
check_dont_overwrite_parameters check_estimators_fit_returns_self check_readonly_memmap_input
check_estimators_unfitted check_do_not_raise_errors_in_init_or_set_params
check_n_features_in_after_fitting check_mixin_order check_positive_only_tag_during_fit
check_estimators_pickle check_estimators_nan_inf check_pipeline_consistency check_dict_unchanged
check_fit_idempotent check_fit_check_is_fitted check_n_features_in check_get_params_invariance
check_set_params check_parameters_default_constructible check_methods_subset_invariance
check_methods_sample_order_invariance check_requires_y_none check_estimators_empty_data_messages
check_estimators_partial_fit_n_features
""".split()
OF_TABLES = "it tests how a table of numbers is read, and the estimator reads texts"
OF_CLASSES = "its y has one class per document, and the estimator takes lists or a matrix"
INAPPLICABLE = {
    "check_estimators_dtypes": OF_TABLES,
    "check_complex_data": OF_TABLES,
    "check_dtype_object": OF_TABLES,
    "check_estimator_sparse_tag": OF_TABLES,
    "check_estimator_sparse_array": OF_TABLES,
    "check_estimator_sparse_matrix": OF_TABLES,
    "check_array_api_input": OF_TABLES,
    "check_f_contiguous_array_estimator": OF_TABLES,
    "check_fit2d_1sample": OF_TABLES,
    "check_fit2d_1feature": OF_TABLES,
    "check_fit1d": OF_TABLES,
    "check_fit2d_predict1d": OF_TABLES,
    "check_classifier_data_not_an_array": OF_CLASSES,
    "check_classifiers_one_label": OF_CLASSES,
    "check_classifiers_one_label_sample_weights": OF_CLASSES,
    "check_classifiers_classes": OF_CLASSES,
    "check_classifiers_train": OF_CLASSES,
    "check_classifiers_regression_target": OF_CLASSES,
    "check_classifier_not_supporting_multiclass": OF_CLASSES,
    "check_decision_proba_consistency": OF_CLASSES,
    "check_supervised_y_no_nan": OF_CLASSES,
    "check_classifier_multioutput": "random numbers have no words that tell their labels apart",
    "check_classifiers_multilabel_representation_invariance": "lists of 0 and 1 are refused here",
    "check_classifiers_multilabel_output_format_predict": "tested above on texts",
    "check_classifiers_multilabel_output_format_predict_proba": "tested above on texts",
    "check_classifiers_multilabel_output_format_decision_function": "tested above on texts",
    "check_non_transformer_estimators_n_iter": "there is no n_iter_",
}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(name, quick):
    getattr(estimator_checks, name)("OfNumbers", OfNumbers(**copy.deepcopy(quick.get_params())))


@pytest.mark.filterwarnings("ignore")
def test_each_check_of_scikit_learn_is_run_or_named_with_its_reason(quick):
    numbers = OfNumbers(**quick.get_params())
    checks = estimator_checks._yield_all_checks(numbers, legacy=True)
    names = {getattr(check, "func", check).__name__ for check in checks}
    assert names == set(CHECKS) | set(INAPPLICABLE)
    estimator_checks.check_estimator_cloneable("PlantClassifier", quick)
