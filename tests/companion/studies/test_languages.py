"""Two languages of the same documents: what is compared, and corpora that do not match."""

from __future__ import annotations

from dataclasses import replace

import pytest

from companion.studies import languages
from plantlib.utils.base import DataError
from tests.companion.report.test_report import record
from tests.conftest import tiny_corpus


def records(gains, seeds=(0, 1)):
    for (name, start), gain in gains.items():
        for seed in seeds:
            yield record(start, seed, 0.4 + gain, data=name)


def test_the_gain_of_each_language_and_the_difference_of_the_two():
    gains = {
        ("codiesp-es", "random"): 0.0,
        ("codiesp-es", "lookup"): 0.3,
        ("codiesp", "random"): 0.1,
        ("codiesp", "lookup"): 0.2,
    }
    found = languages.effects(list(records(gains)))
    of = found[found["metric"] == "ndcg@5"].set_index("language")
    assert of["difference"].to_dict() == {
        "Spanish": pytest.approx(0.3),
        "English": pytest.approx(0.1),
        "Spanish minus English": pytest.approx(0.2),
    }
    assert of["planted"]["English"] - of["unplanted"]["English"] == pytest.approx(0.1)
    assert (of["seeds"] == 2).all() and set(found["start"]) == {"lookup"}


def test_seeds_that_one_language_lacks_are_left_out():
    gains = {
        (name, start): 0.1 for name in ("codiesp", "codiesp-es") for start in ("random", "lookup")
    }
    made = list(records(gains, (0, 1)))
    assert (languages.effects(made[:-1])["seeds"] == 1).all()
    assert languages.effects(made[:3]).empty


def test_corpora_of_other_documents_are_refused():
    corpus = tiny_corpus()
    languages.check_same(corpus, replace(corpus, name="b"))
    other = replace(corpus, name="b", ids=corpus.ids[::-1])
    with pytest.raises(DataError, match="tiny and b do not hold the same documents"):
        languages.check_same(corpus, other)
