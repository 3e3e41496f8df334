"""Token ids of whole documents, their counts, and the words that linear models read.

Documents keep their natural length. Special tokens are never part of the ids, so they are neither
counted nor attended to (docs/method.md, "Faults of the published code", 5). A long document is cut
into windows in `backbones/windows.py`, not here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import regex
from scipy import sparse

from plantlib.utils.io import read_if_whole
from plantlib.utils.progress import tqdm
from plantlib.utils.tensors import check_tensors, save_tensors

# most characters of one call of a tokenizer, whose own lists take some 100 bytes per token
CHARACTERS = 1 << 20


@dataclass(frozen=True, eq=False)
class Ragged:
    """Token ids of N documents, one after another.

    flat: (S,) int32.
    offsets: (N+1,) int64; document i is flat[offsets[i]:offsets[i+1]].
    """

    flat: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        i = range(len(self))[i]  # negative indices count from the end; IndexError outside
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens per document."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, documents) -> Ragged:
        """From a sequence of N lists or arrays of token ids."""
        lengths = np.fromiter((len(d) for d in documents), np.int64, len(documents))
        flat = np.concatenate(
            [np.zeros(0, np.int32), *(np.asarray(d, np.int32) for d in documents)]
        )
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

    def select(self, rows: np.ndarray) -> Ragged:
        """The documents `rows`, an array of indices, in that order."""
        rows = np.asarray(rows, np.int64)
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # the place of each token among all tokens
        place = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return Ragged(self.flat[place], offsets)

    def cut(self, most: int | None) -> Ragged:
        """The first `most` tokens of each document; None keeps all of them."""
        if most is None or not len(self.flat):
            return self
        lengths = np.minimum(self.lengths, most)
        place = np.arange(len(self.flat)) - np.repeat(self.offsets[:-1], self.lengths)
        return Ragged(self.flat[place < most], np.concatenate([[0], np.cumsum(lengths)]))

    def counts(self, vocabulary: int) -> sparse.csr_matrix:
        """(N, vocabulary) int32 counts of token ids."""
        rows = np.repeat(np.arange(len(self)), self.lengths)
        ones = np.ones(len(self.flat), np.int32)
        return sparse.coo_matrix((ones, (rows, self.flat)), shape=(len(self), vocabulary)).tocsr()


def tokenise(
    texts: list[str],
    tokenizer,
    max_tokens: int | None = None,
    progress: bool = True,
    batch: int = 256,
) -> Ragged:
    """Token ids of every text, without special tokens.

    Memory stays within 12 bytes per token, beside the tokenizer's own for one call.

    Args:
        texts: N texts.
        tokenizer: any Hugging Face tokenizer.
        max_tokens: tokens after which a document is cut; None reads the whole document.
        progress: whether a bar is drawn, from 5,000 texts on.
        batch: most texts per call of the tokenizer.
    """
    pieces = [np.zeros(0, np.int32)]
    lengths = np.zeros(len(texts), np.int64)
    bar = tqdm(total=len(texts), desc="tokenise", disable=not progress or len(texts) < 5000)
    with bar:
        for begin, end in _parts(texts, batch):
            encoded = tokenizer(
                texts[begin:end],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                truncation=max_tokens is not None,
                max_length=max_tokens,
                verbose=False,
            )["input_ids"]
            lengths[begin:end] = [len(ids) for ids in encoded]
            pieces.extend(np.array(ids, np.int32) for ids in encoded)
            bar.update(end - begin)
    return Ragged(np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)]))


def tokens_beyond(texts: list[str], tokenizer, max_tokens: int | None) -> np.ndarray:
    """(N,) int64 tokens of each text that `tokenise` cuts off; 0 where `max_tokens` is None."""
    beyond = np.zeros(len(texts), np.int64)
    # a token has at least one byte
    long = [i for i, text in enumerate(texts) if max_tokens and len(text.encode()) > max_tokens]
    if long:
        lengths = tokenise([texts[i] for i in long], tokenizer, progress=False).lengths
        beyond[long] = np.maximum(lengths - max_tokens, 0)
    return beyond


def _parts(texts: list[str], most: int) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive texts: at most `most` of them and `CHARACTERS` in all, or one text."""
    begin, characters = 0, 0
    for i, text in enumerate(texts):
        if i > begin and (i - begin == most or characters + len(text) > CHARACTERS):
            yield begin, i
            begin, characters = i, 0
        characters += len(text)
    if begin < len(texts):
        yield begin, len(texts)


def cached_tokens(path: str | Path, make: Callable[[], Ragged]) -> Ragged:
    """The token ids in a safetensors file, which is written first if it is missing or damaged.

    Args:
        path: the file; its name must identify texts, tokenizer and options.
        make: computes the ids.
    """
    from safetensors.numpy import load_file

    def load(path: Path) -> Ragged:
        arrays = load_file(check_tensors(path))
        return Ragged(arrays["flat"], arrays["offsets"])

    stored = read_if_whole(Path(path), load)
    if stored is not None:
        return stored
    tokens = make()
    save_tensors(path, {"flat": tokens.flat, "offsets": tokens.offsets})
    return tokens


@dataclass(frozen=True, eq=False)
class Words:
    """V word names from the training rows, and the (N, V) int32 counts of all documents."""

    names: list[str]
    counts: sparse.csr_matrix


WORD = r"\w\w+"  # of at least two letters or digits


# Letters and marks of scripts that put no spaces between words. Their words are not known here; two
# neighbouring characters stand for them, as search engines take it.
UNSPACED = (
    r"(?V1)[[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{M}\p{N}]]+"
)
# A text without these characters has none of those, and `re` looks for them ten times faster.
MAY_BE_UNSPACED = re.compile("[\u02c7-\u0323\u0e01-\U0003ffff]")
# from so large a share of a text's characters on, so that a name in Chinese or a wrongly decoded
# letter leaves the words of an English text as they are
UNSPACED_SHARE = 0.1


def word_analyser(pattern: str = WORD) -> Callable[[str], list[str]]:
    """The function from a text to its lower-cased words, as `words` counts them.

    In a text of a script without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a word is
    two neighbouring characters, each with its vowel signs and accents.
    """
    # of a function of the module, so that what holds it can be pickled
    return partial(_analyse, re.compile(pattern))


def _analyse(word: re.Pattern, text: str) -> list[str]:
    text = text.lower()
    runs = _unspaced_runs(text)
    if not runs:
        return word.findall(text)
    return [text[begin:end] for begin, end in _spans(text, runs, word)]


def word_spans(text: str) -> list[tuple[str, tuple[int, int]]]:
    """The words that `word_analyser` finds in a text, each with its characters [begin, end)."""
    lower = text.lower()
    spans = _spans(lower, _unspaced_runs(lower), re.compile(WORD))
    if len(lower) == len(text):
        return [(lower[begin:end], (begin, end)) for begin, end in spans]
    # a few capital letters have small forms of several characters
    begins = np.cumsum([0, *(len(character.lower()) for character in text)])
    words = []
    for begin, end in spans:
        first = int(np.searchsorted(begins, begin, side="right")) - 1
        words.append((lower[begin:end], (first, int(np.searchsorted(begins, end)))))
    return words


def _unspaced_runs(text: str) -> list:
    """Matches of the runs of a script without spaces; [] where they are a small part of a text."""
    if text.isascii() or not MAY_BE_UNSPACED.search(text):
        return []
    runs = list(regex.finditer(UNSPACED, text))
    return runs if sum(len(run[0]) for run in runs) >= max(UNSPACED_SHARE * len(text), 1) else []


def _spans(text: str, runs: list, word: re.Pattern) -> list[tuple[int, int]]:
    """Characters [begin, end) of the words of a lower-cased text with runs without spaces."""
    spans: list[tuple[int, int]] = []
    end = 0
    for run in runs:
        spans += _spans_of_part(text, end, run.start(), word)
        borders = [run.start() + m.start() for m in regex.finditer(r"\X", run[0])] + [run.end()]
        pairs = list(zip(borders, borders[2:], strict=False))
        spans += pairs or list(pairwise(borders))
        end = run.end()
    return spans + _spans_of_part(text, end, len(text), word)


def _spans_of_part(text: str, begin: int, end: int, word: re.Pattern) -> list[tuple[int, int]]:
    """The words of text[begin:end], as if nothing stood beside it."""
    return [(begin + m.start(), begin + m.end()) for m in word.finditer(text[begin:end])]


def words(
    texts: list[str], train_rows: np.ndarray, min_documents: int = 2, pattern: str = WORD
) -> Words:
    """Count lower-cased words; the vocabulary comes from the training rows alone.

    Args:
        texts: N texts.
        train_rows: indices of the training documents.
        min_documents: training documents that a word of the vocabulary occurs in, at least.
        pattern: regular expression of a word.

    Raises:
        ValueError: no word occurs in so many training documents.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    analyse = word_analyser(pattern)
    vectorizer = CountVectorizer(min_df=min_documents, analyzer=analyse, dtype=np.int32)
    try:
        vectorizer.fit([texts[i] for i in train_rows])
    except ValueError as error:
        raise ValueError(
            f"no word occurs in at least {min_documents} of {len(train_rows)} training documents;"
            " give more training documents, or texts that share words"
        ) from error
    return Words(list(vectorizer.get_feature_names_out()), vectorizer.transform(texts).tocsr())


def smooth_idf(counts: sparse.csr_matrix) -> np.ndarray:
    """(V,) float64 ln((1 + n) / (1 + n_t)) + 1 of counts (n, V): scikit-learn's smooth idf."""
    present = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.log((1 + counts.shape[0]) / (1 + present)) + 1


def tfidf(counts: sparse.csr_matrix, train_rows: np.ndarray) -> sparse.csr_matrix:
    """Sublinear tf-idf of (N, V) counts with the idf of the training rows; rows have length 1."""
    from sklearn.feature_extraction.text import TfidfTransformer

    transformer = TfidfTransformer(sublinear_tf=True).fit(counts[train_rows])
    return transformer.transform(counts).tocsr()
