"""All peers of a data set in one call, and results/peers.csv: what each is worth and what it costs.

`python -m companion.peers.table codiesp --train 500` runs what is missing and rewrites the table
from the run records; a peer without a record stays in the table as "not run". METHOD.md section 7
says why the rows stand there. Nothing here trains itself.
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

if TYPE_CHECKING:
    import pandas


NOTEBOOK = "peers"
PLANTED = ("random", "lookup+score", "linear", "lookup+linear", "lookup+linear, rare raised")


# of a planted run; one on candidates times its linear score as part of `teacher`
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
# of a linear score's table in a model: a float32 weight and the int32 number of its label
CELL_BYTES = 8


# name -> what stands in it; metrics are percent on test, document level, means over seeds
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
        "wall seconds of training on a machine that did other work too: rows that ran at different"
        " times do not compare by it, SVM + J may show fewer than SVM. Features of a frozen"
        " backbone are not counted; choosing options on dev is in planted runs and heads, not in"
        " linear peers. A planted run counts making its linear score, or reading it where an"
        " earlier run left it on disk; the row of the linear score itself is blank where it was"
        " read. Where train_cpu_s is blank, a bare teacher shows the seconds of all four together,"
        " the SVM and its sums those of the SVM alone"
    ),
    "train_cpu_s": (
        "CPU seconds of training: the number to compare, blank where not measured. Peers of other"
        " libraries (they have a peak_memory_mb): the library alone; bare teachers, the linear"
        " score, the SVM of any other run and its sums: with counting words and tf-idf"
    ),
    "predict_ms": (
        "CPU milliseconds a test document, from tf-idf or the features of a frozen backbone to"
        " scores; with choosing the best labels for peers of other libraries and heads, without it"
        " for the rest"
    ),
    "peak_memory_mb": (
        "largest resident MiB, data and library included, of peers measured in a process of their"
        " own (those of other libraries); blank for what ran in a process that did more, whose"
        " memory says little of it"
    ),
    "model_mb": (
        "MiB of the trained model: on disk for the trees, float32 weights else, 8 bytes a cell of a"
        " linear score's table where the record counts its cells (planted runs made before cells"
        " were counted do not: theirs is what is trained alone). Planted cells and a frozen"
        " backbone are not counted"
    ),
    "run": "id of the first record: the row's metrics and costs are of one record a seed",
    "device": "where it ran",
}


def plain_rows(prepared: Inputs, results: Path, progress: bool = True) -> None:
    """The rows of `peer_runs.run_peers` (bare teachers, SVM and their sum), where this data set has
    none yet.
    """

    known = load_all(results) if results.is_dir() else []
    # a learning curve's subsets carry the fingerprint of the whole corpus, and their rows are no
    # rows of the table
    same = {"fingerprint": prepared.corpus.fingerprint(), "train": len(prepared.rows["train"])}
    there = [
        r
        for r in known
        if r.system == "SVM + J" and shown(r) and all(r.dataset[k] == v for k, v in same.items())
    ]
    if not there and not library_peers.possible(prepared, ["SVM"])[1]:
        peer_runs.run_peers(
            prepared, results=results, notebook=library_peers.NOTEBOOK, progress=progress
        )


def frame(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """The rows of peers.csv, a data set after the other; columns are described by `COLUMNS`."""
    import pandas as pd

    by_data: dict[tuple, list[RunRecord]] = {}
    for record in [r for r in records if shown(r)]:
        by_data.setdefault(
            (record.dataset["name"], record.dataset["train"], record.dataset["fingerprint"]), []
        ).append(record)
    rows = []
    for _, part in sorted(by_data.items()):
        if not any(r.notebook == NOTEBOOK for r in part):
            continue
        for system in report.in_order({r.system for r in part}):
            rows.append(row_of([r for r in part if r.system == system]))
        rows += [
            missing(part[0].dataset, name)
            for name in expected()
            if name not in {r.system for r in part}
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def shown(record: RunRecord) -> bool:
    """Peers, and of the planted runs those of the main table that the peers are read against."""
    main = not (record.notebook or "-").startswith(report.ELSEWHERE)
    return main and (
        record.kind != "planted"
        or (record.system in PLANTED and report.backbone_of(record) == "minilm")
    )


def expected() -> tuple[str, ...]:
    """Systems that every data set should have a row of."""

    return (*PEERS, "CAML head", "PLM-ICD head")


def row_of(records: list[RunRecord]) -> dict:
    """Means over the seeds of one system, metrics and costs of one record a seed.

    Of two the one measured in a process of its own, else the one that knows CPU seconds: wall
    seconds are the machine's too.
    """
    one = {
        r.seed: r for r in sorted(records, key=lambda r: (own_process(r), "train_cpu" in r.times))
    }
    own, data = list(one.values()), records[0].dataset
    train = [
        r.times.get("train") if r.kind != "planted" else sum(r.times.get(k, 0) for k in TRAINING)
        for r in own
    ]
    cpu, predict = (
        [r.times.get("train_cpu") for r in own],
        [r.times.get("predict_cpu") for r in own],
    )
    row = {
        "dataset": data["name"],
        "kind": own[0].kind,
        "system": own[0].system,
        "seeds": len(own),
        "status": "run",
    }
    row |= {name: data[name] for name in ("train", "dev", "test", "labels")}
    row |= {m: _mean([r.metrics.get(m) for r in own], 100, 2) for m in METRICS}
    row |= {
        "train_s": _mean(train, 1, 2),
        "train_cpu_s": _mean(cpu, 1, 2),
        "predict_ms": _mean(predict, 1000 / data["test"], 3),
        "peak_memory_mb": _mean([r.peak_memory_mb if own_process(r) else None for r in own], 1, 0),
        "model_mb": _mean(map(_model_mb, own), 1, 2),
        "run": own[0].id,
        "device": device_of(own[0]),
    }
    return row


def own_process(record: RunRecord) -> bool:
    """Whether a record was measured in a process that did nothing else: those of
    `library_peers.py`, which name a library.
    """
    return "library" in record.params


def missing(data: dict, name: str) -> dict:
    """The row of a peer without a record."""

    wide = (
        name in PEERS
        and PEERS[name].one_vs_rest
        and data["labels"] * data["train"] > ONE_VS_REST_CELLS
    )
    row = {"dataset": data["name"], "system": name, "seeds": 0}
    row["status"] = "not run: one model a label takes too long here" if wide else "not run"
    return row | {k: data[k] for k in ("train", "dev", "test", "labels")}


def _model_mb(record: RunRecord) -> float | None:
    size = record.model_size if isinstance(record.model_size, dict) else {}
    if "model_mb" in size:
        return size["model_mb"]
    known = [
        each * size[name]
        for name, each in (("trained_parameters", 4), ("word_cells", CELL_BYTES))
        if name in size
    ]
    return sum(known) / 2**20 if known else None


def _mean(values: Iterable[float | None], factor: float, digits: int) -> float | None:
    known = [v for v in values if v is not None]
    return round(factor * sum(known) / len(known), digits) if known else None


def write(records: Iterable[RunRecord], path: str | Path | None = None) -> Path:
    """results/peers.csv from run records, atomically."""
    path = Path(path or checkout() / "results" / "peers.csv")
    with atomic_path(path) as temporary:
        frame(records).to_csv(temporary, index=False)
    return path


def shortened(table: pandas.DataFrame) -> pandas.DataFrame:
    """What a reader compares first: quality and costs, without the columns that say where a row
    comes from.
    """
    names = [
        "dataset",
        "train",
        "system",
        "seeds",
        "p@1",
        "p@5",
        "ndcg@5",
        "psp@5",
        "few/r@15",
        "train_cpu_s",
        "predict_ms",
        "peak_memory_mb",
        "model_mb",
        "status",
    ]
    return table[names]


def main() -> None:
    """`python -m companion.peers.table DATASET [--train N] [--only NAME ...]`"""

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
    wanted = expected() if options.only is None else options.only
    heads, libraries = (
        [n for n in wanted if n in expected()[-2:]],
        [n for n in wanted if n not in expected()[-2:]],
    )
    caps = {s: getattr(options, s) for s in ("train", "dev", "test")}
    prepared, left_out = library_peers.words_only(options.dataset, **caps), {}
    if options.only is None:
        plain_rows(prepared, options.results)
    if libraries:
        made, left_out = library_peers.run(
            prepared, libraries, results=options.results, threads=options.threads
        )
        print(*made, sep="\n")
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
