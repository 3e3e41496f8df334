"""L2R: pretrain label queries from the teacher's graded relevance, by gradient or in closed form;
plant them.

Realises METHOD.md section 3. Every trainer takes the hidden states of training documents and the
teacher, and ends in label queries Q (L, D); `Planted` carries Q with the label and token
vocabularies inside one safetensors file, checked when it meets a model. `lookup` has no model: the
teacher itself is planted as a bias. Nothing here sees dev or test labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from plantlib.backbones.features import Features
from plantlib.planting import ranking
from plantlib.teacher.mig import Teacher
from plantlib.utils.io import atomic_path
from plantlib.utils.progress import tqdm

TRAINERS = ("approx_ndcg", "lambdarank", "listnet", "closed_form")


@dataclass(frozen=True)
class L2RConfig:
    """Options of the trainers; the gradient ones use the lists, `closed_form` uses ridge alone."""

    epochs: int = 3
    learning_rate: float = 1e-2
    documents_a_batch: int = 16
    labels_a_document: int = 32
    list_size: int = 128
    ridge: float = 1e-3  # times the mean squared feature
    # standard deviation over tokens of the planted attention scores; 2 left queries too stiff to
    # learn
    spread: float = 0.7
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "documents_a_batch", "labels_a_document", "list_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")


@dataclass(frozen=True, eq=False)
class Planted:
    """Pretrained label queries (L, D) with the vocabularies they were made for and how well they
    learnt.
    """

    label_queries: torch.Tensor
    label_names: list[str]
    tokens: list[str]
    trainer: str
    quality: dict[str, float] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write `planted.safetensors`: queries, both vocabularies (as bytes of JSON) and the
        quality.
        """
        from safetensors.torch import save_file

        tensors = {"label_queries": self.label_queries.contiguous()}
        for name in ("label_names", "tokens"):
            tensors[name] = torch.frombuffer(
                bytearray(json.dumps(getattr(self, name)).encode()), dtype=torch.uint8
            )
        with atomic_path(path) as temporary:
            save_file(
                tensors,
                temporary,
                metadata={"trainer": self.trainer, "quality": json.dumps(self.quality)},
            )
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Planted:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, "pt") as f:
            names, tokens = (
                json.loads(bytes(f.get_tensor(n).numpy()).decode())
                for n in ("label_names", "tokens")
            )
            about = f.metadata()
            return cls(
                f.get_tensor("label_queries"),
                names,
                tokens,
                about["trainer"],
                json.loads(about["quality"]),
            )

    def check(self, label_names: list[str], tokens: list[str]) -> None:
        """Raise ValueError naming both sizes and the first difference when the vocabularies are not
        these.
        """
        check_same("labels", self.label_names, label_names)
        check_same("tokens", self.tokens, tokens)


def check_same(what: str, planted: list[str], wanted: list[str]) -> None:
    """Order and names of two vocabularies must agree."""
    if planted == wanted:
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(planted, wanted, strict=False)) if a != b),
        min(len(planted), len(wanted)),
    )
    name = lambda names: repr(names[first]) if first < len(names) else "nothing"  # noqa: E731
    raise ValueError(
        f"{what} differ: the planted file has {len(planted)}, this corpus {len(wanted)}; first"
        f" difference at {first}: {name(planted)} against {name(wanted)}; pretrain again on this"
        " corpus"
    )


def pretrain(
    trainer: str,
    features: Features,
    rows: np.ndarray,
    teacher: Teacher,
    *,
    label_names: list[str],
    tokens: list[str],
    labels: sparse.csr_matrix,
    held_out: np.ndarray | None = None,
    config: L2RConfig = L2RConfig(),
    progress: bool = True,
) -> Planted:
    """Train label queries on the documents `rows` and report teacher nDCG@25 on `held_out`
    documents.

    labels Y (N, L) chooses lists worth learning (a document's own labels first); only its training
    rows are read.
    """
    if trainer not in TRAINERS:
        raise ValueError(f"trainer={trainer!r} is not known; use one of {', '.join(TRAINERS)}")
    if trainer == "closed_form":
        queries = closed_form(features, rows, teacher, config, progress)
    else:
        queries = _by_gradient(trainer, features, rows, teacher, labels, config, progress)
    queries = rescale(queries, features, rows, config)
    quality = (
        {}
        if held_out is None
        else {"ndcg@25": teacher_ndcg(queries, features, held_out, teacher, config)}
    )
    return Planted(queries, label_names, tokens, trainer, quality)


def closed_form(
    features: Features,
    rows: np.ndarray,
    teacher: Teacher,
    config: L2RConfig = L2RConfig(),
    progress=True,
) -> torch.Tensor:
    """Ridge regression of G on centred hidden states in one pass: Q' = (H'H + lambda I)^-1 (S'G).

    S_v sums the centred states of token v's occurrences: (V, D), so no (tokens, L) target is ever
    built.
    """
    dim, vocabulary = features.hidden_size, teacher.relevance.shape[1]
    gram, total = np.zeros((dim, dim)), np.zeros(dim)
    sums, occurrences = np.zeros((vocabulary, dim), np.float32), np.zeros(vocabulary)
    for batch in tqdm(
        np.array_split(rows, max(len(rows) // 64, 1)),
        desc="closed form",
        disable=not progress or len(rows) < 5000,
    ):
        h, ids = features.documents(batch), features.tokens.select(batch).flat
        gram += (h.T @ h).astype(np.float64)
        total += h.sum(0, dtype=np.float64)
        one_hot = sparse.csr_matrix(
            (np.ones(len(ids), np.float32), (ids, np.arange(len(ids)))),
            shape=(vocabulary, len(ids)),
        )
        sums += one_hot @ h
        occurrences += np.bincount(ids, minlength=vocabulary)
    n = max(occurrences.sum(), 1.0)
    mean = total / n
    gram -= n * np.outer(mean, mean)
    # (L, D) = G'S, centred
    target = (teacher.relevance @ sums) - (teacher.relevance @ occurrences)[:, None] * mean
    ridge = config.ridge * np.trace(gram) / dim + 1e-8
    return torch.from_numpy(
        np.linalg.solve(gram + ridge * np.eye(dim), target.T).T.astype(np.float32)
    )


def rescale(
    queries: torch.Tensor, features: Features, rows: np.ndarray, config: L2RConfig
) -> torch.Tensor:
    """Scale each query so that its scores over tokens have standard deviation `spread`: rankings
    keep, softmax gets a scale.
    """
    sample = np.random.default_rng(config.seed).permutation(rows)[:200]
    h = torch.from_numpy(features.documents(sample))
    covariance = torch.cov(h.T)  # (D, D)
    deviation = ((queries @ covariance) * queries).sum(1).clamp(min=0).sqrt()
    scale = torch.where(deviation > 1e-8, config.spread / deviation.clamp(min=1e-8), 0.0)
    return queries * scale[:, None]


def _lists(
    i: int,
    features: Features,
    relevance: sparse.csr_matrix,
    by_token: sparse.csr_matrix,
    own,
    rng,
    config: L2RConfig,
):
    """Labels (n,) and token positions (n, list_size), relevance and mask of the lists drawn from
    document i.
    """
    ids = features.tokens[i]
    if len(ids) == 0:
        return None
    candidates = np.unique(by_token[np.unique(ids)].indices)
    candidates = candidates[np.diff(relevance.indptr)[candidates] > 0]
    own = np.intersect1d(own, candidates)
    others = np.setdiff1d(candidates, own)
    rng.shuffle(others)
    labels = np.concatenate([rng.permutation(own), others])[: config.labels_a_document]
    if len(labels) == 0:
        return None
    graded = relevance[labels][:, ids].toarray().astype(np.float32)  # (n, T) of this document alone
    size = min(config.list_size, len(ids))
    # relevant tokens first, the rest of the list by chance
    keys = rng.random(graded.shape) + (graded > 0)
    positions = np.argpartition(-keys, size - 1, axis=1)[:, :size]
    chosen = np.take_along_axis(graded, positions, 1)
    pad = config.list_size - size
    mask = np.pad(np.ones_like(chosen, bool), ((0, 0), (0, pad)))
    return labels, np.pad(positions, ((0, 0), (0, pad))), np.pad(chosen, ((0, 0), (0, pad))), mask


def _by_gradient(
    trainer, features, rows, teacher, labels, config: L2RConfig, progress
) -> torch.Tensor:
    """Adam on one of the listwise losses; each step takes lists from a batch of documents."""
    generator = torch.Generator().manual_seed(config.seed)
    queries = torch.randn(teacher.num_labels, features.hidden_size, generator=generator) * 0.02
    queries.requires_grad_()
    optimizer = torch.optim.Adam([queries], lr=config.learning_rate)
    rng, by_token = np.random.default_rng(config.seed), teacher.relevance.T.tocsr()
    steps = config.epochs * -(-len(rows) // config.documents_a_batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    bar = tqdm(total=steps, desc=f"L2R {trainer}", unit="step", disable=not progress)
    for _ in range(config.epochs):
        order = rng.permutation(rows)
        for begin in range(0, len(order), config.documents_a_batch):
            batch = order[begin : begin + config.documents_a_batch]
            drawn = [
                (
                    i,
                    _lists(
                        i, features, teacher.relevance, by_token, labels[i].indices, rng, config
                    ),
                )
                for i in batch
            ]
            loss = _batch_loss(trainer, queries, features, [d for d in drawn if d[1] is not None])
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            schedule.step()
            bar.update()
    bar.close()
    # a label without a teacher learnt nothing: its random query must not be scaled up and planted
    return queries.detach() * torch.from_numpy(teacher.taught)[:, None]


def _batch_loss(trainer, queries, features, drawn):
    if not drawn:
        return None
    scores, relevance, masks = [], [], []
    for i, (labels, positions, graded, mask) in drawn:
        h = torch.from_numpy(features.document(i))
        s = queries[torch.from_numpy(labels)] @ h.T  # (n, T)
        scores.append(s.gather(1, torch.from_numpy(positions)))
        relevance.append(torch.from_numpy(graded))
        masks.append(torch.from_numpy(mask))
    return ranking.LOSSES[trainer](torch.cat(scores), torch.cat(relevance), torch.cat(masks))


def teacher_ndcg(
    queries,
    features: Features,
    rows: np.ndarray,
    teacher: Teacher,
    config: L2RConfig = L2RConfig(),
    k: int = 25,
) -> float:
    """Mean nDCG@k of the queries' token ranking against G in documents the queries have not seen."""
    rng, by_token = np.random.default_rng(config.seed), teacher.relevance.T.tocsr()
    values = []
    for i in rng.permutation(rows)[:100]:
        ids = features.tokens[i]
        candidates = np.unique(by_token[np.unique(ids)].indices) if len(ids) else np.zeros(0, int)
        if len(candidates) == 0:
            continue
        labels = rng.permutation(candidates)[: config.labels_a_document]
        graded = torch.from_numpy(teacher.relevance[labels][:, ids].toarray().astype(np.float32))
        scores = queries[torch.from_numpy(labels).long()] @ torch.from_numpy(features.document(i)).T
        values.append(ranking.ndcg(scores, graded, k=k))
    return float(torch.cat(values).nanmean()) if values else float("nan")
