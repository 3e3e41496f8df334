"""Does planting help in another language? CodiEsp in Spanish and English, the same documents.

MiniLM was trained on English text, and the teacher counts word pieces of any language, so planting
could be worth more where the backbone knows less. Documents and codes of both corpora are the same,
which makes every comparison a paired one: planted minus unplanted in each language, and what one
gains over the other. The records stand in results/questions/languages/.

    python -m companion.runner runs/questions-languages.yaml
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.studies import steps
from plantlib.data.corpus import Corpus
from plantlib.data.sources import checkout
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.training import runs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord
from plantlib.utils.base import DataError

if TYPE_CHECKING:
    import pandas

STUDY = "languages"
DATASETS = {"Spanish": "codiesp-es", "English": "codiesp"}
PAIRS = {"lookup": "random", "lookup+linear": "linear"}  # planted start -> the same without
METRICS = ("ndcg@5", "few/rp@5")


def run(
    starts: Sequence[str] = ("random", "lookup", "linear", "lookup+linear"),
    backbone: str = "minilm",
    tokens: int = 256,
    epochs: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    results: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Run both languages; records that are there are not made again.

    Args:
        starts: some of the starts that PAIRS names.
        tokens: read per document.
        epochs: most passes of every training.
        results: results/ of the checkout when None.
        force: make every record again.

    Returns:
        `results`.

    Raises:
        DataError: the two corpora do not hold the same documents and splits.
    """
    results = Path(results or checkout() / "results")
    check_same(*(Corpus.load(name).labelled() for name in DATASETS.values()))
    folder = steps.records_folder(results, STUDY, force)
    config = RunConfig(train=TrainConfig(epochs=epochs))
    for seed in seeds:  # a stopped study has whole seeds
        for name in DATASETS.values():
            inputs = prepare(name, backbone=backbone, max_tokens=tokens, progress=False)
            runs.run_grid(
                inputs,
                starts,
                [seed],
                config=config,
                results=folder,
                notebook=STUDY,
                progress=False,
            )
    return results


def check_same(first: Corpus, second: Corpus) -> None:
    """DataError unless two corpora hold the same documents in the same order and splits."""
    if first.ids != second.ids or not np.array_equal(first.split, second.split):
        raise DataError(
            f"{first.name} and {second.name} do not hold the same documents in the same order:"
            " build both from one download of CodiEsp"
        )


def effects(records: Sequence[RunRecord]) -> pandas.DataFrame:
    """What planting is worth in each language, and the difference of the two.

    Returns:
        a row per planted start, metric and language (or "Spanish minus English"): unplanted and
        planted, means of test, difference, low, high (95 %, seeds and documents) and seeds, in
        fractions.
    """
    import pandas as pd

    of = {(r.dataset["name"], r.system, r.seed): r for r in records}
    rows = []
    for planted, unplanted in PAIRS.items():
        wanted = [(name, s) for name in DATASETS.values() for s in (planted, unplanted)]
        for metric, seeds, values in common(of, wanted):
            about = {"start": planted, "metric": metric, "seeds": seeds}
            gains = {}
            for language, name in DATASETS.items():
                pair = values[name, planted], values[name, unplanted]
                gains[language] = pair[0] - pair[1]
                means = {"unplanted": np.nanmean(pair[1]), "planted": np.nanmean(pair[0])}
                rows.append(about | {"language": language} | means | difference(*pair))
            both = difference(*gains.values())
            nothing = {"unplanted": np.nan, "planted": np.nan}
            rows.append(about | {"language": " minus ".join(DATASETS)} | nothing | both)
    return pd.DataFrame(rows)


def common(
    of: dict[tuple[str, str, int], RunRecord], wanted: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, int, dict[tuple[str, str], np.ndarray]]]:
    """What runs measured, over the seeds that all of them have; nothing where they share none.

    Args:
        of: records by corpus or backbone, start and seed.
        wanted: the first two of those, of the runs that are compared.

    Returns:
        each of METRICS, the number of seeds, and run -> values (seeds, N) of test documents.
    """
    seeds = sorted(
        seed for seed in {key[2] for key in of} if all((*run, seed) in of for run in wanted)
    )
    for metric in METRICS if seeds else ():
        yield (
            metric,
            len(seeds),
            {
                run: np.array([of[*run, seed].per_document[metric] for seed in seeds], float)
                for run in wanted
            },
        )


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean of a minus b, (seeds, N) each, with its 95 % interval over seeds and documents."""
    found = paired_bootstrap(a, b)
    bounds = {"low": found["low"], "high": found["high"]}
    return {"difference": found["mean_difference"]} | bounds


def load(results: str | Path) -> list[RunRecord]:
    """The records of the study; none where it has not run."""
    return steps.records(results, STUDY)
