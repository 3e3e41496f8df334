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

from companion.studies.evidence import agreement, gold_spans_of, token_marks
from plantlib.backbones import windows
from plantlib.backbones.loading import specials
from plantlib.data.corpus import Corpus
from plantlib.metrics.calibration import chances
from plantlib.model import reading
from plantlib.model.explaining import spans_of
from plantlib.model.explanation import Explanation
from plantlib.model.words import Word, words_of
from plantlib.training.records import environment, plain
from plantlib.training.runs import fit
from plantlib.utils.base import DataError
from plantlib.utils.io import read_if_whole, read_json, write_json

if TYPE_CHECKING:
    import pandas

METHODS = ("contribution", "attention", "gradient x input", "AttInGrad", "random")
MEASURES = ("auc", "precision", "comprehensiveness", "sufficiency")


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


def gradients(model, text: str, label: str) -> np.ndarray:
    """(T,) size of gradient times input of every token, for the logit of `label`.

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
            logits = model.decoder(model.packed(hidden, ids, offsets))
            slopes = torch.autograd.grad(logits[0, model.config.label2id[label]], embeddings)
    finally:
        hook.remove()
    # a row per window, each with special tokens before its own
    rows = [row for e, slope in zip(embeddings, slopes, strict=True) for row in (e * slope)]
    before = len(specials(model.tokenizer)[0])
    cut = windows.spans(offsets, model.config.window, model.config.overlap)[0]
    kept = [
        row[before + w.begin - w.first : before + w.end - w.first].norm(dim=-1)
        for row, w in zip(rows, cut, strict=True)
    ]
    return torch.cat(kept).detach().cpu().numpy()


def word_weights(model, explanation: Explanation, seed: int) -> dict[str, np.ndarray]:
    """Method -> (words,) weight of every word of the explanation."""
    words = explanation.words
    gradient = gradients(model, explanation.text, explanation.label)
    pieces = [
        Word("", begin, end, attention=float(size))
        for (begin, end), size in zip(spans_of(model, explanation.text), gradient, strict=True)
    ]
    by_place = {(w.begin, w.end): w.attention for w in words_of(explanation.text, pieces)}
    slope = np.array([by_place.get((w.begin, w.end), 0.0) for w in words])
    attention = np.array([word.attention for word in words])
    return {
        "contribution": np.array([word.contribution for word in words]),
        "attention": attention,
        "gradient x input": slope,
        "AttInGrad": attention * slope,
        "random": np.random.default_rng(seed).random(len(words)),
    }


def measure_pair(model, text: str, label: str, gold: list, seed: int) -> list[dict]:
    """A row per method: MEASURES of one document and label; [] where no or every word is marked."""
    explanation = model.explain(text, label)
    words = explanation.words
    marks = token_marks([(word.begin, word.end) for word in words], gold)
    if not 0 < marks.sum() < len(marks):
        return []
    rows, changed = [], []
    for method, weights in word_weights(model, explanation, seed).items():
        best = set(np.argsort(-weights, kind="stable")[: int(marks.sum())].tolist())
        changed += [
            _without(text, words, best),
            _without(text, words, set(range(len(words))) - best),
        ]
        shifted = weights - weights.min()  # agreement wants no negative weights; ranks stay
        rows.append({"method": method, **agreement(shifted, marks)})
    scores = _scores(model, changed, label)
    for row, fall, alone in zip(rows, scores[::2], scores[1::2], strict=True):
        row["comprehensiveness"] = explanation.score - fall
        row["sufficiency"] = explanation.score - alone
    return rows


def _without(text: str, words: list[Word], gone: set[int]) -> str:
    """The text with some words replaced by nothing."""
    parts, last = [], 0
    for i in sorted(gone):
        parts.append(text[last : words[i].begin])
        last = words[i].end
    return "".join([*parts, text[last:]])


def _scores(model, texts: list[str], label: str) -> list[float]:
    """The calibrated score of `label` for every text."""
    column = model.config.label2id[label]
    logits = torch.cat([rows[:, column] for rows in reading.logits(model, texts)])
    return chances(logits.double().cpu(), model.config.calibration).tolist()


def report(corpus: Corpus, model, asked: dict, seed: int, partial: Path) -> dict:
    """Method -> measure -> mean over the marked labels of documents of a split.

    Args:
        corpus: with evidence.
        model: trained with `seed`.
        asked: the options of `main`; split and documents (at most so many) are read here.
        seed: of the model, and of the random weights.
        partial: a file that keeps what was measured, document by document, until all of them are.

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
        measured = (measure_pair(model, text, *pair, seed + row) for pair in labels)
        rows[corpus.ids[row]] = plain([one for of_label in measured for one in of_label])
        write_json(partial, {"about": about, "rows": rows})
        print(f"{len(rows)} of {len(found)} documents", file=sys.stderr, flush=True)
    frame = pd.DataFrame([one for of_document in rows.values() for one in of_document])
    means = frame.groupby("method", sort=False)[list(MEASURES)].mean()
    measured = {method: dict(means.loc[method]) for method in METHODS}
    return plain({"labels": len(frame) // len(METHODS), "methods": measured})


def table(found: dict) -> pandas.DataFrame:
    """A row per method: the mean over seeds of each measure. found: the contents of the file."""
    import pandas as pd

    seeds = [pd.DataFrame(by["methods"]).T for by in found["by_seed"].values()]
    return sum(seeds[1:], seeds[0]) / len(seeds)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 and one line of error where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.contributions", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", default="codiesp-es", help="a corpus with evidence")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--start", default="lookup+linear")
    parser.add_argument("--tokens", type=int, default=256, help="tokens read per document")
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--documents", type=int, default=40, help="most documents measured")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", default="results/contributions.json")
    options = parser.parse_args(arguments)
    asked = {name: value for name, value in vars(options).items() if name not in ("out", "seeds")}
    try:
        corpus = Corpus.load(options.dataset).labelled()
        partial = Path(options.out).with_suffix(".partial")
        stored = read_if_whole(Path(options.out), read_json) or {}
        by_seed = stored["by_seed"] if stored.get("asked") == asked else {}
        for seed in range(options.seeds):
            if str(seed) in by_seed:
                continue
            model = fit(
                corpus,
                backbone=options.backbone,
                start=options.start,
                seed=seed,
                max_tokens=options.tokens,
            )
            by_seed[str(seed)] = report(corpus, model, asked, seed, partial)
            about = {"schema": 1, "asked": asked, "environment": environment()}
            write_json(options.out, about | {"by_seed": by_seed})
            partial.unlink()
        print(table(read_json(options.out)).round(3).to_string())
    except (OSError, ValueError) as error:
        print(f"contributions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
