"""CPU seconds of a fit by stage, ours and peers, quality beside -> results/bench/fit.csv.

    python benchmarks/bench_fit.py codiesp debtags:2000                  # the quick tier and peers
    python benchmarks/bench_fit.py codiesp --tiers words minilm

Times are CPU seconds of one thread, of this process or of the peer's, so other work on the machine
changes them little. A fit begins with texts and an empty folder of intermediate files, and its
stages are: read (tokens, hidden states), plant (the teacher and the model), linear (the linear
score), train, evaluate (dev and test). A peer begins with counted words, and all options of its
grid count. `predict_ms` is per test document, of ours from the text, of peers from its words.
`times_svm` is the ratio to the tuned SVM of the same call. Quality is measured on test.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import append, peak_mib, restart_peak
from companion.peers import bare, library_peers
from companion.peers.library_peers import Job
from plantlib.backbones import words
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import words as count_words
from plantlib.linear import score as linear_score
from plantlib.metrics.documents import evaluate
from plantlib.training import artefacts, evaluation, runs
from plantlib.training.inputs import Inputs
from plantlib.training.prepare import prepare
from plantlib.training.records import environment

DEV, TEST = 500, 1000  # most documents
METRICS = ("ndcg@5", "psp@5")
LINEAR = "linear score"
SVM = "SVM, tuned"
PEERS = (SVM, "Bonsai")
# stage -> the function that does it; what is left of a fit counts and plants
STAGES = {
    "read": (runs, "prepare"),
    "linear": (artefacts, "linear_scores"),
    "train": (runs, "plant_and_fine_tune"),
    "evaluate": (evaluation, "judge_model"),
}
PARTS = ["read_s", "plant_s", "linear_s", "train_s", "evaluate_s"]
COLUMNS = ["date", "device", "dataset", "documents", "labels", "system", *PARTS, "cpu_seconds"]
COLUMNS += ["times_svm", "predict_ms", "peak_mib", *METRICS, "versions"]
MODELS = ROOT / "artefacts" / "bench"


def timed(function: Callable, seconds: dict[str, float], stage: str) -> Callable:
    """The function, adding its CPU seconds to `seconds`."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        result = function(*arguments, **options)
        seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - began
        return result

    return call


def row_of(inputs: Inputs, system: str, cpu: float, metrics: dict, **more: Any) -> dict:
    """One row of the table; metrics: of test."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": environment()["cpu"],
        "dataset": inputs.corpus.name,
        "documents": len(inputs.rows["train"]),
        "labels": inputs.corpus.L,
        "system": system,
        "cpu_seconds": round(cpu, 2),
        "versions": " ".join(f"{p} {version(p)}" for p in ("torch", "scikit-learn", "scipy")),
        **{name: round(float(metrics[name]), 4) for name in METRICS},
        **more,
    }


def ours(inputs: Inputs, tier: str, root: Path, models: Path | None = MODELS) -> dict:
    """The row of a default fit.

    Args:
        inputs: the corpus, capped.
        tier: the backbone, "words" for the quick tier.
        root: an empty folder of intermediate files.
        models: where the model is saved for `bench_predict.py`; None saves nothing.
    """
    seconds: dict[str, float] = {}
    restart_peak()
    with contextlib.ExitStack() as stack:
        for stage, (module, name) in STAGES.items():
            call = timed(getattr(module, name), seconds, stage)
            stack.enter_context(patch.object(module, name, call))
        began = time.process_time()
        model = runs.fit(inputs.corpus, backbone=tier, root=root, progress=False)
        total = time.process_time() - began
    seconds["plant"] = total - sum(seconds.values())
    texts = [inputs.corpus.texts[i] for i in inputs.rows["test"]]
    began = time.process_time()
    model.predict(texts)
    predict = time.process_time() - began
    if models is not None:
        model.save_pretrained(models / f"{inputs.corpus.name}-{tier}")
    parts = {name: round(seconds[name.removesuffix("_s")], 2) for name in PARTS}
    more = {"predict_ms": round(1e3 * predict / len(texts), 3), "peak_mib": round(peak_mib())}
    system = "quick tier" if tier == words.NAME else f"PLANT, {tier}"
    return row_of(inputs, system, total, model.record.metrics, **parts, **more)


def linear(inputs: Inputs) -> dict:
    """The row of the linear score alone."""
    train, test, labels = inputs.rows["train"], inputs.rows["test"], inputs.corpus.labels
    found = count_words(inputs.corpus.texts, train, linear_score.MIN_DOCUMENTS)
    restart_peak()
    began = time.process_time()
    score = linear_score.fit(found, labels, train, progress=False)
    fitted = time.process_time()
    score.raised(test)
    predict = time.process_time() - fitted
    scored = bare.scored(score.raised, labels, test, inputs.train_counts, auc=False)
    metrics = evaluate(scored, labels[test], inputs.train_counts, len(train))
    more = {"predict_ms": round(1e3 * predict / len(test), 3), "peak_mib": round(peak_mib())}
    return row_of(inputs, LINEAR, fitted - began, metrics, **more)


@dataclass(frozen=True, eq=False)
class Counted(Job):
    """A job that keeps the CPU seconds of every training."""

    spent: list[float] = field(default_factory=list)

    def work(self, *arguments: Any) -> tuple[dict, dict]:
        report, scores = super().work(*arguments)
        self.spent.append(report["train_cpu"])
        return report, scores


def peer(inputs: Inputs, name: str) -> dict:
    """The row of a library's model: all options of its grid are trained, dev chooses one."""
    job = Counted.data_of(inputs)
    record = library_peers.train(inputs, name, job, Path(sys.executable))
    predict = 1e3 * record.times["predict_cpu"] / len(inputs.rows["test"])
    more = {"predict_ms": round(predict, 3), "peak_mib": round(record.peak_memory_mb)}
    return row_of(inputs, name, sum(job.spent), record.metrics, **more)


def beside_svm(rows: list[dict]) -> list[dict]:
    """The rows of one corpus, each with its ratio to the tuned SVM where there is one."""
    svm = [row["cpu_seconds"] for row in rows if row["system"] == SVM]
    if not svm or not svm[0]:
        return rows
    return [row | {"times_svm": round(row["cpu_seconds"] / svm[0], 2)} for row in rows]


def main(arguments: list[str] | None = None) -> None:
    """Append the rows of each corpus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", help="name, or name:most training documents")
    parser.add_argument("--tiers", nargs="*", default=[words.NAME], help="backbones")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for dataset in options.datasets:
        name, _, train = dataset.partition(":")
        caps = {"train": int(train) if train else None, "dev": DEV, "test": TEST}
        corpus = Corpus.load(name).labelled().with_dev().subset(**caps)
        with tempfile.TemporaryDirectory() as folder:
            inputs = prepare(corpus, backbone=words.NAME, root=folder, progress=False)
            rows = [ours(inputs, tier, Path(folder) / tier) for tier in options.tiers]
        rows += [linear(inputs)] + [peer(inputs, system) for system in options.peers]
        rows = beside_svm(rows)
        print(*rows, sep="\n", flush=True)
        append(rows, ROOT / "results" / "bench" / "fit.csv", COLUMNS)


if __name__ == "__main__":
    main()
