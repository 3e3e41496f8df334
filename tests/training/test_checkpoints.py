"""Checkpoints: damage is named, training goes on from what is whole, processes share a folder."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from plantlib import fit
from plantlib.training import checkpoints
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.utils.io import Damaged
from tests.tolerances import near
from tests.training.test_train import train_it, weights

OPTIONS = {"epochs": 2, "patience": 4}
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """A folder with the checkpoints of two epochs, and the trained weights."""
    folder = tmp_path_factory.mktemp("run")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:  # none is removed
        patch.setattr(checkpoints.shutil, "rmtree", lambda *a, **k: None)
        model, _ = train_it(prepared, folder, **OPTIONS)
    yield folder, weights(model)
    torch.set_num_threads(threads)


@pytest.fixture
def folder(run, tmp_path) -> Path:
    """A copy of the run's folder."""
    return Path(shutil.copytree(run[0], tmp_path / "copy"))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_left_out(folder, name, capsys):
    flip(folder / "checkpoint-16" / name)
    assert checkpoints.last_whole_checkpoint(folder) == str(folder / "checkpoint-8")
    assert f"checkpoint-16/{name} is not what was written" in capsys.readouterr().err
    # without its best checkpoint, whose weights the run ends with, a checkpoint is of no use
    flip(folder / "checkpoint-8" / name)
    assert checkpoints.last_whole_checkpoint(folder) is None and not list(folder.iterdir())


def test_half_a_checkpoint_of_a_killed_process_is_left_out_without_a_word(folder, capsys):
    for name in ("contents.json", "trainer_state.json"):
        (folder / "checkpoint-16" / name).unlink()
    assert checkpoints.last_whole_checkpoint(folder) == str(folder / "checkpoint-8")
    assert not capsys.readouterr().out


def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_weights(prepared, run, folder):
    flip(folder / "checkpoint-16" / "optimizer.pt")
    model, _ = train_it(prepared, folder, **OPTIONS)
    for name, value in weights(model).items():
        assert torch.equal(value, run[1][name]), name


def test_a_best_checkpoint_that_is_lost_while_training_is_an_error(prepared, tmp_path, monkeypatch):
    """transformers would warn, and leave the model at its last epoch."""
    finish = checkpoints.SealingTrainer._load_best_model

    def lost(self):
        shutil.rmtree(self.state.best_model_checkpoint)
        finish(self)

    monkeypatch.setattr(checkpoints.SealingTrainer, "_load_best_model", lost)
    with pytest.raises(Damaged, match="checkpoint-8 lacks contents.json"):
        train_it(prepared, tmp_path, epochs=1)


def test_a_full_disk_is_an_error_that_names_the_folder(prepared, tmp_path, monkeypatch):
    def full(*arguments):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(checkpoints.Trainer, "_save_checkpoint", full)
    with pytest.raises(OSError, match=r"no checkpoint could be written to .*: make room"):
        train_it(prepared, tmp_path, epochs=1)


def fit_one(corpus, backbone: str, root: Path, seed: int) -> dict:
    """Train one model on one thread; the metrics of test."""
    torch.set_num_threads(1)
    config = RunConfig(train=TrainConfig(epochs=1))
    options = {"backbone": backbone, "root": root, "progress": False, "max_tokens": None}
    return fit(corpus, seed=seed, config=config, **options).record.metrics


def fit_and_tell(answers, *arguments) -> None:
    """What one of several processes does."""
    answers.put((arguments[-1], fit_one(*arguments)))


def test_two_processes_with_one_folder_end_at_the_numbers_they_reach_alone(
    corpus, backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    shared = (answers, corpus, backbone_folder, tmp_path / "shared")
    workers = [spawn.Process(target=fit_and_tell, args=(*shared, seed)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    threads = torch.get_num_threads()
    alone = {seed: fit_one(corpus, backbone_folder, tmp_path / f"{seed}", seed) for seed in (0, 1)}
    torch.set_num_threads(threads)
    together = dict(answers.get(timeout=900) for _ in workers)
    for worker in workers:
        worker.join()
    assert alone[0] != alone[1]
    for seed in (0, 1):
        assert together[seed] == near(alone[seed], operations=0)
