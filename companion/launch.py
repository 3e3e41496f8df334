"""A YAML run of notebook 08 without the notebook, on one process or many.

On one process it is `python -m companion.launch runs/x.yaml`, on several `accelerate launch
--config_file runs/accelerate/ddp.yaml -m companion.launch runs/x.yaml`. The processes share the
documents of a batch; the first one prepares the corpus and writes the records. A launch that was
killed continues at the last checkpoint of its run and does not repeat finished runs. Every process
scores dev and test with the same weights, so all of them choose the same epoch.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from companion.options import check_parameters, read_yaml, value_of, with_folders
from companion.studies.grids import backbone_grid
from plantlib.planting.starts import parts_of
from plantlib.utils.distributed import is_main


def read_parameters(path: str | Path, overrides: list[str] = ()) -> dict:
    """Parameters of a YAML run for `backbone_grid`.

    Args:
        path: a file of runs/ with the key parameters.
        overrides: `name=value`, value read as YAML; each replaces a parameter of the file.

    Raises:
        ValueError: no YAML, no parameters, an override without `=`, a name `backbone_grid` does not
            have, or a value of another kind than its default.
    """
    data = read_yaml(path)
    if not data.get("parameters"):
        raise ValueError(f"{Path(path).name}: expected the key parameters with a mapping")
    parameters = dict(data["parameters"])
    for item in overrides:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r} is not an override: write name=value, as in seeds=[0]")
        parameters[name] = value_of(value, name)
    signature = inspect.signature(backbone_grid).parameters
    known = set(signature)
    if unknown := sorted(set(parameters) - known):
        raise ValueError(
            f"{Path(path).name}: unknown parameters {', '.join(unknown)}; known are"
            f" {', '.join(sorted(known))}"
        )
    required = {"dataset": "", "backbones": [""]}
    if missing := sorted(set(required) - set(parameters)):
        raise ValueError(f"{Path(path).name}: lacks the parameters {', '.join(missing)}")
    defaults = {name: parameter.default for name, parameter in signature.items()}
    check_parameters(parameters, defaults | required, Path(path).name)
    for start in parameters.get("starts", ()):
        parts_of(start)
    return with_folders(parameters, Path(path).resolve().parent.parent)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every run of the YAML has its record, else 1 and one line of error."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.launch", description=__doc__.split("\n")[0]
    )
    parser.add_argument("run", help="a YAML file of runs/")
    parser.add_argument("override", nargs="*", help="name=value, replacing a parameter of the file")
    options = parser.parse_args(arguments)
    try:
        records = backbone_grid(
            **read_parameters(options.run, options.override), progress=is_main()
        )
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        print(f"{options.run}: {error}", file=sys.stderr)
        return 1
    if is_main():
        print("\n".join(map(repr, records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
