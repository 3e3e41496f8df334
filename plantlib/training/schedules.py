"""Learning rates by group and depth, gradual unfreezing, and annealed inattention.

docs/method.md, "Training" and "The first version (v1)". A parameter's depth is read from its name:
embeddings have depth 0, layer i has depth i + 1, and what follows the layers has the last one's.
The optimizer holds every parameter from the start and a stage only switches gradients on and off,
so a killed run resumes in the right stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from plantlib.training.options import TrainConfig, check_stages

if TYPE_CHECKING:
    import torch

LR_OUTPUTS = 1e-2  # of label outputs and biases; the default of the queries
LR_GAINS = 1e-2  # of the gains; the same for every start
WEIGHT_DECAY = 0.0  # it would pull planted values towards zero
WARMUP = 0.1  # share of the steps in which the rates rise
HEAD_GROUPS = {"label_queries": "queries", "label_outputs": "outputs", "label_bias": "outputs"}


def depths(names: Iterable[str]) -> dict[str, int]:
    """Depth of each backbone parameter, by name; an adapter has the depth of its layer."""
    names = list(names)
    layer_depths = {
        name: int(match[1]) + 1
        for name in names
        if (match := re.search(r"\blayers?\.(\d+)\.", name))
    }
    deepest = max(layer_depths.values(), default=1)
    return {name: layer_depths.get(name, 0 if "embed" in name else deepest) for name in names}


def layer_rates(names: Iterable[str], rate: float, decay: float) -> dict[str, float]:
    """Learning rate of each backbone parameter, by name.

    Args:
        names: the parameters.
        rate: rate of the deepest layer.
        decay: divides the rate once per layer further down.
    """
    depth_of = depths(names)
    deepest = max(depth_of.values(), default=0)
    return {name: rate / decay ** (deepest - depth) for name, depth in depth_of.items()}


def parameter_groups(model, config: TrainConfig, head_rate: float = 1.0) -> list[dict]:
    """Optimizer groups: queries, outputs with biases, gains, and the backbone by depth.

    Args:
        model: its trainable parameters are each put into exactly one group.
        config: rates of queries and backbone.
        head_rate: multiplies the rates of queries and outputs.

    Returns:
        one dict per group that is not empty, as torch optimizers take them: params, lr and
        weight_decay.
    """
    rates = {
        "queries": head_rate * config.lr_queries,
        "outputs": head_rate * LR_OUTPUTS,
        "gains": LR_GAINS,
    }

    # sort the trainable parameters by the last part of their names
    groups: dict[str, list] = {"queries": [], "outputs": [], "gains": []}
    backbone: dict[str, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.removesuffix(".original").rsplit(".", 1)[-1]  # see `sharding`
        group = "gains" if last.endswith("_gain") else HEAD_GROUPS.get(last)
        if group:
            groups[group].append(parameter)
        else:
            backbone[name] = parameter
    head = [
        {
            "params": parameters,
            "lr": rates[group],
            "weight_decay": 0.0 if group == "gains" else WEIGHT_DECAY,
        }
        for group, parameters in groups.items()
        if parameters
    ]

    # the backbone has one group per rate
    by_rate: dict[float, list] = {}
    for name, rate in layer_rates(backbone, config.lr_backbone, config.layer_decay).items():
        by_rate.setdefault(rate, []).append(backbone[name])
    return head + [
        {"params": parameters, "lr": rate, "weight_decay": WEIGHT_DECAY}
        for rate, parameters in sorted(by_rate.items())
    ]


def trained_in(stage: str, names: Iterable[str]) -> set[str]:
    """The backbone parameters that a stage trains; stage: "head", "last N" or "all"."""
    depth_of = depths(names)
    if stage == "all":
        return set(depth_of)
    if stage == "head":
        return set()
    lowest = max(depth_of.values(), default=0) - int(stage.split()[1])
    return {name for name, depth in depth_of.items() if depth > lowest}


class Unfreeze(TrainerCallback):
    """Gradual unfreezing: switches `requires_grad` of the backbone's parameters at each epoch.

    Parameters that are frozen when the callback is made stay frozen.

    Args:
        model: its backbone's parameters are switched.
        stages: stage i holds in epoch i, counted from 0, and the last one to the end.

    Raises:
        ValueError: an unknown stage.
    """

    def __init__(self, model, stages: tuple[str, ...]):
        check_stages(stages)
        self.stages = stages
        self.parameters = {
            name.removeprefix("backbone."): parameter
            for name, parameter in model.named_parameters()
            if name.startswith("backbone.") and parameter.requires_grad
        }

    def enter(self, epoch: int) -> None:
        """Switch to the stage of an epoch, counted from 0."""
        stage = self.stages[min(epoch, len(self.stages) - 1)]
        trained = trained_in(stage, self.parameters)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in trained)
            if name not in trained:
                parameter.grad = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.enter(int(round(state.epoch or 0)))

    def on_train_end(self, args, state, control, **kwargs):
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)


class Inattention(TrainerCallback):
    """Anneals inattention's K from `begin` tokens to the decoder's K, by equal factors per epoch.

    Dev is always read with the decoder's K, so the epoch is chosen for the model that is used.

    Args:
        decoder: a `LabelDecoder`; its `keep` is K, or one K per context.
        begin: K of the first epoch, in tokens.
        epochs: epochs over which K falls.
    """

    def __init__(self, decoder, begin: int, epochs: int):
        self.decoder = decoder
        self.begin = begin
        self.epochs = epochs
        self.keep = decoder.keep

    def keep_of(self, epoch: int) -> int | list:
        """K in an epoch, counted from 0; the decoder's K from epoch `epochs` on."""
        if epoch >= self.epochs:
            return self.keep
        share = epoch / self.epochs

        def annealed(k: int | None) -> int | None:
            if k is None or k >= self.begin:
                return k
            return round(self.begin ** (1 - share) * k**share)

        if isinstance(self.keep, (list, tuple)):
            return [annealed(k) for k in self.keep]
        return annealed(self.keep)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.decoder.keep = self.keep_of(int(round(state.epoch or 0)))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.decoder.keep = self.keep


def one_cycle(optimizer, steps: int, warmup: float):
    """PyTorch's one-cycle schedule: rates rise, then fall as a cosine; momentum does the opposite.

    Args:
        optimizer: the rate of each of its groups is the highest of the cycle.
        steps: optimizer steps of the whole training.
        warmup: how long the rates rise: a share of the steps, or a number of steps if above 1.

    Returns:
        the scheduler, to be stepped once per optimizer step.
    """
    from torch.optim.lr_scheduler import OneCycleLR

    rates = [group["lr"] for group in optimizer.param_groups]
    share = warmup / steps if warmup > 1 else max(warmup, 0.01)
    # OneCycleLR divides by the length of the rise less one, so the rise has two steps at least
    share = min(max(share, 2 / (steps + 1)), 1.0)
    return OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=share)
