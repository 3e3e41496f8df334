"""The first code cell of every notebook: `python notebooks/install_cell.py` puts it where it is
missing.

On a machine without plantlib (Binder, Colab) the cell installs the checkout the notebook lies in,
or fetches one; elsewhere it does nothing and prints nothing. Stored outputs stay and execution
counts move up by one, so no notebook has to be run again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

SOURCE = """\
import importlib.util

if importlib.util.find_spec("plantlib") is None:  # a fresh machine (Colab, Binder); after `make setup` nothing is done here
    import pathlib
    import subprocess
    import sys

    folders = [f for f in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents) if (f / "binder" / "postBuild").is_file()]
    if not folders:
        subprocess.run(["git", "clone", "--depth", "1", input("git address of the PLANT companion: "), "plant"], check=True)
        folders = [pathlib.Path("plant").resolve()]
    subprocess.run(["bash", str(folders[0] / "binder" / "postBuild")], check=True)
    sys.path.insert(0, str(folders[0]))"""
TAG = "hide-cell"  # folded away on the site


def insert(notebook: nbformat.NotebookNode, prefix: str) -> bool:
    """Puts the cell behind the title, or renews its text; False when nothing had to change. prefix:
    of the cell ids.
    """
    name = f"{prefix}-install"
    found = next((cell for cell in notebook.cells if cell["id"] == name), None)
    if found is not None:
        changed, found.source = found.source != SOURCE, SOURCE
        return changed
    counted = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.execution_count is not None
    ]
    for item in [*counted, *(output for cell in counted for output in cell.outputs)]:
        if item.get("execution_count") is not None:
            item["execution_count"] += 1
    cell = nbformat.v4.new_code_cell(
        SOURCE, id=name, metadata={"tags": [TAG]}, execution_count=1 if counted else None
    )
    notebook.cells.insert(1, cell)
    return True


def main(arguments: list[str]) -> int:
    """All numbered notebooks, or those named."""
    folder = Path(__file__).resolve().parent
    for path in [folder / Path(a).name for a in arguments] or sorted(folder.glob("[0-9A]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if insert(notebook, path.stem[:2]):
            nbformat.write(notebook, path)
            print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
