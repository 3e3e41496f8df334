"""Data sets of the package `datasets` as tables: a `Dataset`, or a `DatasetDict` with its splits.

They are recognised by what they offer, so the package is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plantlib.utils.base import DataError

if TYPE_CHECKING:
    import pandas as pd

# names of splits on the hub, and ours
SPLITS = {"train": "train", "validation": "dev", "dev": "dev", "val": "dev", "test": "test"}
SPLIT = "split of the data set"  # the column that a DatasetDict's splits become
WANTED = "give a datasets.Dataset, or a DatasetDict with the splits train, validation and test"


def frame_of(dataset: Any, labels: str | Sequence[str]) -> tuple[pd.DataFrame, str | None]:
    """A data set as a table in which labels are names, and the column that names the split.

    Args:
        dataset: a `Dataset`, or a `DatasetDict` whose splits are known.
        labels: the column of labels, or several. Numbers of a `ClassLabel` become its names.

    Raises:
        DataError: another object, an unknown split, or a data set not in memory.
    """
    import pandas as pd

    if not isinstance(dataset, Mapping):
        return _table(dataset, labels), None
    unknown = [name for name in dataset if name not in SPLITS]
    if unknown or not dataset:
        names = [str(name) for name in dataset][:5]
        raise DataError(f"splits {names} of a data set: wanted {', '.join(SPLITS)}")
    parts = [
        _table(part, labels).assign(**{SPLIT: SPLITS[str(name)]}) for name, part in dataset.items()
    ]
    return pd.concat(parts, ignore_index=True), SPLIT


def _table(dataset: Any, labels: str | Sequence[str]) -> pd.DataFrame:
    """One data set as a table."""
    if not hasattr(dataset, "to_pandas") or getattr(dataset, "features", None) is None:
        raise DataError(f"a {type(dataset).__name__} is no data set: {WANTED}")
    frame = dataset.to_pandas()
    columns = [labels] if isinstance(labels, str) else list(labels)
    for column in columns:
        feature = dataset.features.get(column)
        names = getattr(feature, "names", None)
        if names:  # one class per document
            frame[column] = [[names[i]] if i >= 0 else [] for i in frame[column]]
            continue
        names = getattr(getattr(feature, "feature", None), "names", None)
        if names:
            frame[column] = [[names[i] for i in row] for row in frame[column]]
    return frame
