"""What the benchmarks share: adding rows to a CSV file, and the peak memory of this process."""

from __future__ import annotations

import csv
import ctypes
import resource
from pathlib import Path

from plantlib.utils.io import atomic_path


def append(rows: list[dict], path: Path, columns: list[str]) -> None:
    """Add rows to a CSV file, all or none; a column that a row lacks stays empty."""
    old = list(csv.DictReader(path.open())) if path.exists() else []
    with atomic_path(path) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows([*old, *rows])


def peak_mib() -> float:
    """Peak resident MiB of this process."""
    # ru_maxrss starts from the peak of the process that launched this one, so it comes second
    if (status := Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def restart_peak() -> None:
    """Start the peak again from the memory now in use, if the system allows it."""
    # memory that is free but resident would be used again without raising the peak
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
