"""Attention against word frequency: correlations worked out by hand, words, the study itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from companion.studies import frequency, steps
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from tests.companion.studies.test_evidence import marked_corpus


@pytest.fixture(scope="module")
def inputs(backbone_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("frequency")
    return prepare(
        marked_corpus(), backbone=backbone_folder, root=root, max_tokens=40, progress=False
    )


def words(frequencies, tfidf=None):
    frequencies = np.array(frequencies, float)
    return frequency.Words(
        np.arange(len(frequencies)), frequencies, np.array(tfidf or -frequencies)
    )


def test_correlations_are_those_of_ranks():
    rng = np.random.default_rng(0)
    weights, counts = rng.random(30), rng.integers(1, 9, 30)
    found = frequency.correlations(words(counts), weights, None)
    assert found[frequency.FREQUENCY] == pytest.approx(spearmanr(weights, counts)[0])
    assert found[frequency.TFIDF] == pytest.approx(-found[frequency.FREQUENCY])
    assert np.isnan(found[frequency.GOLD]) and np.isnan(found[frequency.PARTIAL])
    assert np.isnan(frequency.correlations(words([2, 2, 2]), np.ones(3), None)[frequency.TFIDF])


def test_attention_to_marks_that_frequency_explains_is_none_when_it_is_held_fixed():
    rng = np.random.default_rng(1)
    counts = np.arange(400.0)
    marks = counts + rng.normal(0, 200, 400) < 80
    rare = frequency.correlations(words(counts), -counts + rng.normal(0, 60, 400), marks)
    assert rare[frequency.GOLD] > 0.3 and abs(rare[frequency.PARTIAL]) < 0.1
    gold = frequency.correlations(words(counts), marks + rng.normal(0, 0.1, 400), marks)
    assert gold[frequency.PARTIAL] > 0.7


def test_words_are_counted_whole_and_weigh_the_mean_of_their_pieces(inputs):
    rows = inputs.rows["test"]
    for row, found in zip(rows, frequency.words_of(inputs, rows), strict=True):
        text = inputs.corpus.texts[row].split()
        if len(inputs.tokens[row]) < 40:
            assert len(found.frequency) == len(text)
        assert len(found.word_of) == len(inputs.tokens[row])
    train = [set(inputs.corpus.texts[i].split()) for i in inputs.rows["train"]]
    short = next(i for i in rows if 0 < len(inputs.tokens[i]) < 40)
    (found,) = frequency.words_of(inputs, np.array([short]))
    for word, count in zip(inputs.corpus.texts[short].split(), found.frequency, strict=True):
        assert count == sum(word in document for document in train)
    pieces = frequency.Words(np.array([0, 0, 1]), np.ones(2), np.ones(2))
    assert pieces.means(np.array([1.0, 3.0, 5.0])).tolist() == [2.0, 5.0]


def test_planted_attention_finds_the_marks_beyond_frequency(inputs, tmp_path):
    config = RunConfig(train=TrainConfig(epochs=1))
    step = steps.Steps(tmp_path / "questions" / "frequency-tiny.json", {"seed": 0})
    step("seed 0", lambda: frequency.measure(inputs, config, 0))
    (file,) = steps.load(tmp_path, "frequency").values()
    table = frequency.table(file).set_index(["system", "measure"])["value"]
    planted = table["planted, before training", frequency.PARTIAL]
    assert planted > 0.4 > abs(table["random, before training", frequency.PARTIAL])
    gained = frequency.change(
        file, "planted, before training", "shuffled, before training", frequency.PARTIAL
    )
    assert gained["low"] > 0
