"""Descriptions and inclusion terms of ICD-10-CM in the English sentences of CodiEsp, which reach
codes without a training document (`official`).

A text of a code is a set of word stems, weighed by how rare they are among the sentences of the
training documents. Two terms say how well the best sentence of a document holds the best text of a
code: `coverage`, the share of the weights that it holds, and `mass`, the weights that it holds less
those that it lacks. Inflection and the order of words do not count. All of ICD-10-CM competes, not
the codes that CodiEsp happens to have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from scipy import sparse

from plantlib.teacher.phrase_matching import WORD, stem

BEST = 30  # codes without a training document that a document adds to those that are ranked
NOTHING = -30.0  # mass of a code without a text
TINY = 1e-9  # weight of a text whose words stand in every sentence
# words of descriptions that say nothing about the document
EMPTY = "of the and or in with without to for by other unspecified not specified elsewhere"
EMPTY_STEMS = frozenset(map(stem, f"{EMPTY} classified nec nos a an at on from due".split()))


@cache
def terminology() -> dict[str, tuple[str, ...]]:
    """Code in lower case -> description and inclusion terms, of all categories and subcategories,
    and of the forms that end in the filler x.

    Raises:
        ValueError: the package simple-icd-10-cm is not installed.
    """
    try:
        import simple_icd_10_cm as icd
    except ImportError:
        raise ValueError(
            "names of codes need the package simple-icd-10-cm: pip install 'plantlib[icd]'"
        ) from None
    texts = {}
    for code in icd.get_all_codes(True):
        whole = icd.is_category_or_subcategory(code)
        if not whole and not icd.is_extended_subcategory(code):
            continue
        name, of = (code, code) if whole else (code[:-1], icd.get_parent(code))
        own = (icd.get_description(of), *icd.get_inclusion_term(of))
        texts.setdefault(name.lower(), own)
    return texts


def stems(text: str) -> frozenset[str]:
    """The stems of a text that say something."""
    return frozenset(stem(word.group()) for word in WORD.finditer(text)) - EMPTY_STEMS


def sentences_of(texts: Sequence[str]) -> tuple[list[frozenset[str]], np.ndarray]:
    """The stems of S sentences, and (S,) the text of each."""
    found, owner = [], []
    for i, text in enumerate(texts):
        for line in text.replace(". ", "\n").splitlines():
            if words := stems(line):
                found.append(words)
                owner.append(i)
    return found, np.array(owner)


def matrix(rows: Sequence[frozenset[str]], place: Mapping[str, int]) -> sparse.csr_matrix:
    """(n, V) csr, 1 where a row holds a stem; `place`: V known stems."""
    columns = [sorted(place[word] for word in row if word in place) for row in rows]
    indptr = np.cumsum([0, *map(len, columns)])
    indices = np.fromiter((c for row in columns for c in row), np.int64, indptr[-1])
    return sparse.csr_matrix((np.ones(len(indices)), indices, indptr), (len(rows), len(place)))


def matches(
    texts: Sequence[str], train: np.ndarray, names: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and mass (N, C) float32 of C codes in N texts.

    train: rows whose sentences say how rare a stem is. names: the texts of each code, or none.
    """
    described = [
        (code, words) for code, own in enumerate(names) for t in own if (words := stems(t))
    ]
    codes = np.array([code for code, _ in described])
    place = {word: i for i, word in enumerate(sorted(set().union(*(w for _, w in described))))}
    found, owner = sentences_of(texts)
    held = matrix(found, place)
    read = held[np.isin(owner, train)]
    idf = np.log((1 + read.shape[0]) / (1 + read.sum(0).A1))
    wanted = (matrix([words for _, words in described], place) @ sparse.diags(idf)).tocsr()
    total, by_stem = np.maximum(wanted.sum(1).A1, TINY), wanted.T.tocsr()
    coverage = np.zeros((len(texts), len(names)), np.float32)
    mass = np.full(coverage.shape, NOTHING, np.float32)
    own, first = np.unique(codes, return_index=True)
    borders = np.searchsorted(owner, np.arange(len(texts) + 1))
    for i, (begin, end) in enumerate(pairwise(borders)):
        if begin == end:
            continue
        best = (held[begin:end] @ by_stem).max(0).toarray().ravel()
        coverage[i, own] = np.maximum.reduceat(best / total, first)
        mass[i, own] = np.maximum.reduceat(2 * best - total, first)
    return coverage, mass


def best_of(mass: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The codes that stand in the first BEST places of a document, of those that are allowed.

    mass: (N, C). allowed: (C,) bool.
    """
    codes = np.flatnonzero(allowed)
    if len(codes) <= BEST:
        return codes
    found = np.argpartition(-mass[:, codes], BEST - 1, axis=1)[:, :BEST]
    return codes[np.unique(found)]
