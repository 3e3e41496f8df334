"""Files of runs/ that cannot be used are one line of error, before anything is run."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import nbformat
import pytest
import yaml

from companion import launch, runner

ROOT = Path(runner.__file__).resolve().parents[1]
NO_YAML = [
    "parameters: [1, 2\n",
    "a: b: c\n",
    "\tparameters: {}\n",
    "",
    "just words\n",
    "- 1\n- 2\n",
    "parameters: 3\nnotebook: notebooks/n.ipynb\n",
    "notebook: notebooks/n.ipynb\nparameters: {1: 2}\n",
    "parameters: !!python/object/apply:os.system ['true']\n",
]


def good(**changes) -> dict:
    return {"dataset": "codiesp", "backbones": ["minilm"], "seeds": [0], **changes}


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(runner, "run_notebook", lambda *a, **k: pytest.fail("it was run"))


@pytest.fixture
def place(tmp_path, nothing_runs):
    """A folder like a checkout, with one notebook; a function that writes runs/a.yaml."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "runs").mkdir()
    cell = nbformat.v4.new_code_cell(
        "dataset = 'codiesp'\nseeds = [0]\nepochs = 3\nstarts = ['random']\npeers = True\n"
        "run_id = ''\nrare = 0.0",
        metadata={"tags": ["parameters"]},
    )
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "notebooks" / "n.ipynb"
    )

    def write(content) -> Path:
        path = tmp_path / "runs" / "a.yaml"
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        path.write_text(text)
        return path

    return write


def one_line(capsys) -> str:
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert printed.out == "" and len(lines) == 1 and "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("text", NO_YAML)
@pytest.mark.parametrize("main", [launch.main, runner.main])
def test_what_is_no_yaml_of_runs_is_one_line(main, text, place, capsys):
    assert main([str(place(text))]) == 1
    assert "a.yaml" in one_line(capsys)


@pytest.mark.parametrize("main", [launch.main, runner.main])
def test_a_file_that_is_missing_or_no_text_is_one_line(main, place, capsys, tmp_path):
    assert main([str(tmp_path / "absent.yaml")]) == 1
    assert "absent.yaml" in one_line(capsys)
    path = place("")
    path.write_bytes(b"parameters: \xff\xfe")
    assert main([str(path)]) == 1
    assert "a.yaml is not UTF-8" in one_line(capsys)


WRONG = [
    {"seeds": ["a"]},
    {"seeds": [-1]},
    {"seeds": [0.5]},
    {"seeds": 0},
    {"seeds": []},
    {"seeds": [True]},
    {"epochs": 1.5},
    {"epochs": 0},
    {"epochs": "many"},
    {"epochs": float("nan")},
    {"starts": "random"},
    {"starts": [3]},
    {"dataset": 3},
]


@pytest.mark.parametrize("changes", WRONG)
def test_launch_refuses_values_of_another_kind(changes, place, capsys, monkeypatch):
    path = place({"parameters": good(**changes)})
    with pytest.raises(ValueError, match=next(iter(changes))) as refused:
        launch.read_parameters(path)
    assert "\n" not in str(refused.value)
    assert launch.main([str(path)]) == 1
    assert next(iter(changes)) in one_line(capsys)


@pytest.mark.parametrize(
    "changes",
    [
        {"starts": ["nonsense"]},
        {"lr_backbone": "fast"},
        {"quantise": "no"},
        {"backbones": "minilm"},
    ],
)
def test_launch_refuses_options_that_it_knows(changes, place):
    with pytest.raises(ValueError):
        launch.read_parameters(place({"parameters": good(**changes)}))
    with pytest.raises(ValueError, match="lacks the parameters backbones"):
        launch.read_parameters(place({"parameters": {"dataset": "codiesp"}}))
    with pytest.raises(ValueError, match="no YAML"):
        launch.read_parameters(place({"parameters": good()}), ["seeds=[0"])


@pytest.mark.parametrize("changes", [*WRONG, {"peers": "no"}, {"rare": "much"}])
def test_the_runner_refuses_values_of_another_kind(changes, place, capsys):
    parameters = {"dataset": "codiesp"} | changes
    path = place({"notebook": "notebooks/n.ipynb", "parameters": parameters})
    assert runner.main([str(path)]) == 1
    assert next(iter(changes)) in one_line(capsys)


@pytest.mark.parametrize("name", ["../n.ipynb", "/etc/passwd", "notebooks/absent.ipynb", 3, None])
def test_a_notebook_outside_the_checkout_is_refused(name, place, capsys, tmp_path):
    (tmp_path.parent / "n.ipynb").write_text("{}")
    assert runner.main([str(place({"notebook": name, "parameters": {}}))]) == 1
    assert "is no file below" in one_line(capsys)


def test_a_corpus_that_is_nowhere_is_refused_before_the_notebook(place, capsys):
    path = place({"notebook": "notebooks/n.ipynb", "parameters": {"dataset": "data/absent"}})
    assert runner.main([str(path)]) == 1
    assert "unknown data set 'data/absent'" in one_line(capsys)


def test_paths_of_a_run_start_above_runs_wherever_it_is_called(
    corpus, place, tmp_path, monkeypatch
):
    """The notebook runs in its own folder, and the command in any."""
    corpus.save(tmp_path / "data" / "klein korpus")
    seen = {}

    def run(notebook, parameters, output, progress):
        seen.update(parameters)
        record = tmp_path / "results" / "runs" / "a.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")

    monkeypatch.setattr(runner, "run_notebook", run)
    monkeypatch.setattr(runner.RunRecord, "load", lambda path: None)
    path = place({"notebook": "notebooks/n.ipynb", "parameters": {"dataset": "data/klein korpus"}})
    monkeypatch.chdir("/")
    runner.run_yaml(path)
    assert seen["dataset"] == str(tmp_path / "data" / "klein korpus")


def test_every_file_of_runs_is_accepted():
    """Each names a notebook or a study and fits its parameters."""
    for path in sorted((ROOT / "runs").glob("*.yaml")):
        data = runner.read_yaml(path)
        if "study" in data:
            study = importlib.import_module(f"companion.studies.{data['study']}")
            inspect.signature(study.run).bind(**data["parameters"])
            continue
        known = runner._defaults(_parameters(ROOT / data["notebook"]))
        runner.check_parameters(data.get("parameters") or {}, known, path.name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"study": "none"}, "companion.studies has no 'none'"),
        ({"study": "grids"}, "companion.studies has no 'grids'"),
        ({"study": "official", "parameters": {"tasks": "D"}}, "unknown tasks; official takes"),
        ({"study": "official", "parameters": {"task": "X"}}, "task='X'"),
    ],
)
def test_a_study_that_cannot_be_run_is_one_line(place, capsys, content, message):
    assert runner.main([str(place(content))]) == 1
    assert message in one_line(capsys)


def test_a_changed_study_writes_to_a_folder_of_its_own(place, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        "companion.studies.official.measure",
        lambda *given: seen.update(given=given) or {"rows": []},
    )
    path = place({"study": "official", "parameters": {"task": "D", "supervision": ["codes"]}})
    folder = runner.run_yaml(path, changes={"seeds": [5]})
    assert folder.parent == tmp_path / "results" / "local"
    assert (folder / "official-codiesp-d-codes.json").is_file()
    assert seen["given"] == ("D", "codes", [5], True)


def _parameters(notebook: Path) -> dict:
    import papermill

    return papermill.inspect_notebook(notebook)
