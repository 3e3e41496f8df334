"""Checks of the stored notebooks, without executing them: structure, size, order of execution, and
no trace of the machine they were executed on.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9A]*.ipynb"))
COMMON = {"dataset", "backbone", "max_tokens", "train_documents", "dev_documents", "test_documents"}
PARAMETERS = {
    "02_mutual_information": COMMON,
    "03_attention_pretraining": COMMON | {"seeds"},
    "05_finetune": COMMON
    | {"label_space", "starts", "seeds", "epochs", "candidates", "peers", "results"},
    "07_paper_vs_ours": {"runs", "out"},
}
MACHINE = re.compile(r"(?:/(?:home|root|work|Users|usr|opt|tmp)/|[A-Z]:\\\\)[\w.-]*")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def cells(path: Path, kind: str = "code") -> list:
    """The code or markdown cells of a notebook, in order."""
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def python(source: str) -> ast.Module:
    """The syntax tree of a code cell without its magics."""
    return ast.parse(
        "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    )


def test_there_are_notebooks():
    assert {p.stem for p in NOTEBOOKS} >= set(PARAMETERS) | {
        "00_start_here",
        "01_data_and_metrics",
        "04_planting_and_decoder",
    }


def test_opening_says_what_is_done_learnt_needed_and_its_price(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    text = first.source.lower()
    assert all(word in text for word in ("you will", "learn", "need", "price"))


def test_sections_disk_and_exercises(path):
    text = "\n".join(c.source for c in cells(path, "markdown"))
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert sum(heading[0].isdigit() for heading in headings) >= 4, headings
    assert "What is on disk now" in headings and "Exercises" in headings
    exercises = text.split("## Exercises")[1]
    assert re.search(r"^1\. ", exercises, re.M) and re.search(r"^2\. ", exercises, re.M)


def test_one_parameters_cell_of_commented_literals(path):
    tagged = [c for c in cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in tagged[0].source.splitlines():
        assert "  # " in line, f"no comment: {line}"
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_that_reproduce_sets_exist(name):
    papermill = pytest.importorskip("papermill")
    assert set(papermill.inspect_notebook(ROOT / "notebooks" / f"{name}.ipynb")) == PARAMETERS[name]


def test_size(path):
    # notebook 07 stores tables and figures of all data sets, notebook 06 those of all switches
    largest = {"06": 400_000, "07": 500_000}.get(path.stem[:2], 300_000)
    assert len(cells(path)) <= 35 and path.stat().st_size <= largest


def test_long_functions_live_in_plantlib(path):
    for cell in cells(path):
        for node in ast.walk(python(cell.source)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.end_lineno - node.lineno + 1 <= 12, f"{node.name} belongs to plantlib"


def test_executed_top_to_bottom_without_errors(path):
    code = cells(path)
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert "widget-view" not in " ".join(output.get("data", {}))


def test_nothing_of_this_machine_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert "version" not in notebook.metadata.language_info
    for cell in notebook.cells:
        folded = {"jupyter"} if cell["id"].endswith("-install") else set()
        assert set(cell.metadata) <= {"tags"} | folded
        for output in cell.get("outputs", []):
            data = output.get("data", {}).items()
            text = "".join(str(value) for kind, value in data if kind.startswith("text"))
            text += output.get("text", "")
            assert not MACHINE.search(text) and "Traceback" not in text, MACHINE.findall(text)
        if cell.cell_type == "code":
            assert not MACHINE.search(cell.source) and "../" not in cell.source


def test_ids_are_stable(path):
    ids = [c["id"] for c in nbformat.read(path, as_version=4).cells]
    assert len(set(ids)) == len(ids)
    assert all(i.startswith(path.stem[:2] + "-") for i in ids)


def install_cell():
    """The module notebooks/install_cell.py."""
    spec = importlib.util.spec_from_file_location(
        "install_cell", ROOT / "notebooks" / "install_cell.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_code_cell_installs_what_is_missing(path):
    first, second = cells(path)[:2]
    message = f"run: python notebooks/install_cell.py {path.name}"
    assert first.source == install_cell().SOURCE, message
    assert first.metadata == install_cell().METADATA, message
    assert first.outputs == [] and "parameters" in second.metadata.tags


def test_the_install_cell_is_inserted_once_and_raises_the_counts():
    module = install_cell()
    new = nbformat.v4
    result = new.new_output("execute_result", {"text/plain": "1"}, execution_count=1)
    code = new.new_code_cell("1", id="99-01", execution_count=1, outputs=[result])
    notebook = new.new_notebook(
        cells=[new.new_markdown_cell("# T", id="99-00"), code, new.new_code_cell("2", id="99-02")]
    )
    assert module.insert(notebook, "99")
    assert not module.insert(notebook, "99")
    assert [c["id"] for c in notebook.cells] == ["99-00", "99-install", "99-01", "99-02"]
    assert [c.execution_count for c in notebook.cells[1:]] == [1, 2, None]
    assert result.execution_count == 2


def test_the_install_cell_acts_only_without_plantlib(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = compile(install_cell().SOURCE, "cell", "exec")
    # plantlib is there: nothing happens
    exec(source, {})
    assert calls == [] and capsys.readouterr() == ("", "")
    # without plantlib, inside a checkout: the checkout is installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(ROOT / "notebooks")
    exec(source, {})
    assert calls == [["bash", str(ROOT / "binder" / "postBuild")]] and sys.path[0] == str(ROOT)
    # without either: the repository is cloned first
    address = "https://example.org/plant.git"
    monkeypatch.chdir("/")
    monkeypatch.setattr("builtins.input", lambda prompt: address)
    exec(source, {})
    assert calls[1] == ["git", "clone", "--depth", "1", address, "plant"] and len(calls) == 3


def test_the_readme_links_each_notebook(path):
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("no README")
    assert f"notebooks/{path.name}" in readme.read_text(encoding="utf-8")


def test_notebook_05_lists_every_run_file():
    notebook = nbformat.read(ROOT / "notebooks" / "05_finetune.ipynb", as_version=4)
    [table] = [c.source for c in notebook.cells if c["id"] == "05-data"]
    listed = set(re.findall(r"`([a-z0-9.-]+)`", table))
    runs = (ROOT / "runs").glob("*.yaml")
    assert {path.stem for path in runs if "notebook:" in path.read_text()} <= listed
