"""One gain for all labels, or one for each group of labels by their training documents?

    python -m companion.studies.bucket_gains codiesp

docs/method.md, "The cross-fitted teacher". MI of a label with few documents is the least certain,
and so its planted values might be too large. The start `lookup+linear` is trained with its one
gain. Then each group of labels, the rarest first, may get another multiple of its planted values,
where dev's nDCG@5 is better by more than one standard error. Test is read for both, and for
`linear`, in which nothing is planted. Finished trainings are not repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from companion.studies import trainings
from companion.studies.command import parser_of, reading
from plantlib.training import train
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.runs import Run

if TYPE_CHECKING:
    import pandas

TABLE = "bucket_gains.csv"
KEY = ["corpus", "backbone", "seed"]
NOTHING, ONE, BY_GROUP = "nothing planted", "one gain", "a gain per group"
GROUPS = (1, 5, 50, None)  # most training documents of a label in each group
MULTIPLES = (0.0, 0.5, 2.0)  # tried beside 1
METRICS = ("ndcg@5", "few/rp@5", "psp@5")


def group_of(counts: np.ndarray) -> np.ndarray:
    """(L,) the group of labels with `counts` (L,) training documents."""
    return np.searchsorted([most for most in GROUPS if most], counts)


def choose(model, counts: np.ndarray, dev_values) -> list[float]:
    """Scale the planted values of each group as dev wants it; the multiples.

    Args:
        model: trained; its planted table is changed.
        counts: (L,) training documents per label.
        dev_values: dev_values() is the metric of each dev document, (n,).
    """
    table = model.decoder.planted
    trained = table.planted_values.clone()
    groups = torch.from_numpy(group_of(counts))[table.planted_labels.long()]
    chosen = torch.ones(len(GROUPS))
    best = dev_values()
    for group in range(len(GROUPS)):
        for multiple in MULTIPLES:
            tried = chosen.clone()
            tried[group] = multiple
            table.planted_values.copy_(trained * tried[groups])
            values = dev_values()
            if train.standard_errors(values - best) > 1.0:
                chosen, best = tried, values
    table.planted_values.copy_(trained * chosen[groups])
    return chosen.tolist()


def training(inputs: Inputs, seed: int, epochs: int) -> pandas.DataFrame:
    """Train with one gain and with nothing planted; a row for each way of planting."""
    import pandas as pd

    config = RunConfig(train=TrainConfig(epochs=epochs), other_gains=())
    rows = []
    for start, way in (("linear", NOTHING), ("lookup+linear", ONE)):
        name = f"bucket-gains-{start}"
        with trainings.planted(inputs, start, config, seed, name, seed, epochs) as run:
            run.fine_tune(run.folder)
        rows.append({"way": way, "multiples": "1 1 1 1"} | _measured(run))
    multiples = " ".join(f"{m:g}" for m in choose(run.model, inputs.train_counts, run.dev_values))
    rows.append({"way": BY_GROUP, "multiples": multiples} | _measured(run))
    return pd.DataFrame(rows)


def _measured(run: Run) -> dict[str, float]:
    """METRICS of test, and dev's nDCG@5."""
    values = trainings.measured(run)
    measured = {metric: values[metric] for metric in METRICS} | {"dev": run.dev_metric()}
    return {name: round(float(value), 5) for name, value in measured.items()}


def run(inputs: Inputs, seeds: list[int], results: str | Path, epochs: int = 3) -> pandas.DataFrame:
    """Every training that TABLE in `results` lacks, seed by seed; the whole table."""
    backbone = Path(inputs.backbone).name
    return trainings.complete(
        Path(results) / TABLE,
        KEY,
        [(inputs.corpus.name, backbone, seed) for seed in seeds],
        lambda _corpus, _backbone, seed: training(inputs, seed, epochs),
    )


def main(arguments: list[str] | None = None) -> None:
    """Train with every seed, write the table and print it."""
    parser = parser_of("bucket_gains", __doc__, tokens=256, starts=(), seeds=(0, 1, 2))
    parser.set_defaults(results="results")
    parser.add_argument("--backbone", default="minilm", help="a known name or a folder")
    options = parser.parse_args(arguments)
    inputs = prepare(options.dataset, backbone=options.backbone, **reading(options))
    table = run(inputs, options.seeds, options.results)
    print(table[table["corpus"] == inputs.corpus.name].to_string(index=False))


if __name__ == "__main__":
    main()
