"""How far trained models lift a document's labels, by training documents of the label.

    python -m companion.studies.margins codiesp

docs/method.md, "The cross-fitted teacher". The margin of a gold label is its logit less the fifth
best logit among the labels that the document lacks: above 0 it is one of the first five. Three
models differ in what they plant: nothing (`linear`), the teacher as counted, and the cross-fitted
teacher. What planting adds to the margin in training, and what it adds on test documents, differ
where a model has learnt to trust what it will not find again. Finished trainings are not repeated.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from companion.studies import trainings
from companion.studies.command import parser_of, reading
from companion.studies.planted_mass import GROUPS
from plantlib.training.inputs import Documents, Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare

if TYPE_CHECKING:
    import pandas

TABLE = "margins.csv"
NOTHING, COUNTED, CROSS_FITTED = "nothing", "teacher as counted", "cross-fitted teacher"
PLANTED = (NOTHING, COUNTED, CROSS_FITTED)
PLACES = 5
KEY = ["corpus", "planted", "seed"]
BATCH = 16


def margins(model, documents: Documents, counts: np.ndarray) -> pandas.DataFrame:
    """The margin of each document and gold label with a training document.

    Args:
        model: trained.
        documents: a split, or the training documents as training reads them.
        counts: (L,) training documents per label.

    Returns:
        columns documents (of the label in training) and margin.
    """
    import pandas as pd

    found = []
    device = next(model.parameters()).device
    model.eval()
    for begin in range(0, len(documents.rows), BATCH):
        rows = documents.rows[begin : begin + BATCH]
        batch = documents.collate([int(row) for row in rows])
        batch = {k: v.to(device) for k, v in batch.items() if not k.startswith("label_")}
        with torch.inference_mode():
            logits = model(**batch).logits.float().cpu()
        for row, values in zip(rows, logits, strict=True):
            gold = documents.labels[row].indices
            absent = np.setdiff1d(np.arange(len(values)), gold)
            if not len(absent):
                continue
            bar = values[absent].topk(min(PLACES, len(absent))).values[-1]
            found += [
                (int(counts[label]), float(values[label] - bar)) for label in gold if counts[label]
            ]
    return pd.DataFrame(found, columns=["documents", "margin"])


def training(inputs: Inputs, planted: str, seed: int, epochs: int) -> pandas.DataFrame:
    """Train one model; mean margins by split and group of labels."""
    import pandas as pd

    config = RunConfig(train=TrainConfig(epochs=epochs), other_gains=())
    if planted == COUNTED:
        config = replace(config, teacher=replace(config.teacher, cross_fitted=False))
    start = "linear" if planted == NOTHING else "lookup+linear"
    named = (f"margins-{start}", planted, seed, epochs)
    with trainings.planted(inputs, start, config, seed, *named) as run:
        run.fine_tune(run.folder)
    splits = {
        "training": run.training_documents(),
        "test": inputs.documents("test", True, run.made.linear),
    }
    rows = []
    for split, documents in splits.items():
        frame = margins(run.model, documents, inputs.train_counts)
        least = 1
        for most in GROUPS:
            part = frame[frame["documents"].between(least, most or np.inf)]
            about = {"split": split, "least": least, "most": most, "pairs": len(part)}
            rows.append(about | {"margin": round(part["margin"].mean(), 4)})
            least = (most or 0) + 1
    return pd.DataFrame(rows).astype({"most": "Int64"})


def run(inputs: Inputs, seeds: list[int], results: str | Path, epochs: int = 3) -> pandas.DataFrame:
    """Every training that TABLE in `results` lacks, seed by seed; the whole table."""
    return trainings.complete(
        Path(results) / TABLE,
        KEY,
        [(inputs.corpus.name, planted, seed) for seed in seeds for planted in PLANTED],
        lambda _, planted, seed: training(inputs, planted, seed, epochs),
    )


def added(table: pandas.DataFrame, corpus: str) -> pandas.DataFrame:
    """What planting adds to the mean margin of a group of labels.

    Returns:
        index split, least, most; a column per teacher: its margin less that of NOTHING, a mean over
        seeds.
    """
    rows = table[table["corpus"] == corpus]
    index = ["split", "least", "most"]
    by_planted = rows.pivot_table(
        index=[*index, "seed"], columns="planted", values="margin", dropna=False
    ).dropna(how="all")
    gains = by_planted[[COUNTED, CROSS_FITTED]].sub(by_planted[NOTHING], axis=0)
    return gains.groupby(level=index, dropna=False).mean()


def main(arguments: list[str] | None = None) -> None:
    """Train the three models with every seed, write the table and print what planting adds."""
    parser = parser_of("margins", __doc__, tokens=256, starts=(), seeds=(0, 1, 2))
    parser.set_defaults(results="results")
    options = parser.parse_args(arguments)
    inputs = prepare(options.dataset, **reading(options))
    table = run(inputs, options.seeds, options.results)
    print(added(table, inputs.corpus.name).round(3).to_string())


if __name__ == "__main__":
    main()
