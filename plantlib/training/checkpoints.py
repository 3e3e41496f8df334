"""Checkpoints of a Trainer: sealed with checksums when written, verified when read.

A run that was killed goes on from the newest checkpoint that is whole. `io.held` keeps the folder
of a run for one process at a time.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from plantlib.utils.folders import CONTENTS, seal, verify
from plantlib.utils.io import Damaged, read_json

CHECKPOINT = "checkpoint"  # the format of its folder, see `utils.folders`


class SealingTrainer(Trainer):
    """Trainer whose checkpoints list their files with checksums, so that damage is found.

    Of the checkpoints the newest is kept, and the one with the best dev metric.
    """

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir)
        newest = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            # Trainer asks whether the best checkpoint exists before it has written divided weights
            newest.mkdir(parents=True, exist_ok=True)
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # torch has the latter for a full disk
            free = shutil.disk_usage(folder).free
            raise OSError(
                f"no checkpoint could be written to {folder} ({error}), where {free / 1e6:,.0f} MB"
                " are free: make room and begin the run again, which goes on from what it has"
            ) from error
        # every process writes its random state
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        seal(newest, CHECKPOINT)
        best = Path(self.state.best_model_checkpoint or newest)
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if path.name not in (newest.name, best.name):
                shutil.rmtree(path)

    def _load_best_model(self) -> None:
        """Load the best checkpoint of this folder; Damaged if it is not what was written."""
        folder = Path(self.args.output_dir)
        best = folder / Path(self.state.best_model_checkpoint).name
        verify(best, CHECKPOINT, f"delete {folder} to train again")
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole, and whose best one is too; None without one.

    Later ones are deleted: a kill cut them off, or a line says which of their files is damaged. The
    caller holds the lock of the folder (`io.held`).
    """
    while (last := get_last_checkpoint(str(folder)) if folder.is_dir() else None) is not None:
        path = Path(last)
        fix = "it is left out, and training goes on from an earlier one or begins again"
        try:
            verify(path, CHECKPOINT, fix)
            best = read_json(path / "trainer_state.json").get("best_model_checkpoint")
            if best is not None:
                verify(folder / Path(best).name, CHECKPOINT, fix)
            return last
        except Damaged as error:
            if (path / CONTENTS).is_file():
                print(error, file=sys.stderr, flush=True)
            shutil.rmtree(path)
    return None


def stopped_early(checkpoint: Path) -> bool:
    """Whether dev had stopped the run when this checkpoint was written."""
    state = read_json(checkpoint / "trainer_state.json")
    stopping = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    if not stopping:
        return False
    epochs_without_gain = stopping["attributes"]["early_stopping_patience_counter"]
    return epochs_without_gain >= stopping["args"]["early_stopping_patience"]
