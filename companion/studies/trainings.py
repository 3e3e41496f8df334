"""Trainings of studies: a planted run of theirs, what it measures on test, and their table.

The table is one CSV file that is written after each training. So a study that is stopped loses one
training, and goes on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from plantlib.metrics.documents import evaluate
from plantlib.training import artefacts, evaluation, train
from plantlib.training.ingredients import build_model, ingredients
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.runs import Run
from plantlib.utils.io import atomic_path, remove_unless_held
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


@contextmanager
def planted(
    inputs: Inputs, start: str, config: RunConfig, seed: int, name: str, *made_from
) -> Iterator[Run]:
    """A run with the gain of `config.start` planted, not yet trained; its checkpoints are removed
    at the end.

    Args:
        inputs: a corpus made ready, with cached features.
        start: what is planted.
        config: options of the run.
        seed: of everything that is drawn.
        name: of the folder of checkpoints.
        made_from: what else tells them from those of other trainings.
    """
    made = ingredients(inputs, start, config, seed, progress=False)
    model = build_model(inputs, made, config)
    folder = artefacts.run_folder(inputs, name, *made_from)
    run = Run(inputs, start, seed, config, made, model, folder, progress=False)
    run.plant(config.start.lookup_gain)
    yield run
    remove_unless_held(folder)


def fine_tune(run: Run, probe: TrainerCallback) -> list[dict]:
    """Train a planted run that begins from the linear score, followed by `probe`; the history.

    Nothing is resumed: the probe would miss the epochs before a stop.
    """
    return train.fine_tune(
        run.model,
        run.training_documents(),
        run.inputs.documents("dev", True, run.made.linear),
        run.inputs.train_counts,
        run.folder,
        config=run.config.train,
        from_linear=True,
        seed=run.seed,
        resume=False,
        progress=False,
        callbacks=[probe],
    )


def measured(run: Run) -> dict[str, float]:
    """The metrics of test."""
    inputs = run.inputs
    documents = inputs.documents("test", True, run.made.linear)
    scores, gold = evaluation.score(run.model, documents, inputs.train_counts, auc=False)
    return evaluate(scores, gold, inputs.train_counts, len(inputs.rows["train"]))


def load(path: Path, key: Sequence[str]) -> pandas.DataFrame:
    """The table at `path`; empty, with the columns `key`, where there is no file."""
    import pandas as pd

    if not path.exists():
        return pd.DataFrame(columns=list(key))
    table = pd.read_csv(path)
    return table.astype({"most": "Int64"}) if "most" in table else table


def complete(
    path: Path, key: Sequence[str], jobs: Iterable[tuple], make: Callable[..., Any]
) -> pandas.DataFrame:
    """Make the trainings that the table lacks, one by one; the whole table.

    Args:
        path: the CSV file.
        key: columns that name a training.
        jobs: the values of `key` of each training.
        make: make(*job) trains, and returns the rows: all columns but those of `key`.
    """
    import pandas as pd

    key = list(key)
    table = load(path, key)
    done = set(table[key].drop_duplicates().itertuples(index=False, name=None))
    missing = [job for job in jobs if job not in done]
    for job in tqdm(missing, desc="trainings", unit="training"):
        rows = pd.DataFrame(make(*job))
        new = pd.concat([pd.DataFrame([job] * len(rows), columns=key), rows], axis=1)
        table = pd.concat([table, new], ignore_index=True) if len(table) else new
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
    return table
