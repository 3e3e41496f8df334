"""Outputs that nbval does not compare: stale ones are found, other numbers are not."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location(
    "stored_outputs", ROOT / "notebooks" / "stored_outputs.py"
)
stored_outputs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stored_outputs)


def printed(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def shown(**data: str) -> dict:
    mimes = {"png": "image/png", "html": "text/html", "plain": "text/plain"}
    return {"output_type": "display_data", "data": {mimes[k]: v for k, v in data.items()}}


SCORE = printed("planted score 0.71 after 3 epochs, in /tmp/tmpab_c/x1")


@pytest.mark.parametrize(
    "made",
    [
        [printed("planted score 0.69 after "), printed("4 epochs, in /tmp/tmpzz9/x1")],
        [printed("bar", "stderr"), SCORE],
        [shown(plain="Widget", html="") | {"data": {"application/widget-view+json": "x"}}, SCORE],
    ],
)
def test_other_numbers_places_and_bars_are_no_difference(made):
    assert stored_outputs.difference([SCORE], made) == ""


@pytest.mark.parametrize(
    "made, reason",
    [
        ([printed("shuffled gain 0.71 over 3 seeds, in x1")], "'after'"),
        ([SCORE, shown(png="AA", plain="<Figure>")], "picture"),
        ([], "the cell makes []"),
        ([shown(plain="planted score after epochs")], "['value']"),
    ],
)
def test_other_words_and_kinds_are(made, reason):
    assert reason in stored_outputs.difference([SCORE], made)


def test_words_of_a_table_are_read_without_its_markup():
    table = shown(html="<style>.red {color: red}</style><td class='blue'>asthma</td>", plain="zzz")
    assert stored_outputs.words([table]) == {"asthma"}


def test_nbval_fails_on_a_stale_hidden_output(tmp_path):
    for name in ("conftest.py", "stored_outputs.py"):
        shutil.copy(ROOT / "notebooks" / name, tmp_path)
    new = nbformat.v4
    cells = []
    for i, text in enumerate(("loss of the trained model 0.5", "another caption")):
        output = new.new_output("stream", name="stdout", text=text + "\n")
        cell = new.new_code_cell("print('loss of the trained model 0.4')", outputs=[output])
        cell["execution_count"] = i + 1
        cell.metadata["tags"], cell["id"] = ["nbval-ignore-output"], f"99-{i}"
        cells.append(cell)
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "99_toy.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "refresh.py 99_toy.ipynb" in done.stdout and "'another'" in done.stdout
