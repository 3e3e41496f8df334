"""The benchmark of published backbones on small widths: its rows, and what it must refuse."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import bench_backbones as bench  # noqa: E402


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "backbones.csv"
    bench.main(["--tiny", "--out", str(out), "--families", "deepseek-v3"])
    before = out.read_text()
    bench.main(["--tiny", "--out", str(out), "--families", "deepseek-v3"])
    assert out.read_text() == before, "rows of the file are not measured again"
    return list(csv.DictReader(out.open()))


def test_every_stage_has_a_row_and_the_loss_of_a_fixed_batch_falls(rows):
    stages = [(row["stage"], row["tokens"], row["checkpointing"]) for row in rows]
    trained = [("train", "32", checkpointing) for checkpointing in ("True", "False")]
    read = [(stage, "32", "True") for stage in ("features", "predict")]
    assert set(stages) == {("loss of a small width", "", ""), *trained, *read}
    for row in (row for row in rows if row["stage"] == "train"):
        assert float(row["last_loss"]) < 0.5 * float(row["first_loss"])
        assert float(row["tokens_per_second"]) > 0 and 0 < float(row["head_share"])
        assert float(row["matmul_share"]) > 0 and float(row["estimate_mib"]) > 0


def test_the_device_has_the_loss_of_the_cpu(rows):
    for row in (row for row in rows if row["stage"] == "loss of a small width"):
        apart = dict(part.split(" apart")[0].rsplit(" ", 1) for part in row["note"].split(", "))
        assert float(apart["device float32"]) < 1e-4 and float(apart["device bfloat16"]) < 2e-2


@pytest.mark.parametrize("family", ["mistral-7b-v0.3", "llama-3-8b", "phi-3-mini"])
def test_the_other_families_are_built_and_have_the_loss_of_the_cpu(family):
    found = bench.same_loss(family, torch.device("cpu"))
    assert found["last_loss"] == pytest.approx(found["first_loss"], rel=2e-2)


def test_operations_of_published_sizes():
    sizes = bench.Sizes()
    config = bench.config_of("mistral-7b-v0.3", False)
    assert bench.layers_that_fit(config, sizes, "bfloat16", 75 * 2**30) == 32
    model = bench.memory.meta_model(config)
    assert bench.products(model, config) == pytest.approx(6.98e9, rel=0.01)
    experts = bench.config_of("deepseek-v3", False)
    layers = bench.layers_that_fit(experts, sizes, "bfloat16", 75 * 2**30)
    assert 3 < layers < 8 and experts.num_hidden_layers == 61


def test_values_that_change_on_their_way_to_the_device_are_an_error(monkeypatch):
    config = bench.config_of("mistral-7b-v0.3", True)
    load = bench.adapters.open_backbone

    def changed(model, *options):
        load(model, *options)
        model.decoder.planted_gain.data.add_(1)

    monkeypatch.setattr(bench.adapters, "open_backbone", changed)
    with pytest.raises(RuntimeError, match="planted values changed on cpu: planted_gain"):
        bench.planted(config, bench.TINY, "float32", torch.device("cpu"), 32, "frozen")


def test_published_widths_need_a_card(capsys):
    if torch.cuda.is_available():
        pytest.skip("a card is here")
    with pytest.raises(SystemExit):
        bench.main([])
    assert "there is no GPU here: give --tiny" in capsys.readouterr().err
