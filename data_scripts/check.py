"""`make data-check`: compare the corpora that were built with published counts (expected.csv).

Every data set of the table that is in the data folder is counted from its parquet files.
Differences are printed, and the exit status is 1 if there is one. Corpora of generated notes, or
with a split by our rule, may differ: their line says why. Several rows of one quantity are
alternatives, as sources count differently. Counts must be equal; means and medians must round to
the published value.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plantlib.data import sources
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json

TABLE = Path(__file__).with_name("expected.csv")
RANGE = re.compile(r"labels in (\d+)(?: (to) (\d+)| (or more))? documents")
MADE_BY_RULE = "DERIVED"


class Expected(NamedTuple):
    """One row of expected.csv."""

    dataset: str
    split: str
    quantity: str
    expected: str
    source: str


class Built:
    """What can be counted in a corpus folder: labels by split, and words of the texts."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        self.folder = folder
        self.manifest = read_json(folder / "manifest.json")
        table = pq.read_table(folder / "documents.parquet", columns=["split", "labels"])
        self.split = np.asarray(table["split"].to_pylist(), dtype=str)
        labels = table["labels"].combine_chunks()
        self.lengths = np.asarray(labels.value_lengths().to_pylist(), dtype=np.int64)
        self.row = np.repeat(np.arange(len(self.split)), self.lengths)
        self.column = labels.flatten().to_numpy()
        self.L = pq.ParquetFile(folder / "labels.parquet").metadata.num_rows

    def rows(self, split: str) -> np.ndarray:
        """(N,) bool: the documents of a split.

        split: 'train', 'train+dev', or 'all' for every split but unlabelled.
        """
        if split == "all":
            return self.split != "unlabelled"
        return np.isin(self.split, split.split("+"))

    def frequency(self, split: str) -> np.ndarray:
        """(L,) documents of the split per label."""
        return np.bincount(self.column[self.rows(split)[self.row]], minlength=self.L)

    def words(self) -> Iterator[int]:
        """Words of each document, in order."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.folder / "documents.parquet") as file:
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                yield from (len(text.split()) for text in batch["text"].to_pylist())

    def measure(self, split: str, quantity: str) -> float:
        """The value of a quantity as expected.csv names it; DataError for an unknown one."""
        rows = self.rows(split)
        if quantity == "documents":
            return int(rows.sum())
        if quantity == "labels":
            return int((self.frequency(split) > 0).sum())
        if quantity == "labels/doc":
            return float(self.lengths[rows].mean())
        if quantity == "median labels":
            return float(np.median(self.lengths[rows]))
        if quantity == "median words":
            return float(np.median(np.fromiter(self.words(), np.int64)[rows]))
        if quantity == "labels not in train":
            return int(((self.frequency(split) > 0) & (self.frequency("train") == 0)).sum())
        if bounds := RANGE.fullmatch(quantity):
            low = int(bounds[1])
            high = np.inf if bounds[4] else int(bounds[3] or bounds[1])
            frequency = self.frequency(split)
            return int(((frequency >= low) & (frequency <= high)).sum())
        raise DataError(
            f"expected.csv asks for {quantity!r}: wanted documents, labels, labels/doc, median"
            " labels, median words, labels not in train, or labels in A to B documents"
        )


def expectations(path: Path = TABLE) -> dict[str, dict[tuple[str, str], list[Expected]]]:
    """{dataset: {(split, quantity): rows of the table}}."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = [Expected(**row) for row in csv.DictReader(handle)]
    by_dataset: dict[str, dict[tuple[str, str], list[Expected]]] = {}
    for row in rows:
        quantities = by_dataset.setdefault(row.dataset, {})
        quantities.setdefault((row.split, row.quantity), []).append(row)
    return by_dataset


def agrees(value: float, expected: str) -> bool:
    """Whether a counted value is the published one.

    Counts (int) must be equal, other values must agree in the published decimals.
    """
    slack = 0.0 if isinstance(value, int) else 0.5 * 10.0 ** -len(expected.partition(".")[2]) + 1e-9
    return abs(value - float(expected)) <= slack


def differences(built: Built, wanted: dict[tuple[str, str], list[Expected]]) -> list[str]:
    """One line per quantity that no source agrees with."""
    lines = []
    for (split, quantity), rows in wanted.items():
        value = built.measure(split, quantity)
        if not any(agrees(value, row.expected) for row in rows):
            published = " or ".join(f"{row.expected} ({row.source})" for row in rows)
            lines.append(f"{split} {quantity}: {value:.6g}, published {published}")
    return lines


def excuse(built: Built) -> str | None:
    """Why a corpus may differ from the published one, by its manifest; None when it must not."""
    if built.manifest.get("synthetic"):
        return "made of generated notes, nothing to compare"
    derived = next((note for note in built.manifest.get("notes", ()) if MADE_BY_RULE in note), None)
    return f"not the published selection ({derived})" if derived else None


def check(names: list[str] | None = None, path: Path = TABLE) -> int:
    """Print a line per data set, with its differences; returns how many data sets differ.

    names: data sets to check; all of the table when None.
    """
    published = expectations(path)
    wrong = 0
    if unknown := sorted(set(names or ()) - set(published)):
        raise DataError(
            f"no published counts for {', '.join(unknown)}: known are {', '.join(published)}"
        )
    for name in names or published:
        if (folder := sources.find(name)) is None:
            print(f"{name}: not built")
            continue
        built = Built(folder)
        lines = differences(built, published[name])
        reason = excuse(built)
        if reason and lines:
            print(f"{name}: {reason}; {len(lines)} of {len(published[name])} quantities differ")
        elif lines:
            wrong += 1
            print(f"{name}: {len(lines)} of {len(published[name])} quantities differ")
        else:
            print(f"{name}: {len(published[name])} quantities as published")
        for line in () if built.manifest.get("synthetic") else lines:
            print(f"  {line}")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """`python -m data_scripts.check [NAME ...] [--build]`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="data sets (default: all of expected.csv)")
    parser.add_argument(
        "--build", action="store_true", help="first build those whose files are in $PLANT_DATA"
    )
    options = parser.parse_args(arguments)
    try:
        for name in (options.names or expectations()) if options.build else ():
            if sources.find(name) is None and name in sources.KNOWN and sources.local_source(name):
                sources.find_or_build(name)
        return 1 if check(options.names) else 0
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
