"""Every public name has an example in its docstring, and it runs."""

from __future__ import annotations

import doctest

import pytest

import plantlib

# what a reader has at hand: `fit` and `prepare` take a corpus, a backbone and a folder
pytestmark = pytest.mark.filterwarnings("ignore:dev has .* right labels")


@pytest.mark.parametrize("name", plantlib.__all__)
def test_the_example_of_every_public_name_runs(name, corpus, backbone_folder, tmp_path):
    at_hand = {"corpus": corpus, "backbone": backbone_folder, "folder": str(tmp_path)}
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(plantlib, name), name, module=False, globs=at_hand)
    assert example.examples, f"{name} has no example"
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)
