"""What a teacher that has seen the test rows would gain: METHOD.md section 6, fault 1, measured on
purpose and nowhere else.

The published code counts mutual information over every row of the file. Here the same run is made
twice, with the teacher of the training rows and with the teacher of all rows, over a label space
that also holds labels without a training document. The leaky teacher exists in this module alone
and is reached by the name `leaky` alone; its records carry that word.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.report import report
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
    """`prepare` with the wider label space; its features are those of the usual one."""
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
    """The teacher that counts train, dev and test rows; for the audit only."""
    rows = np.concatenate(list(prepared.rows.values()))
    return mig.teach(prepared.counts[rows], prepared.corpus.labels[rows], **asdict(config))


def audit(
    prepared: Inputs,
    results: str | Path,
    *,
    starts: Iterable[str] = STARTS,
    seeds: Iterable[int] = (0, 1, 2),
    config: RunConfig | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """Each start and seed with the clean and with the leaky teacher; records that stand in
    `results` are read.

    starts: any of `planting`; `l2r` and `closed_form` are the published ways of planting MI.
    """
    config, records, starts = config or RunConfig(), [], list(starts)
    for start in starts:
        planting.parts_of(start)  # a misspelt start is an error before the first run, not after it
    # artefacts of the leaky side have names of their own
    leaking = replace(prepared, key=fingerprint_of(prepared.key, "leaky"))
    sides = {"clean": prepared, "leaky": leaking}
    jobs = [(start, seed, side) for seed in seeds for start in starts for side in sides]
    for start, seed, side in tqdm(jobs, desc="leak audit", unit="run", disable=not progress):
        run_id = run_name(prepared, f"{side}_{start}", seed) + "-audit"
        record = runs.finished(Path(results) / f"{run_id}.json", sides[side], config, seed)
        if record is None:
            teacher = leaky(leaking, config.teacher) if side == "leaky" else None
            made = ingredients(sides[side], start, config, seed, progress, teacher)
            run, _ = runs.run_start(
                sides[side],
                start,
                seed,
                config=config,
                run_id=run_id,
                notebook=NOTEBOOK,
                progress=progress,
                made=made,
            )
            record = replace(run, system=f"{side} {start}")
            record.save(results)
        records.append(record)
    return records


def gains(records: Iterable[RunRecord], metric: str = "rp@5") -> pandas.DataFrame:
    """One row a data set, start, seed and bucket: labels' `metric` under the clean and the leaky
    teacher, and the gain.
    """
    import pandas as pd

    found: dict[tuple, dict[str, RunRecord]] = {}
    for record in [r for r in records if r.notebook == NOTEBOOK]:
        side, start = record.system.split(" ", 1)
        read = f"{report.tokens_of(record)} tokens, {report.backbone_of(record)}"
        data = f"{record.dataset['name']}, {record.dataset['train']:,} documents, {read}"
        found.setdefault((data, start, record.seed), {})[side] = record
    rows = []
    for (data, start, seed), pair in sorted(found.items()):
        for bucket in BUCKETS if len(pair) == 2 else ():
            clean, tainted = (
                pair[side].metrics.get(f"{bucket}/{metric}") for side in ("clean", "leaky")
            )
            if clean is not None and tainted is not None:
                rows.append(
                    {
                        "data": data,
                        "start": start,
                        "seed": seed,
                        "bucket": bucket,
                        "clean": clean,
                        "leaky": tainted,
                        "gain": tainted - clean,
                    }
                )
    return pd.DataFrame(rows)


def paragraph(frame: pandas.DataFrame, metric: str = "RP@5") -> str:
    """What the numbers say, a data set after the other, from the frame alone."""
    if frame.empty:
        return (
            "No audit runs yet: `python -m companion.studies.leak_audit codiesp --train 500` makes"
            " them."
        )
    parts, concluded, several = [], [], frame["data"].nunique() > 1
    for (data, start), rows in frame.groupby(["data", "start"], sort=False):
        mean = 100 * rows.groupby("bucket")[["clean", "leaky", "gain"]].mean()
        said = [
            f"{b} {mean.loc[b, 'clean']:.1f} to {mean.loc[b, 'leaky']:.1f}"
            f" ({_signed(mean.loc[b, 'gain'])})"
            for b in BUCKETS
            if b in mean.index
        ]
        parts.append(f"On {data}, `{start}`, {_seeds(rows)}: {'; '.join(said)}.")
        concluded.append((f"on {data}, " if several else "") + f"`{start}` {_where(mean['gain'])}")
    return (
        f"{metric} among the labels of a bucket, from the teacher of the training rows to the"
        f" teacher of all rows, nothing else changed. {' '.join(parts)} What a teacher that has"
        f" counted the test rows gains depends on the start: {'; '.join(concluded)}. Gains of this"
        " kind measure what the teacher was told, not what the model learnt."
    )


def _where(gain: pandas.Series) -> str:
    """Where one start gains most and where not at all; gain: points by bucket, means over its seeds
    alone.
    """
    most, nothing = (
        gain.idxmax(),
        [b for b in BUCKETS if b in gain.index and round(gain[b], 1) <= 0],
    )
    if most in nothing:
        return "gains nothing on labels of any bucket"
    rest = f", nothing on {' and '.join(nothing)}" if nothing else ""
    return f"gains most on {most} labels ({_signed(gain[most])} points){rest}"


def _signed(points: float) -> str:
    """With its sign, but for what rounds to nothing: "-0.0" would tell of a loss."""
    return f"{points:+.1f}" if round(points, 1) else "0.0"


def _seeds(rows: pandas.DataFrame) -> str:
    n = rows["seed"].nunique()
    return f"{n} seed{'' if n == 1 else 's'}"


def main(arguments: list[str] | None = None) -> None:
    """`python -m companion.studies.leak_audit codiesp --train 500`"""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.leak_audit", description=__doc__.split("\n")[0]
    )
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, default=128)
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", type=int)
    parser.add_argument(
        "--starts",
        nargs="+",
        default=list(STARTS),
        help="l2r and closed_form too: the published ways",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", default="results/runs")
    options = parser.parse_args(arguments)
    caps = {f"{s}_documents": getattr(options, s) for s in ("train", "dev", "test")}
    prepared = every_label(options.dataset, max_tokens=options.tokens, **caps)
    print(
        paragraph(
            gains(audit(prepared, options.results, starts=options.starts, seeds=options.seeds))
        )
    )


if __name__ == "__main__":
    main()
