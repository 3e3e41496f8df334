"""Lines for labels of few documents: what they may cost, and that candidates rank as all labels."""

import numpy as np
import pytest
from scipy import sparse

from plantlib.linear import rare, stacking
from plantlib.linear.stacking import Stack
from plantlib.linear.tables import Table, fold_up, raised
from plantlib.metrics.documents import mean, ndcg_at_k, recall_at_k
from plantlib.metrics.topk import TopK

KNOTS = (1, 3, 10, 30, 100)
COUNTS = np.repeat([1, 2, 4, 12, 100], [8, 8, 6, 6, 30])
FEW = (COUNTS > 0) & (COUNTS < 6)


def stack(weight: float = 1.0) -> Stack:
    """A stack of one term."""
    one = np.ones(len(KNOTS))
    return Stack(("svm",), KNOTS, weight * one[None], 0 * one, one, 0 * one)


def problem(seed: int, n: int = 300, counts: np.ndarray = COUNTS):
    """Scores and gold labels of n documents, and the arguments of `rare.raised` of which a stack of
    one term gives these scores. A rare label is likelier than its score says, a frequent one as
    likely.
    """
    rng = np.random.default_rng(seed)
    sums = rng.normal(-5, 2, (n, len(counts))).astype(np.float32)
    chance = 1 / (1 + np.exp(-np.where(counts < 6, 0.5 * sums + 1, sums)))
    gold = rng.random(sums.shape) < chance
    # each document is a word of its own
    table = Table(sparse.csr_matrix(sums.T), np.zeros(len(counts), np.float32))
    words = sparse.eye(n, format="csr")
    labels = sparse.csr_matrix(gold, dtype=np.int32)
    return sums, gold, ([{"svm": table}], [counts], words, labels, np.zeros(n, int))


def of_all(scores: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """nDCG@5 and recall@15 of labels with 1 to 5 documents, by ranking every known label."""
    known = counts > 0
    best = TopK.from_dense(np.where(known, scores, -np.inf).astype(np.float32), rare.PLACES)
    few = known & (counts < 6)
    first = mean(ndcg_at_k(best, gold & known, rare.FIRST))
    return first, mean(recall_at_k(best, gold & few, rare.PLACES))


@pytest.mark.parametrize("seed", range(3))
def test_candidates_rank_as_all_labels_do(seed):
    counts = np.where(np.arange(len(COUNTS)) % 9, COUNTS, 0)  # some that the part does not know
    sums, gold, (_, _, _, labels, _) = problem(seed, counts=counts)
    found = rare.candidates([(np.arange(len(sums)), sums, counts)], labels)
    hats = stacking.hats_of(counts, KNOTS)
    cells = stacking.hats_of(found.known.ravel(), KNOTS)
    lines = rare.lines_of(KNOTS, found.pivot())
    assert len(lines) == len(rare.RAISES) * len(rare.SPREADS)
    for scale, shift in lines[::5]:
        wanted = of_all(hats @ shift + (hats @ scale) * sums, gold, counts)
        scores = found.mapped(cells @ scale, cells @ shift)
        np.testing.assert_allclose(found.metrics(scores), wanted, rtol=1e-6)


def test_the_pivot_is_the_score_at_which_lists_end():
    sums, _, (_, _, _, labels, _) = problem(0)
    found = rare.candidates([(np.arange(len(sums)), sums, COUNTS)], labels)
    assert found.pivot() == pytest.approx(np.median(np.sort(sums, 1)[:, -rare.PLACES]))


def test_a_line_finds_more_labels_of_few_documents_and_leaves_the_first_places():
    sums, gold, arguments = problem(1)
    found = rare.raised(stack(), *arguments)
    parts, counts, words, _, _ = arguments
    before = of_all(sums, gold, COUNTS)
    folded = fold_up(parts[0], found, counts[0])
    np.testing.assert_array_equal(
        folded.scores(words), fold_up(parts[0], stack(), counts[0]).scores(words)
    )
    after = of_all(raised(folded, found, counts[0]).scores(words), gold, COUNTS)
    assert after[1] > before[1] + 0.05
    assert after[0] >= before[0] - rare.LOSS
    assert np.array_equal(found.weights, stack().weights)


def test_of_the_lines_the_first_places_allow_none_finds_more():
    sums, gold, arguments = problem(2)
    found = rare.raised(stack(), *arguments)
    hats = stacking.hats_of(COUNTS, KNOTS)

    def values(scale, shift):
        return of_all(hats @ shift + (hats @ scale) * sums, gold, COUNTS)

    pivot = np.median(np.sort(sums, 1)[:, -rare.PLACES])
    tried = np.array([values(*line) for line in rare.lines_of(KNOTS, pivot)])
    first, few = values(found.scale, found.shift)
    assert first >= tried[:, 0].max() - rare.LOSS - 1e-9
    assert few == pytest.approx(tried[tried[:, 0] >= tried[:, 0].max() - rare.LOSS, 1].max())


def test_labels_of_thirty_documents_keep_their_scores():
    for scale, shift in rare.lines_of(KNOTS, -3.0):
        assert scale[3:].tolist() == [1, 1] and shift[3:].tolist() == [0, 0]
    assert rare.lines_of(KNOTS, -3.0)[0][0].tolist() == [1] * 5
    scale, shift = rare.lines_of(KNOTS, -3.0)[-1]
    # the score at the pivot is raised and nothing else
    np.testing.assert_allclose((scale * -3 + shift)[:2], -3 + rare.RAISES[-1])


def test_without_a_gold_label_of_few_documents_nothing_is_raised():
    _, gold, (parts, counts, words, _, fold) = problem(3)
    gold[:, FEW] = False
    as_it_is = stack()
    labels = sparse.csr_matrix(gold, dtype=np.int32)
    assert rare.raised(as_it_is, parts, counts, words, labels, fold) is as_it_is


def test_a_document_is_ranked_by_the_part_without_it():
    """Two folds whose tables know different things: the line follows the scores of the own fold."""
    sums, _, (parts, counts, words, labels, fold) = problem(4)
    blind = {
        "svm": Table(sparse.csr_matrix(sums.T.shape, dtype=np.float32), parts[0]["svm"].intercept)
    }
    honest = rare.raised(stack(), parts, counts, words, labels, fold)
    other = rare.raised(stack(), [parts[0], blind], counts * 2, words, labels, fold)
    swapped = rare.raised(stack(), [blind, parts[0]], counts * 2, words, labels, fold + 1)
    for found in (other, swapped):
        assert np.array_equal(found.scale, honest.scale)
        assert np.array_equal(found.shift, honest.shift)
