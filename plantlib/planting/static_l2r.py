"""The static L2R model of the first version: score <E_t, F_l> + b_t + c_l of a token and a label,
trained outside documents; docs/method.md, "The first version (v1)".

E_t holds the training documents of token t in d directions of the document space: those that carry
most of the shown grades. F begins as the ridge regression of the grades on E and is trained by
LambdaRank on lists of a label's graded tokens, tokens that the model ranks high, and random tokens.

Quality is measured on held-out tokens: the grades of a fifth of the vocabulary, for any label,
enter neither directions nor F, b or lists; every label then ranks all of those tokens. Only the K
best tokens per label are planted, as CSR; scores of all tokens exist for a block of labels at a
time. No backbone is needed.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from plantlib.kernels.counts import column_counts, presence
from plantlib.planting import ranking
from plantlib.planting.l2r import check_same
from plantlib.teacher import mig
from plantlib.utils.checks import check_seed, check_whole
from plantlib.utils.progress import tqdm
from plantlib.utils.tensors import check_tensors, save_tensors

DIM = 400  # d as first published
BLOCK = 256  # labels whose scores of all tokens are held at once

# LambdaRank's training; the rate was raised after a look at EURLEX57K's held-out tokens
EPOCHS = 3
LEARNING_RATE = 0.3
LABELS_PER_BATCH = 64
# a label's list: its best-graded tokens, tokens that the model ranks high, tokens by chance
GRADED = 64
MINED = 64
NEGATIVES = 64
TEACHER_TOKENS = 512  # tokens per label with a grade; the others count as irrelevant
TOP_GRADE = 5.0  # grades 1..101 are brought to 0..5, gains 2^grade - 1 to 0..31
SIGMA = 0.5  # of LambdaRank
CUT = 15  # of the ideal DCG and of the reported nDCG
# for the start of F: times the mean squared feature, and the standard deviation of a label's
# scores, so that SIGMA tells tokens apart
RIDGE = 1e-2
SPREAD = 4.0
HELD_OUT = 0.2  # share of tokens that quality is measured on
PLANTED_TOKENS = 64  # K of the table that is planted, as many as the teacher's


def embed(
    counts, grades: sparse.csr_matrix, shown: np.ndarray, *, dim: int = DIM, seed: int = 0
) -> torch.Tensor:
    """E (V, d) = A'U of all tokens: A (n, V) is presence / sqrt(n_t), U (n, d) is orthonormal.

    U spans the leading left singular vectors of A G' over the `shown` tokens, with each label's
    grades at length one. It comes from the two sparse factors by a randomised range finder: (n, L)
    is never made.

    Args:
        counts: (n, V) csr, token counts of the training rows.
        grades: (L, V) csr.
        shown: (V,) bool, tokens whose grades may be read.
        dim: d, or as many as n, L and the tokens allow.
        seed: of the range finder.

    Returns:
        (V, d) with a mean squared length of 1.
    """
    # A and the labels' grades at length one
    present = presence(counts).astype(np.float32)
    per_document = 1 / np.sqrt(np.maximum(column_counts(present), 1))
    a = (present @ sparse.diags(per_document.astype(np.float32))).tocsr()
    graded = grades[:, shown].astype(np.float32)
    length = np.sqrt(np.asarray(graded.multiply(graded).sum(1)).ravel()).clip(min=1e-12)
    graded = (sparse.diags((1 / length).astype(np.float32)) @ graded).T.tocsr()
    # project all tokens onto the directions
    rank = max(min(dim, a.shape[0] - 1, graded.shape[1]), 1)
    u = directions([a[:, shown].tocsr(), graded], rank, seed)
    embeddings = (a.T @ u).astype(np.float32)
    scale = max(float(np.sqrt(np.square(embeddings).sum(1).mean())), 1e-12)
    return torch.from_numpy(embeddings / scale)


def directions(
    factors: list[sparse.csr_matrix], rank: int, seed: int, powers: int = 1
) -> np.ndarray:
    """(n, rank) orthonormal: about the leading left singular vectors of the product of sparse
    factors, by a randomised range finder (Halko et al. 2011) with `powers` power iterations.
    """

    def forward(m):
        return functools.reduce(lambda right, left: left @ right, factors[::-1], m)

    def back(m):
        return functools.reduce(lambda right, left: left.T @ right, factors, m)

    size = (factors[-1].shape[1], rank + 10)
    draw = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    basis = np.linalg.qr(forward(draw))[0]
    for _ in range(powers):
        basis = np.linalg.qr(forward(np.linalg.qr(back(basis))[0]))[0]
    left = np.linalg.svd(np.linalg.qr(back(basis), mode="r"))[2]
    return basis @ left[:rank].T


def frequency(counts: sparse.csr_matrix) -> torch.Tensor:
    """(V,) standardised logarithm of document frequency, from counts (n, V): b_t is a multiple of
    it.
    """
    value = np.log1p(column_counts(presence(counts)))
    return torch.from_numpy(((value - value.mean()) / max(value.std(), 1e-12)).astype(np.float32))


@dataclass(frozen=True, eq=False)
class StaticL2R:
    """A trained model.

    token_embeddings: E (V, d).
    label_embeddings: F (L, d).
    token_bias: b (V,).
    label_bias: c (L,), which places zero at a label's (K+1)-th token, so that positive scores are
    those that are planted.
    label_names, tokens: what the rows of F and E stand for.
    quality: how well held-out tokens are ranked, see `pretrain`.
    """

    token_embeddings: torch.Tensor
    label_embeddings: torch.Tensor
    token_bias: torch.Tensor
    label_bias: torch.Tensor
    label_names: list[str]
    tokens: list[str]
    quality: dict = field(default_factory=dict)

    def scores(self, begin: int, end: int) -> torch.Tensor:
        """(end - begin, V) scores of the labels begin to end - 1."""
        f = self.label_embeddings[begin:end]
        return f @ self.token_embeddings.T + self.token_bias + self.label_bias[begin:end, None]

    def table(self) -> sparse.csr_matrix:
        """What is planted, csr (L, V): a label's tokens of positive score, over its best score."""
        rows, columns, values = [], [], []
        for begin in range(0, len(self.label_embeddings), BLOCK):
            s = self.scores(begin, min(begin + BLOCK, len(self.label_embeddings)))
            s = s / s.amax(1, keepdim=True).clamp(min=1e-12)
            # the token at zero may be rounded to just above it
            row, column = (s > 1e-6).nonzero(as_tuple=True)
            values.append(s[row, column].numpy())
            rows.append(row.numpy() + begin)
            columns.append(column.numpy())
        cells = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.csr_matrix(
            cells, shape=(len(self.label_embeddings), len(self.token_embeddings)), dtype=np.float32
        )

    def check(self, label_names: list[str], tokens: list[str]) -> None:
        """Raise ValueError naming both sizes and the first difference when the vocabularies are not
        these.
        """
        check_same("labels", self.label_names, label_names)
        check_same("tokens", self.tokens, tokens)

    def save(self, path: str | Path) -> Path:
        """One safetensors file: the four tensors, both vocabularies (as bytes of JSON) and the
        quality.
        """
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        for name in ("label_names", "tokens"):
            tensors[name] = torch.frombuffer(
                bytearray(json.dumps(getattr(self, name)).encode()), dtype=torch.uint8
            )
        return save_tensors(path, tensors, {"quality": json.dumps(self.quality)})

    @classmethod
    def load(cls, path: str | Path) -> StaticL2R:
        """Read what `save` wrote; Damaged for a file that changed since."""
        from safetensors import safe_open

        with safe_open(check_tensors(path), "pt") as f:
            names, tokens = (
                json.loads(bytes(f.get_tensor(n).numpy()).decode())
                for n in ("label_names", "tokens")
            )
            return cls(
                *(f.get_tensor(n) for n in _TENSORS),
                names,
                tokens,
                json.loads(f.metadata()["quality"]),
            )


_TENSORS = ("token_embeddings", "label_embeddings", "token_bias", "label_bias")


def pretrain(
    counts: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    *,
    label_names: list[str],
    tokens: list[str],
    dim: int = DIM,
    seed: int = 0,
    progress: bool = True,
) -> StaticL2R:
    """Measure on held-out tokens, then train on all.

    The model that is measured has seen no grade of a held-out token; the one returned is made in
    the same way from all grades.

    Args:
        counts: (n, V) token counts of the training rows.
        labels: (n, L) of the same rows.
        label_names, tokens: the L labels and V tokens, kept with the model.
        dim: d.
        seed: of directions, held-out tokens and lists.
        progress: show a bar.

    Returns:
        The model. Its `quality` holds nDCG@CUT before ("start") and after training ("trained") and
        of a random order ("chance"), and the sizes.

    Raises:
        ValueError: dim or seed is no such number, or no training document has a token.
    """
    check_whole("dim", dim)
    check_seed(seed)
    if not counts.nnz:
        raise ValueError("no training document has a token; check the texts and the tokenizer")
    teacher = mig.teach(counts, labels, variant="jaccard", top_k=TEACHER_TOKENS, relevance="grade")
    grades = teacher.relevance.astype(np.float32)
    feature = frequency(counts)
    seen = column_counts(presence(counts)) > 0
    # the measured model, on a part of the tokens
    quality = _measured(counts, feature, grades, seen, dim, seed, progress)
    # the model itself, on all tokens
    embeddings = embed(counts, grades, seen, dim=dim, seed=seed)
    start = begin(embeddings, grades, seen)
    label, bias = _train(
        embeddings, feature, start, grades, seen, seed, progress, "static L2R, all tokens"
    )
    # a token of no training document is never planted
    token_bias = torch.where(torch.from_numpy(seen), bias * feature, float("-inf"))
    model = StaticL2R(
        embeddings, label, token_bias, torch.zeros(len(label)), label_names, tokens, quality
    )
    return replace(model, label_bias=zero_points(model, grades, PLANTED_TOKENS))


def _measured(counts, feature, grades, seen, dim: int, seed: int, progress: bool) -> dict:
    """Quality, on held-out tokens, of a model that is trained on the others."""
    held_out = hold_out(seen, seed)
    shown = seen & ~held_out
    embeddings = embed(counts, grades, shown, dim=dim, seed=seed)
    start = begin(embeddings, grades, shown)
    trained = _train(
        embeddings, feature, start, grades, shown, seed, progress, "static L2R, shown tokens"
    )
    return {
        "start": held_out_ndcg(embeddings, feature, *start, grades, held_out),
        "trained": held_out_ndcg(embeddings, feature, *trained, grades, held_out),
        "chance": chance_ndcg(grades, held_out, seed),
        "held_out_tokens": int(held_out.sum()),
        "shown_tokens": int(shown.sum()),
        "dim": embeddings.shape[1],
        "labels": int(np.count_nonzero(np.diff(grades[:, held_out].indptr))),
    }


def hold_out(seen: np.ndarray, seed: int = 0) -> np.ndarray:
    """(V,) bool: a share HELD_OUT of the tokens `seen` (V,) in training, drawn token by token."""
    drawn = np.random.default_rng(seed).random(len(seen)) < HELD_OUT
    # of very few tokens all may be drawn, and the measured model needs one
    return drawn & seen if (seen & ~drawn).any() else np.zeros_like(seen)


def begin(embeddings, grades: sparse.csr_matrix, shown: np.ndarray):
    """F (L, d) and u = 0 before training: ridge regression of the shown tokens' grades (L, V) on E,
    each label's scores scaled to standard deviation SPREAD.
    """
    e = embeddings[torch.from_numpy(shown)].numpy()
    gram = (e.T @ e).astype(np.float64)
    ridge = RIDGE * np.trace(gram) / len(gram) + 1e-8
    target = (grades[:, shown] @ e).T
    label = torch.from_numpy(
        np.linalg.solve(gram + ridge * np.eye(len(gram)), target).T.astype(np.float32)
    )
    # a single token has no spread
    covariance = torch.cov(torch.from_numpy(e).T, correction=min(len(e) - 1, 1))
    covariance = covariance.reshape(len(gram), len(gram))
    deviation = ((label @ covariance) * label).sum(1).clamp(min=0).sqrt()
    scale = torch.where(deviation > 1e-8, SPREAD / deviation.clamp(min=1e-8), 0.0)
    return label * scale[:, None], torch.zeros(())


def _train(embeddings, feature, start, grades, shown, seed: int, progress: bool, what: str):
    """F (L, d) and u after training on lists of shown tokens; b_t = u feature_t.

    E is not trained, so that tokens that are not shown keep their places in it.
    """
    tokens = torch.from_numpy(np.flatnonzero(shown))
    e, x, shown_grades = embeddings[tokens], feature[tokens], grades[:, shown].tocsr()
    label, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.Adam([label, bias], lr=LEARNING_RATE)
    taught = np.flatnonzero(np.diff(shown_grades.indptr))
    rng = np.random.default_rng(seed)
    steps = EPOCHS * -(-len(taught) // LABELS_PER_BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, max(steps, 1))
    bar = tqdm(total=steps, desc=what, unit="step", disable=not progress)
    for _ in range(EPOCHS):
        order = rng.permutation(taught)
        for first in range(0, len(order), LABELS_PER_BATCH):
            rows = order[first : first + LABELS_PER_BATCH]
            loss = _loss(rows, label, bias, e, x, shown_grades, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    return label.detach(), bias.detach()


def _loss(rows, label, bias, e, x, grades, rng) -> torch.Tensor:
    """LambdaRank loss of a batch of labels."""
    f = label[torch.from_numpy(rows)]
    with torch.no_grad():
        ranked = f @ e.T + bias * x  # (R, V)
    graded = torch.from_numpy(grades[rows].toarray())
    columns = lists(ranked, graded, rng)  # (R, T)
    scores = torch.einsum("rd,rtd->rt", f, e[columns]) + bias * x[columns]
    relevance = TOP_GRADE * graded.gather(1, columns)
    return ranking.lambdarank(scores, relevance, sigma=SIGMA, gains="exponential", k=CUT)


def lists(ranked, graded, rng) -> torch.Tensor:
    """(R, T) distinct tokens of each label: its best grades, then those that the model ranks
    highest, then random ones.

    ranked: (R, V) the model's scores. graded: (R, V) grades.
    """
    chance = torch.from_numpy(rng.random(ranked.shape, dtype=np.float32))
    # one key orders the three kinds: grades above 10, mined tokens at 5, random ones below 1
    key = torch.where(graded > 0, 0.0, chance)
    best = ranked.masked_fill(graded > 0, float("-inf")).topk(min(MINED, ranked.shape[1]), dim=1)
    key.scatter_(
        1, best.indices, torch.where(best.values.isinf(), key.gather(1, best.indices), 5.0 + 1e-3)
    )
    top = graded.topk(min(GRADED, graded.shape[1]), dim=1)
    key.scatter_add_(1, top.indices, torch.where(top.values > 0, 10.0 + top.values, 0.0))
    return key.topk(min(GRADED + MINED + NEGATIVES, ranked.shape[1]), dim=1).indices


def held_out_ndcg(
    embeddings, feature, label, bias, grades, held_out: np.ndarray
) -> dict[str, float]:
    """Mean nDCG@CUT of every label's ranking of all held-out tokens; labels without a graded one
    are left out.

    "ndcg_exponential" has the gains of training, 2^grade - 1, "ndcg_linear" the grades themselves.
    """
    where = torch.from_numpy(np.flatnonzero(held_out))
    e, x = embeddings[where], feature[where]
    return _ndcg(grades[:, held_out].tocsr(), lambda a, b: label[a:b] @ e.T + bias * x)


def chance_ndcg(grades, held_out: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The same for a random order."""
    graded = grades[:, held_out].tocsr()
    rng = np.random.default_rng(seed)
    return _ndcg(graded, lambda a, b: torch.from_numpy(rng.random((b - a, graded.shape[1]))))


def _ndcg(graded: sparse.csr_matrix, scores) -> dict[str, float]:
    """Mean nDCG@CUT against graded (L, tokens); scores(a, b) gives those of labels a to b - 1."""
    by_gain = {"exponential": [], "linear": []}
    for a in range(0, graded.shape[0], BLOCK):
        b = min(a + BLOCK, graded.shape[0])
        relevance = torch.from_numpy(graded[a:b].toarray())
        s = scores(a, b)
        for gains, scale in (("exponential", TOP_GRADE), ("linear", 1.0)):
            by_gain[gains].append(ranking.ndcg(s, scale * relevance, k=CUT, gains=gains))
    return {
        f"ndcg_{name}": round(float(torch.cat(values).nanmean()), 4)
        for name, values in by_gain.items()
    }


def zero_points(model: StaticL2R, grades: sparse.csr_matrix, keep: int) -> torch.Tensor:
    """(L,) c that puts each label's (K+1)-th best token at zero, K `keep`; minus infinity for a
    label without a teacher.
    """
    points, taught = [], torch.from_numpy(np.diff(grades.indptr) > 0)
    # where the vocabulary is smaller than K, all tokens but the last are planted
    place = min(keep + 1, int(model.token_bias.isfinite().sum()))
    for a in range(0, len(grades.indptr) - 1, BLOCK):
        s = model.scores(a, min(a + BLOCK, grades.shape[0]))
        points.append(-s.topk(place, dim=1).values[:, -1])
    return torch.where(taught, torch.cat(points), float("-inf"))
