"""The folder of a saved corpus: parquet and JSON that appear together or not at all.

`documents.parquet` holds id, text, split and label columns of each document, `labels.parquet` name
and description of each label, `evidence.parquet` marked spans if there are any, `manifest.json`
origin, counts and a fingerprint of the contents, `contents.json` the checksum of every file
(`utils.folders`). Pickles are never read. `streaming.CorpusWriter`
writes the same folder document by document; the class `Corpus` is in `corpus.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plantlib.utils.base import FORMAT, DataError
from plantlib.utils.folders import atomic_folder, verify
from plantlib.utils.io import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix


# what the lists and objects of a manifest hold
ENTRIES = {"notes": str, "sources": str, "counts": int, "label_space": int}


def digest(columns: Iterable[tuple[int, Iterable[str]]], *arrays: Iterable[np.ndarray]) -> str:
    """The fingerprint of a corpus.

    Args:
        columns: (length, strings) of each text column.
        arrays: integer arrays, each in pieces, read as int64.

    Returns:
        16 hex digits, the same on every platform.
    """
    total = hashlib.sha256()
    for length, strings in columns:
        total.update(length.to_bytes(8, "little"))
        for string in strings:
            data = string.encode("utf-8", "surrogatepass")
            total.update(len(data).to_bytes(8, "little") + data)
    for pieces in arrays:
        for piece in pieces:
            total.update(np.asarray(piece).astype("<i8").tobytes())
    return total.hexdigest()[:16]


def label_matrix(column, labels: int) -> csr_matrix:
    """Y (N, L) from an Arrow column of label lists, without a Python object per label."""
    from scipy.sparse import csr_matrix

    parts = column.chunks
    lengths = [np.diff(part.offsets.to_numpy()) for part in parts]
    indices = [part.flatten().to_numpy(zero_copy_only=False) for part in parts]
    indptr = np.concatenate(
        [[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]), dtype=np.int64)]
    )
    indices = np.concatenate([np.zeros(0, np.int32), *indices]).astype(np.int32)
    ones = np.ones(len(indices), np.int32)
    return csr_matrix((ones, indices, indptr), shape=(len(indptr) - 1, labels))


def matrix_of_lists(rows: Sequence[Sequence[int]], columns: int) -> csr_matrix:
    """Y (N, L) from the label indices of each document; `columns` is L."""
    from scipy.sparse import csr_matrix

    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    indices = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=indptr[-1])
    ones = np.ones(len(indices), np.int32)
    return csr_matrix((ones, indices, indptr), shape=(len(rows), columns))


def write(
    folder: str | Path,
    ids: list[str],
    texts: list[str],
    labels: csr_matrix,
    label_names: list[str],
    split: np.ndarray,
    label_texts: dict[str, str],
    evidence: pd.DataFrame | None,
    manifest: dict[str, Any],
) -> Path:
    """Write the fields of a `Corpus` to a folder; `manifest` holds the name and the fingerprint."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [row.tolist() for row in np.split(labels.indices, labels.indptr[1:-1])]
    documents = pa.table(
        {
            "id": ids,
            "text": texts,
            "split": split.tolist(),
            "labels": pa.array(columns[: len(ids)], type=pa.list_(pa.int32())),
        }
    )
    descriptions = [label_texts.get(name) for name in label_names]
    names = pa.table(
        {"name": pa.array(label_names, pa.string()), "text": pa.array(descriptions, pa.string())}
    )
    with atomic_folder(folder, "corpus") as temporary:
        pq.write_table(documents, temporary / "documents.parquet", compression="zstd")
        pq.write_table(names, temporary / "labels.parquet")
        if evidence is not None:
            evidence.to_parquet(temporary / "evidence.parquet", index=False)
        write_json(temporary / "manifest.json", manifest | {"format": FORMAT})
    return Path(folder)


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus folder; DataError names an entry of the wrong type."""
    path = folder / "manifest.json"
    about = read_json(path)
    wrong = None
    if not isinstance(about, dict):
        wrong = f"holds a {type(about).__name__}, wanted an object"
    elif not isinstance(about.get("name"), str):
        wrong = "has no text as name"
    else:
        kinds = {"notes": list, "sources": dict, "counts": dict, "label_space": dict}
        kinds |= {"synthetic": bool, "credentialed": bool}
        for name, kind in kinds.items():
            if not isinstance(about.get(name, kind()), kind):
                wrong = f"has {name} that is no {kind.__name__}"
        for name, kind in ENTRIES.items():
            wrong = wrong or _wrong_entry(about.get(name, {}), kind, name)
    if wrong:
        raise DataError(f"{path} {wrong}: delete the folder and load the corpus again")
    return about


def _wrong_entry(values: list | dict, kind: type, name: str) -> str | None:
    """What is wrong with an entry inside a list or an object of a manifest; objects may nest."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if kind is int and isinstance(value, dict):
            if wrong := _wrong_entry(value, kind, f"{name}.{key}"):
                return wrong
        elif type(value) is not kind:
            return f"has {name} whose entry {key!r} is no {kind.__name__}"
    return None


def read(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The fields of a `Corpus` in a folder, and the fingerprint in its manifest.

    Raises:
        DataError: a file is missing, cut short or changed, or the folder has another format.
    """
    import pyarrow.parquet as pq

    # check the folder
    verify(folder, "corpus", "delete the folder and load the corpus again")
    manifest = manifest_of(folder)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder} has format {manifest.get('format')}, wanted {FORMAT}: delete it and load"
            " again"
        )
    # read the tables
    documents = pq.read_table(folder / "documents.parquet")
    names = pq.read_table(folder / "labels.parquet")
    described = zip(names["name"].to_pylist(), names["text"].to_pylist(), strict=True)
    evidence = folder / "evidence.parquet"
    fields = {
        "name": manifest["name"],
        "ids": documents["id"].to_pylist(),
        "texts": documents["text"].to_pylist(),
        "labels": label_matrix(documents["labels"], len(names)),
        "label_names": names["name"].to_pylist(),
        "split": np.asarray(documents["split"].to_pylist(), dtype=str),
        "label_texts": {name: text for name, text in described if text},
        "evidence": pq.read_table(evidence).to_pandas() if evidence.is_file() else None,
        "manifest": {k: v for k, v in manifest.items() if k not in ("fingerprint", "format")},
    }
    return fields, manifest.get("fingerprint")
