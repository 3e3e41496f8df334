"""Trackers follow a fit when they are asked for, and get nothing of credentialed texts."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import pytest

from plantlib import RunConfig, fit
from plantlib.data.credentials import PrivacyError
from plantlib.training import trackers
from plantlib.training.options import TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:dev has .* right labels")


def test_a_fit_reports_its_loss_and_dev_metrics_and_no_text(corpus, backbone_folder, tmp_path):
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )
    config = RunConfig(train=TrainConfig(epochs=2))
    options = {"root": tmp_path, "max_tokens": None, "progress": False, "config": config}
    fit(corpus, backbone=backbone_folder, start="random", report_to="tensorboard", **options)
    (file,) = (tmp_path / "trackers").rglob("events.*")
    events = loader.EventAccumulator(str(file.parent)).Reload()
    assert {"train/loss", "eval/ndcg@5"} <= set(events.Tags()["scalars"])
    assert {event.step for event in events.Scalars("eval/ndcg@5")} == {4, 8}
    written = file.read_bytes()
    assert not any(" ".join(t.split()[:6]).encode() in written for t in corpus.texts if t.strip())
    # nothing is reported where nothing is asked for
    fit(corpus, backbone=backbone_folder, start="random", seed=1, **options)
    assert len(list((tmp_path / "trackers").rglob("events.*"))) == 1


# a package that writes down what it is asked to do, in the place of one that is no dependency
RECORDER = """
import types
__version__ = "99.0"
calls = []
class Part:
    def __init__(self, name=""):
        self.name = name
    def __getattr__(self, name):
        return 100 if name.startswith("MAX_") else Part(f"{self.name}.{name}".strip("."))
    def __setitem__(self, name, value):
        calls.append((self.name, (name, value), {}))
    def __call__(self, *args, **kwargs):
        calls.append((self.name, args, kwargs))
        if self.name in ("active_run", "context_vars.current_space_id.get"):
            return None if self.name != "active_run" or not runs() else self
        return self
def runs():
    names = [name for name, _, _ in calls]
    return names.count("start_run") - names.count("end_run")
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Part(name)
"""
# package -> what begins and ends a run, and what gets numbers
ASKED = {"mlflow": ("start_run", "end_run", "log_metrics"), "trackio": ("init", "finish", "log")}


@pytest.mark.parametrize("name", ASKED)
def test_mlflow_and_trackio_are_asked_as_transformers_asks_them(
    corpus, tmp_path, monkeypatch, name
):
    """With a stand-in for the package, which is no dependency: what is sent, and that runs end."""
    (tmp_path / f"{name}.py").write_text(RECORDER)
    monkeypatch.syspath_prepend(tmp_path)
    # whatever was imported by this name comes back afterwards
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]
    package = importlib.import_module(name)
    config = RunConfig(train=TrainConfig(epochs=1), other_gains=())
    options = {"root": tmp_path, "progress": False, "config": config}
    fit(corpus, backbone="words", start="random", report_to=name, **options)
    begins, ends, logs = ASKED[name]
    asked = [call for call, _, _ in package.calls]
    assert asked.count(begins) == asked.count(ends) == 1
    sent = [[*args, *kwargs.values()] for call, args, kwargs in package.calls if call == logs]
    numbers = {
        key for values in sent for value in values if isinstance(value, dict) for key in value
    }
    assert any(key.endswith("loss") for key in numbers), numbers
    assert any("ndcg" in key for key in numbers), numbers
    written = repr(package.calls)
    assert not any(" ".join(t.split()[:4]) in written for t in corpus.texts if len(t.split()) > 3)


@pytest.mark.parametrize("name", ASKED)
def test_the_real_mlflow_and_trackio_follow_a_fit(corpus, tmp_path, monkeypatch, name):
    """Where the package is installed; two trainings of one fit are two runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    package = pytest.importorskip(name, reason=f"{name} is no dependency")
    config = RunConfig(train=TrainConfig(epochs=1))
    options = {"root": tmp_path, "progress": False, "config": config}
    fit(corpus, backbone="words", start="lookup+linear", report_to=name, **options)
    if name == "mlflow":
        runs = package.search_runs(search_all_experiments=True, output_format="list")
        assert [run.info.status for run in runs] == ["FINISHED"] * 2
        assert all({"loss", "eval_ndcg_5"} <= set(run.data.metrics) for run in runs)
    written = [path.read_bytes() for path in tmp_path.rglob("*.db")]
    assert written
    starts = [" ".join(text.split()[:4]).encode() for text in corpus.texts if text.strip()]
    assert not any(start in data for start in starts for data in written)


def test_credentialed_texts_go_to_no_tracker(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    secret = dataclasses.replace(corpus, manifest={"credentialed": True})
    for name in trackers.KNOWN:
        with pytest.raises(PrivacyError, match=f"report_to='{name}': the texts are credentialed"):
            fit(secret, backbone="words", report_to=[name])
    assert not list(tmp_path.iterdir())


def test_unknown_and_missing_trackers_are_refused(corpus, monkeypatch):
    with pytest.raises(ValueError, match="report_to='paper' is not known"):
        fit(corpus, backbone="words", report_to="paper")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install trackio"):
        fit(corpus, backbone="words", report_to=("trackio",))
