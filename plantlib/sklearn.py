"""PlantClassifier: the whole method as one scikit-learn estimator of multi-label documents.

It trains by `prepare` and `run_start` as `plantlib.fit` does, and keeps what scikit-learn's tools
rely on: parameters are stored as given, a fit leaves nothing behind but attributes that end in an
underscore, and `predict` is `predict_proba` cut at `thresholds_`. There is no test split here:
scikit-learn's own tools judge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from plantlib.data import privacy
from plantlib.data.corpus import Corpus
from plantlib.metrics import choosing
from plantlib.metrics.calibration import chances
from plantlib.metrics.choosing import check_choice
from plantlib.metrics.label_rules import LabelRule
from plantlib.model import label_sets, reading
from plantlib.model.plant_model import PlantModel
from plantlib.training import learning
from plantlib.training.options import RunConfig
from plantlib.training.prepare import prepare
from plantlib.training.runs import check_start, fit_prepared
from plantlib.utils.checks import check_seed, check_whole

SPLITS = ("train", "dev")
NO_MATRIX = "y is a matrix of other values than 0 and 1; give a column of 0 and 1 per label"


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of n documents, and the form they came in.

    matrix: (n, L) csr of ones. classes: (L,) labels. form: "lists", "dense" or "sparse".
    """

    matrix: sparse.csr_matrix
    classes: np.ndarray
    form: str

    def in_form(self, matrix: sparse.csr_matrix, name: Callable = lambda label: label) -> Any:
        """Another (n, L) csr of ones in the form of these labels; name: of a label in lists."""
        if self.form == "sparse":
            return matrix
        if self.form == "dense":
            return matrix.toarray()
        names = [name(label) for label in self.classes.tolist()]
        cuts = zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
        return [[names[i] for i in matrix.indices[begin:end]] for begin, end in cuts]


def read_texts(X: Any) -> list[str]:
    """The texts of X, any one-dimensional collection of str; ValueError for anything else."""
    if isinstance(X, (str, bytes)):
        raise ValueError("X is one text; give a list of texts, [text]")
    if getattr(X, "ndim", 1) != 1:
        raise ValueError(
            f"X has shape {X.shape}; give one text per document, such as the column frame['text']"
        )
    texts = list(X)
    if not texts:
        raise ValueError("X holds no documents, Found array with 0 sample(s); give some texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"document {i} of X is a {type(text).__name__}; give texts (str), '' for an empty"
                " one"
            )
    return [str(text) for text in texts]


def read_labels(y: Any) -> Labels:
    """Labels in any of the forms that `PlantClassifier.fit` takes.

    Raises:
        ValueError: one label per document instead of several, a matrix with other values than 0
            and 1, lists that may be rows of a matrix, or no label at all.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None; give labels")
    if sparse.issparse(y) or getattr(y, "ndim", 1) == 2:
        return _of_matrix(y)
    if isinstance(y, str) or getattr(y, "ndim", 1) != 1:
        raise ValueError("y is no list of labels per document; give [['I10', 'E11'], ...]")
    lists = list(y)
    for i, labels in enumerate(lists):
        if not isinstance(labels, (list, tuple, set, frozenset, np.ndarray)):
            raise ValueError(
                f"y holds one {type(labels).__name__} for document {i}; several labels may be right"
                " here, so give a list of labels for each document, [[label], ...], or a matrix of"
                " 0 and 1 with a column per label"
            )
    _refuse_matrix_in_lists(lists)
    binarizer = MultiLabelBinarizer(sparse_output=True)
    try:
        matrix = binarizer.fit_transform(lists)
    except TypeError as error:
        raise ValueError(f"the labels of y are of several types ({error}); give all as str") from (
            error
        )
    return _checked(matrix, binarizer.classes_, "lists")


def _refuse_matrix_in_lists(lists: list) -> None:
    """ValueError for lists of equal length that hold 0 and 1 alone: they have two readings."""
    lengths = {len(labels) for labels in lists}
    if len(lengths) != 1 or lengths == {1} or lengths == {0}:
        return
    if all(isinstance(x, (int, float, np.number)) and x in (0, 1) for row in lists for x in row):
        raise ValueError(
            "y is lists of 0 and 1, which may be labels or rows of a matrix; give a matrix as"
            " np.asarray(y), or labels as text"
        )


def _of_matrix(y: Any) -> Labels:
    columns = getattr(y, "columns", None)
    if sparse.issparse(y):
        matrix = sparse.csr_matrix(y)
    else:
        try:
            values = np.asarray(y, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(NO_MATRIX) from None
        if not np.isfinite(values).all():
            raise ValueError("y holds NaN or infinity; give a matrix of 0 and 1")
        matrix = sparse.csr_matrix(values)
    matrix.eliminate_zeros()
    if matrix.nnz and (matrix.data != 1).any():
        raise ValueError(NO_MATRIX)
    classes = np.arange(matrix.shape[1]) if columns is None else np.asarray(columns)
    return _checked(matrix, classes, "sparse" if sparse.issparse(y) else "dense")


def _stacked(targets: list) -> Any:
    """The labels of two sets of documents, both in one form, one after the other."""
    first, second = targets
    if any(sparse.issparse(y) for y in targets):
        return sparse.vstack([sparse.csr_matrix(y) for y in targets], format="csr")
    if getattr(first, "ndim", 1) != 2:
        return [*first, *second]
    columns = [list(y.columns) if hasattr(y, "columns") else None for y in targets]
    shapes = [np.shape(y) for y in targets]
    if columns[0] != columns[1] or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"y has shape {shapes[0]} and the labels of dev {shapes[1]}; give both the same columns"
        )
    rows = np.concatenate([np.asarray(y) for y in targets])
    return type(first)(rows, columns=columns[0]) if columns[0] is not None else rows


def _checked(matrix: sparse.csr_matrix, classes: np.ndarray, form: str) -> Labels:
    if not matrix.nnz:
        raise ValueError("no document of y has a label; give documents with labels")
    matrix = sparse.csr_matrix(matrix, dtype=np.int64)
    matrix.sort_indices()
    return Labels(matrix, classes, form)


class PlantClassifier(ClassifierMixin, BaseEstimator):
    """Multi-label documents by planted attention, as a scikit-learn classifier.

    Args:
        backbone: name or folder of a pretrained language model.
        start: what is planted; see `planting.starts`.
        max_tokens: tokens that the network reads of a document, None for all.
        epochs: passes over the training documents, at most.
        dev_fraction: share of the documents of `fit` that becomes dev, which chooses epoch, gains,
            thresholds and calibration; not used where `fit` is given dev documents.
        rule: which labels `predict` accepts: "threshold", one chance for all labels; "labels", one
            per label; "places", one that depends on a label's place and on how many labels are
            expected in the document; "budget", the same number of labels for every document.
        by: the metric of dev that chooses the rule: "micro_f1", "macro_f1" or "sample_f1".
        config: every other option of a run, a `RunConfig`; None takes its defaults.
        credentialed: the texts are under a data use agreement: the model is saved to the data
            folder alone.
        root: folder where intermediate files are kept and read again by a fit on the same
            documents; None keeps them in a temporary folder while `fit` runs.
        progress: show progress bars.
        random_state: seed of everything that is drawn.

    Attributes:
        classes_: (L,) labels; the column numbers for a matrix without names.
        thresholds_: (L,) chances from which `predict` accepts a label; None with the
            rules "places" and "budget".
        rule_: the `LabelRule` that dev chose.
        model_: the trained `PlantModel`, for `explain`, `save_pretrained` and the best k labels.
        record_: the `RunRecord` of the fit, without test metrics.

    Example:
        >>> from plantlib import PlantClassifier
        >>> classifier = PlantClassifier(epochs=2, random_state=1)
        >>> classifier.get_params()["epochs"]
        2
    """

    def __init__(
        self,
        backbone: str = "minilm",
        *,
        start: str = "lookup+linear",
        max_tokens: int | None = 256,
        epochs: int = 4,
        dev_fraction: float = 0.1,
        rule: str = "threshold",
        by: str = "micro_f1",
        config: RunConfig | None = None,
        credentialed: bool = False,
        root: str | Path | None = None,
        progress: bool = False,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.start = start
        self.max_tokens = max_tokens
        self.epochs = epochs
        self.dev_fraction = dev_fraction
        self.rule = rule
        self.by = by
        self.config = config
        self.credentialed = credentialed
        self.root = root
        self.progress = progress
        self.random_state = random_state

    def fit(self, X: Sequence[str], y: Any, *, dev: tuple[Any, Any] | None = None) -> Any:
        """Train on texts and their labels.

        Args:
            X: n texts: a list, a tuple, an array or a pandas Series of str.
            y: a list of labels for each document; or (n, L) of 0 and 1, dense, sparse or a
                DataFrame, as MultiLabelBinarizer makes it.
            dev: texts and labels of the documents that choose; None draws them from X.

        Returns:
            the estimator.

        Raises:
            ValueError: texts or labels of another kind, or of different numbers; an option is out
                of range.
            DataError: nothing can be learned from these documents.
        """
        # options and documents, before any long work
        check_seed(self.random_state, "random_state")
        check_whole("epochs", self.epochs)
        config = RunConfig() if self.config is None else self.config
        config = replace(config, train=replace(config.train, epochs=self.epochs))
        check_start(self.start, config)
        check_choice(self.rule, self.by)
        corpus, labels = self._corpus(X, y, dev)
        # train as plantlib.fit does
        with self._folder(corpus) as folder:
            inputs = prepare(
                corpus,
                backbone=self.backbone,
                max_tokens=self.max_tokens,
                test_documents=0,
                root=folder,
                frozen=config.tuning == "frozen",
                label_space="all",
                progress=self.progress,
            )
            model = fit_prepared(
                inputs, self.start, self.random_state, config, self.progress, keep_checkpoints=False
            )
        rows = corpus.rows("dev")
        texts = [corpus.texts[i] for i in rows]
        rule = label_sets.choose(model, texts, corpus.labels[rows], self.rule, self.by)
        self.record_ = model.record
        self.model_: PlantModel = model
        self._labels = replace(labels, matrix=labels.matrix[:0])
        self.classes_ = labels.classes
        return self._decide(rule)

    def partial_fit(self, X: Sequence[str], y: Any, classes: Any = None) -> Any:
        """Learn on from corrected or further documents; `fit` where there is no model yet.

        Counts, teachers and the linear score are then those of all documents at once, and the
        decoder trains on; see `training.learning`. `rule_` is chosen again on the dev documents of
        `fit`.

        Args:
            X: n texts. One that `fit` was given is corrected.
            y: their labels. Lists may hold new labels, which join `classes_` at its end; a matrix
                has the columns of `fit`'s.
            classes: not used; labels are new when they come.

        Returns:
            the estimator.

        Raises:
            ValueError: texts or labels of another kind, number or form than `fit` was given.
        """
        if not hasattr(self, "model_"):
            return self.fit(X, y)
        texts, labels = read_texts(X), read_labels(y)
        check_consistent_length(texts, labels.matrix)
        lists = self._labels.form == "lists"
        if lists != (labels.form == "lists") or not (
            lists or np.array_equal(labels.classes, self.classes_)
        ):
            wanted = "lists of labels" if lists else f"a matrix of {len(self.classes_)} columns"
            raise ValueError(f"y has another form than fit was given, {wanted}; give the same")
        learned = learning.learn(
            self.model_,
            texts,
            replace(labels, form="lists").in_form(labels.matrix, str),
            credentialed=self.credentialed,
            progress=self.progress,
        )
        self.model_ = learned.model
        self.record_ = learned.model.record
        if learned.new_labels:
            new = [x for x in labels.classes.tolist() if str(x) in set(learned.new_labels)]
            self.classes_ = np.array([*self.classes_.tolist(), *new], dtype=self.classes_.dtype)
        self._labels = replace(self._labels, classes=self.classes_)
        rule = choosing.choose(learned.dev.topk, learned.gold, self.rule, self.by)
        self.model_.config.label_rule = rule.as_dict()
        return self._decide(rule)

    def _decide(self, rule: LabelRule) -> Any:
        """Accept labels by a rule from now on."""
        self.rule_ = rule
        self.thresholds_ = None
        if rule.has_cuts:
            cuts = rule.cuts(len(self.classes_))
            self.thresholds_ = chances(cuts, self.model_.config.calibration)
        return self

    def _corpus(self, X: Any, y: Any, dev: tuple[Any, Any] | None) -> tuple[Corpus, Labels]:
        """The documents with their splits, and the labels of both."""
        parts = [(X, y)] if dev is None else [(X, y), dev]
        texts = [read_texts(part[0]) for part in parts]
        targets = [part[1] for part in parts]
        labels = read_labels(targets[0] if dev is None else _stacked(targets))
        check_consistent_length(sum(texts, []), labels.matrix)
        split = [name for name, part in zip(SPLITS, texts, strict=False) for _ in part]
        corpus = Corpus(
            "documents",
            [str(i) for i in range(len(split))],
            sum(texts, []),
            labels.matrix,
            [str(label) for label in labels.classes.tolist()],
            np.asarray(split),
            manifest={"credentialed": True} if self.credentialed else {},
        )
        return corpus.with_dev(self.dev_fraction, self.random_state), labels

    @contextlib.contextmanager
    def _folder(self, corpus: Corpus) -> Iterator[str]:
        """The folder of intermediate files."""
        if self.root is not None:
            yield str(self.root)
            return
        with privacy.temporary_folder(corpus) as folder:
            yield folder

    def decision_function(self, X: Sequence[str]) -> np.ndarray:
        """(n, L) logits of n texts, float32."""
        check_is_fitted(self)
        return np.concatenate(
            [part.float().cpu().numpy() for part in reading.logits(self.model_, read_texts(X))]
        )

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """(n, L) chances that a label is right, estimated on dev, of n texts."""
        return self._chances(self.decision_function(X))

    def _chances(self, scores: np.ndarray) -> np.ndarray:
        """(n, L) logits as chances of being right."""
        return chances(scores, self.model_.config.calibration)

    def predict(self, X: Sequence[str]) -> Any:
        """The labels of n texts that `rule_` accepts, in the form of `fit`'s y.

        They are those whose chance reaches `thresholds_`, where there are any.
        """
        scores = self.decision_function(X)
        if self.thresholds_ is None:
            accepted = self.rule_.accepts(scores)
        else:
            accepted = self._chances(scores) >= self.thresholds_
        return self._labels.in_form(sparse.csr_matrix(accepted, dtype=np.int64))

    def score(self, X: Sequence[str], y: Any, sample_weight: Any = None) -> float:
        """Micro-F1 of `predict` on n texts with the labels y, in any form that `fit` takes.

        Labels that `fit` has not seen count as missed. sample_weight: (n,).
        """
        predicted = self.predict(X)
        if self._labels.form == "lists":
            both = read_labels([*y, *predicted]).matrix
            gold, accepted = both[: len(predicted)], both[len(predicted) :]
        else:
            gold, accepted = read_labels(y).matrix, sparse.csr_matrix(predicted)
        if gold.shape != accepted.shape:
            raise ValueError(f"y has shape {gold.shape}, predictions {accepted.shape}")
        weight = np.ones(gold.shape[0]) if sample_weight is None else np.asarray(sample_weight)
        right, total = gold.multiply(accepted).sum(1), gold.sum(1) + accepted.sum(1)
        return float(2 * (weight @ right).item() / max((weight @ total).item(), 1e-300))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.multi_label = True
        tags.target_tags.two_d_labels = True
        tags.target_tags.single_output = False
        tags.target_tags.multi_output = True
        return tags
