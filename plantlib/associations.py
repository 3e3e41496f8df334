"""Teachers that are not mutual information, for comparison: chi-squared, pointwise MI and a random one.

What METHOD.md's teacher is measured against: the same counts, the same number of tokens a label, another score. Rows are the
training split only, as in `mig.py`; only positive association is kept.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from plantlib import mig
from plantlib.mig import Margins, Teacher

OTHERS = ("chi2", "ppmi", "random")


def teach(
    x, y, *, variant: str, top_k: int | None = 64, relevance: str = "score", min_documents: int = 1, seed: int = 0
) -> Teacher:
    """The teacher `variant`, one of `mig.VARIANTS` or OTHERS: x (N, V) token counts, y (N, L) labels, training rows.

    "chi2": N (C N - n_t n_l)^2 / (n_t n_l (N - n_t)(N - n_l)). "ppmi": ln(C N / ((n_t + 1) n_l)), whose 1
    damps tokens seen once, which plain PMI puts on top. "random": the tokens of
    a label's documents in random order, so that it knows where a label's words are and not which of them matter.
    """
    mig.check_choice("variant", variant, (*mig.VARIANTS, *OTHERS))
    options = {"top_k": top_k, "relevance": relevance, "min_documents": min_documents}
    if variant in mig.VARIANTS:
        return mig.teach(x, y, variant=variant, **options)
    mig.check_request(x, y, "raw")
    mig.check_choice("relevance", relevance, mig.RELEVANCES)
    x, y = mig.presence(x), mig.presence(y)
    seen = mig.column_counts(x)
    x = (x @ sparse.diags((seen >= min_documents).astype(np.int32), dtype=np.int32)).tocsr()
    margins, y_t = Margins.of(x.shape[0], mig.column_counts(x), mig.column_counts(y)), y.T.tocsr()
    best = [
        mig.top_tokens(score(y_t[begin:end] @ x, begin, margins, variant, seed), top_k)
        for begin, end in mig.blocks_of_labels(x, y, 256.0)
    ]
    scores, ranks = (sparse.vstack(part, format="csr") for part in zip(*best, strict=True))
    graded = mig.relevance_of(scores, ranks, relevance, max(int((seen >= min_documents).sum()), 1))
    return Teacher(scores, graded, variant, x.shape[0])


def score(counts, begin: int, margins: Margins, variant: str, seed: int = 0) -> sparse.csr_matrix:
    """Scores, csr (B, V), of co-occurrence counts (B, V) of labels begin, ..., where the token speaks for the label."""
    counts, m = counts.tocsr(), margins
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    both, n_t, n_l = counts.data.astype(np.float64), m.n_t[counts.indices].astype(float), m.n_l[begin + rows].astype(float)
    excess = both * m.n - n_t * n_l
    if variant == "chi2":
        data = m.n * excess**2 / np.maximum(n_t * n_l * (m.n - n_t) * (m.n - n_l), 1.0)
    elif variant == "ppmi":
        data = np.log(np.maximum(both * m.n / ((n_t + 1) * n_l), 1e-12))
    else:
        data = np.random.default_rng([seed, begin]).random(len(both)) + 1e-3
    found = sparse.csr_matrix((np.where(excess > 0, np.maximum(data, 0.0), 0.0), counts.indices, counts.indptr), counts.shape)
    found.eliminate_zeros()
    return found
