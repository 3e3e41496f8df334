"""What a teacher gains that counts the test rows: fault 1 of the published code, measured.

The published code counts mutual information over every row of the file (docs/method.md, "Faults of
the published code"). Here each run is made twice, with a teacher of the training rows and with one
of all rows, in a label space that includes labels without a training document. The leaking teacher
exists only in this module, as `leaky`, and its records have that word in the name of their system.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.report import report
from companion.studies.command import parser_of, reading
from plantlib.data.corpus import Corpus
from plantlib.planting import starts as planting
from plantlib.teacher import mig
from plantlib.teacher.mig import Teacher, TeacherConfig
from plantlib.training import runs
from plantlib.training.ingredients import ingredients
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, run_name
from plantlib.utils.io import fingerprint_of
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


NOTEBOOK = "leak_audit"
STARTS = ("lookup", "lookup+score")
BUCKETS = ("zero", "few", "medium", "head")


def every_label(
    corpus: Corpus | str,
    *,
    train_documents: int | None = None,
    dev_documents: int | None = None,
    test_documents: int | None = None,
    **options,
) -> Inputs:
    """`prepare` with every label of the documents, those without a training document too.

    Args:
        corpus: a `Corpus`, or the name or folder of one.
        train_documents, dev_documents, test_documents: most documents per split, None for all.
        options: further options of `prepare`.

    Returns:
        Inputs that share the cached features of `prepare`'s usual label space.
    """
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    caps = {
        "train_documents": train_documents,
        "dev_documents": dev_documents,
        "test_documents": test_documents,
    }
    usual = prepare(corpus, **caps, **options)
    whole = corpus.labelled().with_dev().subset(train_documents, dev_documents, test_documents)
    used = np.unique(whole.labels.indices)
    whole = whole._derive("label space: labels with a document in any split", columns=used)
    return replace(
        usual,
        corpus=whole,
        extra_gold=np.zeros(whole.N, np.int64),
        key=fingerprint_of(usual.key, "every label"),
        label_space_stated="labels with a document in any split",
    )


def leaky(prepared: Inputs, config: TeacherConfig = TeacherConfig()) -> Teacher:
    """A teacher that counts train, dev and test rows; for this audit only."""
    rows = np.concatenate(list(prepared.rows.values()))
    return mig.teach(prepared.counts[rows], prepared.corpus.labels[rows], **config.counting)


def audit(
    prepared: Inputs,
    results: str | Path,
    *,
    starts: Iterable[str] = STARTS,
    seeds: Iterable[int] = (0, 1, 2),
    config: RunConfig | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """The records of each start and seed with the clean and with the leaking teacher.

    Args:
        prepared: as `every_label` returns it.
        results: folder of the records; a run whose record is there is not repeated.
        starts: names of starts; `l2r` and `closed_form` are the published ways of planting.
        seeds: of the runs.
        config: options of the runs.
        progress: show bars.
    """
    config = config or RunConfig()
    records = []
    starts = list(starts)
    for start in starts:
        planting.parts_of(start)  # a misspelt start is an error before the first run
    # another key, so that the two sides do not share artefacts
    leaking = replace(prepared, key=fingerprint_of(prepared.key, "leaky"))
    sides = {"clean": prepared, "leaky": leaking}
    jobs = [(start, seed, side) for seed in seeds for start in starts for side in sides]
    for start, seed, side in tqdm(jobs, desc="leak audit", unit="run", disable=not progress):
        run_id = run_name(prepared, f"{side}_{start}", seed) + "-audit"
        record = runs.finished(Path(results) / f"{run_id}.json", sides[side], config, seed)
        if record is None:
            teacher = leaky(leaking, config.teacher) if side == "leaky" else None
            parts = ingredients(sides[side], start, config, seed, progress, teacher)
            run, _ = runs.run_start(
                sides[side],
                start,
                seed,
                config=config,
                run_id=run_id,
                notebook=NOTEBOOK,
                progress=progress,
                made=parts,
            )
            record = replace(run, system=f"{side} {start}")
            record.save(results)
        records.append(record)
    return records


def gains(records: Iterable[RunRecord], metric: str = "rp@5") -> pandas.DataFrame:
    """The metric under both teachers, a row per data set, start, seed and label bucket.

    Columns: data, start, seed, bucket, clean, leaky, and gain (leaky - clean); fractions.
    """
    import pandas as pd

    # both sides of each run
    sides: dict[tuple, dict[str, RunRecord]] = {}
    for record in [r for r in records if r.notebook == NOTEBOOK]:
        side, start = record.system.split(" ", 1)
        read = f"{report.tokens_of(record)} tokens, {report.backbone_of(record)}"
        data = f"{record.dataset['name']}, {record.dataset['train']:,} documents, {read}"
        sides.setdefault((data, start, record.seed), {})[side] = record
    # what they differ by
    rows = []
    for (data, start, seed), pair in sorted(sides.items()):
        for bucket in BUCKETS if len(pair) == 2 else ():
            name = f"{bucket}/{metric}"
            values = {side: pair[side].metrics.get(name) for side in ("clean", "leaky")}
            if None not in values.values():
                about = {"data": data, "start": start, "seed": seed, "bucket": bucket}
                rows.append(about | values | {"gain": values["leaky"] - values["clean"]})
    return pd.DataFrame(rows)


def paragraph(frame: pandas.DataFrame, metric: str = "RP@5") -> str:
    """`gains` in words, one data set and start after the other; metric: its name in the text."""
    if frame.empty:
        return (
            "No audit runs yet: `python -m companion.studies.leak_audit codiesp --train 500` makes"
            " them."
        )
    numbers = []
    conclusions = []
    several = frame["data"].nunique() > 1
    for (data, start), rows in frame.groupby(["data", "start"], sort=False):
        mean = 100 * rows.groupby("bucket")[["clean", "leaky", "gain"]].mean()
        by_bucket = [
            f"{b} {mean.loc[b, 'clean']:.1f} to {mean.loc[b, 'leaky']:.1f}"
            f" ({_signed(mean.loc[b, 'gain'])})"
            for b in BUCKETS
            if b in mean.index
        ]
        numbers.append(f"On {data}, `{start}`, {_seeds(rows)}: {'; '.join(by_bucket)}.")
        place = f"on {data}, " if several else ""
        conclusions.append(f"{place}`{start}` {_where(mean['gain'])}")
    return (
        f"{metric} among the labels of a bucket, from the teacher of the training rows to the"
        f" teacher of all rows, nothing else changed. {' '.join(numbers)} What a teacher gains by"
        f" counting the test rows depends on the start: {'; '.join(conclusions)}. Such gains come"
        " from the test labels, not from what the model has learned."
    )


def _where(gain: pandas.Series) -> str:
    """Where one start gains most, and where it gains nothing; gain: points by bucket."""
    most = gain.idxmax()
    nothing = [b for b in BUCKETS if b in gain.index and round(gain[b], 1) <= 0]
    if most in nothing:
        return "gains nothing on labels of any bucket"
    rest = f", nothing on {' and '.join(nothing)}" if nothing else ""
    return f"gains most on {most} labels ({_signed(gain[most])} points){rest}"


def _signed(points: float) -> str:
    """Points with their sign; "0.0" where they round to zero, as "-0.0" looks like a loss."""
    return f"{points:+.1f}" if round(points, 1) else "0.0"


def _seeds(rows: pandas.DataFrame) -> str:
    n = rows["seed"].nunique()
    return f"{n} seed{'' if n == 1 else 's'}"


def main(arguments: list[str] | None = None) -> None:
    """Run the audit of a data set and print `paragraph`."""
    parser = parser_of("leak_audit", __doc__, tokens=128, starts=STARTS, seeds=(0, 1, 2))
    options = parser.parse_args(arguments)
    prepared = every_label(options.dataset, **reading(options))
    records = audit(prepared, options.results, starts=options.starts, seeds=options.seeds)
    print(paragraph(gains(records)))


if __name__ == "__main__":
    main()
