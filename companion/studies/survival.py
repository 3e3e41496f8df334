"""How much of planted attention is left after training, and what that does.

    python -m companion.studies.survival codiesp-es

docs/method.md, "Training". The start `lookup+linear` is trained for 3, 10 and 30 epochs in three
ways: queries and gain as in every run (`trained`), queries at a tenth of their rate (`slow`), and
with both frozen, so that attention stays as it was planted (`frozen`). After each epoch, on dev:
how far the attention of gold labels has moved from where it was planted (half the sum of absolute
differences over the tokens, from 0 to 1), how well it agrees with the gold spans, and nDCG@5. Test
is read once per training, at the best dev epoch. Finished trainings are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import TrainerCallback

from companion.studies import trainings
from companion.studies.command import parser_of, reading
from companion.studies.evidence import agreement, attention_of, pairs
from plantlib.training import artefacts, train
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare

if TYPE_CHECKING:
    import pandas

TABLE = "survival.csv"
START = "lookup+linear"
WAYS = {"trained": 1.0, "slow": 0.1, "frozen": 0.0}  # times the rate of the queries
EPOCHS = (3, 10, 30)
KEY = ["corpus", "way", "epochs", "seed"]
METRICS = ("ndcg@5", "few/rp@5")


@dataclass(frozen=True, eq=False)
class Marked:
    """A document with marked words: its hidden states, tokens, labels, marks, planted attention."""

    hidden: np.ndarray
    ids: np.ndarray
    columns: np.ndarray
    marks: np.ndarray
    planted: np.ndarray


def marked_documents(inputs: Inputs, split: str, decoder) -> list[Marked]:
    """The documents of a split with marked words, and the attention that `decoder` gives them."""
    features = replace(inputs.features, standard=artefacts.standard(inputs))
    documents = []
    for row, columns, marks in pairs(inputs, split):
        hidden, ids = features.document(row), inputs.tokens[row]
        planted = attention_of(decoder, hidden, ids, columns)
        documents.append(Marked(hidden, ids, columns, marks, planted))
    return documents


def compare(decoder, documents: list[Marked]) -> dict[str, float]:
    """Means over documents and gold labels: distance from what was planted, auc, precision."""
    rows = []
    for document in documents:
        attention = attention_of(decoder, document.hidden, document.ids, document.columns)
        moved = np.abs(attention - document.planted).sum(1) / 2
        for weights, marks, distance in zip(attention, document.marks, moved, strict=True):
            agreed = agreement(weights, marks)
            rows.append((distance, agreed["auc"], agreed["precision"]))
    distance, auc, precision = np.mean(rows, axis=0)
    return {"distance": distance, "auc": auc, "precision": precision}


class Probe(TrainerCallback):
    """Compares attention with the gold spans of dev at the end of each epoch."""

    def __init__(self, decoder, documents: list[Marked]):
        self.decoder = decoder
        self.documents = documents
        self.rows: list[dict] = []

    def on_epoch_end(self, args, state, control, **kwargs):
        found = compare(self.decoder, self.documents)
        self.rows.append({"epoch": round(state.epoch), "step": state.global_step} | found)


def training(inputs: Inputs, way: str, epochs: int, seed: int) -> pandas.DataFrame:
    """One training: a row before it, one per epoch on dev, and one on test at the best epoch."""
    import pandas as pd

    rate = WAYS[way]
    options = TrainConfig(epochs=epochs, patience=epochs)
    options = replace(options, lr_queries=rate * options.lr_queries)
    config = RunConfig(train=options, other_gains=())
    named = (f"survival-{way}-{epochs}", START, seed)
    with trainings.planted(inputs, START, config, seed, *named) as run:
        decoder = run.model.decoder
        if rate == 0.0:
            decoder.label_queries.requires_grad_(False)
            decoder.planted_gain.requires_grad_(False)
        marked = {split: marked_documents(inputs, split, decoder) for split in ("dev", "test")}
        rows = [{"split": "dev", "epoch": 0, "step": 0} | compare(decoder, marked["dev"])]
        probe = Probe(decoder, marked["dev"])
        history = trainings.fine_tune(run, probe)
    for found, epoch in zip(probe.rows, history, strict=True):
        rows.append({"split": "dev"} | found | {m: epoch[m] for m in METRICS})

    values = trainings.measured(run)
    last = {"split": "test", "epoch": train.chosen_epoch(history)} | compare(
        decoder, marked["test"]
    )
    rows.append(last | {m: values[m] for m in METRICS})
    return pd.DataFrame(rows).round(5)


def run(inputs: Inputs, jobs: list[tuple[str, int, int]], results: str | Path) -> pandas.DataFrame:
    """Make each training of `jobs` (way, epochs, seed) that TABLE lacks; the whole table."""
    return trainings.complete(
        Path(results) / TABLE,
        KEY,
        [(inputs.corpus.name, *job) for job in jobs],
        lambda _, *job: training(inputs, *job),
    )


def summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Means over seeds by way and epochs: dev before and after the last epoch, and test."""
    import pandas as pd

    last = table[table["epoch"] == table["epochs"]]
    stages = {
        "planted": table[table["epoch"] == 0],
        "dev, last epoch": last[last["split"] == "dev"],
        "test": table[table["split"] == "test"],
    }
    means = [
        part.groupby(["way", "epochs"])[["distance", "auc", "precision", *METRICS]]
        .mean()
        .assign(stage=stage, seeds=part.groupby(["way", "epochs"]).size())
        for stage, part in stages.items()
    ]
    return pd.concat(means).reset_index().set_index(["stage", "way", "epochs"]).sort_index()


def main(arguments: list[str] | None = None) -> None:
    """Train in every way, write the table and print its means."""
    parser = parser_of("survival", __doc__, tokens=256, starts=(), seeds=(0, 1, 2))
    parser.set_defaults(results="results")
    parser.add_argument("--epochs", type=int, nargs="+", default=list(EPOCHS))
    options = parser.parse_args(arguments)
    inputs = prepare(options.dataset, **reading(options))
    jobs = [
        (way, epochs, seed) for epochs in options.epochs for seed in options.seeds for way in WAYS
    ]
    print(summary(run(inputs, jobs, options.results)).round(4).to_string())


if __name__ == "__main__":
    main()
