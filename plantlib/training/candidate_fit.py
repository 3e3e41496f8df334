"""A `PlantModel` of very many labels: when `fit` trains on candidates, and what becomes of the run.

docs/method.md, "Candidate labels". The run itself is in `candidate_runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from scipy import sparse

from plantlib.candidates.decoder import CandidateConfig
from plantlib.model.plant_model import PlantModel
from plantlib.teacher.mig import Teacher
from plantlib.training.candidate_runs import Made, run, run_id_of
from plantlib.training.evaluation import calibrate
from plantlib.training.ingredients import Ingredients, build_model
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.utils.io import fingerprint_of, held, remove_unless_held

# Above so many cells of (n, L), training documents times labels, `fit` trains on candidates.
CELLS = 2e7
RANK = 128  # of the factors, or the hidden size where that is smaller
WIDTH = CandidateConfig.width  # candidates per document, or the most labels of one
STARTS = ("linear", "lookup+linear", "shuffled+linear")


def on_candidates(documents: int, labels: int, start: str, config: RunConfig) -> bool:
    """Whether `fit` trains on candidates: a problem too large to score whole, begun from the linear
    score, with options that candidates have.

    Args:
        documents: for training.
        labels: L.
        start: what is planted.
        config: of the run; candidates know its `train.epochs` alone.
    """
    rest = replace(config, train=replace(config.train, epochs=TrainConfig.epochs))
    return start in STARTS and rest == RunConfig() and documents * labels > CELLS


def config_for(labels: sparse.csr_matrix, hidden_size: int, epochs: int) -> CandidateConfig:
    """The options of `fit_candidates`: wide enough for the labels (n, L) of every training
    document.
    """
    most = int(np.diff(labels.indptr).max(initial=0))
    width = max(WIDTH, most)
    return CandidateConfig(width=width, rank=min(RANK, hidden_size), epochs=epochs)


def fit_candidates(
    prepared: Inputs,
    start: str,
    seed: int,
    config: RunConfig,
    *,
    progress: bool = True,
    keep_checkpoints: bool = False,
    report_to: str | Sequence[str] = (),
) -> PlantModel:
    """Train on candidates and make a `PlantModel` of the decoder, with its record.

    Args:
        prepared: the corpus, with cached features.
        start: "linear", "lookup+linear" or "shuffled+linear".
        seed: of everything random but the linear score.
        config: its epochs are read.
        progress: show bars.
        keep_checkpoints: keep them until the model is saved.
        report_to: none; no tracker follows training on candidates.

    Raises:
        ValueError: a tracker.
    """
    if report_to:
        raise ValueError(
            f"report_to={report_to!r}: so many labels are trained on candidates, which no tracker"
            " follows; leave it out"
        )
    options = config_for(prepared.train_labels, prepared.hidden_size, config.train.epochs)
    cells = len(prepared.rows["train"]) * prepared.corpus.L
    print(
        f"{cells:,} cells of training documents and labels are too many to score all: a document is"
        f" trained and scored on its {options.width} best labels by the linear score"
    )
    run_id = run_id_of(prepared, start, options, seed)
    key = fingerprint_of(prepared.key, start, asdict(options), seed, "model")
    folder = prepared.root / "checkpoints" / f"{run_id}-{key}"
    with held(folder):
        made = run(prepared, options, start, seed, run_id, folder, None, progress)
        model = model_of(prepared, made, options)
        params = asdict(config) | made.record.params | {"linear": asdict(config.linear)}
        model.record = replace(made.record, params=params)
        if keep_checkpoints:
            model.checkpoints = folder
        else:
            remove_unless_held(folder)
    return model


def model_of(prepared: Inputs, made: Made, options: CandidateConfig) -> PlantModel:
    """A `PlantModel` with the trained decoder, the planted table and the linear score of a run."""
    nothing = sparse.csr_matrix((prepared.corpus.L, len(prepared.vocabulary)), dtype=np.float32)
    planted = nothing if made.data.relevance is None else made.data.relevance
    teacher = Teacher(nothing, planted, "raw", len(prepared.rows["train"]))
    model = build_model(prepared, Ingredients(teacher, linear=made.linear), candidates=options)
    assert made.linear is not None  # every start here has it
    decoder = model.decoder
    decoder.load_state_dict(dict(made.decoder.named_parameters()), strict=False)
    decoder.planted.load_relevance(planted)
    scale, shift = made.linear.lines[0]
    decoder.list_scale.copy_(torch.from_numpy(scale))
    decoder.list_shift.copy_(torch.from_numpy(shift))
    dev = prepared.rows["dev"]
    model.config.threshold = made.record.threshold
    model.config.calibration = calibrate(made.dev.topk, prepared.corpus.labels[dev])
    return model.eval()
