"""CPU seconds and memory of the phrase teacher on generated phrases -> results/bench/phrases.csv.

    python benchmarks/bench_phrases.py                       # 10^4 to 10^6 phrases
    python benchmarks/bench_phrases.py --sizes 1000

Phrases are runs of 2 to 4 words of a vocabulary with Zipf's frequencies, ten for each label, given
as texts of labels. 200 training documents are counted and 1,000 others are scored; a document is
300 drawn words and ten phrases. Times are CPU time of one thread, so other work on the machine
changes them little; memory is what the phrases add to the process.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import append, peak_mib, restart_peak
from plantlib.teacher import phrases
from plantlib.training.records import environment

SIZES = (10_000, 100_000, 1_000_000)
PER_LABEL = 10  # phrases
VOCABULARY = 50_000
TRAIN, READ = 200, 1000  # documents
WORDS, HELD = 300, 10  # words and phrases of a document
COLUMNS = ["date", "device", "phrases", "labels", "teach_s", "peak_mib", "ms_per_document"]


def words_of(count: int, rng: np.random.Generator) -> list[str]:
    """Words drawn by Zipf's law."""
    share = 1 / np.arange(1, VOCABULARY + 1)
    return [f"w{i}" for i in rng.choice(VOCABULARY, count, p=share / share.sum())]


def generated(size: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Phrases, and documents that hold some of them."""
    lengths = rng.integers(2, 5, size)
    ends = np.cumsum(lengths)
    words = words_of(int(ends[-1]), rng)
    made = [" ".join(words[end - n : end]) for end, n in zip(ends, lengths, strict=True)]
    texts = []
    for _ in range(TRAIN + READ):
        held = [made[i] for i in rng.integers(0, size, HELD)]
        texts.append(" ".join([*words_of(WORDS, rng), *held]))
    return made, texts


def measure(size: int) -> dict:
    """The row of so many phrases."""
    made, texts = generated(size, np.random.default_rng(0))
    label_texts = [made[i : i + PER_LABEL] for i in range(0, size, PER_LABEL)]
    labels = sparse.csr_matrix((TRAIN, len(label_texts)))
    restart_peak()
    before = peak_mib()
    began = time.process_time()
    teacher = phrases.teach(texts[:TRAIN], labels, label_texts=label_texts)
    taught = time.process_time()
    teacher.scores(texts[TRAIN:])
    scored = time.process_time()
    return {
        "date": datetime.date.today().isoformat(),
        "device": environment()["cpu"],
        "phrases": size,
        "labels": len(label_texts),
        "teach_s": round(taught - began, 2),
        "peak_mib": round(peak_mib() - before),
        "ms_per_document": round(1e3 * (scored - taught) / READ, 3),
    }


def main(arguments: list[str] | None = None) -> None:
    """Append a row per number of phrases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="PHRASES")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "phrases.csv")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for size in options.sizes:
        row = measure(size)
        print(row, flush=True)
        append([row], options.out, COLUMNS)


if __name__ == "__main__":
    main()
