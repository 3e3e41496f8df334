"""Where labels of few documents stand among all labels: every term of the linear score, their sum,
and the sum after the line of docs/method.md, "The linear score".

No decoder is trained. Terms lie in the folder of artefacts, and rows that the file has are not
computed again, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from companion.peers import bare
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import words
from plantlib.kernels.counts import column_counts
from plantlib.linear import score as linear_score
from plantlib.linear.score import LinearScore
from plantlib.linear.tables import Table, load_tables, raised
from plantlib.metrics.documents import evaluate
from plantlib.training import artefacts
from plantlib.utils.io import atomic_path, fingerprint_of

FILE = "results/rare_labels.csv"
METRICS = ("few/overall_r@15", "few/r@15", "ndcg@5", "r@15")
COLUMNS = ("corpus", "train", "test", "labels", "few_labels", "seed", "system", *METRICS)
MOST = {"dev": 1000, "test": 2000}  # documents of large corpora
BEFORE = "sum"
AFTER = "sum, rare labels raised"


@dataclass(frozen=True)
class Cut:
    """A corpus as the study reads it.

    dataset: a known name. train: most training documents, None for all. words: first words that
    are read of a text, None for all. seeds: by which documents are drawn.
    """

    dataset: str
    train: int | None = None
    words: int | None = None
    seeds: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """The data set, and the words that are read of a text if not all."""
        return f"{self.dataset}, first {self.words} words" if self.words else self.dataset

    def corpus(self, seed: int) -> Corpus:
        """Its documents and the labels of the training documents."""
        corpus = Corpus.load(self.dataset)
        if self.words:
            texts = [" ".join(text.split()[: self.words]) for text in corpus.texts]
            corpus = replace(corpus, texts=texts, evidence=None)
        ready = corpus.labelled().with_dev()
        return ready.subset(train=self.train, **MOST, seed=seed).seen_in_train()


SUBSETS = (1, 2, 3)
CUTS = (
    Cut("synthetic-icd"),
    Cut("codiesp"),
    Cut("codiesp-d3"),
    Cut("codiesp-p"),
    Cut("debtags", 2000),
    Cut("debtags", 400, words=20, seeds=SUBSETS),
    Cut("cooking", 500, seeds=SUBSETS),
    Cut("cooking", 1600, seeds=SUBSETS),
    Cut("cooking"),
    Cut("eurlex57k", 275),
    Cut("eurlex57k", 1000),
    Cut("eurlex57k", 1600, words=12, seeds=SUBSETS),
    Cut("eurlex57k", 3017),
)


def rows_of(corpus: Corpus, name: str, seed: int, root: str | Path | None = None) -> Iterator[dict]:
    """A row of the file for every term, the sum before the line and the sum after it.

    Args:
        corpus: the labels of its training documents.
        name: of the corpus in the rows.
        seed: stated in the rows.
        root: folder of artefacts.
    """
    train, test = corpus.rows("train"), corpus.rows("test")
    key = fingerprint_of(corpus.fingerprint())
    folder = artefacts.root_of(root) / "linear" / f"rare-labels-{key}"
    found = words(corpus.texts, train, linear_score.MIN_DOCUMENTS)
    linear = linear_score.fit(found, corpus.labels, train, folder=folder, progress=False)
    counts = column_counts(corpus.labels[train])
    about = {
        "corpus": name,
        "train": len(train),
        "test": len(test),
        "labels": corpus.L,
        "few_labels": int((counts <= 5).sum()),
        "seed": seed,
    }
    for system, table in tables_of(linear, folder, counts).items():
        yield about | {"system": system} | measured(table, linear, corpus, counts)


def tables_of(linear: LinearScore, folder: Path, counts: np.ndarray) -> dict[str, Table]:
    """The terms of all training documents, their sum, and the sum after the line, by name."""
    terms = load_tables(folder / "part0.safetensors")
    folded = linear.tables[0]
    return terms | {BEFORE: folded, AFTER: raised(folded, linear.stack, counts)}


def measured(
    table: Table, linear: LinearScore, corpus: Corpus, counts: np.ndarray
) -> dict[str, float]:
    """METRICS of a table on the test documents, in percent with two decimals."""

    def block(rows) -> np.ndarray:
        return table.scores(linear.tfidf[rows])

    test = corpus.rows("test")
    scores = bare.scored(block, corpus.labels, test, counts, auc=False)
    metrics = evaluate(scores, corpus.labels[test], counts, len(corpus.rows("train")))
    return {name: round(100 * metrics[name], 2) for name in METRICS}


def run(cuts: Iterable[Cut] = CUTS, file: str | Path = FILE) -> list[dict]:
    """The rows of all cuts; those that are not in the file yet are computed and written to it."""
    file = Path(file)
    rows = read(file)
    for cut in cuts:
        for seed in cut.seeds:
            corpus = cut.corpus(seed)
            documents = str(len(corpus.rows("train")))
            wanted = (cut.name, documents, str(seed))
            if wanted in {(row["corpus"], row["train"], row["seed"]) for row in rows}:
                continue
            began = time.process_time()
            new = list(rows_of(corpus, cut.name, seed))
            rows += [{key: str(value) for key, value in row.items()} for row in new]
            write(rows, file)
            seconds = time.process_time() - began
            print(
                f"{cut.name}, {documents} documents, seed {seed}: {seconds:.0f} CPU s", flush=True
            )
    return rows


def read(file: Path) -> list[dict]:
    """The rows of the file, none where there is no file."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write(rows: list[dict], file: Path) -> None:
    """Write the rows whole or not at all."""
    with (
        atomic_path(file) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Iterable[dict]) -> str:
    """Markdown: per corpus the means over seeds of the best term, and of the sum before and after.

    The best term is the one with the highest mean recall of rare labels among all.
    """
    means: dict[tuple, dict[str, list]] = {}
    for row in rows:
        values = [float(row[name]) for name in METRICS]
        key = (row["corpus"], row["train"])
        means.setdefault(key, {}).setdefault(row["system"], []).append(values)
    head = ["corpus", "documents", "seeds", "best term", "R@15 few of all", "of the sum", "raised"]
    head += ["best nDCG@5 of terms", "of the sum", "raised"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for (name, documents), systems in means.items():
        mean = {system: np.mean(values, 0) for system, values in systems.items()}
        terms = {system: value for system, value in mean.items() if system not in (BEFORE, AFTER)}
        best = max(terms, key=lambda system: terms[system][0])
        first = max(value[2] for value in terms.values())
        few = [mean[system][0] for system in (best, BEFORE, AFTER)]
        ndcg = [first, mean[BEFORE][2], mean[AFTER][2]]
        numbers = [f"{value:.1f}" for value in (*few, *ndcg)]
        cells = [name, documents, str(len(systems[AFTER])), best, *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.rare_labels", description=__doc__.split("\n")[0]
    )
    parser.add_argument("datasets", nargs="*", help="known names; all of the study if none")
    parser.add_argument("--file", default=FILE, help="CSV of the rows")
    options = parser.parse_args(arguments)
    named = set(options.datasets) or {cut.dataset for cut in CUTS}
    if unknown := named - {cut.dataset for cut in CUTS}:
        known = ", ".join(sorted({cut.dataset for cut in CUTS}))
        parser.error(f"no cut of {', '.join(sorted(unknown))}; the study has {known}")
    print(table(run([cut for cut in CUTS if cut.dataset in named], options.file)))


if __name__ == "__main__":
    main()
