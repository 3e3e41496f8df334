"""Learning to rank tokens: pretrain label queries from the teacher's graded relevance, by gradient
or in closed form; docs/method.md, "Learning to rank".

Every trainer takes the hidden states of training documents and the teacher, and gives label queries
Q (L, D). `Planted` is one safetensors file with Q, the labels and the tokens it was made for; both
are checked when it meets a model. `lookup` has no model of this kind: the teacher itself is planted
as a bias. Nothing here reads dev or test labels.
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
from plantlib.teacher.crossfit import Withheld
from plantlib.teacher.mig import Teacher
from plantlib.teacher.phrase_cells import OwnCells
from plantlib.utils.checks import check_fields
from plantlib.utils.progress import tqdm
from plantlib.utils.tensors import check_tensors, save_tensors

TRAINERS = ("approx_ndcg", "lambdarank", "listnet", "closed_form")


# of the gradient trainers: Adam's rate, which falls to a twentieth, and the lists of one step
LEARNING_RATE = 1e-2
DOCUMENTS_PER_BATCH = 16
LABELS_PER_DOCUMENT = 32
LIST_SIZE = 128
# of `closed_form`, times the mean squared feature: enough to invert, too little to bias
RIDGE = 1e-3
# standard deviation over tokens of the planted attention scores; 2 left queries too stiff to learn
SPREAD = 0.7


@dataclass(frozen=True)
class L2RConfig:
    """The option of the gradient trainers: passes over the training documents."""

    epochs: int = 3

    def __post_init__(self):
        check_fields(self)
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}; give at least 1")


@dataclass(frozen=True, eq=False)
class Planted:
    """Pretrained label queries.

    label_queries: (L, D).
    label_names, tokens: what rows of Q and the teacher's columns stand for.
    trainer: one of TRAINERS.
    quality: "ndcg@25" of the teacher's relevance on held-out documents.
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
        tensors = {"label_queries": self.label_queries.contiguous()}
        for name in ("label_names", "tokens"):
            tensors[name] = torch.frombuffer(
                bytearray(json.dumps(getattr(self, name)).encode()), dtype=torch.uint8
            )
        about = {"trainer": self.trainer, "quality": json.dumps(self.quality)}
        return save_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> Planted:
        """Read what `save` wrote; Damaged for a file that changed since."""
        from safetensors import safe_open

        with safe_open(check_tensors(path), "pt") as f:
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
    """Raise ValueError unless two vocabularies have the same names in the same order.

    what: "labels" or "tokens", for the message.
    """
    if planted == wanted:
        return
    pairs = enumerate(zip(planted, wanted, strict=False))
    shorter = min(len(planted), len(wanted))
    first = next((i for i, (a, b) in pairs if a != b), shorter)
    ours, theirs = (
        repr(names[first]) if first < len(names) else "nothing" for names in (planted, wanted)
    )
    raise ValueError(
        f"{what} differ: the planted file has {len(planted)}, this corpus {len(wanted)}; first"
        f" difference at {first}: {ours} against {theirs}; pretrain again on this corpus"
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
    withheld: Withheld | OwnCells | None = None,
    config: L2RConfig = L2RConfig(),
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Planted:
    """Train label queries and measure how well they rank the tokens of other documents.

    Args:
        trainer: one of TRAINERS.
        features: hidden states of N documents.
        rows: training documents.
        teacher: relevance G (L, V).
        label_names, tokens: the L labels and V tokens, kept with the queries.
        labels: Y (N, L), from which a document's own labels are taken first; only `rows` are read.
        held_out: documents for the quality; None measures nothing.
        withheld: what the teacher loses for each of `rows` when it is not counted, and cells of
            phrases; None trains on the teacher as it is.
        config: options of the gradient trainers.
        seed: of the random queries, the lists and the documents that are measured.
        device: where the gradient trainers run; what is drawn is the same everywhere.
        progress: show a bar.

    Returns:
        The queries, on the CPU, with their vocabularies and quality.

    Raises:
        ValueError: the trainer is not known.
    """
    if trainer not in TRAINERS:
        raise ValueError(f"trainer={trainer!r} is not known; use one of {', '.join(TRAINERS)}")
    if trainer == "closed_form":
        queries = closed_form(features, rows, teacher, progress, withheld)
    else:
        queries = _by_gradient(
            trainer, features, rows, teacher, labels, withheld, config, seed, device, progress
        )
    queries = rescale(queries, features, rows, seed)
    quality = {}
    if held_out is not None:
        quality["ndcg@25"] = teacher_ndcg(queries, features, held_out, teacher, seed=seed)
    return Planted(queries, label_names, tokens, trainer, quality)


def closed_form(
    features: Features,
    rows: np.ndarray,
    teacher: Teacher,
    progress: bool = True,
    withheld: Withheld | OwnCells | None = None,
) -> torch.Tensor:
    """Ridge regression of G on centred hidden states in one pass: Q' = (H'H + lambda I)^-1 (S'G).

    Row v of S (V, D) sums the centred states of token v's occurrences, so no (tokens, L) target is
    ever built.

    Args:
        features: hidden states of N documents.
        rows: training documents.
        teacher: relevance G (L, V).
        progress: show a bar for 5,000 documents or more.
        withheld: as in `pretrain`.

    Returns:
        (L, D) queries.
    """
    dim, vocabulary = features.hidden_size, teacher.relevance.shape[1]
    # sums over tokens: H'H, H'1, the states of each token and its occurrences
    gram = np.zeros((dim, dim))
    total = np.zeros(dim)
    sums = np.zeros((vocabulary, dim), np.float32)
    occurrences = np.zeros(vocabulary)
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
    # centre what was summed, then solve
    n = max(occurrences.sum(), 1.0)
    mean = total / n
    gram -= n * np.outer(mean, mean)
    # (L, D) = G'S, centred
    target = (teacher.relevance @ sums) - (teacher.relevance @ occurrences)[:, None] * mean
    if withheld is not None:
        target += _withheld_sums(features, rows, withheld, teacher.num_labels, mean)
    ridge = RIDGE * np.trace(gram) / dim + 1e-8
    return torch.from_numpy(
        np.linalg.solve(gram + ridge * np.eye(dim), target.T).T.astype(np.float32)
    )


def _withheld_sums(
    features: Features,
    rows: np.ndarray,
    withheld: Withheld | OwnCells,
    num_labels: int,
    mean: np.ndarray,
) -> np.ndarray:
    """(L, D): what the withheld relevance adds to the target of `closed_form`; mean (D,)."""
    total = np.zeros((num_labels, len(mean)))
    for i, row in enumerate(rows):
        cells = withheld.cells_of(i, ids := features.tokens[row])
        values, place = cells["cell_values"], (cells["cell_labels"], cells["cell_positions"])
        if len(values):
            centred = features.documents([row]) - mean
            total += sparse.csr_matrix((values, place), (num_labels, len(ids))) @ centred
    return total


def rescale(
    queries: torch.Tensor, features: Features, rows: np.ndarray, seed: int = 0
) -> torch.Tensor:
    """Scale each query (L, D) so that its scores over tokens have standard deviation SPREAD.

    Rankings stay; the softmax gets a scale. It is measured on up to 200 documents of `rows`, drawn
    by `seed`. Returns (L, D).
    """
    sample = np.random.default_rng(seed).permutation(rows)[:200]
    h = torch.from_numpy(features.documents(sample))
    covariance = torch.cov(h.T)  # (D, D)
    deviation = ((queries @ covariance) * queries).sum(1).clamp(min=0).sqrt()
    scale = torch.where(deviation > 1e-8, SPREAD / deviation.clamp(min=1e-8), 0.0)
    return queries * scale[:, None]


def _lists(
    i: int,
    features: Features,
    relevance: sparse.csr_matrix,
    by_token: sparse.csr_matrix,
    gold: np.ndarray,
    rng: np.random.Generator,
    own: dict[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """The lists drawn from document i, None where no label has a relevant token in it.

    relevance is G (L, V), by_token its transpose, gold the document's labels, own what is withheld
    from it (`Withheld.cells`). Returns labels (n,), and (n, LIST_SIZE) each: token positions,
    relevance, mask.
    """
    ids = features.tokens[i]
    if len(ids) == 0:
        return None
    # labels with a relevant token here, the document's own ones first
    candidates = np.unique(by_token[np.unique(ids)].indices)
    candidates = candidates[np.diff(relevance.indptr)[candidates] > 0]
    if own is not None:
        raised = own["cell_labels"][own["cell_values"] > 0]
        candidates = np.union1d(candidates, raised)
    gold = np.intersect1d(gold, candidates)
    others = np.setdiff1d(candidates, gold)
    rng.shuffle(others)
    labels = np.concatenate([rng.permutation(gold), others])[:LABELS_PER_DOCUMENT]
    # relevant tokens first, the rest of each list at random
    graded = relevance[labels][:, ids].toarray().astype(np.float32)  # (n, T) of this document alone
    if own is not None:
        graded += _change(own, labels, relevance.shape[0], len(ids))
        relevant = (graded > 0).any(1)
        labels, graded = labels[relevant], graded[relevant]
    if len(labels) == 0:
        return None
    size = min(LIST_SIZE, len(ids))
    keys = rng.random(graded.shape) + (graded > 0)
    positions = np.argpartition(-keys, size - 1, axis=1)[:, :size]
    chosen = np.take_along_axis(graded, positions, 1)
    # fill up to LIST_SIZE
    pad = ((0, 0), (0, LIST_SIZE - size))
    mask = np.pad(np.ones_like(chosen, bool), pad)
    return labels, np.pad(positions, pad), np.pad(chosen, pad), mask


def _change(own: dict[str, np.ndarray], labels: np.ndarray, num_labels: int, size: int):
    """(n, T) float32 of what is withheld of labels (n,) from a document of `size` tokens."""
    place = own["cell_labels"], own["cell_positions"]
    table = sparse.csr_matrix((own["cell_values"], place), (num_labels, size))
    return table[labels].toarray()


def _by_gradient(
    trainer, features, rows, teacher, labels, withheld, config, seed: int, device, progress
) -> torch.Tensor:
    """(L, D) by Adam on one of the listwise losses; each step takes the lists of a batch of
    documents.
    """
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(teacher.num_labels, features.hidden_size, generator=generator) * 0.02
    queries = queries.to(device).requires_grad_()
    optimizer = torch.optim.Adam([queries], lr=LEARNING_RATE)
    rng = np.random.default_rng(seed)
    relevance = teacher.relevance
    by_token = relevance.T.tocsr()
    place_of = {int(row): i for i, row in enumerate(rows)}

    def own(i: int) -> dict[str, np.ndarray] | None:
        if withheld is None:
            return None
        return withheld.cells_of(place_of[int(i)], features.tokens[i])

    steps = config.epochs * -(-len(rows) // DOCUMENTS_PER_BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    bar = tqdm(total=steps, desc=f"L2R {trainer}", unit="step", disable=not progress)
    for _ in range(config.epochs):
        order = rng.permutation(rows)
        for begin in range(0, len(order), DOCUMENTS_PER_BATCH):
            batch = order[begin : begin + DOCUMENTS_PER_BATCH]
            drawn = [
                (i, _lists(i, features, relevance, by_token, labels[i].indices, rng, own(i)))
                for i in batch
            ]
            drawn = [(i, lists) for i, lists in drawn if lists is not None]
            loss = _batch_loss(trainer, queries, features, drawn)
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            schedule.step()
            bar.update()
    bar.close()
    # a label without a teacher learnt nothing: its random query must not be scaled up and planted
    return queries.detach().cpu() * torch.from_numpy(teacher.taught)[:, None]


def _batch_loss(trainer: str, queries, features: Features, drawn) -> torch.Tensor | None:
    """Loss of the lists (document, `_lists` of it) of a batch; None without any."""
    if not drawn:
        return None
    scores = []
    for i, (labels, positions, _, _) in drawn:
        h = torch.from_numpy(features.document(i)).to(queries.device)
        s = queries[torch.from_numpy(labels).to(queries.device)] @ h.T  # (n, T)
        scores.append(s.gather(1, torch.from_numpy(positions).to(queries.device)))
    relevance, masks = (
        torch.from_numpy(np.concatenate([lists[part] for _, lists in drawn])).to(queries.device)
        for part in (2, 3)
    )
    return ranking.LOSSES[trainer](torch.cat(scores), relevance, masks)


def teacher_ndcg(
    queries, features: Features, rows: np.ndarray, teacher: Teacher, k: int = 25, seed: int = 0
) -> float:
    """Mean nDCG@k of the queries' token ranking against G in up to 100 of the documents `rows`.

    Args:
        queries: (L, D).
        features: hidden states of N documents.
        rows: documents that the queries have not been trained on.
        teacher: relevance G (L, V).
        k: cut.
        seed: draws the documents and up to LABELS_PER_DOCUMENT labels of each.

    Returns:
        A fraction; nan where no document has a token of any label.
    """
    rng = np.random.default_rng(seed)
    by_token = teacher.relevance.T.tocsr()
    values = []
    for i in rng.permutation(rows)[:100]:
        ids = features.tokens[i]
        candidates = np.unique(by_token[np.unique(ids)].indices) if len(ids) else np.zeros(0, int)
        if len(candidates) == 0:
            continue
        labels = rng.permutation(candidates)[:LABELS_PER_DOCUMENT]
        graded = torch.from_numpy(teacher.relevance[labels][:, ids].toarray().astype(np.float32))
        scores = queries[torch.from_numpy(labels).long()] @ torch.from_numpy(features.document(i)).T
        values.append(ranking.ndcg(scores, graded, k=k))
    return float(torch.cat(values).nanmean()) if values else float("nan")
