"""Learning on from corrections, against one fit on all documents, and against what it must not do:
forget, count a document twice, or carry text where it may not go.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from scipy import sparse

from plantlib import Corpus, PlantClassifier, PlantModel, fit, prepare
from plantlib.cli import main
from plantlib.data import kept
from plantlib.data.credentials import PrivacyError
from plantlib.linear.score import LinearConfig
from plantlib.model import saving
from plantlib.training import artefacts, learning
from plantlib.training.ingredients import teacher_of
from plantlib.utils.base import DataError
from tests.conftest import FILLER

pytestmark = pytest.mark.filterwarnings("ignore:dev has .* right labels")
SEA = [f"the patient {word} ocean tide {word} wave today" for word in FILLER[2:7]]
LABELS = [["sea", "bone"], ["sea"], ["sea"], ["sea"], ["sea"]]


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A saved model of the quick tier."""
    root = tmp_path_factory.mktemp("learning")
    model = fit(corpus, backbone="words", root=root / "work", progress=False)
    model.save_pretrained(root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def model(folder):
    return PlantModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def learned(model):
    return learning.learn(model, SEA, LABELS, progress=False)


def together(corpus: Corpus, names: list[str]) -> Corpus:
    """The corpus and the corrections as one, in the columns `names`."""
    lists = [[corpus.label_names[j] for j in row.indices] for row in corpus.labels] + LABELS
    column = {name: j for j, name in enumerate(names)}
    cells = [(i, column[x]) for i, row in enumerate(lists) for x in row if x in column]
    places = tuple(np.array(cells).T)
    labels = sparse.csr_matrix((np.ones(len(cells)), places), shape=(len(lists), len(names)))
    ids = [*corpus.ids, *(f"new {i}" for i in range(len(SEA)))]
    split = [*corpus.split, *["train"] * len(SEA)]
    return Corpus("both", ids, [*corpus.texts, *SEA], labels, names, np.array(split))


def cells_of(table, names: list[str]) -> dict[tuple[str, int], float]:
    """A table's values by the token's name and the label's column."""
    owner = np.repeat(np.arange(len(names)), np.diff(table.planted_indptr.numpy()))
    pairs = zip(owner, table.planted_labels.tolist(), strict=True)
    return dict(zip([(names[i], j) for i, j in pairs], table.planted_values.tolist(), strict=True))


def test_counts_are_those_of_all_documents_at_once(corpus, model, learned, tmp_path):
    names = list(learned.model.config.id2label.values())
    both = together(corpus, names)
    inputs = prepare(both, backbone="words", label_space="all", root=tmp_path, progress=False)
    assert learned.model.tokenizer.words == inputs.vocabulary and "tide" in inputs.vocabulary
    expected, planted = teacher_of(inputs).relevance.tocoo(), learned.model.decoder.planted
    cells = zip(expected.row.tolist(), expected.col.tolist(), expected.data, strict=True)
    assert cells_of(planted, inputs.vocabulary) == {
        (inputs.vocabulary[token], label): np.float32(value) for label, token, value in cells
    }
    score = artefacts.linear_scores(inputs, LinearConfig(), progress=False)
    assert score.words == learned.model.word_score.words
    assert np.array_equal(score.idf, learned.model.word_score.idf.numpy())
    assert np.array_equal(score.tables[0].intercept, learned.model.word_score.intercept.numpy())
    linear = score.tables[0].cells.tocoo()
    cells = zip(linear.row.tolist(), linear.col.tolist(), linear.data, strict=True)
    assert cells_of(learned.model.word_score.table, score.words) == {
        (score.words[word], label): value for label, word, value in cells
    }
    counts = np.bincount(both.labels[both.rows("train")].indices, minlength=len(names))
    assert learned.model.config.train_counts == counts.tolist()
    # and they were others before
    assert len(learned.model.config.train_counts) == len(model.config.train_counts) + 1


def test_a_new_label_is_found_after_five_documents_and_nothing_is_forgotten(corpus, model, learned):
    assert learned.new_labels == ["sea"] and learned.new_documents == 5 and not learned.corrected
    for text in ("again a wave and some tide", "no sign of the ocean"):
        assert learned.model.predict([text], k=1)[0][0][0] == "sea"
        assert learned.model.explain(text, "sea").label == "sea"
    rows = corpus.rows("test")
    texts = [corpus.texts[i] for i in rows]
    gold = [{corpus.label_names[j] for j in corpus.labels[i].indices} for i in rows]
    places = 1 / np.log2(np.arange(2, 7))

    def ndcg(of: PlantModel) -> float:
        best = of.predict(texts, k=5)
        hits = [[x in g for x, _ in row] for row, g in zip(best, gold, strict=True)]
        ideal = [places[: len(g)].sum() for g in gold]
        return float(np.mean([h @ places / i for h, i in zip(hits, ideal, strict=True)]))

    assert ndcg(learned.model) >= ndcg(model) - 0.005 and ndcg(model) > 0.8


def test_a_known_document_is_corrected_and_not_counted_twice(corpus, model):
    row = corpus.rows("train")[0]
    text = "  " + corpus.texts[row].replace(" ", "\n")  # other blanks, the same document
    was = {corpus.label_names[j] for j in corpus.labels[row].indices}
    (right,) = {"eye"} if "eye" not in was else {"skin"}
    result = learning.learn(model, [text], [[right]], epochs=1, progress=False)
    before, after = model.config.train_counts, result.model.config.train_counts
    names = list(model.config.id2label.values())
    changed = {name: b - a for name, a, b in zip(names, before, after, strict=True) if a != b}
    assert changed == {right: 1} | {name: -1 for name in was}
    assert (result.new_documents, result.corrected, result.new_labels) == (0, 1, [])
    assert result.model.config.train_documents == model.config.train_documents


def test_what_was_learned_is_saved_and_learned_on(learned, tmp_path):
    learned.model.save_pretrained(tmp_path / "model")
    again = PlantModel.from_pretrained(tmp_path / "model")
    texts = ["ocean wave", "pulse valve"]
    assert again.predict(texts, k=3) == learned.model.predict(texts, k=3)
    twice = learning.learn(again, ["a reef and the tide"], [["sea", "reef"]], progress=False)
    assert twice.model.config.train_documents == again.config.train_documents + 1
    assert twice.new_labels == ["reef"] and twice.model.record.params["learned"] == [5, 1]
    assert twice.model.record.metrics == {} and twice.model.record.dataset["test"] == 0


def test_a_language_model_learns_on_too(corpus, backbone_folder, tmp_path):
    options = {"root": tmp_path, "max_tokens": None, "progress": False}
    first = fit(corpus, backbone=backbone_folder, start="lookup+score+linear", **options)
    result = learning.learn(first, SEA, LABELS, epochs=1, progress=False)
    assert result.model.predict(["wave and tide"], k=1)[0][0][0] == "sea"
    assert first.config.num_labels + 1 == result.model.config.num_labels
    inputs = prepare(
        together(corpus, list(result.model.config.id2label.values())),
        backbone=backbone_folder,
        label_space="all",
        **options,
    )
    teacher = teacher_of(inputs)
    planted = result.model.decoder.planted
    assert cells_of(planted, inputs.vocabulary) == {
        (inputs.vocabulary[t], label): np.float32(value)
        for label, t, value in zip(*sparse.find(teacher.relevance), strict=True)
    }
    # backbone weights are those of before
    for name, value in first.backbone.state_dict().items():
        assert value.equal(result.model.backbone.state_dict()[name])


def test_the_documents_may_be_removed_from_a_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / kept.FILE).unlink()
    bare = PlantModel.from_pretrained(tmp_path / "model")
    assert bare.predict(["pulse"], k=1)
    with pytest.raises(DataError, match=rf"no {kept.FILE}.*fit again"):
        learning.learn(bare, SEA, LABELS)
    bare.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / kept.FILE).exists()


def test_documents_are_kept_to_the_word(corpus, folder):
    stored = saving.documents_of(PlantModel.from_pretrained(folder))
    rows = np.sort(np.concatenate([corpus.rows("train"), corpus.rows("dev")]))
    assert stored.keys == [kept.key_of(corpus.texts[i]) for i in rows]
    words = [stored.names[i] for i in stored.words[3]]
    text = corpus.texts[rows[3]].split()
    assert words == list(dict.fromkeys(text)) and stored.tokens is None
    counts = stored.counts[stored.words.offsets[3] : stored.words.offsets[4]]
    assert counts.tolist() == [text.count(word) for word in words]


def test_what_is_learned_from_credentialed_texts_stays_in_the_data_folder(
    model, tmp_path, monkeypatch
):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    result = learning.learn(model, SEA[:1], [["sea"]], epochs=1, credentialed=True, progress=False)
    assert not list((tmp_path / "home" / "temporary").iterdir())
    with pytest.raises(PrivacyError):
        result.model.save_pretrained(tmp_path / "elsewhere")
    result.model.save_pretrained(tmp_path / "home" / "model")


@pytest.mark.parametrize(
    ("texts", "labels", "options", "message"),
    [
        ([], [], {}, "0 texts"),
        (SEA, LABELS[:2], {}, "5 texts and 2 lists"),
        (SEA, LABELS, {"epochs": 0}, "epochs=0"),
    ],
)
def test_wrong_corrections_are_refused_before_any_work(model, texts, labels, options, message):
    with pytest.raises(ValueError, match=message):
        learning.learn(model, texts, labels, **options)


def test_a_control_does_not_learn_on(model):
    with pytest.raises(ValueError, match="the start 'shuffled'"):
        learning.check_learnable(model, "shuffled+linear")


def test_plant_learn_writes_a_new_model(folder, tmp_path, capsys):
    table = tmp_path / "corrected.csv"
    rows = zip(SEA, LABELS, strict=True)
    table.write_text("note,codes\n" + "".join(f"{t},{';'.join(row)}\n" for t, row in rows))
    columns = ["--text", "note", "--labels", "codes"]
    out = str(tmp_path / "model")
    call = ["learn", str(folder), str(table), *columns, "--epochs", "1"]
    assert main.main([*call, "--out", str(folder), "--force"]) == 1
    assert "is the model that is read" in capsys.readouterr().err
    assert main.main([*call, "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "documents: 5 new, 0 corrected\nnew labels: 1 (sea)\n" in printed
    assert PlantModel.from_pretrained(out).predict(["ocean"], k=1)[0][0][0] == "sea"
    assert main.main([*call, "--out", out]) == 1  # it is not replaced unasked


def test_partial_fit_of_the_estimator(corpus):
    rows = np.flatnonzero(corpus.split != "test")
    texts = [corpus.texts[i] for i in rows]
    lists = [[corpus.label_names[j] for j in corpus.labels[i].indices] for i in rows]
    classifier = PlantClassifier("words", epochs=1)
    assert classifier.partial_fit(texts, lists) is classifier
    labels = len(classifier.classes_)
    classifier.partial_fit(SEA, LABELS)
    assert classifier.classes_.tolist()[labels:] == ["sea"]
    chance = classifier.predict_proba(["ocean wave tide"])
    assert chance.shape == (1, labels + 1) and chance.argmax() == labels
    accepted = np.flatnonzero(chance[0] >= classifier.thresholds_)
    assert classifier.predict(["ocean wave tide"]) == [classifier.classes_[accepted].tolist()]
    with pytest.raises(ValueError, match="lists of labels"):
        classifier.partial_fit(SEA, np.ones((5, labels + 1), int))
