"""A study's results as one JSON file that is written after every step, so that a stopped study goes
on where it was. What the steps measure is the business of the studies that use it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plantlib.training.records import RunRecord, environment, load_all, plain
from plantlib.utils.io import read_json, write_json

FOLDER = "questions"  # below results/


class Steps:
    """The steps of one study on one corpus, in the order in which they were made.

    Args:
        path: the JSON file; one that was made from other inputs or options is begun anew.
        about: inputs and options that all steps share.
        force: begin anew in any case.
    """

    def __init__(self, path: str | Path, about: dict[str, Any], force: bool = False) -> None:
        self.path = Path(path)
        self.about = plain(about)
        known = read_json(self.path) if self.path.is_file() and not force else {}
        same = known.get("about") == self.about
        self.values: dict[str, Any] = known["steps"] if same else {}

    def __call__(self, name: str, make: Callable[[], dict]) -> dict:
        """The step `name`, made and written if the file lacks it; `cpu_seconds` is added to it."""
        if name not in self.values:
            began = time.process_time()
            value = make()
            seconds = round(time.process_time() - began, 1)
            self.values[name] = plain(value | {"cpu_seconds": seconds})
            about = {"about": self.about, "steps": self.values, "environment": environment()}
            write_json(self.path, about | {"created": time.strftime("%Y-%m-%d", time.gmtime())})
            print(f"{self.path.stem}: {name}, {seconds:.0f} CPU s", file=sys.stderr, flush=True)
        return self.values[name]


def load(results: str | Path, study: str) -> dict[str, dict]:
    """What a study has written below `results`: file name without ending -> contents."""
    files = sorted((Path(results) / FOLDER).glob(f"{study}-*.json"))
    return {path.stem: read_json(path) for path in files}


def records_folder(results: Path, study: str, force: bool = False) -> Path:
    """Where the run records of a study lie; with `force` those that are there are removed."""
    folder = results / FOLDER / study
    if force:
        for path in folder.glob("*.json"):
            path.unlink()
    return folder


def records(results: str | Path, study: str) -> list[RunRecord]:
    """The run records of a study; none where it has not run."""
    folder = records_folder(Path(results), study)
    return load_all(folder) if folder.is_dir() else []


def rounded(values, digits: int = 4) -> list[float | None]:
    """Numbers for a file: rounded, nan as None."""
    return [None if value != value else round(float(value), digits) for value in values]
