"""Run records as JSON, tables that compare them, README sections, notebooks run from YAML."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from companion import runner
from companion.report import compare
from plantlib.training import records as records_of_runs
from plantlib.training.records import SCHEMA, RunRecord, device_of, load_all

DOCUMENTS = 200


def record(system: str = "random", seed: int = 0, shift: float = 0.0, **changes) -> RunRecord:
    rng = np.random.default_rng(seed)
    hit = (rng.random(DOCUMENTS) < 0.5 + shift).astype(float)
    few = [None, *hit[1:].tolist()]
    options = {
        "id": f"toy-{system}-{seed}",
        "kind": "planted",
        "dataset": {
            "name": "toy",
            "fingerprint": "abc",
            "train": 9,
            "dev": 5,
            "test": DOCUMENTS,
            "labels": 30,
            "label_space": "labels seen in training",
            "synthetic": True,
        },
        "system": system,
        "seed": seed,
        "backbone": "minilm",
        "metrics": {"p@1": hit.mean(), "ndcg@5": np.float32(0.5), "few/rp@5": float("nan")},
        "per_document": {"p@1": hit.tolist(), "few/rp@5": few},
        "history": [{"epoch": 1, "dev": {"p@1": 0.5}, "train_loss": 0.1, "seconds": 2.0}],
        "params": {"rates": (1e-3, 1e-4)},
        "created": "2026-01-01",
    }
    return RunRecord(**(options | changes))


def test_record_survives_json_and_is_plain(tmp_path):
    run = record(environment=records_of_runs.environment())
    path = run.save(tmp_path)
    assert RunRecord.load(path) == run and path.name == "toy-random-0.json"
    assert run.metrics["few/rp@5"] is None and run.params["rates"] == [1e-3, 1e-4]
    assert type(run.metrics["p@1"]) is float and type(run.metrics["ndcg@5"]) is float
    raw = json.loads(path.read_text())
    assert raw["schema"] == SCHEMA and len(path.read_text().splitlines()) == len(raw) + 2
    before = path.read_bytes()
    RunRecord.load(path).save(tmp_path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_repr_is_deterministic_and_shows_the_result():
    run = record(metrics={"p@1": 0.51234, "ndcg@5": None})
    assert (
        repr(run) == "RunRecord('toy-random-0', dataset='toy', system='random', seed=0, p@1=0.5123)"
    )
    assert repr(replace(run, times={"train": 3.0})) == repr(run)
    shown = run._repr_markdown_()
    assert "(synthetic)" in shown and "| p@1 | 0.5123 |" in shown and "| ndcg@5 | - |" in shown


def test_a_record_names_its_device_and_the_commit_may_come_from_the_environment(monkeypatch):
    environment = records_of_runs.environment()
    cores = f"{environment['cores']} cores of {environment['cpu']}"
    with_gpu = environment | {"gpu": "a card"}
    without_gpu = {key: value for key, value in environment.items() if key != "gpu"}
    assert device_of(record(environment=with_gpu)) == "a card"
    assert device_of(record(environment=with_gpu, kind="linear")) == cores
    assert device_of(record(environment=without_gpu)) == cores
    monkeypatch.setattr(records_of_runs, "_git", lambda *_: "")
    assert records_of_runs.environment()["commit"] == "unknown"
    assert records_of_runs.environment()["dirty"] is None
    monkeypatch.setenv("PLANT_COMMIT", "abc")
    assert records_of_runs.environment()["commit"] == "abc"


@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_what_runs_write_does_not_make_the_code_dirty(tmp_path, monkeypatch):
    for name in (
        "plantlib/training/records.py",
        "Makefile",
        "results/runs/a.json",
        "plantlib/results/b.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    monkeypatch.setattr(
        records_of_runs, "__file__", str(tmp_path / "plantlib" / "training" / "records.py")
    )
    commit = records_of_runs.environment()["commit"]
    assert len(commit) == 40 and records_of_runs.environment()["dirty"] is False
    (tmp_path / "results/runs/a.json").write_text("another record")
    assert records_of_runs.environment()["dirty"] is False, "records are not code"
    # a folder called results inside the package is code, and so are files beside the package
    for name in ("Makefile", "plantlib/training/records.py", "plantlib/results/b.json"):
        (tmp_path / name).write_text("changed")
        assert (
            records_of_runs.environment()["dirty"] is True
            and records_of_runs.environment()["commit"] == commit
        )
        subprocess.run([*git, "checkout", "-q", name], check=True, capture_output=True)
    assert records_of_runs.environment()["dirty"] is False


def test_environment_names_no_machine():
    import socket

    environment = records_of_runs.environment()
    text = json.dumps(environment)
    assert environment["cores"] >= 1 and environment["python"].startswith("3.")
    assert environment["gpu"] == (
        torch.cuda.get_device_name() if torch.cuda.is_available() else None
    )
    assert str(Path.home()) + "/" not in text and str(Path(__file__).parent) not in text
    assert (
        socket.gethostname() not in [*map(str, environment.values())] and "user" not in environment
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, "wanted one of planted, linear, teacher"),
        ({"id": "a/b"}, "file name"),
        ({"dataset": {"name": "toy"}}, "dataset lacks fingerprint, train"),
        ({"environment": {"python": "3"}}, "environment lacks torch"),
        ({"params": {"note": "x" * 501}}, "params of run 'toy-random-0' holds 501 characters"),
        ({"history": [{"x" * 501: 1}]}, "501 characters"),
        ({"teacher": {"file": "/home/someone/teacher.npz"}}, "absolute path"),
        ({"teacher": {"file": r"C:\data\x"}}, "absolute path"),
        ({"params": {"f": object()}}, "cannot hold a object"),
        ({"per_document": {"p@1": [1.0]}}, "has 1 values, wanted 200"),
    ],
)
def test_record_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        record(**changes)


def test_record_allows_what_only_looks_like_a_path():
    record(
        params={
            "a": "few/rp@5",
            "b": "https://arxiv.org/abs/2410.23066",
            "c": "notebooks/05.ipynb",
            "d": "and/or",
        }
    )


@pytest.mark.parametrize(("key", "value"), [("schema", 0), ("seed", None), ("extra", 1)])
def test_load_refuses_other_schemas(tmp_path, key, value):
    path = record().save(tmp_path)
    raw = json.loads(path.read_text())
    raw.update({key: value}) if value is not None else raw.pop(key)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=f"toy-random-0.json .*{key}.*run it again"):
        RunRecord.load(path)


def test_compare_pairs_documents_and_averages_seeds(tmp_path):
    for system, shift in (("random", 0.0), ("lookup", 0.2), ("same", 0.0)):
        for seed in range(3):
            record(system, seed, shift).save(tmp_path)
    record("single", 0, 0.1).save(tmp_path)
    runs = load_all(tmp_path)
    table = compare.compare(runs, metrics=("p@1", "ndcg@5", "few/rp@5"))
    assert list(table.index) == ["random", "lookup", "same", "single"] and list(table["seeds"]) == [
        3,
        3,
        3,
        1,
    ]
    wanted = [run.metrics["p@1"] for run in runs if run.system == "lookup"]
    assert table.loc["lookup", "p@1"] == pytest.approx(np.mean(wanted))
    assert table.loc["lookup", "p@1 sd"] == pytest.approx(np.std(wanted, ddof=1))
    base = np.mean([run.metrics["p@1"] for run in runs if run.system == "random"])
    row = table.loc["lookup"]
    assert (
        row["p@1 diff"] == pytest.approx(row["p@1"] - base)
        and row["p@1 low"] < row["p@1 diff"] < row["p@1 high"]
    )
    # the same random numbers under both systems: paired, every document wins or ties
    assert row["p@1 low"] > 0 and row["p@1 p"] < 0.001 and table.loc["same", "p@1 p"] == 1
    assert "ndcg@5 p" not in table.columns and math.isnan(table.loc["random", "p@1 diff"])
    assert compare.compare(runs[::-1], metrics=("p@1", "ndcg@5", "few/rp@5")).equals(table)


def test_markdown_table():
    import pandas as pd

    columns = [
        "seeds",
        "p@1",
        "p@1 sd",
        "p@1 diff",
        "p@1 low",
        "p@1 high",
        "p@1 p",
        "map",
        "map sd",
    ]
    nan = float("nan")
    rows = [
        [3, 0.5, 0.0123, nan, nan, nan, nan, 0.25, nan],
        [1, 0.6, nan, 0.1, 0.05, 0.15, 0.004, nan, nan],
        [2, 0.49, 0.001, -0.01, -0.03, 0.01, 0.3, 0.2, 0.02],
    ]
    table = pd.DataFrame(
        rows, columns=columns, index=pd.Index(["random", "lookup", "v1"], name="system")
    )
    assert compare.to_markdown(table).splitlines() == [
        "| system | seeds | p@1 | Δ p@1 | map |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| random | 3 | 50.0 ± 1.2 | - | 25.0 |",
        r"| lookup | 1 | 60.0 | +10.0 [+5.0, +15.0] \* | - |",
        "| v1 | 2 | 49.0 ± 0.1 | -1.0 [-3.0, +1.0] | 20.0 ± 2.0 |",
        "",
        "Percent; mean ± standard deviation over seeds. Δ: difference to random [95 % interval],"
        " paired bootstrap over "
        r"seeds and test documents; \* p < 0.05, not corrected for the number of comparisons.",
    ]


def test_compare_refuses_what_cannot_be_compared():
    base = record()
    other = record("lookup", dataset=base.dataset | {"fingerprint": "xyz"})
    with pytest.raises(ValueError, match="more than one data set"):
        compare.compare([base, other])
    with pytest.raises(ValueError, match="more than one backbone"):
        compare.compare([base, record("lookup", backbone="llama")])
    with pytest.raises(ValueError, match="both random, seed 0"):
        compare.compare([base, record(id="again")])
    with pytest.raises(ValueError, match="no record of the baseline 'l2r'"):
        compare.compare([base], baseline="l2r")
    assert list(compare.compare([base, record("linear", backbone=None, kind="linear")]).index) == [
        "random",
        "linear",
    ]


def test_sections_are_replaced_between_their_markers(tmp_path):
    path = tmp_path / "README.md"
    b = "<!-- table:begin b --><!-- table:end b -->\n"
    path.write_text(
        f"# T\n<!-- table:begin a -->\nold\n<!-- table:end a -->\ntail é\n{b}", encoding="utf-8"
    )
    compare.replace_section(path, "a", "| new |\n")
    compare.replace_section(path, "b", r"\1 \g<0>")
    assert compare.section(path, "a") == "| new |" and compare.section(path, "b") == r"\1 \g<0>"
    once = path.read_text(encoding="utf-8")
    compare.replace_section(path, "a", "| new |")
    assert (
        path.read_text(encoding="utf-8") == once
        and once.startswith("# T\n<!--")
        and "\ntail é\n" in once
    )
    with pytest.raises(ValueError, match="table:begin c"):
        compare.section(path, "c")


def notebook(path: Path, *cells: str) -> Path:
    import nbformat

    notebook_cells = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook_cells[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=notebook_cells, metadata=kernel), path)
    return path


def test_misspelt_parameter_is_an_error(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "epochs = 1\nseed = 0  # int")
    with pytest.raises(ValueError, match="has no parameter epoch; known: epochs, seed"):
        runner.run_notebook(path, {"epoch": 3}, tmp_path / "out.ipynb", progress=False)
    assert not (tmp_path / "out.ipynb").exists()


def test_yaml_runs_what_is_missing_and_reports_failure(tmp_path, capsys, monkeypatch):
    template = record(id="placeholder").save(tmp_path / "template")
    notebook(
        tmp_path / "notebooks" / "toy.ipynb",
        "run_id = 'lesson'\nseed = 0\nfail = False",
        "import json, pathlib\nif fail:\n    raise KeyError('no such corpus')",
        "raw = json.loads(pathlib.Path('../template/placeholder.json').read_text())\n"
        "raw.update(id=run_id, seed=seed)\n"
        "folder = pathlib.Path('../results/runs')\nfolder.mkdir(parents=True, exist_ok=True)\n"
        "(folder / f'{run_id}.json').write_text(json.dumps(raw))",
    )
    assert template.exists()
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "good.yaml").write_text("notebook: notebooks/toy.ipynb\nparameters: {seed: 7}\n")
    (runs / "bad.yaml").write_text("notebook: notebooks/toy.ipynb\nparameters: {fail: true}\n")
    monkeypatch.chdir(tmp_path)
    assert runner.main(["runs/good.yaml", "runs/bad.yaml"]) == 1
    done = RunRecord.load(tmp_path / "results" / "runs" / "good.json")
    assert (done.id, done.seed) == ("good", 7)
    assert "KeyError: 'no such corpus'" in capsys.readouterr().err
    assert (tmp_path / "results" / "executed" / "bad.ipynb").exists()
    # present, so nothing is executed: a broken notebook is not even opened
    (tmp_path / "notebooks" / "toy.ipynb").write_text("broken")
    assert runner.main(["runs/good.yaml"]) == 0 and runner.main(["--force", "runs/good.yaml"]) == 1


def test_yaml_errors_name_the_fix(tmp_path):
    path = tmp_path / "runs" / "a.yaml"
    path.parent.mkdir()
    notebook(tmp_path / "n.ipynb", "seed = 0")
    for text, message in (
        ("id: b\nnotebook: n.ipynb", "has the id 'b'"),
        ("parameters: {}", "expected the keys"),
        ("notebook: n\nparams: {}", "expected the keys"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            runner.run_yaml(path)


def test_grid_notebook_writes_into_the_folder_it_is_given(tmp_path):
    """A notebook with `results` and no `run_id` names its records itself; the folder is seen from
    above runs/.
    """
    record(id="placeholder").save(tmp_path / "template")
    notebook(
        tmp_path / "notebooks" / "grid.ipynb",
        "results = ''\nnumbers = [0]",
        "import json, pathlib\nraw ="
        " json.loads(pathlib.Path('../template/placeholder.json').read_text())\nfolder ="
        " pathlib.Path(results)\nfolder.mkdir(parents=True, exist_ok=True)\nfor seed in numbers:\n"
        "    (folder / f'g{seed}.json').write_text(json.dumps(raw | {'id': f'g{seed}', 'seed':"
        " seed}))",
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "g.yaml").write_text(
        "notebook: notebooks/grid.ipynb\nparameters: {numbers: [0, 1], results: out/r}\n"
    )
    folder = runner.run_yaml(tmp_path / "runs" / "g.yaml", progress=False)
    assert folder == tmp_path / "out" / "r" and [r.id for r in load_all(folder)] == ["g0", "g1"]
    (tmp_path / "runs" / "none.yaml").write_text(
        "notebook: notebooks/grid.ipynb\nparameters: {numbers: [], results: none}\n"
    )
    with pytest.raises(RuntimeError, match="wrote no record into none"):
        runner.run_yaml(tmp_path / "runs" / "none.yaml", progress=False)
