"""Ragged token ids, tokenising without special tokens, and the words that linear models read.

docs/method.md, "Faults of the published code", 5: special tokens are not counted. The tokenizer is
built here from a dozen words, so nothing is downloaded.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import regex
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from plantlib.data import tokens as tokens_module
from plantlib.data.tokens import (
    WORD,
    Ragged,
    cached_tokens,
    tfidf,
    tokenise,
    word_analyser,
    word_spans,
    words,
)

DOCUMENTS = [[3, 1, 3], [], [2], [0, 0, 0, 4], []]
VOCABULARY = {
    "[PAD]": 0,
    "[UNK]": 1,
    "[CLS]": 2,
    "[SEP]": 3,
    "fever": 4,
    "cough": 5,
    "and": 6,
    "pain": 7,
}


@pytest.fixture
def ragged() -> Ragged:
    return Ragged.from_lists(DOCUMENTS)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=6, **special)


# Python lists of the ids of one call of a tokenizer: 2^20 characters, at least 2 per token
CALL_BYTES = 2**20 / 2 * 16


def test_ragged_gives_back_the_lists(ragged):
    assert [d.tolist() for d in ragged] == DOCUMENTS and len(ragged) == 5
    assert ragged.flat.dtype == np.int32 and ragged.offsets.dtype == np.int64
    assert ragged.lengths.tolist() == [3, 0, 1, 4, 0] and ragged.offsets.tolist() == [
        0,
        3,
        3,
        4,
        8,
        8,
    ]


def test_ragged_counts_from_the_end_and_refuses_what_is_not_there(ragged):
    assert ragged[-2].tolist() == [0, 0, 0, 4] and ragged[np.int64(3)].tolist() == [0, 0, 0, 4]
    for index in (5, -6):
        with pytest.raises(IndexError):
            ragged[index]


@pytest.mark.parametrize(
    "rows", [[3, 0, 0], [1, 4], []], ids=["repeated", "empty documents", "no rows"]
)
def test_select_keeps_the_order_asked_for(ragged, rows):
    chosen = ragged.select(np.array(rows, int))
    assert [d.tolist() for d in chosen] == [DOCUMENTS[i] for i in rows]
    assert chosen.flat.dtype == np.int32 and chosen.counts(5).shape == (len(rows), 5)


@pytest.mark.parametrize("documents", [[], [[], []]], ids=["no documents", "only empty ones"])
def test_ragged_of_nothing_is_still_ragged(documents):
    ragged = Ragged.from_lists(documents)
    assert (
        len(ragged) == len(documents)
        and ragged.counts(7).shape == (len(documents), 7)
        and ragged.counts(7).nnz == 0
    )


def test_counts_equal_bincount(ragged):
    counts = ragged.counts(6)
    assert counts.format == "csr" and np.issubdtype(counts.dtype, np.integer)
    np.testing.assert_array_equal(counts.toarray(), [np.bincount(d, minlength=6) for d in ragged])
    assert counts.data.min() > 0 and counts.nnz == 5, "one cell per token and document"


def test_tokenise_adds_no_special_tokens(tokenizer):
    assert tokenizer("fever")["input_ids"] == [2, 4, 3], "the tokenizer would add them"
    ids = tokenise(["fever and cough", "", "zebra pain"], tokenizer, progress=False)
    assert [d.tolist() for d in ids] == [[4, 6, 5], [], [1, 7]]
    assert not set(ids.flat) & {0, 2, 3}


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 100, None])
def test_tokenise_cuts_after_max_tokens_and_never_otherwise(tokenizer, max_tokens):
    texts = ["fever " * 10, "pain", "cough and fever and"]
    whole = [[4] * 10, [7], [5, 6, 4, 6]]  # longer than the tokenizer's own limit of 6
    assert [d.tolist() for d in tokenise(texts, tokenizer, max_tokens, progress=False)] == [
        d[:max_tokens] for d in whole
    ]


def test_tokenise_does_not_depend_on_the_batch(tokenizer):
    texts = ["fever and", "", "pain", "cough", "cough pain and fever", ""]
    one, many = (tokenise(texts, tokenizer, progress=False, batch=b) for b in (1, 4))
    assert one.flat.tolist() == many.flat.tolist() and one.offsets.tolist() == many.offsets.tolist()


def test_word_vocabulary_comes_from_training_rows_alone():
    texts = ["Red apple pie", "red wine", "apple tea", "zebra zebra red", "zebra tea a"]
    vocabulary = words(texts, np.array([0, 1, 2]))
    assert vocabulary.names == ["apple", "red"] and vocabulary.counts.shape == (5, 2)
    np.testing.assert_array_equal(
        vocabulary.counts.toarray(), [[1, 1], [0, 1], [1, 0], [0, 1], [0, 0]]
    )
    changed = words(texts[:3] + ["apple pie pie", "wine tea"], np.array([0, 1, 2]))
    assert changed.names == vocabulary.names
    assert words(texts, np.array([0, 1, 2]), min_documents=1).names == [
        "apple",
        "pie",
        "red",
        "tea",
        "wine",
    ]


@pytest.mark.parametrize(
    ("texts", "least"),
    [(["", ""], 1), (["a b", "c"], 1), (["red", "blue"], 2), (["red", "red"], 3)],
    ids=["no text", "one-letter words", "no word twice", "more than there are documents"],
)
def test_no_words_is_a_clear_error(texts, least):
    with pytest.raises(
        ValueError,
        match=rf"no word occurs in at least {least} of 2 training documents; give more training",
    ):
        words(texts, np.arange(2), min_documents=least)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("患者发热。吃了Aspirin 100mg", ["患者", "者发", "发热", "吃了", "aspirin", "100mg"]),
        ("熱", ["熱"]),
        ("コーヒーを飲む", ["コー", "ーヒ", "ヒー", "ーを", "を飲", "飲む"]),
        ("มีไข้ ที่", ["มีไ", "ไข้", "ที่"]),  # a vowel sign belongs to its consonant
    ],
    ids=["Chinese", "one character", "Japanese", "Thai"],
)
def test_scripts_without_spaces_are_read_in_pairs_of_characters(text, found):
    assert word_analyser()(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "Don't: a red_wine, élan! İstanbul 2,5 mg",
        "열이 있는 환자",
        "مريض يعاني من حمى",
        "हिन्दी में",
        "a long sentence about one name, 飞秋, and no more of it",
    ],
)
def test_words_between_spaces_are_those_of_scikit_learn(text):
    assert word_analyser()(text) == CountVectorizer(token_pattern=WORD).build_analyzer()(text)


def test_words_of_chinese_texts_are_counted():
    texts = ["患者发热", "患者咳嗽", "发热咳嗽"]
    assert words(texts, np.array([0, 1])).names == ["患者"]
    assert words(texts, np.array([0, 1])).counts.toarray().ravel().tolist() == [1, 1, 0]


def test_tfidf_equals_scikit_learn_fitted_on_training_rows():
    texts = ["red red apple", "red wine wine wine", "apple tea", "zebra zebra red tea tea", "zebra"]
    train = np.array([0, 1, 2])
    vocabulary = words(texts, train, min_documents=1)
    oracle = TfidfVectorizer(sublinear_tf=True).fit([texts[i] for i in train])
    np.testing.assert_allclose(
        tfidf(vocabulary.counts, train).toarray(), oracle.transform(texts).toarray(), atol=1e-12
    )


def test_tokens_are_made_once_and_read_after(tmp_path):
    calls, expected = [], Ragged.from_lists([[3, 1], [], [2]])

    def make():
        calls.append(1)
        return expected

    for _ in range(2):
        tokens = cached_tokens(tmp_path / "deep" / "t.safetensors", make)
        assert np.array_equal(tokens.flat, expected.flat) and np.array_equal(
            tokens.offsets, expected.offsets
        )
        assert tokens.flat.dtype == np.int32 and tokens.offsets.dtype == np.int64
    assert len(calls) == 1 and [p.name for p in (tmp_path / "deep").iterdir()] == ["t.safetensors"]


def test_tokenising_takes_at_most_12_bytes_per_token(tokenizer):
    texts = ["cough breath smoke pulse valve " * 400] * 400
    tokenise(texts[:5], tokenizer)  # what the tokenizer itself loads
    tracemalloc.start()
    tokens = tokenise(texts, tokenizer, progress=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # beside one call of the tokenizer, whose lists are freed
    assert (peak - CALL_BYTES) / len(tokens.flat) <= 12, f"{peak / len(tokens.flat):.0f} bytes"
    assert len(tokens.flat) > 500_000 and tokens.flat.dtype == np.int32


def test_long_texts_are_read_in_calls_of_bounded_size(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens_module, "CHARACTERS", 40)
    texts = ["cough " * 3, "", "pulse " * 30, "", "rash", "itch " * 2] * 3
    bounds = list(tokens_module._parts(texts, 4))
    assert [begin for begin, _ in bounds[1:]] == [end for _, end in bounds[:-1]]
    assert bounds[0][0] == 0 and bounds[-1][1] == len(texts)
    sizes = [sum(map(len, texts[begin:end])) for begin, end in bounds]
    assert all(
        size <= 40 or end - begin == 1 for size, (begin, end) in zip(sizes, bounds, strict=True)
    )
    assert max(end - begin for begin, end in bounds) <= 4
    small = tokenise(texts, tokenizer)
    monkeypatch.undo()
    whole = tokenise(texts, tokenizer)
    assert small.flat.tolist() == whole.flat.tolist()
    assert small.offsets.tolist() == whole.offsets.tolist()
    assert tokenise([], tokenizer).offsets.tolist() == [0]


@pytest.mark.parametrize(
    "text",
    [
        "Pulse of the valve, 3x daily; café",
        "İSTANBUL'da İki ağrı",
        "心不全の患者 with AB-3 標準",
        "โรคหัวใจ heart",
        "a b, c",
        "",
    ],
)
def test_word_spans_are_the_places_of_the_words_that_are_counted(text):
    found = word_spans(text)
    assert [word for word, _ in found] == word_analyser()(text)
    assert [text[begin:end].lower() for _, (begin, end) in found] == [word for word, _ in found]


def test_a_cut_keeps_the_first_tokens_of_each_document():
    tokens = Ragged.from_lists([[5, 6, 7], [], [8], [1, 2, 3, 4]])
    cut = tokens.cut(2)
    assert [cut[i].tolist() for i in range(4)] == [[5, 6], [], [8], [1, 2]]
    assert tokens.cut(None) is tokens
    assert len(Ragged.from_lists([[], []]).cut(3)) == 2


def test_every_character_of_a_script_without_spaces_is_looked_for():
    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    unspaced = "".join(regex.findall(tokens_module.UNSPACED, everything))
    assert len(unspaced) > 100_000
    assert not tokens_module.MAY_BE_UNSPACED.sub("", unspaced)
