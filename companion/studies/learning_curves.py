"""How many documents a start needs: test metrics by number of training documents.

The learning curves of docs/method.md, "Controls and peers". The subsets are nested. Every size has
the same label space, dev and test documents and hidden states; the teacher, the linear score and
the label counts come from the subset. `needed` says how many documents the unplanted model needs to
match a planted one. `lookup+linear` against `random` measures the whole start, with its linear
score; what planting adds to that score is the difference to the row `linear`.

    python -m companion.studies.learning_curves codiesp --tokens 128 --steps 5
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.peers import runs as peer_runs
from companion.report import report
from companion.studies.command import parser_of, reading
from plantlib.data import subsets
from plantlib.training import runs
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, load_all, record_path
from plantlib.training.train import Trained
from plantlib.utils.base import DataError, hash_order
from plantlib.utils.io import fingerprint_of
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


# `RunRecord.notebook` of these runs; `report.groups` leaves them out of the main tables
NOTEBOOK = "learning_curves"
END = "-curve"  # end of their ids
STARTS = ("random", "lookup", "linear", "lookup+linear")
PEERS = ("SVM", "SVM + J")
BASELINE = "random"


def fewer(prepared: Inputs, documents: int, seed: int = 0) -> Inputs:
    """`prepared` with the first `documents` training rows in hash order.

    A smaller subset lies inside a larger one of the same seed. DataError where there are not so
    many training documents.
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
    """The records of every size, start and seed, and of the linear peers.

    For starts with the linear score the untrained score is recorded too. Records of the same name
    but of another corpus are kept, see `records.record_path`.

    Args:
        prepared: the corpus with all its training documents.
        results: folder of the records; a run whose record is there is not repeated.
        sizes: numbers of training documents; `subsets.sizes` when None.
        starts: names of starts.
        seeds: of the runs; each seed draws other subsets.
        config: options of the runs.
        peers: run the linear peers too.
        progress: show a bar.
    """
    config = config or RunConfig()
    results = Path(results)
    sizes = list(sizes or subsets.sizes(len(prepared.rows["train"])))
    starts = list(starts)
    with_score = next((s for s in starts if "linear" in s.split("+")), None)
    records = []
    jobs = [(size, seed, start) for size in sizes for seed in seeds for start in starts]
    with tqdm(total=len(jobs), desc="learning curve", unit="run", disable=not progress) as bar:
        unplanted: dict[tuple[str, int], Trained] = {}
        drawn = None
        for size, seed, start in jobs:
            if drawn != (size, seed):  # starts on the same documents share what plants nothing
                drawn = (size, seed)
                unplanted.clear()
            part = fewer(prepared, size, seed)
            path = record_path(part, start, seed, results, END)
            record = runs.finished(path, part, config, seed)
            if record is None:
                options = {
                    "config": config,
                    "results": results,
                    "run_id": path.stem,
                    "notebook": NOTEBOOK,
                    "progress": False,
                    "unplanted": unplanted,
                }
                record, _ = runs.run_start(part, start, seed, **options)
            records.append(record)
            if peers and start == starts[0]:
                records += _peers(part, seed, results)
            if start == with_score:
                records.append(_untrained(part, seed, results, config))
            bar.update()
    return records


def _untrained(part: Inputs, seed: int, results: Path, config: RunConfig) -> RunRecord:
    """The record of the linear score that the runs on this subset begin from."""
    path = record_path(part, peer_runs.LINEAR_SCORE, seed, results, END)
    record = RunRecord.load(path) if path.exists() else None
    if record is None or not peer_runs.same_score(record, part, config.linear, seed):
        (run,) = peer_runs.run_linear_score(
            part, [seed], config=config.linear, notebook=NOTEBOOK, progress=False
        )
        record = replace(run, id=path.stem)
        record.save(results)
    return record


def _peers(part: Inputs, seed: int, results: Path) -> list[RunRecord]:
    """The records of the linear peers on one subset."""
    paths = {name: record_path(part, name, seed, results, END) for name in PEERS}
    records = [RunRecord.load(path) for path in paths.values() if path.exists()]
    if len(records) == len(paths) and all(r.params.get("inputs") == part.key for r in records):
        return records
    records = []
    for record in peer_runs.run_peers(part, notebook=NOTEBOOK, progress=False):
        if record.system in paths:
            params = record.params | {"inputs": part.key}
            records.append(replace(record, id=paths[record.system].stem, seed=seed, params=params))
            records[-1].save(results)
    return records


def frame(
    records: Iterable[RunRecord], metrics: Iterable[str] = ("ndcg@5", "p@1", "few/rp@5")
) -> pandas.DataFrame:
    """One row per record of a learning curve: data, system, seed, documents, metrics (fractions).

    Curves that do not share a label space, a number of tokens read or a backbone get different
    names in the column data. The peers are repeated for every reading of their data set.
    """
    import pandas as pd

    # how each label space is called, and how its documents were read
    records = [r for r in records if r.notebook == NOTEBOOK]
    names = _names(records)
    readings: dict[tuple[str, str], set[str]] = {}
    for r in records:
        if r.kind == "planted":
            readings.setdefault(_space(r), set()).add(_reading(r))
    # a row per record and reading
    rows = []
    for r in records:
        name = names[_space(r)]
        every = readings.get(_space(r), set())
        data = [name]
        if len(every) > 1:
            data = sorted(f"{name}, {x}" for x in ([_reading(r)] if r.kind == "planted" else every))
        about = {"system": r.system, "seed": r.seed, "documents": r.dataset["train"]}
        values = {metric: r.metrics.get(metric) for metric in metrics}
        rows += [{"data": one} | about | values for one in data]
    return pd.DataFrame(rows, columns=["data", "system", "seed", "documents", *metrics])


def _space(record: RunRecord) -> tuple[str, str]:
    """Name and fingerprint of the corpus that the subsets of a curve were drawn from."""
    return record.dataset["name"], record.dataset["fingerprint"]


def _names(records: list[RunRecord]) -> dict[tuple[str, str], str]:
    """A name for each `_space`.

    Spaces of one data set are distinguished by their number of labels, and by their fingerprint
    where that is equal too.
    """
    labels = {_space(r): r.dataset["labels"] for r in records}
    names = {}
    for (name, fingerprint), count in labels.items():
        others = [n for (other, mark), n in labels.items() if other == name and mark != fingerprint]
        long = f"{name}, {count:,} labels" if others else name
        names[name, fingerprint] = f"{long} ({fingerprint[:6]})" if count in others else long
    return names


def _reading(record: RunRecord) -> str:
    """How a planted run read its documents."""
    return f"{report.tokens_of(record)} tokens, {report.backbone_of(record)}"


def needed(
    table: pandas.DataFrame, metric: str = "ndcg@5", baseline: str = BASELINE
) -> pandas.DataFrame:
    """The documents that the baseline needs to reach the mean metric of each system and size.

    Args:
        table: as `frame` returns it.
        metric: one of its metrics.
        baseline: a system.

    Returns:
        A DataFrame with data, system, documents, the metric, baseline needs (interpolated linearly
        in the logarithm of documents; infinite where the baseline does not reach the metric) and
        times as many. A saving is that of the whole start; the row `linear` shows how much of that
        of `lookup+linear` is due to the linear score.
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
                needs = _crossing(np.log(base.index.to_numpy(float)), base.to_numpy(float), value)
                rows.append(
                    {
                        "data": data,
                        "system": system,
                        "documents": documents,
                        metric: value,
                        "baseline needs": needs,
                        "times as many": needs / documents,
                    }
                )
    return pd.DataFrame(rows)


def _crossing(logs: np.ndarray, values: np.ndarray, target: float) -> float:
    """The least number of documents at which the line through the points reaches `target`.

    logs: logarithms of documents, ascending; values: the metric at each.
    """
    above = np.flatnonzero(values >= target)
    if not len(above):
        return float("inf")
    i = above[0]
    if i == 0:
        return float(np.exp(logs[0]))
    share = (target - values[i - 1]) / (values[i] - values[i - 1])
    return float(np.exp(logs[i - 1] + share * (logs[i] - logs[i - 1])))


def sentence(table: pandas.DataFrame, metric: str = "ndcg@5", baseline: str = BASELINE) -> str:
    """`needed` in words, one data set and system after the other."""
    if table.empty:
        return (
            "No learning curves yet: `python -m companion.studies.learning_curves codiesp --steps"
            " 5` makes them."
        )
    parts = []
    most = table[table["system"] == baseline].groupby("data")["documents"].max()
    results = needed(table, metric, baseline)
    for (data, system), rows in results.groupby(["data", "system"], sort=False):
        each = [
            f"{n:,}: " + (f"more than {most[data]:,}" if np.isinf(x) else f"{x:,.0f}")
            for n, x in zip(rows["documents"], rows["baseline needs"], strict=True)
        ]
        parts.append(f"{data}, `{system}`: {', '.join(each)}")
    return (
        f"Documents that `{baseline}` needs to reach the {metric} of a system trained on so many:"
        f" {'; '.join(parts)}."
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the curves of a data set and print `sentence` of all that are recorded."""
    parser = parser_of("learning_curves", __doc__, tokens=128, starts=STARTS, seeds=(0, 1, 2))
    parser.add_argument("--first", type=int, default=25, help="documents of the smallest subset")
    parser.add_argument("--steps", type=int, default=5, help="number of sizes, in equal ratios")
    parser.add_argument("--sizes", type=int, nargs="+", help="in their place, numbers of documents")
    options = parser.parse_args(arguments)
    prepared = prepare(options.dataset, **reading(options))
    even = subsets.sizes(len(prepared.rows["train"]), options.first, options.steps)
    sizes = options.sizes or even
    run(prepared, options.results, sizes=sizes, starts=options.starts, seeds=options.seeds)
    print(sentence(frame(load_all(options.results))))


if __name__ == "__main__":
    main()
