"""The options of a run: `RunConfig` holds them all, and `TrainConfig` those of fine-tuning.

docs/method.md, "Training", "Starts" and "The decoder". Options of single parts are defined beside
those parts and gathered here. The code that acts on them is in `runs`, `train` and `schedules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from plantlib.backbones import adapters
from plantlib.backbones.adapters import BackboneOptions, LoraOptions
from plantlib.linear.score import LinearConfig
from plantlib.planting.decoder import check_decoder
from plantlib.planting.l2r import TRAINERS, L2RConfig
from plantlib.planting.starts import StartConfig, V1Config, from_score, plants_phrases
from plantlib.planting.static_l2r import DIM
from plantlib.teacher.mig import TeacherConfig
from plantlib.utils.checks import check_fields

# "head" trains the head alone, "last 2" the head and the two deepest layers, "all" everything
STAGE = re.compile(r"head|all|last [1-9]\d*")
SCHEDULES = ("linear", "cosine", "one_cycle", "constant")
LOSSES = ("bce", "approx_ndcg")
UNSEEN = ("negatives", "still")  # see `TrainConfig.unseen`
HISTORY_METRICS = ("p@1", "p@5", "ndcg@5", "psp@5", "map", "few/rp@5")  # of dev, in every record
# the dev metric that chooses epoch and gains: it reflects the order of the best labels, and
# frequent labels more than rare ones
CHOSEN_BY = "ndcg@5"


def check_stages(stages: Iterable[str]) -> None:
    """ValueError for a stage that `STAGE` does not match."""
    for stage in stages:
        if not STAGE.fullmatch(stage):
            raise ValueError(
                f"stage {stage!r} is not known; use 'head', 'last N' (layers, with the head) or"
                " 'all'"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Options of fine-tuning; docs/method.md, "Training".

    Attributes:
        epochs: passes over the training documents, at most; see patience.
        batch_size: documents per batch and device.
        accumulation: batches per optimizer step.
        lr_queries: learning rate of the label queries.
        lr_backbone: learning rate of the backbone's deepest layer, where the backbone is trained.
        layer_decay: divides the backbone's rate once per layer further down; 1 gives all layers one
            rate, v1 used 2.6.
        schedule: how the rates change after warm-up: "linear", "cosine" and "one_cycle" fall to
            zero, "constant" stays.
        stages: gradual unfreezing, one stage per epoch: "head", "last N" or "all"; the last one
            holds to the end. () trains everything from the first epoch.
        keep_from: inattention's K in the first epoch, in tokens, from where it falls to
            `RunConfig.keep`; None keeps K fixed.
        keep_epochs: epochs over which K falls; 0 with keep_from=None.
        lm_weight: weight of the language model's own loss beside that of the labels, while a
            backbone is trained; 0 leaves it out.
        loss: "bce", binary cross-entropy summed over labels, or "approx_ndcg" over the labels of
            each document.
        unseen: what labels without a training document are in the loss: "negatives" of every
            document, or "still", left out, so that their planted values stay.
        patience: epochs without a better dev metric after which training stops.

    Raises:
        ValueError: an option is out of range or unknown, or one of keep_from and keep_epochs is
            missing.
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
        check_fields(self)
        for name in ("epochs", "batch_size", "accumulation", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")
        for name in ("lr_queries", "lr_backbone"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a rate of 0 or more")
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
                " each 1 or more; otherwise set neither"
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
    """Every option of a run from a corpus to a trained model.

    Attributes:
        teacher: how tokens are scored and kept for each label.
        l2r: training of label queries by learning to rank.
        start: values that a start plants, such as the gain of the lookup.
        linear: the linear score over words.
        other_gains: initial gains of the lookup that are tried beside start.lookup_gain; with 0
            nothing is planted. The least gain is kept that dev cannot tell from the best, after
            training to the end from each. Used with a linear score and a frozen backbone; () tries
            none.
        linear_weights: multiples of the linear score's trained gain; dev chooses one after
            training. Used with a frozen backbone; () leaves the gain as trained.
        train: fine-tuning.
        l2r_trainer: the loss, or "closed_form", that pretrains the label queries of the start
            `l2r`; one of `planting.l2r.TRAINERS`.
        keep: inattention's K, the tokens that each label attends to per document; None attends to
            all. With v1.contexts="sum" three values, one per context.
        v1: options of the first version.
        static_dim: dimension of the static L2R model, where v1 needs one; 400 as first published.
        tuning: what is trained of the backbone: "frozen" nothing, "lora" adapters, "full" all.
        lora: rank, alpha, dropout and targets of the adapters.
        backbone: how a backbone is loaded for training.

    Raises:
        ValueError: an option is out of range or unknown, or two options exclude each other.

    Example:
        >>> from plantlib import RunConfig
        >>> from plantlib.training.options import TrainConfig
        >>> RunConfig(train=TrainConfig(epochs=2)).train.epochs
        2
    """

    teacher: TeacherConfig = TeacherConfig()
    l2r: L2RConfig = L2RConfig()
    start: StartConfig = StartConfig()
    linear: LinearConfig = LinearConfig()
    other_gains: tuple[float, ...] = (0.0,)
    linear_weights: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    train: TrainConfig = TrainConfig()
    l2r_trainer: str = "approx_ndcg"
    keep: int | tuple[int | None, ...] | None = None
    v1: V1Config = V1Config()
    static_dim: int = DIM
    tuning: str = "frozen"
    lora: LoraOptions = LoraOptions()
    backbone: BackboneOptions = BackboneOptions()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.static_dim < 1:
            raise ValueError(f"static_dim={self.static_dim}; give at least 1")
        adapters.check_tuning(self.tuning, self.backbone.quantise)
        if self.l2r_trainer not in TRAINERS:
            raise ValueError(
                f"l2r_trainer={self.l2r_trainer!r} is not known; use one of {', '.join(TRAINERS)}"
            )
        check_decoder(self.v1.contexts, self.v1.stateful, self.keep, 1)
        if self.train.lm_weight and self.tuning == "frozen":
            raise ValueError(
                "lm_weight needs a backbone that is trained; use tuning='full' or 'lora', or"
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
        """Initial gains of the lookup to try for a start; dev chooses if there are several.

        Args:
            parts: the names that the start joins by "+".

        Returns:
            `start.lookup_gain` first, then `other_gains` where `has_gains`; no gain twice.
        """
        others = self.other_gains if self.has_gains(parts) else ()
        return list(dict.fromkeys([self.start.lookup_gain, *others]))

    def has_gains(self, parts: list[str]) -> bool:
        """Whether a start of these parts tries several gains of its lookup.

        It does where training begins from the linear score and changes the head alone.
        """
        return (
            (bool({"lookup", "shuffled"} & set(parts)) or plants_phrases(parts))
            and from_score(parts)
            and self.tuning == "frozen"
        )

    def weights_for(self, parts: list[str]) -> tuple[float, ...]:
        """Multiples of the linear score's trained gain to try for a start of these parts.

        Each one is judged by scoring dev again, so there are none unless features are cached.
        """
        return self.linear_weights if from_score(parts) and self.tuning == "frozen" else ()

    def train_for(self, parts: list[str]) -> TrainConfig:
        """Options of fine-tuning for a start of these parts.

        With `text`, labels without a training document are left out of the loss, so that what
        their descriptions planted stays.
        """
        return replace(self.train, unseen="still") if "text" in parts else self.train
