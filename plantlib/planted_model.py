"""A PlantModel of a corpus's sizes, before anything is planted: what `runs.run_start` plants, trains and records.

It reads sizes off a `Prepared` corpus and its teachers. Not here: the values a start sets (`planting.py`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from scipy import sparse

from plantlib import backbones, lm_head, planting
from plantlib.linear_score import LinearScore
from plantlib.mig import Teacher
from plantlib.model import PlantConfig, PlantModel
from plantlib.pipeline import Prepared
from plantlib.planting import V1Config


def build_model(
    prepared: Prepared, teacher: Teacher, *, keep: int | tuple | None = None, l2r_table: sparse.csr_matrix | None = None,
    v1: V1Config | None = None, lm_weight: float = 0.0, linear: LinearScore | None = None,
) -> PlantModel:  # fmt: skip
    """An unplanted model of the corpus's sizes, without backbone; with the language model's head where one is needed.

    linear: its score over words is filled in.
    """
    v1 = v1 or V1Config()
    if v1.stateful == "v1" and prepared.overlap:
        raise ValueError(f"stateful='v1' reads segments side by side, not overlap={prepared.overlap}; prepare with overlap=0")
    names, cells = prepared.corpus.label_names, 0 if l2r_table is None else l2r_table.nnz
    head = None
    if lm_weight or (cells and v1.l2r_from != "read"):
        head = lm_head.load(prepared.backbone, len(prepared.vocabulary), prepared.trust_remote_code)
    inner = backbones.config_of(prepared.backbone, prepared.trust_remote_code)
    config = PlantConfig(
        backbone_name=Path(prepared.backbone).name, hidden_size=prepared.hidden_size,
        num_tokens=len(prepared.vocabulary), num_planted_cells=teacher.relevance.nnz, num_teacher_cells=teacher.scores.nnz,
        num_l2r_cells=cells, contexts=v1.contexts, stateful=v1.stateful, l2r_from=v1.l2r_from, top_n=v1.top_n,
        lm_head=head is not None, backward=getattr(inner, "direction", "forward") == "backward",
        keep=list(keep) if isinstance(keep, tuple) else keep,
        max_tokens=prepared.max_tokens, window=prepared.window, overlap=prepared.overlap,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
        standardised=prepared.standard is not None, num_words=len(linear.words) if linear else 0,
        num_word_cells=linear.tables[0].cells.nnz if linear else 0,
    )  # fmt: skip
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
    """Fill the teacher's document score where the start plants it; elsewhere the model does without, and without its gain."""
    model.decoder.linear_gain.requires_grad_(model.word_score is not None)
    if planting.SCORED & set(parts):
        model.teacher_score.load_teacher(teacher, prepared.counts[prepared.rows["train"]])
    else:
        model.teacher_score, model.config.num_teacher_cells = None, 0
        model.decoder.teacher_gain.requires_grad_(False)
