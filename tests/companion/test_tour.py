"""The figure of the front page: its numbers are attention, and its file is made from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from companion import tour
from plantlib.utils.io import read_json

ROOT = Path(__file__).resolve().parents[2]
TOY = {
    "label": "J45",
    "name": "a <b>",
    "pieces": [["the", 0], [" ", None], ["wheeze", 1]],
    "tokens": [0, 1, 1],
    "gold": [1],
    "stages": {
        name: {"learned": [0.0, 0.0, 0.0], "relevance": [0.0, 1.0, 0.0], "gain": gain}
        for name, gain in zip(tour.STAGES, (0.0, 4.0, 2.0), strict=True)
    },
}


def test_attention_of_words_is_the_sum_over_their_tokens():
    np.testing.assert_allclose(tour.attention(TOY, "nothing planted"), [1 / 3, 2 / 3])
    e = np.exp(4.0)
    np.testing.assert_allclose(tour.attention(TOY, "planted"), [1 / (e + 2), (e + 1) / (e + 2)])
    np.testing.assert_allclose(tour.attention(TOY, "planted", 0.0), [1 / 3, 2 / 3])


def test_the_page_has_the_three_pictures_and_no_markup_of_the_text():
    page = tour.page(TOY)
    assert page.count('class="tour-still"') == 3 and "67 % of the attention" in page
    assert "J45 a &lt;b&gt;" in page and "@" not in page
    marked = f'<span style="background:rgba({tour.ORANGE},1.00);text-decoration:underline">wheeze'
    assert marked in page


def test_the_committed_page_is_made_from_the_committed_numbers():
    found = read_json(ROOT / tour.NUMBERS)
    assert (ROOT / tour.PAGE).read_text(encoding="utf-8") == tour.page(found), (
        "run python -c 'from companion import tour; tour.write()'"
    )
    shares = [tour.attention(found, stage)[found["gold"]].sum() for stage in tour.STAGES]
    assert shares[1] > 3 * shares[0], "planting does not show in this document"


def test_the_explanation_of_a_model_gives_the_numbers(model, marked):
    marked = replace(marked, manifest=dict(marked.manifest) | {"synthetic": True})
    found = tour.measure(marked, model)
    assert "".join(piece for piece, _ in found["pieces"]) in "".join(marked.texts)
    for stage in tour.STAGES:
        assert tour.attention(found, stage).sum() == pytest.approx(1)
        assert len(found["stages"][stage]["learned"]) == len(found["tokens"])


def test_documents_of_people_do_not_go_on_a_page(model, marked):
    real = replace(marked, manifest=dict(marked.manifest) | {"synthetic": False})
    with pytest.raises(ValueError, match="not synthetic"):
        tour.measure(real, model)
