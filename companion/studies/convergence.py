"""How fast a start learns: steps and seconds to the best dev value of random attention.

The convergence study of docs/method.md, "Controls and peers": a head start must show in the number
of steps, not only in the result. `run` trains until dev stops it; everything else reads the
`history` of run records and trains nothing. Seconds are wall time of one run on one machine, so
they compare only the starts of one data set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import report
from companion.studies.command import parser_of, reading
from plantlib.candidates.training import BATCH_SIZE
from plantlib.training import runs
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, run_name
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


# `RunRecord.notebook` of these runs; `report.groups` leaves them out of the main table
NOTEBOOK = "convergence"
STARTS = ("random", "lookup", "lookup+score")
SUFFIX = "-long"
BASELINE = "random"


def long_config(epochs: int = 20, patience: int = 4) -> RunConfig:
    """A run with so many epochs that dev stops it."""
    return RunConfig(train=replace(TrainConfig(), epochs=epochs, patience=patience))


def run(
    prepared: Inputs,
    results: str | Path,
    *,
    starts: Iterable[str] = STARTS,
    seeds: Iterable[int] = (0, 1),
    config: RunConfig | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """The records of every start with every seed, under ids that end in `-long`.

    Args:
        prepared: the corpus.
        results: folder of the records; a run whose record is there is not repeated.
        starts: names of starts.
        seeds: of the runs.
        config: options of the runs; `long_config()` when None.
        progress: show bars.
    """
    config = config or long_config()
    records = []
    jobs = [(start, seed) for seed in seeds for start in starts]
    for start, seed in tqdm(jobs, desc="long runs", unit="run", disable=not progress):
        run_id = run_name(prepared, start, seed) + SUFFIX
        record = runs.finished(Path(results) / f"{run_id}.json", prepared, config, seed)
        if record is None:
            options = {
                "config": config,
                "results": results,
                "run_id": run_id,
                "notebook": NOTEBOOK,
                "progress": progress,
            }
            record, _ = runs.run_start(prepared, start, seed, **options)
        records.append(record)
    return records


def sets(records: Iterable[RunRecord], long: bool = True) -> dict[str, list[RunRecord]]:
    """Planted records by data set: the long runs, or those of the main table."""
    if not long:
        return {
            g.stem: [r for r in g.records if r.kind == "planted"] for g in report.groups(records)
        }
    by_data: dict[str, list[RunRecord]] = {}
    long_runs = [record for record in records if record.notebook == NOTEBOOK]
    for record in sorted(long_runs, key=lambda r: (r.system != BASELINE, r.id)):
        data = record.dataset
        name = f"{data['name']}-{data['train']}d-{report.tokens_of(record)}t-long"
        by_data.setdefault(name, []).append(record)
    return by_data


def steps(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """The history of planted runs, a row per run and epoch.

    Columns: start, seed, allowed (most epochs), step (optimiser steps), epoch, seconds (wall time)
    and the dev metrics.
    """
    import pandas as pd

    rows = []
    for record in records:
        # the options of a run on candidates are not nested, and its batches have a fixed size
        train = record.params.get("train", record.params)
        batch = train.get("batch_size", BATCH_SIZE) * train.get("accumulation", 1)
        per_epoch = math.ceil(record.dataset["train"] / batch)
        about = {"start": record.system, "seed": record.seed, "allowed": train["epochs"]}
        rows += [{**about, "step": per_epoch * e["epoch"], **e} for e in record.history]
    return pd.DataFrame(rows)


def reached(
    frame: pandas.DataFrame, metric: str = "ndcg@5", baseline: str = BASELINE
) -> pandas.DataFrame:
    """How long each start takes to reach the best dev value of the baseline with the same seed.

    Args:
        frame: as `steps` returns it, of one data set.
        metric: a dev metric.
        baseline: a start.

    Returns:
        A DataFrame with a row per start: seeds; reached, the number of seeds that reach the value;
        steps and seconds, means over those; share, their steps over those of the baseline; best,
        the mean of the best dev values; ended, the number of seeds whose best epoch is the last
        one allowed, so that more epochs might have given more.

    Raises:
        ValueError: no run of the baseline.
    """
    import pandas as pd

    if frame.empty or baseline not in set(frame["start"]):
        raise ValueError(
            f"no run of {baseline!r} to measure against; run it with the same data and seeds"
        )
    base = frame[frame["start"] == baseline]
    target = base.groupby("seed")[metric].max()
    base_steps = base.loc[base.groupby("seed")[metric].idxmax()].set_index("seed")["step"]
    rows = []
    for start, part in frame.groupby("start", sort=False):
        part = part[part["seed"].isin(target.index)]
        enough = part[part[metric] >= part["seed"].map(target)]
        first = enough.sort_values("step").groupby("seed").first()
        rows.append(
            {
                "start": start,
                "seeds": part["seed"].nunique(),
                "reached": len(first),
                "best": part.groupby("seed")[metric].max().mean(),
                "ended": _ended(part, metric),
                "steps": first["step"].mean(),
                "seconds": first["seconds"].mean(),
                "share": (first["step"] / base_steps).mean(),
            }
        )
    return pd.DataFrame(rows).set_index("start")


def _ended(part: pandas.DataFrame, metric: str) -> int:
    """Number of seeds whose best epoch is the last one allowed."""
    best = part.loc[part.groupby("seed")[metric].idxmax()].set_index("seed")
    last = part.groupby("seed")["epoch"].max()
    return int(((best["epoch"] == last) & (last >= best["allowed"])).sum())


def sentence(
    name: str, table: pandas.DataFrame, metric: str = "nDCG@5", baseline: str = BASELINE
) -> str:
    """`reached` of one data set in words.

    Args:
        name: of the data set.
        table: as `reached` returns it.
        metric: its name in the sentence.
        baseline: the start that the others are measured against.
    """
    base = table.loc[baseline]
    parts = [
        f"{name}: `{baseline}` takes {base['steps']:.0f} steps{_clock(base)} to its best dev"
        f" {metric}, {100 * base['best']:.1f}{_budget(base)}"
    ]
    for start, row in table.drop(index=baseline).iterrows():
        if not row["reached"]:
            parts.append(f"`{start}` never reaches it (best {100 * row['best']:.1f})")
            continue
        seeds = ""
        if row["reached"] < row["seeds"]:
            seeds = f" in {int(row['reached'])} of {int(row['seeds'])} seeds"
        parts.append(
            f"`{start}` reaches it after {row['steps']:.0f} steps{_clock(row)}{seeds}, and at best"
            f" {100 * row['best']:.1f}"
        )
    return "; ".join(parts) + "."


def _budget(row) -> str:
    """A remark where the best epoch is the last one allowed: more epochs might have been better."""
    if not row["ended"]:
        return ""
    return f" (the last epoch allowed in {row['ended']:.0f} of {row['seeds']:.0f} seeds)"


def _clock(row) -> str:
    return "" if math.isnan(row["seconds"]) else f", {row['seconds']:.0f} s"


def main() -> None:
    """Make the long runs of a data set and print what they say."""
    parser = parser_of("convergence", __doc__, tokens=256, starts=STARTS, seeds=(0, 1))
    options = parser.parse_args()
    prepared = prepare(options.dataset, **reading(options))
    for record in run(prepared, options.results, starts=options.starts, seeds=options.seeds):
        print(record)


if __name__ == "__main__":
    main()
