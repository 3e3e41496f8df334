"""Executes notebooks in place: `python notebooks/refresh.py 01_data_and_metrics.ipynb ...`.

Outputs, execution counts and cell ids are stored. Progress bars, warnings, timings and traces of
the machine are removed, so executing the same code again leaves the same file. Run it after every
change of a notebook, with the artefacts already on disk.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from plantlib.data import privacy
from plantlib.data.credentials import PrivacyError

EXTRA = (
    "metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution"
    " metadata.language_info.version"
)
WIDGET = "application/vnd.jupyter.widget-view+json"


def refresh(path: Path) -> float:
    """Executes one notebook with its default parameters and stores it.

    Returns:
        Seconds of the execution.

    Raises:
        PrivacyError: if an output holds text of a credentialed corpus; nothing is written then.
    """
    import papermill
    from install_cell import insert

    # Renew the install cell.
    stored = nbformat.read(path, as_version=4)
    if insert(stored, path.stem[:2]):
        nbformat.write(stored, path)

    # Execute in memory and write only what holds no credentialed text.
    began = time.perf_counter()
    notebook = papermill.execute_notebook(path, None, cwd=str(path.parent), progress_bar=False)
    seconds = time.perf_counter() - began
    if count := privacy.withhold(notebook, privacy.credentialed_folders()):
        raise PrivacyError(
            f"{path.name}: {count} outputs hold text of a credentialed corpus, nothing was written;"
            " store notebooks with their default data set"
        )

    # Remove widgets, stderr and every metadata key except tags and what folds a cell.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(
                o
                for o in cell.outputs
                if WIDGET not in o.get("data", {}) and o.get("name") != "stderr"
            )
            for key in [k for k in cell.metadata if k not in ("tags", "jupyter")]:
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


def joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Outputs in which what a cell printed stands together, however slowly it was printed."""
    kept: list[NotebookNode] = []
    for output in outputs:
        last = kept[-1] if kept else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            kept.append(output)
    return kept


def main(arguments: list[str]) -> int:
    """Executes the notebooks named, or all numbered ones."""
    folder = Path(__file__).resolve().parent
    named = [folder / Path(argument).name for argument in arguments]
    for path in named or sorted(folder.glob("[0-9A]*.ipynb")):
        seconds = refresh(path)
        print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
