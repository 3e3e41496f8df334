"""Explanations and rich forms: words by hand, other gains and K, long documents, pages.

The numbers of `hand` can be checked on paper; a model's explanations are checked against its logits
(docs/method.md, "Planted attention").
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from plantlib.backbones import loading, windows
from plantlib.linear.score import LinearConfig
from plantlib.model.explanation import DocumentExplanation, Explanation
from plantlib.planting.starts import V1Config, plant
from plantlib.teacher import mig
from plantlib.training import artefacts
from plantlib.training.ingredients import Ingredients, build_model, teacher_of
from plantlib.training.options import RunConfig
from plantlib.training.records import RunRecord
from plantlib.utils import reprs
from tests.conftest import OPERATIONS, WINDOW, tiny_corpus
from tests.model.test_model import planted_model
from tests.tolerances import SLACK, assert_within_rounding, near, rounding

TEXT = "The cardio-myopathy, café."


def hand(**changes) -> Explanation:
    """Tokens The|cardio|-|myo|pathy|,|caf|é|é|. with e^score 1 1 2 3 2 1 1 2 2 1 (sum 16).

    The é is two tokens, one per byte.
    """
    spans = [
        (0, 3),
        (4, 10),
        (10, 11),
        (11, 14),
        (14, 19),
        (19, 20),
        (21, 24),
        (24, 25),
        (24, 25),
        (25, 26),
    ]
    relevance = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 0], np.float32)
    learned = np.log(np.array([1, 1, 2, 1, 2, 1, 1, 2, 2, 1], np.float32))
    outputs = np.array([0, 0, 0, 4, 0, 0, 0, 0, 0, 0], np.float32)
    parts = {
        "label": "I42",
        "text": TEXT,
        "spans": spans,
        "learned": learned,
        "relevance": relevance,
        "outputs": outputs,
        "gain": math.log(3),
        "bias": 0.25,
        "calibration": (2.0, -1.0, 0.9),
    }
    return Explanation(**(parts | changes))


def test_pieces_become_words():
    explanation = hand()
    assert [(w.text, round(16 * w.attention, 4)) for w in explanation.words] == [
        ("The", 1),
        ("cardio-myopathy", 8),
        (",", 1),
        ("café", 5),
        (".", 1),
    ]
    compound = explanation.words[1]
    assert compound.planted == pytest.approx(
        math.log(3)
    ) and compound.contribution == pytest.approx(3 / 16 * 4)
    assert sum(w.attention for w in explanation.words) == pytest.approx(1)
    by_attention = explanation.at(kind="attention")
    assert [name for name, _ in by_attention.top_words(2)] == ["cardio-myopathy", "café"]
    assert by_attention.top(1)[0].attention == pytest.approx(1 / 2)
    assert explanation.top_words(1) == [("cardio-myopathy", pytest.approx(3 / 16 * 4))]


def test_lists_leave_out_punctuation_and_still_add_up():
    outputs = np.array([1.0, 9.0, 2.0])
    explanation = Explanation("x", "a . b", [(0, 1), (2, 3), (4, 5)], *np.zeros((2, 3)), outputs)
    assert [word.text for word in explanation.top()] == ["b", "a"]
    rows = {name: numbers[0] for name, numbers in explanation.table()}
    assert rows.pop("(logit)") == pytest.approx(sum(rows.values())) == pytest.approx(4.0)
    assert rows["(other words, for)"] == pytest.approx(3.0)
    alone = Explanation("x", ".", [(0, 1)], *np.zeros((2, 1)), np.array([9.0]))
    assert [word.text for word in alone.top()] == ["."], "where nothing else was read"


def test_repeated_words_are_summed_whatever_their_case():
    spans = [(0, 5), (6, 8), (9, 14)]
    explanation = Explanation("x", "Pulse or pulse", spans, *np.zeros((2, 3)), np.array([3, 0, 6]))
    assert explanation.top_words() == [("Pulse", pytest.approx(3)), ("or", 0.0)]
    assert explanation.at(kind="attention").top_words() == [
        ("Pulse", pytest.approx(2 / 3)),
        ("or", pytest.approx(1 / 3)),
    ]


def test_pieces_that_begin_with_a_blank_belong_to_their_word():
    explanation = Explanation("x", "no pulse", [(0, 2), (2, 5), (5, 8), (8, 8)], *np.zeros((3, 4)))
    assert [(w.text, w.attention) for w in explanation.words] == [
        ("no", 0.25),
        ("pulse", 0.5),
        ("", 0.25),
    ]


def test_logit_and_score_by_hand():
    explanation = hand()
    assert explanation.logit == pytest.approx(
        3 / 16 * 4 + 0.25
    ) and explanation.score == pytest.approx(0.9 / (1 + math.exp(-(2 * 1 - 1))))


def test_other_gains_and_other_k():
    assert hand().at(gain=0).logit == pytest.approx(1 / 14 * 4 + 0.25)
    of_two = hand().at(keep=2)
    # token 3 is the best, then the earliest of four equal ones
    assert np.flatnonzero(of_two.attention).tolist() == [2, 3] and of_two.attention[
        3
    ] == pytest.approx(3 / 5)
    assert of_two.at(gain=0).keep == 2 and of_two.at(keep=None).attention == pytest.approx(
        hand().attention
    )
    with pytest.raises(ValueError, match="keep=0.*at least 1"):
        hand().at(keep=0)


def test_forms_are_deterministic_and_the_plain_one_holds_no_text():
    first, second = hand(name="Cardiomyopathy"), hand(name="Cardiomyopathy")
    for form in ("__repr__", "_repr_html_", "_repr_markdown_"):
        assert getattr(first, form)() == getattr(second, form)()
    assert repr(first) == "Explanation('I42', 10 tokens, logit 1.00, score 0.66)"
    assert "| cardio-myopathy | +0.75 | +0.75 | +0.00 | +0.00 |" in first._repr_markdown_()
    attention = first.at(kind="attention")
    assert "| cardio-myopathy | 0.500 | 1.10 | +0.75 |" in attention._repr_markdown_()
    both = DocumentExplanation([first, first.at(gain=0)])
    assert "cardio" not in repr(first) + repr(both)
    assert "cardio-myopathy +0.75" in both._repr_markdown_()
    assert "cardio-myopathy 0.50" in both.at(kind="attention")._repr_markdown_()
    assert "I42 Cardiomyopathy" in first._repr_html_() and "I42 Cardiomyopathy" in both.table_html()
    html = attention._repr_html_()
    # the pieces of a word are one mark with the sum of their attention
    assert html.count("<span") == 5 and 'title="0.312">café</span>' in html
    [text] = re.findall(r'<p style="line-height:1.7">(.*?)</p>', html)
    assert re.sub("<[^>]+>", "", text) == TEXT


def test_words_bias_and_rest_are_the_logit():
    """Teacher's and linear terms join the words they belong to, also beyond the tokens."""
    scored = [(4, 19, 0.5), (21, 25, -0.125), (31, 36, 2.0)]
    teacher = np.array([0, 0.25, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)
    text = TEXT + " Beat valve"
    explanation = hand(text=text, scored=scored, teacher=teacher, rest=0.5, unread=2)
    by_word = {word.text: word.contribution for word in explanation.words}
    assert by_word["cardio-myopathy"] == pytest.approx(0.75 + 0.25 + 0.5)
    assert by_word["café"] == -0.125 and by_word["valve"] == 2.0 and "Beat" not in by_word
    total = sum(by_word.values()) + explanation.bias + explanation.rest
    assert explanation.logit == pytest.approx(total) == pytest.approx(4.125)
    html = explanation._repr_html_()
    assert "rgba(117,112,179" in html, "a word that takes from the logit has another colour"
    assert 'not read by attention"> Beat </i>' in html, "unread text is grey"
    assert explanation.note() == (
        "Not attention but the linear score decides here: +2.38 of the logit against +0.75 by"
        " attention."
    )
    assert hand().note() == ""


@pytest.mark.parametrize("k", [1, 2, 10])
def test_the_rows_of_the_table_add_up(k):
    scored = [(4, 19, 0.5), (21, 25, -0.125)]
    rows = hand(scored=scored, rest=0.5).table(k)
    *summands, (name, total) = rows
    assert name == "(logit)" and total[0] == pytest.approx(hand(scored=scored, rest=0.5).logit)
    np.testing.assert_allclose(np.sum([row for _, row in summands], 0), total, atol=1e-12)
    assert [name for name, _ in rows[-3:]] == ["(bias)", "(earlier segments)", "(logit)"]
    for _, (added, *parts) in rows[:-3]:
        assert added == pytest.approx(sum(parts))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 9])
def test_every_word_is_in_one_row_and_no_row_mixes_for_and_against(k):
    """Powers of two: a word that is lost, counted twice or in the wrong row changes a sum."""
    added = {"a": 32, "b": -32, "c": 16, "d": -8, ".": 4, "e": -2, "f": 1, "g": 0}
    text = "a, b, c, d. e, f, g, A"
    scored = [(m.start(), m.end(), added[m[0].lower()]) for m in re.finditer(r"\w|\.", text)]
    rows = Explanation("x", text, [], *np.zeros((3, 0)), scored=scored, bias=-0.5).table(k)
    summed = {"a": 64, "b": -32, "c": 16, "d": -8, "e": -2, "f": 1}
    named = dict(list(summed.items())[:k])
    others = [4, *list(summed.values())[k:]]
    expected = named | {
        "(other words, for)": sum(number for number in others if number > 0),
        "(other words, against)": sum(number for number in others if number < 0),
    }
    shown = {name: numbers[0] for name, numbers in rows[:-2]}
    assert shown == {name: number for name, number in expected.items() if number}
    assert sum(numbers[0] for _, numbers in rows[:-1]) == rows[-1][1][0] == 42.5


def test_a_row_of_other_words_that_has_no_word_is_left_out():
    def rows(*outputs: float, **changes) -> dict[str, list[float]]:
        spans = [(2 * i, 2 * i + 1) for i in range(len(outputs))]
        zeros = np.zeros((2, len(outputs)))
        text = "a,b,c"[: 2 * len(outputs)]
        return dict(Explanation("x", text, spans, *zeros, np.array(outputs), **changes).table(1))

    assert list(rows(9, 2, 0)) == ["a", "(other words, for)", "(bias)", "(logit)"]
    assert list(rows(9, -2, 0)) == ["a", "(other words, against)", "(bias)", "(logit)"]
    assert list(rows(9, 0, 0)) == list(rows(9)) == ["a", "(bias)", "(logit)"]
    assert list(rows()) == ["(bias)", "(logit)"]
    # attention adds what the linear score takes: the columns must still add up
    assert rows(4, 1, scored=[(2, 3, -0.5)])["(other words, for)"] == [0, 0.5, 0, -0.5]


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_a_table_can_be_written_as_json(kind):
    """Also where a caller gives numpy's numbers for the bias, the rest and the linear score."""
    scored = [(4, 19, kind(0.5)), (21, 25, kind(-0.125))]
    rows = hand(scored=scored, bias=kind(0.25), rest=kind(0.5)).table(1)
    assert all(type(number) is float for _, numbers in rows for number in numbers)
    assert json.loads(json.dumps(rows)) == [list(row) for row in rows]


def weighing(size: float, kind: str = "contribution") -> Explanation:
    """Five words parted by commas, with weights of 100, -2, 1, 0.9 and 0 hundredths of `size`."""
    weights = np.array([1, -0.02, 0.01, 0.009, 0]) * size
    spans = [(2 * i, 2 * i + 1) for i in range(5)]
    scored = [(*span, weight) for span, weight in zip(spans, weights, strict=True)]
    return Explanation("x", "a,b,c,d,e", [], *np.zeros((3, 0)), scored=scored, kind=kind)


@pytest.mark.parametrize("size", [1e-4, 0.3, 1, 64, 1e4])
def test_a_named_word_has_a_share_of_the_largest_weight_whatever_the_size_of_logits(size):
    explanation = weighing(size)
    assert [word.text for word in explanation.top()] == ["a", "b", "c"]
    both = DocumentExplanation([explanation])
    for shown in (explanation._repr_markdown_(), both._repr_markdown_(), *explanation.lines()):
        named = [line for line in re.split(r"[\n,]", shown) if re.match(r"\W*[abc]\b", line)]
        numbers = [float(re.search(r"[+-][\d.]+", line)[0]) for line in named]
        assert all(numbers), "no word is named with a weight of 0"


def test_a_document_whose_words_all_add_nothing_names_one_of_them():
    assert [word.text for word in weighing(0.0).top()] == ["a"]
    assert "| a | +0.00 |" in weighing(0.0)._repr_markdown_()
    assert weighing(math.nan)._repr_markdown_(), "of a model whose training diverged"


def adding(*weights: float, text: str = "", **changes) -> Explanation:
    """A document of as many words as weights, parted by commas; each word adds its weight."""
    text = text or ", ".join(f"w{i}" for i in range(len(weights)))
    places = [match.span() for match in re.finditer(r"\w+|\.", text)]
    scored = [(*span, weight) for span, weight in zip(places, weights, strict=True)]
    return Explanation("x", text, [], *np.zeros((3, 0)), scored=scored, **changes)


NO_WORD = {
    "the bias, which says mostly how frequent the label is": (
        adding(0.3, -0.2, bias=-4.0),
        "4.00 by size, against 0.30 by the strongest word",
    ),
    "what earlier segments add": (adding(0.01, rest=0.5), "0.50 by size, against 0.01"),
    "punctuation": (adding(5, text="."), "5.00 by size, against 0.00"),
    "many of small weight together": (
        adding(*[0.5, -0.5] * 6, bias=-1.0),
        "6.00 by size, against 0.50",
    ),
}


@pytest.mark.parametrize("decides", NO_WORD)
@pytest.mark.parametrize("kind", ["contribution", "attention"])
def test_a_line_says_where_no_word_decides(decides, kind):
    explanation, numbers = NO_WORD[decides]
    explanation = explanation.at(kind=kind)
    note = explanation.note()
    assert note.startswith(f"No word decides here but {decides}: {numbers}")
    assert explanation.lines(1)[1] == note and f"<p>{note}</p>" in explanation._repr_html_()
    assert f"\n\n{note}\n\n" in explanation._repr_markdown_()
    assert repr(explanation).endswith(", no word decides)")


@pytest.mark.parametrize(
    "explanation",
    [
        hand(),
        adding(3),
        adding(1, -5, bias=-9.0),
        adding(*[0.5] * 10),
        adding(0.4, bias=-4.0),
        adding(0.0, 0.0),
        adding(),
    ],
    ids=["one word", "alone", "against", "ten alike", "at the bound", "zeros", "nothing"],
)
def test_no_line_says_that_no_word_decides_where_one_does(explanation):
    for one in (explanation, explanation.at(kind="attention")):
        shown = [repr(one), one._repr_html_(), one._repr_markdown_(), *one.lines()]
        assert not any("o word decides" in form for form in shown)


def test_neighbours_that_speak_alike_form_a_phrase():
    text = "chronic kidney  disease , stage of kidney stone"
    added = {"chronic": 1, "kidney": 2, "disease": 2, "stage": 1, "of": 0.01, "stone": -1}
    added[","] = 1
    scored = [(m.start(), m.end(), added[m[0]]) for m in re.finditer(r"\w+|,", text)]
    explanation = Explanation("x", text, [], *np.zeros((3, 0)), scored=scored)
    assert [(w.text, w.contribution) for w in explanation.phrases] == [
        ("chronic kidney disease", 5),
        (",", 1),
        ("stage", 1),
        ("of", 0.01),
        ("kidney", 2),
        ("stone", -1),
    ]
    assert explanation.top(1)[0].contribution == 5
    with pytest.raises(ValueError, match="kind='weights'.*contribution, attention"):
        explanation.at(kind="weights")


def test_the_saved_page_stands_alone(tmp_path):
    evil = hand(label='<img src="http://x">', text=TEXT[:-1] + "&")
    path = DocumentExplanation([evil]).save_html(tmp_path / "sub" / "page.html")
    page = path.read_text(encoding="utf-8")
    assert (
        page.startswith("<!doctype html>")
        and 'charset="utf-8"' in page
        and "café" in re.sub("<[^>]+>", "", page)
    )
    tags = set(re.findall(r"<(\w+)", page))
    assert not tags & {"img", "script", "link", "iframe"} and not re.search(
        r"(?:src|href)=[\"']?|url\(|@import", re.sub(r"&lt;.*?&gt;", "", page)
    )
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    hand(text="\ud800" + TEXT[1:]).save_html(path)
    assert "?" in path.read_text(encoding="utf-8")


LONG = "Pulse the valve " * WINDOW + "rash and pulse"


@pytest.mark.parametrize("keep", [None, 3])
def test_a_long_document_is_read_window_by_window_to_the_models_logit(
    keep, prepared, backbone, monkeypatch
):
    model = planted_model(prepared, backbone, keep=keep)
    sizes, read = [], windows.encode_windows
    monkeypatch.setattr(
        windows, "encode_windows", lambda b, ids, cut: sizes.append(len(cut)) or read(b, ids, cut)
    )
    explanation = model.explain(LONG, ["heart", "skin"])
    assert len(sizes) == math.ceil(len(explanation[0].spans) / WINDOW) and set(sizes) == {1}, (
        "windows must be read one at a time"
    )
    tokens = model.tokenise([LONG])
    with torch.inference_mode():
        logits = model(*model.pack(tokens)).logits[0]
    for one in explanation:
        column = model.config.label2id[one.label]
        assert one.logit == near(float(logits[column]), OPERATIONS, size=float(logits.abs().max()))
        assert keep is None or (one.attention > 0).sum() == keep
    scores = dict(model.predict([LONG], k=100)[0])
    assert explanation["skin"].score == near(scores["skin"], OPERATIONS)


def with_everything(prepared, backbone, contexts: str, stateful: str):
    """A model with both document scores and, beside plain attention, an L2R table."""
    linear = artefacts.linear_scores(prepared, LinearConfig(folds=2), progress=False)
    made = Ingredients(teacher_of(prepared), linear=linear)
    if (contexts, stateful) != ("mixed", "exact"):
        made.static = SimpleNamespace(table=lambda: made.teacher.relevance)
    v1 = V1Config(contexts=contexts, stateful=stateful)
    model = build_model(prepared, made, RunConfig(v1=v1))
    table = {"l2r_table": made.l2r_table}
    plant(model.decoder, "lookup+linear", made.teacher, prepared.train_labels, **table)
    model.teacher_score.load_teacher(made.teacher, prepared.train_tokens)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model.attach_backbone(backbone).eval()


@pytest.mark.parametrize(
    ("contexts", "stateful"), [("mixed", "exact"), ("sum", "exact"), ("mixed", "v1")]
)
def test_what_the_words_add_is_the_models_logit(contexts, stateful, prepared, backbone):
    """Words, bias and rest sum to the logit, over one window and over many."""
    model = with_everything(prepared, backbone, contexts, stateful)
    for text in ("Pulse, pulse and the valve; itch?", LONG):
        packed = model.pack(model.tokenise([text]))
        with torch.inference_mode():
            logits = model(*packed, linear_scores=model.word_scores([text])).logits[0]
        for one in model.explain(text, ["heart", "skin"]):
            parts = one.parts
            assert all(parts[name] != 0 for name in ("attention", "teacher", "linear score"))
            words = sum(word.contribution for word in one.words)
            size = sum(abs(word.contribution) for word in one.words) + 1
            logit = float(logits[model.config.label2id[one.label]])
            bound = SLACK * rounding(size, 2 * len(one.spans) + 24, torch.float32)
            assert words + one.bias + one.rest == pytest.approx(one.logit, abs=1e-6 * size)
            assert one.logit == pytest.approx(logit, abs=bound)
            *summands, (_, total) = json.loads(json.dumps(one.table(2)))
            added = np.sum([numbers for _, numbers in summands], 0)
            np.testing.assert_allclose(added, total, atol=1e-6 * size)
            carried = stateful == "v1" and text == LONG
            assert (0 < one.rest < 1) if carried else one.rest == 0


def test_several_labels_are_the_single_ones(prepared, backbone):
    model = planted_model(prepared, backbone)
    several = model.explain(LONG, ("skin", "heart"))
    assert [one.label for one in several] == ["skin", "heart"]
    for one in several:
        alone = model.explain(LONG, one.label)
        assert_within_rounding(one.attention, alone.attention, OPERATIONS, dtype=torch.float32)
        np.testing.assert_array_equal(one.relevance, alone.relevance)
    ids, table = model.tokenise([LONG]).flat, teacher_of(prepared).relevance
    for one in several:
        row = table[model.config.label2id[one.label]].toarray()[0]
        assert_within_rounding(one.relevance, row[ids].astype(np.float32), operations=1)
    with pytest.raises(KeyError, match="'bone' is not explained here; there are skin, heart"):
        several["bone"]


def test_explain_document_ranks_as_predict_does(prepared, backbone, tmp_path):
    model = planted_model(prepared, backbone)
    explanation = model.explain_document("the pulse was seen", k=3, html=tmp_path / "d.html")
    expected = model.predict(["the pulse was seen"], k=3)[0]
    assert [(label, near(score, OPERATIONS)) for label, score, _ in explanation.rows()] == expected
    assert all(
        word in "the pulse was seen" for _, _, words in explanation.rows() for word, _ in words
    )
    assert (
        "pulse" in (tmp_path / "d.html").read_text() and len(model.explain_document("", k=2)) == 2
    )


def test_gain_moves_the_model_and_its_explanation_alike(prepared, backbone):
    model = planted_model(prepared, backbone, start="lookup")
    moved = model.explain(LONG, "heart").at(gain=9.0, keep=4)
    with torch.no_grad():
        model.decoder.planted_gain.fill_(9.0)
    model.decoder.keep = 4
    explanation = model.explain(LONG, "heart")
    assert_within_rounding(moved.attention, explanation.attention, OPERATIONS, dtype=torch.float32)
    assert moved.logit == near(explanation.logit, OPERATIONS, size=explanation.outputs.max())


def test_a_bfloat16_backbone_is_explained(prepared, backbone_folder):
    model = planted_model(prepared, loading.load(backbone_folder, dtype="bfloat16"))
    assert model.explain("the pulse", "heart").attention.sum() == near(1, OPERATIONS)


def rich_objects() -> dict:
    x, y = (
        np.array(rows) for rows in ([[1, 0, 1], [0, 1, 1], [1, 1, 0]], [[1, 0], [0, 1], [1, 0]])
    )
    from scipy import sparse

    from plantlib.training.records import environment

    dataset = {
        "name": "toy",
        "fingerprint": "f",
        "train": 3,
        "dev": 1,
        "test": 1,
        "labels": 2,
        "label_space": "all",
        "synthetic": True,
    }
    record = RunRecord(
        "toy_a-0",
        "planted",
        dataset,
        "random",
        0,
        {"p@1": 0.5, "ndcg@5": None},
        environment=environment(),
        created="2026-01-01",
    )
    return {
        "corpus": tiny_corpus(),
        "teacher": mig.teach(sparse.csr_matrix(x), sparse.csr_matrix(y)),
        "record": record,
    }


@pytest.mark.parametrize("name", ["corpus", "teacher", "record"])
def test_rich_forms_agree_and_are_deterministic(name):
    first, second = rich_objects()[name], rich_objects()[name]
    for form in ("__repr__", "_repr_html_", "_repr_markdown_"):
        assert getattr(first, form)() == getattr(second, form)()
    facts = {
        "corpus": ["100 documents", "60"],
        "teacher": ["2 of 2 labels taught"],
        "record": ["(synthetic)", "0.5000"],
    }
    for fact in facts[name]:
        assert fact in first._repr_html_() and fact in first._repr_markdown_()
    assert first._repr_html_().count("<tr>") + 1 == first._repr_markdown_().count("\n| ")


def test_nothing_from_data_is_markup():
    odd = replace(tiny_corpus(), name="<b>|*x*")
    assert "<b>|" not in odd._repr_html_() and "&lt;b&gt;|*x*" in odd._repr_html_()
    assert r"\<b\>\|\*x\*" in odd._repr_markdown_()


def test_cells_of_cards():
    frame = pd.DataFrame({"n": [1234, 1], "share": [0.25, float("nan")]}, index=["a", "b"])
    card = reprs.Card.of_frame("t", "u", frame)
    assert reprs.markdown_table(card.heads, card.rows).splitlines()[2:] == [
        "| a | 1,234 | 0.25 |",
        "| b | 1 | - |",
    ]
    assert reprs.html_table(["x"], []) == reprs.markdown_table(["x"], []) == ""


@pytest.mark.parametrize("k", [0, -1, 1.5, None])
def test_a_number_of_words_that_means_nothing_is_refused(k):
    explanation = Explanation("x", "no pulse", [(0, 2), (3, 8)], *np.ones((3, 2)))
    for best in (explanation.top, explanation.top_words, DocumentExplanation([explanation]).rows):
        with pytest.raises(ValueError, match="k="):
            best(k)
