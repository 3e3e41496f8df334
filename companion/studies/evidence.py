"""Does attention look at the right words? Token weights compared with gold evidence spans.

A corpus with `evidence` says which characters justify each label. The attention of a label is
compared with them by the area under the curve (does a marked token weigh more than an unmarked
one), the precision among as many tokens as are marked, and a weighted intersection over union. Only
dev and test documents are read (docs/method.md, "Controls and peers"). `python -m
companion.studies.evidence` compares the starts before and after training; it writes numbers, no
text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.report import plots
from companion.studies import trained
from plantlib.backbones import loading
from plantlib.data.corpus import Corpus
from plantlib.kernels.reference import keep_top_k
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.training import artefacts
from plantlib.training.ingredients import teacher_of, withheld_of
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import environment, plain
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json, write_json

if TYPE_CHECKING:
    import pandas


MEASURES = ("auc", "precision", "iou")
BUCKETS = {"few": (1, 5), "medium": (6, 50), "head": (51, None)}
UNTRAINED = ("random", "shuffled", "lookup", "l2r")
TRAINED = ("random", "lookup", "l2r")
TEACHER = "teacher alone, no hidden states"
RANDOM_BEFORE = "random, before training"
RANDOM_AFTER = "random, after training"


def gold_spans(corpus: Corpus, row: int, label: str) -> list[tuple[int, int]]:
    """Character spans [start, end) that justify `label` in document `row`; [] without any."""
    if corpus.evidence is None:
        return []
    return gold_spans_of(corpus.evidence[corpus.evidence["id"] == corpus.ids[row]], label)


def token_marks(spans: list[tuple[int, int]], gold: list[tuple[int, int]]) -> np.ndarray:
    """(T,) bool: tokens that share a character with a gold span.

    spans: characters [begin, end) of the tokens; gold: those of the evidence.
    """
    marks = np.zeros(len(spans), bool)
    for start, end in gold:
        marks |= np.array([begin < end and start < stop for begin, stop in spans], bool)
    return marks


def agreement(weights: np.ndarray, marks: np.ndarray) -> dict[str, float]:
    """How well token weights agree with marks.

    Args:
        weights: (T,) non-negative; they need not sum to one.
        marks: (T,) bool, the tokens of the evidence; n of them are marked.

    Returns:
        auc, the chance that a marked token weighs more than an unmarked one (ties count half);
        precision, the share of marked tokens among the n heaviest (the expected share where the
        last places are tied); iou, sum of minima over sum of maxima of the normalised weights and
        of 1/n on marked tokens. All are nan where all tokens or none are marked.
    """
    weights = np.asarray(weights, np.float64)
    marks = np.asarray(marks, bool)
    n = int(marks.sum())
    if not 0 < n < len(marks):
        return dict.fromkeys(MEASURES, float("nan"))
    total = weights.sum()
    share = weights / total if total > 0 else np.full(len(weights), 1 / len(weights))
    even = marks / n
    return {
        "auc": _auc(weights, marks),
        "precision": _precision(weights, marks, n),
        "iou": float(np.minimum(share, even).sum() / np.maximum(share, even).sum()),
    }


def _auc(weights: np.ndarray, marks: np.ndarray) -> float:
    from scipy.stats import rankdata

    n = int(marks.sum())
    return float((rankdata(weights)[marks].sum() - n * (n + 1) / 2) / (n * (len(marks) - n)))


def _precision(weights: np.ndarray, marks: np.ndarray, n: int) -> float:
    last = np.sort(weights)[-n]
    above = weights > last
    tied = weights == last
    return float((marks[above].sum() + (n - above.sum()) * marks[tied].mean()) / n)


def pairs(prepared: Inputs, split: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Documents and labels whose evidence lies in the tokens read.

    Args:
        prepared: a corpus with evidence.
        split: "dev" or "test".

    Yields:
        Row of the document, columns of its labels (labels,), marks (labels, T) bool.

    Raises:
        DataError: another split, or a corpus without evidence.
    """
    if split not in ("dev", "test"):
        raise DataError(f"split={split!r}: use dev or test, documents that no model is trained on")
    yield from marked(prepared, prepared.rows[split])


def marked(prepared: Inputs, rows: Iterable[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """What `pairs` yields, of documents `rows`."""
    corpus = prepared.corpus
    if corpus.evidence is None:
        raise DataError(
            f"{corpus.name} marks no evidence; use codiesp-es, synthetic-icd or a corpus with"
            " evidence="
        )
    tokenizer = loading.tokenizer_of(prepared.backbone, prepared.trust_remote_code)
    column = {name: i for i, name in enumerate(corpus.label_names)}
    by_document = dict(tuple(corpus.evidence.groupby("id")))
    for row in rows:
        evidence = by_document.get(corpus.ids[row])
        if evidence is None or not len(prepared.tokens[row]):
            continue
        # characters of the tokens read
        spans = tokenizer(
            corpus.texts[row],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
            truncation=prepared.max_tokens is not None,
            max_length=prepared.max_tokens,
        )["offset_mapping"]
        # gold labels with evidence, of which some but not all tokens are marked
        gold = {corpus.label_names[j] for j in corpus.labels[row].indices}
        labels = sorted(gold & set(evidence["label"]))
        marks = [token_marks(spans, gold_spans_of(evidence, name)) for name in labels]
        marks = np.array(marks).reshape(len(labels), len(spans))
        usable = marks.any(1) & ~marks.all(1)
        if usable.any():
            yield int(row), np.array([column[name] for name in labels])[usable], marks[usable]


def gold_spans_of(own: pandas.DataFrame, label: str) -> list[tuple[int, int]]:
    """The spans of one label in `own`, the evidence rows of one document."""
    part = own[own["label"] == label]
    return sorted({(int(a), int(b)) for a, b in zip(part["start"], part["end"], strict=True)})


def attention_of(decoder, hidden: np.ndarray, ids: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(labels, T) attention of a decoder over one document.

    hidden: (T, D) hidden states; ids: (T,) token ids; columns: (labels,).
    """
    import torch

    with torch.inference_mode():
        cells = decoder.planted.cells(torch.from_numpy(ids.astype(np.int64)))
        scores, _ = decoder.token_scores(torch.from_numpy(hidden), cells, torch.from_numpy(columns))
        return keep_top_k(scores.T, decoder.keep).softmax(-1).numpy()


def measure(prepared: Inputs, split: str, decoders: dict, teacher) -> pandas.DataFrame:
    """The agreement of every system with the evidence.

    Args:
        prepared: a corpus with evidence.
        split: "dev" or "test".
        decoders: name -> decoder.
        teacher: it weighs tokens by their relevance, without hidden states.

    Returns:
        A DataFrame with a row per system, document and label (a column of the labels): count
        (training documents of the label), share and marked (tokens of the evidence), and MEASURES.

    Raises:
        DataError: no evidence lies in the tokens read.
    """
    import pandas as pd

    # hidden states are standardised as in training
    features = replace(prepared.features, standard=artefacts.standard(prepared))
    rows = []
    for row, columns, marks in pairs(prepared, split):
        ids = prepared.tokens[row]
        hidden = features.document(row)
        weights = {
            name: attention_of(decoder, hidden, ids, columns) for name, decoder in decoders.items()
        }
        weights[TEACHER] = teacher.relevance[columns][:, ids].toarray()
        for name, of_labels in weights.items():
            for column, values, marked in zip(columns, of_labels, marks, strict=True):
                rows.append(
                    {
                        "system": name,
                        "document": row,
                        "label": int(column),
                        "count": int(prepared.train_counts[column]),
                        "share": marked.mean(),
                        "marked": int(marked.sum()),
                        **agreement(values, marked),
                    }
                )
    if not rows:
        raise DataError(
            f"no document of {split} has evidence in the tokens read; read more with max_tokens"
        )
    return pd.DataFrame(rows)


def systems(prepared: Inputs, seed: int, config, progress: bool = True) -> dict:
    """The decoders of one seed, name -> decoder: starts before and after their training.

    Trained decoders are cached under artefacts/.
    """
    teacher = teacher_of(prepared, config.teacher)
    decoders = {}
    options = {
        "withheld": withheld_of(prepared, teacher, ["l2r"], config.teacher),
        "teacher_config": config.teacher,
        "config": config.l2r,
        "seed": seed,
        "progress": progress,
    }
    for start in UNTRAINED:
        queries = (
            artefacts.label_queries(prepared, config.l2r_trainer, teacher, **options)
            if start == "l2r"
            else None
        )
        decoders[f"{start}, before training"] = trained.before(
            prepared, start, seed, config, teacher, queries
        )
    for start in TRAINED:
        decoders[f"{start}, after training"] = trained.after(
            prepared, start, seed, config, teacher, progress
        )
    return decoders


def summary(frame: pandas.DataFrame) -> dict:
    """System -> bucket -> measure: means over documents and labels, of all and of each bucket."""
    result = {}
    for name, rows in frame.groupby("system", sort=False):
        parts = {"all": rows}
        for bucket, (low, high) in BUCKETS.items():
            parts[bucket] = rows[rows["count"].between(low, high or np.inf)]
        result[name] = {
            bucket: {m: float(part[m].mean()) for m in MEASURES}
            for bucket, part in parts.items()
            if len(part)
        }
    return result


def difference(frame: pandas.DataFrame, system: str, baseline: str) -> dict[str, dict[str, float]]:
    """Measure -> paired bootstrap of `system` minus `baseline` over seeds and documents.

    The labels of a document are averaged first.
    """
    by_document = frame.groupby(["system", "seed", "document"])[list(MEASURES)].mean()
    sides = [by_document.loc[name] for name in (system, baseline)]
    return {m: paired_bootstrap(*(side[m].unstack("document") for side in sides)) for m in MEASURES}


def about(prepared: Inputs, split: str, seeds: list[int]) -> dict:
    """What a report says of the documents and hidden states it was made from."""
    return {
        "schema": 1,
        "dataset": prepared.about(),
        "split": split,
        "language": prepared.corpus.manifest.get("language"),
        "backbone": Path(prepared.backbone).name,
        "max_tokens": prepared.max_tokens,
        "seeds": seeds,
        "inputs": prepared.key,
    }


def report(prepared: Inputs, seeds: list[int], split: str, config, progress: bool = True) -> dict:
    """Measure every system with every seed; returns the contents of results/evidence.json.

    config: options of the runs.
    """
    import pandas as pd

    # measure
    began = time.perf_counter()
    frames = []
    teacher = teacher_of(prepared, config.teacher)
    for seed in seeds:
        decoders = systems(prepared, seed, config, progress)
        frames.append(measure(prepared, split, decoders, teacher).assign(seed=seed))
        if progress:
            print(f"seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    # summarise
    frame = pd.concat(frames)
    first = frames[0][frames[0]["system"] == TEACHER]
    randoms = (RANDOM_BEFORE, RANDOM_AFTER)
    compared = [name for name in frame["system"].unique() if name not in randoms]
    return plain(
        about(prepared, split, seeds)
        | {
            "pairs": {
                "documents": int(first["document"].nunique()),
                "labels": len(first),
                "marked tokens, median": float(first["marked"].median()),
                "chance precision": float(first["share"].mean()),
                **{
                    b: int(first["count"].between(low, high or np.inf).sum())
                    for b, (low, high) in BUCKETS.items()
                },
            },
            "by_seed": {str(seed): summary(part) for seed, part in zip(seeds, frames, strict=True)},
            "mean": summary(frame),
            "difference": {
                base: {name: difference(frame, name, base) for name in compared} for base in randoms
            },
            "params": asdict(config),
            "environment": environment(),
            "device": "cpu",
            "seconds": round(time.perf_counter() - began, 1),
            "created": time.strftime("%Y-%m-%d", time.gmtime()),
        }
    )


def table(found: dict) -> pandas.DataFrame:
    """A row per system and bucket: system, bucket, and '<measure>', '<measure> min' and 'max'.

    These are the mean over all seeds and the lowest and highest mean of a seed. found: as `report`
    returns it.
    """
    import pandas as pd

    rows = []
    for system, buckets in found["mean"].items():
        for bucket, means in buckets.items():
            seeds = pd.DataFrame([by[system][bucket] for by in found["by_seed"].values()])
            spread = {}
            for name in MEASURES:
                spread[f"{name} min"] = seeds[name].min()
                spread[f"{name} max"] = seeds[name].max()
            rows.append({"system": system, "bucket": bucket, **means, **spread})
    return pd.DataFrame(rows)


def draw(
    source: str | Path = "results/evidence.json",
    target: str | Path = "results/figures/evidence.png",
) -> Path:
    """Draw the numbers of `source`, all labels, a row per system; returns `target`."""
    numbers = read_json(source)
    counts = numbers["pairs"]
    rows = table(numbers)
    ax = plots.evidence_agreement(rows[rows["bucket"] == "all"], chance=counts["chance precision"])
    ax.figure.suptitle(
        f"{plots.plain(numbers['dataset']['name'])}, {numbers['split']}:"
        f" {counts['labels']:,} marked labels of "
        f"{counts['documents']} documents, {len(numbers['seeds'])} seed(s)"
    )
    plots.save(ax, target)
    return Path(target)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 and one line of error where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.evidence", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", default="codiesp-es", help="a corpus with evidence")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--tokens", type=int, default=256, help="tokens read per document")
    parser.add_argument(
        "--epochs", type=int, default=4, help="most epochs per run; the best on dev is kept"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--out", default="results/evidence.json")
    options = parser.parse_args(arguments)
    try:
        config = RunConfig(train=TrainConfig(epochs=options.epochs))
        prepared = prepare(options.dataset, backbone=options.backbone, max_tokens=options.tokens)
        next(pairs(prepared, options.split), None)  # fails here if the corpus has no evidence
        numbers = report(prepared, list(range(options.seeds)), options.split, config)
        write_json(options.out, numbers)
    except (OSError, ValueError) as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 1
    rows = table(numbers)
    print(rows[rows["bucket"] == "all"].set_index("system")[list(MEASURES)].round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
