"""Trackers follow a fit when they are asked for, and get nothing of credentialed texts."""

from __future__ import annotations

import dataclasses

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
