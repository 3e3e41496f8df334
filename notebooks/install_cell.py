"""Puts the install cell into the notebooks: `python notebooks/install_cell.py`.

It is the first code cell of every notebook. On a machine without plantlib (Binder, Colab) it
installs the checkout that holds the notebook, or clones one. Where plantlib is installed it does
nothing and prints nothing. Inserting the cell keeps stored outputs and raises execution counts by
one, so no notebook has to be executed again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

SOURCE = """\
import importlib.util

# On a fresh machine (Colab, Binder) this installs plantlib; after `make setup` it does nothing.
if importlib.util.find_spec("plantlib") is None:
    import pathlib
    import subprocess
    import sys

    here = pathlib.Path.cwd()
    folders = [f for f in (here, *here.parents) if (f / "binder" / "postBuild").is_file()]
    if not folders:
        address = input("git address of the PLANT companion: ")
        subprocess.run(["git", "clone", "--depth", "1", address, "plant"], check=True)
        folders = [pathlib.Path("plant").resolve()]
    subprocess.run(["bash", str(folders[0] / "binder" / "postBuild")], check=True)
    sys.path.insert(0, str(folders[0]))"""
# the site folds the cell away, and so does JupyterLab
METADATA = {"tags": ["hide-cell"], "jupyter": {"source_hidden": True}}


def insert(notebook: nbformat.NotebookNode, prefix: str) -> bool:
    """Inserts the install cell after the title, or renews its text.

    Args:
        notebook: changed in place.
        prefix: first part of the notebook's cell ids, such as "00".

    Returns:
        Whether the notebook changed.
    """
    cell_id = f"{prefix}-install"
    present = next((cell for cell in notebook.cells if cell["id"] == cell_id), None)
    if present is not None:
        changed = present.source != SOURCE or present.metadata != METADATA
        present.source, present.metadata = SOURCE, nbformat.from_dict(METADATA)
        return changed
    executed = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.execution_count is not None
    ]
    for item in [*executed, *(output for cell in executed for output in cell.outputs)]:
        if item.get("execution_count") is not None:
            item["execution_count"] += 1
    cell = nbformat.v4.new_code_cell(
        SOURCE, id=cell_id, metadata=METADATA, execution_count=1 if executed else None
    )
    notebook.cells.insert(1, cell)
    return True


def main(arguments: list[str]) -> int:
    """Inserts the cell into the notebooks named, or into all numbered ones."""
    folder = Path(__file__).resolve().parent
    named = [folder / Path(argument).name for argument in arguments]
    for path in named or sorted(folder.glob("[0-9A]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if insert(notebook, path.stem[:2]):
            nbformat.write(notebook, path)
            print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
