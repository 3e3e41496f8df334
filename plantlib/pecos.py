"""PECOS in a virtual environment of its own, because it needs a numpy and a scipy older than everybody else's.

`interpreter()` makes the environment once and returns its Python; `peer_worker.py` is run by it. XR-Linear needs numpy, scipy
and scikit-learn alone, so libpecos is installed without its other dependencies, which would bring gigabytes. Where it cannot
be installed, `PecosUnavailable` says why, and the peers' table says "not run".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PINS = ("numpy==1.26.4", "scipy==1.13.1", "scikit-learn==1.5.2")
LIBPECOS = "libpecos==1.2.8"
CHECK = "from pecos.xmc.xlinear.model import XLinearModel"


class PecosUnavailable(RuntimeError):
    """PECOS cannot be installed or imported here; the message says why."""


def interpreter(root: str | Path | None = None, base: str = sys.executable) -> Path:
    """The Python that can import pecos, its environment made under `root`/pecos where it is missing (about a minute).

    $PLANT_PECOS names one that is there already. PecosUnavailable with the installer's own words where it fails.
    """
    named = os.environ.get("PLANT_PECOS")
    if named:
        _check(Path(named))
        return Path(named)
    from plantlib.pipeline import artefacts

    folder = artefacts(root) / "pecos"
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _call([base, "-m", "venv", str(folder)], "make a virtual environment")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        _call([*pip, *PINS], f"install {', '.join(PINS)}")
        _call([*pip, "--no-deps", LIBPECOS], f"install {LIBPECOS}")
        _check(python)
        (folder / ".ready").touch()
    return python


def _check(python: Path) -> None:
    _call([str(python), "-c", CHECK], "import pecos")


def _call(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PecosUnavailable(f"could not {what}: {error.strerror} ({Path(command[0]).name}); set PLANT_PECOS") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        said = " / ".join(errors[-2:])[-300:] or f"exit status {done.returncode}"
        raise PecosUnavailable(
            f"could not {what} for Python {sys.version_info[0]}.{sys.version_info[1]}: {said}. XR-Linear is not run; "
            f"{LIBPECOS} has wheels up to Python 3.12: set PLANT_PECOS to the python of an environment that has it"
        )
