"""Corpus: documents, sparse labels Y (N, L), splits and label names, kept in step with each other.

The first arrow of the data flow: everything later (METHOD 1: mutual information on training rows
only; METHOD 5: document-level evaluation) takes a `Corpus` and asks it for rows by split. Row order
is fixed once, and every choice of rows (caps, a carved dev split) follows a hash of the document
ids, so it is the same on every machine. On disk a corpus is one folder of parquet and JSON that
appears at once or not at all; pickles are never read. No tokens, tensors or downloads here: known
names are in `sources.py`, users' tables in `tables.py`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plantlib.data import sources, tables
from plantlib.data.neardup import count_repeats
from plantlib.data.streaming import digest, label_matrix
from plantlib.data.tables import (
    _check_columns,
    _count_oddities,
    _hashed_split,
    _ids,
    _labels,
    _split,
    _texts,
)
from plantlib.utils.base import FORMAT, SPLITS, DataError, hash_order
from plantlib.utils.io import atomic_path, read_json, sha256, write_json
from plantlib.utils.reprs import Card, Rich

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix


EVIDENCE_COLUMNS = ("id", "label", "start", "end", "text")


def _csr(rows: Sequence[Sequence[int]], columns: int) -> csr_matrix:
    """Y (N, L) from the label indices of each document; `columns` is L."""
    from scipy.sparse import csr_matrix

    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    indices = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=indptr[-1])
    return csr_matrix(
        (np.ones(len(indices), np.int32), indices, indptr), shape=(len(rows), columns)
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus(Rich):
    """N documents with L labels.

    ids: N unique document ids. texts: N raw texts. labels: Y, (N, L) CSR of int32 ones, indices
    sorted, no duplicates. Not int8: counts X'Y would wrap at 127, and
        scikit-learn's LabelBinarizer mixes up the columns of an int8 Y with more than 127 labels.
    label_names: L names, the column order of Y. split: (N,) of 'train', 'dev', 'test' or
    'unlabelled'. label_texts: label -> description; may be empty or partial. evidence: None, or a
    frame of columns id, label, start, end, text: character spans [start, end) of `texts`. manifest:
    origin, licence, sources (file -> sha256), counts, notes. Raises DataError when the parts do not
    fit each other.
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
        self._check()

    def _check(self) -> None:
        sizes = {
            "ids": len(self.ids),
            "texts": len(self.texts),
            "labels": self.labels.shape[0],
            "split": len(self.split),
        }
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"corpus {self.name!r}: parts of different length {sizes}; wanted one entry a"
                " document"
            )
        if self.labels.shape[1] != len(self.label_names):
            raise DataError(
                f"corpus {self.name!r}: Y has {self.labels.shape[1]} columns but there are"
                f" {len(self.label_names)} label names; give one a column"
            )
        for what, values in (("ids", self.ids), ("label names", self.label_names)):
            twice = [value for value, count in Counter(values).items() if count > 1][:3]
            if twice:
                raise DataError(
                    f"corpus {self.name!r}: duplicate {what}, first {twice}; make them unique"
                )
        unknown = sorted(set(self.split.tolist()) - set(SPLITS))
        if unknown:
            raise DataError(
                f"corpus {self.name!r}: unknown splits {unknown[:5]}; wanted {', '.join(SPLITS)}"
            )
        missing = (
            []
            if self.evidence is None
            else [c for c in EVIDENCE_COLUMNS if c not in self.evidence.columns]
        )
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
        """Build a corpus from one list of label names a document; columns of Y are in sorted name
        order.

        `parts` are the optional fields (label_texts, evidence, manifest). Repeated labels in a
        document are collapsed.
        """
        names = sorted({label for document in labels for label in document})
        column = {label: i for i, label in enumerate(names)}
        y = _csr([sorted({column[label] for label in document}) for document in labels], len(names))
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
        """Documents and labels used, in all and a split."""
        used = {s: int(np.unique(self.labels[self.split == s].indices).size) for s in SPLITS}
        documents = {s: int((self.split == s).sum()) for s in SPLITS}
        return {
            "documents": {s: n for s, n in documents.items() if n},
            "labels": self.L,
            "labels_used": {s: used[s] for s, n in documents.items() if n and s != "unlabelled"},
        }

    def rows(self, split: str) -> np.ndarray:
        """int64 row indices of one split, ascending. DataError when it is empty, naming the splits
        there are.
        """
        rows = np.flatnonzero(self.split == split).astype(np.int64)
        if not rows.size:
            have = ", ".join(
                f"{s} ({int((self.split == s).sum())})" for s in SPLITS if (self.split == s).any()
            )
            hint = "; with_dev() carves one from train" if split == "dev" else ""
            raise DataError(
                f"corpus {self.name!r} has no documents in split {split!r}; it has"
                f" {have or 'none'}{hint}"
            )
        return rows

    def _derive(
        self,
        note: str,
        rows: np.ndarray | None = None,
        columns: np.ndarray | None = None,
        *,
        split=None,
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
        """At most so many documents a split, in the old row order; the label space (L columns)
        stays.

        Nested: a cap takes the first n of one seeded permutation of its split, so train=100 lies
        inside train=1000. A cap not below the split's size changes nothing. Unlabelled documents
        are kept.
        """
        keep = np.ones(self.N, dtype=bool)
        for name, cap in (("train", train), ("dev", dev), ("test", test)):
            if cap is None:
                continue
            if isinstance(cap, bool) or int(cap) != cap or cap < 1:
                raise DataError(
                    f"{name}={cap!r} is no cap: wanted a whole number of documents, 1 or more, or"
                    " None"
                )
            rows = np.flatnonzero(self.split == name)
            keep[
                rows[hash_order([self.ids[i] for i in rows], seed, f"subset {name}")[int(cap) :]]
            ] = False
        if keep.all():
            return self
        note = f"subset: at most train={train}, dev={dev}, test={test} documents, seed {seed}"
        return self._derive(note, rows=np.flatnonzero(keep))

    def seen_in_train(self) -> Corpus:
        """Only the labels with at least one training document; `manifest["label_space"]` counts
        what was dropped.
        """
        seen = np.unique(self.labels[self.rows("train")].indices)
        if seen.size == self.L:
            return self
        gone = np.setdiff1d(np.arange(self.L), seen)
        lost = {s: int(self.labels[self.split == s][:, gone].nnz) for s in ("dev", "test")}
        space = {
            "labels_before": self.L,
            "labels": int(seen.size),
            "labels_dropped": int(gone.size),
            "occurrences_dropped": lost,
        }
        note = (
            f"label space: {seen.size} of {self.L} labels, those seen in train; occurrences dropped"
            f" {lost}"
        )
        return self._derive(note, columns=seen, label_space=space)

    def with_dev(self, fraction: float = 0.1, seed: int = 0) -> Corpus:
        """Carve round(fraction * train) documents as dev by hash, if there is no dev; copies of a
        text stay on one side.
        """
        if (self.split == "dev").any():
            return self
        rows = self.rows("train")
        texts = [self.texts[i] for i in rows]
        copies, count, dev = Counter(texts), round(fraction * rows.size), set()
        # a text moves if all its copies find room; where every text repeats, the least repeated one
        # still does
        room = max(count, min(copies.values()))
        if count < 1 or room >= rows.size:
            raise DataError(
                f"fraction={fraction} of {rows.size} training documents leaves dev or train empty; "
                "wanted a fraction between 0 and 1 and enough documents of different text"
            )
        for i in hash_order([self.ids[i] for i in rows], seed, "carve dev"):
            if texts[i] not in dev and copies[texts[i]] <= room:
                dev.add(texts[i])
                room -= copies[texts[i]]
        split = self.split.copy()
        split[rows[[text in dev for text in texts]]] = "dev"
        note = (
            f"dev: {(split == 'dev').sum()} documents carved from train, fraction {fraction}, seed"
            f" {seed}"
        )
        return self._derive(note, split=split)

    @cached_property
    def _fingerprint(self) -> str:
        columns = (self.ids, self.texts, self.label_names, self.split.tolist())
        return digest([(len(c), c) for c in columns], [self.labels.indptr], [self.labels.indices])

    def fingerprint(self) -> str:
        """16 hex digits over ids, texts, labels, their names and splits; the same on every
        platform; cached.
        """
        return self._fingerprint

    def near_duplicates(self, threshold: float = 0.9) -> dict[str, dict[str, int]]:
        """How many dev and test documents also stand in train, {split: {"documents", "exact",
        "near"}}.

        exact: equal words after case folding; near: others of word-trigram Jaccard >= threshold
        (`neardup.py`).
        """

        texts = {
            s: [self.texts[i] for i in np.flatnonzero(self.split == s)]
            for s in ("train", "dev", "test")
        }
        return count_repeats(texts.pop("train"), {s: t for s, t in texts.items() if t}, threshold)

    def save(self, folder: str | Path) -> Path:
        """Write documents, labels, evidence (parquet) and manifest.json; the folder appears at once
        or not at all.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [row.tolist() for row in np.split(self.labels.indices, self.labels.indptr[1:-1])]
        documents = pa.table(
            {
                "id": self.ids,
                "text": self.texts,
                "split": self.split.tolist(),
                "labels": pa.array(columns[: self.N], type=pa.list_(pa.int32())),
            }
        )
        names = pa.table(
            {
                "name": pa.array(self.label_names, pa.string()),
                "text": pa.array(
                    [self.label_texts.get(name) for name in self.label_names], pa.string()
                ),
            }
        )
        manifest = {
            "name": self.name,
            **self.manifest,
            "counts": self.counts(),
            "fingerprint": self.fingerprint(),
            "format": FORMAT,
        }
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            pq.write_table(documents, temporary / "documents.parquet", compression="zstd")
            pq.write_table(names, temporary / "labels.parquet")
            if self.evidence is not None:
                self.evidence.to_parquet(temporary / "evidence.parquet", index=False)
            write_json(temporary / "manifest.json", manifest)
        return Path(folder)

    @classmethod
    def load(cls, name_or_path: str | Path, root: str | Path | None = None) -> Corpus:
        """A saved folder, or a corpus by name: looked for under `root`, else $PLANT_HOME, ./data,
        the checkout's data/.

        A known name that is not there yet is built first by data_scripts/get_<name>.py, which
        prints one line. Raises DataError for an unknown name, a folder that is no corpus, or one
        changed since it was saved.
        """
        if (Path(name_or_path) / "manifest.json").is_file():
            return cls._read(Path(name_or_path))

        return cls._read(sources.find_or_build(str(name_or_path), root))

    @classmethod
    def _read(cls, folder: Path) -> Corpus:
        import pyarrow.parquet as pq

        lost = [f for f in ("documents.parquet", "labels.parquet") if not (folder / f).is_file()]
        if lost:
            raise DataError(
                f"{folder} lacks {', '.join(lost)}: delete the folder and load the corpus again"
            )
        manifest = read_json(folder / "manifest.json")
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{folder} has format {manifest.get('format')}, wanted {FORMAT}: delete it and load"
                " again"
            )
        documents, names = (
            pq.read_table(folder / "documents.parquet"),
            pq.read_table(folder / "labels.parquet"),
        )
        evidence = folder / "evidence.parquet"
        corpus = cls(
            manifest["name"],
            documents["id"].to_pylist(),
            documents["text"].to_pylist(),
            label_matrix(documents["labels"], len(names)),
            names["name"].to_pylist(),
            np.asarray(documents["split"].to_pylist(), dtype=str),
            {
                n: t
                for n, t in zip(*(names[c].to_pylist() for c in ("name", "text")), strict=True)
                if t
            },
            pq.read_table(evidence).to_pandas() if evidence.is_file() else None,
            {k: v for k, v in manifest.items() if k not in ("fingerprint", "format")},
        )
        if corpus.fingerprint() != manifest.get("fingerprint"):
            raise DataError(
                f"{folder}: contents {corpus.fingerprint()} differ from the manifest's "
                f"{manifest.get('fingerprint')}; delete the folder and load the corpus again"
            )
        return corpus

    @classmethod
    def from_pandas(
        cls,
        frame: pd.DataFrame,
        text: str,
        labels: str,
        *,
        sep: str | None = None,
        split: str | None = None,
        id: str | None = None,
        name: str = "custom",
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> Corpus:
        """A corpus from a frame; `text`, `labels`, `split` and `id` are column names.

        labels: lists of names, or strings that `sep` cuts. Without `split` a hash of the text puts
        `test_fraction` of the documents in test, repeated texts on one side. Oddities are counted
        in one warning each; DataError for other faults.
        """

        return corpus_of_table(
            frame,
            text,
            labels,
            sep=sep,
            split=split,
            id=id,
            name=name,
            test_fraction=test_fraction,
            seed=seed,
        )

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        text: str = "text",
        labels: str = "labels",
        sep: str | None = ";",
        split: str | None = None,
        id: str | None = None,
        encoding: str = "utf-8",
        delimiter: str = ",",
        name: str | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> Corpus:
        """A corpus from a delimited text file; see `from_pandas`. All cells are read as text ("007"
        stays "007").
        """

        return corpus_of_table(
            tables.read_csv(Path(path), encoding, delimiter),
            text,
            labels,
            sep=sep,
            split=split,
            id=id,
            name=name or Path(path).stem,
            test_fraction=test_fraction,
            seed=seed,
            path=Path(path),
        )

    @classmethod
    def from_parquet(
        cls,
        path: str | Path,
        text: str = "text",
        labels: str = "labels",
        sep: str | None = None,
        split: str | None = None,
        id: str | None = None,
        name: str | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> Corpus:
        """A corpus from a parquet file; the labels column may hold lists. See `from_pandas`."""

        return corpus_of_table(
            tables.read_parquet(Path(path)),
            text,
            labels,
            sep=sep,
            split=split,
            id=id,
            name=name or Path(path).stem,
            test_fraction=test_fraction,
            seed=seed,
            path=Path(path),
        )

    def summary(self) -> pd.DataFrame:
        """One row a split: documents, labels used, labels a document, median words."""
        import pandas as pd

        table = {}
        for split in [s for s in SPLITS if (self.split == s).any()]:
            y = self.labels[rows := self.rows(split)]
            table[split] = {
                "documents": rows.size,
                "labels used": np.unique(y.indices).size,
                "labels/doc": round(y.nnz / rows.size, 2),
                "median words": float(np.median([len(self.texts[i].split()) for i in rows])),
            }
        return pd.DataFrame.from_dict(table, orient="index").astype(
            {"documents": int, "labels used": int}
        )

    def __repr__(self) -> str:
        splits = ", ".join(f"{s} {n:,}" for s, n in self.counts()["documents"].items())
        mark = ", synthetic" if self.manifest.get("synthetic") else ""
        return f"Corpus({self.name}: {self.N:,} documents ({splits}), {self.L:,} labels{mark})"

    def _card(self) -> Card:
        return Card.of_frame(
            self.name, repr(self).removeprefix(f"Corpus({self.name}: ")[:-1], self.summary()
        )


def corpus_of_table(
    frame: pd.DataFrame,
    text: str,
    labels: str,
    *,
    sep: str | None,
    split: str | None,
    id: str | None,
    name: str,
    test_fraction: float | None = 0.2,
    seed: int = 0,
    path: Path | None = None,
    to_train: bool = True,
) -> Corpus:
    """The body of Corpus.from_pandas, from_csv and from_parquet; `path` is the file for the
    manifest, if any.

    to_train=False, for a table that a model is measured on: train may be empty, and its labels are
    compared with nothing. test_fraction=None draws no split: without the column `split` every
    document is in test.
    """
    _check_columns(frame, {"text": text, "labels": labels, "split": split, "id": id})
    ids, keep = _ids(frame, id), _texts(frame, text)
    ids = [i for i, k in zip(ids, keep, strict=True) if k]
    frame = frame[keep]
    texts, names = frame[text].tolist(), _labels(frame[labels].tolist(), labels, sep)
    drawn = not split and test_fraction is not None
    if drawn:
        splits = _hashed_split(texts, test_fraction, seed)
    else:
        splits = _split(frame, split) if split else ["test"] * len(texts)
    if to_train and "train" not in splits:
        raise DataError(
            f"no document is in train (splits found: {sorted(set(splits))}): mark some rows"
            " 'train', or pass split=None to draw a split"
        )
    notes = _count_oddities(names, splits, to_train)
    if (~keep).any():
        notes.append(f"{int((~keep).sum())} documents without text dropped")
    if drawn:
        notes.append(f"split: test_fraction {test_fraction} by hash of the text, seed {seed}")
    manifest = {
        "origin": path.name if path else "a frame in memory",
        "licence": "not stated",
        "sources": {path.name: sha256(path)} if path else {},
        "notes": notes,
    }
    return Corpus.from_lists(name, ids, texts, names, splits, manifest=manifest)
