"""The first half of the main road: a corpus made ready to train on, its teacher, its pretrained
queries.

text -> Corpus -> token ids -> X'Y -> J -> G -> L2R -> Q. Every step that costs more than seconds
leaves an artefact under `root`, named by the fingerprint of what it came from, so a second call
reads it. `runs.py` is the second half.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.backbones import loading
from plantlib.backbones.features import (
    Features,
    Standard,
    cached_features,
    hidden_states,
    standard_of,
)
from plantlib.data import privacy
from plantlib.data.corpus import Corpus
from plantlib.data.sources import checkout
from plantlib.data.tokens import Ragged, cached_tokens, tokenise, words
from plantlib.kernels import machine
from plantlib.kernels.counts import column_counts
from plantlib.linear import score as linear_score
from plantlib.linear.score import LinearConfig, LinearScore
from plantlib.metrics.buckets import EDGES, Edges, edges_of
from plantlib.metrics.documents import Scores, evaluate, per_document, tune_threshold
from plantlib.planting import l2r
from plantlib.planting.l2r import L2RConfig, Planted
from plantlib.teacher import mig
from plantlib.teacher.mig import Teacher, TeacherConfig
from plantlib.training.train import Documents
from plantlib.utils.base import DataError
from plantlib.utils.io import fingerprint_of

LABEL_SPACES = {
    "seen": "labels with a training document",
    "train": "labels with a training document before the cap",
    "all": "all labels of the corpus",
}
STANDARD_SAMPLE = 64  # training documents that the spread of hidden states is measured on


@dataclass(frozen=True, eq=False)
class Prepared:
    """A corpus ready to train on: tokens, splits, label counts, features of the frozen backbone,
    and its teacher.
    """

    corpus: Corpus
    backbone: str
    tokens: Ragged
    vocabulary: list[str]
    extra_gold: np.ndarray  # (N,) gold labels outside the label space
    features: Features | None
    root: Path
    max_tokens: int | None
    window: int
    key: str
    overlap: int = 0
    trust_remote_code: bool = False
    label_space: str = "seen"

    @cached_property
    def hidden_size(self) -> int:
        """D of the backbone."""
        return loading.hidden_size_of(loading.config_of(self.backbone, self.trust_remote_code))

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        return {s: self.corpus.rows(s) for s in ("train", "dev", "test")}

    @cached_property
    def train_counts(self) -> np.ndarray:
        """(L,) training documents a label."""
        return column_counts(self.corpus.labels[self.rows["train"]])

    @property
    def edges(self) -> Edges:
        """Bounds of the frequency buckets, the corpus's own where it has some."""
        return edges_of(self.corpus.manifest)

    @cached_property
    def counts(self) -> sparse.csr_matrix:
        """(N, V) token counts."""
        return self.tokens.counts(len(self.vocabulary))

    @property
    def train_labels(self) -> sparse.csr_matrix:
        return self.corpus.labels[self.rows["train"]]

    def fields(self) -> dict:
        """What this was made of, by name: to make another one of it with something changed, of a
        class of its own too.
        """
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def cells(self) -> int:
        """(n, L): training documents times labels, the size that a linear score chooses its solver
        by.
        """
        return len(self.rows["train"]) * self.corpus.L

    @property
    def rows_fingerprint(self) -> str:
        """Of the documents and which of them are trained on."""
        return self.corpus.fingerprint()

    def load_backbone(self, **options) -> loading.Backbone:
        """The backbone as this corpus is read by it; options as for `backbones.load`."""
        reading = {
            "window": self.window,
            "overlap": self.overlap,
            "trust_remote_code": self.trust_remote_code,
        }
        return loading.load(self.backbone, **reading | options)

    def reader(self) -> loading.Backbone:
        """The backbone as it reads text while frozen: on the GPU where there is one, in the type of
        its stored weights.
        """
        device = machine.device()
        config = loading.config_of(self.backbone, self.trust_remote_code)
        backbone = self.load_backbone(dtype=loading.reading_dtype(config, device.type))
        backbone.model.to(device)
        return backbone

    @cached_property
    def standard(self) -> Standard | None:
        """How the hidden states are brought to a usual spread, from a sample of training documents;
        None when they are.
        """
        sample = self.rows["train"][:STANDARD_SAMPLE]
        if self.features is not None:
            return standard_of(self.features.documents(sample))
        backbone = self.reader()
        return standard_of(
            np.concatenate([hidden_states(backbone, [self.tokens[i]])[0] for i in sample])
        )

    def documents(
        self, split: str, cached: bool = True, linear: LinearScore | None = None
    ) -> Documents:
        """The split as the trainer reads it; cached hands over the frozen backbone's features, else
        the backbone runs.
        """
        added, features = linear.scores if linear else None, self.features if cached else None
        return Documents(
            self.tokens, self.corpus.labels, self.rows[split], features, added, self.edges
        )

    def linear(self, config: LinearConfig, progress: bool = True, seed: int = 0) -> LinearScore:
        """The linear score over words of training rows; finished parts are kept under `root`."""
        found = words(self.corpus.texts, self.rows["train"], linear_score.MIN_DOCUMENTS)
        folder = (
            self.root
            / "linear"
            / f"{self.corpus.name}-{fingerprint_of(self.rows_fingerprint, asdict(config), seed)}"
        )
        return linear_score.fit(
            found,
            self.corpus.labels,
            self.rows["train"],
            config=config,
            seed=seed,
            folder=folder,
            progress=progress,
        )

    def teacher(self, config: TeacherConfig = TeacherConfig()) -> Teacher:
        """The teacher of `config` from the training rows alone."""
        return mig.teach(self.counts[self.rows["train"]], self.train_labels, **asdict(config))

    def judge(self, dev: Scores, test: Scores) -> dict:
        """What a RunRecord says of scores of dev and test: data set, threshold from dev, metrics
        and rows of test.
        """
        labels, rows = self.corpus.labels, self.rows
        threshold, gold = tune_threshold(dev.topk, labels[rows["dev"]]), labels[rows["test"]]
        found = evaluate(
            test,
            gold,
            self.train_counts,
            len(rows["train"]),
            threshold,
            self.extra_gold[rows["test"]],
        )
        return {
            "dataset": self.about(),
            "threshold": threshold,
            "metrics": found,
            "per_document": per_document(test, gold),
        }

    def about(self) -> dict:
        """The data set as a RunRecord states it."""
        return {
            "name": self.corpus.name,
            "fingerprint": self.corpus.fingerprint(),
            "labels": self.corpus.L,
            "label_space": LABEL_SPACES[self.label_space],
            "synthetic": bool(self.corpus.manifest.get("synthetic", False)),
            **{s: len(r) for s, r in self.rows.items()},
            **({"bucket_edges": list(self.edges)} if self.edges != EDGES else {}),
            **({"credentialed": True} if privacy.is_credentialed(self.corpus) else {}),
        }


def artefacts(root: str | Path | None = None) -> Path:
    """The folder of intermediate artefacts: `root`, or artefacts/ of the checkout."""
    return Path(root) if root else checkout() / "artefacts"


def prepare(
    corpus: Corpus | str,
    *,
    backbone: str = "minilm",
    max_tokens: int | None = 510,
    train_documents: int | None = None,
    dev_documents: int | None = None,
    test_documents: int | None = None,
    subset_seed: int = 0,
    root: str | Path | None = None,
    frozen: bool = True,
    window: int | None = None,
    overlap: int = 0,
    trust_remote_code: bool = False,
    label_space: str = "seen",
    progress: bool = True,
) -> Prepared:
    """Cap, tokenise and read a corpus once; features are cached when the backbone stays frozen.

    window: tokens the backbone reads at a time, as many as it can when None; overlap: tokens read
    again around a window.

    A corpus without dev split gets one from its training rows. The label space is the labels with a
    training document after the cap ("seen"), before it ("train": the space stays while the rows
    shrink) or every label of the corpus ("all": labels without any training document count too);
    gold labels outside it are counted, not hidden.
    """
    if label_space not in LABEL_SPACES:
        raise DataError(
            f"label_space={label_space!r} is not known; use one of {', '.join(LABEL_SPACES)}"
        )
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    caps = {"train": train_documents, "dev": dev_documents, "test": test_documents}
    whole = corpus.labelled().with_dev()
    corpus = whole.subset(**caps, seed=subset_seed)
    for split in ("train", "dev", "test"):
        corpus.rows(split)  # an empty split is an error before any long work
    if max_tokens is not None and max_tokens < 1:
        raise DataError(
            f"max_tokens={max_tokens}: read at least 1 token, or None for whole documents"
        )
    seen = {
        "seen": corpus.seen_in_train,
        "train": lambda: whole.seen_in_train().subset(**caps, seed=subset_seed),
        "all": lambda: corpus,
    }[label_space]()
    for split in ("train", "dev"):
        if not seen.labels[seen.rows(split)].nnz:
            raise DataError(
                f"no {split} document has a label of the training rows; check the labels column and"
                " the splits"
            )
    extra = np.diff(corpus.labels.indptr) - np.diff(seen.labels.indptr)
    tokenizer = loading.tokenizer_of(backbone, trust_remote_code)
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    reading = [window, overlap] if window or overlap else []
    key = fingerprint_of(seen.fingerprint(), loading.fingerprint(backbone), max_tokens, *reading)
    window = loading.window_of(loading.config_of(backbone, trust_remote_code), tokenizer, window)
    folder = artefacts(privacy.artefacts_root(seen, root))
    tokens = cached_tokens(
        folder / "tokens" / f"{seen.name}-{key}.safetensors",
        lambda: tokenise(seen.texts, tokenizer, max_tokens, progress=progress),
    )
    if not len(tokens.flat):
        raise DataError("no document has a token this tokenizer knows; check the text column")
    prepared = Prepared(
        seen,
        backbone,
        tokens,
        vocabulary,
        extra,
        None,
        folder,
        max_tokens,
        window,
        key,
        overlap,
        trust_remote_code,
        label_space,
    )
    if not frozen:
        return prepared
    path = prepared.root / "features" / f"{seen.name}-{key}.safetensors"
    return replace(
        prepared,
        features=cached_features(prepared.reader, tokens, path, key=key, progress=progress),
    )


def listening_features(prepared: Prepared, progress: bool = True) -> Features:
    """Hidden states of train and dev documents alone, for L2R pretraining of a run that tunes its
    backbone.

    The other documents count as empty, so that rows keep their numbers; half of the forward passes
    are saved.
    """
    read = np.concatenate([prepared.rows["train"], prepared.rows["dev"]])
    used = np.zeros(len(prepared.tokens), bool)
    used[read] = True
    nothing = np.zeros(0, np.int32)
    tokens = Ragged.from_lists(
        [prepared.tokens[i] if used[i] else nothing for i in range(len(used))]
    )
    path = (
        prepared.root / "features" / f"{prepared.corpus.name}-{prepared.key}-train-dev.safetensors"
    )
    return cached_features(
        prepared.reader, tokens, path, key=f"{prepared.key}-train-dev", progress=progress
    )


def pretrained(
    prepared: Prepared,
    trainer: str,
    teacher: Teacher,
    *,
    teacher_config: TeacherConfig,
    config: L2RConfig,
    seed: int = 0,
    progress: bool = True,
) -> Planted:
    """planted.safetensors of one trainer and seed, made where it is missing, checked against this
    corpus.
    """
    key = fingerprint_of(prepared.key, trainer, asdict(teacher_config), asdict(config), seed)
    path = prepared.root / "planted" / f"{prepared.corpus.name}-{trainer}-{key}.safetensors"
    if path.exists():
        planted = Planted.load(path)
        planted.check(prepared.corpus.label_names, prepared.vocabulary)
        return planted
    features = prepared.features or listening_features(prepared, progress)
    planted = l2r.pretrain(
        trainer,
        replace(features, standard=prepared.standard),
        prepared.rows["train"],
        teacher,
        label_names=prepared.corpus.label_names,
        tokens=prepared.vocabulary,
        labels=prepared.corpus.labels,
        held_out=prepared.rows["dev"],
        config=config,
        seed=seed,
        progress=progress,
    )
    planted.save(path)
    return planted
