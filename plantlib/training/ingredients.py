"""What a start plants, and a PlantModel of a corpus's sizes before it does: `runs.run_start`
plants, trains and records it.

It reads sizes off a `Prepared` corpus and its teachers. Not here: the values a start sets
(`planting.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import sparse

from plantlib.backbones import loading
from plantlib.data.streaming import LABEL_TEXTS_FILE
from plantlib.data.tokens import tokenise
from plantlib.linear.score import LinearScore
from plantlib.model import lm_head
from plantlib.model.plant_model import PlantConfig, PlantModel
from plantlib.planting import starts, static_l2r
from plantlib.planting.l2r import Planted
from plantlib.planting.starts import V1Config
from plantlib.planting.static_l2r import StaticL2R, pretrain
from plantlib.teacher.label_texts import FEW, _seen, joined, limited, read, teach
from plantlib.teacher.mig import Teacher, TeacherConfig
from plantlib.training.options import RunConfig
from plantlib.training.pipeline import Prepared, pretrained
from plantlib.utils.base import DataError
from plantlib.utils.distributed import main_first
from plantlib.utils.io import fingerprint_of


class Ingredients(NamedTuple):
    """What a start plants: the teacher, L2R queries, the static L2R model and the linear score,
    where it names them.

    times: seconds each of teacher, l2r and linear took.
    """

    teacher: Teacher
    planted: Planted | None
    static: static_l2r.StaticL2R | None
    linear: LinearScore | None
    times: dict[str, float]

    @property
    def l2r_table(self) -> sparse.csr_matrix | None:
        """(L, V) scores of the static L2R model."""
        return None if self.static is None else self.static.table()

    def about(self) -> dict:
        """What a record says of them beside the teacher's options."""
        found = (
            {"l2r": {"trainer": self.planted.trainer, **self.planted.quality}}
            if self.planted
            else {}
        )
        found |= {"linear": self.linear.stack.about()} if self.linear else {}
        return found | ({"static_l2r": self.static.quality} if self.static is not None else {})


def ingredients(
    prepared: Prepared, start: str, config: RunConfig, seed: int = 0, progress: bool = True
) -> Ingredients:
    """Count, pretrain or read from artefacts what `start` plants; DataError where the training rows
    teach nothing.
    """
    parts, clock = starts.parts_of(start), [time.perf_counter()]
    teacher = prepared.teacher(config.teacher)
    if not teacher.scores.nnz and parts != ["random"]:
        raise DataError(
            "no token speaks for any label of the training rows, so nothing can be planted; check"
            " texts and labels"
        )
    clock.append(time.perf_counter())
    wanted = next((p for p in parts if p in starts.QUERY_STARTS), "")
    trainer = {"l2r": config.l2r_trainer, "closed_form": "closed_form"}.get(wanted)
    planted = static = None
    if trainer:
        options = {"teacher_config": config.teacher, "config": config.l2r, "seed": seed}
        with main_first():
            planted = pretrained(prepared, trainer, teacher, **options, progress=progress)
    if config.v1.wants_table(start):
        with main_first():
            static = static_model(prepared, config.static_dim, seed, progress)
    clock.append(time.perf_counter())
    linear = prepared.linear(config.linear, progress, seed) if "linear" in parts else None
    clock.append(time.perf_counter())
    if "text" in parts:
        teacher = with_label_texts(prepared, teacher, parts, config.teacher)
    times = {
        name: b - a
        for name, a, b in zip(("teacher", "l2r", "linear"), clock[:-1], clock[1:], strict=True)
    }
    return Ingredients(teacher, planted, static, linear, times)


def build_model(
    prepared: Prepared,
    teacher: Teacher,
    *,
    keep: int | tuple | None = None,
    l2r_table: sparse.csr_matrix | None = None,
    v1: V1Config | None = None,
    lm_weight: float = 0.0,
    linear: LinearScore | None = None,
) -> PlantModel:
    """An unplanted model of the corpus's sizes, without backbone; with the language model's head
    where one is needed.

    linear: its score over words is filled in.
    """
    v1 = v1 or V1Config()
    if v1.stateful == "v1" and prepared.overlap:
        raise ValueError(
            f"stateful='v1' reads segments side by side, not overlap={prepared.overlap}; prepare"
            " with overlap=0"
        )
    names, cells = prepared.corpus.label_names, 0 if l2r_table is None else l2r_table.nnz
    head = None
    if lm_weight or (cells and v1.l2r_from != "read"):
        head = lm_head.load(prepared.backbone, len(prepared.vocabulary), prepared.trust_remote_code)
    inner = loading.config_of(prepared.backbone, prepared.trust_remote_code)
    config = PlantConfig(
        backbone_name=Path(prepared.backbone).name,
        hidden_size=prepared.hidden_size,
        num_tokens=len(prepared.vocabulary),
        num_planted_cells=teacher.relevance.nnz,
        num_teacher_cells=teacher.scores.nnz,
        num_l2r_cells=cells,
        contexts=v1.contexts,
        stateful=v1.stateful,
        l2r_from=v1.l2r_from,
        lm_head=head is not None,
        backward=getattr(inner, "direction", "forward") == "backward",
        keep=list(keep) if isinstance(keep, tuple) else keep,
        max_tokens=prepared.max_tokens,
        window=prepared.window,
        overlap=prepared.overlap,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        standardised=prepared.standard is not None,
        num_words=len(linear.words) if linear else 0,
        num_word_cells=linear.tables[0].cells.nnz if linear else 0,
    )
    model = PlantModel(config)
    if linear is not None:
        model.word_score.load_linear(linear)
    if head is not None:
        model.lm_head.load_state_dict(head.state_dict())
    if prepared.standard is not None:
        model.hidden_shift.copy_(torch.from_numpy(prepared.standard.shift))
        model.hidden_scale.copy_(torch.from_numpy(prepared.standard.scale))
    return model


def use_score(model: PlantModel, parts: list[str], teacher: Teacher, prepared: Prepared) -> None:
    """Fill the teacher's document score where the start plants it; elsewhere the model does
    without, and without its gain.
    """
    model.decoder.linear_gain.requires_grad_(model.word_score is not None)
    if starts.SCORED & set(parts):
        model.teacher_score.load_teacher(teacher, prepared.counts[prepared.rows["train"]])
    else:
        model.teacher_score, model.config.num_teacher_cells = None, 0
        model.decoder.teacher_gain.requires_grad_(False)


def label_word_counts(prepared: Prepared, texts: Sequence[str | None]) -> sparse.csr_matrix:
    """(L, V) tokens of the labels' texts by the tokenizer the documents were read with."""

    tokenizer = loading.tokenizer_of(prepared.backbone, prepared.trust_remote_code)
    return tokenise([text or "" for text in texts], tokenizer, progress=False).counts(
        len(prepared.vocabulary)
    )


def with_label_texts(
    prepared: Prepared,
    teacher: Teacher,
    parts: Sequence[str],
    config: TeacherConfig,
    folder: str | Path | None = None,
) -> Teacher:
    """What a start with the part `text` plants: relevance for the attention, scores for the
    document score.

    Labels with at most FEW documents get their words in both. The MIG teacher stands beside them
    where the start names it: in the attention with `lookup`, in the document score with `score`.
    """
    texts = read(prepared.corpus, folder)
    counts = prepared.counts[prepared.rows["train"]]
    options = {"variant": config.variant, "top_k": config.top_k, "relevance": config.relevance}
    words = limited(
        teach(label_word_counts(prepared, texts), counts, **options), prepared.train_counts
    )
    if not words.scores.nnz:
        raise DataError(
            f"no label of {prepared.corpus.name!r} with at most {FEW} training documents has a"
            f" text; start without 'text', or lay {LABEL_TEXTS_FILE} beside the corpus"
        )
    both = joined(
        teacher, words, top_k=config.top_k, relevance=config.relevance, vocabulary=_seen(counts)
    )
    attention, score = (both if name in parts else words for name in ("lookup", "score"))
    return Teacher(score.scores, attention.relevance, teacher.variant, teacher.n_train)


def static_model(
    prepared: Prepared, dim: int = static_l2r.DIM, seed: int = 0, progress: bool = True
) -> StaticL2R:
    """The model of a `pipeline.Prepared` corpus, over its backbone's tokens: made where it is
    missing, checked against it.
    """

    names, tokens, corpus = prepared.corpus.label_names, prepared.vocabulary, prepared.corpus.name
    path = (
        prepared.root / "static" / f"{corpus}-{fingerprint_of(prepared.key, dim, seed)}.safetensors"
    )
    if path.exists():
        found = StaticL2R.load(path)
        found.check(names, tokens)
        return found
    counts = prepared.counts[prepared.rows["train"]]
    found = pretrain(
        counts,
        prepared.train_labels,
        label_names=names,
        tokens=tokens,
        dim=dim,
        seed=seed,
        progress=progress,
    )
    found.save(path)
    return found
