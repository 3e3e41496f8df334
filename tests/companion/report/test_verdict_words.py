"""The verdict in words: sentences say what records say, also when these change or are missing."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from companion.report import plots_claims, report, verdict_words, verdicts, worth
from companion.studies import official
from tests.companion.report.test_report import paper, record, some


@pytest.fixture(scope="module")
def groups():
    made = [
        record(start, seed, value, data=data)
        for data, values in {"toy": (0.6, 0.5, 0.55), "flat": (0.5, 0.5, 0.5)}.items()
        for start, value in zip(("lookup+linear", "linear", "shuffled+linear"), values, strict=True)
        for seed in (0, 1)
    ]
    return report.groups(made)


def test_the_verdict_counts_what_was_compared_and_says_why_the_rest_was_not():
    numbers = paper()
    numbers.loc[numbers["system"] == "PLANT v1", "source"] = "PLANT v1 repository log"
    score = record("linear score", value=0.42, kind="linear")
    text = verdict_words.published_in_words(
        verdicts.paper_vs_ours(numbers, report.groups([*some(), score]))
    )
    assert text.startswith("**2 of 7 published numbers can be compared with ours: 0 are reproduced")
    assert "above 1 and below 1.**" in text and "Of the 1 numbers" in text
    assert "* 2 compared on toy with 100 training documents (A, B)" in text
    assert "is above 1 of them already" in text, "the linear score of .42 passes A's 40.0"
    assert "* 1 not run (far; s): n." in text and "* 1 different data (toy; s): n." in text


def test_what_planting_is_worth_is_sorted_and_told_from_zero(groups):
    rows = verdict_words.planting_rows(worth.differences(groups))
    assert list(rows["stem"]) == ["toy-100d-64t", "flat-100d-64t"]
    assert rows.iloc[0]["unplanted difference"] == pytest.approx(10)
    assert rows.iloc[0]["shuffled difference"] == pytest.approx(5)
    text = verdict_words.planting_in_words(rows)
    assert "worth 10.0 points of nDCG@5 on 1 of 2 rows" in text and "On 1 of them planting" in text
    assert "On 1 it cannot be told from zero: flat, 100 documents, 64 tokens" in text
    assert verdict_words.planting_in_words(verdict_words.planting_rows(worth.differences([])))
    ax = plots_claims.planting_worth(rows)
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names[0] == "toy, 100 documents, 64 tokens\nlookup+linear"
    [first, *_] = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert first.get_xdata()[0] == pytest.approx(10)


def test_a_planting_that_costs_is_named(groups):
    rows = verdict_words.planting_rows(worth.differences(groups))
    swapped = rows.assign(
        **{
            f"unplanted {side}": -rows[f"unplanted {side}"]
            for side in ("difference", "low", "high")
        }
    )
    text = verdict_words.planting_in_words(swapped)
    assert "worth no points" in text and "On 1 it costs -10.0 points: toy" in text


def test_the_head_of_a_data_set(groups):
    rows = verdict_words.planting_rows(worth.differences(groups))
    [group] = [g for g in groups if g.dataset["name"] == "toy"]
    lines = verdict_words.data_set_in_words(group, rows).splitlines()
    assert lines[0] == "### toy, 100 documents, 64 tokens" and lines[2] == group.about()
    assert "Best of 3 systems by nDCG@5 on test: `lookup+linear` 60.0" in lines[4]
    assert "+10.0 points [+10.0, +10.0], 2 seeds" in lines[5]


@pytest.mark.parametrize(
    "stem, words",
    [
        ("codiesp-p-500d-256t", "codiesp-p, 500 documents, 256 tokens"),
        ("x-45000d-allt-smollm2-lora", "x, 45,000 documents, all tokens, smollm2-lora"),
        ("something else", "something else"),
    ],
)
def test_a_group_has_a_name_in_words(stem, words):
    assert verdict_words.words_of_stem(stem) == words


def test_tables_are_folded_without_their_heading():
    text = verdict_words.folded("All", verdict_words.without_heading("# a\n\nb\n\n# c"))
    assert text == "<details><summary>All</summary>\n\nb\n\n# c\n\n</details>"


def test_a_frame_as_markdown():
    frame = pd.DataFrame({"data": ["a", None], "P@1": [12.34, float("nan")]})
    text = verdict_words.numbers_table(frame, 1)
    assert text.splitlines()[1:] == ["| --- | ---: |", "| a | 12.3 |", "| - | - |"]


def test_official_rows_say_their_supervision(tmp_path):
    (tmp_path / official.PUBLISHED).write_text(
        "task,documents,system,supervision,map,micro_f1,source\nD,750,x,spans,0.6,,s\n"
    )
    assert official.in_words(tmp_path).endswith("documents. Ours: not run.")
    row = {"documents": 500, "seed": 0, "map": 0.62, "micro_f1": 0.5, "threshold": 0}
    ours = {"task": "D", "supervision": "codes", "terms": ["MI"], "rows": [row]}
    official.file_of(tmp_path, "D", "codes").write_text(json.dumps(ours))
    text = official.in_words(tmp_path)
    assert "best published MAP is 60.0, from spans of 750 documents" in text
    assert "Ours: 62.0 from `codes` of 500 documents (+2.0)." in text
