"""Where corpora come from: the known names, the choice of one, and building it once.

A name leads to a script in data_scripts/, which fetches the public origin or reads a folder under
$PLANT_DATA. Built corpora lie in $PLANT_HOME, else data/. This is the registry only: the class is
in `corpus.py`, users' tables are read by `tables.py`, downloads and formats are in data_scripts/.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from plantlib.data.storage import manifest_of
from plantlib.utils.base import DataError
from plantlib.utils.places import cache_folder


class Source(NamedTuple):
    """A known corpus: its script, its folder under $PLANT_DATA, arguments of the script's build."""

    script: str
    folder: str
    options: dict[str, Any]


KNOWN = {
    "codiesp": Source("get_codiesp", "codiesp", {}),
    "codiesp-es": Source("get_codiesp", "codiesp", {"language": "es"}),
    **{
        f"codiesp-{task}{end}": Source(
            "get_codiesp", "codiesp", {"task": task.upper(), "language": end[1:] or "en"}
        )
        for task in ("d3", "p", "dp")
        for end in ("", "-es")
    },
    "eurlex57k": Source("get_eurlex57k", "eurlex57k", {}),
    "cooking": Source("get_cooking", "stackexchange_cooking", {}),
    "debtags": Source("get_debtags", "debtags", {}),
    "synthetic-icd": Source("get_synthetic_icd", "synthetic-icd", {}),
    # read from local files alone: see the script
    **{
        name: Source("get_xmc", name, {"dataset": name})
        for name in ("eurlex-4k", "wiki10-31k", "amazoncat-13k", "amazon-670k", "amazon-3m")
    },
    # credentialed: made from the tables that the user has
    **{
        f"mimic3-{subset}": Source("get_mimic3", "mimic3", {"subset": subset})
        for subset in ("full", "top50", "rare50", "few")
    },
    "mimic3-full-exact": Source("get_mimic3", "mimic3", {"codes": "exact"}),
    **{
        f"mimic4-{subset}": Source("get_mimic4", "mimic4", {"subset": subset})
        for subset in ("icd10", "icd9", "few")
    },
}
GENERATED = "synthetic.json"  # marks a folder of tables that fixtures.py generated
ALIASES = {"stackexchange_cooking": "cooking", "synthetic_icd": "synthetic-icd"}
PREFERENCE = ("codiesp", "eurlex57k", "cooking", "debtags")


def checkout() -> Path:
    """The folder that holds plantlib/ and, in a checkout, data_scripts/."""
    return Path(__file__).resolve().parents[2]


def is_checkout() -> bool:
    """Whether the package lies in a checkout, and not among installed packages."""
    return (checkout() / "data_scripts" / "__init__.py").is_file()


def base_folder() -> Path:
    """The folder of data/ and artefacts/: the checkout, else the user's cache folder."""
    return checkout() if is_checkout() else cache_folder()


def homes(root: str | Path | None = None) -> list[Path]:
    """Folders that may hold built corpora, best first; new ones are built in the first.

    They are `root`, else $PLANT_HOME, else data/ here and in the checkout; an installed package
    has data/ in the user's cache folder instead.
    """
    if root is not None:
        return [Path(root)]
    if os.environ.get("PLANT_HOME"):
        return [Path(os.environ["PLANT_HOME"])]
    here, of_base = Path("data").absolute(), base_folder() / "data"
    return list(dict.fromkeys([here, of_base] if here.is_dir() else [of_base, here]))


def script(name: str) -> ModuleType:
    """Import data_scripts/<name>.py of the checkout, whatever the working folder."""
    folder = checkout() / "data_scripts"
    if not (folder / f"{name}.py").is_file():
        raise DataError(f"no {name}.py in {folder}: building needs a checkout (pip install -e .)")
    if "data_scripts" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "data_scripts", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules["data_scripts"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"data_scripts.{name}")


def find(name: str, root: str | Path | None = None) -> Path | None:
    """The folder of a corpus that is already built, or None."""
    name = ALIASES.get(name, name)
    return next(
        (home / name for home in homes(root) if (home / name / "manifest.json").is_file()), None
    )


def local_source(name: str) -> Path | None:
    """$PLANT_DATA/<folder> of a known name if it exists, else None."""
    data = os.environ.get("PLANT_DATA")
    folder = Path(data) / KNOWN[name].folder if data else None
    return folder if folder is not None and folder.is_dir() else None


def access(name: str) -> str:
    """How a known corpus is had: "open", "credentialed", or "by browser" (its origin has no
    address that a program can fetch).
    """
    script = KNOWN[name].script
    if script.startswith("get_mimic"):
        return "credentialed"
    return "by browser" if script == "get_xmc" else "open"


def ready(name: str) -> None:
    """Check a name before any long work.

    Raises:
        DataError: the corpus is credentialed and neither it nor its tables are here.
    """
    known = KNOWN.get(ALIASES.get(name, name))
    if (
        known
        and known.script.startswith("get_mimic")
        and find(name) is None
        and local_source(name) is None
    ):
        raise DataError(
            f"{name} is not built and needs your own credentials: get its tables from PhysioNet,"
            f" then run data_scripts/{known.script}.py --from FOLDER (data_scripts/README.md), or"
            f" set PLANT_DATA to the folder that holds {known.folder}/"
        )


def find_or_build(name: str, root: str | Path | None = None) -> Path:
    """The folder of a corpus by name; a known corpus is built first if it is absent.

    Raises:
        DataError: the name is neither built nor known.
    """
    name = ALIASES.get(name, name)
    folder = find(name, root)
    if folder and not _outdated(name, folder):
        return folder
    if name not in KNOWN:
        raise DataError(
            f"unknown corpus {name!r}: wanted a saved folder (with manifest.json) or one of "
            f"{', '.join(KNOWN)}; a table of your own goes through Corpus.from_csv"
        )
    known, home, source = KNOWN[name], homes(root)[0], local_source(name)
    origin = f"$PLANT_DATA/{known.folder}" if source else "its origin"
    # on stderr: the stored output of a notebook must not depend on what was already built
    print(
        f"{name}: not built yet, making it from {origin} with data_scripts/{known.script}.py",
        file=sys.stderr,
    )
    return script(known.script).build(home / name, source, **known.options)


def _outdated(name: str, folder: Path) -> bool:
    """Whether a credentialed corpus was made from generated tables while $PLANT_DATA has real ones.

    The corpus is then built again.
    """
    if name not in KNOWN or not KNOWN[name].script.startswith("get_mimic"):
        return False
    source = local_source(name)
    real = source is not None and not any(source.rglob(GENERATED))
    return real and bool(manifest_of(folder).get("synthetic"))


def choose(dataset: str | None = None) -> tuple[str, str]:
    """Choose a data set: `dataset` or $DATASET, else what $PLANT_DATA holds, else a public corpus.

    Returns:
        Its name, and a sentence that says why it was chosen.

    Raises:
        DataError: `dataset` is neither known nor built.
    """
    dataset = dataset or os.environ.get("DATASET")
    if dataset:
        name = ALIASES.get(dataset, dataset)
        if name in KNOWN or find(name) or (Path(dataset) / "manifest.json").is_file():
            return name, f"data set {name}: named by you"
        raise DataError(
            f"unknown data set {dataset!r}: wanted one of {', '.join(KNOWN)} or a saved corpus"
            " folder"
        )
    for name in PREFERENCE:
        if local_source(name):
            return name, f"data set {name}: $PLANT_DATA holds it"
    if shutil.which("apt-get"):
        return "debtags", "data set debtags: none named, and apt-get can fetch this one"
    return "cooking", "data set cooking: none named and no apt-get here; a small public download"
