"""Nothing of test is read before test is judged: with other test labels or other test texts a run
ends at the same model, threshold and calibration, to the bit. And the stack reads training
documents through tables that have not seen them.

The corpus is a hard one: a third of its labels are drawn at random, so that dev and test differ,
and the epoch, the gains and the weights of the linear score matter.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from plantlib import Corpus, prepare
from plantlib.data.tokens import Words
from plantlib.linear import score as linear_score
from plantlib.linear import stacking
from plantlib.linear.score import LinearConfig
from plantlib.training import artefacts, schedules, train
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.runs import run_start
from tests.conftest import COMMON, FILLER, THEMES

STARTS = ("l2r", "lookup+linear")


def hard_corpus() -> Corpus:
    """48 train, 40 dev and 40 test documents; a document has one word of its label, and one label
    of three comes from nowhere. Test has other labels in the foreground than dev.
    """
    rng = random.Random(5)
    split = ["train"] * 48 + ["dev"] * 40 + ["test"] * 40
    texts, labels = [], []
    for part in split:
        of_split = COMMON[2:] if part == "test" else COMMON
        true = rng.sample(of_split, 2)
        words = [rng.choice(THEMES[label]) for label in true] + rng.choices(FILLER, k=8)
        rng.shuffle(words)
        texts.append(" ".join(words))
        labels.append(sorted({true[0], true[1] if rng.random() < 1 / 3 else rng.choice(COMMON)}))
    names = [f"d{i:03d}" for i in range(len(split))]
    return Corpus.from_lists("hard", names, texts, labels, split)


def with_other_test(corpus: Corpus, what: str) -> Corpus:
    """The corpus with test labels, or test texts, in another order."""
    order = np.arange(corpus.N)
    test = corpus.rows("test")
    order[test] = np.random.default_rng(1).permutation(test)
    if what == "labels":
        return replace(corpus, labels=corpus.labels[order])
    return replace(corpus, texts=[corpus.texts[i] for i in order])


def everything_chosen(corpus: Corpus, start: str, backbone: str, root) -> dict:
    """Whatever a run decides before it reads test, and what it reads of test."""
    inputs = prepare(corpus, backbone=backbone, max_tokens=None, root=root, progress=False)
    config = RunConfig(train=TrainConfig(epochs=4, batch_size=4, lr_queries=0.05))
    record, model = run_start(inputs, start, 0, config=config, progress=False)
    chosen = {name: value for name, value in record.params.items() if name != "inputs"}
    chosen |= {"threshold": record.threshold, "calibration": model.config.calibration}
    chosen |= {"epoch": record.chosen_epoch, "teacher": record.teacher}
    chosen["history"] = [
        {name: value for name, value in row.items() if name != "seconds"} for row in record.history
    ]
    found = {
        "chosen": chosen,
        "weights": {n: v.cpu().numpy().tobytes() for n, v in model.state_dict().items()},
        "test": {n: v for n, v in record.metrics.items() if n in ("p@1", "ndcg@5", "micro_f1")},
    }
    if "linear" in start:
        linear = artefacts.linear_scores(inputs, config.linear, progress=False)
        found["chosen"]["stack"] = linear.stack.weights.tolist()
    if "l2r" in start:
        planted = artefacts.label_queries(
            inputs,
            config.l2r_trainer,
            None,
            withheld=None,
            teacher_config=config.teacher,
            config=config.l2r,
            progress=False,
        )
        found["queries"] = planted.label_queries.numpy().tobytes()
    return found


@pytest.fixture(scope="module", autouse=True)
def large_steps():
    """So that a few small batches move the model away from the linear score."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LINEAR_RATE", 1.0)
        patch.setattr(train, "LINEAR_EPSILON", train.EPSILON)
        patch.setattr(schedules, "LR_OUTPUTS", 0.05)
        yield


@pytest.fixture(scope="module")
def hard():
    return hard_corpus()


@pytest.fixture(scope="module")
def as_it_is(hard, backbone_folder, tmp_path_factory):
    """Start -> what a run on the corpus as it is chooses."""
    root = tmp_path_factory.mktemp("as-it-is")
    return {start: everything_chosen(hard, start, backbone_folder, root) for start in STARTS}


@pytest.mark.parametrize("what", ["labels", "texts"])
@pytest.mark.parametrize("start", STARTS)
def test_what_stands_in_test_changes_nothing_but_the_reading_of_test(
    hard, as_it_is, start, what, backbone_folder, tmp_path
):
    other = with_other_test(hard, what)
    found = everything_chosen(other, start, backbone_folder, tmp_path)
    assert found.pop("test") != as_it_is[start]["test"], "test is read"
    for name, value in found.items():
        assert value == as_it_is[start][name], name


def test_the_corpus_is_hard_enough_to_tell(as_it_is):
    """Gains, weights and epochs differ in what dev says of them, and dev and test differ."""
    chosen = as_it_is["lookup+linear"]["chosen"]
    assert len(set(chosen["linear_weights_tried"].values())) > 2
    assert len(set(chosen["gains_tried"].values())) > 1
    for start in STARTS:
        dev = [row["ndcg@5"] for row in as_it_is[start]["chosen"]["history"]]
        assert len(set(dev)) > 1 and max(dev) < 0.95
        assert as_it_is[start]["test"]["ndcg@5"] not in dev


def test_the_stack_is_fitted_on_tables_that_have_not_seen_the_document():
    """Every document has a word of its own and its labels are drawn at random: who has seen a
    document knows its labels, who has not knows nothing, and gives the terms no weight.
    """
    rng = np.random.default_rng(0)
    n = 120
    counts = sparse.hstack([sparse.identity(n), sparse.csr_matrix(rng.random((n, 20)) < 0.3)])
    words = Words([f"w{i}" for i in range(n + 20)], counts.astype(np.int32).tocsr())
    labels = sparse.csr_matrix(rng.random((n, 6)) < 0.3, dtype=np.int32)
    config = LinearConfig(folds=3)
    rows = np.arange(n)
    honest = linear_score.fit(words, labels, rows, config=config, progress=False)
    terms = linear_score.terms_of(honest.tfidf, labels)
    seen = stacking.fit(
        [terms] * 3,
        [np.asarray(labels.sum(0)).ravel()] * 3,
        honest.tfidf,
        labels,
        honest.part - 1,
        tuple(terms),
    )

    def pull(stack) -> float:
        """How far the terms move a logit of a document that they have seen."""
        used, _ = stack.of_labels(np.asarray(labels.sum(0)).ravel())
        return float(sum(w * terms[t].scores(honest.tfidf) for t, w in used.items()).std())

    assert pull(honest.stack) < pull(seen) / 5
