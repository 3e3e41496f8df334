"""Training and prediction of a decoder on candidates: data, epochs that survive a kill, and the k
best labels of a document; docs/method.md, "Candidate labels".

Candidates come from a ranking that knows no label of the document: the teachers' (MI and J in
turns), or the linear score's, where training documents are ranked and scored by the table that has
not seen them. The training loop is here and not transformers' Trainer, which knows neither the two
optimisers of sparse rows nor lists of negatives drawn per epoch. The decoder is in
`candidates.decoder`, a whole run with its record in `candidates.runs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from scipy import sparse

from plantlib.candidates import lists as candidates
from plantlib.candidates.decoder import CandidateConfig, CandidateDecoder, candidate_bce
from plantlib.data.tokens import tfidf
from plantlib.kernels import Cells
from plantlib.linear.score import LinearScore
from plantlib.metrics.buckets import EDGES, Edges, frequency_buckets
from plantlib.metrics.documents import BUCKET_DEPTH, Scores
from plantlib.metrics.topk import TopK, restrict
from plantlib.planting.decoder import Packed
from plantlib.teacher.mig import Teacher
from plantlib.utils.progress import tqdm
from plantlib.utils.tensors import check_tensors, save_tensors

BLOCK = 128  # documents that are listed at a time
CHOICE = 2  # times width: depth of the list that negatives are drawn from
BATCH_SIZE = 16  # documents, as without candidates
LEARNING_RATE = 1e-2  # as without candidates


@dataclass(frozen=True, eq=False)
class CandidateData:
    """N documents as the decoder on candidates reads them.

    packed: from rows to their hidden states.
    relevance: G (L, V) csr, the planted cells; None plants nothing.
    ranked: (N, CHOICE * width) label ids, best first, -1 where there are no more.
    scores: from rows (b,) and label ids (b, C) to the (b, C) scores that are added to the logits;
    None adds nothing.
    unlisted: whether gold labels outside the first `width` of a document's list are trained.
    own: from training rows (b,) and their documents to the cells that these read in training beside
    those of `relevance`.
    """

    packed: Callable[[np.ndarray], Packed]
    relevance: sparse.csr_matrix | None
    ranked: np.ndarray
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    unlisted: bool = True
    own: Callable[[np.ndarray, Packed], Cells | None] | None = None

    @classmethod
    def of_teachers(
        cls,
        packed,
        counts: sparse.csr_matrix,
        train: np.ndarray,
        num_labels: int,
        taught: tuple[Teacher, Teacher],
        relevance: sparse.csr_matrix | None,
        config: CandidateConfig,
        progress: bool = True,
    ) -> CandidateData:
        """Documents ranked by MI and J in turns and scored by MI.

        Args:
            packed: see the class.
            counts: (N, V) token counts.
            train: (n,) training rows.
            num_labels: L.
            taught: the teachers MI and J of the training rows.
            relevance: G (L, V) csr to plant, None plants nothing.
            config: width of the lists.
            progress: show a bar.

        Raises:
            ValueError: the teachers are of another label space.
        """
        weights, depth, first = tfidf(counts, train), CHOICE * config.width, taught[0]
        if num_labels != first.num_labels:
            raise ValueError(
                f"{num_labels} labels and a teacher of {first.num_labels}; pass one label space"
            )
        ids = [candidates.Ranker.of(t.scores).rank(weights, depth, progress)[0] for t in taught]
        ranked = candidates.interleaved(*ids, depth)
        # scores over their standard deviation, measured on 512 training documents
        sample = candidates.pair_scores(first.scores, weights[train[:512]], ranked[train[:512]])
        above = sample[sample > 0]
        spread = float(above.std()) if above.size and above.std() > 0 else 1.0

        def scores(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
            return candidates.pair_scores(first.scores, weights[rows], ids) / spread

        return cls(packed, relevance, ranked, scores)

    @classmethod
    def of_linear(
        cls,
        packed,
        linear: LinearScore,
        relevance: sparse.csr_matrix | None,
        config: CandidateConfig,
        progress: bool = True,
    ) -> CandidateData:
        """Documents ranked and scored by the linear score over words.

        No (b, L) scores are made: of a document only labels that share a word with it are summed. A
        gold label outside a document's candidates is left out of training: the score knows next to
        nothing of it, often because the folds it came from held no document of the label, and in
        trials its low score taught the decoder to trust the other scores less.

        Args:
            packed: see the class.
            linear: the score, fitted on the training rows of N documents.
            relevance: G (L, V) csr to plant, None plants nothing.
            config: width of the lists.
            progress: show a bar.
        """
        documents = linear.tfidf.shape[0]
        depth = min(CHOICE * config.width, len(linear.tables[0].intercept))
        ranked = np.empty((documents, depth), np.int32)
        listed = np.empty((documents, depth), np.float32)
        with tqdm(total=documents, desc="candidates", unit="doc", disable=not progress) as bar:
            for k, table in enumerate(linear.tables):
                of_part = np.flatnonzero(linear.part == k)
                by_word = table.cells.T.tocsr()
                scale, shift = linear.lines[k]
                for begin in range(0, len(of_part), BLOCK):
                    rows = of_part[begin : begin + BLOCK]
                    sums = sparse.csr_matrix(linear.tfidf[rows] @ by_word, dtype=np.float32)
                    ranked[rows], listed[rows] = candidates.best_of_sums(
                        sums, table.intercept, scale, shift, depth
                    )
                    bar.update(len(rows))

        def scores(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
            return candidates.listed_scores(ranked[rows], listed[rows], ids)

        return cls(packed, relevance, ranked, scores, unlisted=False)

    def logits(
        self, decoder: CandidateDecoder, rows: np.ndarray, ids: np.ndarray, training: bool = False
    ) -> torch.Tensor:
        """(b, C) logits of documents `rows` (b,) on labels ids (b, C), on the decoder's device.

        training: they are training documents, which read `own` cells.
        """
        device = decoder.planted_gain.device
        packed = self.packed(rows)
        cells = self.own(rows, packed) if training and self.own is not None else None
        cells = None if cells is None else Cells(*(part.to(device) for part in cells))
        packed = Packed(*(part.to(device) for part in packed[:3]), cells=cells)
        added = None if self.scores is None else torch.from_numpy(self.scores(rows, ids)).to(device)
        return decoder(packed, torch.from_numpy(ids).long().to(device), self.relevance, added)


def fit(
    decoder: CandidateDecoder,
    data: CandidateData,
    train: np.ndarray,
    labels: sparse.csr_matrix,
    config: CandidateConfig,
    *,
    rate: float = LEARNING_RATE,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
    after_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train on gold labels and the ranker's negatives.

    Args:
        decoder: trained in place.
        data: N documents.
        train: (n,) training rows.
        labels: Y (N, L) csr, of which training rows are read.
        config: epochs, and width of the lists.
        rate: the learning rate, which falls linearly to zero.
        seed: of the order of documents and the negatives.
        folder: keeps the last whole epoch, from which a killed run goes on to the same numbers.
        progress: show a bar.
        after_epoch: called with the epoch, from 1, and its loss.

    Returns:
        The mean loss of every epoch.
    """
    # go on after the last whole epoch
    optimisers = decoder.optimisers(rate)
    path = None if folder is None else Path(folder) / "epoch.safetensors"
    losses = load_epoch(path, decoder, optimisers) if path is not None and path.exists() else []
    batches = -(-len(train) // BATCH_SIZE)
    steps = config.epochs * batches
    done = len(losses) * batches
    with tqdm(
        total=steps, initial=done, desc="candidates", unit="step", disable=not progress
    ) as bar:
        for epoch in range(len(losses) + 1, config.epochs + 1):
            total = 0.0
            for rows, ids, positive in epoch_batches(data, train, labels, config, epoch, seed):
                for optimiser in optimisers:
                    optimiser.zero_grad()
                    for group in optimiser.param_groups:
                        group["lr"] = rate * (1 - done / steps)
                logits = data.logits(decoder, rows, ids, training=True)
                loss = candidate_bce(logits, torch.from_numpy(positive).to(logits.device))
                loss.backward()
                for optimiser in optimisers:
                    optimiser.step()
                total += loss.item() * len(rows)
                done += 1
                bar.update()
            losses.append(total / len(train))
            if after_epoch is not None:
                after_epoch(epoch, losses[-1])
            if path is not None:
                save_epoch(path, decoder, optimisers, losses)
    return losses


def epoch_batches(
    data: CandidateData,
    train: np.ndarray,
    labels,
    config: CandidateConfig,
    epoch: int,
    seed: int = 0,
) -> Iterator:
    """Rows (b,), candidates (b, C) and which of them are gold (b, C) of every batch of an epoch.

    Order and negatives depend on seed and epoch alone.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(train)
    for begin in range(0, len(order), BATCH_SIZE):
        rows = order[begin : begin + BATCH_SIZE]
        ids, positive = candidates.training_candidates(
            data.ranked[rows], labels[rows], config.width, rng, unlisted=data.unlisted
        )
        yield rows, ids, positive


def save_epoch(path: Path, decoder: CandidateDecoder, optimisers, losses: list[float]) -> None:
    """Write parameters, optimiser state and the losses so far as one safetensors file."""
    tensors = {f"decoder.{name}": p.detach().contiguous() for name, p in decoder.named_parameters()}
    for i, optimiser in enumerate(optimisers):
        for k, state in optimiser.state_dict()["state"].items():
            tensors |= {
                f"optimiser.{i}.{k}.{name}": torch.as_tensor(value).clone()
                for name, value in state.items()
            }
    save_tensors(path, tensors, {"losses": json.dumps(losses)})


def load_epoch(path: Path, decoder: CandidateDecoder, optimisers) -> list[float]:
    """Restore what `save_epoch` wrote; returns the losses so far."""
    with safe_open(check_tensors(path), "pt") as file:
        with torch.no_grad():
            for name, p in decoder.named_parameters():
                p.copy_(file.get_tensor(f"decoder.{name}"))
        states: list[dict] = [{} for _ in optimisers]
        for key in file.keys():  # noqa: SIM118  (not a dict)
            kind, *parts = key.split(".")
            if kind == "optimiser":
                i, k, name = parts
                value = file.get_tensor(key)
                # SparseAdam counts its steps in a plain number
                states[int(i)].setdefault(int(k), {})[name] = (
                    int(value) if value.dtype == torch.int64 else value
                )
        for optimiser, state in zip(optimisers, states, strict=True):
            optimiser.load_state_dict(
                {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
            )
        return json.loads(file.metadata()["losses"])


def predict(
    decoder: CandidateDecoder,
    data: CandidateData,
    rows: np.ndarray,
    config: CandidateConfig,
    k: int = 100,
) -> TopK:
    """The k best labels of documents `rows` among their first `width` candidates; gold labels are
    not read.
    """
    return TopK.concat([whole.cut(k) for whole in _rankings(decoder, data, rows, config)])


def score(
    decoder: CandidateDecoder,
    data: CandidateData,
    rows: np.ndarray,
    config: CandidateConfig,
    train_counts: np.ndarray,
    k: int = 100,
    edges: Edges = EDGES,
) -> Scores:
    """The k best labels of documents `rows`, and the best of each frequency bucket among all
    `width` candidates.

    train_counts: (L,) training documents per label. edges: bounds of the buckets.
    """
    masks = frequency_buckets(train_counts, edges)
    places, buckets = [], {name: [] for name in masks}
    for whole in _rankings(decoder, data, rows, config):
        places.append(whole.cut(k))
        for name, mask in masks.items():
            buckets[name].append(restrict(whole, mask).cut(BUCKET_DEPTH))
    return Scores(
        TopK.concat(places), {name: TopK.concat(parts) for name, parts in buckets.items()}, masks
    )


@torch.inference_mode()
def _rankings(
    decoder: CandidateDecoder, data: CandidateData, rows: np.ndarray, config: CandidateConfig
) -> Iterator[TopK]:
    """All candidates of each batch of documents, best first, ties to the smaller id."""
    for begin in range(0, len(rows), BATCH_SIZE):
        part = rows[begin : begin + BATCH_SIZE]
        ids = data.ranked[part][:, : config.width]
        logits = data.logits(decoder, part, ids).cpu().numpy()
        yield TopK.of_lists(ids, logits)
