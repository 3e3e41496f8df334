"""All peers of a data set in one call, and results/peers.csv: what each is worth and what it costs.

`python -m plantlib.peer_table codiesp --train 500` runs what is missing and rewrites the table from the run records; a peer
without a record stays in the table as "not run". METHOD.md section 7 says why the rows stand there. Nothing here trains itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from plantlib.results import load_all
from plantlib.sources import checkout

if TYPE_CHECKING:

    from plantlib.pipeline import Prepared

METRICS = ("p@1", "p@5", "ndcg@5", "psp@5", "few/rp@5", "few/r@15", "micro_f1", "macro_f1")


def plain_rows(prepared: Prepared, results: Path, progress: bool = True) -> None:
    """The rows of `runs.run_peers` (bare teachers, SVM and their sum), where this data set has none yet."""
    from plantlib import library_peers, runs

    fingerprint = prepared.corpus.fingerprint()
    known = load_all(results) if results.is_dir() else []
    there = any(r.system == "SVM + J" and r.dataset["fingerprint"] == fingerprint for r in known)
    if not there and not library_peers.possible(prepared, ["SVM"])[1]:
        runs.run_peers(prepared, results=results, notebook=library_peers.NOTEBOOK, progress=progress)


def main() -> None:
    """`python -m plantlib.peer_table DATASET [--train N] [--only NAME ...]`"""
    from plantlib import library_peers

    parser = argparse.ArgumentParser(prog="python -m plantlib.peer_table", description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", type=int)
    parser.add_argument("--only", nargs="*", help=f"some of {', '.join(library_peers.PEERS)}; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=checkout() / "results" / "runs")
    options = parser.parse_args()
    prepared = library_peers.words_only(options.dataset, options.train, options.dev, options.test)
    if options.only is None:
        plain_rows(prepared, options.results)
    records, left_out = library_peers.run(prepared, options.only, results=options.results, threads=options.threads)
    for record in records:
        print(record)
    for name, reason in left_out.items():
        print(f"{name}: not run: {reason}")


if __name__ == "__main__":
    main()
