"""Views for notebooks: a label's attention before and after training beside the gold evidence,
sliders, a box for own text.

Realises METHOD.md section 4 for the eye. Every view is complete as a static table (`side_by_side`,
`share_on_gold`); where ipywidgets is there, `explore`, `picker` and `text_box` redraw them live
from numbers already read, or from a saved model. Nothing here trains. What is shown holds document
text and stays in the notebook.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from html import escape

import numpy as np

from companion.studies.evidence import agreement, gold_spans, token_marks
from plantlib.model.explanation import DocumentExplanation, Explanation, highlighted
from plantlib.model.plant_model import PlantModel
from plantlib.planting.starts import INIT_STD, StartConfig
from plantlib.utils.reprs import html_table

KEEPS = (1, 2, 4, 8, 16, 32, "all")
BLUE = "1,115,178"
BEFORE_RANDOM, BEFORE_PLANTED, AFTER = (
    "random, before training",
    "planted, before training",
    "after training",
)


def untrained(model, start: str = "lookup", seed: int = 0):
    """The model as it was before training: random queries and outputs; gain at its start for
    "lookup", 0 for "random".

    Teacher table, backbone and label bias are the model's own. Raises ValueError for other starts,
    which need the corpus.
    """
    import torch

    if start not in ("random", "lookup"):
        raise ValueError(
            f"start={start!r}: wanted 'random' or 'lookup'; others need the corpus, see"
            " planting.plant"
        )
    sizes = copy.deepcopy(model.config)
    sizes.backbone_config = None
    # both read with one backbone, which follows the decoder it is attached to
    twin = PlantModel(sizes).to(model.device)
    twin.load_state_dict(
        {name: t for name, t in model.state_dict().items() if not name.startswith("backbone.")}
    )
    if model.word_score is not None:
        twin.word_score.set_words(model.word_score.words)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        twin.decoder.label_queries.normal_(0, INIT_STD, generator=generator)
        twin.decoder.label_outputs.normal_(0, INIT_STD, generator=generator)
        twin.decoder.planted_gain.fill_(StartConfig.lookup_gain if start == "lookup" else 0.0)
    return twin.attach_backbone(model.as_backbone()).eval()


def stages(model, seed: int = 0) -> dict:
    """name -> model: random and planted before training, and the trained model itself."""
    return {
        BEFORE_RANDOM: untrained(model, "random", seed),
        BEFORE_PLANTED: untrained(model, "lookup", seed),
        AFTER: model,
    }


def choose(corpus, model, split: str = "dev", documents=(3, 10)) -> tuple[int, str]:
    """(row, label) to look at: the first document of `split` with a label of `documents` (least,
    most) training documents.

    Labels with gold evidence come first where the corpus marks any; then any label the model knows.
    """
    train = np.bincount(corpus.labels[corpus.rows("train")].indices, minlength=corpus.L)
    fitting = [
        (int(i), int(j))
        for i in corpus.rows(split)
        for j in corpus.labels[i].indices
        if corpus.label_names[j] in model.config.label2id
    ]
    rare = [(i, j) for i, j in fitting if documents[0] <= train[j] <= documents[1]]
    for row, column in rare:
        if gold_spans(corpus, row, corpus.label_names[column]):
            return row, corpus.label_names[column]
    if not fitting:
        raise ValueError(
            f"no document of {split} has a label this model knows; load the corpus the model was"
            " trained on"
        )
    row, column = (rare or fitting)[0]
    return row, corpus.label_names[column]


@dataclass(frozen=True, eq=False)
class Panels:
    """One label of one document seen by several models, and its gold spans (none where nothing is
    marked).
    """

    views: dict[str, Explanation]
    gold: list[tuple[int, int]]

    def __repr__(self) -> str:
        return f"Panels({', '.join([*self.views, *(['gold evidence'] if self.gold else [])])})"

    def rows(self) -> list[list]:
        """[view, share of attention on the gold words, auc, precision, iou] of each view; nan
        without gold.
        """
        found = []
        for name, view in self.views.items():
            marks = token_marks(view.spans, self.gold)
            share = float(view.attention[marks].sum()) if marks.any() else float("nan")
            found.append([name, share, *agreement(view.attention, marks).values()])
        return found

    def _repr_html_(self) -> str:
        first = next(iter(self.views.values()))
        drawn = {
            name: highlighted(view.text, view.spans, view.attention)
            for name, view in self.views.items()
        }
        if self.gold:
            drawn["gold evidence"] = highlighted(
                first.text, self.gold, np.ones(len(self.gold)), BLUE
            )
        style = (
            "vertical-align:top;text-align:left;white-space:normal;line-height:1.6;padding:.4em"
            " .8em"
        )
        heads = "".join(f'<th style="{style}">{escape(name)}</th>' for name in drawn)
        cells = "".join(f'<td style="{style}">{body}</td>' for body in drawn.values())
        return f"<p><b>{escape(first.label)}</b></p><table><tr>{heads}</tr><tr>{cells}</tr></table>{self._measures()}"

    def _measures(self) -> str:
        heads = ["attention", "share on gold", "AUC", "precision", "IoU"]
        return (
            html_table(
                heads, [[name, *(f"{x:.2f}" for x in values)] for name, *values in self.rows()]
            )
            if self.gold
            else ""
        )


def side_by_side(models: dict, corpus, row: int, label: str) -> Panels:
    """What each model reads `label` from in document `row` of the corpus, beside the gold evidence."""
    gold, text = gold_spans(corpus, row, label), corpus.texts[row]
    return Panels({name: model.explain(text, label) for name, model in models.items()}, gold)


def share_on_gold(
    why: Explanation, gold: list[tuple[int, int]], gains=(0, 1, 2, 4, 8, 16), keeps=KEEPS
):
    """DataFrame of the share of attention on gold words, one row a planted gain, one column a K:
    the sliders as a table.
    """
    import pandas as pd

    marks = token_marks(why.spans, gold)
    found = [
        [float(why.at(gain, _number(keep)).attention[marks].sum()) for keep in keeps]
        for gain in gains
    ]
    return pd.DataFrame(
        found, index=pd.Index(gains, name="gain"), columns=pd.Index([f"K={k}" for k in keeps])
    )


def _number(keep) -> int | None:
    return None if keep == "all" else int(keep)


def _widgets():
    """ipywidgets, or None: the static views then stand alone."""
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def explore(
    found: DocumentExplanation,
    gold: dict[str, list[tuple[int, int]]] | None = None,
    largest_gain: float = 16.0,
):
    """Sliders for planted gain and K over the labels of one document, redrawn from the numbers in
    `found`.

    gold: label -> spans, outlined by a line of its own. Without ipywidgets `found` itself comes
    back.
    """
    if (w := _widgets()) is None:
        return found
    label = w.Dropdown(options=[one.label for one in found], description="label")
    gain = w.FloatSlider(
        value=round(2 * found[0].gain) / 2, min=0, max=largest_gain, step=0.5, description="gain γ"
    )
    keep = w.SelectionSlider(
        options=KEEPS,
        value=(
            "all"
            if found[0].keep is None
            else min(KEEPS[:-1], key=lambda k: abs(k - found[0].keep))
        ),
        description="K",
    )
    shown = w.HTML()

    def draw(_=None) -> None:
        now = found.at(float(gain.value), _number(keep.value))
        marks = token_marks(now[label.value].spans, (gold or {}).get(label.value, []))
        on = (
            "<p>share of attention on gold words:"
            f" {now[label.value].attention[marks].sum():.2f}</p>"
            if marks.any()
            else ""
        )
        shown.value = now.table_html() + now[label.value]._repr_html_() + on

    return _live([label, gain, keep], shown, draw)


def picker(models: dict, corpus, rows, label: str | None = None):
    """Choose a document of `rows` and one of its gold labels; `side_by_side` is drawn again for
    each choice.
    """
    known = set(next(iter(models.values())).config.label2id)
    names = {}
    for row in map(int, rows):
        own = [corpus.label_names[j] for j in corpus.labels[row].indices]
        names |= {row: shared} if (shared := [name for name in own if name in known]) else {}
    first = next(iter(names))
    label = label if label in names[first] else names[first][0]
    if (w := _widgets()) is None:
        return side_by_side(models, corpus, first, label)
    document = w.Dropdown(options=[(corpus.ids[row], row) for row in names], description="document")
    which = w.Dropdown(options=names[first], value=label, description="label")
    shown = w.HTML()

    def draw(change=None) -> None:
        if change is not None and change["owner"] is document:
            # its first label is chosen; that may have the name of the one before, and then nothing
            # else would draw
            which.options = names[document.value]
        if which.value is not None:
            shown.value = side_by_side(models, corpus, document.value, which.value)._repr_html_()

    return _live([document, which], shown, draw)


def text_box(model, text: str, k: int = 5):
    """A box for one's own text: the k best labels, their scores and the words behind each, at every
    change of text or K.
    """
    if (w := _widgets()) is None:
        return model.explain_document(text, k)
    box = w.Textarea(
        value=text,
        description="text",
        continuous_update=False,
        layout=w.Layout(width="95%", height="7em"),
    )
    keep = w.SelectionSlider(options=KEEPS, value="all", description="K")
    shown = w.HTML()

    def draw(_=None) -> None:
        shown.value = (
            model.explain_document(box.value, k).at(keep=_number(keep.value))._repr_html_()
        )

    return _live([box, keep], shown, draw)


def _live(controls: list, shown, draw):
    """The controls over what they redraw."""
    w = _widgets()
    for control in controls:
        control.observe(draw, names="value")
    draw()
    return w.VBox([*controls, shown])
