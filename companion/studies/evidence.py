"""Does attention look at the right words? Token weights against gold evidence spans, document by
document and label by label.

A corpus with `evidence` says which characters justify each label. Attention of a label is held
against them: area under the curve (does a marked token rank above an unmarked one), precision among
as many tokens as are marked, and a weighted intersection over union. Only documents of dev and test
are read, which never train. `python -m companion.studies.evidence` compares the starts before and
after training and writes numbers alone; no text leaves this module. METHOD.md sections 4 and 5.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.report import plots
from plantlib.backbones import loading
from plantlib.data.corpus import Corpus
from plantlib.kernels.reference import keep_top_k
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.planting import starts
from plantlib.training import artefacts, runs
from plantlib.training.ingredients import build_model, teacher_of
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import environment, plain, run_name
from plantlib.utils.base import DataError
from plantlib.utils.io import atomic_path, fingerprint_of, read_json, write_json

if TYPE_CHECKING:
    import pandas


MEASURES = ("auc", "precision", "iou")
BUCKETS = {"few": (1, 5), "medium": (6, 50), "head": (51, None)}
UNTRAINED, TRAINED = ("random", "shuffled", "lookup", "l2r"), ("random", "lookup", "l2r")
TEACHER = "teacher alone, no hidden states"
RANDOM_BEFORE, RANDOM_AFTER = "random, before training", "random, after training"


def gold_spans(corpus: Corpus, row: int, label: str) -> list[tuple[int, int]]:
    """Character spans [start, end) that justify `label` in document `row`; none where the corpus
    marks none.
    """
    if corpus.evidence is None:
        return []
    frame = corpus.evidence
    own = frame[(frame["id"] == corpus.ids[row]) & (frame["label"] == label)]
    return sorted({(int(a), int(b)) for a, b in zip(own["start"], own["end"], strict=True)})


def token_marks(spans: list[tuple[int, int]], gold: list[tuple[int, int]]) -> np.ndarray:
    """(T,) bool: tokens that share a character with a gold span; spans are the tokens' own."""
    marks = np.zeros(len(spans), bool)
    for start, end in gold:
        marks |= np.array([begin < end and start < stop for begin, stop in spans], bool)
    return marks


def agreement(weights: np.ndarray, marks: np.ndarray) -> dict[str, float]:
    """auc, precision and iou of token weights (T,), which need not sum to one, against marks (T,);
    nan without both kinds.

    auc: chance that a marked token weighs more than an unmarked one, equal weights half. precision:
    share of marked ones among the n heaviest tokens, n marked in all; where the last places are
    tied, the expected share. iou: sum min / sum max of the weights (as shares) and of 1/n on the
    marked tokens, 1 when they are the same distribution.
    """
    weights, marks = np.asarray(weights, np.float64), np.asarray(marks, bool)
    n, total = int(marks.sum()), weights.sum()
    if not 0 < n < len(marks):
        return dict.fromkeys(MEASURES, float("nan"))
    share = weights / total if total > 0 else np.full(len(weights), 1 / len(weights))
    wanted = marks / n
    return {
        "auc": _auc(weights, marks),
        "precision": _precision(weights, marks, n),
        "iou": float(np.minimum(share, wanted).sum() / np.maximum(share, wanted).sum()),
    }


def _auc(weights: np.ndarray, marks: np.ndarray) -> float:
    from scipy.stats import rankdata

    n = int(marks.sum())
    return float((rankdata(weights)[marks].sum() - n * (n + 1) / 2) / (n * (len(marks) - n)))


def _precision(weights: np.ndarray, marks: np.ndarray, n: int) -> float:
    last = np.sort(weights)[-n]
    above, tied = weights > last, weights == last
    return float((marks[above].sum() + (n - above.sum()) * marks[tied].mean()) / n)


def pairs(prepared: Inputs, split: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row, label columns, marks (labels, T)) of documents of `split` whose evidence lies in the
    tokens read.

    Raises DataError for the training split and for a corpus without evidence.
    """

    corpus = prepared.corpus
    if corpus.evidence is None:
        raise DataError(
            f"{corpus.name} marks no evidence; use codiesp-es, synthetic-icd or a corpus with"
            " evidence="
        )
    if split not in ("dev", "test"):
        raise DataError(
            f"split={split!r}: evidence is compared on dev or test, whose documents do not train"
        )
    tokenizer = loading.tokenizer_of(prepared.backbone, prepared.trust_remote_code)
    column = {name: i for i, name in enumerate(corpus.label_names)}
    by_document = dict(tuple(corpus.evidence.groupby("id")))
    for row in prepared.rows[split]:
        own = by_document.get(corpus.ids[row])
        if own is None or not len(prepared.tokens[row]):
            continue
        spans = tokenizer(
            corpus.texts[row],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
            truncation=prepared.max_tokens is not None,
            max_length=prepared.max_tokens,
        )["offset_mapping"]
        labels = sorted(
            {name for name in own["label"]}
            & {corpus.label_names[j] for j in corpus.labels[row].indices}
        )
        marks = np.array([token_marks(spans, gold_spans_of(own, name)) for name in labels]).reshape(
            len(labels), len(spans)
        )
        kept = marks.any(1) & ~marks.all(1)
        if kept.any():
            yield int(row), np.array([column[name] for name in labels])[kept], marks[kept]


def gold_spans_of(own: pandas.DataFrame, label: str) -> list[tuple[int, int]]:
    """The spans of one label among one document's evidence rows."""
    part = own[own["label"] == label]
    return sorted({(int(a), int(b)) for a, b in zip(part["start"], part["end"], strict=True)})


def attention_of(decoder, hidden: np.ndarray, ids: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(labels, T) attention of a decoder over one document's hidden states (T, D)."""
    import torch

    with torch.inference_mode():
        cells = decoder.planted.cells(torch.from_numpy(ids.astype(np.int64)))
        scores, _ = decoder.token_scores(torch.from_numpy(hidden), cells, torch.from_numpy(columns))
        return keep_top_k(scores.T, decoder.keep).softmax(-1).numpy()


def measure(prepared: Inputs, split: str, decoders: dict, teacher) -> pandas.DataFrame:
    """One row a (system, document, label) with its measures; the teacher alone weighs tokens by its
    relevance.
    """
    import pandas as pd

    # at the spread the decoders were trained on
    rows, features = [], replace(prepared.features, standard=artefacts.standard(prepared))
    for row, columns, marks in pairs(prepared, split):
        ids, hidden = prepared.tokens[row], features.document(row)
        weights = {
            name: attention_of(decoder, hidden, ids, columns) for name, decoder in decoders.items()
        }
        weights[TEACHER] = teacher.relevance[columns][:, ids].toarray()
        for name, values in weights.items():
            for j, (column, own) in enumerate(zip(columns, marks, strict=True)):
                rows.append(
                    {
                        "system": name,
                        "document": row,
                        "count": int(prepared.train_counts[column]),
                        "share": own.mean(),
                        "marked": int(own.sum()),
                        **agreement(values[j], own),
                    }
                )
    if not rows:
        raise DataError(
            f"no document of {split} has evidence in the tokens read; read more with max_tokens"
        )
    return pd.DataFrame(rows)


def systems(prepared: Inputs, seed: int, config, progress: bool = True) -> dict:
    """The decoders of one seed: starts before their training and after it; trained ones are kept
    and read again.
    """

    teacher, found = teacher_of(prepared, config.teacher), {}
    options = {
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
        model = build_model(prepared, teacher, RunConfig(keep=config.keep))
        starts.plant(
            model.decoder,
            start,
            teacher,
            prepared.train_labels,
            planted=queries,
            config=config.start,
            seed=seed,
        )
        found[f"{start}, before training"] = model.decoder.eval()
    for start in TRAINED:
        found[f"{start}, after training"] = _trained(
            prepared, start, seed, config, teacher, progress
        )
    return found


def _trained(prepared: Inputs, start: str, seed: int, config, teacher, progress: bool):
    """The decoder of a start after its run, from artefacts/ where the same run has left it."""
    from safetensors.torch import load_file, save_file

    key = fingerprint_of(prepared.key, start, asdict(config), seed)
    path = prepared.root / "evidence" / f"{run_name(prepared, start, seed)}-{key}.safetensors"
    decoder = build_model(prepared, teacher, RunConfig(keep=config.keep)).decoder
    if not path.exists():
        _, model = runs.run_start(prepared, start, seed, config=config, progress=progress)
        with atomic_path(path) as temporary:
            save_file(model.decoder.state_dict(), temporary)
    decoder.load_state_dict(load_file(path))
    return decoder.eval()


def summary(frame: pandas.DataFrame) -> dict:
    """Means over documents and labels a system: over all pairs and by the label's training
    documents.
    """
    result = {}
    for name, own in frame.groupby("system", sort=False):
        parts = {"all": own} | {
            b: own[own["count"].between(low, high or np.inf)] for b, (low, high) in BUCKETS.items()
        }
        result[name] = {
            bucket: {m: float(part[m].mean()) for m in MEASURES}
            for bucket, part in parts.items()
            if len(part)
        }
    return result


def difference(frame: pandas.DataFrame, system: str, baseline: str) -> dict[str, dict[str, float]]:
    """Paired bootstrap over documents of `system` minus `baseline`; labels and seeds of a document
    averaged first.
    """

    by_document = frame.groupby(["system", "document"])[list(MEASURES)].mean()
    return {
        m: paired_bootstrap(
            by_document.loc[system][m].to_numpy(), by_document.loc[baseline][m].to_numpy()
        )
        for m in MEASURES
    }


def report(prepared: Inputs, seeds: list[int], split: str, config, progress: bool = True) -> dict:
    """Everything results/evidence.json holds; see `main`."""
    import pandas as pd

    began, frames = time.perf_counter(), []
    teacher = teacher_of(prepared, config.teacher)
    for seed in seeds:
        frames.append(
            measure(prepared, split, systems(prepared, seed, config, progress), teacher).assign(
                seed=seed
            )
        )
        if progress:
            print(f"seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    frame, first = pd.concat(frames), frames[0][frames[0]["system"] == TEACHER]
    compared = [
        name for name in frame["system"].unique() if name not in (RANDOM_BEFORE, RANDOM_AFTER)
    ]
    return plain(
        {
            "schema": 1,
            "dataset": prepared.about(),
            "split": split,
            "language": prepared.corpus.manifest.get("language"),
            "backbone": Path(prepared.backbone).name,
            "max_tokens": prepared.max_tokens,
            "seeds": seeds,
            "inputs": prepared.key,
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
                base: {name: difference(frame, name, base) for name in compared}
                for base in (RANDOM_BEFORE, RANDOM_AFTER)
            },
            "params": asdict(config),
            "environment": environment(),
            "device": "cpu",
            "seconds": round(time.perf_counter() - began, 1),
            "created": time.strftime("%Y-%m-%d", time.gmtime()),
        }
    )


def table(found: dict) -> pandas.DataFrame:
    """One row a (system, bucket): mean of each measure and its smallest and largest seed, from what
    `report` returns.
    """
    import pandas as pd

    rows = []
    for system, buckets in found["mean"].items():
        for bucket, means in buckets.items():
            seeds = pd.DataFrame([by[system][bucket] for by in found["by_seed"].values()])
            spread = {
                f"{m} {what}": getattr(seeds[m], what)()
                for m in MEASURES
                for what in ("min", "max")
            }
            rows.append({"system": system, "bucket": bucket, **means, **spread})
    return pd.DataFrame(rows)


def draw(
    source: str | Path = "results/evidence.json",
    target: str | Path = "results/figures/evidence.png",
) -> Path:
    """The committed numbers as a figure: all labels, a row a system."""

    found = read_json(source)
    rows = table(found)
    ax = plots.evidence_agreement(
        rows[rows["bucket"] == "all"], chance=found["pairs"]["chance precision"]
    )
    about = found["dataset"]
    ax.figure.suptitle(
        f"{about['name']}, {found['split']}: {found['pairs']['labels']:,} marked labels of "
        f"{found['pairs']['documents']} documents, {len(found['seeds'])} seed(s)"
    )
    plots.save(ax, target)
    return Path(target)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 with one line when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.evidence", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", default="codiesp-es", help="a corpus whose evidence is marked")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--tokens", type=int, default=256, help="tokens read of each document")
    parser.add_argument(
        "--epochs", type=int, default=4, help="most epochs a run trains; the best on dev is kept"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--out", default="results/evidence.json")
    options = parser.parse_args(arguments)

    try:
        config = RunConfig(train=TrainConfig(epochs=options.epochs))
        prepared = prepare(options.dataset, backbone=options.backbone, max_tokens=options.tokens)
        # a corpus without evidence is an error before the long work
        next(pairs(prepared, options.split), None)
        found = report(prepared, list(range(options.seeds)), options.split, config)
        write_json(options.out, found)
    except (OSError, ValueError) as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 1
    shown = table(found)
    print(shown[shown["bucket"] == "all"].set_index("system")[list(MEASURES)].round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
