"""Users' tables as corpora: what is read and mended, and the mistakes that are named."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest

from plantlib.data.corpus import Corpus, corpus_of_table
from plantlib.utils.base import DataError
from plantlib.utils.io import sha256


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
    "too many fields": (
        "text,labels\na,b\nc,d,e,f\n",
        {},
        "row 1 (line 3) has more cells than the header, 4 to 2, with delimiter ','",
    ),
    "longer first row": (
        "text,labels\ncough, fever,x\nrash,y\n",
        {},
        (
            "mine.csv does not parse: row 0 (line 2) has more cells than the header, 3 to 2, with"
            " delimiter ',': quote the cells"
        ),
    ),
    "longer rows": (
        "text|labels\na|b|c|x\nd|e|f|y\n",
        {"delimiter": "|"},
        "than the header, 4 to 2, with delimiter '|'",
    ),
    "test fraction": (ROWS, {"test_fraction": 1}, "test_fraction=1"),
    "empty separator": (ROWS, {"sep": ""}, "sep='' cuts nothing"),
    "unknown encoding": (ROWS, {"encoding": "klingon"}, "'klingon' is no encoding of texts"),
    **{
        name: (ROWS, {"encoding": name}, f"'{name}' is no encoding of texts: pass the one it was")
        for name in ("unicode_escape", "raw_unicode_escape", "punycode", "idna", "rot13", "hex")
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_with_their_fix(tmp_path, case):
    text, options, message = MISTAKES[case]
    with pytest.raises(DataError) as error:
        read(tmp_path, text, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le"])
def test_utf8_is_not_read_as_other_characters(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_text("text,labels\nwords,x\n" if "16" in encoding else "text,labels\ncafé,x\n")
    with pytest.raises(DataError, match=f"was read as {encoding}, but is UTF-8: leave out enc"):
        Corpus.from_csv(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_the_encoding_that_is_advised_reads_right(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_text("text,labels\ncafé élevé,x\n", encoding=encoding)
    with pytest.raises(DataError, match=f"pass encoding='{encoding}'"):
        Corpus.from_csv(path)
    assert Corpus.from_csv(path, encoding=encoding, test_fraction=0).texts == ["café élevé"]


def test_a_header_of_one_cell_asks_for_the_delimiter(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text:labels\na:x\nb:y\n")
    with pytest.raises(DataError, match="one column, .'text:labels'.: name the delimiter="):
        Corpus.from_csv(path)


def test_numbers_in_a_header_of_a_workbook_stay_whole(tmp_path):
    pytest.importorskip("openpyxl")
    pd.DataFrame({"text": ["a", "b"], 428: [1, 0], 250: [0, 1]}).to_excel(
        tmp_path / "t.xlsx", index=False
    )
    corpus = Corpus.from_file(tmp_path / "t.xlsx", labels_format="onehot", test_fraction=0)
    assert corpus.label_names == ["250", "428"]


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(DataError, match="no file .*absent.csv"):
        Corpus.from_csv(tmp_path / "absent.csv")
    path = tmp_path / "latin.csv"
    path.write_bytes("text,labels\ncafé,x\nother,x\n".encode("latin-1"))
    with pytest.raises(
        DataError, match="not utf-8: byte 15 .line 2. does not decode; pass.* encoding='cp1252'"
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


def test_parquet_takes_list_columns_and_refuses_what_is_none(tmp_path):
    path = tmp_path / "mine.parquet"
    pd.DataFrame({"text": ["a", "b"], "labels": [["x", "y"], ["y"]]}).to_parquet(path)
    assert Corpus.from_file(path, test_fraction=0).labels.toarray().tolist() == [[1, 1], [0, 1]]
    path.write_bytes(pickle.dumps({"text": ["a"]}))
    with pytest.raises(DataError, match="does not read as parquet"):
        Corpus.from_file(path)


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
