"""The backbone `words`: no language model, one vector per word of the corpus's own training text.

A document is the set of its distinct words, in the order in which they first occur, so attention
reads every word once however long the document is. The words are those of the linear score. A
vector does not depend on its neighbours, so nothing is cached: hidden states are looked up.

The folder of such a backbone holds `config.json`, `model.safetensors` and the words by id in
`vocabulary.json`, and is loaded like every other backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from plantlib.data.tokens import word_analyser, word_spans
from plantlib.utils.io import read_json, write_json

NAME = "words"
VOCABULARY = "vocabulary.json"
DIM = 64
# root mean square of a vector's values, about that of the hidden states of MiniLM
SPREAD = 0.3


class WordsConfig(PreTrainedConfig):
    """vocab_size: V words. hidden_size: D."""

    model_type = "plant_words"

    def __init__(self, vocab_size: int = 1, hidden_size: int = DIM, **kwargs: Any):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size


class WordVectors(PreTrainedModel):
    """A table of word vectors that reads like a language model."""

    config_class = WordsConfig
    base_model_prefix = "words"
    main_input_name = "input_ids"
    is_static = True  # a hidden state is that of its token alone, see `windows.encode`

    def __init__(self, config: WordsConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the vectors come from a corpus or from a file."""

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = value

    def forward(self, input_ids: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Vectors (B, T, D) of word ids (B, T)."""
        return BaseModelOutput(last_hidden_state=self.embeddings(input_ids))


class WordTokenizer:
    """From a text to the ids of its distinct known words, with the interface of a Hugging Face
    tokenizer as far as plantlib uses it.

    words: the V words by id.
    """

    model_max_length = None
    unk_token_id = None
    pad_token_id = None

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.place = {word: i for i, word in enumerate(self.words)}
        self.analyse = word_analyser()

    def __len__(self) -> int:
        return len(self.words)

    def __call__(
        self,
        texts: str | list[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        return_offsets_mapping: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """`input_ids` of one text or of each of a list.

        Args:
            texts: one text, or several.
            truncation: keep the first `max_length` distinct words alone.
            max_length: see `truncation`.
            return_offsets_mapping: also give `offset_mapping`, see `spans`.
        """
        most = max_length if truncation else None
        several = not isinstance(texts, str)
        ids = [self.ids(text, most) for text in (texts if several else [texts])]
        encoded = {"input_ids": ids if several else ids[0]}
        if return_offsets_mapping:
            pairs = zip(texts if several else [texts], ids, strict=True)
            spans = [self.spans(text, part) for text, part in pairs]
            encoded["offset_mapping"] = spans if several else spans[0]
        return encoded

    def ids(self, text: str, most: int | None = None) -> list[int]:
        """Ids of the first `most` distinct known words of a text, all of them when None."""
        known = dict.fromkeys(map(self.place.get, self.analyse(text)))
        known.pop(None, None)
        return list(known)[:most]

    def spans(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The characters of the first place in `text` of each of its words `ids`."""
        first: dict[str, tuple[int, int]] = {}
        for word, span in word_spans(text):
            first.setdefault(word, span)
        return [first[word] for word in self.convert_ids_to_tokens(ids)]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The words of these ids."""
        return [self.words[i] for i in ids]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the words into a folder."""
        write_json(Path(folder) / VOCABULARY, self.words)

    @staticmethod
    def lies_in(folder: str | Path) -> bool:
        """Whether `save_pretrained` wrote into this folder."""
        return (Path(folder) / VOCABULARY).is_file()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> WordTokenizer:
        """Read what `save_pretrained` wrote."""
        return cls(read_json(Path(folder) / VOCABULARY))


@dataclass(frozen=True, eq=False)
class LookedUp:
    """The hidden states (S, D) of packed tokens, looked up where they are read."""

    table: np.ndarray
    ids: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.ids), self.table.shape[1]

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.table[self.ids[part]]


def vectors(weights: sparse.csr_matrix, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Vectors (V, D) of words that stand near each other where the words share documents.

    They are the right singular vectors of the documents, each times the root of its singular value,
    with every word brought to one length: a rare word speaks as loudly as a frequent one.

    Args:
        weights: (n, V) csr, tf-idf of the training documents.
        dim: most dimensions; fewer where there are fewer documents or words.
        seed: of the randomised range finder.
    """
    # imported here, because predicting needs neither it nor pandas, which it imports
    from sklearn.utils.extmath import randomized_svd

    dim = min(dim, *weights.shape)
    _, values, directions = randomized_svd(weights, dim, n_iter=3, random_state=seed)
    found = directions.T * np.sqrt(values)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit = found / np.maximum(length, 1e-12)
    return (SPREAD * np.sqrt(dim) * unit).astype(np.float32)


def extended(
    model: WordVectors, known: Sequence[str], names: Sequence[str], weights: sparse.csr_matrix
) -> WordVectors:
    """Vectors of more words: known words keep theirs, and a new one stands near the words that it
    shares documents with, so that what was learned about the vectors holds.

    Args:
        known: words of `model`, by id.
        names: V words of the new table, all known ones among them.
        weights: (n, V) csr, tf-idf of the training documents.
    """
    place = {word: i for i, word in enumerate(names)}
    ids = np.array([place[word] for word in known])
    old = model.embeddings.weight.detach().cpu().numpy()
    table = np.zeros((len(names), old.shape[1]), np.float32)
    table[ids] = old
    new = np.setdiff1d(np.arange(len(names)), ids)
    if len(new):
        near = weights[:, new].T @ (weights[:, ids] @ old)
        length = np.linalg.norm(near, axis=1, keepdims=True)
        size = SPREAD * np.sqrt(old.shape[1])
        table[new] = size * near / np.maximum(length, 1e-12)
    wider = WordVectors(WordsConfig(*table.shape))
    with torch.no_grad():
        wider.embeddings.weight.copy_(torch.from_numpy(table))
    return wider.eval()


def save(names: Sequence[str], table: np.ndarray, folder: str | Path) -> None:
    """Write a backbone of V words `names` with the vectors `table` (V, D)."""
    model = WordVectors(WordsConfig(*table.shape))
    with torch.no_grad():
        model.embeddings.weight.copy_(torch.from_numpy(table))
    model.save_pretrained(folder)
    WordTokenizer(names).save_pretrained(folder)


def is_static(config: Any) -> bool:
    """Whether a configuration is that of word vectors, which need no cache."""
    return config.model_type == WordsConfig.model_type


AutoConfig.register(WordsConfig.model_type, WordsConfig)
AutoModel.register(WordsConfig, WordVectors)
