"""Execute notebooks in place and normalise what is stored: `python notebooks/refresh.py
01_data_and_metrics.ipynb ...`.

Kept are outputs, execution counts and cell ids. Removed are progress bars, warnings, timings and
machine traces, so that a second run of the same code leaves the same file. Run it after every
change of a notebook, on a warm cache.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import nbformat

from plantlib.data import privacy

EXTRA = (
    "metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution"
    " metadata.language_info.version"
)
WIDGET = "application/vnd.jupyter.widget-view+json"


def refresh(path: Path) -> float:
    """Executes one notebook with its default parameters; returns the seconds it took."""
    import papermill
    from install_cell import insert

    fresh = nbformat.read(path, as_version=4)
    if insert(fresh, path.stem[:2]):
        nbformat.write(fresh, path)
    began = time.perf_counter()
    # kept in memory until it is known to hold no credentialed text
    notebook = papermill.execute_notebook(path, None, cwd=str(path.parent), progress_bar=False)
    seconds = time.perf_counter() - began
    if count := privacy.withhold(notebook, privacy.credentialed_folders()):
        raise privacy.PrivacyError(
            f"{path.name}: {count} outputs hold text of a credentialed corpus, nothing was written;"
            " store notebooks with their default data set"
        )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                o
                for o in cell.outputs
                if WIDGET not in o.get("data", {}) and o.get("name") != "stderr"
            ]
            for key in [k for k in cell.metadata if k != "tags"]:
                del cell.metadata[key]
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
    nbformat.write(notebook, path)
    strip = [sys.executable, "-m", "nbstripout", "--keep-output", "--keep-count", "--keep-id"]
    subprocess.run(
        [*strip, "--drop-output-type", "stream:stderr", "--extra-keys", EXTRA, str(path)],
        check=True,
    )
    return seconds


def main(arguments: list[str]) -> int:
    """All numbered notebooks, or those named."""
    folder = Path(__file__).resolve().parent
    for path in [folder / Path(a).name for a in arguments] or sorted(folder.glob("[0-9A]*.ipynb")):
        print(
            f"{path.name}: {refresh(path):.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
