"""Learning on from corrections: a trained model and some documents with their right labels give a
model that knows them; docs/method.md, "Learning from corrections".

What was counted is counted again over all documents, so teacher and linear score equal those of one
fit on them. Labels that are new get rows of their own, and the decoder trains on from where it
stands, on the corrections and a sample of the documents before. Dev decides whether that stays. The
documents come from the model's own folder (`data.kept`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from plantlib.backbones import loading
from plantlib.backbones import words as word_vectors
from plantlib.backbones.features import Features, cached_features
from plantlib.data import privacy
from plantlib.data.kept import Kept
from plantlib.data.tokens import Ragged, Words, tfidf
from plantlib.kernels import machine
from plantlib.kernels.counts import column_counts
from plantlib.linear import rare
from plantlib.linear import score as linear_score
from plantlib.linear.score import MIN_DOCUMENTS, LinearConfig, LinearScore
from plantlib.metrics.documents import Scores, ndcg_at_k, tune_threshold
from plantlib.model import label_sets, saving
from plantlib.model.plant_model import PlantConfig, PlantModel
from plantlib.planting import starts
from plantlib.teacher import crossfit, mig
from plantlib.teacher.mig import Teacher, TeacherConfig
from plantlib.training import evaluation, train
from plantlib.training.inputs import Documents, Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.records import RunRecord, environment, plain
from plantlib.utils.base import DataError
from plantlib.utils.checks import check_whole
from plantlib.utils.io import fingerprint_of

EPOCHS = 2  # passes over the corrections, at most
# documents of before that are read again in an epoch: so many for each new one, and so many at
# least
REPLAYED = 4
LEAST_REPLAYED = 512
# parts of a start that are not counted again here
BEYOND = {"shuffled", "v1", "text", *starts.PHRASE_STARTS}


def kept_of(inputs: Inputs, config: RunConfig, record: RunRecord) -> Kept:
    """What a model keeps of its documents, so that it can learn on.

    record: of the run that trained it.
    """
    rows = np.sort(np.concatenate([inputs.rows["train"], inputs.rows["dev"]]))
    inner = loading.config_of(inputs.backbone, inputs.trust_remote_code)
    options = {
        "teacher": config.teacher,
        "linear": config.linear,
        "train": dataclasses.replace(config.train, stages=(), keep_from=None, keep_epochs=0),
    }
    about = {name: plain(dataclasses.asdict(value)) for name, value in options.items()}
    return Kept.of(
        [inputs.corpus.texts[i] for i in rows],
        np.where(np.isin(rows, inputs.rows["train"]), "train", "dev"),
        inputs.corpus.labels[rows],
        None if word_vectors.is_static(inner) else inputs.tokens.select(rows),
        about | about_record(record),
    )


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of learning on.

    Attributes:
        model: the model that knows the corrections.
        new_documents, corrected: how many documents were new, and how many were known with other
            labels or the same.
        new_labels: labels that the model did not have.
        untrained, trained: nDCG@5 of dev, counted anew and after the decoder has trained on.
        dev, gold: places of the m dev documents, and their labels (m, L).
    """

    model: PlantModel
    new_documents: int
    corrected: int
    new_labels: list[str]
    untrained: float
    trained: float
    dev: Scores
    gold: sparse.csr_matrix


@dataclass(frozen=True, eq=False)
class Counted:
    """Kept documents of n rows as a model reads them, and all that is counted from their training
    rows: what one fit on the same documents counts.

    kept: the documents. tokens: token ids of all rows. num_tokens: V. start, seed, teacher_config,
    linear_config: of the run.
    """

    kept: Kept
    tokens: Ragged
    num_tokens: int
    start: str
    seed: int
    teacher_config: TeacherConfig
    linear_config: LinearConfig

    @cached_property
    def train(self) -> np.ndarray:
        """(n,) rows of train."""
        return self.kept.rows("train")

    @property
    def parts(self) -> list[str]:
        """The names that the start joins by "+"."""
        return starts.parts_of(self.start)

    @cached_property
    def words(self) -> Words:
        """The words of the linear score."""
        return self.kept.known_words(MIN_DOCUMENTS)

    @cached_property
    def train_tokens(self) -> sparse.csr_matrix:
        """(n, V) token counts of the training rows."""
        return self.tokens.counts(self.num_tokens)[self.train]

    @cached_property
    def train_labels(self) -> sparse.csr_matrix:
        """(n, L) labels of the training rows."""
        return self.kept.labels[self.train]

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher of all training rows."""
        rows = self.train_tokens, self.train_labels
        return mig.teach(*rows, **self.teacher_config.counting, device=machine.device())

    @cached_property
    def linear(self) -> LinearScore | None:
        """The linear score of all training rows, where the start plants one."""
        if "linear" not in self.parts:
            return None
        return linear_score.fit(
            self.words,
            self.kept.labels,
            self.train,
            config=self.linear_config,
            seed=self.seed,
            progress=False,
        )

    @property
    def withheld(self) -> crossfit.Withheld | None:
        """What each training document's own counts gave the teacher, where it is cross-fitted."""
        if not self.teacher_config.cross_fitted or not set(self.parts) - {"random", "linear"}:
            return None
        rows = self.train_tokens, self.train_labels
        changes = crossfit.withhold(*rows, self.teacher, self.teacher_config)
        return changes.only(True, "score" in self.parts)


class Replay(Documents):
    """Training documents of which an epoch reads some."""

    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> int:
        return int(self.chosen[i])


def learn(
    model: PlantModel,
    texts: Sequence[str],
    labels: Sequence[Sequence[str]],
    *,
    epochs: int = EPOCHS,
    credentialed: bool = False,
    progress: bool = True,
) -> Learned:
    """A model that knows some more documents, or known ones with other labels.

    Args:
        model: trained by `fit`; it is not changed.
        texts: N documents. One that the model was trained on, or chosen by, is corrected.
        labels: N lists of labels; those that the model does not have become new ones.
        epochs: passes over the corrections, at most; dev chooses among them.
        credentialed: the texts are under a data use agreement.
        progress: show progress bars.

    Raises:
        DataError: no documents, or the model's folder has no documents to learn on with.
        ValueError: a start or decoder that does not learn on, or other numbers of texts and labels.
    """
    check_whole("epochs", epochs)
    if model.config.candidates:
        raise ValueError(
            "this model scores candidates of very many labels, and such a model does not learn on;"
            " fit again on all documents"
        )
    kept = saving.documents_of(model)
    check_learnable(model, kept.about["record"]["system"])
    texts, labels = list(texts), [list(row) for row in labels]
    if not texts or len(texts) != len(labels):
        raise DataError(
            f"{len(texts)} texts and {len(labels)} lists of labels to learn from: give one list of"
            " labels for each of one or more texts"
        )
    # the documents and labels of before and of now
    old = list((model.config.id2label or {}).values())
    new = sorted({label for row in labels for label in row} - set(old))
    tokens = None if kept.tokens is None else model.tokenise(texts)
    more = label_sets.in_columns(labels, [*old, *new])
    corrections = Kept.of(texts, ["train"] * len(texts), more, tokens, {})
    after = kept.joined(corrections)
    fresh = np.flatnonzero(np.isin(after.keys, corrections.keys) & (after.split == "train"))
    # count anew, then train on
    counted = counted_of(after, model)
    learner = built(model, counted, [*old, *new])
    learner.config.credentialed = learner.config.credentialed or credentialed
    backbone = backbone_of(model, counted)
    with privacy.folder_for(learner.config.credentialed) as folder:
        work = (fresh, Path(folder), epochs, progress)
        untrained, values, dev, added = train_on(learner, backbone, counted, *work)
    learner.attach_backbone(backbone)
    learner.backbone_source = model.backbone_source
    # what belongs to the model beside its weights
    gold = after.labels[after.rows("dev")]
    learner.config.threshold = tune_threshold(dev.topk, gold)
    learner.config.calibration = evaluation.calibrate(dev.topk, gold)
    learner.record = record_of(learner, after, len(texts), added)
    learner.kept = dataclasses.replace(after, about=after.about | about_record(learner.record))
    return Learned(
        learner.eval(),
        new_documents=len(after.keys) - len(kept.keys),
        corrected=len(set(corrections.keys) & set(kept.keys)),
        new_labels=new,
        untrained=float(untrained.mean()),
        trained=float(values.mean()),
        dev=dev,
        gold=gold,
    )


def check_learnable(model: PlantModel, start: str) -> None:
    """ValueError for a model that cannot learn on; it says which part."""
    model.as_backbone()
    decoder = model.decoder
    beyond = sorted(BEYOND & set(starts.parts_of(start)))
    if beyond or decoder.l2r is not None or decoder.contexts != "mixed":
        reason = f"the start {beyond[0]!r}" if beyond else "parts of the first version"
        raise ValueError(
            f"this model has {reason}, which is not counted again here; train a model with"
            " start='lookup+linear', or fit on all documents"
        )


def counted_of(kept: Kept, model: PlantModel) -> Counted:
    """Kept documents with what is counted from them; word ids are those of the new word list."""
    about, most = kept.about, model.config.max_tokens
    tokens, size = kept.tokens, model.config.num_tokens
    if tokens is None:
        names = kept.known_words(MIN_DOCUMENTS).names
        tokens, size = kept.as_tokens(names, most), len(names)
    record = about["record"]
    teacher, linear = TeacherConfig(**about["teacher"]), LinearConfig(**about["linear"])
    return Counted(kept, tokens.cut(most), size, record["system"], record["seed"], teacher, linear)


def built(model: PlantModel, counted: Counted, names: list[str]) -> PlantModel:
    """The model with the new tables and the trained values of before; new labels have those that
    their start gives them.

    names: labels, those of the model first.
    """
    config = config_of(model, counted, names)
    learner = PlantModel(config)
    decoder, trained = learner.decoder, model.decoder
    # everything as in a fit, then what was trained
    parts = [part for part in counted.parts if part not in starts.QUERY_STARTS] or ["random"]
    start, seed = "+".join(parts), counted.seed
    starts.plant(decoder, start, counted.teacher, counted.train_labels, seed=seed)
    with torch.no_grad():
        for name, value in trained.named_parameters():
            place = getattr(decoder, name)
            (place[: len(value)] if value.ndim else place).copy_(value)
        # rare labels are raised again afterwards, by their new numbers of documents
        added = counted.kept.about["record"]["params"].get("rare_added", 0.0)
        share = torch.from_numpy(rare.share_of(model.config.train_counts))
        decoder.label_bias[: len(share)] -= (added * share).to(decoder.label_bias)
    decoder.planted_gain.requires_grad_(trained.planted_gain.item() != 0)
    decoder.teacher_gain.requires_grad_(learner.teacher_score is not None)
    decoder.linear_gain.requires_grad_(learner.word_score is not None)
    if learner.teacher_score is not None:
        learner.teacher_score.load_teacher(counted.teacher, counted.train_tokens)
    if learner.word_score is not None:
        learner.word_score.load_linear(counted.linear)
    if config.standardised:
        learner.hidden_shift.copy_(model.hidden_shift)
        learner.hidden_scale.copy_(model.hidden_scale)
    if config.lm_head:
        learner.lm_head.load_state_dict(model.lm_head.state_dict())
    return learner


def config_of(model: PlantModel, counted: Counted, names: list[str]) -> PlantConfig:
    """The configuration of the model in its new sizes, without a backbone."""
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.backbone_config = None
    config.label_rule = None
    config.num_tokens = counted.num_tokens
    config.num_planted_cells = counted.teacher.relevance.nnz
    scored = bool(starts.SCORED & set(counted.parts))
    config.num_teacher_cells = counted.teacher.scores.nnz if scored else 0
    linear = counted.linear
    config.num_words = len(linear.words) if linear else 0
    config.num_word_cells = linear.tables[0].cells.nnz if linear else 0
    config.train_counts = column_counts(counted.train_labels).tolist()
    config.train_documents = len(counted.train)
    return config


def backbone_of(model: PlantModel, counted: Counted) -> loading.Backbone:
    """The model's backbone; word vectors with a place for each new word."""
    backbone = model.as_backbone()
    if counted.kept.tokens is not None:
        return backbone
    words, known = counted.words, backbone.tokenizer.words
    weights = tfidf(words.counts, counted.train)[counted.train]
    vectors = word_vectors.extended(backbone.model, known, words.names, weights)
    tokenizer = word_vectors.WordTokenizer(words.names)
    return dataclasses.replace(backbone, model=vectors, tokenizer=tokenizer)


def features_of(
    backbone: loading.Backbone, counted: Counted, rows: np.ndarray, folder: Path, progress: bool
) -> Features:
    """Hidden states of some rows; the other documents are read as empty ones."""
    if counted.kept.tokens is None:
        table = backbone.model.embeddings.weight.detach().cpu().numpy()
        return Features(word_vectors.LookedUp(table, counted.tokens.flat), counted.tokens)
    empty, used = np.zeros(0, np.int32), set(rows.tolist())
    count = len(counted.tokens)
    tokens = Ragged.from_lists([counted.tokens[i] if i in used else empty for i in range(count)])
    path = folder / "features.safetensors"
    return cached_features(backbone, tokens, path, key="learn", progress=progress)


def replayed(counted: Counted, fresh: np.ndarray) -> np.ndarray:
    """Rows of an epoch: the corrections `fresh`, and training documents drawn from the others."""
    others = np.setdiff1d(counted.train, fresh)
    count = min(max(REPLAYED * len(fresh), LEAST_REPLAYED), len(others))
    drawn = np.random.default_rng(counted.seed).choice(others, count, replace=False)
    return np.sort(np.concatenate([fresh, drawn]))


def train_on(
    learner: PlantModel,
    backbone: loading.Backbone,
    counted: Counted,
    fresh: np.ndarray,
    folder: Path,
    epochs: int,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, Scores, float]:
    """Train the decoder on, unless dev falls by more than one standard error; then raise labels of
    few documents.

    Returns:
        nDCG@5 of each dev document with a label before and after; the places of dev and the logits
        that the rarest labels got, once they are raised.
    """
    kept, linear = counted.kept, counted.linear
    chosen, dev_rows = replayed(counted, fresh), kept.rows("dev")
    features = features_of(backbone, counted, np.append(chosen, dev_rows), folder, progress)
    read = {"features": features, "linear": linear.scores if linear else None}
    dev = Documents(counted.tokens, kept.labels, dev_rows, **read)
    replay = Replay(counted.tokens, kept.labels, counted.train, **read, withheld=counted.withheld)
    replay.chosen = chosen
    counts = column_counts(counted.train_labels)

    def judge() -> tuple[np.ndarray, Scores]:
        scores, labels = evaluation.score(learner, dev, counts, auc=False)
        values = ndcg_at_k(scores.topk, labels, 5)
        return values[np.isfinite(values)], scores

    before, places = judge()
    state = {name: value.detach().clone() for name, value in learner.decoder.named_parameters()}
    config = TrainConfig(**kept.about["train"] | {"epochs": epochs})
    train.fine_tune(
        learner,
        replay,
        dev,
        counts,
        folder / "checkpoints",
        config=config,
        from_linear=linear is not None,
        seed=counted.seed,
        progress=progress,
        what="corrections",
    )
    after, reached = judge()
    if train.standard_errors(before - after) > 1:
        with torch.no_grad():
            for name, value in learner.decoder.named_parameters():
                value.copy_(state[name])
        after, reached = before, places
    bias = learner.decoder.label_bias
    added = evaluation.add_to_rare(bias, reached, kept.labels[dev_rows], counts)
    return before, after, judge()[1] if added else reached, added


def record_of(learner: PlantModel, kept: Kept, documents: int, rare_added: float) -> RunRecord:
    """The record of a model that has learned on: that of its first run, without numbers of test.

    documents: to learn from. rare_added: see `evaluation.raise_rare`.
    """
    run = dict(kept.about["record"])
    learned = [*run["params"].get("learned", []), documents]
    about = run["dataset"] | {
        "fingerprint": fingerprint_of(run["dataset"]["fingerprint"], kept.keys, learned),
        "train": len(kept.rows("train")),
        "dev": len(kept.rows("dev")),
        "test": 0,
        "labels": kept.labels.shape[1],
    }
    if learner.config.credentialed:
        about["credentialed"] = True
    changes = {
        "dataset": about,
        "metrics": {},
        "params": run["params"] | {"learned": learned, "rare_added": rare_added},
        "threshold": learner.config.threshold,
        "per_document": {},
        "environment": environment(),
    }
    return RunRecord(**run | changes)


def about_record(record: RunRecord) -> dict[str, Any]:
    """A record as it is kept beside the documents."""
    run = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
    return {"record": run | {"per_document": {}}}
