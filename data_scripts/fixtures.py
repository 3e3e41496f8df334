"""Generated tables in the schema of MIMIC-III and MIMIC-IV, for tests and for users without access.

They are NOT real notes. `python -m data_scripts.fixtures mimic4 --out FOLDER`, then `get_mimic4.py
--from FOLDER`, shows the whole way from PhysioNet's files to a trained model. get_synthetic_icd
composes the notes (from names and inclusion terms of ICD-10-CM); here they get the form of a
discharge summary. As in the real tables there are quoted notes of many lines, quotes inside quotes,
addenda (some twice), notes of other categories, notes without admission, admissions without notes,
missing codes, and patients with several admissions. A file synthetic.json marks the tables; corpora
built from them have `synthetic` in their name and manifest.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from plantlib.data import sources
from plantlib.utils.base import DataError
from plantlib.utils.io import atomic_path, write_json

sources.script("common")
from data_scripts import get_synthetic_icd as composer  # noqa: E402

NOTE = """Admission Date:  {mark}              Discharge Date:   {mark}

Service: MEDICINE

Attending:{name}

History of Present Illness:
{text}

He said "I feel better, thank you" on discharge; temp 37.2, Cr 1.4.

Discharge Condition:
Stable.
"""
MARKS = {
    3: (
        "[**2151-7-16**]",
        "[**First Name8 (NamePattern2) 1158**]\n[**Last Name (NamePattern1) 22**]",
    ),
    4: ("___", "___."),
}
# 0044 and 044 differ only in their leading zero
PROCEDURES9 = ("3893", "9604", "966", "0044", "044", "9915", "3961", "0117")
PROCEDURES10 = ("02HV33Z", "5A1955Z", "0BH17EZ", "3E0G76Z", "B2111ZZ")
NOTEEVENTS = (
    "ROW_ID",
    "SUBJECT_ID",
    "HADM_ID",
    "CHARTDATE",
    "CHARTTIME",
    "STORETIME",
    "CATEGORY",
    "DESCRIPTION",
    "CGID",
    "ISERROR",
    "TEXT",
)
DISCHARGE = (
    "note_id",
    "subject_id",
    "hadm_id",
    "note_type",
    "note_seq",
    "charttime",
    "storetime",
    "text",
)


class Stay(NamedTuple):
    """One admission: its patient, its number, codes without dots, and the text of its note."""

    patient: int
    hadm: int
    diagnoses: list[str]
    procedures: list[str]
    text: str


def stays(count: int, seed: int, labels: int, form: int) -> list[Stay]:
    """Admissions of generated patients, about two thirds as many as admissions.

    Args:
        count: number of admissions.
        seed: of all random choices.
        labels: number of diagnosis codes to draw from.
        form: 3 or 4, the version of MIMIC whose marks and numbers the notes have.
    """
    if count < 1:
        raise DataError(f"admissions={count}: wanted at least 1")
    codes = composer.choose_codes(labels, seed)
    weights = list(accumulate(1.0 / (rank + 3.0) for rank in range(labels)))
    procedures = PROCEDURES9 if form == 3 else PROCEDURES10
    patient = 10_000 if form == 3 else 10_000_000
    mark, name = MARKS[form]
    admissions = []
    for number in range(count):
        draw = composer.Draw(f"{seed}|fixture|{number}")
        patient += draw.random() < 0.65 or number == 0
        text, indices, _ = composer.note(codes, weights, draw)
        body = NOTE.format(mark=mark, name=name, text=text.replace(". ", ".\n"))
        diagnoses = [codes[i].code.replace(".", "") for i in indices]
        drawn = sorted({draw.pick(procedures) for _ in range(draw.below(4))})
        hadm = (100_000 if form == 3 else 20_000_000) + number
        admissions.append(Stay(patient, hadm, diagnoses, drawn, body))
    return admissions


def table(path: Path, columns: tuple[str, ...], rows: list[list]) -> None:
    """Write a CSV as PhysioNet does: quoted text, empty cells for missing values.

    It is compressed if the name ends in .gz.
    """
    quoting = csv.QUOTE_NONNUMERIC if columns is NOTEEVENTS else csv.QUOTE_MINIMAL
    opener = gzip.open if path.suffix == ".gz" else open
    with atomic_path(path) as temporary:
        with opener(temporary, "wt", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, quoting=quoting)
            writer.writerow(columns)
            writer.writerows(rows)


def code_rows(admissions: list[Stay], kind: str) -> list[tuple[Stay, int, str]]:
    """(stay, place, code) of "diagnoses" or "procedures".

    Every 40th code is missing, as a few are in the real tables.
    """
    rows = [
        (stay, place, code)
        for stay in admissions
        for place, code in enumerate(getattr(stay, kind), 1)
    ]
    return [
        (stay, place, "" if i % 40 == 17 else code) for i, (stay, place, code) in enumerate(rows)
    ]


def note_events(admissions: list[Stay]) -> list[list]:
    """Rows of NOTEEVENTS: reports, addenda, nursing notes, and a summary without admission.

    Addenda stand after a report or both before and after it.
    """
    rows = []
    for i, stay in enumerate(admissions):
        follow_up = f"Addendum:\nFollow up of stay {stay.hadm}.\n"
        summary = ["Discharge summary", "Report", "", "", stay.text]
        addendum = ["Discharge summary", "Addendum", "", "", follow_up]
        nursing = ["Nursing", "Report", 17698, "", "NPN 7p-7a:\nslept well\n"]
        if i % 23 == 11:  # an admission without a summary
            notes = [nursing]
        elif i % 7 == 3:
            notes = [addendum, summary, addendum, nursing]
        elif i % 5 == 2:
            notes = [summary, addendum, nursing]
        else:
            notes = [summary, nursing]
        date = f"2151-{1 + i % 12:02d}-{1 + i % 28:02d}"
        rows += [[stay.patient, stay.hadm, date, "", "", *note] for note in notes]
    stray = ["Discharge summary", "Report", "", "", "Of no admission.\n"]
    rows.append([admissions[0].patient, "", "2151-01-01", "", "", *stray])
    return [[i, *row] for i, row in enumerate(rows, 1)]


def mimic3(folder: Path, admissions: int = 300, seed: int = 0, labels: int = 120) -> Path:
    """Write NOTEEVENTS, DIAGNOSES_ICD, PROCEDURES_ICD and the D_ICD tables; returns the folder.

    The codes of diagnoses are those of ICD-10-CM.
    """
    import simple_icd_10_cm as terminology

    # notes
    generated = stays(admissions, seed, labels, 3)
    table(folder / "NOTEEVENTS.csv", NOTEEVENTS, note_events(generated))
    # codes of the admissions
    columns = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE")
    for name, kind in (("DIAGNOSES_ICD.csv", "diagnoses"), ("PROCEDURES_ICD.csv.gz", "procedures")):
        rows = [
            [i, stay.patient, stay.hadm, place, code]
            for i, (stay, place, code) in enumerate(code_rows(generated, kind), 1)
        ]
        table(folder / name, columns, rows)
    # names of the codes
    columns = ("ROW_ID", "ICD9_CODE", "SHORT_TITLE", "LONG_TITLE")
    used = sorted({code for stay in generated for code in stay.diagnoses})
    rows = [[i, c, "short", terminology.get_description(c)] for i, c in enumerate(used, 1)]
    table(folder / "D_ICD_DIAGNOSES.csv", columns, rows)
    rows = [[i, c, "short", f"Generated procedure {c}"] for i, c in enumerate(PROCEDURES9, 1)]
    table(folder / "D_ICD_PROCEDURES.csv", columns, rows)
    return marker(folder, "mimic3", admissions, seed, labels)


def mimic4(folder: Path, admissions: int = 600, seed: int = 0, labels: int = 300) -> Path:
    """Write note/discharge.csv.gz and hosp/*_icd.csv.gz; returns the folder.

    Three of four admissions are coded in ICD-10, the others in ICD-9.
    """
    import simple_icd_10_cm as terminology

    # notes
    generated = stays(admissions, seed, labels, 4)
    times = ["2180-07-23 00:00:00", "2180-07-23 12:00:00"]
    rows = [
        [f"{stay.patient}-DS-{i}", stay.patient, stay.hadm, "DS", i, *times, stay.text]
        for i, stay in enumerate(generated, 2)
        if i % 23 != 11
    ]
    rows += [[f"{r[1]}-DS-{r[4]}9", *r[1:]] for r in rows[:3]]  # the same note stored twice
    stray = ["2180-01-01 00:00:00", "", "A summary of no admission.\n"]
    rows.append(["10000000-DS-1", 10_000_000, "", "DS", 1, *stray])
    table(folder / "note" / "discharge.csv.gz", DISCHARGE, rows)
    # codes of the admissions
    version = {stay.hadm: "9" if i % 4 == 3 else "10" for i, stay in enumerate(generated)}
    older = {code: PROCEDURES9[i % len(PROCEDURES9)] for i, code in enumerate(PROCEDURES10)}
    for kind, more in (("diagnoses", ()), ("procedures", ("chartdate",))):
        columns = ("subject_id", "hadm_id", "seq_num", *more, "icd_code", "icd_version")
        rows = []
        for stay, place, code in code_rows(generated, kind):
            code = older[code] if code in older and version[stay.hadm] == "9" else code
            date = ["2180-07-20"] * len(more)
            rows.append([stay.patient, stay.hadm, place, *date, code, version[stay.hadm]])
        table(folder / "hosp" / f"{kind}_icd.csv.gz", columns, rows)
    # names of the codes
    columns = ("icd_code", "icd_version", "long_title")
    used = sorted({code for stay in generated for code in stay.diagnoses})
    rows = [[code, v, terminology.get_description(code)] for code in used for v in ("9", "10")]
    table(folder / "hosp" / "d_icd_diagnoses.csv.gz", columns, rows)
    rows = [
        [code, v, f"Generated procedure {code}"]
        for v, codes in (("9", PROCEDURES9), ("10", PROCEDURES10))
        for code in codes
    ]
    table(folder / "hosp" / "d_icd_procedures.csv.gz", columns, rows)
    return marker(folder, "mimic4", admissions, seed, labels)


def marker(folder: Path, kind: str, admissions: int, seed: int, labels: int) -> Path:
    """Write synthetic.json, which says that the tables are generated; returns the folder."""
    write_json(
        folder / sources.GENERATED,
        {
            "generated": kind,
            "admissions": admissions,
            "seed": seed,
            "labels": labels,
            "package": f"{composer.PACKAGE}=={composer.version(composer.PACKAGE)}",
            "note": "generated notes: no patient, no hospital, no clinical truth",
        },
    )
    return folder


def main(arguments: list[str] | None = None) -> int:
    """`python -m data_scripts.fixtures mimic3|mimic4 --out FOLDER`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["mimic3", "mimic4"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--admissions", type=int, default=600)
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write = {"mimic3": mimic3, "mimic4": mimic4}[options.kind]
    try:
        folder = write(options.out, options.admissions, options.seed, options.labels)
        print(f"generated tables -> {folder}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
