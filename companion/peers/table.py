"""All peers of a data set in one call, and results/peers.csv with their metrics and costs.

`python -m companion.peers.table codiesp --train 500` runs the peers without a record and rewrites
the table from the records; a peer that cannot be run is listed as "not run". The peers are those of
docs/method.md, "Controls and peers".
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.peers import library_peers, neural_peers
from companion.peers import runs as peer_runs
from companion.peers.library_peers import ONE_VS_REST_CELLS, PEERS
from companion.report import report
from plantlib.data.sources import checkout
from plantlib.training.inputs import Inputs
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, device_of, load_all
from plantlib.utils.io import atomic_path
from plantlib.utils.terminal import spreadsheet_cell

if TYPE_CHECKING:
    import pandas


NOTEBOOK = "peers"
PLANTED = ("random", "lookup+score", "linear", "lookup+linear")


# stages of a planted run that are its training; runs on candidates time the linear score in
# `teacher`
TRAINING = ("teacher", "l2r", "linear", "fine_tune")
METRICS = (
    "p@1",
    "p@5",
    "ndcg@5",
    "psp@5",
    "few/rp@5",
    "few/r@15",
    "few/overall_r@15",
    "micro_f1",
    "macro_f1",
)
# per cell of a linear score: a float32 weight and the int32 number of its label
CELL_BYTES = 8


# column -> what it holds; metrics are percent on test per document, means over seeds
COLUMNS = {
    "dataset": "data set",
    "train": "training documents",
    "dev": "dev documents",
    "test": "test documents",
    "labels": "labels with a training document",
    "system": "peer",
    "kind": "linear, teacher, neural or planted",
    "seeds": "runs",
    "status": "run, or not run and why",
    **dict.fromkeys(
        METRICS,
        "percent on test; few/r@15 ranks few labels among themselves, few/overall_r@15 among all",
    ),
    "train_s": (
        "wall seconds of training on a machine that did other work too, so rows that ran at"
        " different times cannot be compared by it. Features of a frozen backbone are not counted;"
        " choosing options on dev is counted for planted runs and heads, not for linear peers. A"
        " planted run counts making its linear score, or reading it where an earlier run left it"
        " on disk; the row of the linear score is blank where it was read. Where train_cpu_s is"
        " blank, a bare teacher has the seconds of all four together, the SVM and its sums those"
        " of the SVM"
    ),
    "train_cpu_s": (
        "CPU seconds of training, the number to compare; blank where not measured. Peers of other"
        " libraries (those with a peak_memory_mb): the library alone; bare teachers, the linear"
        " score, the SVM of any other run and its sums: with counting words and tf-idf"
    ),
    "predict_ms": (
        "CPU milliseconds per test document, from tf-idf or the features of a frozen backbone to"
        " scores; with choosing the best labels for peers of other libraries and heads, without"
        " for the rest"
    ),
    "peak_memory_mb": (
        "largest resident MiB with data and library, of peers measured in a separate process"
        " (those of other libraries); blank for peers of a process that did more"
    ),
    "model_mb": (
        "MiB of the trained model: on disk for the trees, float32 weights for the others, and 8"
        " bytes per cell of the linear score where the record counts its cells. Planted cells and a"
        " frozen backbone are not counted"
    ),
    "run": "id of the first record; metrics and costs are those of one record per seed",
    "device": "where it ran",
}


def plain_rows(prepared: Inputs, results: Path, progress: bool = True) -> None:
    """Run the peers of `runs.run_peers`, unless this data set has their records.

    They are left out where one-vs-rest models take too long.
    """
    # subsets of a learning curve have the same fingerprint, but fewer training documents
    same = {"fingerprint": prepared.corpus.fingerprint(), "train": len(prepared.rows["train"])}
    recorded = any(
        record.system == "SVM + J"
        and shown(record)
        and all(record.dataset[key] == value for key, value in same.items())
        for record in (load_all(results) if results.is_dir() else [])
    )
    if not recorded and not library_peers.possible(prepared, ["SVM"])[1]:
        notebook = library_peers.NOTEBOOK
        peer_runs.run_peers(prepared, results=results, notebook=notebook, progress=progress)


def frame(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """The rows of peers.csv, data set by data set; the columns are those of `COLUMNS`.

    Data sets without a record of a peer are left out.
    """
    import pandas as pd

    by_data: dict[tuple, list[RunRecord]] = {}
    for record in [r for r in records if shown(r)]:
        key = tuple(record.dataset[name] for name in ("name", "train", "fingerprint"))
        by_data.setdefault(key, []).append(record)
    rows = []
    for _, part in sorted(by_data.items()):
        if not any(r.notebook == NOTEBOOK for r in part):
            continue
        systems = {r.system for r in part}
        for system in report.in_order(systems):
            rows.append(row_of([r for r in part if r.system == system]))
        data = part[0].dataset
        rows += [missing(data, name) for name in expected() if name not in systems]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def shown(record: RunRecord) -> bool:
    """Whether a record belongs in the table: peers, and the planted runs they are compared with."""
    main = not (record.notebook or "-").startswith(report.ELSEWHERE)
    return main and (
        record.kind != "planted"
        or (record.system in PLANTED and report.backbone_of(record) == "minilm")
    )


def expected() -> tuple[str, ...]:
    """The peers that every data set should have."""
    return (*PEERS, *neural_peers.HEADS)


def row_of(records: list[RunRecord]) -> dict:
    """The row of one system: means over its seeds, with one record per seed.

    Of two records of a seed the one measured in a separate process counts, else the one with CPU
    seconds.
    """
    # one record per seed
    best_last = sorted(records, key=lambda r: (own_process(r), "train_cpu" in r.times))
    records = list({r.seed: r for r in best_last}.values())
    first = records[0]
    data = first.dataset
    # what they cost
    train = [
        r.times.get("train") if r.kind != "planted" else sum(r.times.get(k, 0) for k in TRAINING)
        for r in records
    ]
    memory = [r.peak_memory_mb if own_process(r) else None for r in records]
    predict_cpu = [r.times.get("predict_cpu") for r in records]
    return {
        "dataset": data["name"],
        "kind": first.kind,
        "system": first.system,
        "seeds": len(records),
        "status": "run",
        **{name: data[name] for name in ("train", "dev", "test", "labels")},
        **{m: _mean([r.metrics.get(m) for r in records], 100, 2) for m in METRICS},
        "train_s": _mean(train, 1, 2),
        "train_cpu_s": _mean([r.times.get("train_cpu") for r in records], 1, 2),
        "predict_ms": _mean(predict_cpu, 1000 / data["test"], 3),
        "peak_memory_mb": _mean(memory, 1, 0),
        "model_mb": _mean(map(_model_mb, records), 1, 2),
        "run": first.id,
        "device": device_of(first),
    }


def own_process(record: RunRecord) -> bool:
    """Whether a record was measured in a separate process; those of `library_peers.py` were."""
    return "library" in record.params


def missing(data: dict, name: str) -> dict:
    """The row of a peer without a record; data: `RunRecord.dataset` of its data set."""
    too_many = data["labels"] * data["train"] > ONE_VS_REST_CELLS
    too_long = too_many and name in PEERS and PEERS[name].one_vs_rest
    row = {"dataset": data["name"], "system": name, "seeds": 0}
    row["status"] = "not run: one model a label takes too long here" if too_long else "not run"
    return row | {k: data[k] for k in ("train", "dev", "test", "labels")}


def _model_mb(record: RunRecord) -> float | None:
    """MiB of the trained model; None where the record does not say."""
    size = record.model_size if isinstance(record.model_size, dict) else {}
    if "model_mb" in size:
        return size["model_mb"]
    bytes_of = {"trained_parameters": 4, "word_cells": CELL_BYTES}
    known = [each * size[name] for name, each in bytes_of.items() if name in size]
    return sum(known) / 2**20 if known else None


def _mean(values: Iterable[float | None], factor: float, digits: int) -> float | None:
    """factor * mean of the values that are not None, rounded; None without any."""
    known = [v for v in values if v is not None]
    return round(factor * sum(known) / len(known), digits) if known else None


def write(records: Iterable[RunRecord], path: str | Path | None = None) -> Path:
    """Write `frame` to results/peers.csv, or to `path`; returns the path."""
    path = Path(path or checkout() / "results" / "peers.csv")
    with atomic_path(path) as temporary:
        cells = frame(records).map(lambda x: spreadsheet_cell(x) if isinstance(x, str) else x)
        cells.to_csv(temporary, index=False)
    return path


def shortened(table: pandas.DataFrame) -> pandas.DataFrame:
    """The columns of `frame` that a reader compares first: quality and costs."""
    quality = ["p@1", "p@5", "ndcg@5", "psp@5", "few/r@15"]
    costs = ["train_cpu_s", "predict_ms", "peak_memory_mb", "model_mb"]
    return table[["dataset", "train", "system", "seeds", *quality, *costs, "status"]]


def main() -> None:
    """Run the peers of a data set that have no record, and rewrite the table."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.peers.table", description=__doc__.split("\n")[0]
    )
    parser.add_argument("dataset")
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", type=int)
    parser.add_argument(
        "--only", nargs="*", help=f"some of {', '.join(expected())}; all by default"
    )
    parser.add_argument(
        "--tokens", type=int, default=256, help="tokens that the heads on frozen features read"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of those heads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=checkout() / "results" / "runs")
    options = parser.parse_args()
    names = expected() if options.only is None else options.only
    heads = [name for name in names if name in neural_peers.HEADS]
    libraries = [name for name in names if name not in neural_peers.HEADS]
    # peers that read words
    caps = {s: getattr(options, s) for s in ("train", "dev", "test")}
    prepared = library_peers.words_only(options.dataset, **caps)
    left_out = {}
    if options.only is None:
        plain_rows(prepared, options.results)
    if libraries:
        records, left_out = library_peers.run(
            prepared, libraries, results=options.results, threads=options.threads
        )
        print(*records, sep="\n")
    # heads on frozen features
    if heads:
        read = prepare(
            options.dataset,
            max_tokens=options.tokens,
            **{f"{s}_documents": n for s, n in caps.items()},
        )
        print(*neural_peers.run(read, heads, options.seeds, results=options.results), sep="\n")
    for name, reason in left_out.items():
        print(f"{name}: not run: {reason}")
    if options.results == checkout() / "results" / "runs":
        print(f"results/{write(load_all(options.results)).name} rewritten")


if __name__ == "__main__":
    main()
