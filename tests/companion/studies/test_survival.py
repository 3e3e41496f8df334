"""The study of what training does to planted attention, on the tiny corpus."""

from companion.studies import survival, trainings
from tests.companion.studies.test_evidence import marked  # noqa: F401 (a fixture)


def test_frozen_attention_stays_and_trained_attention_moves(marked, tmp_path):  # noqa: F811
    jobs = [(way, 2, 0) for way in ("trained", "frozen")]
    table = survival.run(marked, jobs, tmp_path)
    dev = table[table["split"] == "dev"]
    assert dev.groupby("way")["epoch"].agg(list).to_dict() == {
        "trained": [0, 1, 2],
        "frozen": [0, 1, 2],
    }
    last = dev[dev["epoch"] == 2].set_index("way")
    assert last.loc["frozen", "distance"] == 0 and last.loc["trained", "distance"] > 0
    planted = dev[dev["epoch"] == 0].set_index("way")
    for measure in ("auc", "precision"):
        assert last.loc["frozen", measure] == planted.loc["frozen", measure]
        assert planted.loc["trained", measure] == planted.loc["frozen", measure]
    assert not list((marked.root / "checkpoints").iterdir())


def test_finished_trainings_are_read(marked, tmp_path, monkeypatch):  # noqa: F811
    jobs = [("frozen", 1, 0)]
    table = survival.run(marked, jobs, tmp_path)
    monkeypatch.setattr(survival, "training", None)
    again = survival.run(marked, jobs, tmp_path)
    assert (
        again.equals(trainings.load(tmp_path / survival.TABLE, survival.KEY))
        and len(again) == len(table) == 3
    )
    summary = survival.summary(again)
    assert summary.loc[("test", "frozen", 1), "seeds"] == 1
