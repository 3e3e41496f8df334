"""Queries that learn to rank from marked words, beside queries that learn from MI's relevance.

Where a person has marked the words of a training document for a label, the relevance of its tokens
is known exactly: one for marked tokens, zero for all others (docs/method.md, "Learning to rank").
`python -m companion.studies.marked_queries codiesp-es` compares both on documents of which neither
has seen anything; nothing is classified here. The marks compared are those of dev or test, the
marks learnt from those of training documents.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from companion.studies import evidence
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.planting import l2r, ranking
from plantlib.planting.l2r import L2RConfig
from plantlib.teacher.mig import Teacher, TeacherConfig
from plantlib.teacher.phrase_cells import DocumentCells, OwnCells
from plantlib.training import artefacts
from plantlib.training.ingredients import teacher_of, withheld_of
from plantlib.training.inputs import Inputs
from plantlib.training.prepare import prepare
from plantlib.training.records import environment, plain
from plantlib.utils.io import write_json

if TYPE_CHECKING:
    import pandas

MEASURES = ("ndcg@25", "auc", "precision")
TRAINERS = ("closed_form", "approx_ndcg")
UNTRAINED = "untrained"


def cells(prepared: Inputs) -> DocumentCells:
    """The relevance that marks give: a cell of value one for each marked token and label.

    Only training documents have cells; all documents have a place, so that rows are those of the
    corpus.
    """
    labels, tokens = [], []
    counts = np.zeros(len(prepared.tokens), np.int64)
    found = list(evidence.marked(prepared, np.sort(prepared.rows["train"])))
    for row, columns, marks in found:
        of, token = np.nonzero(marks)
        labels.append(columns[of])
        tokens.append(token)
        counts[row] = len(of)
    nothing = np.zeros(0, np.int64)
    return DocumentCells(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([nothing, *tokens]).astype(np.int32),
        np.concatenate([nothing, *labels]).astype(np.int32),
        np.ones(counts.sum(), np.float32),
    )


def queries(
    prepared: Inputs,
    marks: DocumentCells,
    teacher: Teacher,
    trainer: str,
    *,
    config: L2RConfig = L2RConfig(),
    seed: int = 0,
    progress: bool = True,
) -> torch.Tensor:
    """(L, D) queries that learn from marks alone, by the trainers that learn from MI.

    teacher: MI's; its relevance is not read. A label without marks gets a query of zeros.
    """
    shape = teacher.relevance.shape
    silent = replace(teacher, relevance=sparse.csr_matrix(shape, dtype=teacher.relevance.dtype))
    found = l2r.pretrain(
        trainer,
        replace(prepared.features, standard=artefacts.standard(prepared)),
        prepared.rows["train"],
        silent,
        label_names=prepared.corpus.label_names,
        tokens=prepared.vocabulary,
        labels=prepared.corpus.labels,
        withheld=OwnCells(marks, prepared.rows["train"], None),
        config=config,
        seed=seed,
        progress=progress,
    ).label_queries
    taught = torch.zeros(len(found), 1)
    taught[np.unique(marks.labels)] = 1
    return found * taught


def compare(
    prepared: Inputs, systems: Mapping[str, torch.Tensor], teacher: Teacher, split: str = "dev"
) -> pandas.DataFrame:
    """How well queries (L, D), and the teacher's grades, rank the marked words of other documents.

    Returns:
        A row per system, document and label: system, document, label, count (training documents of
        the label) and MEASURES.
    """
    import pandas as pd

    features = replace(prepared.features, standard=artefacts.standard(prepared))
    rows = []
    for row, columns, marks in evidence.pairs(prepared, split):
        hidden = torch.from_numpy(features.document(row))
        scores = {name: q[torch.from_numpy(columns)] @ hidden.T for name, q in systems.items()}
        grades = teacher.relevance[columns][:, prepared.tokens[row]].toarray()
        scores[evidence.TEACHER] = torch.from_numpy(grades.astype(np.float32))
        relevance = torch.from_numpy(marks.astype(np.float32))
        for name, of_labels in scores.items():
            quality = ranking.ndcg(of_labels, relevance, k=25).tolist()
            weights = of_labels.softmax(-1).numpy()
            for column, ndcg, own, marked in zip(columns, quality, weights, marks, strict=True):
                agreement = evidence.agreement(own, marked)
                rows.append(
                    {
                        "system": name,
                        "document": row,
                        "label": int(column),
                        "count": int(prepared.train_counts[column]),
                        "ndcg@25": ndcg,
                        "auc": agreement["auc"],
                        "precision": agreement["precision"],
                    }
                )
    return pd.DataFrame(rows)


def summary(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Means of MEASURES over documents and labels: a row per system and bucket, `all` among them.

    Indexed by system and bucket, in the order of the systems.
    """
    import pandas as pd

    parts = {"all": frame}
    for bucket, (low, high) in evidence.BUCKETS.items():
        parts[bucket] = frame[frame["count"].between(low, high or np.inf)]
    means = {
        bucket: part.groupby("system", sort=False)[list(MEASURES)].mean()
        for bucket, part in parts.items()
        if len(part)
    }
    return pd.concat(means, names=["bucket"]).swaplevel()


def difference(frame: pandas.DataFrame, system: str, baseline: str) -> dict[str, dict[str, float]]:
    """Measure -> paired bootstrap of `system` minus `baseline` over seeds and documents."""
    by_document = frame.groupby(["system", "seed", "document"])[list(MEASURES)].mean()
    sides = [by_document.loc[name] for name in (system, baseline)]
    return {m: paired_bootstrap(*(side[m].unstack("document") for side in sides)) for m in MEASURES}


def report(
    prepared: Inputs,
    seeds: Sequence[int],
    split: str = "test",
    config: L2RConfig = L2RConfig(),
    progress: bool = True,
) -> dict:
    """Train and compare with every seed; returns the contents of results/marked_queries.json."""
    import pandas as pd

    began = time.perf_counter()
    options = TeacherConfig()
    teacher = teacher_of(prepared, options)
    counted = {
        "withheld": withheld_of(prepared, teacher, ["l2r"], options),
        "teacher_config": options,
        "config": config,
        "progress": progress,
    }
    marks = cells(prepared)
    frames = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        size = teacher.num_labels, prepared.features.hidden_size
        systems = {UNTRAINED: torch.randn(size, generator=generator)}
        for name in TRAINERS:
            planted = artefacts.label_queries(prepared, name, teacher, seed=seed, **counted)
            systems[f"{name} of MI"] = planted.label_queries
            systems[f"{name} of marked words"] = queries(
                prepared, marks, teacher, name, config=config, seed=seed, progress=progress
            )
        frames.append(compare(prepared, systems, teacher, split).assign(seed=seed))
    frame = pd.concat(frames)
    means: dict[str, dict] = {}
    for (system, bucket), row in summary(frame).iterrows():
        means.setdefault(system, {})[bucket] = row.to_dict()
    return plain(
        evidence.about(prepared, split, list(seeds))
        | {
            "marked tokens learnt from": len(marks.values),
            "labels with marks": len(np.unique(marks.labels)),
            "pairs": len(frames[0][frames[0]["system"] == UNTRAINED]),
            "documents": int(frame["document"].nunique()),
            "mean": means,
            "difference": {
                name: difference(frame, f"{name} of marked words", f"{name} of MI")
                for name in TRAINERS
            },
            "params": {"teacher": asdict(options), "l2r": asdict(config)},
            "environment": environment(),
            "device": "cpu",
            "seconds": round(time.perf_counter() - began, 1),
            "created": time.strftime("%Y-%m-%d", time.gmtime()),
        }
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 and one line of error where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.marked_queries", description=__doc__.split("\n")[0]
    )
    parser.add_argument("dataset", help="a corpus with evidence")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--tokens", type=int, default=256, help="tokens read per document")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--out", default="results/marked_queries.json")
    options = parser.parse_args(arguments)
    try:
        prepared = prepare(options.dataset, backbone=options.backbone, max_tokens=options.tokens)
        next(evidence.pairs(prepared, options.split), None)  # fails here without evidence
        found = report(prepared, range(options.seeds), options.split)
        write_json(options.out, found)
    except (OSError, ValueError) as error:
        print(f"marked_queries: {error}", file=sys.stderr)
        return 1
    for system, buckets in found["mean"].items():
        print(system, {name: round(100 * value, 1) for name, value in buckets["all"].items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
