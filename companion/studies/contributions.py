"""Do explanations point at the words that humans marked, and do the words decide?

Four ways to weigh the words of a document for one of its labels are compared on gold evidence spans
(docs/method.md, "Planted attention"): what a word adds to the logit, its attention, gradient times
input, and AttInGrad, their product (Edin et al. 2024). Measured are agreement with the marked words
(`evidence.agreement`) and faithfulness: how far the score falls without as many best words as are
marked (comprehensiveness) and with these words alone (sufficiency). Documents are of test, cut to
the tokens that attention reads: all methods rank the same words. Every document that is measured is
written down at once, so a stopped comparison goes on. `python -m companion.studies.contributions`
writes numbers, no text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from companion.report import plots, plots_claims
from companion.report.report import markdown_table
from companion.studies.evidence import agreement, gold_spans_of, token_marks
from plantlib.backbones import windows
from plantlib.backbones.loading import specials
from plantlib.data.corpus import Corpus
from plantlib.metrics.calibration import chances
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.model import reading
from plantlib.model.explaining import spans_of
from plantlib.model.explanation import Explanation
from plantlib.model.words import Word, words_of
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.records import environment, plain
from plantlib.training.runs import fit
from plantlib.utils.base import DataError
from plantlib.utils.io import read_if_whole, read_json, write_json

if TYPE_CHECKING:
    import pandas

    from plantlib.model.plant_model import PlantModel

METHODS = ("contribution", "attention", "gradient x input", "AttInGrad", "random")
MEASURES = ("auc", "precision", "comprehensiveness", "sufficiency")
NAMES = {
    "auc": "AUC",
    "precision": "precision at the span's length",
    "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency",
}


def marked_labels(corpus: Corpus, model, split: str, most: int) -> dict[int, list]:
    """Row -> (label, gold spans) of each marked label that the model knows.

    Of the first `most` documents of a split; DataError where none of them has a marked label.
    """
    if corpus.evidence is None:
        raise DataError(f"{corpus.name} marks no evidence; use codiesp-es or synthetic-icd")
    by_document = dict(tuple(corpus.evidence.groupby("id")))
    found: dict[int, list] = {}
    for row in corpus.rows(split)[:most]:
        evidence = by_document.get(corpus.ids[row])
        for column in corpus.labels[row].indices if evidence is not None else ():
            label = corpus.label_names[column]
            if label in model.config.label2id and (gold := gold_spans_of(evidence, label)):
                found.setdefault(int(row), []).append((label, gold))
    if not found:
        raise DataError(f"the first {most} documents of {split} mark no evidence; read more")
    return found


def as_read(model, text: str) -> str:
    """The text up to the last token that attention reads."""
    return text[: max((end for _, end in spans_of(model, text)), default=0)]


def gradients(model, text: str, labels: list[str]) -> list[np.ndarray]:
    """(T,) size of gradient times input of every token for the logit of each label.

    The input is the token's embedding, so document scores over words have no part in it.
    """
    embeddings: list[torch.Tensor] = []

    def keep(module, inputs, output):
        embeddings.append(output.detach().requires_grad_())
        return embeddings[-1]

    hook = model.backbone.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            ids, offsets = model.pack(model.tokenise([text]))
            hidden = model.encode(ids, offsets)
            logits = model.decoder(model.packed(hidden, ids, offsets))[0]
            # the text is read once, and gone back through once per label
            slopes = [
                torch.autograd.grad(
                    logits[model.config.label2id[label]], embeddings, retain_graph=True
                )
                for label in labels
            ]
    finally:
        hook.remove()
    return [
        _by_token(
            model, offsets, [(e * s).detach() for e, s in zip(embeddings, of_label, strict=True)]
        )
        for of_label in slopes
    ]


def _by_token(model, offsets: torch.Tensor, products: list[torch.Tensor]) -> np.ndarray:
    """(T,) sizes of one document's tokens; products (W, tokens, D) per forward pass."""
    if getattr(model.backbone, "is_static", False):
        return products[0].norm(dim=-1).cpu().numpy()  # (T, D): every token read alone
    # a row per window, each with special tokens before its own
    rows = [row for product in products for row in product]
    before = len(specials(model.tokenizer)[0])
    cut = windows.spans(offsets, model.config.window, model.config.overlap)[0]
    kept = [
        row[before + w.begin - w.first : before + w.end - w.first].norm(dim=-1)
        for row, w in zip(rows, cut, strict=True)
    ]
    return torch.cat(kept).cpu().numpy()


def word_weights(
    explanation: Explanation,
    spans: list[tuple[int, int]],
    gradient: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Method -> (words,) weight of every word; gradient (T,) belongs to the tokens at `spans`."""
    words = explanation.words
    pieces = [
        Word("", begin, end, attention=float(size))
        for (begin, end), size in zip(spans, gradient, strict=True)
    ]
    by_place = {(w.begin, w.end): w.attention for w in words_of(explanation.text, pieces)}
    slope = np.array([by_place.get((w.begin, w.end), 0.0) for w in words])
    attention = np.array([word.attention for word in words])
    return {
        "contribution": np.array([word.contribution for word in words]),
        "attention": attention,
        "gradient x input": slope,
        "AttInGrad": attention * slope,
        "random": rng.random(len(words)),
    }


def measure(model, text: str, marked: list[tuple[str, list]], seed: int) -> list[dict]:
    """A row per label and method: MEASURES in one document.

    Labels of which no word or every word is marked are left out.

    Args:
        model: that explains.
        text: of the document.
        marked: labels with their gold spans.
        seed: of the random weights.
    """
    labels = [label for label, _ in marked]
    explanations = model.explain(text, labels)
    spans, rng = spans_of(model, text), np.random.default_rng(seed)
    slopes = gradients(model, text, labels)
    rows: list[dict] = []
    changed: list[tuple[str, str]] = []
    for (label, gold), explanation, slope in zip(marked, explanations, slopes, strict=True):
        words = explanation.words
        marks = token_marks([(word.begin, word.end) for word in words], gold)
        if not 0 < marks.sum() < len(marks):
            continue
        everything = set(range(len(words)))
        for method, weights in word_weights(explanation, spans, slope, rng).items():
            best = set(np.argsort(-weights, kind="stable")[: int(marks.sum())].tolist())
            pair = _without(text, words, best), _without(text, words, everything - best)
            shifted = weights - weights.min()  # agreement wants no negative weights; ranks stay
            about = {"method": method, "label": label, "score": explanation.score}
            rows.append(about | agreement(shifted, marks))
            changed.append(pair)
    scores = _scores(model, [one for pair in changed for one in pair])
    for row, (bare, alone) in zip(rows, changed, strict=True):
        column, whole = model.config.label2id[row.pop("label")], row.pop("score")
        row["comprehensiveness"] = whole - float(scores[bare][column])
        row["sufficiency"] = whole - float(scores[alone][column])
    return rows


def _without(text: str, words: list[Word], gone: set[int]) -> str:
    """The text with some words replaced by nothing."""
    parts, last = [], 0
    for i in sorted(gone):
        parts.append(text[last : words[i].begin])
        last = words[i].end
    return "".join([*parts, text[last:]])


def _scores(model, texts: list[str]) -> dict[str, np.ndarray]:
    """Text -> (L,) calibrated scores; what several methods leave of a text is read once."""
    distinct = list(dict.fromkeys(texts))
    rows = [
        row
        for part in reading.logits(model, distinct)
        for row in chances(part.double().cpu(), model.config.calibration)
    ]
    return dict(zip(distinct, rows, strict=True))


def report(corpus: Corpus, model, asked: dict, seed: int, partial: Path) -> dict:
    """Measure -> method -> mean over the marked labels of each document of a split, in order.

    Args:
        corpus: with evidence.
        model: trained with `seed`.
        asked: the options of `main`; split and documents (at most so many) are read here.
        seed: of the model, and of the random weights.
        partial: a file that keeps what was measured, document by document, until all of them are.

    Returns:
        labels (their number) and methods: method -> measure -> a mean per document, None where no
        label of the document could be measured.

    Raises:
        DataError: the documents mark no evidence.
    """
    import pandas as pd

    found = marked_labels(corpus, model, asked["split"], asked["documents"])
    about = asked | {"seed": seed, "fingerprint": corpus.fingerprint()}
    kept = read_if_whole(partial, read_json) or {}
    rows = kept["rows"] if kept.get("about") == about else {}
    for row, labels in found.items():
        if corpus.ids[row] in rows:
            continue
        text = as_read(model, corpus.texts[row])
        rows[corpus.ids[row]] = plain(measure(model, text, labels, seed + row))
        write_json(partial, {"about": about, "rows": rows})
        print(f"{len(rows)} of {len(found)} documents", file=sys.stderr, flush=True)
    frame = pd.DataFrame([{"document": i} | one for i, part in rows.items() for one in part])
    means = frame.groupby(["method", "document"])[list(MEASURES)].mean().round(5)
    by_method = {
        method: {m: means.loc[method][m].reindex(list(rows)).tolist() for m in MEASURES}
        for method in METHODS
    }
    return plain({"labels": len(frame) // len(METHODS), "methods": by_method})


def by_document(found: dict, method: str, measure: str) -> np.ndarray:
    """(seeds, documents) means over marked labels; nan where nothing could be measured."""
    seeds = [by["methods"][method][measure] for by in found["by_seed"].values()]
    return np.array(seeds, np.float64)


def table(found: dict) -> pandas.DataFrame:
    """A row per method: each measure, and what it has less than contributions, with an interval.

    Columns are '<measure>' (mean over documents and seeds) and, from a paired bootstrap over seeds
    and documents, '<measure> diff', '<measure> low' and '<measure> high': contribution minus the
    method. found: the contents of the file.
    """
    import pandas as pd

    rows = {}
    for method in METHODS:
        row = {}
        for name in MEASURES:
            ours, theirs = (by_document(found, one, name) for one in (METHODS[0], method))
            tested = paired_bootstrap(ours, theirs)
            row[name] = np.nanmean(theirs)
            row[f"{name} diff"] = tested["mean_difference"]
            row |= {f"{name} {end}": tested[end] for end in ("low", "high")}
        rows[method] = row
    return pd.DataFrame(rows).T


def markdown(source: str | Path) -> str:
    """The table of a file that `main` wrote, and what it says in words."""
    found = read_json(source)
    rows, asked = table(found), found["asked"]
    head = ["weight of a word", *(NAMES[name] for name in MEASURES)]
    lines = []
    for method, row in rows.iterrows():
        cells = [method]
        for name in MEASURES:
            part = "" if method == METHODS[0] else f" ({_interval(row, name)})"
            cells.append(f"{100 * row[name]:.1f}{part}")
        lines.append(cells)
    labels = next(iter(found["by_seed"].values()))["labels"]
    documents = len(by_document(found, METHODS[0], MEASURES[0])[0])
    note = (
        f"{asked['dataset']}, {asked['split']}: {labels} marked labels of {documents} documents,"
        f" backbone `{asked['backbone']}`, start `{asked['start']}`, {asked['tokens']} tokens,"
        f" {len(found['by_seed'])} seeds. In parentheses: contribution minus this method, 95 %"
        " interval over seeds and documents. For sufficiency less is better."
    )
    return f"{markdown_table(head, lines)}\n\n{note}\n\n{in_words(rows)}"


def _interval(row: pandas.Series, name: str) -> str:
    middle, low, high = (100 * row[f"{name} {part}"] for part in ("diff", "low", "high"))
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def in_words(rows: pandas.DataFrame) -> str:
    """Against attention, measure by measure: better, worse or not told apart."""
    row = rows.loc["attention"]
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for name in MEASURES:
        sign = -1 if name == "sufficiency" else 1
        low, high = sorted(sign * row[f"{name} {end}"] for end in ("low", "high"))
        word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        verdicts[word].append(NAMES[name])
    parts = [f"{word} by {', '.join(names)}" for word, names in verdicts.items() if names]
    return f"Contributions against attention: {'; '.join(parts)}."


def draw(source: str | Path, target: str | Path) -> Path:
    """Draw contributions against the other methods; returns `target`."""
    found = read_json(source)
    ax = plots_claims.word_weights(table(found), NAMES)
    return plots.save(ax, target)


def trained(corpus: Corpus, asked: dict, seed: int) -> PlantModel:
    """The model that is measured; its lookup is planted as it is, dev does not choose a gain."""
    config = RunConfig(train=TrainConfig(epochs=asked["epochs"]), other_gains=())
    return fit(
        corpus,
        backbone=asked["backbone"],
        start=asked["start"],
        seed=seed,
        config=config,
        max_tokens=asked["tokens"],
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 and one line of error where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.contributions", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", default="codiesp-es", help="a corpus with evidence")
    parser.add_argument("--backbone", default="words")
    parser.add_argument("--start", default="lookup+linear")
    parser.add_argument("--tokens", type=int, default=256, help="tokens read per document")
    parser.add_argument(
        "--epochs", type=int, default=2, help="most epochs; the best on dev is kept"
    )
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--documents", type=int, default=40, help="most documents measured")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", default="results/contributions.json")
    parser.add_argument("--figure", default="results/figures/contributions.png")
    options = parser.parse_args(arguments)
    asked = {
        name: value
        for name, value in vars(options).items()
        if name not in ("out", "figure", "seeds")
    }
    try:
        corpus = Corpus.load(options.dataset).labelled()
        partial = Path(options.out).with_suffix(".partial")
        stored = read_if_whole(Path(options.out), read_json) or {}
        by_seed = stored["by_seed"] if stored.get("asked") == asked else {}
        for seed in range(options.seeds):
            if str(seed) in by_seed:
                continue
            model = trained(corpus, asked, seed)
            by_seed[str(seed)] = report(corpus, model, asked, seed, partial)
            about = {"schema": 2, "asked": asked, "environment": environment()}
            write_json(options.out, about | {"by_seed": by_seed})
            partial.unlink()
        print(table(read_json(options.out))[list(MEASURES)].round(3).to_string())
        draw(options.out, options.figure)
    except (OSError, ValueError) as error:
        print(f"contributions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
