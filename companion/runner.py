"""Notebooks as batch jobs: papermill executes them with parameters of a call or of a YAML file.

`run_notebook` executes one notebook, `run_yaml` one file of runs/, and `python -m companion.runner
runs/a.yaml ...` those of several files whose records are missing. The defaults of a notebook are
small enough to teach with; the parameters in runs/ reproduce the committed results. The notebooks
write run records (`plantlib.training.records`).
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from companion.options import check_parameters, read_yaml, with_folders
from plantlib.data import privacy, sources
from plantlib.data.credentials import inside_data
from plantlib.training.records import RunRecord, load_all
from plantlib.utils.io import atomic_path
from plantlib.utils.progress import bars_as_text


def run_notebook(
    notebook: str | Path, parameters: dict[str, Any], output: str | Path, progress: bool = True
) -> Path:
    """Execute a notebook in the folder it lies in.

    When a parameter or $DATASET names a credentialed corpus or model, the executed notebook stays
    in the data folder, and `output` gets a copy without pictures and without the outputs that hold
    text of the corpus.

    Args:
        notebook: the .ipynb file.
        parameters: values for its cell tagged 'parameters'.
        output: file of the executed copy; it is written even if a cell fails.
        progress: show the notebook's progress bars here, as text.

    Returns:
        `output` as an absolute path.

    Raises:
        ValueError: a parameter that the notebook does not define.
        RuntimeError: a cell failed; the message is that of the cell's error.
    """
    import papermill

    # the kernel runs in another folder, from where a relative path would lead elsewhere
    if home := os.environ.get("PLANT_HOME"):
        os.environ["PLANT_HOME"] = str(Path(home).resolve())
    # refuse parameters that the notebook would ignore
    notebook = Path(notebook).resolve()
    output = Path(output).resolve()
    known = papermill.inspect_notebook(notebook)
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; known:"
            f" {', '.join(known) or 'none'}"
        )
    # decide where the executed notebook may stay
    marked = privacy.named_in(_defaults(known) | parameters, notebook.parent)
    marked = [] if inside_data(output) else marked
    corpora = privacy.corpora_beside(marked)
    place = sources.homes()[0].resolve() / "executed" / output.name if marked else output
    for path in {place, output}:
        path.parent.mkdir(parents=True, exist_ok=True)
    # run it
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
        holds_text = privacy.overlap(privacy.shown(error.evalue), corpora)
        reason = privacy.WITHHELD if holds_text else error.evalue
        raise RuntimeError(
            f"{notebook.name}, cell {error.exec_count}: {error.ename}: {reason}"
        ) from (None if marked else error)
    finally:
        if marked and place.exists():
            _release(place, output, corpora)
    return output


def _defaults(known: dict[str, dict]) -> dict[str, Any]:
    """Default values of a notebook's parameters, as far as they are literals."""
    values = {}
    for name, about in known.items():
        with contextlib.suppress(ValueError, SyntaxError):
            values[name] = ast.literal_eval(about["default"])
    return values


def _release(place: Path, output: Path, corpora: list[Path]) -> None:
    """Copy an executed notebook out of the data folder, without pictures and corpus text."""
    import nbformat

    notebook = nbformat.read(place, as_version=4)
    notebook.metadata.pop("widgets", None)  # the contents of sliders and text boxes
    texts, pictures = privacy.withhold(notebook, corpora), privacy.withhold_pictures(notebook)
    if texts or pictures:
        message = f"{texts} outputs withheld, they hold credentialed text, and {pictures} pictures"
        print(f"{output.name}: {message}", file=sys.stderr)
    with atomic_path(output) as temporary:
        nbformat.write(notebook, temporary)


def run_yaml(
    path: str | Path,
    force: bool = False,
    progress: bool = True,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Execute the notebook or the study that runs/<id>.yaml names, unless its results exist.

    A notebook with a parameter `run_id` makes that one record. A notebook with a parameter
    `results` instead makes a grid: it writes many records to that folder and skips those that are
    there. The executed notebook stays in results/executed/. A file with the key study names a
    module of `companion.studies` whose function `run` takes the parameters and writes results.

    Args:
        path: YAML file with the keys notebook (relative to the folder above runs/) or study, and
            parameters; the file's name is the id of the run.
        force: run also where the record exists.
        progress: show the notebook's progress bars.
        changes: parameters that replace those of the file. They become part of the id, and a grid
            writes to results/local/<id>/runs unless they name a folder, so a trial never
            overwrites a committed record.

    Returns:
        The record's path, for a grid the folder of its records, for a study its results folder.

    Raises:
        ValueError: the file has other keys, another id, or a parameter the notebook lacks.
        RuntimeError: a cell failed, or no record was written.
    """
    import papermill

    # read the file
    path = Path(path).resolve()
    root = path.parent.parent
    run_id = path.stem
    data = read_yaml(path)
    if "study" in data:
        return _run_study(path, data, force, changes or {})
    if "notebook" not in data or set(data) - {"id", "notebook", "parameters"}:
        keys = ", ".join(data) or "none"
        raise ValueError(f"{path.name}: expected the keys notebook and parameters, got {keys}")
    notebook = root / str(data["notebook"])
    if not notebook.is_file() or root not in notebook.resolve().parents:
        raise ValueError(
            f"{path.name}: notebook {data['notebook']!r} is no file below {root.name}/: name one"
            " such as notebooks/05_finetune.ipynb"
        )
    if data.get("id", run_id) != run_id:
        raise ValueError(
            f"{path.name} has the id {data['id']!r}: the id is the file's name, remove the key"
        )
    parameters = dict(data.get("parameters") or {})
    if changes:
        run_id, parameters = _changed(run_id, parameters, changes)
    # skip a finished run
    executed = root / "results" / "executed" / f"{run_id}.ipynb"
    record = root / "results" / "runs" / f"{run_id}.json"
    if record.exists() and not force:
        return record
    parameters = with_folders(parameters, root)
    if "dataset" in parameters:
        _check_dataset(parameters["dataset"], path.name)
    # run the notebook, for one record or for a grid
    before = record.stat().st_mtime_ns if record.exists() else None
    known = papermill.inspect_notebook(notebook)
    check_parameters(parameters, _defaults(known), path.name)
    if "run_id" in known:
        parameters.setdefault("run_id", run_id)
    elif "results" in known:
        if changes and "results" not in changes:
            parameters["results"] = f"results/local/{run_id}/runs"
        return _run_grid(root, notebook, parameters, executed, progress)
    run_notebook(notebook, parameters, executed, progress)
    if not record.exists() or record.stat().st_mtime_ns == before:
        raise RuntimeError(
            f"{data['notebook']} wrote no results/runs/{run_id}.json: save its RunRecord there"
        )
    RunRecord.load(record)
    return record


def _run_study(path: Path, data: dict[str, Any], force: bool, changes: dict[str, Any]) -> Path:
    """Run the study of a file of runs/; with changes it writes to results/local/<id>."""
    name = str(data["study"])
    parameters = dict(data.get("parameters") or {}) | changes
    try:
        study = importlib.import_module(f"companion.studies.{name}")
        known = set(inspect.signature(study.run).parameters) - {"force"}
    except (ModuleNotFoundError, AttributeError):
        raise ValueError(
            f"{path.name}: companion.studies has no {name!r} that can be run from a file"
        ) from None
    unknown = sorted(set(parameters) - known) + sorted(set(data) - {"id", "study", "parameters"})
    if unknown:
        raise ValueError(
            f"{path.name}: unknown {', '.join(unknown)}; {name} takes the parameters"
            f" {', '.join(sorted(known))}"
        )
    if changes and "results" not in changes:
        run_id, _ = _changed(path.stem, dict(data.get("parameters") or {}), changes)
        parameters["results"] = path.parent.parent / "results" / "local" / run_id
    return study.run(**parameters, force=force)


def _check_dataset(dataset: Any, where: str) -> None:
    """DataError unless the corpus of a run is here or can be built."""
    if not isinstance(dataset, str) or not dataset:
        raise ValueError(f"{where}: dataset={dataset!r}: give a name or the folder of a corpus")
    if not (Path(dataset) / "manifest.json").is_file():
        sources.ready(dataset)
        sources.choose(dataset)


def _changed(
    run_id: str, parameters: dict[str, Any], changes: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Id and parameters of a run that differs from its file.

    The id is a file name of at most 100 characters.
    """
    for name, value in changes.items():
        if isinstance(parameters.get(name), list) and not isinstance(value, list):
            raise ValueError(f"{name}={value}: this parameter is a list, write {name}=[{value}]")
    parts = [re.sub(r"[^\w.]+", "-", f"{n}-{v}").strip("-") for n, v in changes.items()]
    run_id = "+".join([run_id, *parts])
    if len(run_id) > 100:
        run_id = f"{run_id[:83]}-{hashlib.sha256(repr(changes).encode()).hexdigest()[:16]}"
    return run_id, parameters | changes


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
    """`python -m companion.runner [--force] runs/a.yaml ...`; exit status 1 if any run failed."""
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
