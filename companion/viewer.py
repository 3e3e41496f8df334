"""Views for notebooks: attention before and after training beside gold evidence, with sliders.

They show what docs/method.md, "Planted attention", says. `side_by_side` and `share_on_gold` are
static tables. Where ipywidgets is installed, `explore`, `picker` and `text_box` redraw such tables
from numbers already computed or from a saved model. Nothing here trains. Views hold document text,
which stays in the notebook.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from html import escape

import numpy as np

from companion.studies.evidence import agreement, gold_spans, token_marks
from plantlib.model.explanation import DocumentExplanation, Explanation
from plantlib.model.plant_model import PlantModel
from plantlib.model.words import highlighted
from plantlib.planting.starts import INIT_STD, StartConfig
from plantlib.utils.reprs import html_table

KEEPS = (1, 2, 4, 8, 16, 32, "all")
BLUE = "1,115,178"
# chapters of ICD-10-CM whose terms suit a first page, since nothing in them is distressing
PRESENTABLE = ("D5", "E", "G", "H", "I", "J", "K", "L", "M", "N0", "N1")
BEFORE_RANDOM = "random, before training"
BEFORE_PLANTED = "planted, before training"
AFTER = "after training"


def untrained(model, start: str = "lookup", seed: int = 0):
    """A model as it was before training: random queries and outputs, the rest from `model`.

    Args:
        model: a trained `PlantModel`.
        start: "lookup" (the gain of a lookup) or "random" (gain 0).
        seed: of the random values.

    Raises:
        ValueError: another start; those need the corpus.
    """
    import torch

    if start not in ("random", "lookup"):
        raise ValueError(
            f"start={start!r}: give 'random' or 'lookup'; others need the corpus, see"
            " planting.plant"
        )
    # a copy of the decoder; the backbone is shared
    config = copy.deepcopy(model.config)
    config.backbone_config = None
    twin = PlantModel(config)
    twin.load_state_dict(
        {name: t for name, t in model.state_dict().items() if not name.startswith("backbone.")}
    )
    if model.word_score is not None:
        twin.word_score.set_words(model.word_score.words)
    if model.phrase_score is not None:
        twin.phrase_score.set_words(model.phrase_score.words)
    # the values that training began from, drawn on the CPU, where they are the same everywhere
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        twin.decoder.label_queries.normal_(0, INIT_STD, generator=generator)
        twin.decoder.label_outputs.normal_(0, INIT_STD, generator=generator)
        twin.decoder.planted_gain.fill_(StartConfig.lookup_gain if start == "lookup" else 0.0)
    return twin.to(model.device).attach_backbone(model.as_backbone()).eval()


def stages(model, seed: int = 0) -> dict:
    """Name -> model: random and planted before training, and the trained model itself."""
    return {
        BEFORE_RANDOM: untrained(model, "random", seed),
        BEFORE_PLANTED: untrained(model, "lookup", seed),
        AFTER: model,
    }


def choose(corpus, model, split: str = "dev", documents=(3, 10)) -> tuple[int, str]:
    """A document and label to look at: a rare label, with gold evidence where the corpus marks any.

    Of a synthetic corpus a document comes first whose labels are all of the `PRESENTABLE` chapters.

    Args:
        corpus: the corpus the model was trained on.
        model: a `PlantModel`; only labels it knows are chosen.
        split: where the document is taken from.
        documents: least and most training documents of a rare label; without a rare label any label
            is taken.

    Returns:
        (row of the document, name of the label).

    Raises:
        ValueError: no document of the split has a label that the model knows.
    """
    train = np.bincount(corpus.labels[corpus.rows("train")].indices, minlength=corpus.L)
    fitting = [
        (int(i), int(j))
        for i in corpus.rows(split)
        for j in corpus.labels[i].indices
        if corpus.label_names[j] in model.config.label2id
    ]
    rare = [(i, j) for i, j in fitting if documents[0] <= train[j] <= documents[1]]
    rare.sort(key=lambda pair: not presentable(corpus, pair[0]))
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


def presentable(corpus, row: int) -> bool:
    """Whether a document can stand on a first page: in a synthetic corpus all its labels are of the
    `PRESENTABLE` chapters; of a real corpus every document can.
    """
    if not corpus.manifest.get("synthetic"):
        return True
    names = [corpus.label_names[j] for j in corpus.labels[row].indices]
    return all(name.startswith(PRESENTABLE) for name in names)


@dataclass(frozen=True, eq=False)
class Panels:
    """One label of one document seen by several models, and its gold spans.

    gold: (begin, end) characters, empty where nothing is marked.
    """

    views: dict[str, Explanation]
    gold: list[tuple[int, int]]

    def __repr__(self) -> str:
        return f"Panels({', '.join([*self.views, *(['gold evidence'] if self.gold else [])])})"

    def rows(self) -> list[list]:
        """[view, share on gold words, auc, precision, iou] of each view; nan without gold."""
        rows = []
        for name, view in self.views.items():
            marks = token_marks(view.spans, self.gold)
            share = float(view.attention[marks].sum()) if marks.any() else float("nan")
            rows.append([name, share, *agreement(view.attention, marks).values()])
        return rows

    def _repr_html_(self) -> str:
        first = next(iter(self.views.values()))
        # a column per view, and one of the gold spans
        columns = {
            name: highlighted(
                view.text,
                [(word.begin, word.end) for word in view.words],
                [word.attention for word in view.words],
            )
            for name, view in self.views.items()
        }
        if self.gold:
            even = np.ones(len(self.gold))
            columns["gold evidence"] = highlighted(first.text, self.gold, even, BLUE)
        style = (
            "vertical-align:top;text-align:left;white-space:normal;line-height:1.6;padding:.4em"
            " .8em"
        )
        heads = "".join(f'<th style="{style}">{escape(name)}</th>' for name in columns)
        cells = "".join(f'<td style="{style}">{body}</td>' for body in columns.values())
        table = f"<table><tr>{heads}</tr><tr>{cells}</tr></table>"
        return f"<p><b>{escape(first.title())}</b></p>{table}{self._measures()}"

    def _measures(self) -> str:
        if not self.gold:
            return ""
        heads = ["attention", "share on gold", "AUC", "precision", "IoU"]
        rows = [[name, *(f"{x:.2f}" for x in values)] for name, *values in self.rows()]
        return html_table(heads, rows)


def side_by_side(models: dict, corpus, row: int, label: str) -> Panels:
    """What each model reads `label` from in document `row`, beside the gold evidence.

    models: name -> `PlantModel`, as `stages` returns them.
    """
    gold = gold_spans(corpus, row, label)
    text = corpus.texts[row]
    return Panels({name: model.explain(text, label) for name, model in models.items()}, gold)


def share_on_gold(
    why: Explanation, gold: list[tuple[int, int]], gains=(0, 1, 2, 4, 8, 16), keeps=KEEPS
):
    """The share of attention on gold words by planted gain and K: the sliders as a table.

    Args:
        why: the explanation of one label in one document.
        gold: (begin, end) characters of the gold words.
        gains: planted gains, a row each.
        keeps: tokens that inattention keeps ("all" for no inattention), a column each.

    Returns:
        A DataFrame of fractions.
    """
    import pandas as pd

    marks = token_marks(why.spans, gold)
    shares = [
        [float(why.at(gain, _number(keep)).attention[marks].sum()) for keep in keeps]
        for gain in gains
    ]
    return pd.DataFrame(
        shares, index=pd.Index(gains, name="gain"), columns=pd.Index([f"K={k}" for k in keeps])
    )


def _number(keep) -> int | None:
    return None if keep == "all" else int(keep)


def _widgets():
    """ipywidgets, or None where it is not installed."""
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
    """Sliders for planted gain and K over the attention of the labels of one document.

    Args:
        found: the explanation of the document; it is redrawn from its numbers, without a model.
        gold: label -> (begin, end) characters of gold words, whose share of attention is shown.
        largest_gain: end of the slider.

    Returns:
        A widget; `found` itself without ipywidgets.
    """
    if (w := _widgets()) is None:
        return found
    label = w.Dropdown(options=[one.label for one in found], description="label")
    gain = w.FloatSlider(
        value=round(2 * found[0].gain) / 2, min=0, max=largest_gain, step=0.5, description="gain γ"
    )
    first = "all"
    if found[0].keep is not None:
        first = min(KEEPS[:-1], key=lambda size: abs(size - found[0].keep))
    keep = w.SelectionSlider(options=KEEPS, value=first, description="K")
    output = w.HTML()

    def draw(_=None) -> None:
        document = found.at(float(gain.value), _number(keep.value), "attention")
        one = document[label.value]
        marks = token_marks(one.spans, (gold or {}).get(label.value, []))
        share = ""
        if marks.any():
            share = f"<p>share of attention on gold words: {one.attention[marks].sum():.2f}</p>"
        output.value = document.table_html() + one._repr_html_() + share

    return _live([label, gain, keep], output, draw)


def picker(models: dict, corpus, rows, label: str | None = None):
    """Choose a document and one of its gold labels; each choice is drawn by `side_by_side`.

    Args:
        models: name -> `PlantModel`, as `stages` returns them.
        corpus: where the documents come from.
        rows: documents to choose from; those without a label that the models know are left out.
        label: chosen at first; the first label of the first document when None.

    Returns:
        A widget; the `Panels` of the first choice without ipywidgets.
    """
    known = set(next(iter(models.values())).config.label2id)
    names: dict[int, list[str]] = {}
    for row in map(int, rows):
        gold = [corpus.label_names[j] for j in corpus.labels[row].indices]
        if shared := [name for name in gold if name in known]:
            names[row] = shared
    first = next(iter(names))
    label = label if label in names[first] else names[first][0]
    if (w := _widgets()) is None:
        return side_by_side(models, corpus, first, label)
    document = w.Dropdown(options=[(corpus.ids[row], row) for row in names], description="document")
    which = w.Dropdown(options=names[first], value=label, description="label")
    output = w.HTML()

    def draw(change=None) -> None:
        if change is not None and change["owner"] is document:
            which.options = names[document.value]
        # two documents may share a first label; then `which` does not change, so draw here as well
        if which.value is not None:
            output.value = side_by_side(models, corpus, document.value, which.value)._repr_html_()

    return _live([document, which], output, draw)


def text_box(model, text: str, k: int = 5):
    """A box for a reader's text: its k best labels, their scores and what each word adds to them.

    They are computed again whenever the text or K changes. Without ipywidgets the explanation of
    `text` is returned.
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
    output = w.HTML()

    def draw(_=None) -> None:
        document = model.explain_document(box.value, k).at(keep=_number(keep.value))
        output.value = document._repr_html_()

    return _live([box, keep], output, draw)


def _live(controls: list, output, draw):
    """The controls above the output that `draw` fills."""
    w = _widgets()
    for control in controls:
        control.observe(draw, names="value")
    draw()
    return w.VBox([*controls, output])
