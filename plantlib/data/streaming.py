"""Corpora larger than memory: documents written to a corpus folder one by one, to the fingerprint
of `Corpus.save`.

A `CorpusWriter` holds one row group of text; what it keeps of all documents is a number an id, some
tens of bytes in a Python set, and a length. The fingerprint is computed from the written columns,
so `Corpus.load` proves that the folder is what a corpus in memory would have written. Not here:
what the documents are (data_scripts/get_xmc.py) and everything that reads a corpus.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plantlib.utils.base import FORMAT, SPLITS, DataError
from plantlib.utils.io import atomic_path, write_json

LABEL_TEXTS_FILE = "label_texts.json"


def write_label_texts(folder: str | Path, texts: dict[str, str]) -> Path:
    """label_texts.json in the folder of a built corpus: label name -> description, inclusion terms
    and other names.
    """
    return write_json(
        Path(folder) / LABEL_TEXTS_FILE,
        {name: texts[name] for name in sorted(texts) if texts[name]},
    )


GROUP_CHARACTERS = 8 << 20  # text held before a row group is written
GROUP_DOCUMENTS = 20_000


def digest(columns: Iterable[tuple[int, Iterable[str]]], *arrays: Iterable[np.ndarray]) -> str:
    """16 hex digits over columns of strings, each with its length, and over int64 arrays that come
    in pieces.
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


def label_matrix(column, labels: int):
    """Y (N, L) CSR from an Arrow column of label lists, without a Python object a label."""
    from scipy.sparse import csr_matrix

    parts = column.chunks
    lengths = [np.diff(part.offsets.to_numpy()) for part in parts]
    indices = [part.flatten().to_numpy(zero_copy_only=False) for part in parts]
    indptr = np.concatenate(
        [[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]), dtype=np.int64)]
    )
    indices = np.concatenate([np.zeros(0, np.int32), *indices]).astype(np.int32)
    return csr_matrix(
        (np.ones(len(indices), np.int32), indices, indptr), shape=(len(indptr) - 1, labels)
    )


class CorpusWriter:
    """Writes a corpus folder document by document; use it as a context manager, the folder appears
    when the block ends well.

    label_names: L unique names, the columns of Y. label_texts: one description a label or None, in
    that order. longer_texts: {label: description, inclusion terms, other names} for
    `label_texts.json`, where there is more to say.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        label_names: list[str],
        manifest: dict[str, Any],
        label_texts: list[str | None] | None = None,
        longer_texts: dict[str, str] | None = None,
    ):

        if len(set(label_names)) < len(label_names):
            raise DataError(
                f"corpus {name!r}: {len(label_names) - len(set(label_names))} label names repeat;"
                " make them unique"
            )
        self.folder, self.name, self.names, self.manifest = (
            Path(folder),
            name,
            label_names,
            manifest,
        )
        self.texts, self.longer = label_texts or [None] * len(label_names), longer_texts
        self._seen: set[int] = set()
        self._lengths, self._documents = array("i"), {}
        self._used: dict[str, np.ndarray] = {}

    def __enter__(self) -> CorpusWriter:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._place = atomic_path(self.folder)
        self._path = self._place.__enter__()
        self._path.mkdir()
        self._schema = pa.schema(
            [
                ("id", pa.string()),
                ("text", pa.string()),
                ("split", pa.string()),
                ("labels", pa.list_(pa.int32())),
            ]
        )
        self._file = pq.ParquetWriter(
            self._path / "documents.parquet", self._schema, compression="zstd"
        )
        self._empty()
        return self

    def _empty(self) -> None:
        self._group: dict[str, list] = {name: [] for name in self._schema.names}
        self._characters = 0

    def add(self, id: str, text: str, split: str, labels: Iterable[int]) -> None:
        """One document with its label columns; DataError for a repeated id, an unknown split or a
        label beyond L.
        """

        key = int.from_bytes(
            hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
        )
        columns = sorted({int(label) for label in labels})
        if key in self._seen or split not in SPLITS:
            raise DataError(
                f"corpus {self.name!r}: document {id!r} of split {split!r} is there twice or its"
                f" split is none of {', '.join(SPLITS)}"
            )
        if columns and not 0 <= columns[0] <= columns[-1] < len(self.names):
            raise DataError(
                f"corpus {self.name!r}: document {id!r} has labels {columns[0]} to {columns[-1]}, "
                f"wanted 0 to {len(self.names) - 1}: the label file belongs to another release"
            )
        self._seen.add(key)
        self._lengths.append(len(columns))
        self._documents[split] = self._documents.get(split, 0) + 1
        self._used.setdefault(split, np.zeros(len(self.names), bool))[columns] = True
        for name, value in zip(self._schema.names, (id, text, split, columns), strict=True):
            self._group[name].append(value)
        self._characters += len(text)
        if self._characters >= GROUP_CHARACTERS or len(self._group["id"]) >= GROUP_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._group["id"]:
            self._file.write_table(pa.table(self._group, schema=self._schema))
        self._empty()

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._flush()
            self._file.close()
            if kind is None:
                self._finish()
        except BaseException as failure:
            self._place.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._place.__exit__(kind, error, trace)

    def _finish(self) -> None:
        """labels.parquet and manifest.json, with the fingerprint read back from what was written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.longer:
            write_label_texts(self._path, self.longer)
        pq.write_table(
            pa.table(
                {
                    "name": pa.array(self.names, pa.string()),
                    "text": pa.array(self.texts, pa.string()),
                }
            ),
            self._path / "labels.parquet",
        )
        used = {
            s: int(self._used[s].sum())
            for s in SPLITS
            if s in self._documents and s != "unlabelled"
        }
        counts = {
            "documents": {s: self._documents[s] for s in SPLITS if s in self._documents},
            "labels": len(self.names),
            "labels_used": used,
        }
        n, ends = (
            len(self._lengths),
            np.cumsum(np.frombuffer(self._lengths, np.int32), dtype=np.int64),
        )
        columns = [
            (n, self._column("id")),
            (n, self._column("text")),
            (len(self.names), self.names),
            (n, self._column("split")),
        ]
        indices = (
            part.flatten().to_numpy()
            for table in self._tables("labels")
            for part in table["labels"].chunks
        )
        write_json(
            self._path / "manifest.json",
            {
                "name": self.name,
                **self.manifest,
                "counts": counts,
                "fingerprint": digest(columns, [[0], ends], indices),
                "format": FORMAT,
            },
        )

    def _tables(self, name: str) -> Iterator:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path / "documents.parquet") as written:
            # a row group at a time: one reader over all of them keeps what it has read
            for group in range(written.num_row_groups):
                yield written.read_row_group(group, columns=[name], use_threads=False)

    def _column(self, name: str) -> Iterator[str]:
        for table in self._tables(name):
            yield from table[name].to_pylist()
