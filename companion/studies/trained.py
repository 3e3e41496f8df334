"""Decoders of a start before and after its training, for studies that look into attention.

A trained decoder is kept under artefacts/, so studies of the same corpus and options share it.
"""

from __future__ import annotations

from dataclasses import asdict

from plantlib.planting import starts
from plantlib.planting.decoder import LabelDecoder
from plantlib.planting.l2r import Planted
from plantlib.teacher.mig import Teacher
from plantlib.training import runs
from plantlib.training.ingredients import build_model
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.records import run_name
from plantlib.utils.io import fingerprint_of, read_if_whole
from plantlib.utils.tensors import check_tensors, save_tensors


def before(
    inputs: Inputs,
    start: str,
    seed: int,
    config: RunConfig,
    teacher: Teacher,
    queries: Planted | None = None,
) -> LabelDecoder:
    """The decoder as `start` plants it; queries: pretrained ones, for a start that plants them."""
    decoder = build_model(inputs, teacher, RunConfig(keep=config.keep)).decoder
    starts.plant(
        decoder,
        start,
        teacher,
        inputs.train_labels,
        planted=queries,
        config=config.start,
        seed=seed,
    )
    return decoder.eval()


def after(
    inputs: Inputs,
    start: str,
    seed: int,
    config: RunConfig,
    teacher: Teacher,
    progress: bool = True,
) -> LabelDecoder:
    """The decoder of a start at its best dev epoch; trained where artefacts/ lacks it."""
    from safetensors.torch import load_file

    key = fingerprint_of(inputs.key, start, asdict(config), seed)
    path = inputs.root / "evidence" / f"{run_name(inputs, start, seed)}-{key}.safetensors"
    decoder = build_model(inputs, teacher, RunConfig(keep=config.keep)).decoder
    if read_if_whole(path, check_tensors) is None:
        _, model = runs.run_start(inputs, start, seed, config=config, progress=progress)
        save_tensors(path, model.decoder.state_dict())
    decoder.load_state_dict(load_file(path))
    return decoder.eval()
