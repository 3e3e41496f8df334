"""Views of planted attention: untrained twins, panels, and widgets.

A test sets the value of a widget and reads the HTML that was drawn; test_browser.py does the same
in a browser. Each view is also compared with its static form, which needs no ipywidgets.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion import viewer
from plantlib.model.explanation import DocumentExplanation
from plantlib.training import artefacts
from plantlib.training.ingredients import teacher_of

DOCUMENT = "the pulse was seen again today"


def grounds(html: str) -> list[str]:
    """The shade of every token."""
    return re.findall(r"rgba\(230,159,0,([\d.]+)\)", html)


def test_untrained_twins_share_all_but_the_start(model):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = viewer.untrained(model, "random", seed=1)
    planted = viewer.untrained(model, "lookup", seed=1)
    assert (random.decoder.planted_gain.item(), planted.decoder.planted_gain.item()) == (0.0, 4.0)
    assert torch.equal(random.decoder.label_queries, planted.decoder.label_queries)
    assert not torch.equal(
        random.decoder.label_queries,
        viewer.untrained(model, "random", seed=2).decoder.label_queries,
    )
    assert torch.equal(planted.decoder.planted.planted_values, model.decoder.planted.planted_values)
    assert planted.backbone is model.backbone
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the model itself changed"
    with pytest.raises(ValueError, match="'l2r'.*planting.plant"):
        viewer.untrained(model, "l2r")


def test_documents_of_other_chapters_do_not_stand_on_a_first_page(corpus):
    renamed = replace(corpus, label_names=[f"K{i}" for i in range(corpus.L)])
    synthetic = replace(renamed, manifest=corpus.manifest | {"synthetic": True})
    row = int(corpus.rows("dev")[0])
    assert viewer.presentable(synthetic, row)
    outside = replace(synthetic, label_names=[f"Z{i}" for i in range(corpus.L)])
    assert not viewer.presentable(outside, row)
    assert viewer.presentable(replace(outside, manifest={}), row), "real documents are not judged"


def test_choose_takes_a_marked_label_of_the_range(model, marked):
    row, label = viewer.choose(marked, model, documents=(1, 100))
    assert (
        label == "heart"
        and marked.split[row] == "dev"
        and row == marked.ids.index(marked.evidence["id"].iloc[0])
    )
    row, label = viewer.choose(replace(marked, evidence=None), model, documents=(1, 3))
    assert label in ("rare gold", "rare tin")
    model.config.label2id = {"elsewhere": 0}
    with pytest.raises(ValueError, match="no document of dev has a label this model knows"):
        viewer.choose(marked, model)


def test_side_by_side_measures_against_the_gold_words(model, marked):
    row, label = viewer.choose(marked, model, documents=(1, 100))
    panels = viewer.side_by_side(viewer.stages(model), marked, row, label)
    shares = {name: share for name, share, *_ in panels.rows()}
    assert shares[viewer.BEFORE_PLANTED] > 2 * shares[viewer.BEFORE_RANDOM]
    html = panels._repr_html_()
    assert (
        html.count("<th ") == 4 and "gold evidence" in html and f"rgba({viewer.BLUE},1.00)" in html
    )
    assert (
        repr(panels)
        == "Panels(random, before training, planted, before training, after training, gold"
        " evidence)"
    )
    bare = viewer.side_by_side({"now": model}, replace(marked, evidence=None), row, label)
    assert "gold" not in bare._repr_html_() and np.isnan(bare.rows()[0][1])


def test_share_on_gold_is_the_sliders_as_a_table(model):
    why = model.explain("the pulse", "heart")
    table = viewer.share_on_gold(why, [(4, 9)], gains=(0, 8), keeps=(1, "all"))
    assert table.loc[8, "K=all"] > table.loc[0, "K=all"] and table.loc[8, "K=1"] in (0.0, 1.0)
    assert table.loc[8, "K=all"] == pytest.approx(why.at(gain=8).attention[1])


def test_explore_redraws_for_gain_k_and_label(model):
    explanation = model.explain(DOCUMENT, ["heart", "skin"])
    box = viewer.explore(explanation, {"heart": [(4, 9)]})
    label, gain, keep, shown = box.children
    assert gain.value == 2.0 and keep.value == "all"
    first = shown.value
    gain.value = 12.0
    assert shown.value != first and "planted gain 12.00" in shown.value
    keep.value = 1
    assert (
        sorted(set(grounds(shown.value))) == ["0.00", "1.00"]
        and grounds(shown.value).count("1.00") == 1
    )
    assert "gold words: 1.00" in shown.value, (
        "at a large gain the one token that stays is the planted one"
    )
    label.value = "skin"
    assert "<b>skin</b>" in shown.value and "gold words" not in shown.value


def test_text_box_answers_what_is_typed(model):
    text, keep, shown = viewer.text_box(model, DOCUMENT, k=2).children
    text.value = "fracture <b>cast</b>"
    assert (
        shown.value == model.explain_document(text.value, 2)._repr_html_()
        and "<b>cast" not in shown.value
    )
    keep.value = 1
    assert shown.value == model.explain_document(text.value, 2).at(keep=1)._repr_html_()
    text.value = ""
    assert "<span" not in shown.value


def test_picker_changes_document_and_label(model, marked):
    rows = marked.rows("dev")
    document, which, shown = viewer.picker({"now": model}, marked, rows).children
    for place in (5, 9, 0):
        document.value = document.options[place][1]
        row = document.value
        assert set(which.options) <= {marked.label_names[j] for j in marked.labels[row].indices}
        which.value = which.options[-1]
        assert (
            shown.value
            == viewer.side_by_side({"now": model}, marked, row, which.value)._repr_html_()
        )


def test_without_ipywidgets_the_static_forms_come_back(model, corpus, monkeypatch):
    monkeypatch.setattr(viewer, "_widgets", lambda: None)
    explanation = model.explain_document(DOCUMENT, 2)
    assert viewer.explore(explanation) is explanation
    assert isinstance(viewer.text_box(model, DOCUMENT), DocumentExplanation)
    assert isinstance(viewer.picker({"now": model}, corpus, corpus.rows("dev")), viewer.Panels)


def test_a_model_that_begins_from_the_linear_score_has_twins_too(prepared, backbone):
    from plantlib.linear.score import LinearConfig
    from plantlib.planting.starts import plant
    from plantlib.training.ingredients import Ingredients, build_model, use_score

    teacher = teacher_of(prepared)
    model = build_model(
        prepared,
        Ingredients(
            teacher, linear=artefacts.linear_scores(prepared, LinearConfig(folds=2), progress=False)
        ),
    )
    plant(model.decoder, "lookup+linear", teacher, prepared.train_labels)
    use_score(model, ["lookup", "linear"], teacher, prepared)
    model.attach_backbone(backbone)
    for twin in viewer.stages(model).values():
        assert torch.equal(twin.word_scores([DOCUMENT]), model.word_scores([DOCUMENT]))
        assert twin.explain(DOCUMENT, "heart").rest == pytest.approx(
            model.explain(DOCUMENT, "heart").rest, abs=1e-5
        )
