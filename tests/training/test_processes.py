"""One process uses one GPU; the others wait for the first as long as it takes."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import accelerate
import pytest
import torch

from plantlib.training import artefacts, awd_pretraining, language_model, train
from plantlib.training import ingredients as ingredients_module
from plantlib.training.options import RunConfig
from plantlib.utils import distributed
from tests.training.test_train import train_it


class TwoGpus(train.TrainingArguments):
    """The arguments of a process that sees two GPUs."""

    def __post_init__(self):
        super().__post_init__()
        self._n_gpu = 2


def test_one_process_never_cuts_packed_tensors_among_gpus(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TrainingArguments", TwoGpus)
    cut = lambda *a, **k: pytest.fail("the batch would be cut")  # noqa: E731
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", cut)
    arguments = train._arguments(tmp_path, train.TrainConfig(batch_size=8))
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 8
    _, history = train_it(prepared, tmp_path / "run", epochs=1)
    assert len(history) == 1


@pytest.mark.parametrize("module", [language_model, awd_pretraining])
def test_language_models_use_one_gpu_too(module, monkeypatch, tmp_path):
    seen = []

    class Seen(Exception):
        pass

    def trainer(*_, args, **__):
        seen.append(args.n_gpu)
        raise Seen

    monkeypatch.setattr(module, "TrainingArguments", TwoGpus)
    name = "SealingTrainer" if module is language_model else "StreamTrainer"
    monkeypatch.setattr(module, name, trainer)
    config = language_model.AdaptConfig()
    if module is awd_pretraining:
        config = awd_pretraining.PretrainConfig()
    arguments = [torch.nn.Linear(1, 1), torch.zeros(20, 40).long().numpy()]
    arguments += [None] * (module is language_model)
    with pytest.raises(Seen):
        module._train(*arguments, config, tmp_path, False)
    assert seen == [1]


def test_every_process_waits_for_the_one_that_fits_the_linear_score(prepared, monkeypatch):
    inside = []

    @contextlib.contextmanager
    def first():
        inside.append(True)
        yield
        inside.pop()

    fit = artefacts.linear_scores

    def linear_scores(*arguments, **options):
        assert inside, "processes would fit it beside each other, or run into a timeout later"
        return fit(*arguments, **options)

    monkeypatch.setattr(ingredients_module, "main_first", first)
    monkeypatch.setattr(artefacts, "linear_scores", linear_scores)
    made = ingredients_module.ingredients(prepared, "linear", RunConfig(), progress=False)
    assert made.linear is not None and not inside


def test_the_wait_outlasts_a_long_fit(monkeypatch, tmp_path):
    waits = []

    class State:
        def __init__(self, cpu, timeout):
            waits.append(timeout)

        def main_process_first(self):
            return contextlib.nullcontext()

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", State)
    with distributed.main_first():
        pass
    assert waits == [distributed.LONGEST_WAIT] and waits[0] >= timedelta(days=1)
    monkeypatch.delenv("WORLD_SIZE")
    arguments = train._arguments(tmp_path, train.TrainConfig())
    assert arguments.ddp_timeout == distributed.LONGEST_WAIT.total_seconds()
