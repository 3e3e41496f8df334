"""Writes corpora larger than memory: documents go to a corpus folder one by one.

A `CorpusWriter` holds one row group of text; of each document it keeps only a hash of the id and
the number of labels. The fingerprint is computed from the written columns, so `Corpus.load` proves
that the folder equals what `Corpus.save` would have written (`storage.py`).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plantlib.data import credentials
from plantlib.data.storage import digest
from plantlib.utils.base import FORMAT, SPLITS, DataError
from plantlib.utils.folders import atomic_folder, list_again
from plantlib.utils.io import write_json

LABEL_TEXTS_FILE = "label_texts.json"
GROUP_CHARACTERS = 8 << 20  # characters of text held before a row group is written
GROUP_DOCUMENTS = 20_000


def write_label_texts(folder: str | Path, texts: dict[str, str]) -> Path:
    """Write label_texts.json to the folder of a built corpus.

    texts: label name -> description, inclusion terms and other names; empty ones are left out.
    """
    table = {name: texts[name] for name in sorted(texts) if texts[name]}
    path = write_json(Path(folder) / LABEL_TEXTS_FILE, table)
    list_again(folder, LABEL_TEXTS_FILE)
    return path


class CorpusWriter:
    """Writes a corpus folder document by document, inside a `with` block.

    The folder appears when the block ends without an error.

    Args:
        folder: of the corpus.
        name: of the corpus.
        label_names: L unique names, the columns of Y.
        manifest: origin, licence, sources, notes.
        label_texts: L descriptions, None for a label without one.
        longer_texts: label name -> text for `label_texts.json`, if there are longer texts.

    Raises:
        DataError: label names repeat.
        PrivacyError: a credentialed corpus would be written outside the data folder.
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
        credentials.check_folder(name, folder, credentials.is_marked(manifest))
        self.folder = Path(folder)
        self.name = name
        self.names = label_names
        self.manifest = manifest
        self.texts = label_texts or [None] * len(label_names)
        self.longer = longer_texts
        self._id_hashes: set[int] = set()
        self._lengths = array("i")  # labels per document
        self._documents: dict[str, int] = {}  # per split
        self._used: dict[str, np.ndarray] = {}  # per split, (L,) bool

    def __enter__(self) -> CorpusWriter:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._place = atomic_folder(self.folder, "corpus")
        self._path = self._place.__enter__()
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
        """Add one document.

        Args:
            id, text, split: of the document.
            labels: its columns of Y.

        Raises:
            DataError: the id repeats, the split is unknown, or a label is not below L.
        """
        data = id.encode("utf-8", "surrogatepass")
        key = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        columns = sorted({int(label) for label in labels})
        if key in self._id_hashes or split not in SPLITS:
            raise DataError(
                f"corpus {self.name!r}: document {id!r} of split {split!r} was added twice or its"
                f" split is none of {', '.join(SPLITS)}"
            )
        if columns and not 0 <= columns[0] <= columns[-1] < len(self.names):
            raise DataError(
                f"corpus {self.name!r}: document {id!r} has labels {columns[0]} to {columns[-1]}, "
                f"wanted 0 to {len(self.names) - 1}: the label file belongs to another release"
            )
        # count it, put it into the row group, write the group if it is full
        self._id_hashes.add(key)
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
        """Write labels.parquet and manifest.json; the fingerprint is computed from the files."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        # label names and texts
        if self.longer:
            write_label_texts(self._path, self.longer)
        names = pa.array(self.names, pa.string())
        texts = pa.array(self.texts, pa.string())
        pq.write_table(pa.table({"name": names, "text": texts}), self._path / "labels.parquet")
        # counts, as `Corpus.counts` gives them
        splits = [s for s in SPLITS if s in self._documents]
        counts = {
            "documents": {s: self._documents[s] for s in splits},
            "labels": len(self.names),
            "labels_used": {s: int(self._used[s].sum()) for s in splits if s != "unlabelled"},
        }
        # fingerprint, as `Corpus.fingerprint` computes it
        n = len(self._lengths)
        ends = np.cumsum(np.frombuffer(self._lengths, np.int32), dtype=np.int64)
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
        manifest = {
            "name": self.name,
            **self.manifest,
            "counts": counts,
            "fingerprint": digest(columns, [[0], ends], indices),
            "format": FORMAT,
        }
        write_json(self._path / "manifest.json", manifest)

    def _tables(self, name: str) -> Iterator:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path / "documents.parquet") as file:
            # one row group after another: a reader over all of them would keep what it has read
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=[name], use_threads=False)

    def _column(self, name: str) -> Iterator[str]:
        for table in self._tables(name):
            yield from table[name].to_pylist()
