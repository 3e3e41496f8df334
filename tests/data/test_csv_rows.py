"""Rows of delimited text survive exactly, or the table is refused with the numbers of its rows."""

from __future__ import annotations

import csv
import io

import pytest

from plantlib.data.csv_rows import rows_of, typed
from plantlib.utils.base import DataError

SECRET = "Mrs. Example of 12 Sample Street"


def test_cells_survive_exactly():
    cells = [
        ["1", "plain", "x;y"],
        ["2", 'says "hi", then\nleaves\r\nand\rreturns', "x"],
        ["3", "nul \x00, sub \x1a, separators \u2028\x85\x0b\x0c, \\n and \\", "=1+1"],
        ["4", "", ""],
        ["5", "long " * 40_000, "x"],
    ]
    for end in ("\n", "\r\n"):
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
            file = io.StringIO(newline="")
            writer = csv.writer(file, lineterminator=end, quoting=quoting)
            writer.writerows([["id", "text", "labels"], *cells])
            assert rows_of(file.getvalue(), ",", "t") == (["id", "text", "labels"], cells)
    assert csv.field_size_limit() == 131072, "the limit of other readers stays"


def test_line_ends_of_old_macs_and_doubled_ones():
    expected = (["text", "labels"], [["a", "x"], ["b", "y"]])
    assert rows_of("text,labels\ra,x\rb,y\r", ",", "t") == expected
    assert rows_of("text,labels\r\r\na,x\r\r\nb,y\r\r\n", ",", "t") == expected


def test_blank_lines_keep_the_numbers_of_the_rows_after_them():
    _, rows = rows_of("\n\ntext,labels\na,x\n\n , \nb,y\n\n\n", ",", "t")
    assert rows == [["a", "x"], ["", ""], [" ", " "], ["b", "y"]]
    assert rows_of("text\na\n\nb\n", ",", "t")[1] == [["a"], [""], ["b"]]


def test_empty_cells_beyond_the_header_are_nothing():
    expected = (["text", "labels"], [["a", "x"], ["b", "y"]])
    assert rows_of("text,labels\na,x,\nb,y,\n", ",", "t") == expected
    assert rows_of("text,labels,\na,x,\nb,y\n", ",", "t") == expected


def test_header_cells_lose_blanks_and_a_mark_of_excel_names_the_delimiter():
    for head in (" text ;labels ", "\u200btext;\ufefflabels\xa0"):
        assert rows_of(f"{head}\na;x\n", ";", "t")[0] == ["text", "labels"]
    for mark, delimiter in (("sep=;\r\n", ","), ("sep=\t\n", ",")):
        cut = mark[4]
        assert rows_of(f"{mark}text{cut}labels\na{cut}x\n", delimiter, "t")[1] == [["a", "x"]]


@pytest.mark.parametrize("delimiter", ["\t", r"\t"])
def test_a_delimiter_is_understood_as_a_shell_passes_it(delimiter):
    assert typed(delimiter) == "\t"
    text = 'text\tlabels\n"a ""b""\nc"\t"x"\n'
    assert rows_of(text, delimiter, "t")[1] == [['a "b"\nc', "x"]]


REFUSED = {
    "a bare carriage return": (f"text,labels\n{SECRET}\rmore,x\nb,y\n", "row 0 (line 2) holds a"),
    "a quote that is never closed": (
        f'text,labels\nb,y\n"{SECRET},x\nc,y\n',
        "row 1 (lines 3 to 4) opens a quote that is never closed",
    ),
    "a quote closed rows later": (
        f'text,labels\n"{SECRET},x\nb,y\n"c, d",y\n',
        "row 0 (lines 2 to 4) goes on after a closing quote",
    ),
    "a backslash before a quote": (
        f'text,labels\nb,y\n"{SECRET} \\"hi\\" ",x\n',
        "row 1 (line 3) escapes a quote by a backslash",
    ),
    "a backslash before the delimiter": (
        f"text,labels\n{SECRET}\\, more,x\n",
        "row 0 (line 2) has more cells than the header, 3 to 2",
    ),
    "a backslash before a line end": (
        f"text,labels\nb,y\n{SECRET}\\\nmore,x\n",
        "row 1 (line 3) has fewer cells than the header, 1 to 2",
    ),
    "rows of one cell more": (
        "text,labels\n" + f"{SECRET}, more,x\n" * 7,
        "rows 0, 1, 2, 3, 4 (lines 2, 3, 4, 5, 6) and 2 more have more cells",
    ),
    "a blank before a quote": (
        f'text, labels\n"a", "x;y"\n{SECRET}, "y"\n',
        "a blank stands before a quote in rows 0, 1 (lines 2, 3)",
    ),
    "two joined files": (
        f"text,labels\n{SECRET},x\ntext,labels\nb,y\n",
        "the header stands again in row 1 (line 3)",
    ),
    "another delimiter": (f"text;labels\n{SECRET}, more;x\n", "name the delimiter=';'"),
    "a tab in the header": (f'text\tlabels\n"{SECRET}\nmore"\tx\n', "name the delimiter='\\t'"),
    "nothing": ("\n \n", "holds no header"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_would_change_are_refused_without_their_text(case):
    text, message = REFUSED[case]
    with pytest.raises(DataError) as error:
        rows_of(text, ",", "mine.csv")
    assert message in str(error.value) and str(error.value).startswith("mine.csv")
    assert "Sample" not in str(error.value)


@pytest.mark.parametrize("swallowed", [1, 2, 15])
def test_rows_in_one_cell_are_refused(swallowed):
    """A quote is opened by mistake, and a later row ends with a quote: to a parser all is well."""
    rows = [f"{i},note {i} of {SECRET},{'xyz'[i % 3]}" for i in range(40)]
    rows[5] = rows[5].replace("note", '"note')
    rows[5 + swallowed] = rows[5 + swallowed].replace("Street,", 'Street 5",')
    text = "\n".join(["id,text,labels", *rows]) + "\n"
    assert len(list(csv.reader(io.StringIO(text), strict=True))) == 41 - swallowed
    with pytest.raises(DataError) as error:
        rows_of(text, ",", "t")
    lines = f"reads as several rows of this table in row 5 (line 7 to {7 + swallowed}): close"
    assert lines in str(error.value) and "Sample" not in str(error.value)


@pytest.mark.parametrize("order", ["text,labels", "labels,text", "id,text"])
def test_swallowed_rows_are_seen_where_no_cell_stands_twice(order):
    def row(i: int, mark: str) -> str:
        codes = f"{'ABCDE'[i % 5]}{i % 7};{'VWXYZ'[i % 5]}{i % 3};Q{i % 4}"
        cells = {"id": f"d-{i}", "labels": codes, "text": f"note {i} of {SECRET}"}
        cells["text"] = '"' + cells["text"] if mark == "opens" else cells["text"]
        cells["text"] += '"' if mark == "closes" else ""
        return ",".join(cells[name] for name in order.split(","))

    marks = {5: "opens", 20: "closes"}
    text = "\n".join([order, *(row(i, marks.get(i, "")) for i in range(40))])
    with pytest.raises(DataError) as error:
        rows_of(text, ",", "t")
    assert "reads as several rows" in str(error.value) and "Sample" not in str(error.value)


def test_lists_in_a_quoted_text_are_no_rows_of_the_table():
    note = "He said,\nfever, cough\ncough, fever\n1. aspirin, 81 mg\nNa,140\nafebrile"
    rows = [(f"{note} {i}", ";".join(["fever", "cough", f"{i}"][i % 3 :])) for i in range(30)]
    rows += [(f"short {i}", "fever") for i in range(9)]
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([["text", "labels"], *rows])
    assert rows_of(file.getvalue(), ",", "t")[1] == [list(row) for row in rows]


@pytest.mark.parametrize("swallowed", [1, 2, 15])
def test_rows_in_the_one_cell_of_a_table_of_one_column_are_refused(swallowed):
    rows = [f"note {i} of {SECRET} {'a' * (i % 5)}" for i in range(40)]
    rows[5] = '"' + rows[5]
    rows[5 + swallowed] += '"'
    text = "\n".join(["text", *rows]) + "\n"
    with pytest.raises(DataError) as error:
        rows_of(text, ",", "t")
    assert f"in row 5 (line 7 to {7 + swallowed}): close" in str(error.value)
    assert "Sample" not in str(error.value)


def test_a_text_of_several_lines_in_one_column_is_read():
    rows = [f"note {i}" for i in range(9)]
    longer = '"a note\nof several lines, and one of them is long"'
    assert len(rows_of("\n".join(["text", *rows, longer]), ",", "t")[1]) == 10
    # two cells of several lines are no slip
    twice = ['"note a\nnote b"', '"note c\nnote d"']
    assert len(rows_of("\n".join(["text", *rows, *twice]), ",", "t")[1]) == 11
    # nor do few rows say how long rows are
    assert len(rows_of("\n".join(["text", *rows[:3], twice[0]]), ",", "t")[1]) == 4


def test_a_header_behind_a_byte_order_mark_is_seen_again():
    with pytest.raises(DataError, match="the header stands again in row 1"):
        rows_of("text,labels\na,x\n\ufefftext,labels\nb,y\n", ",", "t")


def test_a_text_that_looks_like_a_small_table_is_read():
    text = 'text,labels\n"values:\nNa, 140\nK, 4.0\nx",x\n"a, b\nc, d",y\n'
    assert rows_of(text, ",", "t")[1][0] == ["values:\nNa, 140\nK, 4.0\nx", "x"]


@pytest.mark.parametrize("delimiter", ["", ",,", "||", r"\s+", '"', "\n", r"\n", "tab"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(DataError, match="wanted one character"):
        rows_of("text,labels\na,x\n", delimiter, "t")
