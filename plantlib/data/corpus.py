"""Corpus: documents, sparse labels Y (N, L), splits and label names, kept in step with each other.

Training, planting and evaluation take a `Corpus` and ask it for rows by split
(docs/method.md, "Data and label spaces"). The order of rows is fixed once, and every choice of rows
(caps, a carved dev split) follows a hash of the document ids, so it is the same on every machine.
The saved folder is described in `storage.py`, known names in `sources.py`, users' tables in
`tables.py`. There are no tokens, tensors or downloads here.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from plantlib.data import credentials, dataset_frames, files, sources, storage, tables
from plantlib.data.neardup import count_repeats
from plantlib.data.overview import overview
from plantlib.data.tables import Reading
from plantlib.utils.base import SPLITS, DataError, hash_order
from plantlib.utils.reprs import Card, Rich
from plantlib.utils.terminal import printable

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix


EVIDENCE_COLUMNS = ("id", "label", "start", "end", "text")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus(Rich):
    """N documents with L labels.

    ids: N unique document ids.
    texts: N raw texts.
    labels: Y, (N, L) CSR of int32 ones with sorted indices and no duplicates. It is not int8:
        counts X'Y would wrap at 127, and scikit-learn's LabelBinarizer mixes up the columns of an
        int8 Y with more than 127 labels.
    label_names: L names, the column order of Y.
    split: (N,) of 'train', 'dev', 'test' or 'unlabelled'.
    label_texts: label -> description; may be empty or partial.
    evidence: None, or a frame of columns id, label, start, end, text: character spans
        [start, end) of `texts`. Pieces of one mention share a number in a column mention, if any.
    manifest: origin, licence, sources (file -> sha256), counts, notes.

    Raises:
        DataError: the parts do not fit each other.

    Example:
        >>> from plantlib import Corpus
        >>> labels = [["R50", "R05"], ["S62"]]
        >>> Corpus.from_lists("mine", ["1", "2"], ["fever", "wrist"], labels, ["train", "test"])
        Corpus(mine: 2 documents (train 1, test 1), 3 labels)
    """

    name: str
    ids: list[str]
    texts: list[str]
    labels: csr_matrix
    label_names: list[str]
    split: np.ndarray
    label_texts: dict[str, str] = dataclasses.field(default_factory=dict)
    evidence: pd.DataFrame | None = None
    manifest: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        from scipy.sparse import csr_matrix

        labels = csr_matrix(self.labels, dtype=np.int32, copy=True)
        labels.sum_duplicates()
        labels.eliminate_zeros()
        labels.data[:] = 1
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "split", np.asarray(self.split, dtype=str))
        credentials.remember(self)
        self._check()

    def _check(self) -> None:
        # one entry per document, one name per column
        sizes = {
            "ids": len(self.ids),
            "texts": len(self.texts),
            "labels": self.labels.shape[0],
            "split": len(self.split),
        }
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"corpus {self.name!r}: parts of different length {sizes}; wanted one entry per"
                " document"
            )
        if self.labels.shape[1] != len(self.label_names):
            raise DataError(
                f"corpus {self.name!r}: Y has {self.labels.shape[1]} columns but there are"
                f" {len(self.label_names)} label names; give one per column"
            )
        # unique names, known splits, complete evidence
        for what, values in (("ids", self.ids), ("label names", self.label_names)):
            repeated = [value for value, count in Counter(values).items() if count > 1][:3]
            if repeated:
                raise DataError(
                    f"corpus {self.name!r}: duplicate {what}, first {repeated}; make them unique"
                )
        unknown = sorted(set(self.split.tolist()) - set(SPLITS))
        if unknown:
            raise DataError(
                f"corpus {self.name!r}: unknown splits {unknown[:5]}; wanted {', '.join(SPLITS)}"
            )
        columns = EVIDENCE_COLUMNS if self.evidence is None else self.evidence.columns
        missing = [c for c in EVIDENCE_COLUMNS if c not in columns]
        if missing:
            raise DataError(
                f"corpus {self.name!r}: evidence lacks {missing}; wanted {list(EVIDENCE_COLUMNS)}"
            )

    @classmethod
    def from_lists(
        cls,
        name: str,
        ids: Sequence[str],
        texts: Sequence[str],
        labels: Sequence[Sequence[str]],
        split: Sequence[str],
        **parts: Any,
    ) -> Corpus:
        """Build a corpus from lists; the columns of Y are in sorted name order.

        Args:
            name: of the corpus.
            ids, texts, split: one entry per document.
            labels: one list of label names per document; repeats are collapsed.
            parts: the optional fields label_texts, evidence and manifest.
        """
        names = sorted({label for document in labels for label in document})
        column = {label: i for i, label in enumerate(names)}
        columns = [sorted({column[label] for label in document}) for document in labels]
        y = storage.matrix_of_lists(columns, len(names))
        corpus = cls(name, list(ids), list(texts), y, names, np.asarray(split, dtype=str), **parts)
        return dataclasses.replace(corpus, manifest={**corpus.manifest, "counts": corpus.counts()})

    @property
    def N(self) -> int:
        """Number of documents, unlabelled ones included."""
        return self.labels.shape[0]

    @property
    def L(self) -> int:
        """Number of labels."""
        return self.labels.shape[1]

    def counts(self) -> dict[str, Any]:
        """Number of documents per split, of labels, and of labels used per split."""
        used = {s: int(np.unique(self.labels[self.split == s].indices).size) for s in SPLITS}
        documents = {s: int((self.split == s).sum()) for s in SPLITS}
        return {
            "documents": {s: n for s, n in documents.items() if n},
            "labels": self.L,
            "labels_used": {s: used[s] for s, n in documents.items() if n and s != "unlabelled"},
        }

    def rows(self, split: str) -> np.ndarray:
        """Ascending int64 row indices of one split; DataError if it has no documents."""
        rows = np.flatnonzero(self.split == split).astype(np.int64)
        if not rows.size:
            sizes = {s: int((self.split == s).sum()) for s in SPLITS}
            present = ", ".join(f"{s} ({size})" for s, size in sizes.items() if size)
            column = ": give more documents, or a column of splits, split='COLUMN'"
            hint = "; with_dev() carves one from train" if split == "dev" else column
            raise DataError(
                f"corpus {self.name!r} has no documents in split {split!r}; it has"
                f" {present or 'none'}{hint}"
            )
        return rows

    def _derive(
        self,
        note: str,
        rows: np.ndarray | None = None,
        columns: np.ndarray | None = None,
        *,
        split: np.ndarray | None = None,
        **manifest: Any,
    ) -> Corpus:
        """A new corpus of some rows and columns, with evidence and manifest in step."""
        rows = np.arange(self.N) if rows is None else rows
        columns = np.arange(self.L) if columns is None else columns
        ids, names = [self.ids[i] for i in rows], [self.label_names[j] for j in columns]
        evidence = self.evidence
        if evidence is not None:
            keep = evidence["id"].isin(set(ids)) & evidence["label"].isin(set(names))
            evidence = evidence[keep].reset_index(drop=True)
        notes = [*self.manifest.get("notes", []), note]
        corpus = Corpus(
            self.name,
            ids,
            [self.texts[i] for i in rows],
            self.labels[rows][:, columns],
            names,
            (self.split if split is None else split)[rows],
            {k: self.label_texts[k] for k in names if k in self.label_texts},
            evidence,
            {**self.manifest, **manifest, "notes": notes},
        )
        corpus.manifest["counts"] = corpus.counts()
        return corpus

    def labelled(self) -> Corpus:
        """Without the unlabelled documents."""
        keep = np.flatnonzero(self.split != "unlabelled")
        return self if keep.size == self.N else self._derive("labelled documents only", rows=keep)

    def subset(
        self,
        train: int | None = None,
        dev: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> Corpus:
        """A corpus with capped splits; row order, label columns and unlabelled documents stay.

        A cap takes the first documents of one seeded permutation of its split, so train=100 lies
        inside train=1000. A cap that is not below the split's size changes nothing.

        Args:
            train, dev, test: at most so many documents of the split; None keeps all, and test=0
                leaves the split out.
            seed: of the permutation.

        Raises:
            DataError: a cap is not a whole number of at least 1, or 0 for test.
        """
        keep = np.ones(self.N, dtype=bool)
        for name, cap in (("train", train), ("dev", dev), ("test", test)):
            if cap is None:
                continue
            least = 0 if name == "test" else 1
            if isinstance(cap, bool) or int(cap) != cap or cap < least:
                raise DataError(
                    f"{name}={cap!r} is no cap: wanted a whole number of documents, {least} or"
                    " more, or None"
                )
            rows = np.flatnonzero(self.split == name)
            order = hash_order([self.ids[i] for i in rows], seed, f"subset {name}")
            keep[rows[order[int(cap) :]]] = False
        if keep.all():
            return self
        note = f"subset: at most train={train}, dev={dev}, test={test} documents, seed {seed}"
        return self._derive(note, rows=np.flatnonzero(keep))

    def seen_in_train(self) -> Corpus:
        """Only the labels with a training document; `manifest["label_space"]` counts the others."""
        seen = np.unique(self.labels[self.rows("train")].indices)
        if seen.size == self.L:
            return self
        unseen = np.setdiff1d(np.arange(self.L), seen)
        lost = {s: int(self.labels[self.split == s][:, unseen].nnz) for s in ("dev", "test")}
        space = {
            "labels_before": self.L,
            "labels": int(seen.size),
            "labels_dropped": int(unseen.size),
            "occurrences_dropped": lost,
        }
        note = (
            f"label space: {seen.size} of {self.L} labels, those seen in train; occurrences dropped"
            f" {lost}"
        )
        return self._derive(note, columns=seen, label_space=space)

    def with_dev(self, fraction: float = 0.1, seed: int = 0) -> Corpus:
        """Carve a dev split from train by hash, if there is none; copies of a text stay together.

        Args:
            fraction: of the training documents, rounded, at least one.
            seed: of the hash order.

        Raises:
            DataError: dev or train would be empty.
        """
        if (self.split == "dev").any():
            return self
        # how many copies each text has
        rows = self.rows("train")
        texts = [self.texts[i] for i in rows]
        copies = Counter(texts)
        # a text moves if all its copies find room; where every text repeats, the least repeated one
        # still does
        room = max(round(fraction * rows.size), min(copies.values()))
        if not 0 < fraction < 1:
            raise DataError(f"fraction={fraction}: wanted a number between 0 and 1")
        if room >= rows.size:
            raise DataError(
                f"dev cannot be carved from {rows.size} training documents ({len(copies)} texts):"
                " give more of different text, or a column of splits, split='COLUMN'"
            )
        # fill dev in hash order
        dev = set()
        for i in hash_order([self.ids[i] for i in rows], seed, "carve dev"):
            if texts[i] not in dev and copies[texts[i]] <= room:
                dev.add(texts[i])
                room -= copies[texts[i]]
        split = self.split.copy()
        split[rows[[text in dev for text in texts]]] = "dev"
        count = (split == "dev").sum()
        note = f"dev: {count} documents carved from train, fraction {fraction}, seed {seed}"
        return self._derive(note, split=split)

    @cached_property
    def _fingerprint(self) -> str:
        columns = (self.ids, self.texts, self.label_names, self.split.tolist())
        arrays = ([self.labels.indptr], [self.labels.indices])
        return storage.digest([(len(c), c) for c in columns], *arrays)

    def fingerprint(self) -> str:
        """16 hex digits over ids, texts, labels, label names and splits; cached."""
        return self._fingerprint

    def near_duplicates(self, threshold: float = 0.9) -> dict[str, dict[str, int]]:
        """How many dev and test documents also occur in train.

        threshold: word-trigram Jaccard from which a document that is not an exact repeat (equal
        words after case folding) counts as near; see `neardup.py`.

        Returns:
            split -> {"documents", "exact", "near"}.
        """
        texts = {
            s: [self.texts[i] for i in np.flatnonzero(self.split == s)]
            for s in ("train", "dev", "test")
        }
        return count_repeats(texts.pop("train"), {s: t for s, t in texts.items() if t}, threshold)

    def save(self, folder: str | Path) -> Path:
        """Write the corpus to a folder, complete or not at all; see `storage` and `credentials`."""
        credentials.check_folder(self.name, folder, credentials.is_marked(self.manifest))
        manifest = {
            "name": self.name,
            **self.manifest,
            "counts": self.counts(),
            "fingerprint": self.fingerprint(),
        }
        columns = (self.ids, self.texts, self.labels, self.label_names, self.split)
        return storage.write(folder, *columns, self.label_texts, self.evidence, manifest)

    @classmethod
    def load(cls, name_or_path: str | Path, root: str | Path | None = None) -> Corpus:
        """Read a saved corpus.

        Args:
            name_or_path: a saved folder, or the name of a corpus. A known name that is not there
                yet is built first by data_scripts/get_<name>.py, which prints one line.
            root: where to look for a name, else $PLANT_HOME, ./data, the checkout's data/.

        Raises:
            DataError: the name is unknown, the folder is no corpus, or it changed since it was
                saved.
        """
        folder = Path(name_or_path)
        if not (folder / "manifest.json").is_file():
            folder = sources.find_or_build(str(name_or_path), root)
        fields, fingerprint = storage.read(folder)
        corpus = cls(**fields)
        if corpus.fingerprint() != fingerprint:
            raise DataError(
                f"{folder}: contents {corpus.fingerprint()} differ from the manifest's "
                f"{fingerprint}; delete the folder and load the corpus again"
            )
        return corpus

    @classmethod
    def from_pandas(
        cls, frame: pd.DataFrame, text: str, labels: str | Sequence[str], **reading: Unpack[Reading]
    ) -> Corpus:
        """A corpus from a frame; what is odd and can be mended is one warning each.

        Args:
            frame: the table.
            text: the column of texts.
            labels: the column of labels, or several for two of the forms.
            reading: how the table is read; see `tables.Reading`.

        Raises:
            DataError: the table cannot be used.
        """
        return corpus_of_table(frame, text, labels, **reading)

    @classmethod
    def from_dataset(
        cls, dataset: Any, text: str, labels: str | Sequence[str], **reading: Unpack[Reading]
    ) -> Corpus:
        """A corpus from a `datasets.Dataset` or `DatasetDict`; arguments as in `from_pandas`."""
        frame, split = dataset_frames.frame_of(dataset, labels)
        reading.setdefault("split", split)
        return corpus_of_table(frame, text, labels, **reading)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        text: str = "text",
        labels: str | Sequence[str] = "labels",
        encoding: str = "utf-8",
        delimiter: str | None = None,
        **reading: Unpack[Reading],
    ) -> Corpus:
        """A corpus from a table: .csv, .tsv, .jsonl (also as .gz, .bz2, .xz), .parquet or .xlsx.

        Args:
            path: the file; its suffix says what it is.
            text, labels, reading: as in `from_pandas`; `sep` is ";" if it is left out.
            encoding: of text and JSON lines.
            delimiter: one character between columns; None takes a comma, and in .tsv a tab.
        """
        frame = files.read_table(Path(path), encoding, delimiter)
        reading.setdefault("sep", ";")
        return corpus_of_table(frame, text, labels, path=path, **reading)

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        text: str = "text",
        labels: str | Sequence[str] = "labels",
        encoding: str = "utf-8",
        delimiter: str = ",",
        **reading: Unpack[Reading],
    ) -> Corpus:
        """A corpus from delimited text of any suffix; all cells are text, and `sep` is ";"."""
        frame = files.read_csv(Path(path), encoding, delimiter)
        reading.setdefault("sep", ";")
        return corpus_of_table(frame, text, labels, path=path, **reading)

    def overview(self) -> str:
        """Documents, labels, labels per document, the five most frequent labels, and odd ones."""
        return overview(self.labels, self.label_names, self.split)

    def summary(self) -> pd.DataFrame:
        """One row per split: documents, labels used, labels per document, median words."""
        import pandas as pd

        table = {}
        for split in [s for s in SPLITS if (self.split == s).any()]:
            rows = self.rows(split)
            y = self.labels[rows]
            table[split] = {
                "documents": rows.size,
                "labels used": np.unique(y.indices).size,
                "labels/doc": round(y.nnz / rows.size, 2),
                "median words": float(np.median([len(self.texts[i].split()) for i in rows])),
            }
        frame = pd.DataFrame.from_dict(table, orient="index")
        return frame.astype({"documents": int, "labels used": int})

    def __repr__(self) -> str:
        splits = ", ".join(f"{s} {n:,}" for s, n in self.counts()["documents"].items())
        mark = ", synthetic" if self.manifest.get("synthetic") else ""
        name = printable(self.name)
        return f"Corpus({name}: {self.N:,} documents ({splits}), {self.L:,} labels{mark})"

    def _card(self) -> Card:
        about = repr(self).removeprefix(f"Corpus({printable(self.name)}: ")[:-1]
        return Card.of_frame(self.name, about, self.summary())


def corpus_of_table(
    frame: pd.DataFrame,
    text: str,
    labels: str | Sequence[str],
    *,
    path: str | Path | None = None,
    name: str | None = None,
    **reading: Any,
) -> Corpus:
    """The corpus of a table; what was mended or is doubtful is one warning each.

    Args:
        frame: the table.
        text, labels: column names.
        path: the file it was read from.
        name: of the corpus; None takes the file's.
        reading: the other arguments of `tables.documents`.
    """
    file = Path(path) if path else None
    read = tables.documents(frame, text, labels, path=file, **reading)
    for note in read.notes:
        # three frames up is the caller of Corpus.from_pandas and its relatives
        warnings.warn(note, UserWarning, stacklevel=3)
    name = name or (files.stem(file) if file else "custom")
    parts = {"manifest": read.manifest, "evidence": read.evidence}
    return Corpus.from_lists(name, read.ids, read.texts, read.names, read.split, **parts)
