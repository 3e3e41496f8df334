"""`python -m plantlib.cli.dask CORPUS --out FOLDER`: the teacher of a corpus too big for memory."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
from dataclasses import asdict
from pathlib import Path

from plantlib.teacher.dask import optional, save_teacher, teach_partitions, write_partitions
from plantlib.teacher.mig import TeacherConfig
from plantlib.training.prepare import prepare
from plantlib.utils.io import fingerprint_of


def main(argv: list[str] | None = None) -> None:
    """Build the teacher of a corpus's training rows with the options of runs, `TeacherConfig()`."""
    parser = argparse.ArgumentParser(prog="python -m plantlib.cli.dask", description=main.__doc__)
    parser.add_argument("corpus", help="folder or name of a corpus")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of teacher.safetensors; all workers must see it",
    )
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes of this machine, 0 for threads of this process",
    )
    parser.add_argument("--tokens", type=int, default=510, help="tokens read a document")
    parser.add_argument("--backbone", default="minilm", help="its tokenizer is used")
    parser.add_argument(
        "--scheduler", help="address of a running Dask scheduler, in place of --workers"
    )
    args = parser.parse_args(argv)
    optional("dask")
    if args.partitions < 1:
        parser.error(f"--partitions {args.partitions}: give 1 or more")
    prepared = prepare(
        args.corpus, backbone=args.backbone, max_tokens=args.tokens, frozen=False
    )
    config, rows = asdict(TeacherConfig()), prepared.rows["train"]
    # named by what it comes from: an interrupted call finds its own work again and no other
    work = args.out / f"work-{fingerprint_of(prepared.key, config, args.partitions)}"
    if not (work / "partitions").exists():
        write_partitions(
            prepared.counts[rows],
            prepared.train_labels,
            work / "partitions",
            -(-len(rows) // args.partitions),
        )
    local = {"n_workers": args.workers, "threads_per_worker": 1, "dashboard_address": None}
    there = {"address": args.scheduler} if args.scheduler else local
    with (
        optional("distributed").Client(**there)
        if args.scheduler or args.workers
        else contextlib.nullcontext()
    ) as client:
        teacher = teach_partitions(
            work / "partitions", **config, client=client, checkpoint=work / "checkpoint"
        )
    path = save_teacher(
        teacher, args.out / "teacher.safetensors", corpus=prepared.corpus.name, key=prepared.key
    )
    shutil.rmtree(work)
    print(f"{path}: {teacher!r}")


if __name__ == "__main__":
    # the module under its own name: worker processes cannot import __main__
    importlib.import_module("plantlib.cli.dask").main()
