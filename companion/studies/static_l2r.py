"""How well the static L2R model ranks tokens, measured on whole corpora.

    python -m companion.studies.static_l2r codiesp eurlex57k --out results/static_l2r.json

The model is described in docs/method.md, "The first version (v1)".
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from plantlib import Corpus
from plantlib.data.tokens import words
from plantlib.planting.static_l2r import DIM, StaticL2R, pretrain
from plantlib.training.records import environment
from plantlib.utils.io import read_json, write_json


def measure(
    name: str, dim: int = DIM, seed: int = 0, progress: bool = True
) -> tuple[StaticL2R, dict]:
    """(model, what results/static_l2r.json says of it): words of the training documents of a
    corpus, whole.
    """

    corpus = Corpus.load(name).labelled().with_dev().seen_in_train()
    rows = corpus.rows("train")
    found = words([corpus.texts[i] for i in rows], np.arange(len(rows)))
    began, cpu = time.perf_counter(), time.process_time()
    names = corpus.label_names
    model = pretrain(
        found.counts,
        corpus.labels[rows],
        label_names=names,
        tokens=found.names,
        dim=dim,
        seed=seed,
        progress=progress,
    )
    about = {
        "fingerprint": corpus.fingerprint(),
        "documents": len(rows),
        "tokens": len(found.names),
        "labels": len(names),
        "protocol": (
            "by token: no grade of a held-out token is shown, every label ranks all held-out tokens"
        ),
        "quality": model.quality,
        "config": {"dim": dim, "seed": seed},
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    return model, about


def main(arguments: list[str] | None = None) -> int:
    """`python -m companion.studies.static_l2r codiesp eurlex57k --out results/static_l2r.json`:
    adds to what the file holds.
    """

    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.static_l2r", description=__doc__.split("\n")[0]
    )
    parser.add_argument("datasets", nargs="+", help="known names or saved corpus folders")
    parser.add_argument(
        "--out", default="results/static_l2r.json", help="JSON that receives one entry a data set"
    )
    parser.add_argument(
        "--save", help="folder that receives the models, one safetensors file a data set"
    )
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in given.datasets:
        model, about = measure(name, given.dim, given.seed)
        if given.save:
            model.save(Path(given.save) / f"{Path(name).name}.safetensors")
        about["environment"] = environment() | {"threads": torch.get_num_threads(), "device": "cpu"}
        written = read_json(given.out) if Path(given.out).exists() else {}
        write_json(Path(given.out), written | {Path(name).name: about})
        print(f"{Path(name).name}: {about['quality']}, {about['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
