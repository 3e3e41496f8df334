"""Corpus: its files, its choices of rows, users' tables with their mistakes, and atomic writes."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from plantlib.data import sources
from plantlib.data.corpus import Corpus, corpus_of_table
from plantlib.utils.base import DataError, hash_order
from plantlib.utils.io import atomic_path, read_json, sha256, write_json


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
    with pytest.raises(DataError, match="leaves dev or train empty"):
        result.with_dev(0.001)


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
    with pytest.raises(DataError, match="documents of different text"):
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
    with pytest.raises(DataError, match="differ from the manifest"):
        Corpus.load(folder)
    (folder / "labels.parquet").unlink()
    with pytest.raises(DataError, match="lacks labels.parquet"):
        Corpus.load(folder)


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


def read(tmp_path, content: str, **kwargs) -> Corpus:
    path = tmp_path / "mine.csv"
    path.write_text(content, encoding="utf-8")
    return Corpus.from_csv(path, **kwargs)


ROWS = (
    "id,text,labels,split\na,one text,x;y,train\nb,two text,y; z"
    " ;y,train\nc,three,x;z,valid\nd,four,x,test\n"
)


def test_from_csv_reads_trims_and_collapses(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = read(tmp_path, ROWS, split="split", id="id")
    assert result.ids == list("abcd") and result.split.tolist() == ["train", "train", "dev", "test"]
    assert result.label_names == ["x", "y", "z"] and result.labels.toarray()[1].tolist() == [
        0,
        1,
        1,
    ]
    assert result.name == "mine" and result.manifest["sources"] == {
        "mine.csv": sha256(tmp_path / "mine.csv")
    }


def test_from_csv_reads_na_and_leading_zeros_as_text(tmp_path):
    result = read(
        tmp_path,
        "id,text,labels\n007,a note,NA;null\n008,other,NA\n009,a third,null\n",
        id="id",
        test_fraction=0,
    )
    assert result.ids == ["007", "008", "009"] and result.label_names == ["NA", "null"]
    assert result.labels.toarray().tolist() == [[1, 1], [1, 0], [0, 1]]


def test_from_csv_copes_with_a_byte_order_mark_and_odd_line_ends(tmp_path):
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode())
    assert Corpus.from_csv(path, id="id", split="split").N == 4


MISTAKES = {
    "missing column": (
        ROWS,
        {"text": "note"},
        "no column 'note' for text; the columns are ['id', 'text', 'labels'",
    ),
    "wrong delimiter": (ROWS.replace(",", "\t"), {}, "name the delimiter="),
    "header only": ("text,labels\n", {}, "a header but no rows"),
    "empty": ("", {}, "is empty (0 bytes)"),
    "blank": ("\n", {}, "holds no header"),
    "no text at all": ("text,labels\n  ,x\n,y\n", {}, "no text in any of its 2 rows"),
    "no label at all": ("text,labels\na,\nb,;\n", {}, "no label in any of its 2 rows"),
    "duplicate ids": (
        "id,text,labels\n" + "".join(f"k{i % 5},t,x\n" for i in range(10)),
        {"id": "id"},
        "5 ids more than once, first three ['k0', 'k1', 'k2']",
    ),
    "missing id": ("id,text,labels\n,t,x\n", {"id": "id"}, "lacks an id in 1 rows, first row 0"),
    "unknown split": (
        ROWS.replace("valid", "holdout"),
        {"split": "split"},
        "unknown splits ['holdout']",
    ),
    "blank split": (ROWS.replace("valid", ""), {"split": "split"}, "unknown splits ['']"),
    "no train": (ROWS.replace("train", "dev"), {"split": "split"}, "no document is in train"),
    "too many fields": ("text,labels\na,b\nc,d,e,f\n", {}, "does not parse with delimiter ','"),
    "longer first row": (
        "text,labels\ncough, fever,x\nrash,y\n",
        {},
        (
            "mine.csv: the first row has more cells than the header, 3 to 2, with delimiter ',':"
            " quote the cells"
        ),
    ),
    "longer rows": (
        "text|labels\na|b|c|x\nd|e|f|y\n",
        {"delimiter": "|"},
        "than the header, 4 to 2, with delimiter '|'",
    ),
    "test fraction": (ROWS, {"test_fraction": 1}, "test_fraction=1"),
    "empty separator": (ROWS, {"sep": ""}, "sep='' cuts nothing"),
    "unknown encoding": (ROWS, {"encoding": "klingon"}, "unknown encoding 'klingon'"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_with_their_fix(tmp_path, case):
    text, options, message = MISTAKES[case]
    with pytest.raises(DataError) as error:
        read(tmp_path, text, **options)
    assert message in str(error.value)


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(DataError, match="no file .*absent.csv"):
        Corpus.from_csv(tmp_path / "absent.csv")
    path = tmp_path / "latin.csv"
    path.write_bytes("text,labels\ncafé,x\nother,x\n".encode("latin-1"))
    with pytest.raises(
        DataError, match="not utf-8: byte 15 does not decode; try encoding= one of 'cp1252'"
    ) as error:
        Corpus.from_csv(path)
    assert "caf" not in str(error.value)
    assert Corpus.from_csv(path, encoding="cp1252", test_fraction=0).texts[0] == "café"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "text,labels\na,x\n,y\nb,x\nc,y\n",
            {"test_fraction": 0},
            "1 of 4 documents have no text and were dropped",
        ),
        (
            "text,labels\na,x\nb,\nc,x\n",
            {"test_fraction": 0},
            "1 of 3 documents have no labels and were kept",
        ),
        ("text,labels,s\na,x,train\nb,q,test\n", {"split": "s"}, "1 labels are never in train"),
        ("text,labels\na,x|y\nb,y|z\nc,x|z\n", {"test_fraction": 0}, "pass sep='|' if it is"),
        ("text,labels\na,x y\nb,y z\nc,x z\n", {"test_fraction": 0}, "pass sep=' ' if it is"),
    ],
)
def test_oddities_are_mended_and_counted_once(tmp_path, text, options, message):
    with pytest.warns(UserWarning) as caught:
        read(tmp_path, text, **options)
    assert len(caught) == 1 and message in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning names the line that read the table"


def test_label_names_with_spaces_are_not_taken_for_separated(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = read(
            tmp_path,
            "text,labels\na,heart failure\nb,septic shock\nc,renal colic\n",
            test_fraction=0,
        )
    assert result.L == 3


def test_from_pandas_takes_lists_gaps_and_numbers():
    frame = pd.DataFrame(
        {
            "note": ["a", "b", "c", None],
            "codes": [["x", "y", "x"], ("y",), np.array(["z"]), ["x"]],
            "k": [1.0, 2.0, 3.0, 4.0],
        }
    )
    with pytest.warns(UserWarning, match="1 of 4 documents have no text"):
        result = Corpus.from_pandas(frame, "note", "codes", id="k", test_fraction=0)
    assert result.ids == ["1", "2", "3"] and result.labels.toarray().tolist() == [
        [1, 1, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]
    with pytest.raises(DataError, match="holds float, wanted str"):
        Corpus.from_pandas(frame, "k", "codes")


def test_from_pandas_takes_nullable_strings():
    frame = pd.DataFrame(
        {"t": pd.array(["a", pd.NA, "c"], "string"), "l": pd.array(["x", "x", pd.NA], "string")}
    )
    with pytest.warns(UserWarning) as caught:
        result = Corpus.from_pandas(frame, "t", "l", test_fraction=0)
    assert (
        result.ids == ["0", "2"]
        and result.labels.toarray().tolist() == [[1], [0]]
        and len(caught) == 2
    )


def test_from_parquet_takes_list_columns_and_refuses_what_is_none(tmp_path):
    path = tmp_path / "mine.parquet"
    pd.DataFrame({"text": ["a", "b"], "labels": [["x", "y"], ["y"]]}).to_parquet(path)
    assert Corpus.from_parquet(path, test_fraction=0).labels.toarray().tolist() == [[1, 1], [0, 1]]
    path.write_bytes(pickle.dumps({"text": ["a"]}))
    with pytest.raises(DataError, match="does not read as parquet"):
        Corpus.from_parquet(path)


def test_a_table_to_measure_on_needs_no_train_and_draws_nothing():
    frame = pd.DataFrame({"t": list("abcde"), "l": ["x", "y", "x", "z", "x"], "s": ["test"] * 5})
    columns = {"sep": None, "id": None, "name": "held", "to_train": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marked = corpus_of_table(frame, "t", "l", split="s", **columns)
        whole = corpus_of_table(frame, "t", "l", split=None, test_fraction=None, **columns)
        drawn = corpus_of_table(frame, "t", "l", split=None, **columns)
    assert (
        marked.split.tolist() == whole.split.tolist() == ["test"] * 5
        and whole.manifest["notes"] == []
    )
    with pytest.warns(UserWarning, match="never in train"):
        fitted = Corpus.from_pandas(frame, "t", "l")
    assert drawn.split.tolist() == fitted.split.tolist() and "train" in drawn.split


def test_drawn_split_keeps_repeated_texts_together_and_is_seeded():
    frame = pd.DataFrame({"t": [f"text {i % 50}" for i in range(200)], "l": ["x"] * 200})
    one, two = (Corpus.from_pandas(frame, "t", "l", seed=s) for s in (0, 1))
    sides = {}
    for text, side in zip(one.texts, one.split, strict=True):
        sides.setdefault(text, set()).add(side)
    assert all(len(side) == 1 for side in sides.values()) and len(one.rows("test")) == 40
    assert (
        one.split.tolist()
        == Corpus.from_pandas(frame, "t", "l", seed=0).split.tolist()
        != two.split.tolist()
    )


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


def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = write_json(tmp_path / "a.json", {"n": np.int64(1), "set": {"b", "a"}})
    assert read_json(path) == {"n": 1, "set": ["a", "b"]}
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path)["n"] == 1 and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "b"):
        pass
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"n": float("nan")})
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON .line 1"):
        read_json(path)


def test_atomic_path_replaces_a_folder_as_a_whole(tmp_path):
    for content in ("one", "two"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(json.dumps(content))
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
