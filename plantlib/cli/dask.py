"""`python -m plantlib.cli.dask CORPUS --out FOLDER`: the teacher of a corpus too big for memory."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
from pathlib import Path

from plantlib.data import privacy
from plantlib.teacher.dask import optional, save_teacher, teach_partitions, write_partitions
from plantlib.teacher.mig import TeacherConfig
from plantlib.training.prepare import prepare
from plantlib.utils.io import fingerprint_of


def main(argv: list[str] | None = None) -> None:
    """Build the teacher of a corpus's training rows with the options of runs, `TeacherConfig()`."""
    parser = argparse.ArgumentParser(prog="python -m plantlib.cli.dask", description=main.__doc__)
    add = parser.add_argument
    add("corpus", help="folder or name of a corpus")
    about = "folder for teacher.safetensors; all workers must see it"
    add("--out", type=Path, required=True, help=about)
    add("--partitions", type=int, default=8, help="files that the rows are cut into (default: 8)")
    about = "processes on this machine; 0 uses threads of this process (default: 2)"
    add("--workers", type=int, default=2, help=about)
    about = "tokens read from each document (default: 256)"
    add("--tokens", type=int, default=256, help=about)
    add("--backbone", default="minilm", help="backbone whose tokenizer is used (default: minilm)")
    add("--scheduler", help="address of a running Dask scheduler, instead of --workers")
    args = parser.parse_args(argv)
    optional("dask")
    if args.partitions < 1:
        parser.error(f"--partitions {args.partitions}: give 1 or more")
    prepared = prepare(args.corpus, backbone=args.backbone, max_tokens=args.tokens, frozen=False)
    config, rows = TeacherConfig().counting, prepared.rows["train"]
    privacy.artefacts_root(prepared.corpus, args.out)
    # the name says what the work is for: an interrupted call finds its own work again
    work = args.out / f"work-{fingerprint_of(prepared.key, config, args.partitions)}"
    partitions = work / "partitions"
    if not partitions.exists():
        size = -(-len(rows) // args.partitions)
        write_partitions(prepared.counts[rows], prepared.train_labels, partitions, size)
    # count on the cluster, or in this process
    with _client(args.scheduler, args.workers) as client:
        options = {"client": client, "checkpoint": work / "checkpoint"}
        teacher = teach_partitions(partitions, **config, **options)
    about = {"corpus": prepared.corpus.name, "key": prepared.key}
    path = save_teacher(teacher, args.out / "teacher.safetensors", **about)
    shutil.rmtree(work)
    print(f"{path}: {teacher!r}")


def _client(scheduler: str | None, workers: int):
    """A context with the client of a scheduler, of `workers` new processes, or with None."""
    if scheduler:
        return optional("distributed").Client(scheduler)
    if not workers:
        return contextlib.nullcontext()
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    return optional("distributed").Client(**local)


if __name__ == "__main__":
    # the module under its own name: worker processes cannot import __main__
    importlib.import_module("plantlib.cli.dask").main()
