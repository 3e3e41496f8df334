"""The length of a fit that is said before it starts: it follows what is multiplied."""

import pytest

from plantlib.training import price

STATED = "this fit will take about 2.0 hours on this processor"


@pytest.fixture(autouse=True)
def fixed_speed(monkeypatch):
    monkeypatch.setattr(price, "speed", lambda: 1e6)


def test_more_tokens_epochs_and_gains_take_longer(corpus, backbone_folder):
    short = price.seconds(corpus, backbone_folder, 4, 2)
    assert price.seconds(corpus, backbone_folder, None, 2) > short
    assert price.seconds(corpus, backbone_folder, 4, 3) > short
    assert price.seconds(corpus, backbone_folder, 4, 2, gains=1) < short
    assert price.seconds(corpus, "words", 4, 2) != short


def test_words_of_the_static_tier_are_trained_on_alone(corpus):
    once = price.seconds(corpus, "words", None, 1, gains=1)
    assert price.seconds(corpus, "words", None, 3, gains=2) == pytest.approx(6 * once)


def test_a_long_fit_names_the_quick_tier_and_a_short_one_nothing(
    corpus, backbone_folder, monkeypatch
):
    monkeypatch.setattr(price.torch.cuda, "is_available", lambda: False)
    lengths = {backbone_folder: 7200.0, "words": 21.0}
    monkeypatch.setattr(price, "seconds", lambda corpus, backbone, *_: lengths[backbone])
    quick = "; --backbone words, the quick tier without a language model, needs about 20 seconds"
    assert price.note(corpus, backbone_folder, 256, 5) == STATED + quick
    assert price.note(corpus, "words", 256, 5) is None
    lengths["words"] = 7200.0
    assert price.note(corpus, "words", 256, 5) == STATED


def test_the_speed_is_that_of_a_product(monkeypatch):
    monkeypatch.undo()
    assert 1e7 < price.speed() < 1e15
