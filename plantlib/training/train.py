"""Fine-tuning on transformers.Trainer: parameter groups, dev evaluation by streaming top-k, early
stopping, resume.

Realises METHOD.md section 4, "optimisation", and section 5, "select on dev, touch test once".
Labels go to the loss as positive cells, never dense. Checkpoints, schedules, devices and
distribution are the Trainer's; this file adds what is particular to PLANT: packed batches, learning
rates by group, and an evaluation that never holds (N, L) scores.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from plantlib.metrics.documents import evaluate
from plantlib.model.plant_model import PlantModel
from plantlib.training import schedules
from plantlib.training.evaluation import score
from plantlib.training.inputs import Documents
from plantlib.training.options import CHOSEN_BY, HISTORY_METRICS, TrainConfig
from plantlib.utils.distributed import main_first, on_cpu
from plantlib.utils.io import read_json
from plantlib.utils.progress import tqdm

EPSILON = 1e-8  # of AdamW, PyTorch's default
# Where training begins from the linear score the head takes smaller steps: that score is better
# than what few documents would teach.
LINEAR_RATE = 0.3  # times the rates of queries and outputs
# AdamW takes full steps where gradients are far above its epsilon, however small they are: a label
# that no document of a batch has is pushed down as far as others are up. A larger epsilon leaves
# such labels nearer to their start.
LINEAR_EPSILON = 1e-4


class PlantTrainer(Trainer):
    """Trainer with PLANT's parameter groups and a streaming evaluation; see `fine_tune`."""

    def __init__(
        self,
        *args,
        plant_config: TrainConfig,
        train_counts: np.ndarray,
        from_linear: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.plant_config, self.train_counts = plant_config, train_counts
        self.from_linear = from_linear
        # the loss is a mean over documents, not over "items" that Trainer would count from a labels
        # field
        self.model_accepts_loss_kwargs = False
        # asked now: a stage may switch off for an epoch what the next one trains
        self.frozen = frozen_names(self.model)

    def create_optimizer(self, model=None):
        """AdamW over `schedules.parameter_groups`."""
        if self.optimizer is None:
            rate = LINEAR_RATE if self.from_linear else 1.0
            groups = schedules.parameter_groups(model or self.model, self.plant_config, rate)
            epsilon = LINEAR_EPSILON if self.from_linear else EPSILON
            self.optimizer = torch.optim.AdamW(groups, eps=epsilon)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """transformers' schedules by name, and the one-cycle of PyTorch."""
        if self.plant_config.schedule != "one_cycle":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = schedules.one_cycle(
                optimizer or self.optimizer, num_training_steps, schedules.WARMUP
            )
        return self.lr_scheduler

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of a split, from scores that leave the model only as top-k and ranks."""
        documents = eval_dataset if eval_dataset is not None else self.eval_dataset
        scores, labels = score(
            self.model,
            documents,
            self.train_counts,
            self.args.per_device_eval_batch_size,
            auc=False,
        )
        found = evaluate(scores, labels, self.train_counts, len(self.train_dataset))
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items() if np.isfinite(v)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A checkpoint holds what is trained: a frozen backbone of gigabytes is not written again
        every epoch.
        """
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(
            output_dir,
            state_dict={name: value for name, value in state.items() if name not in self.frozen},
        )

    def _issue_warnings_after_load(self, load_result) -> None:
        """What a checkpoint leaves out is what is frozen; anything else that is missing or unknown
        is an error.
        """
        missing = set(load_result.missing_keys) - self.frozen
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint lacks {sorted(missing)[:3]} and has unknown"
                f" {sorted(load_result.unexpected_keys)[:3]}; delete the run's checkpoint folder to"
                " start it again"
            )


def frozen_names(model: PlantModel) -> set[str]:
    """Parameters and buffers of the backbone that training leaves as they are."""
    if model.backbone is None:
        return set()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {f"backbone.{name}" for name in model.backbone.state_dict()} - trained


class StepBar(TrainerCallback):
    """A bar over a Trainer's steps with time left, from where a resumed run begins."""

    def __init__(self, description: str, show: bool):
        self.description, self.show, self.bar = description, show, None

    def on_train_begin(self, args, state, control, **kwargs):
        options = {
            "total": state.max_steps,
            "initial": state.global_step,
            "desc": self.description,
            "unit": "step",
        }
        self.bar = tqdm(**options, disable=not self.show)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class _Progress(StepBar):
    """The bar with the dev metric, and wall seconds in the log at each evaluation."""

    def __init__(self, metric: str, show: bool):
        super().__init__("fine-tune", show)
        self.metric = metric

    def on_train_begin(self, args, state, control, **kwargs):
        # a resumed run goes on counting where its last epoch ended
        self.begin = time.perf_counter() - max(
            (row.get("seconds", 0.0) for row in state.log_history), default=0.0
        )
        super().on_train_begin(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.log_history:
            state.log_history[-1]["seconds"] = round(time.perf_counter() - self.begin, 2)
        if self.bar is not None and metrics:
            self.bar.set_postfix({f"dev {self.metric}": f"{metrics[f'eval_{self.metric}']:.3f}"})


def fine_tune(
    model: PlantModel,
    train: Documents,
    dev: Documents,
    train_counts: np.ndarray,
    folder: str | Path,
    *,
    config: TrainConfig = TrainConfig(),
    from_linear: bool = False,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    callbacks: Iterable[TrainerCallback] = (),
) -> list[dict]:
    """Train `model` in place, leave it at its best dev epoch, return one dict an epoch (dev
    metrics, loss, seconds).

    from_linear: training begins from the linear score, with LINEAR_RATE and LINEAR_EPSILON. folder
    keeps the checkpoints; with resume a killed run goes on from the last one, to the same numbers.
    """
    folder = Path(folder)
    trainer = PlantTrainer(
        model=model,
        args=_arguments(folder, config, seed),
        train_dataset=train,
        eval_dataset=dev,
        data_collator=train.collate,
        plant_config=config,
        train_counts=train_counts,
        from_linear=from_linear,
        callbacks=[
            EarlyStoppingCallback(config.patience),
            _Progress(CHOSEN_BY, progress),
            *callbacks,
        ],
    )
    if config.stages:
        trainer.add_callback(schedules.Unfreeze(model, config.stages))
    if config.keep_from is not None:
        if not any(model.decoder.keeps):
            raise ValueError(
                f"keep_from={config.keep_from} anneals inattention, but this model attends to all;"
                " set keep="
            )
        trainer.add_callback(
            schedules.Inattention(model.decoder, config.keep_from, config.keep_epochs)
        )
    model.lm_weight, model.label_loss = config.lm_weight, config.loss
    model.still = (
        torch.from_numpy(np.flatnonzero(np.asarray(train_counts) == 0))
        if config.unseen == "still"
        else None
    )
    start(trainer, resume)
    return history(trainer.state.log_history)


def start(trainer: Trainer, resume: bool = True) -> None:
    """Train, from the newest whole checkpoint of the trainer's folder where there is one; nothing
    is printed.
    """
    trainer.remove_callback(PrinterCallback)
    with trainer.args.main_process_first():
        last = last_whole_checkpoint(Path(trainer.args.output_dir)) if resume else None
    if last is not None and stopped_early(Path(last)):
        # the Trainer would forget that dev had stopped the run, and train one more epoch
        trainer.state = TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
        trainer._load_best_model()
        return
    trainer.train(resume_from_checkpoint=last)


def stopped_early(checkpoint: Path) -> bool:
    """Whether dev had stopped the run when this checkpoint was written."""
    kept = (
        read_json(checkpoint / "trainer_state.json")
        .get("stateful_callbacks", {})
        .get("EarlyStoppingCallback")
    )
    if not kept:
        return False
    return (
        kept["attributes"]["early_stopping_patience_counter"]
        >= kept["args"]["early_stopping_patience"]
    )


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint written to its end; what a kill left half-written is removed."""
    for path in folder.glob("checkpoint-*"):
        try:
            read_json(path / "trainer_state.json")  # the last file of a checkpoint
        except (OSError, ValueError):
            shutil.rmtree(path)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _arguments(folder: Path, config: TrainConfig, seed: int = 0) -> TrainingArguments:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        warmup_steps=schedules.WARMUP,
        lr_scheduler_type=_schedule(config),
        seed=seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{CHOSEN_BY}",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        max_grad_norm=0.0,
        label_names=[],
        log_level="error",
        log_level_replica="error",
        # a batch may hold no planted cell, and an encoder may have a pooler that nobody reads
        ddp_find_unused_parameters=True,
        use_cpu=on_cpu(),
    )


def _schedule(config: TrainConfig) -> str:
    """The name that transformers has for a schedule; `PlantTrainer` makes the one-cycle itself."""
    return {"one_cycle": "constant", "constant": "constant_with_warmup"}.get(
        config.schedule, config.schedule
    )


def history(log: list[dict]) -> list[dict]:
    """The Trainer's log as one dict an epoch: epoch, train_loss, seconds, dev metrics."""
    epochs: dict[float, dict] = {}
    for entry in log:
        if "epoch" not in entry or "train_runtime" in entry:
            continue
        row = epochs.setdefault(entry["epoch"], {"epoch": round(entry["epoch"])})
        if "loss" in entry:
            row["train_loss"] = round(entry["loss"], 4)
        if "seconds" in entry:
            row["seconds"] = entry["seconds"]
        row |= {k: round(entry[f"eval_{k}"], 6) for k in HISTORY_METRICS if f"eval_{k}" in entry}
    return [epochs[e] for e in sorted(epochs)]


def chosen_epoch(epochs: list[dict], metric: str = CHOSEN_BY) -> int:
    """The epoch with the best dev metric, the earliest if tied."""
    return max(epochs, key=lambda row: (row[metric], -row["epoch"]))["epoch"]


class OneEpoch(TrainerCallback):
    """Ends training with the first epoch, its evaluation and its checkpoint."""

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def folder_of(folder: Path, gain: float) -> Path:
    """Where the run of a gain keeps its checkpoints."""
    return folder / f"gain-{float(gain)!r}"


def choose(
    gains: Iterable[float],
    begin: Callable[[float], None],
    fit: Callable[..., list[dict]],
    folder: Path,
    metric: str,
) -> tuple[float, dict[str, float]]:
    """(gain with the best dev metric after one epoch, the earliest if tied; the metric of each).

    begin(gain) puts the model at that start; fit(folder, callbacks=...) trains it and returns its
    history. Afterwards the model is at the start of the gain chosen, and `fit` in `folder_of` it
    goes on after the epoch it has had.
    """
    found: dict[float, float] = {}
    for gain in gains:
        own = folder_of(folder, gain)
        with main_first():
            last = last_whole_checkpoint(own)
        if last is not None:
            epochs = history(read_json(Path(last) / "trainer_state.json")["log_history"])
        else:
            begin(gain)
            epochs = fit(own, callbacks=[OneEpoch()])
        found[gain] = epochs[0][metric]
    best = max(found, key=found.get)
    begin(best)
    return best, {f"{gain:g}": value for gain, value in found.items()}


def weigh(
    gain: nn.Parameter, multiples: Iterable[float], judge: Callable[[], float]
) -> tuple[float, dict[str, float]]:
    """(multiple of `gain` with the best dev metric, the smallest if tied; the metric of each).
    `gain` is left at the best.

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
