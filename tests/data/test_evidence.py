"""Evidence of users: tables, folders of brat, spans left out and counted, kept on disk."""

from __future__ import annotations

import pandas as pd
import pytest

from plantlib import Corpus
from plantlib.data import evidence
from plantlib.utils.base import DataError

NOTES = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "text": ["Chest pain and\nfever", "secret fever, no pain; fever", "cough", "dry cough"],
        "labels": ["R07;R50", "R50", "R05", "R05"],
        "split": ["train", "dev", "test", "train"],
    }
)


def corpus(spans) -> Corpus:
    return Corpus.from_pandas(
        NOTES, "text", "labels", sep=";", id="id", split="split", evidence=spans
    )


def marked(result: Corpus) -> list[tuple]:
    columns = ["id", "label", "start", "end", "text", "mention"]
    return list(result.evidence[columns].itertuples(index=False, name=None))


def test_places_are_read_with_the_text_that_stands_there():
    spans = pd.DataFrame({"id": ["a"], "label": ["R07"], "start": ["0"], "end": ["10"]})
    assert marked(corpus(spans)) == [("a", "R07", 0, 10, "Chest pain", 0)]


def test_a_string_marks_every_place_where_it_stands_up_to_white_space():
    spans = pd.DataFrame(
        {"id": ["b", "a"], "label": ["R50", "R50"], "text": ["fever", "and fever"]}
    )
    assert marked(corpus(spans)) == [
        ("b", "R50", 7, 12, "fever", 0),
        ("b", "R50", 23, 28, "fever", 1),
        ("a", "R50", 11, 20, "and\nfever", 2),
    ]


def test_pieces_of_a_mention_share_its_number():
    spans = pd.DataFrame(
        {
            "id": ["a", "a", "b"],
            "label": ["R07"] * 2 + ["R50"],
            "start": [0, 6, 7],
            "end": [5, 10, 12],
            "mention": ["x", "x", None],
        }
    )
    assert [row[3:] for row in marked(corpus(spans))] == [
        (5, "Chest", 0),
        (10, "pain", 0),
        (12, "fever", 1),
    ]


def test_spans_that_do_not_fit_are_left_out_counted_and_named_without_text():
    rows = [
        ("a", "R50", 15, 20, "fever"),
        ("zz", "R50", 0, 1, None),  # no such document
        ("c", "R50", 0, 5, "cough"),  # a label of another document
        ("a", "R07", 0, 99, None),
        ("a", "R07", 5, 5, None),
        ("b", "R50", 0, 6, "fever"),  # another text stands there
        ("b", "R50", None, None, "secret pain"),
    ]
    spans = pd.DataFrame(rows, columns=["id", "label", "start", "end", "text"], dtype=object)
    with pytest.warns(UserWarning) as caught:
        result = corpus(spans)
    message = str(caught[0].message)
    assert len(caught) == 1 and len(result.evidence) == 1
    assert message.startswith("evidence: 6 of 7 spans were left out: 1 name no document")
    assert "1 name a label that their document does not carry, first row 2" in message
    assert "2 lie outside their document, first row 3, row 4" in message
    assert "1 differ from their document at that place, first row 5" in message
    assert "1 do not stand in their document, first row 6" in message
    assert "secret" not in message and "fever" not in message
    assert message in result.manifest["notes"]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"id": ["a"], "code": ["R50"]}, "wanted the columns id, label and start, end or text"),
        ({"id": ["a"], "label": ["R50"], "start": ["0"]}, "wanted the columns id, label"),
        ({"id": [], "label": [], "text": []}, "no span in it"),
        ({"id": ["a"], "label": ["R50"], "text": ["secret"]}, "none of 1 spans fits"),
        (
            {"id": ["a"], "label": ["R50"], "start": ["x"], "end": ["2"]},
            "row 0 has no whole numbers",
        ),
        (
            {"id": ["a"], "label": ["R50"], "start": [None], "end": [None]},
            "row 0 has neither a place nor a text",
        ),
    ],
)
def test_evidence_that_cannot_be_used_is_one_error(spans, message):
    with pytest.raises(DataError, match=message) as error:
        corpus(pd.DataFrame(spans, dtype=object))
    assert "secret" not in str(error.value)


def test_a_file_beside_a_csv_is_kept_by_save_and_subset(tmp_path):
    NOTES.to_csv(tmp_path / "notes.csv", index=False)
    spans = {"id": ["a", "b"], "label": ["R07", "R50"], "start": [0, 7], "end": [10, 12]}
    pd.DataFrame(spans).to_csv(tmp_path / "spans.csv", index=False)
    reading = {"id": "id", "split": "split", "evidence": tmp_path / "spans.csv"}
    result = Corpus.from_csv(tmp_path / "notes.csv", **reading)
    result.save(tmp_path / "corpus")
    back = Corpus.load(tmp_path / "corpus")
    assert (
        marked(back)
        == marked(result)
        == [("a", "R07", 0, 10, "Chest pain", 0), ("b", "R50", 7, 12, "fever", 1)]
    )
    # labels without a training document go, and their evidence with them
    assert marked(back.seen_in_train()) == marked(back)
    assert back.evidence["id"].isin(back.ids).all()


def test_brat_folders_are_read_with_pieces(tmp_path):
    (tmp_path / "a.ann").write_text(
        "T1\tR07 0 5;6 10\tChest pain\n#1\tAnnotatorNotes T1\tsure\nT2\tR50 15 20\tfever\n"
    )
    (tmp_path / "a.txt").write_text(NOTES["text"][0])
    assert marked(corpus(tmp_path)) == [
        ("a", "R07", 0, 5, "Chest", 0),
        ("a", "R07", 6, 10, "pain", 0),
        ("a", "R50", 15, 20, "fever", 1),
    ]
    (tmp_path / "a.ann").write_text("T1\tR07 zero five\tsecret\n")
    with pytest.raises(DataError, match=r"a.ann line 1 is no text-bound annotation") as error:
        corpus(tmp_path)
    assert "secret" not in str(error.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no .ann file"):
        list(evidence._spans(empty))
