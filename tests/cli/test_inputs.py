"""What `plant` reads: every kind of file, folder and stream, or one line that says why not.

No model is needed: documents and tables are read before one is loaded.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from plantlib.cli import commands, inputs, main
from plantlib.cli.main import parser
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError

SECRET = "Mrs. Example was seen today"


def documents(source, *options) -> tuple[list[str], list[str]]:
    return inputs.documents_of(parser().parse_args(["predict", "m", str(source), *options]))


def refused(source, *options) -> str:
    with pytest.raises(DataError) as error:
        documents(source, *options)
    assert "Example" not in str(error.value)
    return inputs.in_shell(str(error.value))


def call(capsys, *arguments) -> tuple[int, str]:
    capsys.readouterr()
    status = main.main([str(a) for a in arguments])
    return status, capsys.readouterr().err


# ---- documents to predict


def test_a_folder_says_which_files_were_read_and_which_not(tmp_path, capsys):
    for name in ("a.txt", "B.TXT", "d.text", "e.csv", "blank.txt"):
        (tmp_path / name).write_text("" if name == "blank.txt" else f"in {name}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("in c")
    assert documents(tmp_path) == (["B.TXT", "a.txt"], ["in B.TXT", "in a.txt"])
    notes = capsys.readouterr().err
    assert "3 .txt files read, B.TXT, a.txt, blank.txt; left out: d.text, e.csv, sub/" in notes
    assert "1 of 3 documents are blank" in notes
    (tmp_path / "a.txt").write_bytes(b"first\ncaf\xe9")
    assert "a.txt is not utf-8: byte 9 (line 2) does not decode" in refused(tmp_path)
    assert documents(tmp_path, "--encoding", "cp1252")[1][1] == "first\ncaf\xe9"
    assert "wanted .txt files; left out: c.text" in refused(folder_of(tmp_path, "c.text"))


def test_hidden_files_of_a_folder_are_left_out(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7\xff")
    assert documents(tmp_path) == (["a.txt"], ["one"])
    assert "left out: ._a.txt" in capsys.readouterr().err


RECORD = f'{{"text": "{SECRET}", "labels": ["I10"]}}'
NO_LINES = {
    "an object among lines": (f"{RECORD}\n{RECORD}\nplain\n", "holds JSON"),
    "objects of several lines": (f"[\n{RECORD},\n{RECORD}\n]\n", "holds JSON"),
    "a tabbed table": (f"id\ttext\n1\t{SECRET}\n", "begins with the header of a table"),
    "a table": (f"text,labels\n{SECRET},I10\n", "begins with the header of a table"),
    "one line end among others": (f"a\n{SECRET}\rb\nc\n", "return inside 1 lines, first [2]"),
}


@pytest.mark.parametrize("case", NO_LINES)
def test_what_is_no_document_per_line_is_refused(tmp_path, case):
    content, message = NO_LINES[case]
    path = tmp_path / "notes.txt"
    path.write_bytes(content.encode())
    assert message in refused(path)
    if "JSON" in message:
        assert message in refused(tmp_path), "in a folder too"


def test_lines_with_brackets_and_commas_are_documents(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("[sic] text, labels\n{x}\nthe text,labels and more\n")
    assert len(documents(path)[1]) == 3


def test_repeated_ids_are_noted(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("id,text\n1,a\n1,b\n2,c\n")
    assert documents(path, "--id", "id")[0] == ["1", "1", "2"]
    assert "1 rows have an id of an earlier row (--id id)" in capsys.readouterr().err


def folder_of(tmp_path, name):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / name).write_text("x")
    return folder


def test_a_text_file_has_one_document_per_line(tmp_path):
    path = tmp_path / "notes.txt"
    expected = (["1", "3"], ["one", "two"])
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=[b"one\n\ntwo\n"])
    writer.start()
    assert documents(fifo) == expected, "what a shell makes of <(...)"
    writer.join()
    for content in (b"one\n\ntwo\n", b"\xef\xbb\xbfone\r\n\r\ntwo", b"one\r\rtwo\r"):
        path.write_bytes(content)
        assert documents(path) == expected
        packed = tmp_path / "notes.txt.gz"
        packed.write_bytes(gzip.compress(content))
        assert documents(packed) == expected
    packed.write_bytes(gzip.compress(b"one" * 1000)[:-9])
    assert "does not unpack as .gz" in refused(packed)


def test_bytes_of_another_encoding_on_standard_input(monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO(b"one\ncaf\xe9\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    message = refused("-")
    assert "standard input is not utf-8: byte 7 (line 2) does not decode" in message
    assert "--encoding 'cp1252'" in message
    stdin.buffer.seek(0)
    assert documents("-", "--encoding", "cp1252")[1] == ["one", "caf\xe9"]
    stdin.buffer = io.BytesIO(b"caf\xe9 and the rest")
    assert "standard input is not utf-8: byte 3" in refusal_of_explain()


def refusal_of_explain(source="-") -> str:
    with pytest.raises(DataError) as error:
        inputs.read_document(str(source))
    return str(error.value)


def test_explain_reads_no_table(tmp_path):
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        (tmp_path / name).write_text("text\nx\n")
        assert "is a table: give the text of one document" in refusal_of_explain(tmp_path / name)


def test_json_lines_are_a_table_and_never_documents(tmp_path, monkeypatch):
    lines = [{"text": "a", "labels": ["x"], "n": 7}, {"text": "b", "labels": []}, {"text": None}]
    content = "\n".join(map(json.dumps, lines)) + "\n"
    for name in ("docs.jsonl", "docs.ndjson", "DOCS.JSONL"):
        (tmp_path / name).write_text(content)
        assert documents(tmp_path / name) == (["0", "1"], ["a", "b"])
    (tmp_path / "docs.txt").write_text(content)
    assert "save it as .jsonl" in refused(tmp_path / "docs.txt")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
    assert "standard input holds JSON" in refused("-")
    assert "no column 'note' for text" in refused(tmp_path / "docs.jsonl", "--text", "note")


def test_blank_rows_keep_the_numbers_of_the_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,labels\na,x\n\n ,\nb,y\n")
    assert documents(path) == (["0", "3"], ["a", "b"])


def test_ids_are_read_as_fit_reads_them(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"text": ["a", "b"], "id": [1.0, 2.0]}).to_parquet(path)
    assert documents(path, "--id", "id")[0] == ["1", "2"]
    pd.DataFrame({"text": ["a", "b"], "id": [1.0, None]}).to_parquet(path)
    assert "lacks an id in 1 rows, first row 1" in refused(path, "--id", "id")
    pd.DataFrame({"text": [1, 2]}).to_parquet(path)
    assert "'text' holds int, wanted str, in 2 rows" in refused(path)


@pytest.mark.parametrize("name", ["t.json", "t.xls", "t.pdf", "t.docx", "t.html", "t.pkl", "t.zip"])
def test_other_kinds_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text(SECRET)
    assert f"t.{name.split('.')[1]} is not read" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("notes.txt", "text"), ("notes", "text"), ("t.csv", "a header line"), ("t.jsonl", "one JSON")],
)
def test_an_empty_file_is_told_what_its_kind_holds(name, wanted, tmp_path):
    (tmp_path / name).write_bytes(b"")
    assert f"{name} is empty (0 bytes): wanted {wanted}" in refused(tmp_path / name)


def test_text_of_two_bytes_a_character_names_its_encoding(tmp_path):
    (tmp_path / "notes").write_bytes("one\ntwo".encode("utf-16-le"))
    assert "pass --encoding 'utf-16-le'" in refused(tmp_path / "notes")
    (tmp_path / "notes").write_bytes("one\ntwo".encode("utf-16"))
    assert "byte 0 (line 1) does not decode" in refused(tmp_path / "notes")
    assert documents(tmp_path / "notes", "--encoding", "utf-16")[1] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "sign"),
    [(b"\x1f\x8b\xff", "a gzip file"), (b"PK\x03\x04\xff", "zip"), (b"%PDF\xff", "a PDF file")],
)
def test_a_wrong_name_is_seen_by_the_first_bytes(tmp_path, content, sign):
    (tmp_path / "notes").write_bytes(content)
    assert sign in refused(tmp_path / "notes")


# ---- tables to fit


ROWS = [("a", "x;y"), ("b", "y"), ("c", "007")]


def corpus(path, *options) -> Corpus:
    typed = parser().parse_args(["fit", str(path), "--out", "m", *options])
    return inputs.corpus_of(typed, test_fraction=0)


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.CSV.bz2", "t.tsv.xz", "t.jsonl", "t.jsonl.gz", "t.xlsx"]
)
def test_every_kind_of_table_is_read(tmp_path, name):
    frame, path = pd.DataFrame(ROWS, columns=["text", "labels"]), tmp_path / name
    if "jsonl" in name:
        frame.to_json(path, orient="records", lines=True)
    elif name.endswith("xlsx"):
        pytest.importorskip("openpyxl")
        frame.to_excel(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in name else ",")
    result = corpus(path)
    assert result.texts == list("abc") and result.label_names == ["007", "x", "y"]
    assert result.name == "t" and list(result.manifest["sources"]) == [name]
    assert Corpus.from_file(path, test_fraction=0).fingerprint() == result.fingerprint()


def test_a_table_of_another_kind_names_the_fix(tmp_path, capsys):
    for name, fix in (
        ("t.json", "write one object per line into a .jsonl file"),
        ("t.ods", "save it as .xlsx or .csv"),
        ("t.csv.zip", "unpack it"),
        ("t.parquet.gz", "is compressed"),
        ("t.txt", "is a file of another kind: a table is .csv, .tsv or .jsonl"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(SECRET.encode()))
        status, error = call(capsys, "fit", tmp_path / name, "--out", tmp_path / "m")
        assert status == 1 and fix in error and error.count("\n") == 1
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    status, error = call(capsys, "fit", tmp_path / "t.xlsx", "--out", tmp_path / "m")
    assert status == 1 and "does not read as a workbook" in error


def test_a_workbook_with_two_filled_sheets_or_codes_as_numbers_is_refused(tmp_path):
    pytest.importorskip("openpyxl")
    frame, path = pd.DataFrame(ROWS, columns=["text", "labels"]), tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as book:
        frame.to_excel(book, sheet_name="one", index=False)
        frame.to_excel(book, sheet_name="two", index=False)
    with pytest.raises(DataError, match="has 2 sheets with cells: wanted one"):
        corpus(path)
    with pytest.warns(UserWarning, match="if they are codes such as 428.0, write them as text"):
        frame.assign(labels=[428, 250, 401]).to_excel(path, index=False)
        assert corpus(path).label_names == ["250", "401", "428"]
    frame.assign(text=["a", "=1+1", "c"]).to_excel(path, index=False)
    with pytest.raises(DataError, match="formulas without values in 1 lines, first .3."):
        corpus(path)
    frame.assign(labels=[428, 401.9, "V58.61"]).to_excel(path, index=False)
    with pytest.raises(DataError, match="floating-point numbers in 1 row.*first .1."):
        corpus(path)


def test_parquet_keeps_large_whole_numbers_beside_gaps(tmp_path):
    path = tmp_path / "t.parquet"
    codes = pd.array([2**53 + 1, None, 5], "Int64")
    pd.DataFrame({"text": list("abc"), "labels": codes}).to_parquet(path)
    with pytest.warns(UserWarning, match="1 of 3 documents have no labels"):
        assert corpus(path).label_names == ["5", str(2**53 + 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "text": "b"}\n', "line 1 has a key twice"),
        ('{"text": "a"}\n["b"]\n', "line 2 is list, wanted one JSON object per line"),
        (f'{{"text": "{SECRET}"\n', "line 1 is not JSON (column "),
        ('{"text": "\\ud800", "labels": "x"}\n', "halves of characters"),
        ("\n", "holds no object"),
    ],
)
def test_json_lines_that_cannot_be_read_name_the_line(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        corpus(path)
    assert message in str(error.value) and "Example" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        f"{SECRET} and again tomorrow,I10\nshort,E11\n",
        f"{SECRET}\nanother\n",
        "cough,I10\nfever,I10\n",
    ],
)
def test_a_table_without_a_header_shows_no_text(tmp_path, capsys, content):
    path = tmp_path / "t.csv"
    path.write_text(content)
    for command in (("fit", path, "--out", tmp_path / "m"), ("predict", "m", path)):
        status, error = call(capsys, *command)
        assert status == 1 and "no column 'text' for text" in error
        assert "cough" not in error and "Example" not in error


def test_the_text_column_in_another_role_shows_no_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"text,labels\n{SECRET},x\n{SECRET},y\n")
    for option in ("--id", "--labels", "--split"):
        with pytest.raises(DataError, match="is given for text and for"):
            corpus(path, option, "text")
    assert "that is the column of texts" in refused(path, "--id", "text")


def test_messages_are_in_the_words_of_the_shell(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("text,labels\na,x|y\nb,y|z\nc,x|z\n")
    status, error = call(capsys, "fit", path, "--out", tmp_path / "m")
    assert status == 1 and "not by --sep ';'" in error and "pass --sep '|';" in error
    assert "pass --labels-format 'separated'" in error and "sep=" not in error
    path.write_text("text;labels\na;x\n")
    assert "name the --delimiter ';'" in call(capsys, "fit", path, "--out", tmp_path / "m")[1]
    assert corpus(path, "--delimiter", ";").L == 1
    path.write_text("text,labels\na,x\nb,y\n")
    assert corpus(path, "--labels-format", "separated").L == 2


def test_what_was_understood_is_shown_before_training(tmp_path, capsys, monkeypatch):
    from plantlib.training import runs

    def train(*arguments, **options):
        raise RuntimeError("it trains")

    monkeypatch.setattr(runs, "fit", train)
    path = tmp_path / "t.csv"
    path.write_text(
        "text,labels\n" + "".join(f"note {i},{'x;y' if i % 2 else 'x'}\n" for i in range(20))
    )
    status, error = call(capsys, "fit", path, "--out", tmp_path / "m")
    assert status == 1 and error.endswith("it trains\n")
    assert "documents: 20 (16 train, 4 test)\nlabels: 2; per document: 1.5" in error
    assert "most frequent: 'x' 20, 'y' 10" in error
    assert "odd: 1 labels stand on every document: 'x'" in error


# ---- what is written


class Fake:
    """A model that knows three dangerous labels."""

    labels = ["=1+1", "\x1b[31mred\n", "-3"]

    def unread(self, texts):
        return np.zeros(len(texts), int)

    def predict(self, texts, k, batch):
        return [[(label, 0.5) for label in self.labels[:k]] for _ in texts]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "model_of", lambda options: Fake())
    path = tmp_path / "t.csv"
    path.write_text('text,id\na,"@x\x1b[2J"\n')
    return path


def test_labels_and_ids_are_no_commands(fake, tmp_path, capsys):
    arguments = ("predict", "m", str(fake), "--id", "id")
    assert main.main([*arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        "@x\\x1b[2J\t=1+1\t0.5000",
        "@x\\x1b[2J\t\\x1b[31mred\\n\t0.5000",
        "@x\\x1b[2J\t-3\t0.5000",
    ]
    assert main.main([*arguments, "--out", str(tmp_path / "s.csv")]) == 0
    cells = [line.split(",")[:3] for line in (tmp_path / "s.csv").read_text().splitlines()[1:]]
    assert cells == [
        ["'@x\\x1b[2J", "1", "'=1+1"],
        ["'@x\\x1b[2J", "2", "\\x1b[31mred\\n"],
        ["'@x\\x1b[2J", "3", "-3"],
    ]
    assert main.main([*arguments, "--out", str(tmp_path / "s.jsonl")]) == 0
    line = json.loads((tmp_path / "s.jsonl").read_text())
    assert line["document"] == "@x\x1b[2J", "JSON lines hold every name exactly"
    assert [entry["label"] for entry in line["labels"]] == Fake.labels


def test_messages_execute_nothing(tmp_path, capsys):
    path = tmp_path / "\x1b[2J.csv"
    path.write_text("x\n")
    status, error = call(capsys, "fit", path, "--out", tmp_path / "m")
    assert status == 1 and "\x1b" not in error
    status, error = call(capsys, "predict", "m", tmp_path / "\x1b]0;x\x07.txt")
    assert status == 1 and "\x1b" not in error and "\x07" not in error
