"""Corpus: its parts, its files and its choices of rows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from plantlib.data import sources
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError, hash_order
from plantlib.utils.folders import seal


def corpus(n: int = 60, name: str = "toy") -> Corpus:
    """n documents: two thirds train, the rest test; label 'rare' is in test only."""
    split = ["train" if i % 3 else "test" for i in range(n)]
    labels = [[f"l{i % 5}", f"l{i % 7}"] + (["rare"] if i == 0 else []) for i in range(n)]
    texts = [f"text number {i} é" for i in range(n)]
    return Corpus.from_lists(
        name,
        [f"d{i}" for i in range(n)],
        texts,
        labels,
        split,
        manifest={"origin": "a test", "licence": "none", "sources": {}, "notes": []},
    )


def with_evidence() -> Corpus:
    spans = pd.DataFrame(
        {
            "id": ["d0", "d1", "d4"],
            "label": ["rare", "l1", "l4"],
            "start": [0, 5, 0],
            "end": [4, 11, 4],
            "text": ["text", "number", "text"],
        }
    )
    return dataclasses.replace(
        corpus(), evidence=spans, label_texts={"l1": "label one", "rare": "a rare one"}
    )


def test_labels_are_canonical_and_products_do_not_wrap():
    y = csr_matrix(
        (np.array([3, 1, 1], np.int8), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 2)
    )
    result = Corpus("x", ["a"], ["t"], y, ["p", "q"], np.array(["train"]))
    assert result.labels.toarray().tolist() == [[1, 1]]
    assert result.labels.has_sorted_indices and result.labels.nnz == 2
    many = Corpus.from_lists(
        "m", [str(i) for i in range(300)], ["t"] * 300, [["a"]] * 300, ["train"] * 300
    )
    assert (many.labels.T @ many.labels)[0, 0] == 300


def test_labels_survive_scikit_learn():
    from sklearn.preprocessing import LabelBinarizer

    y = Corpus.from_lists(
        "m",
        [str(i) for i in range(200)],
        ["t"] * 200,
        [[f"{i:03d}"] for i in range(200)],
        ["train"] * 200,
    ).labels
    assert (LabelBinarizer(sparse_output=True).fit_transform(y) != y).nnz == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["d0"] * 60}, "duplicate ids, first ['d0']"),
        ({"label_names": ["a"]}, "8 columns but there are 1"),
        ({"texts": ["t"]}, "different length"),
        ({"split": np.array(["train"] * 59 + ["holdout"])}, "unknown splits ['holdout']"),
        ({"evidence": pd.DataFrame({"id": []})}, "evidence lacks"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(DataError) as error:
        dataclasses.replace(corpus(), **change)
    assert message in str(error.value)


def test_rows_name_the_splits_there_are():
    result = corpus()
    assert (
        result.rows("test").tolist() == list(range(0, 60, 3))
        and result.rows("test").dtype == np.int64
    )
    with pytest.raises(DataError, match=r"split 'dev'; it has train \(40\), test \(20\); with_dev"):
        result.rows("dev")


def test_subsets_are_nested_and_keep_the_label_space():
    result = corpus()
    small, large = result.subset(train=7, test=5, seed=3), result.subset(train=20, seed=3)
    train = [{c.ids[i] for i in c.rows("train")} for c in (small, large, result)]
    assert train[0] < train[1] < train[2] and len(train[0]) == 7 and len(train[1]) == 20
    assert small.L == result.L and len(small.rows("test")) == 5 and len(large.rows("test")) == 20
    assert small.ids == [i for i in result.ids if i in set(small.ids)]
    assert {small.ids[i] for i in small.rows("train")} != {
        c for c in result.subset(train=7, seed=4).ids
    }
    assert result.subset(train=40, dev=9) is result
    for i, key in enumerate(small.ids):
        assert (
            small.labels[i].indices.tolist()
            == result.labels[result.ids.index(key)].indices.tolist()
        )


def test_subset_does_not_depend_on_row_order():
    result = corpus()
    order = np.arange(60)[::-1]
    turned = Corpus(
        "toy",
        [result.ids[i] for i in order],
        [result.texts[i] for i in order],
        result.labels[order],
        result.label_names,
        result.split[order],
    )
    assert set(result.subset(train=9).ids) == set(turned.subset(train=9).ids)


@pytest.mark.parametrize("cap", [0, -1, 2.5, True])
def test_caps_that_are_no_caps(cap):
    with pytest.raises(DataError, match="is no cap"):
        corpus().subset(train=cap)


def test_seen_in_train_drops_and_counts():
    result = with_evidence().seen_in_train()
    assert "rare" not in result.label_names and result.L == 7
    assert result.manifest["label_space"] == {
        "labels_before": 8,
        "labels": 7,
        "labels_dropped": 1,
        "occurrences_dropped": {"dev": 0, "test": 1},
    }
    assert result.evidence["id"].tolist() == ["d1", "d4"] and result.label_texts == {
        "l1": "label one"
    }
    assert result.manifest["counts"]["labels"] == 7
    assert result.seen_in_train() is result


def test_with_dev_carves_once_and_says_so():
    result = corpus()
    carved = result.with_dev(0.25, seed=1)
    assert (
        len(carved.rows("dev")) == 10
        and len(carved.rows("train")) == 30
        and len(carved.rows("test")) == 20
    )
    assert "carved" in carved.manifest["notes"][-1] and carved.with_dev() is carved
    assert not (result.split == "dev").any()
    assert result.with_dev(0.001).rows("dev").size == 1
    with pytest.raises(DataError, match="fraction=0: wanted a number between 0 and 1"):
        result.with_dev(0)


def repeated(copies: list[int]) -> Corpus:
    """Training documents alone: text j occurs copies[j] times."""
    texts = [f"text {j}" for j, n in enumerate(copies) for _ in range(n)]
    ids = [f"d{i}" for i in range(len(texts))]
    return Corpus.from_lists("twice", ids, texts, [["l"]] * len(texts), ["train"] * len(texts))


@pytest.mark.parametrize(
    ("copies", "dev"),
    [([2] * 50, 10), ([1] * 40 + [3] * 20, 10), ([60] + [1] * 40, 10), ([7] * 5, 7)],
)
def test_with_dev_keeps_copies_of_a_text_on_one_side(copies, dev):
    for seed in range(5):
        carved = repeated(copies).with_dev(seed=seed)
        sides = {}
        for text, side in zip(carved.texts, carved.split, strict=True):
            sides.setdefault(text, set()).add(side)
        assert all(len(side) == 1 for side in sides.values())
        assert (
            len(carved.rows("dev")) == dev
            and f"dev: {dev} documents carved" in carved.manifest["notes"][-1]
        )
    with pytest.raises(DataError, match=".1 texts.: give more of different text"):
        repeated([20]).with_dev()


def test_with_dev_draws_as_before_where_no_text_repeats():
    """Dev documents of committed runs stay: they are the first of the hash order."""
    result = corpus()
    train = result.rows("train")
    drawn = train[hash_order([result.ids[i] for i in train], 3, "carve dev")[:8]]
    assert result.with_dev(0.2, seed=3).rows("dev").tolist() == sorted(drawn.tolist())


def test_derived_corpora_leave_the_manifest_of_the_first_alone():
    result = corpus()
    result.subset(train=3).with_dev(0.5)
    assert result.manifest["notes"] == [] and "label_space" not in result.manifest


def test_fingerprint_is_the_same_in_another_process_and_changes_with_the_data():
    result = corpus()
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from tests.data.test_corpus import corpus;"
        " print(corpus().fingerprint())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(sources.checkout())],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    ).stdout.strip()
    assert result.fingerprint() == other and len(other) == 16
    changed = [
        dataclasses.replace(result, texts=["other", *result.texts[1:]]),
        dataclasses.replace(result, split=np.array(["dev", *result.split[1:]])),
        dataclasses.replace(result, label_names=["z", *result.label_names[1:]]),
        dataclasses.replace(result, labels=result.labels[np.arange(60)[::-1]]),
    ]
    assert len({result.fingerprint(), *(c.fingerprint() for c in changed)}) == 5


def test_hash_order_is_frozen():
    """Another order would change every capped run; log a change of this value."""
    assert hash_order([str(i) for i in range(8)], 0, "subset train").tolist() == [
        4,
        0,
        2,
        5,
        6,
        3,
        7,
        1,
    ]


def test_save_and_load_give_the_same_corpus(tmp_path):
    result = with_evidence()
    folder = result.save(tmp_path / "deep" / "toy")
    back = Corpus.load(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "contents.json",
        "documents.parquet",
        "evidence.parquet",
        "labels.parquet",
        "manifest.json",
    ]
    assert back.fingerprint() == result.fingerprint() and back.label_texts == result.label_texts
    assert (back.labels != result.labels).nnz == 0 and back.labels.dtype == result.labels.dtype
    pd.testing.assert_frame_equal(back.evidence, result.evidence, check_dtype=False)
    assert Corpus.load("toy", root=tmp_path / "deep").ids == result.ids
    assert (
        result.subset(train=5).save(folder) == folder
        and len(Corpus.load(folder).rows("train")) == 5
    )
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["toy"]


def test_a_changed_or_torn_folder_is_refused(tmp_path):
    folder = corpus().save(tmp_path / "toy")
    corpus(59).save(tmp_path / "other")
    (folder / "documents.parquet").write_bytes((tmp_path / "other/documents.parquet").read_bytes())
    with pytest.raises(DataError, match="documents.parquet has .* bytes, and .* were written"):
        Corpus.load(folder)
    seal(folder, "corpus")  # the files are as listed, but the manifest is of other documents
    with pytest.raises(DataError, match="differ from the manifest"):
        Corpus.load(folder)
    (folder / "labels.parquet").unlink()
    with pytest.raises(DataError, match="lacks labels.parquet"):
        Corpus.load(folder)


@pytest.mark.parametrize(
    "name", ["documents.parquet", "labels.parquet", "evidence.parquet", "manifest.json"]
)
def test_a_flipped_byte_names_the_file(name, tmp_path):
    folder = with_evidence().save(tmp_path / "toy")
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"toy/{name} is not what was written"):
        Corpus.load(folder)


def test_a_corpus_is_not_saved_over_the_files_of_somebody_else(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "notes.txt").write_text("of a user")
    with pytest.raises(DataError, match="results exists, is no corpus and holds 1 entries"):
        corpus().save(tmp_path / "results")
    assert (tmp_path / "results" / "notes.txt").read_text() == "of a user"


def test_saved_corpora_without_documents_in_a_split_or_without_labels(tmp_path):
    result = Corpus.from_lists("x", ["a", "b"], ["t", "u"], [["l"], []], ["train", "unlabelled"])
    back = Corpus.load(result.save(tmp_path / "x"))
    assert (
        back.labels.toarray().tolist() == [[1], [0]]
        and back.summary().loc["unlabelled", "labels/doc"] == 0
    )


def test_near_duplicates_finds_repeats_and_only_these():
    words = [" ".join(f"w{(i * 37 + j * j) % 400}" for j in range(60)) for i in range(6)]
    near = " ".join(words[1].split()[:-2] + ["changed", "end"])
    texts = [*words[:4], words[0].upper().replace(" ", ", "), near, words[4], words[5]]
    result = Corpus.from_lists(
        "x", [str(i) for i in range(8)], texts, [["l"]] * 8, ["train"] * 4 + ["test"] * 3 + ["dev"]
    )
    assert result.near_duplicates() == {
        "dev": {"documents": 1, "exact": 0, "near": 0},
        "test": {"documents": 3, "exact": 1, "near": 1},
    }
    assert result.near_duplicates(threshold=0.99)["test"]["near"] == 0


def test_repr_summary_and_html_are_short_and_stable():
    result = corpus()
    assert repr(result) == "Corpus(toy: 60 documents (train 40, test 20), 8 labels)"
    synthetic = dataclasses.replace(result, manifest={"synthetic": True})
    assert repr(synthetic).endswith("8 labels, synthetic)")
    assert result.summary().loc["train"].to_dict() == {
        "documents": 40,
        "labels used": 7,
        "labels/doc": 1.85,
        "median words": 4.0,
    }
    assert "<table" in result._repr_html_()


def test_choose_prefers_the_name_then_the_data_then_what_can_be_fetched(tmp_path, monkeypatch):
    for variable in ("PLANT_DATA", "DATASET"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setattr(sources.shutil, "which", lambda program: None)
    assert sources.choose()[0] == "cooking"
    monkeypatch.setattr(sources.shutil, "which", lambda program: "/usr/bin/apt-get")
    assert sources.choose()[0] == "debtags"
    monkeypatch.setenv("PLANT_DATA", str(tmp_path))
    (tmp_path / "stackexchange_cooking").mkdir()
    assert sources.choose() == ("cooking", "data set cooking: $PLANT_DATA holds it")
    (tmp_path / "eurlex57k").mkdir()
    assert (
        sources.choose()[0] == "eurlex57k" and sources.choose("synthetic-icd")[0] == "synthetic-icd"
    )
    assert sources.choose("stackexchange_cooking")[0] == "cooking"
    with pytest.raises(
        DataError, match="unknown data set 'mimic': wanted one of codiesp, .*synthetic-icd"
    ):
        sources.choose("mimic")
    corpus().save(tmp_path / "mimic")
    assert sources.choose("mimic")[0] == "mimic" and Corpus.load("mimic").N == 60


def test_unknown_corpus_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="unknown corpus 'nothing'.*codiesp, .*from_csv"):
        Corpus.load("nothing", root=tmp_path)


def test_importing_is_light():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "import plantlib.data.corpus, plantlib.data.sources, plantlib.data.tables; "
        "print([m for m in ('torch', 'pandas', 'scipy', 'pyarrow', 'tqdm') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(sources.checkout())],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"
