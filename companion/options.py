"""Reads the YAML files of runs/ and checks their parameters before anything is run.

What is wrong is one line: the file is no YAML or no mapping, a key or parameter is unknown, or a
value is of another kind than the default that it replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plantlib.utils.checks import check_seed, check_whole, is_finite, is_whole

# parameters that count something, so that 0 and less make no sense
COUNTS = (
    "epochs tokens max_tokens batch_size accumulation window train_documents dev_documents"
    " test_documents candidates lora_r lora_alpha lm_epochs lm_rows hidden_size lstm_size layers"
).split()
REQUIRED = ("epochs", "batch_size", "dataset", "starts")
# parameters that may name a folder
FOLDERS = ("dataset", "backbone", "backbones", "model_folder", "runs")
KINDS = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (is_whole, "a whole number"),
    float: (is_finite, "a number"),
    str: (lambda value: isinstance(value, str), "a text"),
}


def value_of(text: str, name: str) -> Any:
    """A value written as YAML; ValueError names the parameter."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}={text}: no YAML ({_place(error)})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError with the line for anything else."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file: give a YAML file of runs/")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML ({_place(error)})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 (byte {error.start})") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ValueError(f"{path.name}: expected the key parameters with a mapping")
    parameters = data.get("parameters")
    if parameters is not None and not (
        isinstance(parameters, dict) and all(isinstance(name, str) for name in parameters)
    ):
        raise ValueError(f"{path.name}: parameters is no mapping of names to values")
    return data


def _place(error: Any) -> str:
    """Line and problem of a YAML error, on one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "unreadable"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


def with_folders(parameters: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The parameters, with the folders they name as absolute paths.

    A relative path starts at `root`, the folder above runs/; what is no folder there stays.
    """

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(item) for item in value]
        if isinstance(value, str) and value and (root / value).is_dir():
            return str((root / value).resolve())
        return value

    return {n: whole(value) if n in FOLDERS else value for n, value in parameters.items()}


def check_parameters(parameters: Mapping[str, Any], defaults: Mapping[str, Any], where: str):
    """ValueError for the first parameter whose value is of another kind than its default.

    Args:
        parameters: as a YAML file or a command line gives them.
        defaults: name -> default; of a parameter without one, or with None, any value fits.
        where: the file, for the message.
    """
    for name, value in parameters.items():
        default = defaults.get(name)
        if name == "seeds":
            _check_seeds(value, where)
        elif name == "seed":
            check_seed(value, f"{where}: seed")
        elif value is None and name not in REQUIRED:
            continue
        elif name in COUNTS:
            check_whole(f"{where}: {name}", value)
        elif isinstance(default, (list, tuple)):
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{where}: {name}={value!r}: give a list, as in [{value}]")
            for item in value:
                # None among the defaults allows it among the values
                if default and not (item is None and None in default):
                    _check_kind(name, item, default[0], where)
        elif name == "keep" and isinstance(value, (list, tuple)):
            continue  # one K per context; `RunConfig` checks it
        elif default is not None:
            _check_kind(name, value, default, where)


def _check_seeds(value: Any, where: str) -> None:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{where}: seeds={value!r}: give a list of whole numbers, as in [0, 1]")
    for seed in value:
        check_seed(seed, f"{where}: seeds, item")


def _check_kind(name: str, value: Any, default: Any, where: str) -> None:
    fits, words = KINDS.get(type(default), (lambda value: True, ""))
    if not fits(value):
        raise ValueError(f"{where}: {name}={value!r}: give {words}, such as {default!r}")
