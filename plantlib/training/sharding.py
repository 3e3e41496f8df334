"""Training with the weights divided among GPUs (FSDP 2), and the whole model after it.

runs/accelerate/fsdp.yaml. FSDP replaces parameters and takes no scalars, so a copy of the model's
modules is trained, whose gains are vectors of one number. Its parameters are the model's own, which
has none while the copy is trained: every process holds its share alone. Afterwards the model gets
the trained values, whole in every process. The processes wait for each other in every pass through
the backbone, so all of them must make as many: `check_documents`.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from plantlib.model.plant_model import PlantModel, PlantOutput
from plantlib.utils.distributed import distributed


def is_sharded() -> bool:
    """Whether this launch divides the weights among its processes."""
    return distributed() and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


@contextlib.contextmanager
def sharded(model: PlantModel) -> Iterator[PlantModel]:
    """The model to train: a copy that FSDP can divide, or `model` itself in other launches.

    After the block `model` has the trained values.

    Raises:
        ValueError: the model has no backbone, whose layers are what is divided.
    """
    if not is_sharded():
        yield model
        return
    if model.backbone is None:
        raise ValueError(
            "FSDP divides the layers of a backbone that is trained; choose tuning='lora' or 'full',"
            " or launch with runs/accelerate/ddp.yaml"
        )
    trained = divisible(model)
    empty(model)
    yield trained
    model.load_state_dict(whole_values(trained), assign=True)
    # buffers that are no part of the state
    model.to(next(trained.parameters()).device)


class _Scalar(nn.Module):
    """A number that is kept as a vector of one."""

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return vector.reshape(())

    def right_inverse(self, number: torch.Tensor) -> torch.Tensor:
        return number.reshape(1)


def check_documents(lengths: np.ndarray, window: int) -> None:
    """ValueError unless a pass through the backbone reads any batch of these documents.

    lengths: (n,) tokens of each training document. window: tokens that a pass may read.
    """
    if lengths.min() < 1 or lengths.max() > window:
        raise ValueError(
            f"training documents have {lengths.min()} to {lengths.max()} tokens, and with FSDP they"
            f" need 1 to {window}, what the backbone reads at once; set tokens={window} and leave"
            " empty documents out, or launch with runs/accelerate/ddp.yaml"
        )


def divisible(model: PlantModel) -> PlantModel:
    """A copy of the modules with the same parameters and buffers, without scalar parameters.

    Each layer of the backbone is divided by itself, then the rest of the backbone, then the head.
    """
    shared = [t for t in (*model.parameters(), *model.buffers()) if t.dim()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    numbers = [name for name, p in twin.decoder.named_parameters() if p.dim() == 0]
    for name in numbers:
        parametrize.register_parametrization(twin.decoder, name, _Scalar())
    twin.register_forward_hook(partial(_with_every_gain, names=numbers))
    layers = set(getattr(twin.backbone, "_no_split_modules", None) or ())
    twin._no_split_modules = layers | {type(twin.backbone).__name__}
    # else accelerate asks for embeddings of the whole model
    twin.get_input_embeddings = twin.get_output_embeddings = lambda: None
    return twin


def _with_every_gain(model: PlantModel, _: Any, output: PlantOutput, names: list[str]) -> None:
    """Give gains that a batch did not use a gradient of 0: all processes must have the same."""
    if output.loss is not None:
        gains = [getattr(model.decoder, name) for name in names]
        output.loss = output.loss + 0.0 * torch.stack(gains).sum()


def empty(model: nn.Module) -> None:
    """Free the parameters; their shapes stay."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape = torch.empty_like(parameter, device="meta")
            setattr(module, name, nn.Parameter(shape, parameter.requires_grad))


def whole_values(trained: nn.Module) -> dict[str, torch.Tensor]:
    """Values of the model by the names of its state, gathered from the shares of the copy."""
    values = {}
    for name, value in trained.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if ".parametrizations." in name:
            name = name.replace(".parametrizations.", ".").removesuffix(".original")
            whole = whole.reshape(())
        values[name] = whole.detach()
    return values
