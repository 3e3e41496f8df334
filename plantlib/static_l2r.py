"""The static L2R model of the first version: score <E_t, F_l> + b_t + c_l of a token and a label, trained outside documents.

Realises METHOD.md section 3, "v1", dimension 400. E_t is the token's training documents in d directions of the document space:
those that carry most of the shown grades, or of the text alone. F begins as the ridge regression of the grades on E and is
trained by LambdaRank (or another listwise loss) on lists of a label's graded tokens among tokens that the model ranks high and
tokens by chance. Quality is that of HELD-OUT TOKENS: a fifth of the vocabulary, none of whose grades, for any label, enters
directions, F, b or lists; every label then ranks all of them. Only the best K tokens a label are planted, as CSR; scores of all
tokens exist for a block of labels at a time. No backbone is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from plantlib import mig, ranking
from plantlib.io import atomic_path, read_json, write_json
from plantlib.l2r import check_same
from plantlib.progress import tqdm
from plantlib.token_space import embed, frequency

SPACES = ("grades", "text")
BLOCK = 256  # labels whose scores of all tokens are held at once


@dataclass(frozen=True)
class StaticConfig:
    """Options. graded, mined and negatives make a list: best-graded tokens, ones the model ranks high, ones by chance."""

    dim: int = 400
    space: str = "grades"  # or "text": what chooses the directions of E
    loss: str = "lambdarank"
    epochs: int = 3
    learning_rate: float = 0.3
    labels_a_batch: int = 64
    graded: int = 64
    mined: int = 64
    negatives: int = 64
    teacher_tokens: int = 512  # tokens a label with a grade; the others count as irrelevant
    top_grade: float = 5.0  # grades 1..101 are brought to 0..5, gains 2^grade - 1 to 0..31
    sigma: float = 0.5
    cut: int = 15  # of the ideal DCG and of the reported nDCG
    ridge: float = 1e-2  # times the mean squared feature, for the start of F
    spread: float = 4.0  # standard deviation of a label's scores at the start, so that sigma tells tokens apart
    held_out: float = 0.2  # share of tokens whose grades are asked, never shown
    planted_tokens: int = 64  # K of the table that is planted
    seed: int = 0

    def __post_init__(self):
        if self.loss not in ranking.LOSSES:
            raise ValueError(f"loss={self.loss!r} is not known; use one of {', '.join(ranking.LOSSES)}")
        for name in ("dim", "labels_a_batch", "graded", "teacher_tokens", "cut", "planted_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: the share of tokens that quality is measured on lies between 0 and 1")
        if not 0 < self.top_grade <= ranking.MAX_EXPONENT:
            raise ValueError(f"top_grade={self.top_grade}: 2^grade wants a grade above 0, at most {ranking.MAX_EXPONENT:g}")
        mig.check_choice("space", self.space, SPACES)


@dataclass(frozen=True, eq=False)
class StaticL2R:
    """E (V, d), F (L, d), b (V,), c (L,), the vocabularies they were made for and how well held-out tokens were ranked.

    c places zero between a label's K-th and (K+1)-th token, so a positive score is one that is planted.
    """

    token_embeddings: torch.Tensor
    label_embeddings: torch.Tensor
    token_bias: torch.Tensor
    label_bias: torch.Tensor
    label_names: list[str]
    tokens: list[str]
    quality: dict = field(default_factory=dict)

    def scores(self, begin: int, end: int) -> torch.Tensor:
        """(end - begin, V) scores of a block of labels."""
        f = self.label_embeddings[begin:end]
        return f @ self.token_embeddings.T + self.token_bias + self.label_bias[begin:end, None]

    def table(self) -> sparse.csr_matrix:
        """What is planted, csr (L, V): a label's tokens of positive score, the best at 1, the first one left out at 0."""
        rows, columns, values = [], [], []
        for begin in range(0, len(self.label_embeddings), BLOCK):
            s = self.scores(begin, min(begin + BLOCK, len(self.label_embeddings)))
            s = s / s.amax(1, keepdim=True).clamp(min=1e-12)
            # what rounding leaves of the zero is no token to plant
            row, column = (s > 1e-6).nonzero(as_tuple=True)
            values.append(s[row, column].numpy())
            rows.append(row.numpy() + begin)
            columns.append(column.numpy())
        cells = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.csr_matrix(cells, shape=(len(self.label_embeddings), len(self.token_embeddings)), dtype=np.float32)

    def check(self, label_names: list[str], tokens: list[str]) -> None:
        """Raise ValueError naming both sizes and the first difference when the vocabularies are not these."""
        check_same("labels", self.label_names, label_names)
        check_same("tokens", self.tokens, tokens)

    def save(self, path: str | Path) -> Path:
        """One safetensors file: the four tensors, both vocabularies (as bytes of JSON) and the quality."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        for name in ("label_names", "tokens"):
            tensors[name] = torch.frombuffer(bytearray(json.dumps(getattr(self, name)).encode()), dtype=torch.uint8)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"quality": json.dumps(self.quality)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> StaticL2R:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, "pt") as f:
            names, tokens = (json.loads(bytes(f.get_tensor(n).numpy()).decode()) for n in ("label_names", "tokens"))
            return cls(*(f.get_tensor(n) for n in _TENSORS), names, tokens, json.loads(f.metadata()["quality"]))


_TENSORS = ("token_embeddings", "label_embeddings", "token_bias", "label_bias")


def pretrain(
    counts: sparse.csr_matrix, labels: sparse.csr_matrix, *, label_names: list[str], tokens: list[str],
    config: StaticConfig = StaticConfig(), progress: bool = True,
) -> StaticL2R:  # fmt: skip
    """Measure on held-out tokens, then train on all: counts (n, V) and labels (n, L) of the TRAINING rows.

    The model that is measured never saw a grade of a held-out token; the one returned is made the same way from all grades.
    """
    teacher = mig.teach(counts, labels, variant="jaccard", top_k=config.teacher_tokens, relevance="grade")
    grades = teacher.relevance.astype(np.float32)
    feature, seen = frequency(counts), mig.column_counts(mig.presence(counts)) > 0
    quality = _measured(counts, feature, grades, seen, config, progress)
    embeddings = embed(counts, grades, seen, space=config.space, dim=config.dim, seed=config.seed)
    start = begin(embeddings, grades, seen, config)
    label, bias = _train(embeddings, feature, start, grades, seen, config, progress, "static L2R, all tokens")
    # what no training document has is never planted
    token_bias = torch.where(torch.from_numpy(seen), bias * feature, float("-inf"))
    found = StaticL2R(embeddings, label, token_bias, torch.zeros(len(label)), label_names, tokens, quality)
    return replace(found, label_bias=zero_points(found, grades, config.planted_tokens))


def _measured(counts, feature, grades, seen, config: StaticConfig, progress: bool) -> dict:
    """Quality of a model that is shown a part of the tokens, on the others."""
    held_out = hold_out(seen, config)
    shown = seen & ~held_out
    embeddings = embed(counts, grades, shown, space=config.space, dim=config.dim, seed=config.seed)
    start = begin(embeddings, grades, shown, config)
    trained = _train(embeddings, feature, start, grades, shown, config, progress, "static L2R, shown tokens")
    return {
        "start": held_out_ndcg(embeddings, feature, *start, grades, held_out, config),
        "trained": held_out_ndcg(embeddings, feature, *trained, grades, held_out, config),
        "chance": chance_ndcg(grades, held_out, config),
        "held_out_tokens": int(held_out.sum()), "shown_tokens": int(shown.sum()), "dim": embeddings.shape[1],
        "labels": int(np.count_nonzero(np.diff(grades[:, held_out].indptr))),
    }  # fmt: skip


def hold_out(seen: np.ndarray, config: StaticConfig = StaticConfig()) -> np.ndarray:
    """(V,) bool: the tokens whose grades are asked but never shown, drawn by token from those that occur."""
    drawn = np.random.default_rng(config.seed).random(len(seen)) < config.held_out
    return drawn & seen


def begin(embeddings, grades: sparse.csr_matrix, shown: np.ndarray, config: StaticConfig):
    """(F, u) before training: ridge regression of the shown tokens' grades on E, each label's scores at one spread; no b."""
    e = embeddings[torch.from_numpy(shown)].numpy()
    gram = (e.T @ e).astype(np.float64)
    ridge = config.ridge * np.trace(gram) / len(gram) + 1e-8
    target = (grades[:, shown] @ e).T
    label = torch.from_numpy(np.linalg.solve(gram + ridge * np.eye(len(gram)), target).T.astype(np.float32))
    covariance = torch.cov(torch.from_numpy(e).T).reshape(len(gram), len(gram))
    deviation = ((label @ covariance) * label).sum(1).clamp(min=0).sqrt()
    scale = torch.where(deviation > 1e-8, config.spread / deviation.clamp(min=1e-8), 0.0)
    return label * scale[:, None], torch.zeros(())


def _train(embeddings, feature, start, grades, shown, config: StaticConfig, progress: bool, what: str):
    """(F, u) after training on lists of shown tokens; b_t = u feature_t. E stays, so that unseen tokens stay in its space."""
    tokens = torch.from_numpy(np.flatnonzero(shown))
    e, x, shown_grades = embeddings[tokens], feature[tokens], grades[:, shown].tocsr()
    label, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.Adam([label, bias], lr=config.learning_rate)
    taught, rng = np.flatnonzero(np.diff(shown_grades.indptr)), np.random.default_rng(config.seed)
    steps = config.epochs * -(-len(taught) // config.labels_a_batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, max(steps, 1))
    bar = tqdm(total=steps, desc=what, unit="step", disable=not progress)
    for _ in range(config.epochs):
        order = rng.permutation(taught)
        for first in range(0, len(order), config.labels_a_batch):
            rows = order[first : first + config.labels_a_batch]
            loss = _loss(rows, label, bias, e, x, shown_grades, rng, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    return label.detach(), bias.detach()


def _loss(rows, label, bias, e, x, grades, rng, config: StaticConfig) -> torch.Tensor:
    """Listwise loss of a batch of labels."""
    f = label[torch.from_numpy(rows)]
    with torch.no_grad():
        ranked = f @ e.T + bias * x  # (R, V)
    graded = torch.from_numpy(grades[rows].toarray())
    columns = lists(ranked, graded, rng, config)  # (R, T)
    scores = torch.einsum("rd,rtd->rt", f, e[columns]) + bias * x[columns]
    relevance = config.top_grade * graded.gather(1, columns)
    if config.loss == "lambdarank":
        return ranking.lambdarank(scores, relevance, sigma=config.sigma, gains="exponential", k=config.cut)
    return ranking.LOSSES[config.loss](scores, relevance, gains="exponential")


def lists(ranked, graded, rng, config: StaticConfig) -> torch.Tensor:
    """(R, T) distinct tokens of each label: its best grades, then those the model ranks highest, then tokens by chance."""
    chance = torch.from_numpy(rng.random(ranked.shape, dtype=np.float32))
    # one key orders the three kinds: grades above 10, the mined ones in (5, 10], chance below 1
    key = torch.where(graded > 0, 0.0, chance)
    if config.mined:
        best = ranked.masked_fill(graded > 0, float("-inf")).topk(min(config.mined, ranked.shape[1]), dim=1)
        key.scatter_(1, best.indices, torch.where(best.values.isinf(), key.gather(1, best.indices), 5.0 + 1e-3))
    kept = graded.topk(min(config.graded, graded.shape[1]), dim=1)
    key.scatter_add_(1, kept.indices, torch.where(kept.values > 0, 10.0 + kept.values, 0.0))
    return key.topk(min(config.graded + config.mined + config.negatives, ranked.shape[1]), dim=1).indices


def held_out_ndcg(embeddings, feature, label, bias, grades, held_out: np.ndarray, config: StaticConfig) -> dict[str, float]:
    """Mean nDCG of every label's ranking of ALL held-out tokens, labels without a graded one left out.

    `ndcg_exponential` has the gains that are trained, 2^grade - 1; `ndcg_linear` the grades themselves.
    """
    where = torch.from_numpy(np.flatnonzero(held_out))
    e, x = embeddings[where], feature[where]
    return _ndcg(grades[:, held_out].tocsr(), config, lambda a, b: label[a:b] @ e.T + bias * x)


def chance_ndcg(grades, held_out: np.ndarray, config: StaticConfig) -> dict[str, float]:
    """The same of a random order: what the numbers begin from."""
    asked, rng = grades[:, held_out].tocsr(), np.random.default_rng(config.seed)
    return _ndcg(asked, config, lambda a, b: torch.from_numpy(rng.random((b - a, asked.shape[1]))))


def _ndcg(asked: sparse.csr_matrix, config: StaticConfig, scores) -> dict[str, float]:
    found = {"exponential": [], "linear": []}
    for a in range(0, asked.shape[0], BLOCK):
        b = min(a + BLOCK, asked.shape[0])
        relevance, s = torch.from_numpy(asked[a:b].toarray()), scores(a, b)
        for gains, scale in (("exponential", config.top_grade), ("linear", 1.0)):
            found[gains].append(ranking.ndcg(s, scale * relevance, k=config.cut, gains=gains))
    return {f"ndcg_{name}": round(float(torch.cat(values).nanmean()), 4) for name, values in found.items()}


def zero_points(model: StaticL2R, grades: sparse.csr_matrix, keep: int) -> torch.Tensor:
    """(L,) c that puts each label's (K+1)-th best token at zero; minus infinity for a label without teacher."""
    points, taught = [], torch.from_numpy(np.diff(grades.indptr) > 0)
    # of a vocabulary smaller than K all tokens but the last are planted
    place = min(keep + 1, int(model.token_bias.isfinite().sum()))
    for a in range(0, len(grades.indptr) - 1, BLOCK):
        s = model.scores(a, min(a + BLOCK, grades.shape[0]))
        points.append(-s.topk(place, dim=1).values[:, -1])
    return torch.where(taught, torch.cat(points), float("-inf"))


def of(prepared, config: StaticConfig, progress: bool = True) -> StaticL2R:
    """The model of a `pipeline.Prepared` corpus, over its backbone's tokens: made where it is missing, checked against it."""
    from plantlib.pipeline import fingerprint_of

    names, tokens, corpus = prepared.corpus.label_names, prepared.vocabulary, prepared.corpus.name
    path = prepared.root / "static" / f"{corpus}-{fingerprint_of(prepared.key, asdict(config))}.safetensors"
    if path.exists():
        found = StaticL2R.load(path)
        found.check(names, tokens)
        return found
    counts = prepared.counts[prepared.rows["train"]]
    found = pretrain(counts, prepared.train_labels, label_names=names, tokens=tokens, config=config, progress=progress)
    found.save(path)
    return found


def measure(name: str, config: StaticConfig = StaticConfig(), progress: bool = True) -> tuple[StaticL2R, dict]:
    """(model, what results/static_l2r.json says of it): words of the training documents of a corpus, whole."""
    from plantlib import Corpus
    from plantlib.tokens import words

    corpus = Corpus.load(name).labelled().with_dev().seen_in_train()
    rows = corpus.rows("train")
    found = words([corpus.texts[i] for i in rows], np.arange(len(rows)))
    began, cpu = time.perf_counter(), time.process_time()
    names = corpus.label_names
    model = pretrain(
        found.counts, corpus.labels[rows], label_names=names, tokens=found.names, config=config, progress=progress
    )
    about = {
        "fingerprint": corpus.fingerprint(), "documents": len(rows), "tokens": len(found.names), "labels": len(names),
        "protocol": "by token: no grade of a held-out token is shown, every label ranks all held-out tokens",
        "quality": model.quality, "config": asdict(config), "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }  # fmt: skip
    return model, about


def main(arguments: list[str] | None = None) -> int:
    """`python -m plantlib.static_l2r codiesp eurlex57k --out results/static_l2r.json`: adds to what the file holds."""
    from plantlib.results import environment

    parser = argparse.ArgumentParser(prog="python -m plantlib.static_l2r", description=__doc__.split("\n")[0])
    parser.add_argument("datasets", nargs="+", help="known names or saved corpus folders")
    parser.add_argument("--out", default="results/static_l2r.json", help="JSON that receives one entry a data set")
    parser.add_argument("--save", help="folder that receives the models, one safetensors file a data set")
    parser.add_argument("--dim", type=int, default=StaticConfig.dim)
    parser.add_argument("--loss", default=StaticConfig.loss, choices=sorted(ranking.LOSSES))
    parser.add_argument("--epochs", type=int, default=StaticConfig.epochs)
    parser.add_argument("--seed", type=int, default=StaticConfig.seed)
    given = parser.parse_args(arguments)
    config = StaticConfig(dim=given.dim, loss=given.loss, epochs=given.epochs, seed=given.seed)
    torch.set_num_threads(1)
    for name in given.datasets:
        model, about = measure(name, config)
        if given.save:
            model.save(Path(given.save) / f"{Path(name).name}.safetensors")
        about["environment"] = environment() | {"threads": torch.get_num_threads(), "device": "cpu"}
        written = read_json(given.out) if Path(given.out).exists() else {}
        write_json(Path(given.out), written | {Path(name).name: about})
        print(f"{Path(name).name}: {about['quality']}, {about['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
