"""Options of the wrong kind are refused where they are made; names never lead out of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from plantlib.backbones.adapters import LoraOptions
from plantlib.candidates.decoder import CandidateConfig
from plantlib.linear.score import LinearConfig
from plantlib.planting.l2r import L2RConfig
from plantlib.planting.starts import StartConfig
from plantlib.teacher.mig import TeacherConfig
from plantlib.training.awd_pretraining import PretrainConfig
from plantlib.training.language_model import AdaptConfig
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.utils import checks

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TrainConfig, {"epochs": 1.5}),
        (TrainConfig, {"epochs": 2.0}),
        (TrainConfig, {"epochs": True}),
        (TrainConfig, {"epochs": "3"}),
        (TrainConfig, {"epochs": None}),
        (TrainConfig, {"batch_size": NAN}),
        (TrainConfig, {"lr_queries": NAN}),
        (TrainConfig, {"lr_queries": -1e-3}),
        (TrainConfig, {"lr_queries": INFINITE}),
        (TrainConfig, {"lr_queries": "1e-3"}),
        (TrainConfig, {"lr_backbone": NAN}),
        (TrainConfig, {"lr_backbone": -1.0}),
        (TrainConfig, {"layer_decay": NAN}),
        (TrainConfig, {"lm_weight": NAN}),
        (TrainConfig, {"keep_from": 1.5, "keep_epochs": 2}),
        (TrainConfig, {"stages": (1,)}),
        (RunConfig, {"other_gains": (NAN,)}),
        (RunConfig, {"other_gains": ("a",)}),
        (RunConfig, {"linear_weights": (INFINITE,)}),
        (RunConfig, {"static_dim": 0}),
        (RunConfig, {"static_dim": 1.5}),
        (RunConfig, {"keep": 1.5}),
        (RunConfig, {"keep": 0}),
        (StartConfig, {"lookup_gain": NAN}),
        (LoraOptions, {"r": 1.5}),
        (LoraOptions, {"alpha": NAN}),
        (LoraOptions, {"dropout": NAN}),
        (L2RConfig, {"epochs": 0.5}),
        (LinearConfig, {"folds": 2.5}),
        (TeacherConfig, {"top_k": 0}),
        (TeacherConfig, {"top_k": 1.5}),
        (CandidateConfig, {"width": 1.5}),
        (AdaptConfig, {"learning_rate": NAN}),
        (AdaptConfig, {"learning_rate": -1.0}),
        (AdaptConfig, {"masked_share": NAN}),
        (AdaptConfig, {"seed": -1}),
        (AdaptConfig, {"max_tokens": 0}),
        (PretrainConfig, {"learning_rate": -1.0}),
        (PretrainConfig, {"learning_rate": NAN}),
        (PretrainConfig, {"activation": NAN}),
        (PretrainConfig, {"seed": -1}),
        (PretrainConfig, {"rows": 1.5}),
    ],
)
def test_options_of_the_wrong_kind_are_refused(kind, options):
    with pytest.raises(ValueError) as refused:
        kind(**options)
    name = next(iter(options))
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_numbers_of_numpy_are_numbers():
    assert TrainConfig(epochs=np.int64(2), lr_queries=np.float32(0.5)).epochs == 2


@pytest.mark.parametrize("seed", [-1, 1.5, None, "a", True, 2**32, NAN])
def test_a_seed_that_numpy_refuses_is_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        checks.check_seed(seed)
    checks.check_seed(0)
    checks.check_seed(2**32 - 1)


def test_annotations_say_what_fits():
    @dataclass
    class Options:
        a: int | None = None
        b: tuple[int | None, ...] = (1, None)
        c: int | tuple[int, ...] = 3

    checks.check_fields(Options())
    for wrong in (Options(a=1.5), Options(b=("x",)), Options(c=("x",)), Options(c="x")):
        with pytest.raises(ValueError):
            checks.check_fields(wrong)


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "a\0b", "~", "~root", "C:\\x", ".hidden"]
    + ["a" * 300, "é" * 300, "\n", "con/../x", "I10/E11", "$HOME", "a*?[b]", "\ud800"],
)
def test_a_name_becomes_one_part_of_a_path(name, tmp_path):
    safe = checks.safe_name(name)
    assert safe and len(safe.encode("utf-8", "replace")) < 120
    assert (tmp_path / safe).parent == tmp_path and Path(safe).name == safe
    assert not safe.startswith((".", "~")) and not set(safe) & set("*?[]/\\\0\n:$")
    assert safe != checks.safe_name(name + "_")


def test_usual_names_stay_as_they_are():
    for name in ("synthetic-icd", "mimic3-full", "my_table", "I10", "a.b", "Bücher", "x+y@z"):
        assert checks.safe_name(name) == name
