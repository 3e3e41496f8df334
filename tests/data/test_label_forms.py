"""Every form in which tables hold labels is read as it was meant, or refused with the fix."""

from __future__ import annotations

import json
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from plantlib.data import label_names, printed_lists
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError

CODES = [["I10"], ["E11.9", "I10"], [], ["250.00", "E11.9"], ["0010"], ["250.00", "I10", "V58"]]
SPREAD = ["0010", "250.00", "E11.9", "I10", "V58"]


def labels_of(cells, sep=";", **options) -> list[list[str]]:
    """Names of each document; warnings are errors."""
    frame = pd.DataFrame({"text": [f"note {i}" for i in range(len(cells))]})
    frame["labels"] = pd.Series(list(cells), dtype=object)
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", message=".*have no labels")
        warnings.filterwarnings("ignore", message=".*never in train")
        warnings.filterwarnings("ignore", message=".*joined into")
        return names_of(Corpus.from_pandas(frame, "text", "labels", sep=sep, **options))


def names_of(corpus: Corpus) -> list[list[str]]:
    return [[corpus.label_names[j] for j in row.indices] for row in corpus.labels]


def refusal(cells, sep=";", **options) -> str:
    with pytest.raises(DataError) as error:
        labels_of(cells, sep, **options)
    return str(error.value)


PRINTS = {
    "python": str,
    "python tuple": lambda row: str(tuple(row)),
    "python set": lambda row: str(set(row)),
    "json": json.dumps,
    "numpy": lambda row: str(np.array(row)),
    "numpy repr": lambda row: repr(np.array(row, dtype=object)),
    "spaces around": lambda row: f"  {row}\n",
}


@pytest.mark.parametrize("form", [None, "list"])
@pytest.mark.parametrize("printed", PRINTS)
def test_printed_lists_are_read(printed, form):
    cells = [PRINTS[printed](row) for row in CODES]
    assert labels_of(cells, labels_format=form) == CODES


def test_a_long_numpy_print_over_lines_is_read():
    names = sorted(f"code {i:03}" for i in range(40))
    assert labels_of([str(np.array(names)), "['x']"]) == [names, ["x"]]


def test_lists_without_quotes_are_asked_for():
    for cells in (["[I10]", "[E11.9, I10]"], ["{I10}", "{E11.9,I10}"]):
        assert "pass labels_format='list'" in refusal(cells)
        assert labels_of(cells, labels_format="list") == [["I10"], ["E11.9", "I10"]]


def test_codes_that_are_numbers_stay_as_written_in_lists_without_quotes():
    for cells in (["[I10, 428.0]", "[0010, 250.00]", "[428.0]"], ["{I10,428.0}", "{250.00}"]):
        assert "pass labels_format='list'" in refusal(cells)
        want = [c.strip("[]{}").replace(" ", "").split(",") for c in cells]
        assert labels_of(cells, labels_format="list") == [sorted(row) for row in want]
    for mark in (" ", "; "):
        cells = [f"[I10{mark}E11.9]", f"[E11.9{mark}I10]", "[428.0]"]
        assert "write commas" in refusal(cells, labels_format="list")
    assert labels_of(["[‘I10’, ‘E11.9’]"], labels_format="list") == [["E11.9", "I10"]]


def test_rows_of_single_labels_may_be_printed_lists():
    cells = ["['I10', 'E11.9']", "['I10']"]
    assert labels_of(cells, labels_format="long") == [["E11.9", "I10"], ["I10"]]


@pytest.mark.parametrize("form", ["long", "columns"])
def test_another_separator_is_noted_where_a_form_is_named(form):
    with pytest.raises(UserWarning, match=r"labels hold '\|': pass sep='\|' if it separates"):
        labels_of(["|".join(row) for row in CODES], labels_format=form)
    assert labels_of(["|".join(row) for row in CODES], "|", labels_format=form) == CODES


@pytest.mark.parametrize("form", ['c("{}")', "WrappedArray({})", "<c>{}</c>", "0  {}\ndtype: str"])
def test_no_advice_leaves_halves_of_a_print_in_names(form):
    middle = {"c": '", "', "W": ", ", "<": "</c><c>", "0": "\n1  "}[form[0]]
    message = refusal([form.format(middle.join(row)) for row in CODES if row])
    assert "pass sep=" not in message and "delete what stands around the names" in message


def test_labels_with_a_prefix_keep_it():
    cells = [" ".join(f"__label__{name}" for name in row) for row in CODES]
    assert "pass sep=' '" in refusal(cells)


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_around_whole_cells_are_refused(quote):
    message = refusal([f"{quote}{';'.join(row)}{quote}" for row in CODES if row])
    assert "quotes stand around all 5 cells of column 'labels'" in message


@pytest.mark.parametrize("quotes", ["“”", "‘’", "``"])
def test_other_quotes_around_all_names_are_taken_off(quotes):
    with pytest.raises(UserWarning, match="quotes around all labels were taken off"):
        labels_of([f"{quotes[0]}I10{quotes[1]};{quotes[0]}E11{quotes[1]}"])


@pytest.mark.parametrize("mark", ["\x1e", "\x1f", "\x0b", "\u2028", "\xa0", "\\n"])
def test_unseen_separators_are_named_as_a_shell_can_pass_them(mark):
    cells = [mark.join(row) for row in CODES]
    assert f"pass sep={mark!r}" in refusal(cells)
    assert labels_of(cells, sep=repr(mark)[1:-1]) == CODES


def test_unusual_blanks_inside_names_separate_nothing():
    assert label_names.evident_separator(["heart\xa0failure", "heart failure", "x"]) is None


def test_kinds_of_dashes_are_one_name():
    assert "1 labels are written in several ways" in refusal(["A-1", "A–1", "A‑1", "B"])


def test_rows_without_text_need_an_id_in_the_long_form():
    frame = pd.DataFrame({"text": ["a", "", "b"], "labels": ["x", "y", "x"], "case": [1, 1, 2]})
    with pytest.raises(DataError, match=r"no text in 1 rows, first \[1\].*pass id="):
        Corpus.from_pandas(frame, "text", "labels", labels_format="long")


def test_pairs_and_gaps_in_printed_lists():
    cells = ["{I10: 1, E11: 0}", "{I10: 0}"]
    assert "labels_format='list'" not in refusal(cells), "it would leave pairs in names"
    assert labels_of(["['I10', nan]", "[None, 'nan']"]) == [["I10"], ["nan"]]


def test_names_with_brackets_are_names():
    assert labels_of(["Diabetes (type 2)", "(none)", "x", "[sic] y"]) == [
        ["Diabetes (type 2)"],
        ["(none)"],
        ["x"],
        ["[sic] y"],
    ]
    assert labels_of(["[a]", "[b]"], labels_format="separated") == [["[a]"], ["[b]"]]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["['I10']", "E11.9", "['E11.9']"], "2 of 3 cells are printed lists, the others are not"),
        (["['I10', ...]", "['E11.9']"], "1 of 2 cells are printed lists"),
        ([[["I10"]], ["E11.9"]], "labels of type list in 1 row of column 'labels', first [0]"),
        ([{"I10": 1}, {"E11.9": 1}], "labels of type dict in 2 rows"),
        ([b"I10", "x"], "labels of type bytes in 1 row"),
        (['{"x": 1, "y": 0}', '{"x": 0}'], "no printed list in 2 rows of column 'labels'"),
        ([True, False], "labels_format='onehot'"),
    ],
)
def test_doubtful_cells_are_refused_with_their_rows(cells, message):
    assert message in refusal(cells)


def test_a_cut_off_list_is_no_list():
    assert printed_lists.parse_list("['I10' ... 'E11.9']", bare=True) is None
    assert "no list in 1 row" in refusal(["['I10', ...]", "['E11.9']"], labels_format="list")


SEPARATED = [
    " - ",
    "<br>",
    "__",
    " and ",
    "\n",
    "/",
    "；",
    "，",
    "、",
    "|",
    "||",
    "\t",
    ", ",
    " | ",
    "+",
    "&",
    "#",
    "\r\n",
    " ",
]


@pytest.mark.parametrize("mark", SEPARATED)
def test_another_separator_is_refused_and_the_advice_reads_right(mark):
    cells = [mark.join(row) for row in CODES]
    message = refusal(cells)
    advised = message.split("pass sep=")[1].split(";")[0]
    assert labels_of(cells, sep=eval(advised)) == CODES
    assert "first [1, 3, 5]" in message


def test_two_cells_of_whole_codes_or_lines_are_enough():
    for mark in (",", "/", "+", " ", "；", "~", " - "):
        cells = [f"I37.1{mark}D77.4", "A67.2", f"H66.7{mark}D36.6", "E34.2"]
        assert f"pass sep={mark!r}" in refusal(cells)
    for mark in ("\n", "|", "<br>"):
        cells = [f"heart failure{mark}cough", "fever", f"rash{mark}sepsis"]
        assert f"pass sep={mark!r}" in refusal(cells)
    with pytest.raises(UserWarning, match="3 labels hold ','"):
        labels_of(["428,0", "250,00", "401,9"])


def test_commas_in_many_names_are_noted():
    cells = ["cough, fever", "rash, sepsis", "shock", "stroke"]
    with pytest.raises(UserWarning, match="2 labels hold ',': pass sep=',' if it separates"):
        labels_of(cells)
    assert len(labels_of([*cells, "shock;stroke"])) == 5


def test_words_beside_a_separator_in_use_are_one_name():
    cells = ["heart pain;cough", "pain", "acute cough;heart", "cough;acute pain", "acute"]
    assert labels_of(cells) == [sorted(cell.split(";")) for cell in cells]


def test_codes_that_keep_their_places_are_a_list_too():
    cells = ["A1,B2,C3", "A1,B5,C4", "A2,B2,C3", "A2,B5,C4"]
    assert "pass sep=','" in refusal(cells)


def test_single_quotes_around_all_names_and_lone_truths_are_noted():
    with pytest.raises(UserWarning, match="quotes around all labels were taken off"):
        labels_of(["'I10';'E11'", "'E11'"])
    assert labels_of(["'I10'", "O'Brien"]) == [["'I10'"], ["O'Brien"]]
    with pytest.raises(UserWarning, match="the only labels are 0, 1: .* labels_format='onehot'"):
        labels_of(["0", "1", "1"])


def test_a_separator_is_understood_as_a_shell_passes_it():
    assert labels_of(["\n".join(row) for row in CODES], sep=r"\n") == CODES
    assert labels_of(["\t".join(row) for row in CODES], sep=r"\t") == CODES
    assert labels_of([r"\n".join(row) for row in CODES], sep=r"\n") == CODES, "as it stands"


def test_mixed_separators_are_refused():
    cells = ["I10;E11.9", "E11.9,I10", "I10", "K21;I10", "I10,K21", "E11.9"]
    message = refusal(cells)
    assert "separated by ';' in some rows and by ',' in others" in message
    assert "first [1, 4]" in message
    words = ["cough;fever", "fever", "cough", "rash;fever", "cough,rash", "rash"]
    with pytest.raises(
        UserWarning, match="several, joined, in 1 row.*first .4.: write ';' between"
    ):
        labels_of(words)
    one = ["I10;E11.9", "E11.9,I10", "I10", "E11.9", "K21;I10", "K21"]
    one += [f"{name};I10" for name in SPREAD] + [f"Z{i}" for i in range(10, 40)]
    assert "look like several" in refusal(one)


@pytest.mark.parametrize(
    "cells",
    [
        ["heart failure", "renal failure", "heart attack", "septic shock"],
        ["ICD9:401", "ICD9:428", "ICD10:I10", "ICD10:401"],
        ["Health", "Health/Heart", "Health/Lung", "Law", "Law/Tax"],
        ["Fever, unspecified;Cough", "Cough", "Pain, acute;Cough", "Fever, unspecified"],
        ["HIV/AIDS", "and/or", "Ear/Nose/Throat", "N/A"],
        ["acute pain", "chronic pain", "pain", "acute cough", "cough"],
        ["C++", "C#", "F#", "R&D", "Q&A"],
    ],
)
def test_names_that_hold_marks_are_no_lists(cells):
    assert labels_of(cells) == [sorted(cell.split(";")) for cell in cells]


def test_what_is_asked_for_is_taken_as_it_stands():
    cells = ["I10/E11.9", "E11.9/I10", "I10"]
    assert labels_of(cells, labels_format="separated") == [["I10/E11.9"], ["E11.9/I10"], ["I10"]]


def test_quotes_protect_the_separator():
    cells = ['"Fever; unspecified";I10', "I10", '"I10"', 'a 5" nail', '"a ""b"""']
    assert labels_of(cells) == [
        ["Fever; unspecified", "I10"],
        ["I10"],
        ["I10"],
        ['a 5" nail'],
        ['a "b"'],
    ]


# ---- 0 and 1, several columns, long tables


def bits() -> pd.DataFrame:
    frame = pd.DataFrame({"text": [f"note {i}" for i in range(6)], "id": list("abcdef")})
    for code in SPREAD:
        frame[code] = [int(code in row) for row in CODES]
    return frame


@pytest.mark.parametrize("kind", [int, float, str, bool, lambda x: "1.0" if x else "0.0"])
def test_columns_of_zeros_and_ones(kind):
    frame = bits()
    for code in SPREAD:
        frame[code] = pd.Series([kind(x) for x in frame[code]], dtype=object)
    with pytest.raises(DataError, match="5 columns hold 0 and 1: labels_format='onehot'"):
        Corpus.from_pandas(frame, "text", "labels", id="id")
    options = dict(id="id", labels_format="onehot", test_fraction=0)
    with pytest.warns(UserWarning, match="have no labels"):
        assert names_of(Corpus.from_pandas(frame, "text", "labels", **options)) == CODES
    with pytest.warns(UserWarning, match="have no labels"):
        few = Corpus.from_pandas(frame, "text", "I10,E*", **options)
    assert few.label_names == ["E11.9", "I10"]


@pytest.mark.parametrize("marks", ["ny", "NY", ("no", "yes"), ("", "x"), (None, "X"), "-+", "FT"])
def test_columns_of_other_marks_are_labels_by_one_hot_and_never_names(marks):
    frame = bits()
    for code in SPREAD:
        frame[code] = pd.Series([marks[x] for x in frame[code]], dtype=object)
    options = dict(id="id", test_fraction=0)
    with pytest.raises(DataError, match="hold marks .* pass labels_format='onehot' to take"):
        Corpus.from_pandas(frame, "text", ",".join(SPREAD), labels_format="columns", **options)
    with pytest.warns(UserWarning, match="have no labels"):
        corpus = Corpus.from_pandas(frame, "text", "labels", labels_format="onehot", **options)
    assert names_of(corpus) == CODES


def test_lists_and_columns_of_letters_are_still_names():
    assert labels_of([["x", "y"], ["y"]]) == [["x", "y"], ["y"]]
    frame = pd.DataFrame({"text": list("ab"), "code1": ["Y", "N"], "code2": ["R07.0", None]})
    corpus = Corpus.from_pandas(frame, "text", "code*", labels_format="columns", test_fraction=0)
    assert names_of(corpus) == [["R07.0", "Y"], ["N"]]


def test_other_cells_than_zeros_and_ones_are_refused():
    frame = bits().assign(age=[30, 1, 0, 1, 1, 77])
    with pytest.raises(DataError, match="'age' holds other cells than 0 and 1 in 2 rows, first .0"):
        Corpus.from_pandas(frame, "text", "labels", id="id", labels_format="onehot")


VECTORS = {
    "printed": str,
    "commas": lambda row: ",".join(map(str, row)),
    "blanks": lambda row: " ".join(map(str, row)),
    "digits": lambda row: "".join(map(str, row)),
    "numpy": lambda row: str(np.array(row)),
    "numpy floats": lambda row: str(np.array(row, float)),
    "lists": list,
    "floats": lambda row: np.array(row, float),
    "truths": lambda row: np.array(row, bool),
}


@pytest.mark.parametrize("sep", [";", ",", None])
@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_of_zeros_and_ones_are_asked_for(kind, sep):
    cells = [VECTORS[kind](row) for row in bits()[SPREAD].to_numpy().tolist()]
    message = refusal(cells, sep)
    assert "vectors of 0 and 1, not names" in message and "labels_format='onehot'" in message
    expected = [[str(SPREAD.index(code)) for code in row] for row in CODES]
    assert labels_of(cells, sep, labels_format="onehot") == expected


def test_vectors_of_two_lengths_are_refused():
    message = refusal([[0, 1, 1], [1, 1], [0, 0, 1]], labels_format="onehot")
    assert "another length than 3 in 1 row of column 'labels', first [1]" in message


def test_lists_of_class_numbers_are_names():
    assert labels_of([[0, 3], [1], [2, 3]]) == [["0", "3"], ["1"], ["2", "3"]]


def test_several_columns_of_labels():
    frame = pd.DataFrame({"text": list("abc"), "code1": ["I10", "E11", ""]})
    frame["code2"] = ["E11", None, "K21"]
    with pytest.raises(DataError, match="labels_format='columns', labels='code.' reads all"):
        Corpus.from_pandas(frame, "text", "labels")
    with pytest.warns(UserWarning, match="only column 'code1' is read for labels"):
        Corpus.from_pandas(frame.iloc[:2], "text", "code1", test_fraction=0)
    options = dict(labels_format="columns", test_fraction=0)
    for labels in ("code*", "code1,code2", ["code2", "code1"]):
        corpus = Corpus.from_pandas(frame, "text", labels, **options)
        assert names_of(corpus) == [["E11", "I10"], ["E11"], ["K21"]]
    with pytest.raises(DataError, match="no column 'code9' for labels"):
        Corpus.from_pandas(frame, "text", "code9", **options)


def long_table() -> pd.DataFrame:
    rows = [(f"k{i}", f"note {i}", name) for i, row in enumerate(CODES) for name in row or [None]]
    return pd.DataFrame(rows, columns=["case", "text", "labels"])


@pytest.mark.parametrize("id", [None, "case"])
def test_one_row_per_document_and_label(id):
    frame = long_table()
    with pytest.raises(DataError, match="labels_format='long'"):
        Corpus.from_pandas(frame, "text", "labels", id=id)
    options = dict(id=id, labels_format="long", test_fraction=0)
    with pytest.warns(UserWarning, match="10 rows of single labels joined into 6 documents"):
        corpus = Corpus.from_pandas(frame, "text", "labels", **options)
    assert names_of(corpus) == CODES and corpus.texts == [f"note {i}" for i in range(6)]
    assert corpus.ids == ([f"k{i}" for i in range(6)] if id else ["0", "1", "3", "4", "6", "7"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_long_table_may_name_the_text_once_and_no_two_texts():
    frame = long_table()
    frame.loc[frame.duplicated("case"), "text"] = ""
    options = dict(id="case", labels_format="long", test_fraction=0)
    assert names_of(Corpus.from_pandas(frame, "text", "labels", **options)) == CODES
    frame.loc[2, "text"] = "another"
    with pytest.raises(DataError, match="1 documents have rows with different texts.*rows .1."):
        Corpus.from_pandas(frame, "text", "labels", **options)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_few_repeated_texts_are_noted_only():
    frame = pd.DataFrame({"text": ["a", "a", *map(str, range(20))], "labels": list("xy") * 11})
    with pytest.warns(UserWarning, match="1 texts stand in several rows with different labels"):
        assert Corpus.from_pandas(frame, "text", "labels", test_fraction=0).N == 22


# ---- numbers


@pytest.mark.parametrize(
    "cells",
    [
        [428.0, 401.9, 250.0],
        [[428.0, 401.9], [250.0]],
        ["[428.0, 401.9]", "[250.0]"],
        [np.array([428.0, 38.93]), np.array([250.0])],
        [np.float32(401.9), np.float32(428)],
    ],
)
def test_codes_that_were_floats_are_refused(cells):
    message = refusal(cells)
    assert "labels are floating-point numbers in" in message and "as text" in message
    assert "401.9" not in message


def test_whole_numbers_are_names_and_doubtful_ones_noted():
    assert labels_of([7, 8, None]) == [["7"], ["8"], []]
    assert labels_of([7.0, np.nan, 8.0]) == [["7"], [], ["8"]], "integers beside a gap"
    assert labels_of([Decimal("250.00"), Decimal("401.9")]) == [["250.00"], ["401.9"]]
    assert "numbers beside text in 1 row" in refusal([428, "V58.61", "401.9"])
    with pytest.raises(UserWarning, match="if they are codes such as 428.0"):
        labels_of([428.0, 250.0])


def test_json_numbers_keep_their_digits_or_are_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "labels": 428.0}\n{"text": "b", "labels": [250.00, 401.0]}\n')
    with pytest.warns(UserWarning, match="floating-point numbers and were read as they stand"):
        corpus = Corpus.from_file(path, test_fraction=0)
    assert names_of(corpus) == [["428.0"], ["250.00", "401.0"]]
    path.write_text('{"text": "a", "labels": 428.0}\n{"text": "b", "labels": 401.9}\n')
    with pytest.raises(DataError, match="labels are floating-point numbers in 1 row"):
        Corpus.from_file(path, test_fraction=0)
    path.write_text('{"text": "a", "labels": "x", "id": 1e400}\n')
    with pytest.raises(DataError, match="other ids than text and whole numbers"):
        Corpus.from_file(path, id="id", test_fraction=0)


# ---- spellings


def test_names_are_written_plainly():
    cells = ["I10", "I10\u200b", "\ufeffI10", "I10\xa0", "E\u0301a", "\xc9a", "a\xa0 b", "a b"]
    with pytest.raises(UserWarning, match="spellings of labels held invisible characters"):
        labels_of(cells)
    assert [label_names.plain(c) for c in cells] == ["I10"] * 4 + ["\xc9a"] * 2 + ["a b"] * 2
    persian = "می\u200cخواهم"
    assert label_names.plain(persian + "\u200c") == persian


def test_names_that_differ_by_case_or_width_are_refused_unless_a_form_is_asked_for():
    cells = ["I10", "i10", "I10", "Ｉ１０", "x"]
    message = refusal(cells)
    assert "1 labels are written in several ways, ['I10', 'i10', 'Ｉ１０'], in 2 rows" in message
    assert "first [1, 3]" in message
    with pytest.raises(UserWarning, match="1 labels differ by case or width alone and were kept"):
        labels_of(cells, labels_format="separated")


def test_a_column_of_texts_is_refused_without_showing_them():
    texts = [
        f"Mrs. Example {i} was seen today and she will come back to us next week" for i in "ab"
    ]
    assert "texts, not labels, in 2 rows" in (message := refusal(texts, sep=None))
    assert "Example" not in message


def test_forms_and_separators_that_there_are_not():
    assert "wanted one of list, long, onehot, columns, separated" in refusal(
        ["x"], labels_format="wide"
    )
    assert "sep='' cuts nothing" in refusal(["x"], sep="")


def test_overview_shows_what_was_understood():
    corpus = Corpus.from_lists(
        "c",
        list("abcd"),
        ["t"] * 4,
        [["x", "nan"], ["x", "['y']"], ["x"], []],
        ["train"] * 3 + ["test"],
    )
    lines = corpus.overview().splitlines()
    assert lines[0] == "documents: 4 (3 train, 1 test)"
    assert lines[1] == "labels: 3; per document: 1.2 on average, 0 to 2"
    assert lines[2] == "most frequent: 'x' 3, \"['y']\" 1, 'nan' 1"
    assert "odd: 1 documents without labels" in lines
    assert "odd: 1 labels look like missing values: 'nan'" in lines
    assert any(line.startswith("odd: 1 labels hold brackets") for line in lines)
    lists = (list("ab"), ["t"] * 2, [["x~y"], ["z~w"]], ["train"] * 2)
    assert "odd: 2 labels hold '~': 'x~y', 'z~w'" in Corpus.from_lists("c", *lists).overview()
    assert "odd: 2 labels occur once: \"['y']\", 'nan'" in lines
