"""The grid of the first version: ablations change one thing, two directions are summed."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from companion.studies import v1_grid
from plantlib import RunConfig
from plantlib.data.credentials import PrivacyError
from plantlib.planting.starts import V1Config
from plantlib.training.options import TrainConfig
from plantlib.utils.io import read_json, write_json


def flat(config) -> dict:
    parts = {
        a: part if isinstance(part, dict) else {"": part} for a, part in asdict(config).items()
    }
    return {f"{a}.{b}": v for a, part in parts.items() for b, v in part.items()}


def test_every_ablation_changes_one_thing():
    config = RunConfig(keep=8, v1=V1Config(l2r_table=True))
    expected = {
        "v1": set(),
        "random": set(),
        "v1-no-l2r": {"start.v1_l2r"},
        "v1-no-lookup": {"start.v1_lookup"},
        "v1-no-inattention": {"keep."},
        "v1-other-state": {"v1.stateful"},
    }
    assert set(expected) == set(v1_grid.ABLATIONS)
    expected |= {
        "v1-k4": {"keep."},
        "v1-k16": {"keep."},
        "v1-sum": {"v1.contexts"},
        "v1-likely": {"v1.l2r_from"},
        "v1-expected": {"v1.l2r_from"},
    }
    assert set(expected) == set(v1_grid.SYSTEMS)
    for system, (_, changes) in v1_grid.SYSTEMS.items():
        before = flat(config)
        after = flat(v1_grid.changed(config, changes))
        assert {k for k in before if before[k] != after[k]} == expected[system], system
    annealed = RunConfig(keep=8, train=TrainConfig(keep_from=32, keep_epochs=2))
    assert v1_grid.changed(annealed, {"keep": None}).train.keep_from is None


def test_unknown_system_is_refused_before_any_work():
    with pytest.raises(ValueError, match="system 'v2' is not known; use v1, random"):
        v1_grid.awd_grid("no such corpus", systems=("v2",))


def test_two_directions_are_trained_summed_and_read_again(corpus, tmp_path, monkeypatch):
    corpus.save(tmp_path / "tiny")
    options = dict(
        systems=("v1",),
        directions=("forward", "backward"),
        tokens=None,
        window=10,
        hidden_size=8,
        lstm_size=8,
        layers=1,
        lm_epochs=1,
        lm_rows=4,
        tuning="frozen",
        epochs=1,
        keep=4,
        dim=8,
        results=tmp_path / "runs",
        root=tmp_path,
        progress=False,
    )
    records, models = v1_grid.awd_grid(str(tmp_path / "tiny"), **options)
    assert [r.system for r in records] == ["v1", "v1", "v1 ensemble"] and len(
        {r.id for r in records}
    ) == 3
    assert [m["direction"] for m in models] == ["forward", "backward"] and all(
        m["perplexity"] > 1 for m in models
    )
    assert records[2].params["members"] == [records[0].id, records[1].id]
    for name in ("pretrain", "run_start", "run_ensemble"):
        monkeypatch.setattr(
            v1_grid, name, lambda *a, **k: pytest.fail("finished work was done again")
        )
    again, _ = v1_grid.awd_grid(str(tmp_path / "tiny"), **options)
    assert again == records
    # one entry per language model, named like the backbone of the records
    path = tmp_path / "awd-pretraining-tiny.json"
    reports = read_json(path)
    assert set(reports) == {r.backbone for r in records[:2]}
    # another run adds to them
    write_json(path, reports | {"tiny-forward-other": {}})
    v1_grid.awd_grid(str(tmp_path / "tiny"), **options)
    assert read_json(path) == reports | {"tiny-forward-other": {}}
    # the sum of other members is made again
    path = tmp_path / "runs" / f"{records[2].id}.json"
    write_json(path, read_json(path) | {"params": records[2].params | {"made_of": "0" * 16}})
    monkeypatch.undo()
    remade, _ = v1_grid.awd_grid(str(tmp_path / "tiny"), **options)
    # members that were trained again may differ in their last digits from machine to machine
    assert remade[2].params["made_of"] == v1_grid.made_of(remade[:2]) != "0" * 16
    assert remade[2].metrics["ndcg@5"] == pytest.approx(records[2].metrics["ndcg@5"], abs=0.05)


def test_a_language_model_of_credentialed_text_stays_in_the_data_folder(
    corpus, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    monkeypatch.setenv("PLANT_HOME", str(home))
    replace(corpus, name="secret", manifest={"credentialed": True}).save(home / "secret")
    options = dict(
        systems=("random",),
        tokens=None,
        hidden_size=8,
        lstm_size=8,
        layers=1,
        lm_epochs=1,
        lm_rows=4,
        tuning="frozen",
        epochs=1,
        dim=8,
        progress=False,
    )
    with pytest.raises(
        PrivacyError,
        match="what is computed from secret is credentialed and elsewhere lies outside",
    ):
        v1_grid.awd_grid(
            "secret", root=tmp_path / "elsewhere", results=tmp_path / "runs", **options
        )
    v1_grid.awd_grid("secret", results=tmp_path / "runs", **options)
    assert len(list((home / "artefacts" / "awd").glob("secret-forward-*/model.safetensors"))) == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [], (
        "nor does the report of the pretraining"
    )
    assert not list((tmp_path / "runs").glob("*/")) and {
        p.suffix for p in (tmp_path / "runs").iterdir()
    } == {".json"}
