"""A table of trainings in one CSV file, which is written after each of them.

So a study that is stopped loses one training, and goes on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantlib.utils.io import atomic_path
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


def load(path: Path, key: Sequence[str]) -> pandas.DataFrame:
    """The table at `path`; empty, with the columns `key`, where there is no file."""
    import pandas as pd

    if not path.exists():
        return pd.DataFrame(columns=list(key))
    table = pd.read_csv(path)
    return table.astype({"most": "Int64"}) if "most" in table else table


def complete(
    path: Path, key: Sequence[str], jobs: Iterable[tuple], make: Callable[..., Any]
) -> pandas.DataFrame:
    """Make the trainings that the table lacks, one by one; the whole table.

    Args:
        path: the CSV file.
        key: columns that name a training.
        jobs: the values of `key` of each training.
        make: make(*job) trains, and returns the rows: all columns but those of `key`.
    """
    import pandas as pd

    key = list(key)
    table = load(path, key)
    done = set(table[key].drop_duplicates().itertuples(index=False, name=None))
    missing = [job for job in jobs if job not in done]
    for job in tqdm(missing, desc="trainings", unit="training"):
        rows = pd.DataFrame(make(*job))
        new = pd.concat([pd.DataFrame([job] * len(rows), columns=key), rows], axis=1)
        table = pd.concat([table, new], ignore_index=True) if len(table) else new
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
    return table
