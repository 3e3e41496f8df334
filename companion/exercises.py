"""Checks of the notebooks' exercises: give one your answer, and it says "right" or how to go on.

`check_NN_K` belongs to exercise K of notebook NN. An answer is a function, or a number that a cell
of the notebook computed. Each check compares it with plantlib on small random cases. A wrong answer
raises `NotYet` with a hint; solutions are in docs/solutions.md, folded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse

from companion.report.verdicts import verdict_of
from plantlib.kernels import Cells, attend, merge
from plantlib.kernels.attention_bce import sparse_bce
from plantlib.kernels.counts import dense_mutual_information, entropy, normalise
from plantlib.metrics.documents import ndcg_at_k, r_precision_at_k
from plantlib.metrics.topk import TopK
from plantlib.model.explanation import Explanation
from plantlib.planting import ranking
from plantlib.planting.decoder import LabelDecoder, Packed

CASES = 5  # random cases of each check


class NotYet(AssertionError):
    """An answer that is not right yet; the message is a hint."""


def check_00_1(explanation: Explanation, answer: float) -> None:
    """What all words of an explanation add to the logit together."""
    _same(
        answer,
        explanation.logit - explanation.bias - explanation.rest,
        "sum `word.contribution` over `explanation.words`; the bias is not a word",
    )
    print("right")


def check_01_1(answer: Callable[[np.ndarray, set[int], int], float]) -> None:
    """RP@k of one document: scores (L,), the gold labels' ids, k -> float."""
    for scores, gold, k in _rankings():
        _same(
            answer(scores, gold, k),
            _of_documents(r_precision_at_k, scores, gold, k),
            "divide the hits among the k best by min(k, number of gold labels)",
        )
    print("right")


def check_01_2(answer: Callable[[np.ndarray, set[int], int], float]) -> None:
    """nDCG@k of one document: scores (L,), the gold labels' ids, k -> float."""
    for scores, gold, k in _rankings():
        _same(
            answer(scores, gold, k),
            _of_documents(ndcg_at_k, scores, gold, k),
            "a hit at place i, counted from 1, gives 1 / log2(i + 1); divide by the sum of the"
            " first min(k, number of gold labels) of these",
        )
    print("right")


def check_02_1(answer: Callable[[int, int, int, int], float]) -> None:
    """I(t; l) in nats from counts of documents: n_both, n_token, n_label, n -> float."""
    for case in range(CASES):
        x, y = (np.random.default_rng([case, side]).random(40) < 0.3 for side in (0, 1))
        expected = dense_mutual_information(
            *(sparse.csr_matrix(event[:, None].astype(int)) for event in (x, y))
        )[0, 0]
        _same(
            answer(int((x & y).sum()), int(x.sum()), int(y.sum()), len(x)),
            expected,
            "sum p ln(p / (p_token p_label)) over the four cells; a cell without documents adds 0",
        )
    print("right")


def check_02_2(answer: Callable[[int, int, int, int], bool]) -> None:
    """Whether a token speaks FOR a label: n_both, n_token, n_label, n -> bool."""
    for counts, expected in (((4, 4, 5, 10), True), ((1, 6, 5, 10), False), ((2, 4, 5, 10), False)):
        if bool(answer(*counts)) != expected:
            raise NotYet(
                "compare with independence, where n_both n = n_token n_label: mutual information"
                f" does not see the sign. A case that fails: n_both, n_token, n_label, n = {counts}"
            )
    print("right")


def check_03_1(answer: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> None:
    """approxNDCG of one list as a loss: scores (T,), relevance (T,), alpha -> scalar."""
    for generator in _generators():
        scores = torch.randn(9, generator=generator)
        relevance = torch.randint(0, 4, (9,), generator=generator).float()
        relevance[0] = 2.0
        _same(
            float(answer(scores, relevance, 10.0)),
            float(ranking.approx_ndcg(scores[None], relevance[None], alpha=10.0)),
            "the smooth rank is 1 + the sum over OTHER tokens j of sigmoid(alpha (s_j - s_i)); the"
            " ideal DCG takes the relevance in sorted order; the loss is 1 - nDCG",
        )
    print("right")


def check_03_2(answer: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> None:
    """Ridge queries: hidden (T, D), target (T, L), mu -> queries (L, D); both are to be centred."""
    for generator in _generators():
        hidden = torch.randn(30, 6, generator=generator, dtype=torch.float64) + 1
        target = torch.randn(30, 3, generator=generator, dtype=torch.float64) + 1
        h, g = hidden - hidden.mean(0), target - target.mean(0)
        expected = torch.linalg.solve(h.T @ h + 0.5 * torch.eye(6, dtype=h.dtype), h.T @ g).T
        _same(
            answer(hidden, target, 0.5),
            expected,
            "centre both, then solve (H'H + mu I) X = H'G; the queries are X transposed",
        )
    print("right")


def check_04_1(answer: Callable[..., torch.Tensor]) -> None:
    """Planted label attention of one document that keeps K tokens per label.

    answer: h (T, D), q (L, D), w (L, D), g (T, L), gamma, k -> (L,).
    """
    for generator in _generators():
        h, q, w = (torch.randn(n, 8, generator=generator) for n in (20, 4, 4))
        g = torch.rand(20, 4, generator=generator) * (torch.rand(20, 4, generator=generator) < 0.2)
        label, position = g.T.nonzero(as_tuple=True)
        cells = Cells(position, label, g[position, label])
        gamma = torch.tensor(4.0)
        expected, _ = attend(h, torch.tensor([0, 20]), q, w, cells, gamma, 3, impl="reference")
        _same(
            answer(h, q, w, g, 4.0, 3),
            expected[0],
            "add gamma g before you choose the K best tokens of each label, and give the others a"
            " score of minus infinity, not a weight of zero: the softmax must sum to one",
        )
    print("right")


def check_04_2(answer: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The state after two pieces: log_sum, value of each piece, (L,) all -> log_sum, value."""
    for generator in _generators():
        pieces = [torch.randn(5, generator=generator) for _ in range(4)]
        for found, expected in zip(answer(*pieces), merge(*pieces), strict=True):
            _same(
                found,
                expected,
                "weigh each value by exp(its log_sum - the common log_sum), where the common one is"
                " the logarithm of the sum of both exponentials (torch.logaddexp)",
            )
    print("right")


def check_05_1(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """The loss of fine-tuning: logits (B, L), gold (B, L) of 0 and 1 -> scalar."""
    for generator in _generators():
        logits = torch.randn(4, 7, generator=generator)
        gold = (torch.rand(4, 7, generator=generator) < 0.3).float()
        _same(
            float(answer(logits, gold)),
            float(sparse_bce(logits, *gold.nonzero(as_tuple=True))),
            "binary cross-entropy with logits, SUMMED over labels and averaged over documents: a"
            " mean over labels would shrink the gradient of each by their number",
        )
    print("right")


def check_05_2(answer: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """How often a paired bootstrap sees system a at or below b.

    answer: values of a and b on the same documents, (N,) each -> share of resamples of documents in
    which the mean of a - b is 0 or less.
    """
    generator = np.random.default_rng(0)
    noise = generator.normal(size=200)  # shared by both systems: what pairing removes
    for lead, low, high in ((0.5, 0.0, 0.01), (0.0, 0.2, 0.8), (-0.5, 0.99, 1.0)):
        a = noise + lead + 0.1 * generator.normal(size=200)
        b = noise + 0.1 * generator.normal(size=200)
        if lead == 0.0:
            a += b.mean() - a.mean()
        share = float(answer(a, b))
        if not low <= share <= high:
            raise NotYet(
                "draw DOCUMENTS with replacement, the same ones for both systems, and count how"
                f" often the mean difference is 0 or less; got {share:.3f} for a lead of {lead}"
            )
    print("right")


def check_06_1(answer: Callable[[np.ndarray, np.ndarray, int], float]) -> None:
    """J of a token and a label as document i reads it when the teacher is cross-fitted.

    answer: token (N,) and label (N,) of 0 and 1, i -> J. Document i has both.
    """
    for case in range(CASES):
        generator = np.random.default_rng(case)
        token, label = (generator.random(30) < 0.4).astype(int), (generator.random(30) < 0.3)
        token[3] = label[3] = 1
        _same(
            answer(token, label.astype(int), 3),
            _jaccard(np.delete(token, 3), np.delete(label, 3)),
            "leave document i out of all four counts (n - 1 as well), then J = I / (H_t + H_l - I)",
        )
    print("right")


def check_07_1(answer: Callable[[float, float | None, float, bool], str]) -> None:
    """The verdict on a published number, from the same corpus and size.

    answer: paper, ours (None where there is no run), sd of ours (nan for one seed), comparable ->
    "not comparable", "not run", "reproduced", "above" or "below".
    """
    nan = float("nan")
    cases = (
        (60.0, 60.5, 1.0, True),
        (60.0, 62.0, 1.0, True),
        (60.0, 58.0, 1.0, True),
        (60.0, 60.1, nan, True),
        (60.0, None, nan, True),
        (60.0, 60.0, 1.0, False),
        (60.0, None, nan, False),
    )
    for paper, ours, sd, comparable in cases:
        expected = verdict_of(paper, ours, sd, comparable)
        found = answer(paper, ours, sd, comparable)
        if found != expected:
            raise NotYet(
                f"not yet: {found!r} for {(paper, ours, sd, comparable)}, wanted {expected!r}."
                " Hint: ask first whether the number is comparable, then whether there is a run;"
                " one seed has no standard deviation, so it reproduces nothing"
            )
    print("right")


def check_08_1(answer: Callable[..., torch.Tensor]) -> None:
    """A linear layer with its LoRA adapter: the products with x (B, D).

    answer: x, w (E, D), a (r, D), b (E, r), alpha -> (B, E). The adapted w is w + alpha / r b a.
    """
    for generator in _generators():
        x, w, a, b = (
            torch.randn(*shape, generator=generator) for shape in ((5, 6), (4, 6), (2, 6), (4, 2))
        )
        _same(
            answer(x, w, a, b, 32.0),
            x @ (w + 32.0 / 2 * b @ a).T,
            "the scale is alpha / r, and r is the number of rows of a",
        )
    print("right")


def check_08_2(answer: Callable[[list[tuple[int, int]], int], int]) -> None:
    """Numbers that LoRA of rank r trains: [(D, E) of each layer], r -> their count."""
    for layers, r in (([(384, 384)] * 3, 16), ([(48, 48), (48, 12)], 16), ([(7, 5)], 1)):
        trained = sum(torch.empty(r, d).numel() + torch.empty(e, r).numel() for d, e in layers)
        _same(answer(layers, r), trained, "a layer has a of r x D and b of E x r, and no bias")
    print("right")


def check_09_1(answer: Callable[..., float]) -> None:
    """The logit of the first version with three contexts.

    answer: learned, lookup, l2r, outputs, (T,) each -> the sum of three contexts.
    """
    for generator in _generators():
        learned, lookup, l2r = (torch.rand(6, generator=generator) for _ in range(3))
        toy = LabelDecoder(1, 1, 6, 6, num_l2r_cells=6, contexts="sum")
        toy.planted.load_relevance(sparse.csr_matrix(lookup.numpy()[None]))
        toy.l2r.load_relevance(sparse.csr_matrix(l2r.numpy()[None]))
        ones = {name: torch.ones(()) for name in ("planted_gain", "l2r_gain")}
        toy.load_state_dict(
            ones | dict.fromkeys(("label_queries", "label_outputs"), torch.ones(1, 1)), strict=False
        )
        torch.nn.init.ones_(toy.context_gain)
        # one dimension, whose query and output are one: learned scores and outputs are the same
        packed = Packed(learned[:, None], torch.arange(6), torch.tensor([0, 6]))
        _same(
            float(answer(learned, lookup, l2r, learned)),
            float(toy(packed).detach()),
            "each of the three has a softmax of its own over the tokens; add the three means of the"
            " outputs, not the scores",
        )
    print("right")


def check_09_2(answer: Callable[[list[float], float], list[float]]) -> None:
    """Logits of the running state: the mean output of each segment, the bias -> one logit each."""
    for generator in _generators():
        outputs = torch.randn(4, generator=generator)
        toy = LabelDecoder(1, 1, 1, stateful="v1")
        given = {"label_outputs": torch.ones(1, 1), "label_bias": torch.tensor([-0.5])}
        toy.load_state_dict(given, strict=False)
        state, expected = toy.start_state(1), []
        for output in outputs:
            ids, offsets = torch.zeros(1, dtype=torch.long), torch.tensor([0, 1])
            state = toy.read(Packed(output[None, None], ids, offsets), state)
            expected.append(float(toy.finish(state).detach()))
        _same(
            answer(outputs.tolist(), -0.5),
            expected,
            "a logit is mean output + bias + sigmoid of the logit before it; the first has none",
        )
    print("right")


def _jaccard(token: np.ndarray, label: np.ndarray) -> float:
    """J of two events in N documents."""
    n = len(token)
    x, y = (sparse.csr_matrix(np.asarray(event, int)[:, None]) for event in (token, label))
    info = dense_mutual_information(x, y)[0, 0]
    sizes = (entropy(np.array(int(np.sum(event))), n) for event in (token, label))
    return float(normalise(info, *sizes, "jaccard"))


def _rankings():
    """Scores (L,), gold labels and k of small random documents."""
    for case in range(CASES):
        generator = np.random.default_rng(case)
        gold = set(generator.choice(8, size=case + 1, replace=False).tolist())
        scores = generator.permutation(8).astype(float)
        scores[min(gold)] = 9.0  # a hit, so that dividing by another number is seen
        yield scores, gold, 3


def _of_documents(metric: Callable, scores: np.ndarray, gold: set[int], k: int) -> float:
    """plantlib's metric of one document."""
    row = sparse.csr_matrix(np.isin(np.arange(len(scores)), list(gold)).astype(int)[None])
    return float(metric(TopK.from_dense(torch.from_numpy(scores)[None], len(scores)), row, k)[0])


def _generators():
    """A torch generator per case."""
    return (torch.Generator().manual_seed(case) for case in range(CASES))


def _same(found, expected, hint: str) -> None:
    """Raise NotYet with the hint where two numbers or arrays differ."""
    found, expected = (np.asarray(value, np.float64) for value in (found, expected))
    if found.shape != expected.shape:
        raise NotYet(f"the shape is {found.shape}, wanted {expected.shape}. Hint: {hint}")
    if not np.allclose(found, expected, atol=1e-4):
        raise NotYet(f"not yet: got {found.round(4)}, wanted {expected.round(4)}. Hint: {hint}")
