"""How fast a start learns: dev metric by step, and the steps and seconds to reach what random
attention reaches at best.

Realises the convergence claim of METHOD.md sections 4 and 8: planting is a head start, so it must
show in steps and not only in the end. `run` trains long with early stopping on dev; everything else
reads the `history` of run records and trains nothing. Seconds are wall time of one run on one
machine: they compare starts of one data set, no more.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import report
from plantlib.candidates.training import BATCH_SIZE
from plantlib.training import runs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.pipeline import Prepared, prepare
from plantlib.training.records import RunRecord, run_name
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


# what the records say they were made by; `report.groups` leaves them out of the main table
NOTEBOOK = "convergence"
STARTS = ("random", "lookup", "lookup+score")
SUFFIX = "-long"
BASELINE = "random"


def long_config(epochs: int = 20, patience: int = 4) -> RunConfig:
    """The run that may go on until dev stops it."""

    return RunConfig(train=replace(TrainConfig(), epochs=epochs, patience=patience))


def run(
    prepared: Prepared,
    results: str | Path,
    *,
    starts: Iterable[str] = STARTS,
    seeds: Iterable[int] = (0, 1),
    config: RunConfig | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """Every start with every seed under its own id (`-long`); records that stand in `results` are
    read, not repeated.
    """

    config, made, jobs = (
        config or long_config(),
        [],
        [(start, seed) for seed in seeds for start in starts],
    )
    for start, seed in tqdm(jobs, desc="long runs", unit="run", disable=not progress):
        run_id = run_name(prepared, start, seed) + SUFFIX
        found = runs.finished(Path(results) / f"{run_id}.json", prepared, config, seed)
        if not found:
            options = {
                "config": config,
                "results": results,
                "run_id": run_id,
                "notebook": NOTEBOOK,
                "progress": progress,
            }
            found, _ = runs.run_start(prepared, start, seed, **options)
        made.append(found)
    return made


def sets(records: Iterable[RunRecord], long: bool = True) -> dict[str, list[RunRecord]]:
    """Planted records by data set; the long runs, or those of the main table."""

    if not long:
        return {
            g.stem: [r for r in g.records if r.kind == "planted"] for g in report.groups(records)
        }
    found: dict[str, list[RunRecord]] = {}
    for record in sorted(
        (r for r in records if r.notebook == NOTEBOOK), key=lambda r: (r.system != BASELINE, r.id)
    ):
        data = record.dataset
        found.setdefault(
            f"{data['name']}-{data['train']}d-{report.tokens_of(record)}t-long", []
        ).append(record)
    return found


def steps(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """The history of planted runs: start, seed, allowed, epoch, step (optimiser steps), seconds
    (wall) and dev metrics.

    allowed: epochs that the run might have trained for.
    """
    import pandas as pd

    rows = []
    for record in records:
        # a run on candidates has its options side by side, and batches of one size
        train = record.params.get("train", record.params)
        batch = train.get("batch_size", BATCH_SIZE) * train.get("accumulation", 1)
        an_epoch = math.ceil(record.dataset["train"] / batch)
        about = {"start": record.system, "seed": record.seed, "allowed": train["epochs"]}
        rows += [{**about, "step": an_epoch * e["epoch"], **e} for e in record.history]
    return pd.DataFrame(rows)


def reached(
    frame: pandas.DataFrame, metric: str = "ndcg@5", baseline: str = BASELINE
) -> pandas.DataFrame:
    """How long each start takes to the best dev value that the baseline of the same seed reaches, a
    row a start.

    frame: as `steps`. Columns: seeds, reached (how many seeds got there at all), steps and seconds
    of those (means), share (their steps over the baseline's own steps to it), best (mean best dev
    value), ended (in how many seeds the best epoch is the last that was allowed: more epochs might
    have been better still). ValueError without the baseline.
    """
    import pandas as pd

    if frame.empty or baseline not in set(frame["start"]):
        raise ValueError(
            f"no run of {baseline!r} to measure against; run it with the same data and seeds"
        )
    base = frame[frame["start"] == baseline]
    target = base.groupby("seed")[metric].max()
    own = base.loc[base.groupby("seed")[metric].idxmax()].set_index("seed")["step"]
    rows = []
    for start, part in frame.groupby("start", sort=False):
        part = part[part["seed"].isin(target.index)]
        first = (
            part[part[metric] >= part["seed"].map(target)]
            .sort_values("step")
            .groupby("seed")
            .first()
        )
        row = {"start": start, "seeds": part["seed"].nunique(), "reached": len(first)}
        row |= {
            "best": part.groupby("seed")[metric].max().mean(),
            "ended": _ended(part, metric),
            "steps": first["step"].mean(),
            "seconds": first["seconds"].mean(),
            "share": (first["step"] / own).mean(),
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("start")


def _ended(part: pandas.DataFrame, metric: str) -> int:
    """Seeds of one start whose best epoch is their last and which were not stopped before their
    last allowed epoch.
    """
    best = part.loc[part.groupby("seed")[metric].idxmax()].set_index("seed")
    last = part.groupby("seed")["epoch"].max()
    return int(((best["epoch"] == last) & (last >= best["allowed"])).sum())


def sentence(
    name: str, table: pandas.DataFrame, metric: str = "nDCG@5", baseline: str = BASELINE
) -> str:
    """The table in words, a data set at a time."""
    base, said = table.loc[baseline], []
    for start, row in table.drop(index=baseline).iterrows():
        if not row["reached"]:
            said.append(f"`{start}` never reaches it (best {100 * row['best']:.1f})")
            continue
        some = (
            ""
            if row["reached"] == row["seeds"]
            else f" in {int(row['reached'])} of {int(row['seeds'])} seeds"
        )
        said.append(
            f"`{start}` reaches it after {row['steps']:.0f} steps{_clock(row)}{some} and goes on to"
            f" {100 * row['best']:.1f}"
        )
    first = (
        f"{name}: `{baseline}` takes {base['steps']:.0f} steps{_clock(base)} to its best dev"
        f" {metric}, {100 * base['best']:.1f}{_budget(base)}"
    )
    return "; ".join([first, *said]) + "."


def _budget(row) -> str:
    """Where the number of epochs, not dev, ended the climb, so that the steps to the best say how
    many there were.
    """
    if not row["ended"]:
        return ""
    where = "" if row["ended"] == row["seeds"] else " there"
    return (
        f" (its last epoch in {row['ended']:.0f} of {row['seeds']:.0f} seeds: the budget ends"
        f" it{where})"
    )


def _clock(row) -> str:
    return "" if math.isnan(row["seconds"]) else f", {row['seconds']:.0f} s"


def main() -> None:
    """`python -m companion.studies.convergence codiesp --train 500`: the long runs of a data set."""

    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.convergence", description=__doc__.split("\n")[0]
    )
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
