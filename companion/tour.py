"""The figure of the site's front page: one document, and where one label looks in it.

`python -m companion.tour` trains a small model on the synthetic corpus, keeps the numbers of one
document in results/tour.json and writes docs/tour.html: attention with nothing planted, planted,
and after training, with a slider for the planted gain. The page is static: a script of its own
computes softmax(<H, Q> + gamma G) from these numbers (docs/method.md, "Planted attention"), and
without scripts the three pictures stand there. The document describes no patient.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

import numpy as np

from companion import viewer
from companion.studies.evidence import gold_spans, token_marks
from plantlib.data.corpus import Corpus
from plantlib.data.sources import checkout
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.runs import fit
from plantlib.utils.io import atomic_path, read_json, write_json

NUMBERS = "results/tour.json"
PAGE = "docs/tour.html"
CORPUS = "synthetic-icd"
STAGES = {
    "nothing planted": viewer.BEFORE_RANDOM,
    "planted": viewer.BEFORE_PLANTED,
    "after training": viewer.AFTER,
}
EPOCHS, TOKENS, SEED = 2, 128, 0
DIGITS = 3
LARGEST_GAIN = 12
ORANGE = "222,143,5"  # what is planted, as in all figures


def measure(corpus: Corpus, model) -> dict:
    """The numbers of one dev document of a synthetic corpus; model: of the start lookup.

    Returns:
        label and name; words, the text in pieces, each with the number of its word or null between
        words; tokens, the word of each token; gold, the words that are marked; stages: for each of
        STAGES learned (T,), relevance (T,) and gain.

    Raises:
        ValueError: a corpus of real documents, whose texts do not go on a page.
    """
    if not corpus.manifest.get("synthetic"):
        raise ValueError(f"{corpus.name} is not synthetic: a page shows invented documents alone")
    row, label = viewer.choose(corpus, model)
    text = corpus.texts[row]
    explained = {
        name: one.explain(text, label, kind="attention")
        for name, one in viewer.stages(model, SEED).items()
    }
    first = explained[viewer.AFTER]
    spans = [(word.begin, word.end) for word in first.words]
    of_token = [
        next(i for i, (begin, end) in enumerate(spans) if begin < e and b < end)
        for b, e in first.spans
    ]
    marks = token_marks(spans, gold_spans(corpus, row, label))
    return {
        "label": label,
        "name": corpus.label_texts.get(label, ""),
        "pieces": _pieces(text, spans),
        "tokens": of_token,
        "gold": np.flatnonzero(marks).tolist(),
        "stages": {
            name: {
                "learned": explained[stage].learned.astype(float).round(DIGITS).tolist(),
                "relevance": explained[stage].relevance.astype(float).round(DIGITS).tolist(),
                "gain": round(float(explained[stage].gain), DIGITS),
            }
            for name, stage in STAGES.items()
        },
    }


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[list]:
    """The text up to its last word as [piece, number of its word or None] in order."""
    pieces, last = [], 0
    for i, (begin, end) in enumerate(spans):
        if begin > last:
            pieces.append([text[last:begin], None])
        pieces.append([text[begin:end], i])
        last = end
    return pieces


def attention(found: dict, stage: str, gain: float | None = None) -> np.ndarray:
    """(words,) attention of a stage, of its own gain where none is given."""
    numbers = found["stages"][stage]
    gain = numbers["gain"] if gain is None else gain
    scores = np.array(numbers["learned"]) + gain * np.array(numbers["relevance"])
    weights = np.exp(scores - scores.max())
    return np.bincount(found["tokens"], weights / weights.sum())


def page(found: dict) -> str:
    """The figure as HTML: the three pictures, and the script that makes one of them move."""
    name = f"{found['label']} {found['name']}".strip()
    pictures = "".join(
        f'<div class="tour-still"><p><b>{escape(stage)}</b>: {_share(found, stage)}</p>'
        f"<p>{_marked(found, attention(found, stage))}</p></div>"
        for stage in STAGES
    )
    buttons = "".join(
        f'<button type="button" data-stage="{escape(stage)}">{escape(stage)}</button>'
        for stage in STAGES
    )
    numbers = json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        _TEMPLATE.replace("@NAME@", escape(name))
        .replace("@BUTTONS@", buttons)
        .replace("@PICTURES@", pictures)
        .replace("@LARGEST@", str(LARGEST_GAIN))
        .replace("@ORANGE@", ORANGE)
        .replace("@NUMBERS@", numbers)
    )


def _share(found: dict, stage: str) -> str:
    """How much attention the marked words have, in words."""
    share = attention(found, stage)[found["gold"]].sum()
    return f"{100 * share:.0f} % of the attention on the underlined words"


def _marked(found: dict, weights: np.ndarray) -> str:
    """The text, words on orange as dark as their weight, those that a human marked underlined."""
    parts = []
    for piece, word in found["pieces"]:
        if word is None:
            parts.append(escape(piece))
            continue
        shade = min(1.0, 2 * float(weights[word]))
        line = ";text-decoration:underline" if word in found["gold"] else ""
        style = f"background:rgba({ORANGE},{shade:.2f}){line}"
        parts.append(f'<span style="{style}">{escape(piece)}</span>')
    return "".join(parts)


_TEMPLATE = """<div class="tour" id="tour">
<style>
.tour{border:1px solid #bbb;border-radius:6px;padding:0.6em 1em;margin:1em 0;line-height:1.7}
.tour button{margin:0 0.4em 0.4em 0;padding:0.2em 0.7em;border:1px solid #777;border-radius:4px;
background:transparent;color:inherit;cursor:pointer}
.tour button[aria-pressed=true]{background:#c44601;color:#fff}
.tour input{width:60%;vertical-align:middle}
</style>
<p><b>Where does @NAME@ look?</b></p>
<div class="tour-live" hidden>
<div role="group" aria-label="stage">@BUTTONS@</div>
<label>planted gain γ <input type="range" min="0" max="@LARGEST@" step="0.25"
aria-label="planted gain gamma"> <output></output></label>
<p class="tour-text"></p><p class="tour-share" aria-live="polite"></p>
</div>
@PICTURES@
<script type="application/json">@NUMBERS@</script>
<script>
(function () {
  var box = document.getElementById("tour");
  var found = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  var live = box.querySelector(".tour-live"), slider = box.querySelector("input");
  var buttons = box.querySelectorAll("button"), text = box.querySelector(".tour-text");
  var stage;
  function attention(numbers, gain) {
    var scores = numbers.learned.map(function (s, t) { return s + gain * numbers.relevance[t]; });
    var top = Math.max.apply(null, scores), sum = 0, words = [];
    var weights = scores.map(function (s) { return Math.exp(s - top); });
    weights.forEach(function (w) { sum += w; });
    weights.forEach(function (w, t) {
      var word = found.tokens[t];
      words[word] = (words[word] || 0) + w / sum;
    });
    return words;
  }
  function draw() {
    var gain = Number(slider.value), words = attention(found.stages[stage], gain), share = 0;
    text.textContent = "";
    found.pieces.forEach(function (piece) {
      var span = document.createElement("span");
      span.textContent = piece[0];
      if (piece[1] !== null) {
        var shade = Math.min(1, 2 * (words[piece[1]] || 0));
        span.style.background = "rgba(@ORANGE@," + shade.toFixed(2) + ")";
        if (found.gold.indexOf(piece[1]) >= 0) span.style.textDecoration = "underline";
      }
      text.appendChild(span);
    });
    found.gold.forEach(function (word) { share += words[word] || 0; });
    box.querySelector("output").textContent = gain.toFixed(2);
    box.querySelector(".tour-share").textContent =
      Math.round(100 * share) + " % of the attention on the underlined words";
  }
  function choose(name) {
    stage = name;
    slider.value = found.stages[name].gain;
    buttons.forEach(function (b) { b.setAttribute("aria-pressed", b.dataset.stage === name); });
    draw();
  }
  buttons.forEach(function (b) {
    b.addEventListener("click", function () { choose(b.dataset.stage); });
  });
  slider.addEventListener("input", draw);
  box.querySelectorAll(".tour-still").forEach(function (still) { still.hidden = true; });
  live.hidden = false;
  choose("planted");
})();
</script>
</div>
"""


def write(root: Path | None = None) -> Path:
    """docs/tour.html from results/tour.json, below `root` (the checkout)."""
    root = root or checkout()
    with atomic_path(root / PAGE) as temporary:
        temporary.write_text(page(read_json(root / NUMBERS)), encoding="utf-8")
    return root / PAGE


def main() -> int:
    """Train, measure and write both files."""
    corpus = Corpus.load(CORPUS).labelled().with_dev()
    config = RunConfig(train=TrainConfig(epochs=EPOCHS))
    model = fit(corpus, start="lookup", seed=SEED, config=config, max_tokens=TOKENS)
    write_json(checkout() / NUMBERS, measure(corpus, model))
    print(write())
    return 0


if __name__ == "__main__":
    sys.exit(main())
