"""Does attention follow rare words, or the words that matter? Attention against frequency.

A planted teacher counts words, so what looks like attention to evidence might be attention to rare
words. For each test document and gold label the weights of its words are ranked against the number
of training documents that hold the word, and against tf-idf; where the corpus marks evidence, also
against the marks, as they are and with the rank of document frequency held fixed (a partial
correlation). The weight of a word is the mean over its pieces, since a rare word has more pieces.

    python -m companion.runner runs/questions-frequency.yaml
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.studies import evidence, steps, trained
from plantlib.backbones import loading
from plantlib.data.sources import checkout
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.training import artefacts
from plantlib.training.ingredients import teacher_of
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare

if TYPE_CHECKING:
    import pandas

STUDY = "frequency"
# start and whether it is trained
SYSTEMS = {
    "random, before training": ("random", False),
    "random, after training": ("random", True),
    "shuffled, before training": ("shuffled", False),
    "shuffled, after training": ("shuffled", True),
    "planted, before training": ("lookup", False),
    "planted, after training": ("lookup", True),
}
FREQUENCY, TFIDF = "document frequency", "tf-idf"
GOLD, PARTIAL = "gold spans", "gold spans, frequency held fixed"
MEASURES = (FREQUENCY, TFIDF, GOLD, PARTIAL)


@dataclass(frozen=True, eq=False)
class Words:
    """The W words of a document as it is read.

    word_of: (T,) the word of each token. frequency: (W,) training documents that hold the word.
    tfidf: (W,) its weight in this document.
    """

    word_of: np.ndarray
    frequency: np.ndarray
    tfidf: np.ndarray

    def means(self, of_tokens: np.ndarray) -> np.ndarray:
        """(W,) means over the tokens of each word; of_tokens: (T,)."""
        total = np.bincount(self.word_of, of_tokens, len(self.frequency))
        return total / np.bincount(self.word_of, minlength=len(self.frequency))


def run(
    datasets: Sequence[str] = ("codiesp-es", "codiesp"),
    backbone: str = "minilm",
    tokens: int = 256,
    epochs: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    training: bool = True,
    results: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Train what artefacts/ lacks and measure; what is there is not made again.

    Args:
        datasets: known names or folders of saved corpora.
        backbone: of a tokenizer that knows words.
        tokens: read per document.
        epochs: most passes of every training.
        training: measure trained attention too; without it a study takes a minute per seed.
        results: results/ of the checkout when None.
        force: measure everything again.

    Returns:
        `results`.
    """
    results = Path(results or checkout() / "results")
    config = RunConfig(train=TrainConfig(epochs=epochs))
    for dataset in datasets:
        inputs = prepare(dataset, backbone=backbone, max_tokens=tokens, progress=False)
        about = {"dataset": inputs.about(), "inputs": inputs.key, "tokens": tokens}
        about |= {"training": training}
        path = results / steps.FOLDER / f"{STUDY}-{inputs.file_name}.json"
        step = steps.Steps(path, about | {"config": asdict(config)}, force)
        for seed in seeds:
            step(
                f"seed {seed}",
                lambda seed=seed, inputs=inputs: measure(inputs, config, seed, training),
            )
    return results


def measure(inputs: Inputs, config: RunConfig, seed: int, training: bool = True) -> dict:
    """System -> measure -> (n,) mean correlation over the gold labels of each test document.

    training: measure the trained systems too.

    A document without a gold label, or without evidence, has nan there.
    """
    features = replace(inputs.features, standard=artefacts.standard(inputs))
    teacher = teacher_of(inputs, config.teacher)
    decoders = {}
    for name, (start, is_trained) in SYSTEMS.items():
        if is_trained and not training:
            continue
        make = trained.after if is_trained else trained.before
        decoders[name] = make(inputs, start, seed, config, teacher)
    marks = {}
    if inputs.corpus.evidence is not None:
        for row, columns, of_labels in evidence.pairs(inputs, "test"):
            marks[row] = dict(zip(columns.tolist(), of_labels, strict=True))
    rows = inputs.rows["test"]
    found = {name: {m: np.full(len(rows), np.nan) for m in MEASURES} for name in decoders}
    for i, (row, words) in enumerate(zip(rows, words_of(inputs, rows), strict=True)):
        columns = inputs.corpus.labels[row].indices
        if not len(columns) or len(words.frequency) < 3:
            continue
        hidden = features.document(row)
        for name, decoder in decoders.items():
            weights = evidence.attention_of(decoder, hidden, inputs.tokens[row], columns)
            values = [
                correlations(words, of_label, marks.get(row, {}).get(int(column)))
                for column, of_label in zip(columns, weights, strict=True)
            ]
            for m in MEASURES:
                known = [v[m] for v in values if v[m] == v[m]]
                found[name][m][i] = np.mean(known) if known else np.nan
    return {name: {m: steps.rounded(v) for m, v in of.items()} for name, of in found.items()}


def words_of(inputs: Inputs, rows: np.ndarray) -> Iterator[Words]:
    """The words of documents `rows`, counted on the training documents as they are read."""
    tokenizer = loading.tokenizer_of(inputs.backbone, inputs.trust_remote_code)

    def pieces(row: int) -> tuple[np.ndarray, list[tuple[int, ...]]]:
        """The word of each token, and the token ids of each word."""
        read = tokenizer(
            inputs.corpus.texts[row],
            add_special_tokens=False,
            verbose=False,
            truncation=inputs.max_tokens is not None,
            max_length=inputs.max_tokens,
        )
        numbers, word_of = np.unique(read.word_ids(0), return_inverse=True)
        ids = np.array(read["input_ids"])
        return word_of, [tuple(ids[word_of == i].tolist()) for i in range(len(numbers))]

    counts: Counter[tuple[int, ...]] = Counter()
    for row in inputs.rows["train"]:
        if len(inputs.tokens[row]):
            counts.update(set(pieces(row)[1]))
    documents = len(inputs.rows["train"])
    for row in rows:
        if not len(inputs.tokens[row]):
            yield Words(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
            continue
        word_of, words = pieces(row)
        here = Counter(words)
        frequency = np.array([counts[word] for word in words], float)
        times = np.array([here[word] for word in words], float)
        weight = (1 + np.log(times)) * np.log((documents + 1) / (frequency + 1))
        yield Words(word_of, frequency, weight)


def correlations(words: Words, weights: np.ndarray, marks: np.ndarray | None) -> dict[str, float]:
    """MEASURES of one label in one document, nan where one has no spread.

    weights: (T,) attention. marks: (T,) bool, tokens of its evidence; None without any.
    """
    from scipy.stats import rankdata

    attention = rankdata(words.means(weights))
    frequency = rankdata(words.frequency)
    found = dict.fromkeys(MEASURES, float("nan"))
    found[FREQUENCY] = pearson(attention, frequency)
    found[TFIDF] = pearson(attention, rankdata(words.tfidf))
    if marks is not None:
        gold = (words.means(marks.astype(float)) > 0).astype(float)
        found[GOLD] = pearson(attention, gold)
        found[PARTIAL] = partial(found[GOLD], found[FREQUENCY], pearson(gold, frequency))
    return found


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of (n,) values, nan where one of them has no spread."""
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")


def partial(xy: float, xz: float, yz: float) -> float:
    """Correlation of x and y with z held fixed, from the three correlations."""
    rest = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / np.sqrt(rest) if rest > 1e-12 else float("nan")


def table(file: dict) -> pandas.DataFrame:
    """A row per system and measure: value, low, high (95 %, seeds and documents) and seeds."""
    import pandas as pd

    seeds = list(file["steps"].values())
    rows = []
    for system in (name for name in SYSTEMS if seeds and name in seeds[0]):
        for m in MEASURES:
            values = np.array([seed[system][m] for seed in seeds], float)
            if np.isnan(values).all():
                continue
            found = paired_bootstrap(values, np.zeros_like(values))
            bounds = {"low": found["low"], "high": found["high"], "seeds": len(seeds)}
            rows.append(
                {"system": system, "measure": m, "value": found["mean_difference"]} | bounds
            )
    return pd.DataFrame(rows)


def change(file: dict, system: str, base: str, measure: str) -> dict[str, float]:
    """`paired_bootstrap` of one system's measure minus another's."""
    seeds = list(file["steps"].values())
    return paired_bootstrap(*([seed[name][measure] for seed in seeds] for name in (system, base)))
