"""The two commands for a GPU that is at hand for minutes, on small sizes."""

from __future__ import annotations

import csv

import pytest
import yaml

from benchmarks import card
from plantlib import RunRecord
from plantlib.training import runs as training
from tests.conftest import WINDOW


@pytest.fixture
def run(corpus, backbone_folder, tmp_path):
    """A run of the tiny corpus on the tiny backbone, as runs/card-codiesp.yaml describes one."""
    options = yaml.safe_load(card.RUNS[0].read_text())["parameters"]
    corpus.save(tmp_path / "corpus")
    options |= {"dataset": str(tmp_path / "corpus"), "backbones": [backbone_folder]}
    options |= {"tokens": WINDOW, "starts": ["lookup+linear"], "notebook": None}
    path = tmp_path / "card-tiny.yaml"
    path.write_text(yaml.safe_dump({"parameters": options}))
    return path


def test_what_is_packed_is_trained_and_leaves_a_record(run, tmp_path):
    folder, out = tmp_path / "packed", tmp_path / "records"
    assert card.main(["pack", str(folder), "--runs", str(run)]) == 0
    assert not list(folder.rglob("*.bin")) and list(folder.rglob("*.safetensors"))
    options = ["runs", str(folder), "--tiny", "--out", str(out), "--runs", str(run)]
    assert card.main(options) == 0, (out / "card-tiny.txt").read_text()
    (record,) = (RunRecord.load(path) for path in out.glob("*.json"))
    assert record.dataset["train"] == 20 and record.backbone.endswith("-float16")


def test_more_than_can_travel_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="64 can travel: cap documents"):
        card.pack(tmp_path / "packed", [run])


def test_measurements_write_rows(tmp_path, monkeypatch):
    """Kernels and backbones have tests of their own; candidates are measured here."""
    every = {name: command for name, command, _ in card.measurements(tmp_path, True)}
    assert list(every) == ["tests", "kernels", "candidates", "backbones"]
    only = [("candidates", every["candidates"], 60)]
    monkeypatch.setattr(card, "measurements", lambda *_: only)
    assert card.main(["measure", "--tiny", "--out", str(tmp_path)]) == 0
    (row,) = csv.DictReader((tmp_path / "candidates.csv").open())
    assert row["labels"] == "2000" and float(row["step_ms_a_document"]) > 0


def test_a_command_that_takes_too_long_is_stopped(tmp_path, capsys):
    assert not card.within("slow", ["-c", "import time; time.sleep(60)"], 1, tmp_path)
    assert "its time was over" in capsys.readouterr().out


def test_the_runs_have_starts_that_are_known():
    assert len(card.RUNS) == 2
    for path in card.RUNS:
        for start in yaml.safe_load(path.read_text())["parameters"]["starts"]:
            training.starts.parts_of(start)
