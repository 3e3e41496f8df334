"""Label texts, and the teacher made of them: a label's own words, for labels with few documents.

A description counts as one more training document that carries its label only (docs/method.md,
"Starts"): C = n_l = 1, n_t and n one higher, so a word's mutual information is an idf over the
training documents. Words that many labels use count less. `teach` makes this teacher, `joined` adds
it to the MIG teacher. Texts come from terminologies (label_texts.json beside a built corpus) or
from the corpus itself, never from dev or test documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from plantlib.data.corpus import Corpus
from plantlib.data.sources import find
from plantlib.data.streaming import LABEL_TEXTS_FILE
from plantlib.kernels.counts import (
    VARIANTS,
    check_choice,
    column_counts,
    entropy,
    information,
    n_log_n,
    normalise,
)
from plantlib.kernels.counts import presence as presence_of
from plantlib.teacher import mig
from plantlib.teacher.mig import Teacher
from plantlib.utils.base import DataError
from plantlib.utils.checks import safe_name
from plantlib.utils.io import read_json

if TYPE_CHECKING:
    import pandas as pd


FEW = 5  # a label with at most so many training documents gets the words of its text
SHOWN = ("zero/r@15", "zero/rp@5", "few/r@15", "ndcg@5")
# of a description against a document, because its few words are all about the label; chosen on dev
# of CodiEsp and EURLEX57K
WEIGHT = 8.0


def read(corpus: Corpus, folder: str | Path | None = None) -> list[str | None]:
    """The texts of the corpus's L labels, in column order; None for a label without a text.

    Args:
        corpus: its own descriptions are used for labels that the file lacks.
        folder: of label_texts.json; by default the built corpus of the same name.

    Raises:
        DataError: the file does not map label names to texts.
    """
    # a corpus from generated tables is named synthetic-NAME, its folder NAME
    if folder is None and corpus.name == safe_name(corpus.name):
        folder = find(corpus.name) or find(corpus.name.removeprefix("synthetic-"))
    path = Path(folder) / LABEL_TEXTS_FILE if folder is not None else None
    table = read_json(path) if path is not None and path.is_file() else {}
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise DataError(
            f"{path} does not map label names to texts; wanted an object of strings: build it again"
        )
    return [table.get(name) or corpus.label_texts.get(name) for name in corpus.label_names]


def rarity(presence: sparse.csr_matrix) -> np.ndarray:
    """(V,) weight of each token: 1 if one label's text has it, less the more texts have it.

    ln(1 + L / labels with the token) / ln(1 + L), over the L labels with a text; presence is
    (labels, V) csr.
    """
    described = max(int((np.diff(presence.indptr) > 0).sum()), 1)
    labels = column_counts(presence)
    return np.log1p(described / np.maximum(labels, 1)) / np.log1p(described)


def scores_of(
    words: sparse.csr_matrix, counts: sparse.csr_matrix, variant: str = "raw"
) -> sparse.csr_matrix:
    """Scores of the tokens of label texts; see docs/method.md, "Starts".

    The mutual information for C = n_l = 1, times `rarity`, over the square root of the text's
    number of distinct tokens.

    Args:
        words: (L, V) csr, token counts of the texts.
        counts: (n, V) csr, token counts of the training documents.
        variant: the form of mutual information, one of `VARIANTS`.

    Returns:
        (L, V) csr.

    Raises:
        ValueError: unknown variant, or two vocabularies.
    """
    check_choice("variant", variant, VARIANTS)
    if words.shape[1] != counts.shape[1]:
        raise ValueError(
            f"label texts have {words.shape[1]} tokens, documents {counts.shape[1]}; use one"
            " tokenizer for both"
        )
    # the mutual information of each token, with the description as one more document
    present, n = presence_of(words), counts.shape[0] + 1
    with_token = column_counts(presence_of(counts)) + 1
    ones, table = np.ones_like(with_token), n_log_n(n)
    info = information(ones, with_token, ones, n, table)
    weight = normalise(info, entropy(with_token, n, table), entropy(1, n, table), variant)
    # a token of every document says nothing about a label
    weight = np.where(with_token < n, weight, 0.0) * rarity(present)
    # without this, long descriptions would win by their length alone
    length = np.sqrt(np.repeat(np.diff(present.indptr), np.diff(present.indptr)))
    data = weight[present.indices] / length
    scores = sparse.csr_matrix((data, present.indices, present.indptr), shape=present.shape)
    scores.eliminate_zeros()
    return scores


def teach(
    words: sparse.csr_matrix,
    counts: sparse.csr_matrix,
    *,
    variant: str = "raw",
    top_k: int | None = 64,
    relevance: str = "score",
    weight: float = WEIGHT,
) -> Teacher:
    """The teacher of label texts alone.

    Args:
        words, counts, variant: see `scores_of`.
        top_k, relevance: see `mig.teach`.
        weight: multiplies all scores.

    Raises:
        ValueError: as `scores_of`, or unknown relevance.
    """
    return mig.ranked(
        weight * scores_of(words, counts, variant),
        variant,
        counts.shape[0],
        top_k=top_k,
        relevance=relevance,
        vocabulary=_vocabulary_size(counts),
    )


def _vocabulary_size(counts: sparse.csr_matrix) -> int:
    """Distinct tokens of the training documents, at least 1."""
    return max(int((column_counts(counts) > 0).sum()), 1)


def limited(teacher: Teacher, train_counts: np.ndarray, few: int = FEW) -> Teacher:
    """The teacher of labels with at most `few` training documents; train_counts (L,) has them."""
    keep = sparse.diags((np.asarray(train_counts) <= few).astype(float)).tocsr()
    scores, relevance = ((keep @ m).tocsr() for m in (teacher.scores, teacher.relevance))
    for m in (scores, relevance):
        m.eliminate_zeros()
    return Teacher(scores, relevance, teacher.variant, teacher.n_train)


def joined(
    first: Teacher,
    words: Teacher,
    *,
    top_k: int | None = 64,
    relevance: str = "score",
    vocabulary: int,
) -> Teacher:
    """The sum of two teachers' scores, graded again as `mig.ranked` does.

    A label that only one of them teaches keeps that one's scores.
    """
    scores = (first.scores + words.scores).tocsr()
    options = {"top_k": top_k, "relevance": relevance, "vocabulary": vocabulary}
    return mig.ranked(scores, first.variant, first.n_train, **options)


def measured(path: str | Path) -> pd.DataFrame:
    """Means over seeds, in percent, of what `benchmarks/bench_zero_shot.py` wrote to `path`.

    Columns zero/... are about labels without a training document, few/... about labels with 1 to 5.
    The frame is empty if there is no file.
    """
    import pandas as pd

    rows = read_json(path)["rows"] if Path(path).is_file() else []
    table = pd.DataFrame(
        [
            {
                "data": row["dataset"],
                "documents": row["documents"]["train"],
                "zero-shot labels in test": row["of_them_in_test"],
                "trained": not row["system"].startswith("bare"),
                "system": row["system"],
                "seeds": row["seed"],
            }
            | {
                name: np.nan if row["metrics"][name] is None else 100 * row["metrics"][name]
                for name in SHOWN
            }
            for row in rows
        ]
    )
    if not len(table):
        return table
    keys = ["data", "documents", "zero-shot labels in test", "trained", "system"]
    return table.groupby(keys).agg({"seeds": "count", **dict.fromkeys(SHOWN, "mean")})
