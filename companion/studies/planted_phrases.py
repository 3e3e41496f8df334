"""What planted phrases add: marked ones in attention and score, in the score alone, those of other
labels in attention, and none; docs/method.md, "Planted phrases".

`python -m companion.studies.planted_phrases codiesp-es` trains what is missing and writes
results/planted_phrases.csv: means over seeds, and differences to BASELINE with paired intervals. A
corpus without evidence is measured with --starts of `phrases`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from companion.report.compare import compare, difference_cell, to_markdown
from companion.studies.command import parser_of, reading
from plantlib.data.sources import base_folder, checkout
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord
from plantlib.training.runs import run_grid
from plantlib.utils.io import atomic_path

STARTS = ("random+evidence+linear", "evidence+linear", "shuffled+evidence+linear", "linear")
METRICS = ("p@1", "ndcg@5", "few/rp@5", "all/map")
EPOCHS = 3
FILE = "planted_phrases.csv"
COLUMNS = ("corpus", "documents", "backbone", "system", "seeds")


def measure(
    dataset: str,
    starts: Sequence[str] = STARTS,
    seeds: Iterable[int] = (0, 1, 2),
    *,
    backbone: str = "words",
    records: str | Path,
    **options,
) -> list[RunRecord]:
    """The records of a corpus, read from the folder `records` or made.

    Args:
        dataset: a known name or the folder of a corpus.
        starts: the first is what the others are compared with.
        options: of `prepare`.
    """
    inputs = prepare(dataset, backbone=backbone, **options)
    config = RunConfig(train=TrainConfig(epochs=EPOCHS))
    return run_grid(inputs, starts, seeds, config=config, results=records)


def rows_of(records: Sequence[RunRecord], baseline: str) -> list[dict]:
    """One row per system: METRICS in percent, and differences to `baseline` with intervals."""
    table = compare(records, baseline, METRICS)
    about = records[0]
    rows = []
    for system, row in table.iterrows():
        cells = (about.dataset["name"], about.dataset["train"], about.backbone, system)
        own: dict = dict(zip(COLUMNS, (*cells, int(row["seeds"])), strict=True))
        for metric in METRICS:
            value = row[metric]
            own[metric] = "" if math.isnan(value) else f"{100 * value:.2f}"
            own[f"{metric} difference"] = difference_cell(row, metric)
        rows.append(own)
    return rows


def write(rows: Sequence[dict], file: str | Path) -> None:
    """Put rows into the CSV in the place of those of the same corpus, documents and backbone."""
    file = Path(file)
    kept = []
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as stream:
            kept = list(csv.DictReader(stream))
    key = COLUMNS[:3]
    new = {tuple(str(row[name]) for name in key) for row in rows}
    kept = [row for row in kept if tuple(row[name] for name in key) not in new]
    with (
        atomic_path(file) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, write the table and print it."""
    parser = parser_of("planted_phrases", __doc__, tokens=256, starts=STARTS, seeds=(0, 1, 2))
    parser.set_defaults(results=str(base_folder() / "artefacts" / "planted_phrases"))
    parser.add_argument("--backbone", default="words")
    options = parser.parse_args(arguments)
    records = measure(
        options.dataset,
        options.starts,
        options.seeds,
        backbone=options.backbone,
        records=options.results,
        **reading(options),
    )
    write(rows_of(records, options.starts[0]), checkout() / "results" / FILE)
    print(to_markdown(compare(records, options.starts[0], METRICS)))


if __name__ == "__main__":
    main()
