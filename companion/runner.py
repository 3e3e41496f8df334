"""Notebooks as batch jobs: papermill executes them with the parameters of a call or of a YAML file
in runs/.

Defaults teach, YAML reproduces: `run_notebook` executes one notebook in its own folder, `run_yaml`
one file of runs/, and `python -m companion.runner runs/a.yaml ...` what is missing of several. What
the runs write are records of `results.py`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from plantlib.data import privacy, sources
from plantlib.training.records import RunRecord, load_all
from plantlib.utils.io import atomic_path
from plantlib.utils.progress import bars_as_text


def run_notebook(
    notebook: str | Path, parameters: dict[str, Any], output: str | Path, progress: bool = True
) -> Path:
    """Executes a notebook in its own folder; the executed copy goes to `output`, also when it
    fails.

    With progress, its bars appear here as text. When a parameter names a credentialed corpus, the
    notebook runs inside the data folder and `output` gets a copy whose outputs hold none of its
    text. ValueError for a name that its cell tagged 'parameters' does not define; RuntimeError with
    the notebook's own error.
    """
    import papermill

    notebook, output = Path(notebook).resolve(), Path(output).resolve()
    if unknown := sorted(set(parameters) - set(known := papermill.inspect_notebook(notebook))):
        raise ValueError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; known:"
            f" {', '.join(known) or 'none'}"
        )
    corpora = [] if privacy.inside_data(output) else privacy.named_in(_defaults(known) | parameters)
    place = sources.homes()[0].resolve() / "executed" / output.name if corpora else output
    for path in {place, output}:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with bars_as_text():
            papermill.execute_notebook(
                notebook,
                place,
                parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=notebook.parent,
                stderr_file=sys.stderr if progress else None,
            )
    except papermill.PapermillExecutionError as error:
        said = (
            privacy.WITHHELD
            if privacy.overlap(privacy.shown(error.evalue), corpora)
            else error.evalue
        )
        raise RuntimeError(
            f"{notebook.name}, cell {error.exec_count}: {error.ename}: {said}"
        ) from (None if corpora else error)
    finally:
        if corpora and place.exists():
            _release(place, output, corpora)
    return output


def _defaults(known: dict[str, dict]) -> dict[str, Any]:
    """The default values in a notebook's parameters cell, those that are literals."""
    found = {}
    for name, about in known.items():
        with contextlib.suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(about["default"])
    return found


def _release(place: Path, output: Path, corpora: list[Path]) -> None:
    """Copy an executed notebook out of the data folder, without the outputs that hold text of the
    corpora.
    """
    import nbformat

    notebook = nbformat.read(place, as_version=4)
    notebook.metadata.pop("widgets", None)  # what sliders and text boxes held when the run ended
    if count := privacy.withhold(notebook, corpora):
        print(
            f"{output.name}: {count} outputs withheld, they hold credentialed text", file=sys.stderr
        )
    with atomic_path(output) as temporary:
        nbformat.write(notebook, temporary)


def run_yaml(
    path: str | Path,
    force: bool = False,
    progress: bool = True,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Runs runs/<id>.yaml (keys notebook, parameters) unless results/runs/<id>.json exists; returns
    that JSON's path.

    Paths are relative to the folder above runs/. The id (the file's name) reaches a notebook that
    has a parameter `run_id`. One that has `results` instead runs a grid: it writes many records to
    that folder, reads those that are finished, and the folder's path is returned. The executed
    notebook stays in results/executed/. RuntimeError if no record was written.

    changes: parameters in the place of the file's. The id then names them, and a grid writes to
    results/local/<id>/runs (unless they say where), so that a trial never takes the place of a
    committed record.
    """
    import papermill
    import yaml

    path = Path(path).resolve()
    root, run_id = path.parent.parent, path.stem
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if (
        not isinstance(data, dict)
        or "notebook" not in data
        or set(data) - {"id", "notebook", "parameters"}
    ):
        raise ValueError(
            f"{path.name}: wanted the keys notebook and parameters (and id, if any), got"
            f" {data!r:.200}"
        )
    if data.get("id", run_id) != run_id:
        raise ValueError(
            f"{path.name} names the run {data['id']!r}: the id is the file's name, drop the key"
        )
    parameters = dict(data.get("parameters") or {})
    if changes:
        run_id, parameters = _changed(run_id, parameters, changes)
    executed = root / "results" / "executed" / f"{run_id}.ipynb"
    record = root / "results" / "runs" / f"{run_id}.json"
    if record.exists() and not force:
        return record
    sources.ready(str(parameters.get("dataset")))
    before = record.stat().st_mtime_ns if record.exists() else None
    known = papermill.inspect_notebook(root / data["notebook"])
    if "run_id" in known:
        parameters.setdefault("run_id", run_id)
    elif "results" in known:
        if changes and "results" not in changes:
            parameters["results"] = f"results/local/{run_id}/runs"
        return _run_grid(root, root / data["notebook"], parameters, executed, progress)
    run_notebook(root / data["notebook"], parameters, executed, progress)
    if not record.exists() or record.stat().st_mtime_ns == before:
        raise RuntimeError(
            f"{data['notebook']} wrote no results/runs/{run_id}.json: save its RunRecord there"
        )
    RunRecord.load(record)
    return record


def _changed(
    run_id: str, parameters: dict[str, Any], changes: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The id and the parameters of a run that differs from its file; the id is a file name of at
    most 100 characters.
    """
    for name, value in changes.items():
        if isinstance(parameters.get(name), list) and not isinstance(value, list):
            raise ValueError(f"{name}={value}: this parameter is a list, write {name}=[{value}]")
    told = [f"{name}-{value}" for name, value in changes.items()]
    named = "+".join([run_id, *(re.sub(r"[^\w.]+", "-", text).strip("-") for text in told)])
    if len(named) > 100:
        named = f"{named[:83]}-{hashlib.sha256(repr(changes).encode()).hexdigest()[:16]}"
    return named, parameters | changes


def _run_grid(
    root: Path, notebook: Path, parameters: dict[str, Any], executed: Path, progress: bool
) -> Path:
    folder = root / (parameters.get("results") or "results/runs")
    run_notebook(notebook, parameters | {"results": str(folder)}, executed, progress)
    if not (folder.is_dir() and load_all(folder)):
        raise RuntimeError(
            f"{notebook.name} wrote no record into {folder.name}: save its RunRecords there"
        )
    return folder


def main(arguments: list[str]) -> int:
    """`python -m companion.runner [--force] runs/a.yaml ...`: runs what is missing; exit status 1
    if any run failed.
    """
    status = 0
    for name in (argument for argument in arguments if argument != "--force"):
        try:
            print(f"{name}: {run_yaml(name, '--force' in arguments).name}")
        except (OSError, ValueError, RuntimeError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
