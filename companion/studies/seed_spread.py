"""How far runs of other seeds lie apart, by what is kept of a training.

    python -m companion.studies.seed_spread codiesp --dev 500 --test 1000

docs/method.md, "Choosing on dev, reading test once". The quick tier is trained with ten seeds from
`lookup+linear`, with the lists planted, and from `linear`. Of each training three models are
measured: its `best` epoch on dev, the `last` one, and the `mean` of the weights after each epoch
(stochastic weight averaging, Izmailov et al. 2018). A seed draws initial values, the order of
documents and the folds of the linear score. Finished trainings are not repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

from companion.studies import trainings
from companion.studies.command import parser_of, reading
from plantlib.metrics.documents import mean, ndcg_at_k
from plantlib.training import evaluation, train
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.prepare import prepare
from plantlib.training.runs import Run

if TYPE_CHECKING:
    import pandas

TABLE = "seed_spread.csv"
STARTS = ("lookup+linear", "linear")
KEY = ["corpus", "start", "seed"]
WAYS = ("best", "last", "mean")
CONFIG = RunConfig(other_gains=(), linear_weights=())


class Weights(TrainerCallback):
    """Keeps what is trained, after each epoch."""

    def __init__(self, decoder):
        self.decoder = decoder
        self.epochs: list[dict[str, torch.Tensor]] = []

    def on_epoch_end(self, args, state, control, **kwargs):
        values = self.decoder.named_parameters()
        self.epochs.append({name: value.detach().clone() for name, value in values})


def averaged(epochs: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each parameter over epochs."""
    return {name: torch.stack([e[name] for e in epochs]).mean(0) for name in epochs[0]}


def ndcg(run: Run, split: str) -> float:
    """nDCG@5 of a split."""
    documents = run.inputs.documents(split, True, run.made.linear)
    scores, gold = evaluation.score(run.model, documents, run.inputs.train_counts, auc=False)
    return mean(ndcg_at_k(scores.topk, gold, 5))


def training(inputs: Inputs, start: str, seed: int) -> pandas.DataFrame:
    """One training: a row for each of WAYS, with nDCG@5 of dev and test."""
    import pandas as pd

    with trainings.planted(inputs, start, CONFIG, seed, "seed-spread", start, seed) as run:
        kept = Weights(run.model.decoder)
        history = trainings.fine_tune(run, kept)
    best = kept.epochs[train.chosen_epoch(history) - 1]
    rows = []
    for way, values in zip(WAYS, (best, kept.epochs[-1], averaged(kept.epochs)), strict=True):
        run.model.decoder.load_state_dict(values, strict=False)
        rows.append({"way": way, "dev": ndcg(run, "dev"), "test": ndcg(run, "test")})
    return pd.DataFrame(rows).round(5)


def run(inputs: Inputs, jobs: list[tuple[str, int]], results: str | Path) -> pandas.DataFrame:
    """Make each training of `jobs` (start, seed) that TABLE lacks; the whole table."""
    return trainings.complete(
        Path(results) / TABLE,
        KEY,
        [(inputs.corpus.name, *job) for job in jobs],
        lambda _, *job: training(inputs, *job),
    )


def summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and standard deviation over seeds of nDCG@5, in points, by corpus, way and start; those
    of what planting adds stand under the start `difference`.
    """
    import pandas as pd

    wide = table.pivot_table(index=["corpus", "way", "seed"], columns="start", values="test")
    wide["difference"] = wide[STARTS[0]] - wide[STARTS[1]]
    groups = (100 * wide).groupby(["corpus", "way"])
    found = pd.concat({"mean": groups.mean(), "deviation": groups.std()}, axis=1)
    return found.assign(seeds=groups.size())


def main(arguments: list[str] | None = None) -> None:
    """Train with every seed, write the table and print its means."""
    parser = parser_of("seed_spread", __doc__, tokens=256, starts=STARTS, seeds=tuple(range(10)))
    parser.set_defaults(results="results")
    options = parser.parse_args(arguments)
    inputs = prepare(options.dataset, backbone="words", **reading(options))
    jobs = [(start, seed) for seed in options.seeds for start in options.starts]
    print(summary(run(inputs, jobs, options.results)).round(2).to_string())


if __name__ == "__main__":
    main()
