"""Two gains that dev decides where training begins from the linear score: of planted attention, and of the score in the end.

`choose`: the gain that planted attention begins with, after an epoch of each.
Some corpora say what a document is about in a few words (diagnoses), others in all of them (a package's description): the
first want sharp attention, the second do better near the plain mean. A gain is trained, but by then the outputs have fitted
what it showed them. Dev tells after one epoch. The best gain's run goes on from its own checkpoint, so that each further gain
costs one epoch; a killed run takes up trials where it left them.

`weigh`: how much the score weighs when training is over. While the head trains, a training document's score comes from the
linear models of the other folds; dev and test documents are scored by models of all training documents, which know more. So
the gain that training arrives at is too small for them, most where documents are many and short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

from plantlib import launch, train
from plantlib.io import read_json


class OneEpoch(TrainerCallback):
    """Ends training with the first epoch, its evaluation and its checkpoint."""

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def folder_of(folder: Path, gain: float) -> Path:
    """Where the run of a gain keeps its checkpoints."""
    return folder / f"gain-{float(gain)!r}"


def choose(
    gains: Iterable[float], begin: Callable[[float], None], fit: Callable[..., list[dict]], folder: Path, metric: str
) -> tuple[float, dict[str, float]]:
    """(gain with the best dev metric after one epoch, the earliest if tied; the metric of each).

    begin(gain) puts the model at that start; fit(folder, callbacks=...) trains it and returns its history. Afterwards the
    model is at the start of the gain chosen, and `fit` in `folder_of` it goes on after the epoch it has had.
    """
    found: dict[float, float] = {}
    for gain in gains:
        own = folder_of(folder, gain)
        with launch.main_first():
            last = train.last_whole_checkpoint(own)
        if last is not None:
            epochs = train.history(read_json(Path(last) / "trainer_state.json")["log_history"])
        else:
            begin(gain)
            epochs = fit(own, callbacks=[OneEpoch()])
        found[gain] = epochs[0][metric]
    best = max(found, key=found.get)
    begin(best)
    return best, {f"{gain:g}": value for gain, value in found.items()}


def weigh(gain: nn.Parameter, multiples: Iterable[float], judge: Callable[[], float]) -> tuple[float, dict[str, float]]:
    """(multiple of `gain` with the best dev metric, the smallest if tied; the metric of each). `gain` is left at the best.

    judge() reads the dev metric of the model that `gain` belongs to, as it stands.
    """
    trained, found = gain.detach().clone(), {}

    def put(multiple: float) -> None:
        with torch.no_grad():
            gain.copy_(multiple * trained)

    for multiple in sorted(multiples):
        put(multiple)
        found[multiple] = judge()
    best = max(found, key=found.get)
    put(best)
    return best, {f"{multiple:g}": round(value, 6) for multiple, value in found.items()}
