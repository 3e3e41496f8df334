"""Digests of every committed number; a test compares them with the files.

So a script that rewrites records cannot lose or change a number unnoticed. results/digests.json
maps each record of results/runs to a digest of its outcomes (not of its options, whose names may
change), and every other JSON or CSV file of numbers to a digest of its values. After new runs
`python -m companion.report.digests` writes it again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from companion.report.compare import OUTCOMES
from plantlib.data.sources import checkout
from plantlib.utils.io import read_json, write_json

FILE = "digests.json"
FIELDS = (
    "kind",
    "dataset",
    "system",
    "seed",
    "metrics",
    "per_document",
    "history",
    "threshold",
    "chosen_epoch",
    "times",
    "peak_memory_mb",
    "model_size",
    "environment",
    "created",
)
LEARNT = ("l2r", "linear", "static_l2r")  # entries of `RunRecord.teacher` that are outcomes


def digest_of(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a JSON value; the order of keys has no effect."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of_record(path: Path) -> str:
    """Digest of the outcomes of a run: metrics, history, times and the like."""
    record = read_json(path)
    outcomes = {name: record[name] for name in FIELDS}
    outcomes["params"] = {k: v for k, v in record["params"].items() if k in OUTCOMES}
    outcomes["teacher"] = {k: v for k, v in record["teacher"].items() if k in LEARNT}
    return digest_of(outcomes)


def digest_of_file(path: Path) -> str:
    """Digest of the values of a JSON or CSV file; CSV cells that are numbers count as numbers."""
    if path.suffix == ".json":
        return digest_of(read_json(path))
    with path.open(newline="", encoding="utf-8") as file:
        return digest_of([[_number(cell) for cell in row] for row in csv.reader(file)])


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def digests(results: str | Path) -> dict[str, dict[str, str]]:
    """{"runs": {file stem: digest}, "files": {path below `results`: digest}} of a folder."""
    results = Path(results)
    files = [
        path
        for pattern in ("*.json", "*.csv", "bench/*.csv", "bench/*.json")
        for path in results.glob(pattern)
        if path.name != FILE
    ]
    return {
        "runs": {path.stem: digest_of_record(path) for path in sorted(results.glob("runs/*.json"))},
        "files": {
            path.relative_to(results).as_posix(): digest_of_file(path) for path in sorted(files)
        },
    }


def write(results: str | Path) -> Path:
    """Write `digests` of a results folder into it; returns the path."""
    path = Path(results) / FILE
    write_json(path, digests(results))
    return path


if __name__ == "__main__":
    print(write(sys.argv[1] if len(sys.argv) > 1 else checkout() / "results").name)
