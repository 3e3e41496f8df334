"""The mark of credentialed data, and the one rule about it: what carries it stays in a data folder.

A corpus's manifest, a model's configuration and an explanation say `credentialed`. Whatever writes
one of them asks `check_folder`, with $PLANT_HOME set or not. Files that hold no text (records,
cards) may leave after `privacy.check` has compared them with the texts.
"""

from __future__ import annotations

import subprocess
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plantlib.data import sources
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json

MARK = "credentialed"
# files whose JSON may carry the mark: of a corpus, a model, and backbones made from a corpus's text
MARKED_FILES = ("manifest.json", "config.json", "pretraining.json", "adaptation.json")


# the credentialed corpora of this process, wherever they were read from
IN_MEMORY: weakref.WeakSet = weakref.WeakSet()


class PrivacyError(DataError):
    """Credentialed text was about to leave the data folder; the message never quotes it."""


def data_homes() -> list[Path]:
    """The folders that may hold credentialed text, resolved."""
    return [home.resolve() for home in sources.homes()]


def inside_data(path: str | Path) -> bool:
    """Whether `path` lies in a data folder ($PLANT_HOME, else data/)."""
    path = Path(path).resolve()
    return any(path == home or home in path.parents for home in data_homes())


def is_marked(about: Mapping[str, Any]) -> bool:
    """Whether a manifest or a configuration carries the mark."""
    return bool(about.get(MARK))


def remember(corpus: Any) -> None:
    """Keep a `Corpus` among those that written texts are compared with, as long as it lives."""
    if is_marked(corpus.manifest):
        IN_MEMORY.add(corpus)


def texts_in_memory() -> list[str]:
    """Each text of the remembered corpora once; subsets share the texts of their corpus."""
    texts = {id(text): text for corpus in list(IN_MEMORY) for text in corpus.texts}
    return list(texts.values())


def folder_is_marked(folder: str | Path) -> bool:
    """Whether a folder holds a credentialed corpus, or a model or backbone made from one."""
    for name in MARKED_FILES:
        path = Path(folder).expanduser() / name
        if path.is_file():
            about = read_json(path)
            if isinstance(about, dict) and is_marked(about):
                return True
    return False


def check_folder(what: str, path: str | Path, marked: bool = True) -> None:
    """PrivacyError if something credentialed would be written outside the data folder.

    Args:
        what: names it at the beginning of the message.
        path: the file or folder that would be written.
        marked: whether it is credentialed.
    """
    if marked and not inside_data(path):
        home = sources.homes()[0]
        raise PrivacyError(
            f"{what} is credentialed and {Path(path).name} lies outside the data folder: write it"
            f" below {home.name}/, or set PLANT_HOME to the folder that may hold such data"
        )


def check_place(folder: str | Path) -> None:
    """PrivacyError if a credentialed corpus would be written to a folder that git would add."""
    folder = Path(folder).resolve()
    existing = next(p for p in folder.parents if p.is_dir())
    git = ["git", "-C", str(existing)]
    inside = subprocess.run(
        [*git, "rev-parse", "--is-inside-work-tree"], capture_output=True, text=True
    )
    if (
        inside.stdout.strip() == "true"
        and subprocess.run([*git, "check-ignore", "-q", str(folder)]).returncode
    ):
        raise PrivacyError(
            f"{folder.name} lies in a git work tree and is not ignored: a credentialed corpus goes"
            " to data/, to $PLANT_HOME outside the checkout, or to a folder that .gitignore names"
        )
