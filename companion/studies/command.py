"""The command line that the studies share: a data set, how it is read, seeds, and the records."""

from __future__ import annotations

import argparse


def parser_of(
    study: str, doc: str, *, tokens: int, starts: tuple[str, ...], seeds: tuple[int, ...]
):
    """A parser with the arguments of every study; the last three are their defaults."""
    parser = argparse.ArgumentParser(
        prog=f"python -m companion.studies.{study}", description=doc.split("\n")[0]
    )
    parser.add_argument("dataset", help="a known name or the folder of a saved corpus")
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens read per document")
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", type=int, help=f"most {split} documents")
    parser.add_argument("--starts", nargs="+", default=list(starts), help="names of starts")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--results", default="results/runs", help="folder of the records")
    return parser


def reading(options: argparse.Namespace) -> dict[str, int | None]:
    """The options of `prepare` that the command line gives."""
    caps = {f"{split}_documents": getattr(options, split) for split in ("train", "dev", "test")}
    return {"max_tokens": options.tokens} | caps
