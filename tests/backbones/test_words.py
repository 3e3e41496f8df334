"""The backbone `words`: a vector per word of the training text in the place of a language model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plantlib import PlantModel, fit, prepare
from plantlib.backbones import loading, words
from plantlib.backbones.words import WordTokenizer
from plantlib.data.tokens import tfidf
from plantlib.data.tokens import words as count_words
from plantlib.linear.score import LinearConfig
from plantlib.metrics.calibration import chances
from plantlib.model import reading
from plantlib.training import artefacts
from plantlib.training.evaluation import score
from plantlib.utils.io import read_json
from tests.conftest import tiny_corpus


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def model(root):
    return fit(tiny_corpus(), backbone="words", root=root, progress=False)


def test_the_words_are_those_of_the_linear_score_and_of_training_documents_alone(root):
    corpus = tiny_corpus()
    inputs = prepare(corpus, backbone="words", root=root, progress=False)
    counted = count_words(corpus.texts, corpus.rows("train"))
    assert inputs.vocabulary == counted.names
    assert "comet" in " ".join(corpus.texts) and "comet" not in inputs.vocabulary
    # every distinct known word once, as the counts have them
    present = (counted.counts > 0).astype(np.int32)
    assert (inputs.counts != present).nnz == 0


def test_hidden_states_are_looked_up_as_the_backbone_gives_them(root):
    inputs = prepare(tiny_corpus(), backbone="words", root=root, progress=False)
    backbone = loading.load(inputs.backbone)
    ids = torch.tensor(inputs.tokens[3].astype(np.int64))
    by_model = backbone.model(input_ids=ids[None]).last_hidden_state[0]
    assert np.array_equal(inputs.features.document(3), by_model.detach().numpy())
    assert not (root / "features").exists()


def test_words_that_share_documents_have_near_vectors():
    corpus = tiny_corpus()
    rows = corpus.rows("train")
    counted = count_words(corpus.texts, rows)
    table = words.vectors(tfidf(counted.counts, rows)[rows], dim=8)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    place = {word: i for i, word in enumerate(counted.names)}

    def near(a, b):
        return unit[place[a]] @ unit[place[b]]

    assert near("pulse", "valve") > near("pulse", "rash") + 0.3
    assert np.sqrt(np.square(table).mean()) == pytest.approx(words.SPREAD, rel=1e-5)


def test_a_fit_learns_predicts_and_comes_back_from_disk(model, tmp_path):
    text = "today the patient was seen with valve and pulse and a beat"
    assert model.predict([text], k=1)[0][0][0] == "heart"
    assert model.record.backbone == "words"
    model.save_pretrained(tmp_path / "model")
    again = PlantModel.from_pretrained(tmp_path / "model")
    assert again.predict([text, "", "itch"]) == model.predict([text, "", "itch"])
    assert read_json(tmp_path / "model" / words.VOCABULARY) == again.tokenizer.words


def test_an_explanation_points_at_the_first_place_of_every_word(model):
    text = "Pulse, impulse and the VALVE; pulse"
    explained = model.explain(text, "heart")
    seen = [text[begin:end] for begin, end in explained.spans]
    assert seen == ["Pulse", "and", "the", "VALVE"]
    logits = model(*model.pack(model.tokenise([text])), linear_scores=model.word_scores([text]))
    column = model.config.label2id["heart"]
    # both add float32 products, in another order
    assert explained.logit == pytest.approx(logits.logits[0, column].item(), abs=1e-4)


def test_predictions_are_those_of_the_model_read_document_by_document(model):
    texts = [*tiny_corpus().texts[60:], "", "pulse"]
    predicted = model.predict(texts, k=3)
    with torch.inference_mode():
        for text, best in zip(texts, predicted, strict=True):
            packed = model.pack(model.tokenise([text]))
            logits = model(*packed, linear_scores=model.word_scores([text])).logits[0]
            chance = chances(logits.numpy(), model.config.calibration)
            by_name = dict(zip(model.config.label2id, chance.tolist(), strict=True))
            # float32 sums over a document's words in another order
            for label, score in best:
                assert score == pytest.approx(by_name[label], abs=1e-5)
            assert [score for _, score in best] == pytest.approx(
                sorted(by_name.values(), reverse=True)[:3], abs=1e-5
            )


def test_evaluation_reads_sets_of_words_as_it_reads_word_by_word(model, root, monkeypatch):
    inputs = prepare(tiny_corpus(), backbone="words", root=root, progress=False)
    linear = artefacts.linear_scores(inputs, LinearConfig(), progress=False)
    documents = inputs.documents("test", True, linear)
    as_sets, _ = score(model, documents, inputs.train_counts)
    called = []
    monkeypatch.setattr(reading, "word_states", lambda *_: called.append(1))
    word_by_word, _ = score(model, documents, inputs.train_counts)
    assert called
    assert np.array_equal(as_sets.topk.ids, word_by_word.topk.ids)
    # float32 sums over a document's words in another order
    assert as_sets.topk.scores == pytest.approx(word_by_word.topk.scores, abs=1e-5)


def test_phrases_and_other_decoders_are_not_read_as_sets(model, monkeypatch):
    assert reading.word_states(model) is model.backbone.embeddings
    for name, value in (("keep", 3), ("stateful", "v1"), ("contexts", "sum")):
        with monkeypatch.context() as patch:
            patch.setattr(model.decoder, name, value)
            assert reading.word_states(model) is None


def test_two_fits_of_one_seed_are_the_same(model, tmp_path):
    again = fit(tiny_corpus(), backbone="words", root=tmp_path, progress=False)
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("start", ["l2r", "shuffled+linear"])
def test_other_starts_work_on_words(root, start):
    trained = fit(tiny_corpus(), backbone="words", start=start, root=root, progress=False)
    assert trained.record.metrics["ndcg@5"] > 0.5


def test_spans_survive_letters_that_grow_in_lower_case():
    tokenizer = WordTokenizer(["ab", "stanbul", "世界"])
    text = "İİ İSTANBUL, ab"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert [text[a:b] for a, b in encoded["offset_mapping"]] == ["STANBUL", "ab"]
    chinese = "你好世界"
    encoded = tokenizer([chinese], return_offsets_mapping=True)
    assert [chinese[a:b] for a, b in encoded["offset_mapping"][0]] == ["世界"]


def test_truncation_counts_distinct_words():
    tokenizer = WordTokenizer(["one", "two", "three"])
    assert tokenizer("one one two three", truncation=True, max_length=2)["input_ids"] == [0, 1]


def test_the_name_alone_loads_nothing():
    with pytest.raises(ValueError, match="made of a corpus"):
        loading.load("words")


def test_what_a_small_max_tokens_leaves_unread_is_said(root):
    corpus = tiny_corpus()
    with pytest.warns(UserWarning, match=r"\d+% of the tokens .* max_tokens=8 reads more"):
        inputs = prepare(corpus, backbone="words", root=root, max_tokens=4, progress=False)
    assert inputs.tokens.lengths.max() == 4
