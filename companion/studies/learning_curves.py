"""How many documents a start needs: test metrics by number of training documents, nested subsets,
one label space.

The data-efficiency claim of METHOD.md section 7. Every size reads the same dev and test documents
and the same hidden states; the teacher, the linear score and the label counts come from the subset
alone, and labels that a subset has no document of stay in the label space. `needed` says how many
documents the unplanted model takes to match a planted one. `lookup+linear` against `random`
measures the whole start, its linear score included; the control for what planting adds to it is the
row `linear`.

    python -m companion.studies.learning_curves codiesp --tokens 128 --steps 5
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.peers import runs as peer_runs
from companion.report import report
from plantlib.data import subsets
from plantlib.training import runs
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, load_all, record_path
from plantlib.utils.base import DataError, hash_order
from plantlib.utils.io import fingerprint_of
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


# what the records say they were made by; `report.groups` leaves them out of the main tables
NOTEBOOK = "learning_curves"
END = "-curve"  # of a record's id
STARTS = ("random", "lookup", "linear", "lookup+linear")
PEERS = ("SVM", "SVM + J")
BASELINE = "random"


def fewer(prepared: Inputs, documents: int, seed: int = 0) -> Inputs:
    """The first `documents` training rows in hash order, so that a smaller subset lies inside a
    larger one of the same seed.
    """
    rows = prepared.rows["train"]
    if not 1 <= documents <= len(rows):
        raise DataError(
            f"{documents} of {len(rows)} training documents: give a number between 1 and"
            f" {len(rows)}"
        )
    order = hash_order([prepared.corpus.ids[i] for i in rows], seed, "subset train")
    return replace(
        prepared,
        key=fingerprint_of(prepared.key, "fewer", documents, seed),
        train_rows=np.sort(rows[order[:documents]]),
        label_space_stated="labels with a training document in the largest subset",
    )


def run(
    prepared: Inputs,
    results: str | Path,
    *,
    sizes: Iterable[int] | None = None,
    starts: Iterable[str] = STARTS,
    seeds: Iterable[int] = (0, 1, 2),
    config: RunConfig | None = None,
    peers: bool = True,
    progress: bool = True,
) -> list[RunRecord]:
    """Every size with every start and seed, and the linear peers; a seed draws its own subsets.
    Finished records are read.

    Beside starts from the linear score stands the score itself, untrained. A record of another
    label space (the corpus under another cap) is left where it stands, see `runs.record_path`.
    """
    # one gain at every size: what is compared are sizes, and a choice among few documents is noise
    config, results, made = (
        config or RunConfig(other_gains=(), linear_weights=()),
        Path(results),
        [],
    )
    sizes, starts = list(sizes or subsets.sizes(len(prepared.rows["train"]))), list(starts)
    scored = next((s for s in starts if "linear" in s.split("+")), None)
    jobs = [(size, seed, start) for size in sizes for seed in seeds for start in starts]
    with tqdm(total=len(jobs), desc="learning curve", unit="run", disable=not progress) as bar:
        for size, seed, start in jobs:
            part = fewer(prepared, size, seed)
            path = record_path(part, start, seed, results, END)
            found = runs.finished(path, part, config, seed)
            if not found:
                options = {
                    "config": config,
                    "results": results,
                    "run_id": path.stem,
                    "notebook": NOTEBOOK,
                    "progress": False,
                }
                found, _ = runs.run_start(part, start, seed, **options)
            made.append(found)
            if peers and start == starts[0]:
                made += _peers(part, seed, results)
            if start == scored:
                made.append(_untrained(part, seed, results, config))
            bar.update()
    return made


def _untrained(part: Inputs, seed: int, results: Path, config: RunConfig) -> RunRecord:
    """The linear score that this subset's runs begin from, read where it stands."""
    path = record_path(part, peer_runs.LINEAR_SCORE, seed, results, END)
    found = RunRecord.load(path) if path.exists() else None
    if found is None or not peer_runs.same_score(found, part, config.linear, seed):
        (made,) = peer_runs.run_linear_score(
            part, [seed], config=config.linear, notebook=NOTEBOOK, progress=False
        )
        found = replace(made, id=path.stem)
        found.save(results)
    return found


def _peers(part: Inputs, seed: int, results: Path) -> list[RunRecord]:
    """The linear peers on one subset, read where they stand."""
    paths = {name: record_path(part, name, seed, results, END) for name in PEERS}
    found = [RunRecord.load(path) for path in paths.values() if path.exists()]
    if len(found) == len(paths) and all(
        record.params.get("inputs") == part.key for record in found
    ):
        return found
    made = []
    for record in peer_runs.run_peers(part, notebook=NOTEBOOK, progress=False):
        if record.system in paths:
            params = record.params | {"inputs": part.key}
            made.append(replace(record, id=paths[record.system].stem, seed=seed, params=params))
            made[-1].save(results)
    return made


def frame(
    records: Iterable[RunRecord], metrics: Iterable[str] = ("ndcg@5", "p@1", "few/rp@5")
) -> pandas.DataFrame:
    """One row a record of a learning curve: data, system, seed, documents and metrics (fractions).

    Where there are curves of a data set over several label spaces (caps) each is a data set of its
    own, told by its labels; where one was read in several ways (tokens, backbone) each is one too,
    with the peers in all of them.
    """
    import pandas as pd

    records = [r for r in records if r.notebook == NOTEBOOK]
    names, readings = _names(records), {}
    for r in [r for r in records if r.kind == "planted"]:
        readings.setdefault(_space(r), set()).add(_reading(r))
    rows = []
    for r in records:
        name, several = names[_space(r)], readings.get(_space(r), set())
        own = {_reading(r)} if r.kind == "planted" else several
        for data in sorted(f"{name}, {reading}" for reading in own) if len(several) > 1 else [name]:
            rows.append(
                {
                    "data": data,
                    "system": r.system,
                    "seed": r.seed,
                    "documents": r.dataset["train"],
                    **{m: r.metrics.get(m) for m in metrics},
                }
            )
    return pd.DataFrame(rows, columns=["data", "system", "seed", "documents", *metrics])


def _space(record: RunRecord) -> tuple[str, str]:
    """Name and fingerprint of what the subsets of a curve were drawn from: of its dev, test and
    label space too.
    """
    return record.dataset["name"], record.dataset["fingerprint"]


def _names(records: list[RunRecord]) -> dict[tuple[str, str], str]:
    """What each `_space` is called: its name; with its labels beside others of that name, and its
    fingerprint if as many.
    """
    labels, found = {_space(r): r.dataset["labels"] for r in records}, {}
    for (name, fingerprint), count in labels.items():
        beside = [n for (other, mark), n in labels.items() if other == name and mark != fingerprint]
        told = f", {count:,} labels" if beside else ""
        found[name, fingerprint] = (
            name + told + (f" ({fingerprint[:6]})" if count in beside else "")
        )
    return found


def _reading(record: RunRecord) -> str:
    return f"{report.tokens_of(record)} tokens, {report.backbone_of(record)}"


def needed(
    table: pandas.DataFrame, metric: str = "ndcg@5", baseline: str = BASELINE
) -> pandas.DataFrame:
    """One row a data set, system and size: the documents the baseline needs for the same mean
    metric.

    Between two sizes the baseline is taken to be linear in the logarithm of documents; infinite
    where its best is lower. What a start saves is saved by all of it: of `lookup+linear` most may
    be its linear score's, which the row `linear` tells.
    """
    import pandas as pd

    rows = []
    for data, part in table.groupby("data", sort=False):
        means = part.groupby(["system", "documents"])[metric].mean()
        if baseline not in means.index.get_level_values(0):
            continue
        base = means[baseline].sort_index()
        for (system, documents), value in means.items():
            if system != baseline:
                found = _crossing(np.log(base.index.to_numpy(float)), base.to_numpy(float), value)
                rows.append(
                    {
                        "data": data,
                        "system": system,
                        "documents": documents,
                        metric: value,
                        "baseline needs": found,
                        "times as many": found / documents,
                    }
                )
    return pd.DataFrame(rows)


def _crossing(logs: np.ndarray, values: np.ndarray, wanted: float) -> float:
    """The first number of documents at which the line through the points reaches `wanted`."""
    above = np.flatnonzero(values >= wanted)
    if not len(above):
        return float("inf")
    i = above[0]
    if i == 0:
        return float(np.exp(logs[0]))
    share = (wanted - values[i - 1]) / (values[i] - values[i - 1])
    return float(np.exp(logs[i - 1] + share * (logs[i] - logs[i - 1])))


def sentence(table: pandas.DataFrame, metric: str = "ndcg@5", baseline: str = BASELINE) -> str:
    """What the curves say, a data set after the other, from the frame alone."""
    if table.empty:
        return (
            "No learning curves yet: `python -m companion.studies.learning_curves codiesp --steps"
            " 5` makes them."
        )
    said = []
    for (data, system), rows in needed(table, metric, baseline).groupby(
        ["data", "system"], sort=False
    ):
        most = int(
            table[(table["data"] == data) & (table["system"] == baseline)]["documents"].max()
        )
        each = [
            f"{n:,}: " + (f"more than {most:,}" if np.isinf(x) else f"{x:,.0f}")
            for n, x in zip(rows["documents"], rows["baseline needs"], strict=True)
        ]
        said.append(f"{data}, `{system}`: " + ", ".join(each))
    return (
        f"Documents that `{baseline}` needs to reach the {metric} of a system at a size. "
        + "; ".join(said)
        + "."
    )


def main(arguments: list[str] | None = None) -> None:
    """`python -m companion.studies.learning_curves codiesp --tokens 128`"""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.learning_curves", description=__doc__.split("\n")[0]
    )
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, default=128)
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", type=int)
    parser.add_argument("--first", type=int, default=25, help="documents of the smallest subset")
    parser.add_argument("--steps", type=int, default=5, help="sizes, geometric")
    parser.add_argument("--starts", nargs="+", default=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", default="results/runs")
    options = parser.parse_args(arguments)
    caps = {f"{s}_documents": getattr(options, s) for s in ("train", "dev", "test")}
    prepared = prepare(options.dataset, max_tokens=options.tokens, **caps)
    sizes = subsets.sizes(len(prepared.rows["train"]), options.first, options.steps)
    run(prepared, options.results, sizes=sizes, starts=options.starts, seeds=options.seeds)
    print(sentence(frame(load_all(options.results))))


if __name__ == "__main__":
    main()
