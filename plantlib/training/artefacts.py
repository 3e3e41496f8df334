"""Where the files of a run lie, and how each is made once: tokens, hidden states, queries.

A file is named by the fingerprint of what it was made from, so a later run reads it instead of
computing it again. Every file has one lock (`utils.io.locked`), so that two processes never make it
at the same time. Files are written in a folder that differs per process, and renamed when they are
whole (`utils.io.atomic_path`). A file that is damaged is named and made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from plantlib.backbones import loading, words
from plantlib.backbones.features import (
    Features,
    Standard,
    cached_features,
    hidden_states,
    standard_of,
)
from plantlib.data import tokens as tokenising
from plantlib.data.corpus import Corpus
from plantlib.data.sources import base_folder
from plantlib.data.tokens import Ragged
from plantlib.kernels import machine
from plantlib.linear import score as linear_score
from plantlib.linear import stacking
from plantlib.linear.score import MIN_DOCUMENTS, LinearConfig, LinearScore
from plantlib.planting import l2r, static_l2r
from plantlib.planting.l2r import L2RConfig, Planted
from plantlib.planting.static_l2r import StaticL2R
from plantlib.teacher.crossfit import Withheld
from plantlib.teacher.mig import Teacher, TeacherConfig
from plantlib.teacher.phrase_cells import OwnCells
from plantlib.training.inputs import Inputs
from plantlib.utils.checks import safe_name
from plantlib.utils.folders import atomic_folder, verify
from plantlib.utils.io import fingerprint_of, locked, read_if_whole

# Part of every name: raise it when a constant changes that an artefact was computed with.
VERSION = 1
STANDARD_SAMPLE = 64  # training documents that the spread of hidden states is measured on

BACKBONE = "backbone"  # the format of a folder of word vectors

T = TypeVar("T")


def root_of(root: str | Path | None = None) -> Path:
    """The folder of intermediate artefacts: `root`, or artefacts/ of the checkout (of an installed
    package, in the user's cache folder).
    """
    return Path(root) if root else base_folder() / "artefacts"


def load_or_make(path: Path, load: Callable[[Path], T], make: Callable[[Path], T]) -> T:
    """`load(path)` where the file exists and is whole, else `make(path)`, which writes the file."""
    with locked(path):
        stored = read_if_whole(path, load)
        return make(path) if stored is None else stored


def place(inputs: Inputs, kind: str, *made_from) -> Path:
    """The file of an artefact of this corpus, named by the fingerprint of what it is made from.

    Args:
        kind: a folder, and what the file's name begins with beside the corpus: "planted/listnet".
    """
    folder, _, mark = kind.partition("/")
    name = "-".join(filter(None, [inputs.file_name, mark, fingerprint_of(VERSION, *made_from)]))
    return inputs.root / folder / f"{name}.safetensors"


def run_folder(inputs: Inputs, run_id: str, *made_from) -> Path:
    """The folder of a run's checkpoints."""
    key = fingerprint_of(VERSION, stacking.VERSION, inputs.key, *made_from)
    return inputs.root / "checkpoints" / f"{run_id}-{key}"


def load_backbone(inputs: Inputs, **options) -> loading.Backbone:
    """The backbone in the windows that `inputs` is read in; options as for `loading.load`."""
    reading = {
        "window": inputs.window,
        "overlap": inputs.overlap,
        "trust_remote_code": inputs.trust_remote_code,
    }
    return loading.load(inputs.backbone, **reading | options)


def frozen_backbone(inputs: Inputs) -> loading.Backbone:
    """The frozen backbone, on the GPU where there is one, in the type of its stored weights."""
    device = machine.device()
    config = loading.config_of(inputs.backbone, inputs.trust_remote_code)
    backbone = load_backbone(inputs, dtype=loading.reading_dtype(config, device.type))
    backbone.model.to(device)
    return backbone


def features(inputs: Inputs, progress: bool = True) -> Features:
    """Hidden states of all documents under the frozen backbone."""
    if words.is_static(loading.config_of(inputs.backbone, inputs.trust_remote_code)):
        table = load_backbone(inputs).model.embeddings.weight.detach().numpy()
        return Features(words.LookedUp(table, inputs.tokens.flat), inputs.tokens)
    path = inputs.root / "features" / f"{inputs.file_name}-{inputs.key}.safetensors"
    return _features(inputs, inputs.tokens, path, inputs.key, progress)


def word_backbone(corpus: Corpus, root: Path, *, seed: int = 0) -> str:
    """The folder of the backbone `words` made of the training texts of `corpus`.

    Args:
        corpus: its training rows give the words and their vectors.
        root: folder of intermediate artefacts.
        seed: of the projection.
    """
    key = fingerprint_of(VERSION, corpus.fingerprint(), words.DIM, seed)
    folder = root / words.NAME / f"{safe_name(corpus.name)}-{key}" / words.NAME

    def load(weights: Path) -> Path:
        verify(weights.parent, BACKBONE, "remove the folder")
        return weights.parent

    def make(_: Path) -> Path:
        rows = corpus.rows("train")
        counted = tokenising.words(corpus.texts, rows, MIN_DOCUMENTS)
        weights = tokenising.tfidf(counted.counts, rows)[rows]
        with atomic_folder(folder, BACKBONE) as temporary:
            words.save(counted.names, words.vectors(weights, seed=seed), temporary)
        return folder

    return str(load_or_make(folder / "model.safetensors", load, make))


def train_dev_features(inputs: Inputs, progress: bool = True) -> Features:
    """Hidden states of train and dev documents alone, for L2R pretraining of a run that trains its
    backbone.

    Test documents are read as empty ones: row numbers stay the same, and their forward passes are
    saved.
    """
    used = np.zeros(len(inputs.tokens), bool)
    used[inputs.rows["train"]] = True
    used[inputs.rows["dev"]] = True
    empty = np.zeros(0, np.int32)
    tokens = Ragged.from_lists([inputs.tokens[i] if used[i] else empty for i in range(len(used))])
    key = f"{inputs.key}-train-dev"
    path = inputs.root / "features" / f"{inputs.file_name}-{key}.safetensors"
    return _features(inputs, tokens, path, key, progress)


def _features(inputs: Inputs, tokens: Ragged, path: Path, key: str, progress: bool) -> Features:
    # `cached_features` opens a finished file and goes on with one that a kill cut off
    backbone = partial(frozen_backbone, inputs)
    return cached_features(backbone, tokens, path, key=key, progress=progress)


@lru_cache(maxsize=4)
def standard(inputs: Inputs) -> Standard | None:
    """The shift and scale that bring hidden states to unit spread, measured on training documents.

    None where the spread is near 1 already (`features.standard_of`). The result is remembered for
    the last few corpora, since a backbone that is not cached has to run for it.
    """
    sample = inputs.rows["train"][:STANDARD_SAMPLE]
    if inputs.features is not None:
        return standard_of(inputs.features.documents(sample))
    backbone = frozen_backbone(inputs)
    return standard_of(
        np.concatenate([hidden_states(backbone, [inputs.tokens[i]])[0] for i in sample])
    )


def linear_scores(
    inputs: Inputs, config: LinearConfig, *, seed: int = 0, progress: bool = True
) -> LinearScore:
    """The linear score over words of the training rows.

    Finished folds are kept, so a fit that was killed goes on with the next fold.
    """
    word_counts = tokenising.words(inputs.corpus.texts, inputs.rows["train"], MIN_DOCUMENTS)
    # the score reads words, not tokens, so it is named by the corpus alone where all rows train
    documents = inputs.corpus.fingerprint() if inputs.train_rows is None else inputs.key
    made_from = (VERSION, stacking.VERSION, documents, asdict(config), seed)
    name = f"{inputs.file_name}-{fingerprint_of(*made_from)}"
    folder = inputs.root / "linear" / name
    with locked(folder):
        return linear_score.fit(
            word_counts,
            inputs.corpus.labels,
            inputs.rows["train"],
            config=config,
            seed=seed,
            folder=folder,
            progress=progress,
        )


def label_queries(
    inputs: Inputs,
    trainer: str,
    teacher: Teacher,
    *,
    withheld: Withheld | OwnCells | None,
    phrases: str = "",
    teacher_config: TeacherConfig,
    config: L2RConfig,
    seed: int = 0,
    progress: bool = True,
) -> Planted:
    """Label queries (L, D) pretrained by `trainer` to rank tokens as `teacher` does.

    withheld: what training documents have for themselves, see `l2r.pretrain`. phrases: fingerprint
    of what phrases are made of, where cells of phrases are among it.

    The file is named by `inputs.key`, `teacher_config` and `phrases`; a caller that hands over
    another teacher gives `inputs` another key.

    Raises:
        ValueError: the file holds queries of other labels or tokens.
    """

    def load(path: Path) -> Planted:
        planted = Planted.load(path)
        planted.check(inputs.corpus.label_names, inputs.vocabulary)
        return planted

    def make(path: Path) -> Planted:
        states = inputs.features or train_dev_features(inputs, progress)
        planted = l2r.pretrain(
            trainer,
            replace(states, standard=standard(inputs)),
            inputs.rows["train"],
            teacher,
            label_names=inputs.corpus.label_names,
            tokens=inputs.vocabulary,
            labels=inputs.corpus.labels,
            # the quality is measured against the token teacher
            held_out=inputs.rows["dev"] if teacher.relevance.nnz else None,
            withheld=withheld,
            config=config,
            seed=seed,
            device=machine.device(),
            progress=progress,
        )
        planted.save(path)
        return planted

    made_from = (inputs.key, trainer, asdict(teacher_config), asdict(config), seed)
    made_from += (phrases,) if phrases else ()
    return load_or_make(place(inputs, f"planted/{trainer}", *made_from), load, make)


def static_model(
    inputs: Inputs, dim: int = static_l2r.DIM, *, seed: int = 0, progress: bool = True
) -> StaticL2R:
    """The static L2R model of the training rows, over the backbone's tokens.

    Args:
        dim: size of its token and label embeddings.

    Raises:
        ValueError: the file holds a model of other labels or tokens.
    """

    def load(path: Path) -> StaticL2R:
        model = StaticL2R.load(path)
        model.check(inputs.corpus.label_names, inputs.vocabulary)
        return model

    def make(path: Path) -> StaticL2R:
        model = static_l2r.pretrain(
            inputs.train_tokens,
            inputs.train_labels,
            label_names=inputs.corpus.label_names,
            tokens=inputs.vocabulary,
            dim=dim,
            seed=seed,
            progress=progress,
        )
        model.save(path)
        return model

    return load_or_make(place(inputs, "static", inputs.key, dim, seed), load, make)
