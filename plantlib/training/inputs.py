"""What a run reads: token ids, rows by split and sparse labels. Nothing here reads a document.

`prepare.prepare` makes an `Inputs`; `artefacts` keeps what is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from plantlib.backbones import loading
from plantlib.backbones.features import Features
from plantlib.data import credentials, privacy
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import Ragged
from plantlib.kernels.counts import column_counts
from plantlib.linear.phrase_term import TextScore
from plantlib.linear.score import LinearScore
from plantlib.metrics.buckets import EDGES, Edges, edges_of
from plantlib.teacher.crossfit import Withheld
from plantlib.teacher.phrase_cells import DocumentCells, together
from plantlib.utils.checks import safe_name

LABEL_SPACES = {
    "seen": "labels with a training document",
    "train": "labels with a training document before the cap",
    "all": "all labels of the corpus",
}


class Documents(torch.utils.data.Dataset):
    """Rows of a corpus for the trainer: an item is a row number, `collate` reads the documents.

    Args:
        tokens: token ids of all N documents.
        labels: (N, L) csr.
        rows: row numbers of the documents of this data set.
        features: cached hidden states of a frozen backbone; None where the backbone runs.
        linear: row numbers (b,) -> (b, L) linear scores over words, for a start that plants them.
        edges: bounds of the corpus's frequency buckets.
        withheld: what the teacher loses for each of `rows` when that document is not counted.
        cells: planted cells of phrases, of all N documents.

    Raises:
        ValueError: tokens and labels are of different numbers of documents.
    """

    def __init__(
        self,
        tokens: Ragged,
        labels: sparse.csr_matrix,
        rows: np.ndarray,
        features: Features | None = None,
        linear: Callable[[list[int]], np.ndarray] | None = None,
        edges: Edges = EDGES,
        withheld: Withheld | None = None,
        cells: DocumentCells | None = None,
    ):
        if len(tokens) != labels.shape[0]:
            raise ValueError(
                f"{len(tokens)} tokenised documents and {labels.shape[0]} label rows; both must"
                " cover the corpus"
            )
        self.tokens = tokens
        self.labels = labels.tocsr()
        self.rows = np.asarray(rows)
        self.features = features
        self.linear = linear
        self.edges = edges
        self.withheld = withheld
        self.cells = cells
        self.place_of = {int(row): i for i, row in enumerate(self.rows)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> int:
        return int(self.rows[i])

    def collate(self, rows: list[int], hidden: bool = True) -> dict[str, torch.Tensor]:
        """One packed batch of b documents with S tokens in all.

        Args:
            rows: (b,) of the corpus.
            hidden: read cached hidden states.

        Returns:
            token_ids (S,) int64; offsets (b + 1,) int64, where each document begins and ends;
            label_rows and label_columns, the places of the ones of the labels (b, L);
            hidden_states (S, D) where features are cached; linear_scores (b, L) where planted;
            the arrays of `Withheld.cells` and `Withheld.score_changes` where it is given, with
            the cells of phrases among them.
        """
        tokens = self.tokens.select(rows)
        cells = self.labels[rows].tocoo()
        batch = {
            "token_ids": torch.from_numpy(tokens.flat.astype(np.int64)),
            "offsets": torch.from_numpy(tokens.offsets),
            "label_rows": torch.from_numpy(cells.row.astype(np.int64)),
            "label_columns": torch.from_numpy(cells.col.astype(np.int64)),
        }
        if self.features is not None and hidden:
            batch["hidden_states"] = torch.from_numpy(self.features.documents(rows))
        if self.linear is not None:
            batch["linear_scores"] = torch.from_numpy(self.linear(rows))
        own: dict[str, np.ndarray] = {}
        if self.withheld is not None:
            places = [self.place_of[row] for row in rows]
            own = self.withheld.cells(places, tokens.flat, tokens.offsets)
            if self.withheld.scores.any():
                own |= self.withheld.score_changes(places)
        if self.cells is not None:
            planted = self.cells.select(rows).batch(tokens.offsets)
            own |= together(planted, own) if own else planted
        return batch | {name: torch.from_numpy(values) for name, values in own.items()}


@dataclass(frozen=True, eq=False)
class Inputs:
    """A corpus ready to train on. N documents, V tokens of the vocabulary, L labels.

    Attributes:
        corpus: texts, labels and splits, within the label space.
        backbone: name or folder of the backbone whose tokenizer read the texts.
        tokens: token ids of all documents.
        vocabulary: V tokens, by id.
        extra_gold: (N,) number of gold labels outside the label space.
        features: hidden states of the frozen backbone, or None when the backbone is trained.
        root: folder of intermediate artefacts (`artefacts`).
        max_tokens: tokens read per document, None for all.
        window: tokens the backbone reads at a time.
        overlap: tokens on each side of a window that are read with it as context.
        key: fingerprint of texts, labels, backbone and reading, for the names of artefacts.
        label_space: a key of `LABEL_SPACES`.
        label_space_stated: how records describe the label space, if not as `LABEL_SPACES` does.
        train_rows: the training rows, if they are fewer than those of the corpus.
    """

    corpus: Corpus
    backbone: str
    tokens: Ragged
    vocabulary: list[str]
    extra_gold: np.ndarray
    features: Features | None
    root: Path
    max_tokens: int | None
    window: int
    key: str
    overlap: int = 0
    trust_remote_code: bool = False
    label_space: str = "seen"
    label_space_stated: str | None = None
    train_rows: np.ndarray | None = None

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Row numbers by split; none of test for a run that is not judged."""
        whole = self.train_rows is None
        return {
            "train": self.corpus.rows("train") if whole else self.train_rows,
            "dev": self.corpus.rows("dev"),
            "test": np.flatnonzero(self.corpus.split == "test"),
        }

    @cached_property
    def train_counts(self) -> np.ndarray:
        """(L,) training documents per label."""
        return column_counts(self.train_labels)

    @property
    def train_labels(self) -> sparse.csr_matrix:
        """(n, L) labels of the training rows."""
        return self.corpus.labels[self.rows["train"]]

    @cached_property
    def counts(self) -> sparse.csr_matrix:
        """(N, V) token counts."""
        return self.tokens.counts(len(self.vocabulary))

    @property
    def train_tokens(self) -> sparse.csr_matrix:
        """(n, V) token counts of the training rows."""
        return self.counts[self.rows["train"]]

    @property
    def edges(self) -> Edges:
        """Bounds of the frequency buckets: those of the corpus's manifest, or the usual ones."""
        return edges_of(self.corpus.manifest)

    @cached_property
    def hidden_size(self) -> int:
        """D of the backbone."""
        config = loading.config_of(self.backbone, self.trust_remote_code)
        return loading.hidden_size_of(config)

    def documents(
        self,
        split: str,
        cached: bool = True,
        linear: LinearScore | TextScore | None = None,
        withheld: Withheld | None = None,
        cells: DocumentCells | None = None,
    ) -> Documents:
        """A split as the trainer reads it.

        Args:
            cached: read cached features; else the backbone runs.
            linear: the score of whole texts, for a start that plants one.
            withheld: of the training rows, what their own counts gave the teacher.
            cells: planted cells of phrases, of all documents.
        """
        features = self.features if cached else None
        rows = self.rows[split]
        added = linear.scores if linear else None
        labels = self.corpus.labels
        return Documents(self.tokens, labels, rows, features, added, self.edges, withheld, cells)

    def about(self) -> dict:
        """The data set as a RunRecord states it."""
        about = {
            "name": self.corpus.name,
            "fingerprint": self.corpus.fingerprint(),
            "labels": self.corpus.L,
            "label_space": self.label_space_stated or LABEL_SPACES[self.label_space],
            "synthetic": bool(self.corpus.manifest.get("synthetic", False)),
        }
        about |= {split: len(rows) for split, rows in self.rows.items()}
        if self.edges != EDGES:
            about["bucket_edges"] = list(self.edges)
        if licence := self.corpus.manifest.get("licence"):
            about["licence"] = str(licence)
        if privacy.is_credentialed(self.corpus):
            about["credentialed"] = True
        return about

    @property
    def file_name(self) -> str:
        """What files made of the corpus are named by."""
        return safe_name(self.corpus.name)

    @property
    def credentialed(self) -> bool:
        """Whether a model trained on these inputs is: by the corpus, or by the backbone's text."""
        by_text = credentials.folder_is_marked(self.backbone)
        return privacy.is_credentialed(self.corpus) or by_text
