"""Names and words reach a terminal or a spreadsheet without being executed."""

from __future__ import annotations

import json

import pytest

from plantlib.data.corpus import Corpus
from plantlib.utils.terminal import brief, brief_list, json_line, printable, spreadsheet_cell

NAMES = ["\x1b[2Jx", "\x9b31mx", "a\rb", "a\nb", "a\tb", "\u202eabc", "\ud800", "\x07", "\u2028"]


@pytest.mark.parametrize("name", NAMES)
def test_control_characters_are_shown(name):
    for text in (printable(name), spreadsheet_cell(name)):
        assert text.isprintable() and "\\" in text
    assert json.loads(json_line({"label": name})) == {"label": name}, "JSON holds it exactly"
    assert json_line(name).strip().isprintable() and json_line(name).endswith('"\n')


def test_plain_names_stay_as_they_are():
    for name in ("I10", "é 漢字 ß", "a=b", "'quoted'", "-5", "+3.25", "1e-5", "-1,5", ""):
        assert printable(name) == spreadsheet_cell(name) == name
        assert json.loads(json_line(name)) == name


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "＝1+1"])
def test_formulas_become_text_in_a_spreadsheet(name):
    assert spreadsheet_cell(name) == "'" + name and printable(name) == name


def test_a_tab_or_line_end_in_front_of_a_formula_is_shown():
    assert spreadsheet_cell("\t=1+1") == "\\t=1+1" and spreadsheet_cell("\r=1") == "\\r=1"


def test_reprs_execute_nothing():
    lists = (["1"], ["text"], [["x"]], ["train"])
    assert "\x1b" not in repr(Corpus.from_lists("\x1b[2J", *lists))


def test_what_may_be_a_text_is_given_by_its_size():
    assert brief("codes") == "'codes'" and brief("a b c") == "<3 words, 5 characters>"
    assert brief("x" * 41) == "<1 words, 41 characters>"
    assert brief_list(list("abcd"), 2) == "['a', 'b'] and 2 more"
