"""What the benchmarks share: rows added to a CSV file in one step, and the peak memory of this
process.
"""

from __future__ import annotations

import csv
import ctypes
import resource
from pathlib import Path

from plantlib.utils.io import atomic_path


def append(rows: list[dict], path: Path, columns: list[str]) -> None:
    """Add rows to a CSV file, all of them or none; a column a row lacks stays empty."""
    old = list(csv.DictReader(path.open())) if path.exists() else []
    with atomic_path(path) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows([*old, *rows])


def peak_mib() -> float:
    """Peak resident MiB of this program; ru_maxrss would start from the peak of the process that
    launched it.
    """
    if (status := Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def restart_peak() -> None:
    """Let the peak start again from what is in use now; where the system refuses, the peak so far
    is where it starts.
    """
    # memory that is free and still resident would be used again unseen
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
