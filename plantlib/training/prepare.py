"""Make a corpus ready to train on: split it, cap it, tokenise it, read it with the backbone.

Not here: what comes out of it (`inputs.Inputs`), and the files it is kept in (`artefacts`).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plantlib.backbones import loading, words
from plantlib.data import privacy
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import Ragged, cached_tokens, tokenise
from plantlib.training import artefacts
from plantlib.training.inputs import LABEL_SPACES, Inputs
from plantlib.utils.base import DataError
from plantlib.utils.checks import check_seed, is_whole, safe_name
from plantlib.utils.io import fingerprint_of, probe


def prepare(
    corpus: Corpus | str,
    *,
    backbone: str = "minilm",
    max_tokens: int | None = 256,
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
) -> Inputs:
    """Make a corpus ready to train on.

    A corpus without a dev split gets one from its training rows. What is computed is kept on disk,
    so a second call reads it.

    Args:
        corpus: a `Corpus`, or the name or folder of one.
        backbone: name or folder of a pretrained language model; "words" makes vectors of the words
            of the training texts instead.
        max_tokens: tokens read per document, None for all; of "words", distinct words.
        train_documents, dev_documents, test_documents: most documents per split, None for all.
            With test_documents=0 there is no test split, and a run is not judged.
        subset_seed: seed by which capped documents are drawn.
        root: folder of intermediate artefacts; artefacts/ of the checkout when None.
        frozen: the backbone stays frozen, so its hidden states are computed once and cached.
        window: tokens the backbone reads at a time, as many as it can when None.
        overlap: tokens read again around a window.
        trust_remote_code: run code that a backbone's folder brings along.
        label_space: "seen", labels with a training document after the caps; "train", labels with
            one before the caps, so that runs of different caps have the same labels; "all", every
            label of the corpus. Gold labels outside the space still count in recall.
        progress: show progress bars.

    Raises:
        DataError: an unknown label space, fewer than 1 token, a split without documents or labels.

    Example (with a corpus, a backbone and a folder):
        >>> from plantlib import prepare
        >>> inputs = prepare(corpus, backbone=backbone, root=folder, progress=False)
        >>> {split: len(rows) for split, rows in inputs.rows.items()}
        {'train': 60, 'dev': 20, 'test': 20}
    """
    if label_space not in LABEL_SPACES:
        known = ", ".join(LABEL_SPACES)
        raise DataError(f"label_space={label_space!r} is not known; use one of {known}")
    if max_tokens is not None and not (is_whole(max_tokens) and max_tokens >= 1):
        raise DataError(
            f"max_tokens={max_tokens}: read at least 1 token, or None for whole documents"
        )
    check_seed(subset_seed, "subset_seed")
    # documents and labels
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    uncapped = corpus.labelled().with_dev()
    caps = {"train": train_documents, "dev": dev_documents, "test": test_documents}
    capped = uncapped.subset(**caps, seed=subset_seed)
    for split in ("train", "dev") if test_documents == 0 else ("train", "dev", "test"):
        capped.rows(split)  # an empty split is an error before any long work
    if label_space == "train":
        # labels are chosen first, rows are capped afterwards
        within = uncapped.seen_in_train().subset(**caps, seed=subset_seed)
    else:
        within = capped.seen_in_train() if label_space == "seen" else capped
    check_labels(within)
    extra_gold = np.diff(capped.labels.indptr) - np.diff(within.labels.indptr)
    root = artefacts.root_of(privacy.artefacts_root(within, root))
    probe(root)
    if backbone == words.NAME:
        backbone = artefacts.word_backbone(within, root)
    # token ids
    tokenizer = loading.tokenizer_of(backbone, trust_remote_code)
    windows = [window, overlap] if window or overlap else []
    key = fingerprint_of(within.fingerprint(), loading.fingerprint(backbone), max_tokens, *windows)
    config = loading.config_of(backbone, trust_remote_code)
    whole = _tokens(within, tokenizer, root, key, progress)
    tokens = whole.cut(max_tokens)
    warn_of_unknown(tokens, tokenizer.unk_token_id)
    warn_of_unread(whole, tokens, max_tokens)
    inputs = Inputs(
        corpus=within,
        backbone=backbone,
        tokens=tokens,
        vocabulary=tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
        extra_gold=extra_gold,
        features=None,
        root=root,
        max_tokens=max_tokens,
        window=loading.window_of(config, tokenizer, window),
        key=key,
        overlap=overlap,
        trust_remote_code=trust_remote_code,
        label_space=label_space,
    )
    # hidden states, where the backbone stays frozen
    return replace(inputs, features=artefacts.features(inputs, progress)) if frozen else inputs


UNKNOWN_SHARE = 0.05  # of the tokens, from which a warning tells it


def warn_of_unknown(tokens: Ragged, unknown: int | None) -> None:
    """Warn where the tokenizer does not know much of the texts; unknown: the id of its [UNK]."""
    share = float((tokens.flat == unknown).mean()) if unknown is not None else 0.0
    if share >= UNKNOWN_SHARE:
        warnings.warn(
            f"{share:.0%} of the tokens of these texts are unknown to the backbone's tokenizer, so"
            " attention cannot tell them apart; name one made for their language, backbone='FOLDER'"
            " or a hub id",
            stacklevel=3,
        )


UNREAD_SHARE = 0.05  # of the tokens, from which a warning tells it


def warn_of_unread(whole: Ragged, read: Ragged, max_tokens: int | None) -> None:
    """Warn where much of the texts lies beyond `max_tokens`.

    Args:
        whole: all token ids of N documents.
        read: those that are read.
        max_tokens: most tokens of a document that are read.
    """
    share = 1 - len(read.flat) / max(len(whole.flat), 1)
    if share >= UNREAD_SHARE:
        warnings.warn(
            f"{share:.0%} of the tokens of these documents are not read by the backbone, because"
            f" they come after the first {max_tokens}; max_tokens={2 * (max_tokens or 0)} reads"
            " more and takes longer. The linear score reads whole documents",
            stacklevel=3,
        )


def check_labels(corpus: Corpus) -> None:
    """DataError where training has nothing to learn, or dev nothing to choose by."""
    for split in ("train", "dev"):
        if not corpus.labels[corpus.rows(split)].nnz:
            raise DataError(
                f"no {split} document has a label of the training rows: give more documents, or"
                " check the columns of labels and splits"
            )
    test = corpus.labels[corpus.split == "test"]
    if test.shape[0] and not test.nnz:
        warnings.warn(
            "no test document has a label of the training rows, so that all its figures will be 0"
            " or missing; check the columns of labels and splits",
            stacklevel=3,
        )
    train = corpus.labels[corpus.rows("train")]
    if train.nnz == train.shape[0] * train.shape[1]:
        raise DataError(
            f"every training document has the same labels, all {corpus.L} of them, so there is"
            " nothing to learn; give documents without some of them too"
        )


def _tokens(corpus: Corpus, tokenizer: Any, root: Path, key: str, progress: bool) -> Ragged:
    """The token ids of whole documents."""
    path = root / "tokens" / f"{safe_name(corpus.name)}-{key}.safetensors"
    with artefacts.locked(path):
        tokens = cached_tokens(path, lambda: tokenise(corpus.texts, tokenizer, progress=progress))
    if not len(tokens.flat):
        raise DataError("no document has a token this tokenizer knows; check the text column")
    return tokens
