"""Clinical tables that another program has written again: the same corpus, or column and row."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pandas as pd
import pytest

from data_scripts import get_mimic3, get_mimic4
from data_scripts.icd9_numbers import Numbers, terminology
from data_scripts.mimic_tables import Tables, codes_of
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError

NOTES3 = [
    *"ROW_ID SUBJECT_ID HADM_ID CHARTDATE CHARTTIME STORETIME".split(),
    *"CATEGORY DESCRIPTION CGID ISERROR TEXT".split(),
]
CODES3 = "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE".split()
NAMES3 = "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE".split()
SECRET = "Mr Aabye"


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """Credentialed corpora are built in the data folder alone."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))


def write(path: Path, columns: list[str], rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else open(path, "w")
    with opened as out:
        csv.writer(out).writerows([columns, *rows])


def note(row, subject, hadm, text, error="", kind="Report", date="2151-07-16") -> list:
    return [row, subject, hadm, date, "", "", "Discharge summary", kind, 77, error, text]


@pytest.fixture
def three(tmp_path) -> Path:
    """Tables of MIMIC-III with codes that numbers cannot hold."""
    folder = tmp_path / "three"
    notes = [
        note(2, 7, 100, f'{SECRET},\nhas "fever"', kind="Addendum", date="2151-07-18"),
        note(1, 7, 100, f"{SECRET} came"),
        note(3, 8, 101, "second"),
        note(4, 8, "", "no admission"),
        note(5, 9, 102, "third", date="2151-08-01"),
    ]
    write(folder / "NOTEEVENTS.csv", NOTES3, notes)
    codes = [["0389"], ["4019"], [""], ["25000"], ["486"], ["0389"]]
    rows = [[i, 7, 100 + i % 3, i, *code] for i, code in enumerate(codes, 1)]
    write(folder / "DIAGNOSES_ICD.csv", CODES3, rows)
    codes = ["3893", "0117", "966", ""]
    rows = [[i, 7, 100 + i % 3, i, code] for i, code in enumerate(codes, 1)]
    write(folder / "PROCEDURES_ICD.csv", CODES3, rows)
    codes = ["0389", "4019", "25000", "486", "V1582"]
    write(folder / "D_ICD_DIAGNOSES.csv", NAMES3, [[c, c, "s", f"name {c}"] for c in codes])
    codes = ["3893", "0117", "966"]
    write(folder / "D_ICD_PROCEDURES.csv", NAMES3, [[c, c, "s", f"name {c}"] for c in codes])
    return folder


def fingerprint(folder: Path, out: Path, script=get_mimic3, **options) -> tuple:
    corpus = Corpus.load(script.build(out, folder, **options))
    return corpus.fingerprint(), corpus.label_names, corpus.label_texts


def edited(folder: Path, table: str, change) -> None:
    """Replace a table by what `change` makes of its frame of text cells."""
    frame = pd.read_csv(folder / table, dtype=str, keep_default_na=False)
    change(frame).to_csv(folder / table, index=False)


def through_pandas(folder: Path, *tables: str) -> None:
    """Read and write tables as pandas does without options: codes become numbers."""
    for table in tables or [path.name for path in folder.glob("*.csv")]:
        pd.read_csv(folder / table).to_csv(folder / table, index=False)


@pytest.mark.parametrize("options", [{}, {"codes": "exact"}], ids=["published", "exact"])
def test_codes_and_ids_that_became_numbers_give_the_same_corpus(three, tmp_path, options):
    right = fingerprint(three, tmp_path / "a", **options)
    through_pandas(three, "NOTEEVENTS.csv", "DIAGNOSES_ICD.csv", "PROCEDURES_ICD.csv")
    assert "389.0" in (three / "DIAGNOSES_ICD.csv").read_text(), "codes are floats"
    assert "100.0" in (three / "NOTEEVENTS.csv").read_text(), "ids are floats"
    assert fingerprint(three, tmp_path / "b", **options) == right
    through_pandas(three)
    if not options:
        assert fingerprint(three, tmp_path / "c") == right
        return
    # 117 was 0117, or a code 117 that the terminology does not know
    said = "PROCEDURES_ICD.csv, column icd9_code, row 2 .*may have been 01.17 or 11.7"
    with pytest.raises(DataError, match=said):
        fingerprint(three, tmp_path / "c", **options)


def test_whole_numbers_without_a_point_lose_zeros_too(three, tmp_path):
    right = fingerprint(three, tmp_path / "a")
    edited(three, "DIAGNOSES_ICD.csv", lambda f: f.replace("0389", "389"))
    assert fingerprint(three, tmp_path / "b") == right
    # beside codes that lost their zeros, 4111 is 411.1, or 041.11
    edited(three, "DIAGNOSES_ICD.csv", lambda f: f.replace("4019", "4111"))
    said = r"DIAGNOSES_ICD.csv, column icd9_code, row 2 .*may have been 041.11 or 411.1"
    with pytest.raises(DataError, match=said):
        fingerprint(three, tmp_path / "c")
    # and in a table of text it is what it says
    edited(three, "DIAGNOSES_ICD.csv", lambda f: f.replace("389", "0389"))
    assert "411.1" in fingerprint(three, tmp_path / "d")[1]


@pytest.mark.parametrize(
    "codes, procedure, wanted",
    [
        (["389.0", "4019.0"], False, ["0389", "4019"]),
        (["250.0", "428.0", "401.9", "38.9"], False, ["25000", "4280", "4019", "0389"]),
        (["250.00", "428.0", "038.9", "V58.61"], False, ["25000", "4280", "0389", "V5861"]),
        (["038.9", "389", "311"], False, ["0389", "389", "311"]),
        (["V5861", "99999"], False, ["V5861", "99999"]),
        (["44.0", "3893.0"], True, ["0044", "3893"]),
        (["99.15", "1.17"], True, ["9915", "0117"]),
    ],
)
def test_numbers_are_written_back(codes, procedure, wanted):
    numbers = Numbers(codes, procedure)
    assert [numbers.back(code) for code in codes] == [{code} for code in wanted]


def test_the_terminology_is_whole():
    assert (len(terminology(False)), len(terminology(True))) == (14567, 3882)
    assert "0389" in terminology(False) and "0044" in terminology(True)


@pytest.mark.parametrize("empty", ["NULL", "\\N", "NAN", "nan", "None", "<NA>", '"NULL"', " "])
def test_every_way_to_write_an_empty_cell_is_one(three, tmp_path, empty):
    right = fingerprint(three, tmp_path / "a", codes="exact")
    for table in ("NOTEEVENTS.csv", "DIAGNOSES_ICD.csv", "PROCEDURES_ICD.csv"):
        edited(three, table, lambda frame: frame.replace("", empty))
    assert fingerprint(three, tmp_path / "b", codes="exact") == right


def test_headers_in_any_case_with_marks_and_further_columns(three, tmp_path):
    right = fingerprint(three, tmp_path / "a")

    def lower(frame):
        frame.columns = [f" {name.lower()}" for name in frame.columns]
        return frame.assign(**{"Unnamed: 0": range(len(frame))})

    for path in three.glob("*.csv"):
        edited(three, path.name, lower)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        path.rename(path.with_name(path.name.lower()))
    assert fingerprint(three, tmp_path / "b") == right


def test_notes_marked_as_errors_are_left_out(three, tmp_path):
    right = fingerprint(three, tmp_path / "a")
    with open(three / "NOTEEVENTS.csv", "a", newline="") as out:
        rows = [note(8, 7, 100, "of another patient", "1"), note(9, 9, 102, "too", "1.0")]
        csv.writer(out).writerows(rows)
    assert fingerprint(three, tmp_path / "b") == right
    edited(
        three, "NOTEEVENTS.csv", lambda frame: frame[frame["ISERROR"] == ""].drop(columns="ISERROR")
    )
    assert fingerprint(three, tmp_path / "c") == right


@pytest.mark.parametrize(
    "table, change, said",
    [
        ("NOTEEVENTS", lambda f: f.iloc[:0], "NOTEEVENTS.csv holds no discharge summary"),
        ("NOTEEVENTS", lambda f: f.assign(ISERROR="yes"), "column iserror, row 1 "),
        ("NOTEEVENTS", lambda f: f.replace("7", "1e+05"), "column subject_id, row 1 "),
        ("NOTEEVENTS", lambda f: f.replace("8", ""), "column subject_id, row 3 "),
        ("NOTEEVENTS", lambda f: f.replace("2151-07-16", "7/16/2151"), "column chartdate, row 2 "),
        ("NOTEEVENTS", lambda f: f.assign(ROW_ID=f["TEXT"]), "column row_id, row 1 "),
        ("NOTEEVENTS", lambda f: f.assign(hadm_id=f["HADM_ID"]), r"columns \['hadm_id'\] twice"),
        ("DIAGNOSES_ICD", lambda f: f.replace("486", "4.86E+02"), "column icd9_code, row 5 "),
        ("DIAGNOSES_ICD", lambda f: f.replace("486", "12"), "column icd9_code, row 5 "),
        ("DIAGNOSES_ICD", lambda f: f.replace("102", "NULL"), "column hadm_id, row 2 "),
    ],
)
def test_what_cannot_be_read_is_named_without_its_text(three, tmp_path, table, change, said):
    edited(three, f"{table}.csv", change)
    with pytest.raises(DataError, match=said) as error:
        get_mimic3.build(tmp_path / "out", three)
    assert SECRET not in str(error.value) and not (tmp_path / "out").exists()


def test_rows_with_more_cells_than_the_header_are_refused(three, tmp_path):
    table = three / "DIAGNOSES_ICD.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *(f"{row}," for row in rows)]))
    with pytest.raises(DataError, match="DIAGNOSES_ICD.csv: its rows have more cells"):
        get_mimic3.build(tmp_path / "out", three)


def test_split_files_are_read_to_the_last_line(three, tmp_path):
    for part, line in (("train", "hadm_id\n100.0\n"), ("dev", "101\n\n"), ("test", "102\n1e5\n")):
        (three / f"{part}_full_hadm_ids.csv").write_text(line)
    with pytest.raises(DataError, match="test_full_hadm_ids.csv, line 2: wanted the number"):
        get_mimic3.build(tmp_path / "out", three)


CODES4 = "subject_id hadm_id seq_num icd_code icd_version".split()
NAMES4 = "icd_code icd_version long_title".split()


def four(folder: Path, release: str = "2.2", packed: bool = True) -> Path:
    """Twelve notes of MIMIC-IV in the folders of a release, half of them with codes of ICD-9."""
    end = ".csv.gz" if packed else ".csv"
    hosp = folder / "mimiciv" / release / "hosp"
    columns = "note_id subject_id hadm_id note_type note_seq charttime storetime text".split()
    notes = [[f"1{i}-DS-1", i // 2, 20 + i, "DS", 1, "", "", f"note {i}"] for i in range(24)]
    write(folder / "mimic-iv-note" / "2.2" / "note" / f"discharge{end}", columns, notes)
    codes, procedures = [], []
    for i in range(24):
        older = i % 2
        codes.append([i // 2, 20 + i, 1, "0389" if older else "I10", 9 if older else 10])
        procedure = "0117" if older else "0210093"
        procedures.append([i // 2, 20 + i, 1, "2180-01-01", procedure, 9 if older else 10])
    write(hosp / f"diagnoses_icd{end}", CODES4, codes)
    columns = [*CODES4[:3], "chartdate", *CODES4[3:]]
    write(hosp / f"procedures_icd{end}", columns, procedures)
    names = [["0389", 9, "sepsis"], ["I10", 10, "hypertension"]]
    write(hosp / f"d_icd_diagnoses{end}", NAMES4, names)
    return folder


@pytest.mark.parametrize(
    "subset, labels", [("icd9", ["01.17", "038.9"]), ("icd10", ["0210093", "I10"])]
)
def test_mimic4_in_either_layout_and_through_pandas(tmp_path, subset, labels):
    right = fingerprint(four(tmp_path / "a"), tmp_path / "out" / "a", get_mimic4, subset=subset)
    assert right[1] == labels
    newer = four(tmp_path / "b", "3.1", packed=False)
    assert fingerprint(newer, tmp_path / "out" / "b", get_mimic4, subset=subset) == right
    for path in newer.rglob("*.csv"):
        frame = pd.read_csv(path)
        if "icd_version" in frame.columns:
            version = frame["icd_version"]
            names = path.name.startswith("d_")
            frame["icd_version"] = version.map('"{}"'.format) if names else version.astype(float)
        frame.columns = frame.columns.str.upper()
        frame.to_csv(path, index=False)
    assert "10.0" in (newer / "mimiciv/3.1/hosp/procedures_icd.csv").read_text()
    assert "210093" in (newer / "mimiciv/3.1/hosp/procedures_icd.csv").read_text()
    assert fingerprint(newer, tmp_path / "out" / "c", get_mimic4, subset=subset) == right


def test_mimic4_refuses_unknown_versions_and_two_releases(tmp_path):
    folder = four(tmp_path / "a", packed=False)
    table = folder / "mimiciv/2.2/hosp/diagnoses_icd.csv"
    whole = table.read_text()
    for version in ("", "11", "ten"):
        table.write_text(whole.replace("I10,10", f"I10,{version}", 1))
        with pytest.raises(DataError, match="diagnoses_icd.csv, column icd_version, row 1 "):
            get_mimic4.build(tmp_path / "out", folder)
    table.write_text(whole)
    four(tmp_path / "a", "3.1", packed=False)
    with pytest.raises(DataError, match="diagnoses_icd more than once: mimiciv/2.2.*mimiciv/3.1"):
        get_mimic4.build(tmp_path / "out", folder)


def test_a_table_beside_its_packed_form_is_read_where_both_are_of_one_size(tmp_path):
    write(tmp_path / "x_icd.csv", ["hadm_id", "c"], [[1, "A"]])
    write(tmp_path / "x_icd.csv.gz", ["hadm_id", "c"], [[1, "A"]])
    assert codes_of(Tables(tmp_path), "x_icd", "c", str) == {"1": {"A"}}
    write(tmp_path / "x_icd.csv.gz", ["hadm_id", "c"], [[1, "A"], [2, "B"]])
    with pytest.raises(DataError, match="x_icd more than once: x_icd.csv, x_icd.csv.gz"):
        codes_of(Tables(tmp_path), "x_icd", "c", str)


def test_mimic4_without_notes_says_so(tmp_path):
    folder = four(tmp_path / "a", packed=False)
    table = folder / "mimic-iv-note/2.2/note/discharge.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="discharge.csv holds no note"):
        get_mimic4.build(tmp_path / "out", folder)
