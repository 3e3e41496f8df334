"""Learning rates by group and depth, and gradual unfreezing, as the first published PLANT trains:
by depth, stage by stage.

Realises METHOD.md section 4, "optimisation: discriminative learning rates and gradual unfreezing
(v1)". Depth is read from the names of the backbone's parameters: embeddings are depth 0, layer i is
depth i + 1, what comes after the layers belongs to the last. A stage names what is trained from its
epoch on; the callback only switches gradients, the optimizer knows all from the start, so a killed
run resumes in the right stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from plantlib.training.options import TrainConfig, check_stages

if TYPE_CHECKING:
    import torch


def depths(names: Iterable[str]) -> dict[str, int]:
    """Depth of each backbone parameter, 0 for embeddings, as the names say it; adapters lie where
    their layer lies.
    """
    names = list(names)
    numbers = {
        n: int(found[1]) + 1 for n in names if (found := re.search(r"\blayers?\.(\d+)\.", n))
    }
    deepest = max(numbers.values(), default=1)
    return {n: numbers.get(n, 0 if "embed" in n else deepest) for n in names}


def layer_rates(names: Iterable[str], rate: float, decay: float) -> dict[str, float]:
    """Learning rate of each backbone parameter: `rate` in the deepest layer, divided by `decay` a
    layer further down.
    """
    found = depths(names)
    deepest = max(found.values(), default=0)
    return {name: rate / decay ** (deepest - depth) for name, depth in found.items()}


LR_OUTPUTS = 1e-2  # of label outputs and biases, as large as that of the queries by default
LR_GAINS = 1e-2  # of the gains, which no start slows down
WEIGHT_DECAY = 0.0  # it would pull what was planted towards zero
WARMUP = 0.1  # share of the steps in which the rates rise


def parameter_groups(model, config: TrainConfig, head_rate: float = 1.0) -> list[dict]:
    """Optimizer groups: queries, outputs and bias, gains, backbone by depth; every trainable
    parameter is in exactly one.

    head_rate: multiplies the rates of queries and outputs.
    """
    rates = {
        "queries": head_rate * config.lr_queries,
        "outputs": head_rate * LR_OUTPUTS,
        "gains": LR_GAINS,
    }
    groups: dict[str, list] = {"queries": [], "outputs": [], "gains": []}
    backbone: dict[str, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.rsplit(".", 1)[-1]
        kind = {
            "label_queries": "queries",
            "label_outputs": "outputs",
            "label_bias": "outputs",
        }.get(last)
        kind = kind or ("gains" if last.endswith("_gain") else None)
        if kind:
            groups[kind].append(parameter)
        else:
            backbone[name] = parameter
    found = [
        {"params": p, "lr": rates[k], "weight_decay": 0.0 if k == "gains" else WEIGHT_DECAY}
        for k, p in groups.items()
        if p
    ]
    by_rate: dict[float, list] = {}
    for name, rate in layer_rates(backbone, config.lr_backbone, config.layer_decay).items():
        by_rate.setdefault(rate, []).append(backbone[name])
    return found + [
        {"params": p, "lr": rate, "weight_decay": WEIGHT_DECAY}
        for rate, p in sorted(by_rate.items())
    ]


def trained_in(stage: str, names: Iterable[str]) -> set[str]:
    """Which backbone parameters are trained in a stage."""
    found = depths(names)
    if stage == "all":
        return set(found)
    if stage == "head":
        return set()
    lowest = max(found.values(), default=0) - int(stage.split()[1])
    return {name for name, depth in found.items() if depth > lowest}


class Unfreeze(TrainerCallback):
    """Stage i from epoch i on, the last one to the end: switches `requires_grad` of what training
    may touch at all.
    """

    def __init__(self, model, stages: tuple[str, ...]):
        check_stages(stages)
        self.stages = stages
        self.parameters = {
            n.removeprefix("backbone."): p
            for n, p in model.named_parameters()
            if n.startswith("backbone.") and p.requires_grad
        }

    def enter(self, epoch: int) -> None:
        """Switch to the stage of an epoch, counted from 0."""
        wanted = trained_in(self.stages[min(epoch, len(self.stages) - 1)], self.parameters)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in wanted)
            if name not in wanted:
                parameter.grad = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.enter(int(round(state.epoch or 0)))

    def on_train_end(self, args, state, control, **kwargs):
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)


class Inattention(TrainerCallback):
    """Anneals inattention's K: from `begin` tokens down to the decoder's own K, by equal factors
    over `epochs` epochs.

    Dev is always read with the K that the model will be used with, so that the choice of the epoch
    is one about that model.
    """

    def __init__(self, decoder, begin: int, epochs: int):
        self.decoder, self.begin, self.epochs, self.keep = decoder, begin, epochs, decoder.keep

    def keep_of(self, epoch: int) -> int | list:
        """K in an epoch, counted from 0; the decoder's own one from `epochs` on."""
        if epoch >= self.epochs:
            return self.keep
        share = epoch / self.epochs

        def annealed(k: int | None) -> int | None:
            if k is None or k >= self.begin:
                return k
            return round(self.begin ** (1 - share) * k**share)

        return (
            [annealed(k) for k in self.keep]
            if isinstance(self.keep, (list, tuple))
            else annealed(self.keep)
        )

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.decoder.keep = self.keep_of(int(round(state.epoch or 0)))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.decoder.keep = self.keep


def one_cycle(optimizer, steps: int, warmup: float):
    """Rates rise over the first share of the steps and fall as a cosine, momentum the other way
    round; one step an update.
    """
    from torch.optim.lr_scheduler import OneCycleLR

    rates = [group["lr"] for group in optimizer.param_groups]
    # a number of steps, as for the other schedules, or a share of them; a rise of one step would
    # divide by its length of zero
    share = warmup / steps if warmup > 1 else max(warmup, 0.01)
    share = min(max(share, 2 / (steps + 1)), 1.0)
    return OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=share)
