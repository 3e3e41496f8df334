"""Every option of a run: what is taught, planted and trained. Not here: what the options do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from plantlib.backbones import adapters
from plantlib.backbones.adapters import BackboneOptions, LoraOptions
from plantlib.linear.score import LinearConfig
from plantlib.planting.decoder import check_decoder
from plantlib.planting.l2r import TRAINERS, L2RConfig
from plantlib.planting.starts import StartConfig, V1Config
from plantlib.planting.static_l2r import DIM
from plantlib.teacher.mig import TeacherConfig

# "head"; "last 2": the head and the two deepest layers; "all"
STAGE = re.compile(r"head|all|last [1-9]\d*")
SCHEDULES = ("linear", "cosine", "one_cycle", "constant")


def check_stages(stages: Iterable[str]) -> None:
    """ValueError for a stage that is not known."""
    for stage in stages:
        if not STAGE.fullmatch(stage):
            raise ValueError(
                f"stage {stage!r} is not known; use 'head', 'last N' (layers, with the head) or"
                " 'all'"
            )


LOSSES = ("bce", "approx_ndcg")  # over the labels of a document
UNSEEN = ("negatives", "still")
HISTORY_METRICS = ("p@1", "p@5", "ndcg@5", "psp@5", "map", "few/rp@5")
CHOSEN_BY = (
    "ndcg@5"  # the dev metric that chooses epoch and gains: it sees order and frequent labels
)


@dataclass(frozen=True)
class TrainConfig:
    """Options of one fine-tuning run.

    layer_decay: the backbone's rate is divided by it per layer further down (2.6 as first
    published). stages: what is trained from which epoch on, see `schedules`; all from the start by
    default. keep_from, keep_epochs: inattention's K falls from keep_from to the run's K over so
    many epochs; fixed by default. lm_weight: of the language model's own loss beside the labels',
    while a backbone is trained. unseen: labels without a training document are "negatives"
    everywhere, or "still": out of the loss, so that what was planted for them stays.
    """

    epochs: int = 4
    batch_size: int = 16
    accumulation: int = 1
    lr_queries: float = 1e-2
    lr_backbone: float = 2e-4
    layer_decay: float = 1.0
    schedule: str = "linear"
    stages: tuple[str, ...] = ()
    keep_from: int | None = None
    keep_epochs: int = 0
    lm_weight: float = 0.0
    loss: str = "bce"
    unseen: str = "negatives"
    patience: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule={self.schedule!r} is not known; use one of {', '.join(SCHEDULES)}"
            )
        if self.layer_decay <= 0:
            raise ValueError(
                f"layer_decay={self.layer_decay}; give a number above 0, 1 for one rate in all"
                " layers"
            )
        check_stages(self.stages)
        if (
            (self.keep_from is None) != (self.keep_epochs == 0)
            or self.keep_epochs < 0
            or (self.keep_from or 1) < 1
        ):
            raise ValueError(
                f"keep_from={self.keep_from}, keep_epochs={self.keep_epochs}: annealing wants both,"
                " 1 or more; else neither"
            )
        for name, known in (("loss", LOSSES), ("unseen", UNSEEN)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known; use one of {', '.join(known)}"
                )
        if self.lm_weight < 0:
            raise ValueError(f"lm_weight={self.lm_weight}; give at least 0")


@dataclass(frozen=True)
class RunConfig:
    """Everything a fine-tuning run can be asked for."""

    teacher: TeacherConfig = TeacherConfig()
    l2r: L2RConfig = L2RConfig()
    start: StartConfig = StartConfig()
    linear: LinearConfig = LinearConfig()
    # of a lookup beside the linear score: dev chooses among them and start.lookup_gain
    other_gains: tuple[float, ...] = (1.0,)
    # of the gain that the linear score has after training there: dev chooses one; () leaves the
    # gain as trained
    linear_weights: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    train: TrainConfig = TrainConfig()
    l2r_trainer: str = "approx_ndcg"
    # inattention's K, or three with v1.contexts="sum"
    keep: int | tuple[int | None, ...] | None = None
    v1: V1Config = V1Config()
    static_dim: int = DIM  # d of the static L2R model
    tuning: str = "frozen"  # or "lora", "full": what is trained of the backbone
    lora: LoraOptions = LoraOptions()
    backbone: BackboneOptions = BackboneOptions()

    def __post_init__(self) -> None:
        adapters.check_tuning(self.tuning, self.backbone.quantise)
        if self.l2r_trainer not in TRAINERS:
            raise ValueError(
                f"l2r_trainer={self.l2r_trainer!r} is not known; use one of {', '.join(TRAINERS)}"
            )
        check_decoder(self.v1.contexts, self.v1.stateful, self.keep, 1)
        if self.train.lm_weight and self.tuning == "frozen":
            raise ValueError(
                "lm_weight wants a backbone that is trained; use tuning='full' or 'lora', or"
                " lm_weight=0"
            )
        if any(gain < 0 for gain in self.other_gains):
            raise ValueError(
                f"other_gains={self.other_gains}; give gains of 0 or more, or () for"
                " start.lookup_gain alone"
            )
        if any(weight <= 0 for weight in self.linear_weights):
            raise ValueError(
                f"linear_weights={self.linear_weights}; give multiples above 0, or () for the gain"
                " as trained"
            )

    def gains_for(self, parts: list[str]) -> list[float]:
        """Lookup gains among which dev chooses for a start of these parts; one means that there is
        no choice.

        The first one is `start.lookup_gain`.
        """
        return list(
            dict.fromkeys(
                [self.start.lookup_gain, *(self.other_gains if self.has_gains(parts) else ())]
            )
        )

    def has_gains(self, parts: list[str]) -> bool:
        """Whether there is a choice: training begins from the linear score, and a trial changes
        nothing but the head.
        """
        return (
            bool({"lookup", "shuffled"} & set(parts))
            and "linear" in parts
            and self.tuning == "frozen"
        )

    def weights_for(self, parts: list[str]) -> tuple[float, ...]:
        """Multiples of the linear score's trained gain among which dev chooses; each reads dev, so
        on cached features alone.
        """
        return self.linear_weights if "linear" in parts and self.tuning == "frozen" else ()

    def train_for(self, parts: list[str]) -> TrainConfig:
        """Training options for a start of these parts: what labels without documents were taught by
        their words stays.
        """
        return replace(self.train, unseen="still") if "text" in parts else self.train
