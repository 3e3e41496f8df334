"""What a start plants, and the model it is planted in.

`runs.run_start` plants, trains and records. Not here: the values that a start sets
(`planting.starts`), and the files the ingredients are kept in (`artefacts`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from scipy import sparse

from plantlib.backbones import loading
from plantlib.candidates.decoder import CandidateConfig
from plantlib.data.streaming import LABEL_TEXTS_FILE
from plantlib.data.tokens import tokenise
from plantlib.kernels import machine
from plantlib.kernels.counts import column_counts
from plantlib.linear.phrase_term import TextScore
from plantlib.linear.score import LinearScore
from plantlib.model import lm_head
from plantlib.model.plant_model import PlantConfig, PlantModel
from plantlib.planting import starts
from plantlib.planting.l2r import Planted
from plantlib.planting.phrases import sizes_of
from plantlib.planting.static_l2r import StaticL2R
from plantlib.teacher import crossfit, label_texts, mig
from plantlib.teacher.crossfit import Withheld
from plantlib.teacher.mig import Teacher, TeacherConfig
from plantlib.teacher.phrase_cells import DocumentCells, OwnCells
from plantlib.training import artefacts
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.phrases import PlantedPhrases, key_of, planted_phrases
from plantlib.utils.base import DataError
from plantlib.utils.distributed import main_first


@dataclass(eq=False)
class Ingredients:
    """What a start plants. What the start does not name is None.

    Attributes:
        teacher: relevance (L, V) for attention, scores (L, V) for the document score.
        withheld: what the training documents' own counts gave the teacher.
        queries: pretrained label queries (L, D).
        static: the static L2R model of the first version.
        linear: the linear score over words.
        phrases: what phrases say of the documents.
        text: the score of whole texts of which phrases are a term.
        seconds: how long teacher, l2r and linear took; a run adds its own stages.
    """

    teacher: Teacher
    withheld: Withheld | None = None
    queries: Planted | None = None
    static: StaticL2R | None = None
    linear: LinearScore | None = None
    phrases: PlantedPhrases | None = None
    text: TextScore | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def l2r_table(self) -> sparse.csr_matrix | None:
        """(L, V) scores of the static L2R model."""
        return None if self.static is None else self.static.table()

    @property
    def scored(self) -> LinearScore | TextScore | None:
        """The score of whole texts that training begins from."""
        return self.linear if self.text is None else self.text

    @property
    def cells(self) -> DocumentCells | None:
        """Planted cells of phrases."""
        return None if self.phrases is None else self.phrases.cells

    def about(self) -> dict:
        """What a record states of them beside the teacher's options."""
        about: dict = {}
        if self.queries:
            about["l2r"] = {"trainer": self.queries.trainer, **self.queries.quality}
        if self.linear:
            about["linear"] = self.linear.stack.about()
        if self.phrases is not None and self.text is not None:
            about["phrases"] = self.phrases.about() | {"weights": self.text.stack.about()}
        if self.static is not None:
            about["static_l2r"] = self.static.quality
        return about


def teacher_of(inputs: Inputs, config: TeacherConfig = TeacherConfig()) -> Teacher:
    """The teacher of `config`, counted on the training rows alone, on a GPU where there is one."""
    rows = inputs.train_tokens, inputs.train_labels
    return mig.teach(*rows, **config.counting, device=machine.device())


def ingredients(
    inputs: Inputs,
    start: str,
    config: RunConfig,
    seed: int = 0,
    progress: bool = True,
    teacher: Teacher | None = None,
) -> Ingredients:
    """Count, pretrain or read from artefacts what `start` plants.

    Args:
        seed: of what is drawn in pretraining and in the folds of the linear score.
        teacher: planted in the place of the one that `config.teacher` counts; nothing is withheld.

    Raises:
        DataError: the training rows teach nothing, or no rare label has a text for `text`.
    """
    parts = starts.parts_of(start)
    seconds: dict[str, float] = {}

    # the teacher
    began = time.perf_counter()
    given = teacher is not None
    plants_tokens = bool(set(parts) - {"random", "linear", *starts.PHRASE_STARTS})
    teacher = teacher_of(inputs, config.teacher) if teacher is None else teacher
    if not teacher.scores.nnz and plants_tokens:
        raise DataError(
            "no token of the training documents is associated with a label, so nothing can be"
            " planted; check texts and labels, name a backbone that knows this language,"
            " backbone='FOLDER', or plant no tokens, start='linear'"
        )
    made = Ingredients(teacher, seconds=seconds)
    if plants_tokens and not given:
        made.withheld = withheld_of(inputs, teacher, parts, config.teacher)
    if not starts.plants_tokens(parts):
        nothing = sparse.csr_matrix(teacher.relevance.shape, dtype=teacher.relevance.dtype)
        teacher = made.teacher = replace(teacher, relevance=nothing)
        if made.withheld is not None:
            made.withheld = made.withheld.only(False, "score" in parts)
    # phrases
    if set(starts.PHRASE_STARTS) & set(parts):
        made.phrases = planted_phrases(inputs, parts, config.teacher.cross_fitted)
        if "shuffled" in parts:
            made.phrases = made.phrases.shuffled(teacher.shuffled_order(seed))
    seconds["teacher"] = time.perf_counter() - began

    # learning to rank
    began = time.perf_counter()
    trainer = "closed_form" if "closed_form" in parts else config.l2r_trainer
    with main_first():
        if set(starts.QUERY_STARTS) & set(parts):
            made.queries = artefacts.label_queries(
                inputs,
                trainer,
                teacher,
                withheld=own_cells(inputs, made),
                phrases=key_of(inputs.corpus, inputs.rows["train"], start),
                teacher_config=config.teacher,
                config=config.l2r,
                seed=seed,
                progress=progress,
            )
        if config.v1.wants_table(start):
            made.static = artefacts.static_model(
                inputs, config.static_dim, seed=seed, progress=progress
            )
    seconds["l2r"] = time.perf_counter() - began

    # the linear score
    began = time.perf_counter()
    if "linear" in parts:
        with main_first():
            made.linear = artefacts.linear_scores(
                inputs, config.linear, seed=seed, progress=progress
            )
    if made.phrases is not None:
        made.text = made.phrases.score(made.linear, inputs, seed)
        made.linear = made.text.linear
    seconds["linear"] = time.perf_counter() - began

    # queries are pretrained on counted words alone; texts of labels join for what is planted
    if "text" in parts:
        made.teacher = with_label_texts(inputs, teacher, parts, config.teacher)
    return made


def own_cells(inputs: Inputs, made: Ingredients) -> Withheld | OwnCells | None:
    """What training documents have for themselves while queries are pretrained."""
    if made.phrases is None:
        return made.withheld
    return OwnCells(made.phrases.cells, inputs.rows["train"], made.withheld)


def withheld_of(
    inputs: Inputs, teacher: Teacher, parts: Sequence[str], config: TeacherConfig
) -> Withheld | None:
    """What the teacher of a start loses for each training document when that one is not counted.

    Args:
        teacher: counted by `config`.
        parts: the names that the start joins by "+".

    Returns:
        None where the teacher is not cross-fitted.
    """
    if not config.cross_fitted:
        return None
    rows = inputs.train_tokens, inputs.train_labels
    if "text" not in parts:
        return crossfit.withhold(*rows, teacher, config).only(True, "score" in parts)
    words = words_of_labels(inputs, config)
    both = label_texts.joined(teacher, words, **_grading(inputs, config))
    # what comes from the labels' texts alone has counted no document
    return crossfit.withhold(*rows, both, config, words).only("lookup" in parts, "score" in parts)


def build_model(
    inputs: Inputs,
    made: Ingredients | Teacher,
    config: RunConfig = RunConfig(),
    candidates: CandidateConfig | None = None,
) -> PlantModel:
    """A model of the corpus's sizes, not yet planted and without backbone.

    The linear score of `made` is filled in, and the language model's own head where the options
    need one.

    Args:
        made: the ingredients of a start, or a teacher alone.
        candidates: options of a model on candidates; None for one that scores all labels.

    Raises:
        ValueError: stateful="v1" with windows that overlap.
    """
    made = Ingredients(made) if isinstance(made, Teacher) else made
    v1 = config.v1
    if v1.stateful == "v1" and inputs.overlap:
        raise ValueError(
            f"stateful='v1' reads segments side by side, not overlap={inputs.overlap}; prepare"
            " with overlap=0"
        )
    l2r_cells = 0 if made.static is None else made.l2r_table.nnz
    head = None
    if config.train.lm_weight or (l2r_cells and v1.l2r_from != "read"):
        head = lm_head.load(inputs.backbone, len(inputs.vocabulary), inputs.trust_remote_code)
    options = _model_config(inputs, made, config, l2r_cells, head is not None)
    if candidates is not None:
        options.candidates, options.rank = candidates.width, candidates.rank
    model = PlantModel(options)
    if made.linear is not None:
        model.word_score.load_linear(made.linear)
    if made.phrases is not None and made.text is not None:
        model.phrase_score.load(made.phrases.lists, made.text, made.phrases.columns)
    if head is not None:
        model.lm_head.load_state_dict(head.state_dict())
    standard = artefacts.standard(inputs)
    if standard is not None:
        model.hidden_shift.copy_(torch.from_numpy(standard.shift))
        model.hidden_scale.copy_(torch.from_numpy(standard.scale))
    return model


def _model_config(
    inputs: Inputs, made: Ingredients, config: RunConfig, l2r_cells: int, has_head: bool
) -> PlantConfig:
    names, known = inputs.corpus.label_names, inputs.corpus.label_texts
    inner = loading.config_of(inputs.backbone, inputs.trust_remote_code)
    keep = config.keep
    return PlantConfig(
        backbone_name=Path(inputs.backbone).name,
        hidden_size=inputs.hidden_size,
        num_tokens=len(inputs.vocabulary),
        num_planted_cells=made.teacher.relevance.nnz,
        num_teacher_cells=made.teacher.scores.nnz,
        num_l2r_cells=l2r_cells,
        contexts=config.v1.contexts,
        stateful=config.v1.stateful,
        l2r_from=config.v1.l2r_from,
        lm_head=has_head,
        backward=getattr(inner, "direction", "forward") == "backward",
        keep=list(keep) if isinstance(keep, tuple) else keep,
        max_tokens=inputs.max_tokens,
        window=inputs.window,
        overlap=inputs.overlap,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        label_texts={name: known[name] for name in names if name in known} or None,
        standardised=artefacts.standard(inputs) is not None,
        num_words=len(made.linear.words) if made.linear else 0,
        num_word_cells=made.linear.tables[0].cells.nnz if made.linear else 0,
        phrases=sizes_of(made.phrases.lists) if made.phrases else None,
        train_counts=inputs.train_counts.tolist(),
        train_documents=len(inputs.rows["train"]),
        credentialed=inputs.credentialed,
    )


def use_score(model: PlantModel, parts: Sequence[str], teacher: Teacher, inputs: Inputs) -> None:
    """Fill the teacher's document score where the start plants it.

    Other starts leave the module out, and do not train its gain.
    """
    model.decoder.linear_gain.requires_grad_(model.scores_text)
    if starts.SCORED & set(parts):
        model.teacher_score.load_teacher(teacher, inputs.train_tokens)
        return
    model.teacher_score = None
    model.config.num_teacher_cells = 0
    model.decoder.teacher_gain.requires_grad_(False)


def with_label_texts(
    inputs: Inputs,
    teacher: Teacher,
    parts: Sequence[str],
    config: TeacherConfig,
    folder: str | Path | None = None,
) -> Teacher:
    """What a start with the part `text` plants: relevance for attention, scores for the document.

    Labels with at most `label_texts.FEW` documents get the words of their texts in both. The MIG
    teacher joins where the start names it: in attention with `lookup`, in the document score with
    `score`.

    Args:
        folder: where label_texts.json may lie; see `label_texts.read`.

    Raises:
        DataError: no such label has a text.
    """
    by_text = words_of_labels(inputs, config, folder)
    both = label_texts.joined(teacher, by_text, **_grading(inputs, config))
    attention = both if "lookup" in parts else by_text
    document = both if "score" in parts else by_text
    return Teacher(document.scores, attention.relevance, teacher.variant, teacher.n_train)


def words_of_labels(
    inputs: Inputs, config: TeacherConfig, folder: str | Path | None = None
) -> Teacher:
    """The teacher of labels with at most `label_texts.FEW` documents, from the labels' own texts.

    Raises:
        DataError: no such label has a text.
    """
    text_counts = label_word_counts(inputs, label_texts.read(inputs.corpus, folder))
    options = {"top_k": config.top_k, "relevance": config.relevance, "variant": config.variant}
    by_text = label_texts.teach(text_counts, inputs.train_tokens, **options)
    by_text = label_texts.limited(by_text, inputs.train_counts)
    if not by_text.scores.nnz:
        raise DataError(
            f"no label of {inputs.corpus.name!r} with at most {label_texts.FEW} training documents"
            f" has a text; start without 'text', or put {LABEL_TEXTS_FILE} into the corpus's folder"
        )
    return by_text


def _grading(inputs: Inputs, config: TeacherConfig) -> dict:
    """Options of `label_texts.joined`."""
    vocabulary = max(int((column_counts(inputs.train_tokens) > 0).sum()), 1)
    return {"top_k": config.top_k, "relevance": config.relevance, "vocabulary": vocabulary}


def label_word_counts(inputs: Inputs, texts: Sequence[str | None]) -> sparse.csr_matrix:
    """(L, V) token counts of the labels' texts, by the tokenizer that read the documents."""
    tokenizer = loading.tokenizer_of(inputs.backbone, inputs.trust_remote_code)
    tokens = tokenise([text or "" for text in texts], tokenizer, progress=False)
    return tokens.counts(len(inputs.vocabulary))
