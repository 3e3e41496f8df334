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
from plantlib.data import privacy
from plantlib.data.credentials import check_folder
from plantlib.data.tokens import words
from plantlib.planting.static_l2r import DIM, StaticL2R, pretrain
from plantlib.training.records import environment
from plantlib.utils.io import read_json, write_json


def measure(
    name: str, dim: int = DIM, seed: int = 0, progress: bool = True
) -> tuple[StaticL2R, dict]:
    """Train the static L2R model on the words of a corpus's whole training documents.

    Args:
        name: a known corpus or the folder of one.
        dim: dimension of the embeddings.
        seed: of the model.
        progress: show bars.

    Returns:
        The model, and its entry in results/static_l2r.json.
    """
    corpus = Corpus.load(name).labelled().with_dev().seen_in_train()
    rows = corpus.rows("train")
    read = words([corpus.texts[i] for i in rows], np.arange(len(rows)))
    wall = time.perf_counter()
    cpu = time.process_time()
    names = corpus.label_names
    model = pretrain(
        read.counts,
        corpus.labels[rows],
        label_names=names,
        tokens=read.names,
        dim=dim,
        seed=seed,
        progress=progress,
    )
    about = {
        "fingerprint": corpus.fingerprint(),
        "documents": len(rows),
        "tokens": len(read.names),
        "labels": len(names),
        "protocol": (
            "by token: no grade of a held-out token is shown, every label ranks all held-out tokens"
        ),
        "quality": model.quality,
        "config": {"dim": dim, "seed": seed},
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    return model, about


def main(arguments: list[str] | None = None) -> int:
    """Measure the named corpora; entries of other corpora in the file stay as they are."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.static_l2r", description=__doc__.split("\n")[0]
    )
    parser.add_argument("datasets", nargs="+", help="known names or saved corpus folders")
    parser.add_argument(
        "--out", default="results/static_l2r.json", help="JSON with one entry per data set"
    )
    parser.add_argument("--save", help="folder for the models, one safetensors file per data set")
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.datasets:
        if options.save:
            check_folder(name, options.save, privacy.is_credentialed(name))
        model, about = measure(name, options.dim, options.seed)
        if options.save:
            model.save(Path(options.save) / f"{Path(name).name}.safetensors")
        about["environment"] = environment() | {"threads": torch.get_num_threads(), "device": "cpu"}
        written = read_json(options.out) if Path(options.out).exists() else {}
        write_json(Path(options.out), written | {Path(name).name: about})
        print(f"{Path(name).name}: {about['quality']}, {about['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
