"""How fast a start learns: dev metric by step, and the steps and seconds to reach what random attention reaches at best.

Realises the convergence claim of METHOD.md sections 4 and 8: planting is a head start, so it must show in steps and not only
in the end. `run` trains long with early stopping on dev; everything else reads the `history` of run records and trains nothing.
Seconds are wall time of one run on one machine: they compare starts of one data set, no more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from plantlib.results import RunRecord

if TYPE_CHECKING:
    from plantlib.pipeline import Prepared
    from plantlib.runs import RunConfig

NOTEBOOK = "convergence"  # what the records say they were made by; `report.groups` leaves them out of the main table
STARTS = ("random", "lookup", "lookup+score")
SUFFIX = "-long"


def long_config(epochs: int = 20, patience: int = 4) -> RunConfig:
    """The run that may go on until dev stops it."""
    from plantlib.runs import RunConfig
    from plantlib.train import TrainConfig

    return RunConfig(train=replace(TrainConfig(), epochs=epochs, patience=patience))


def run(
    prepared: Prepared, results: str | Path, *, starts: Iterable[str] = STARTS, seeds: Iterable[int] = (0, 1),
    config: RunConfig | None = None, progress: bool = True,
) -> list[RunRecord]:  # fmt: skip
    """Every start with every seed under its own id (`-long`); records that stand in `results` are read, not repeated."""
    from plantlib import runs
    from plantlib.progress import tqdm

    config, made, jobs = config or long_config(), [], [(start, seed) for seed in seeds for start in starts]
    for start, seed in tqdm(jobs, desc="long runs", unit="run", disable=not progress):
        run_id = runs.run_name(prepared, start, seed) + SUFFIX
        found = runs._finished(Path(results) / f"{run_id}.json", prepared, config.seeded(seed))
        if not found:
            options = {"config": config, "results": results, "run_id": run_id, "notebook": NOTEBOOK, "progress": progress}
            found, _ = runs.run_start(prepared, start, seed, **options)
        made.append(found)
    return made


def main() -> None:
    """`python -m plantlib.convergence codiesp --train 500`: the long runs of a data set."""
    from plantlib.pipeline import prepare

    parser = argparse.ArgumentParser(prog="python -m plantlib.convergence", description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, default=256)
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--starts", nargs="+", default=list(STARTS))
    parser.add_argument("--results", default="results/runs")
    options = parser.parse_args()
    caps = {f"{s}_documents": getattr(options, s) for s in ("train", "dev", "test")}
    prepared = prepare(options.dataset, max_tokens=options.tokens, **caps)
    for record in run(prepared, options.results, starts=options.starts, seeds=options.seeds):
        print(record)


if __name__ == "__main__":
    main()
