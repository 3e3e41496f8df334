"""Fine-tuning on transformers.Trainer, and the choices on dev that belong to it.

docs/method.md, "Training" and "Choosing on dev, reading test once". The Trainer handles
checkpoints, schedules, devices and distribution. Added here: packed batches whose labels are
positive cells, learning rates by group, an evaluation that never holds (N, L) scores, resuming
after a kill, and the choice of gains.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from transformers.utils import logging as transformers_logging

from plantlib.metrics.documents import evaluate
from plantlib.model.plant_model import PlantModel
from plantlib.training import schedules, sharding
from plantlib.training.checkpoints import SealingTrainer, last_whole_checkpoint, stopped_early
from plantlib.training.evaluation import score
from plantlib.training.inputs import Documents
from plantlib.training.options import CHOSEN_BY, HISTORY_METRICS, TrainConfig
from plantlib.utils.distributed import LONGEST_WAIT, is_main, on_cpu
from plantlib.utils.io import held
from plantlib.utils.progress import tqdm

EPSILON = 1e-8  # of AdamW, PyTorch's default
# Times the rates of queries and outputs where training begins from the linear score: that score is
# better than what few documents teach, so the head takes smaller steps.
LINEAR_RATE = 0.3
# Of AdamW where training begins from the linear score. AdamW takes full steps while gradients are
# far above its epsilon, so with a tiny one a label that no document of a batch has is pushed down
# as far as others are pushed up. A larger one leaves such labels nearer to their start.
LINEAR_EPSILON = 1e-4


class PlantTrainer(SealingTrainer):
    """Trainer with PLANT's parameter groups and a streaming evaluation; see `fine_tune`.

    Args:
        plant_config: options of fine-tuning.
        train_counts: (L,) training documents per label.
        from_linear: use LINEAR_RATE and LINEAR_EPSILON.
    """

    def __init__(
        self,
        *args,
        plant_config: TrainConfig,
        train_counts: np.ndarray,
        from_linear: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.plant_config = plant_config
        self.train_counts = train_counts
        self.from_linear = from_linear
        # the loss is a mean over documents; Trainer would count items in a field "labels"
        self.model_accepts_loss_kwargs = False
        # listed before training, because a stage may freeze what a later one trains
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
        """The schedule of the options: one of transformers', or PyTorch's one-cycle."""
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
        """Metrics of a split by name, computed from top-k lists and ranks of gold labels."""
        documents = eval_dataset if eval_dataset is not None else self.eval_dataset
        scores, labels = score(
            self.model,
            documents,
            self.train_counts,
            self.args.per_device_eval_batch_size,
            auc=False,
        )
        values = evaluate(scores, labels, self.train_counts, len(self.train_dataset))
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in values.items()
            if np.isfinite(value)
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write a checkpoint without the frozen backbone, which may be gigabytes per epoch."""
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(
            output_dir,
            state_dict={name: value for name, value in state.items() if name not in self.frozen},
        )

    def _issue_warnings_after_load(self, load_result) -> None:
        """Accept a checkpoint that lacks frozen parameters; ValueError for other differences."""
        missing = set(load_result.missing_keys) - self.frozen
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint lacks {sorted(missing)[:3]} and has unknown"
                f" {sorted(load_result.unexpected_keys)[:3]}; delete the run's checkpoint folder to"
                " start it again"
            )


def frozen_names(model: PlantModel) -> set[str]:
    """Names of the backbone's parameters and buffers that training does not change."""
    if model.backbone is None:
        return set()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {f"backbone.{name}" for name in model.backbone.state_dict()} - trained


class StepBar(TrainerCallback):
    """A progress bar over a Trainer's steps; a resumed run starts it where it resumes."""

    def __init__(self, description: str, show: bool):
        self.description = description
        self.show = show
        self.bar = None

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
    """A step bar that shows the dev metric, and logs wall seconds at each evaluation."""

    def __init__(self, metric: str, show: bool, what: str = ""):
        super().__init__(f"fine-tune, {what}" if what else "fine-tune", show)
        self.metric = metric

    def on_train_begin(self, args, state, control, **kwargs):
        # a resumed run counts on from the seconds of its last epoch
        elapsed = max((row.get("seconds", 0.0) for row in state.log_history), default=0.0)
        self.began = time.perf_counter() - elapsed
        super().on_train_begin(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.log_history:
            state.log_history[-1]["seconds"] = round(time.perf_counter() - self.began, 2)
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
    what: str = "",
    callbacks: Iterable[TrainerCallback] = (),
) -> list[dict]:
    """Train `model` in place and leave it at its best dev epoch.

    Args:
        model: planted, with a backbone or for cached features.
        train: training documents.
        dev: dev documents; their `CHOSEN_BY` chooses the epoch.
        train_counts: (L,) training documents per label.
        folder: where checkpoints are written.
        config: options of fine-tuning.
        from_linear: training begins from the linear score; use LINEAR_RATE and LINEAR_EPSILON.
        seed: of data order and dropout.
        resume: continue from the last checkpoint in `folder`, to the numbers of a run that was
            never interrupted.
        progress: show a progress bar.
        what: said on the bar beside "fine-tune".
        callbacks: of the Trainer, beside its own.

    Returns:
        one dict per epoch, see `history`.

    Raises:
        ValueError: keep_from is set and the model has no inattention, a checkpoint in `folder` does
            not fit the model, or FSDP meets stages or a model without a backbone.
    """
    if sharding.is_sharded():
        if config.stages:
            raise ValueError("stages switch parameters that FSDP replaces; leave stages out")
        sharding.check_documents(train.tokens.lengths[train.rows], model.config.window)
    folder = Path(folder)
    set_loss(model, config, train_counts)
    with sharding.sharded(model) as trained:
        trainer = PlantTrainer(
            model=trained,
            args=_arguments(folder, config, seed),
            train_dataset=train,
            eval_dataset=dev,
            data_collator=train.collate,
            plant_config=config,
            train_counts=train_counts,
            from_linear=from_linear,
            callbacks=[EarlyStoppingCallback(config.patience), _Progress(CHOSEN_BY, progress, what)]
            + list(callbacks),
        )
        add_schedules(trainer, trained, config)
        start(trainer, resume)
    return history(trainer.state.log_history)


def set_loss(model: PlantModel, config: TrainConfig, train_counts: np.ndarray) -> None:
    """Set the options of the model's loss; arguments as for `fine_tune`."""
    model.lm_weight = config.lm_weight
    model.label_loss = config.loss
    model.still = None
    if config.unseen == "still":
        model.still = torch.from_numpy(np.flatnonzero(np.asarray(train_counts) == 0))


def add_schedules(trainer: Trainer, model: PlantModel, config: TrainConfig) -> None:
    """Add what changes from epoch to epoch: stages of unfreezing and annealed inattention.

    Raises:
        ValueError: keep_from is set and the model has no inattention.
    """
    if config.stages:
        trainer.add_callback(schedules.Unfreeze(model, config.stages))
    if config.keep_from is None:
        return
    if not any(model.decoder.keeps):
        raise ValueError(
            f"keep_from={config.keep_from} anneals inattention, but this model attends to all"
            " tokens; set keep"
        )
    trainer.add_callback(schedules.Inattention(model.decoder, config.keep_from, config.keep_epochs))


def start(trainer: Trainer, resume: bool = True) -> None:
    """Train without printing; resume: continue from the newest whole checkpoint, if any.

    One process at a time trains in the trainer's folder.
    """
    trainer.remove_callback(PrinterCallback)
    folder = Path(trainer.args.output_dir)
    with held(folder) if is_main() else contextlib.nullcontext():
        with trainer.args.main_process_first():
            last = last_whole_checkpoint(folder) if resume else None
        _train_from(trainer, last)


def _train_from(trainer: Trainer, last: str | None) -> None:
    """Train from the checkpoint `last`, or from the beginning."""
    if last is not None and stopped_early(Path(last)):
        # Trainer does not remember that dev stopped the run, and would train one more epoch
        trainer.state = TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
        trainer._load_best_model()
        return
    trainer.train(resume_from_checkpoint=last)


def _arguments(folder: Path, config: TrainConfig, seed: int = 0) -> TrainingArguments:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available() and not on_cpu()
    arguments = TrainingArguments(
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
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{CHOSEN_BY}",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        # while a GPU trains on one batch, a process reads the next ones
        dataloader_num_workers=1 if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},
        max_grad_norm=0.0,
        label_names=[],
        log_level="error",
        log_level_replica="error",
        # a batch may have no planted cell, and the pooler of an encoder is not used
        ddp_find_unused_parameters=True,
        use_cpu=on_cpu(),
        ddp_timeout=int(LONGEST_WAIT.total_seconds()),
    )
    return one_device(arguments)


def one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Let this process use one GPU, also where it sees several.

    Trainer would wrap the model in DataParallel, which cuts every tensor of a packed batch at the
    same share of its length. Several GPUs are for several processes (`accelerate launch`).
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _schedule(config: TrainConfig) -> str:
    """The schedule's name in transformers; `PlantTrainer` makes the one-cycle itself."""
    names = {"one_cycle": "constant", "constant": "constant_with_warmup"}
    return names.get(config.schedule, config.schedule)


def history(log: list[dict]) -> list[dict]:
    """The Trainer's log as one dict per epoch.

    Its keys are epoch (from 1), train_loss, seconds (wall time so far) and `HISTORY_METRICS` of
    dev, as far as the log has them.
    """
    epochs: dict[float, dict] = {}
    for entry in log:
        if "epoch" not in entry or "train_runtime" in entry:
            continue
        row = epochs.setdefault(entry["epoch"], {"epoch": round(entry["epoch"])})
        if "loss" in entry:
            row["train_loss"] = round(entry["loss"], 4)
        if "seconds" in entry:
            row["seconds"] = entry["seconds"]
        row |= {
            name: round(entry[f"eval_{name}"], 6)
            for name in HISTORY_METRICS
            if f"eval_{name}" in entry
        }
    return [epochs[epoch] for epoch in sorted(epochs)]


def chosen_epoch(epochs: list[dict], metric: str = CHOSEN_BY) -> int:
    """The number of the epoch with the best dev metric, the earliest if tied; from 1."""
    return max(epochs, key=lambda row: (row[metric], -row["epoch"]))["epoch"]


def folder_of(folder: Path, gain: float) -> Path:
    """Folder of the checkpoints of the run with this gain."""
    return folder / f"gain-{float(gain)!r}"


@dataclass(frozen=True)
class Trained:
    """What one training made, kept for the other starts of a grid that train the same.

    Attributes:
        history: one dict per epoch.
        values: the trained parameters by name.
        seconds, cpu: wall and CPU seconds that it took.
    """

    history: list[dict]
    values: dict[str, torch.Tensor]
    seconds: float
    cpu: float

    @property
    def device(self) -> torch.device:
        """Where it was trained."""
        return next(iter(self.values.values())).device


def choose(
    gains: Sequence[float],
    begin: Callable[[float], None],
    fit: Callable[..., list[dict]],
    judge: Callable[[], np.ndarray],
    folder: Path,
) -> tuple[list[dict], dict]:
    """Train to the end from each gain, and keep the least one that dev cannot tell from the best.

    A gain is told from the best where the mean of the paired differences on dev is more than one
    standard error below 0: the rule by which Breiman et al. (1984, 3.4.3) choose the simplest of
    several models. The model is left as it was trained from the chosen gain. What a killed process
    has trained is not trained again.

    Args:
        gains: initial gains.
        begin: begin(gain) sets the model to the start with that gain.
        fit: fit(folder, what) trains the model and returns its `history`; what names the gain.
        judge: judge() returns the dev metric of the model per document, (n,).
        folder: holds one folder of checkpoints per gain.

    Returns:
        the history of the chosen gain, and what the record says of the choice: gain_chosen; and by
        gain, written as text, gains_tried, the dev metric, and gains_behind, how far it is behind
        the best, in standard errors.
    """
    histories = {}
    values = {}

    def train_from(gain: float) -> None:
        begin(gain)
        histories[gain] = fit(folder_of(folder, gain), f"gain {gain:g}" * (len(gains) > 1))

    for gain in gains:
        train_from(gain)
        values[gain] = judge()
    best = max(gains, key=lambda gain: values[gain].mean())
    behind = {gain: standard_errors(values[best] - values[gain]) for gain in gains}
    chosen = min(gain for gain in gains if behind[gain] <= 1.0)
    if chosen != gains[-1]:
        train_from(chosen)
    told = {
        "gain_chosen": chosen,
        "gains_tried": {f"{gain:g}": round(float(values[gain].mean()), 6) for gain in gains},
        "gains_behind": {f"{gain:g}": round(behind[gain], 3) for gain in gains},
    }
    return histories[chosen], told


def standard_errors(differences: np.ndarray) -> float:
    """The mean of paired differences (n,) in its standard errors; 0 where all are equal to 0."""
    mean = float(differences.mean())
    if len(differences) < 2 or mean == 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return mean / error if error else math.copysign(math.inf, mean)


def weigh(
    gain: nn.Parameter, multiples: Iterable[float], judge: Callable[[], float]
) -> tuple[float, dict[str, float]]:
    """Multiply a trained gain in place by the factor with the best dev metric.

    Args:
        gain: scalar parameter of the model.
        multiples: factors to try.
        judge: judge() returns the dev metric of the model with the gain as it is set.

    Returns:
        the chosen factor, the smallest if tied, and the metric by factor, written as text.
    """
    trained = gain.detach().clone()
    scores: dict[float, float] = {}

    def scale(multiple: float) -> None:
        with torch.no_grad():
            gain.copy_(multiple * trained)

    for multiple in sorted(multiples):
        scale(multiple)
        scores[multiple] = judge()
    best = max(scores, key=scores.get)
    scale(best)
    return best, {f"{multiple:g}": round(value, 6) for multiple, value in scores.items()}
