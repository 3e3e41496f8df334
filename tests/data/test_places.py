"""Where files go: never outside their folder, whatever a corpus is called, nor among packages."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plantlib.data import sources
from plantlib.training import artefacts, runs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import run_name

ROOT = Path(sources.__file__).resolve().parents[2]
NAMES = ["../../x", "/absolute/x", "a/b", "..", "x\\y", "~/x", "", "a b*?"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_a_corpus_of_any_name_stays_in_its_folders(
    name, corpus, backbone_folder, tmp_path, monkeypatch
):
    place = tmp_path / "deep" / "down"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    named = dataclasses.replace(corpus, name=name)
    inputs = prepare(named, backbone=backbone_folder, root=place / "artefacts", progress=False)
    assert Path(run_name(inputs, "lookup", 0)).name == run_name(inputs, "lookup", 0)
    folder = artefacts.run_folder(inputs, run_name(inputs, "lookup", 0))
    assert folder.parent == place / "artefacts" / "checkpoints"
    artefacts.static_model(inputs, 4, progress=False)
    if name == "../../x":
        config = RunConfig(train=TrainConfig(epochs=1), other_gains=(), linear_weights=())
        start = "l2r+linear"
        runs.run_start(inputs, start, config=config, results=place / "results", progress=False)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and place not in p.parents]
    assert outside == [] and not Path("/absolute").exists()
    written = {p.relative_to(place).parts[0] for p in place.rglob("*") if p.is_file()}
    assert written <= {"artefacts", "results"}


def test_a_run_id_that_is_no_file_name_is_refused_before_training(prepared, monkeypatch):
    monkeypatch.setattr(runs, "ingredients", lambda *a, **k: pytest.fail("it began"))
    for run_id in ("../x", "a/b", "", "/x", "a" * 121):
        with pytest.raises(ValueError, match="run id"):
            runs.run_start(prepared, "lookup", run_id=run_id or " ")


SHOW = """
from plantlib.data import sources
from plantlib.training import artefacts, records
print(sources.homes()[0])
print(artefacts.root_of())
print(records.environment()["commit"])
"""


def test_an_installed_package_keeps_its_files_in_the_users_cache(tmp_path):
    packages = tmp_path / "site-packages"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "plantlib", packages / "plantlib", ignore=skip)
    # as if the environment lay in somebody's checkout of another project
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(packages),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "PLANT_COMMIT": "installed",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cache = tmp_path / "cache" / "plantlib"
    assert done.stdout.split() == [str(cache / "data"), str(cache / "artefacts"), "installed"]
    assert {path.name for path in packages.iterdir()} == {"plantlib"}


def test_a_checkout_keeps_its_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLANT_HOME", raising=False)
    assert sources.is_checkout() and sources.homes()[0] == ROOT / "data"
    assert artefacts.root_of() == ROOT / "artefacts"
