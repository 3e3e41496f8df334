"""`python -m companion.reproduce` without its notebooks: what it chooses, refuses and prints.

A recorder replaces papermill, so the parameters and folders of the whole job are seen in a second.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from companion import reproduce
from plantlib.data import sources
from plantlib.data.corpus import Corpus
from plantlib.training.options import RunConfig
from plantlib.training.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A function that runs reproduce with a recorder; it returns the exit status and the calls."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DATASET", raising=False)
    monkeypatch.delenv("PLANT_DATA", raising=False)
    monkeypatch.setattr(sources, "checkout", lambda: tmp_path)
    calls = []

    def record(notebook, parameters, output):
        calls.append((Path(notebook).stem, parameters, output))

    monkeypatch.setattr(reproduce, "run_notebook", record)
    return lambda *arguments: (reproduce.main(list(arguments)), calls)


def table(path: Path, rows: int = 40) -> Path:
    lines = [
        f'"note {i} about {"fever" if i % 2 else "cough"} and day {i}",{"A" if i % 2 else "B"};C'
        for i in range(rows)
    ]
    path.write_text("\n".join(["t,y", *lines]), encoding="utf-8")
    return path


def test_a_table_becomes_a_corpus_and_every_notebook_gets_the_job(job, tmp_path):
    status, calls = job(
        "--dataset",
        str(table(tmp_path / "Mine.CSV")),
        "--text",
        "t",
        "--labels",
        "y",
        "--seeds",
        "2",
    )
    assert status == 0
    assert [name[:2] for name, *_ in calls] == ["02", "03", "05", "07"]
    five = calls[2][1]
    assert (
        five["dataset"] == "Mine" and five["seeds"] == [0, 1] and "lookup+score" in five["starts"]
    )
    assert Path(five["results"]) == tmp_path / "results" / "local" / "Mine" / "runs"
    assert Corpus.load(tmp_path / "home" / "Mine").label_names == ["A", "B", "C"]


def test_a_saved_corpus_folder_is_read_and_not_written_into(job, tmp_path, monkeypatch):
    corpus = Corpus.from_csv(table(tmp_path / "a.csv"), text="t", labels="y")
    corpus.save(tmp_path / "mine")
    before = sorted(p.name for p in (tmp_path / "mine").iterdir())
    monkeypatch.chdir(tmp_path)
    status, calls = job("--dataset", "mine")
    assert status == 0 and Path(calls[0][1]["dataset"]) == (tmp_path / "mine").resolve()
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == before
    assert calls[0][2].is_relative_to(tmp_path / "results" / "local" / "mine")


def caps(calls) -> list:
    """Most documents of train, dev and test, the same for every notebook that reads the corpus."""
    by_notebook = [
        [parameters[f"{s}_documents"] for s in ("train", "dev", "test")]
        for _, parameters, _ in calls[-4:-1]
    ]
    assert by_notebook[0] == by_notebook[1] == by_notebook[2]
    return by_notebook[0]


def test_a_corpus_of_the_user_is_whole_unless_a_cap_is_given(job, capsys, tmp_path):
    named = ("--dataset", str(table(tmp_path / "mine.csv", 60)), "--text", "t", "--labels", "y")
    assert caps(job(*named)[1]) == [None, None, None] and "capped" not in capsys.readouterr().out
    for dataset in ("mine", str(tmp_path / "home" / "mine")):
        assert caps(job("--dataset", dataset)[1]) == [None, None, None]
    assert caps(job(*named, "--train", "10", "--test", "5")[1]) == [10, None, 5]
    assert (
        "capped: 10 of 43 train, 5 of 12 test documents; change it with --train"
        in capsys.readouterr().out
    )


def test_a_known_corpus_keeps_its_caps_and_says_so(job, capsys, tmp_path):
    corpus = Corpus.from_lists(
        "cooking",
        [f"d{i}" for i in range(5000)],
        [f"text {i}" for i in range(5000)],
        [["x"], ["y"]] * 2500,
        ["train"] * 4500 + ["test"] * 500,
    )
    elsewhere = tmp_path / "elsewhere" / "cooking"
    for folder in (tmp_path / "home" / "cooking", elsewhere):
        corpus.save(folder)
    for dataset in ("cooking", str(tmp_path / "home" / "cooking")):
        assert caps(job("--dataset", dataset)[1]) == [4000, 500, 1000]
        assert (
            "capped: 4,000 of 4,050 train documents; change it with --train, --dev and --test"
            in capsys.readouterr().out
        )
    assert caps(job("--dataset", "cooking", "--train", "4500")[1]) == [4500, 500, 1000]
    assert (
        caps(job("--dataset", str(elsewhere))[1]) == [None, None, None]
        and "capped" not in capsys.readouterr().out
    )
    # a known corpus without an entry in CAPS gets those of large corpora
    assert (
        reproduce.caps_of("amazon-670k") == reproduce.LARGE and reproduce.caps_of("codiesp") == {}
    )


def test_a_table_is_split_at_the_delimiter_given(job, tmp_path):
    lines = [f"note {i}, of day {i}|{'A' if i % 2 else 'B'}" for i in range(40)]
    (tmp_path / "bars.csv").write_text("\n".join(["text|labels", *lines]), encoding="utf-8")
    status, _ = job("--dataset", str(tmp_path / "bars.csv"), "--delimiter", "|")
    assert status == 0 and Corpus.load(tmp_path / "home" / "bars").texts[3] == "note 3, of day 3"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--starts", "lokup"], "lokup"),
        (["--seeds", "0"], "--seeds 0"),
        (["--tokens", "-1"], "--tokens -1"),
        (["--epochs", "0"], "--epochs 0"),
        (["--dataset", "nowhere"], "nowhere"),
        (["--dataset", "nowhere.csv"], "nowhere.csv"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_options_are_one_line_before_any_work(job, capsys, arguments, said):
    status, calls = job(*arguments)
    assert status == 1 and calls == []
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and said in printed[0]


def test_a_table_takes_no_name_that_is_in_use(job, capsys, tmp_path):
    (tmp_path / "home" / "mine").mkdir(parents=True)
    (tmp_path / "home" / "mine" / "raw.txt").write_text("precious")
    for name in ("mine.csv", "codiesp.csv"):
        status, calls = job(
            "--dataset", str(table(tmp_path / name)), "--text", "t", "--labels", "y"
        )
        assert status == 1 and calls == [] and "rename the file" in capsys.readouterr().err
    assert (tmp_path / "home" / "mine" / "raw.txt").exists()


def test_the_best_planted_model_is_left_for_notebook_a2(
    corpus, backbone_folder, tmp_path, monkeypatch, capsys
):
    from plantlib import PlantModel
    from plantlib.training import artefacts, runs
    from plantlib.training.options import TrainConfig
    from plantlib.training.prepare import prepare
    from plantlib.training.records import load_all

    folder = str(corpus.save(tmp_path / "tiny"))
    common = {"dataset": folder, "backbone": backbone_folder, "max_tokens": None}
    monkeypatch.setattr(artefacts, "base_folder", lambda: tmp_path)
    assert reproduce.save_best(common, 2, tmp_path / "runs", tmp_path / "model") is None
    prepared = prepare(corpus, backbone=backbone_folder, max_tokens=None, progress=False)
    config = RunConfig(train=TrainConfig(epochs=2))
    runs.run_grid(
        prepared,
        ("random", "lookup", "score"),
        (0, 1),
        config=config,
        results=tmp_path / "runs",
        progress=False,
    )
    best = reproduce.best_run(load_all(tmp_path / "runs"))
    dev = {
        r.id: max(row["ndcg@5"] for row in r.history)
        for r in load_all(tmp_path / "runs")
        if r.system != "random"
    }
    assert dev[best.id] == max(dev.values())
    assert (
        reproduce.save_best(common, 2, tmp_path / "runs", tmp_path / "model") == tmp_path / "model"
    )
    model = PlantModel.from_pretrained(tmp_path / "model")
    assert model.decoder.planted_gain.item() == pytest.approx(
        best.params["final_gains"]["planted"], abs=1e-6
    )
    assert (
        len(model.explain_document(corpus.texts[0], 2)) == 2
        and best.id in (tmp_path / "model" / "README.md").read_text()
    )
    monkeypatch.setattr(runs, "run_start", lambda *a, **k: pytest.fail("trained again"))
    assert reproduce.save_best(common, 3, tmp_path / "runs", tmp_path / "other") is None, (
        "records of two epochs do not count"
    )
    assert (
        reproduce.save_best(common, 2, tmp_path / "runs", tmp_path / "model")
        and "model_folder" in capsys.readouterr().out
    )


def test_the_end_fits_a_terminal_and_says_where_the_whole_table_lies(tmp_path, monkeypatch):
    """The committed records of EURLEX57K in the place of a job's."""
    monkeypatch.chdir(tmp_path)
    local = tmp_path / "results" / "local" / "eurlex57k"
    (local / "runs").mkdir(parents=True)
    for path in (ROOT / "results" / "runs").glob("eurlex57k-1000d-*.json"):
        shutil.copy(path, local / "runs")
    record = RunRecord.load(next(local.glob("runs/*-510t-*-lookup+linear-s0.json")))
    lines = reproduce.summary(record.dataset["fingerprint"], 510, "minilm", local).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("Planting changed nDCG@5 on test by ")
    assert lines[-1] == "whole table: results/local/eurlex57k/table-eurlex57k-1000d-510t.md"
    assert "| lookup+linear |" in (local / "table-eurlex57k-1000d-510t.md").read_text()
    # a job without runs
    assert reproduce.summary("another corpus", 510, "minilm", local).splitlines() == [
        "no planted run of this job",
        "records: results/local/eurlex57k/runs",
    ]


def test_the_best_planted_run_planted_something():
    def record(system, dev, kind="planted"):
        return SimpleNamespace(system=system, kind=kind, history=[{"ndcg@5": dev}])

    controls = [record(name, 0.9) for name in ("random", "linear", "shuffled", "shuffled+linear")]
    controls.append(record("SVM", 0.95, kind="linear"))
    assert reproduce.best_run(controls) is None and reproduce.best_run([]) is None
    planted = [record("lookup", 0.3), record("lookup+linear", 0.5), record("score", 0.4)]
    assert reproduce.best_run(controls + planted).system == "lookup+linear"
