"""Label texts and the teacher they make: a label's own words, for labels that no or few training
documents carry.

A description is read as one more training document that carries its label alone: the MI of
METHOD.md section 1 for counts C = 1, n_l = 1, n_t = df + 1, N = n + 1, which is an idf of the
training documents; a word of many labels counts for less. `teach` makes that teacher, `joined` adds
it to the MIG teacher for labels with at most `few` documents. Descriptions come from terminologies
(`label_texts.json` beside a built corpus, else the corpus's own column), never from dev or test
documents.
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
from plantlib.utils.io import read_json

if TYPE_CHECKING:
    import pandas as pd


FEW = 5  # training documents up to which a label's words join its MIG teacher
SHOWN = ("zero/r@15", "zero/rp@5", "few/r@15", "ndcg@5")
# of a description against a document, chosen on dev of CodiEsp and EURLEX57K: it holds the label's
# words alone
WEIGHT = 8.0


def read(corpus: Corpus, folder: str | Path | None = None) -> list[str | None]:
    """The L labels' texts in column order, None where there is none.

    folder: where label_texts.json may lie, by default the built corpus of that name; labels it
    lacks take the corpus's own description. Raises DataError for a file that does not map names to
    texts.
    """

    # what is built from generated tables is named synthetic-..., its folder is not
    folder = (
        Path(folder)
        if folder is not None
        else find(corpus.name) or find(corpus.name.removeprefix("synthetic-"))
    )
    table = (
        read_json(folder / LABEL_TEXTS_FILE)
        if folder is not None and (folder / LABEL_TEXTS_FILE).is_file()
        else {}
    )
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise DataError(
            f"{folder / LABEL_TEXTS_FILE} does not map label names to texts; wanted an object of"
            " strings: build it again"
        )
    return [table.get(name) or corpus.label_texts.get(name) for name in corpus.label_names]


def rarity(presence: sparse.csr_matrix) -> np.ndarray:
    """(V,) weight of a token among labels: 1 in one label's text alone, falling with ln(1 + L /
    labels that use it).
    """
    described = max(int((np.diff(presence.indptr) > 0).sum()), 1)
    used = column_counts(presence)
    return np.log1p(described / np.maximum(used, 1)) / np.log1p(described)


def scores_of(
    words: sparse.csr_matrix, counts: sparse.csr_matrix, variant: str = "raw"
) -> sparse.csr_matrix:
    """Scores (L, V) of label texts: words (L, V) token counts of the texts, counts (n, V) of the
    training documents.

    I for C = n_l = 1 (or its `variant`) times `rarity`, over the square root of the text's number
    of distinct tokens.
    """
    check_choice("variant", variant, VARIANTS)
    if words.shape[1] != counts.shape[1]:
        raise ValueError(
            f"label texts have {words.shape[1]} tokens, documents {counts.shape[1]}; use one"
            " tokenizer for both"
        )
    found, n = presence_of(words), counts.shape[0] + 1
    with_token = column_counts(presence_of(counts)) + 1
    ones, table = np.ones_like(with_token), n_log_n(n)
    info = information(ones, with_token, ones, n, table)
    weight = normalise(info, entropy(with_token, n, table), entropy(1, n, table), variant)
    # a token of every document says nothing, whatever label it stands in
    weight = np.where(with_token < n, weight, 0.0) * rarity(found)
    # long descriptions would win by their length alone
    length = np.sqrt(np.repeat(np.diff(found.indptr), np.diff(found.indptr)))
    scores = sparse.csr_matrix(
        (weight[found.indices] / length, found.indices, found.indptr), shape=found.shape
    )
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
    """The teacher of label texts alone; options as `mig.teach`, arrays as `scores_of`, all scores
    times `weight`.
    """
    scores = weight * scores_of(words, counts, variant)
    return mig.ranked(
        scores, variant, counts.shape[0], top_k=top_k, relevance=relevance, vocabulary=_seen(counts)
    )


def _seen(counts: sparse.csr_matrix) -> int:
    return max(int((column_counts(counts) > 0).sum()), 1)


def limited(teacher: Teacher, train_counts: np.ndarray, few: int = FEW) -> Teacher:
    """Only the labels with at most `few` training documents; train_counts (L,)."""
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
    """The sum of two teachers' scores, graded anew: a label that has but one of them keeps it."""
    scores = (first.scores + words.scores).tocsr()
    return mig.ranked(
        scores,
        first.variant,
        first.n_train,
        top_k=top_k,
        relevance=relevance,
        vocabulary=vocabulary,
    )


def measured(path: str | Path) -> pd.DataFrame:
    """What `benchmarks/bench_zero_shot.py` wrote, means over seeds in percent; empty where nothing
    was measured yet.

    zero/...: among labels without a training document; few/...: among those with one to five.
    """
    import pandas as pd

    rows = read_json(path)["rows"] if Path(path).is_file() else []
    found = pd.DataFrame(
        [
            {
                "data": row["dataset"],
                "documents": row["documents"]["train"],
                "zero-shot labels in test": row["of_them_in_test"],
                "trained": not row["system"].startswith("bare"),
                "system": row["system"],
                "seeds": row["seed"],
                **{
                    name: np.nan if row["metrics"][name] is None else 100 * row["metrics"][name]
                    for name in SHOWN
                },
            }
            for row in rows
        ]
    )
    if not len(found):
        return found
    keys = ["data", "documents", "zero-shot labels in test", "trained", "system"]
    return found.groupby(keys).agg({"seeds": "count", **dict.fromkeys(SHOWN, "mean")})
