"""Generated tables in the exact schema of MIMIC-III and MIMIC-IV, for tests and for users without
credentials. NOT real notes.

`python -m data_scripts.fixtures mimic4 --out folder`, then `get_mimic4.py --from folder`: the whole
road from PhysioNet's files to a trained model. The notes come from the composer of
get_synthetic_icd (names and inclusion terms of ICD-10-CM), put into the form of a discharge
summary. As in the sources there are quoted notes of many lines, quotes inside quotes, addenda (some
twice), notes of other categories, notes without admission, admissions without notes, missing codes
and several admissions a patient. A file synthetic.json lies beside the tables; corpora built from
them carry `synthetic` in their name and manifest.
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
# 0044 and 044 differ by their zero alone
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
    """`count` admissions of about two thirds as many patients; `form` is 3 or 4, the MIMIC whose
    marks the notes carry.
    """
    if count < 1:
        raise DataError(f"admissions={count}: wanted at least 1")
    codes = composer.choose_codes(labels, seed)
    weights = list(accumulate(1.0 / (rank + 3.0) for rank in range(labels)))
    procedures, patient, found = (
        PROCEDURES9 if form == 3 else PROCEDURES10,
        10_000 if form == 3 else 10_000_000,
        [],
    )
    for number in range(count):
        draw = composer.Draw(f"{seed}|fixture|{number}")
        patient += draw.random() < 0.65 or not found
        text, own, _ = composer.note(codes, weights, draw)
        mark, name = MARKS[form]
        body = NOTE.format(mark=mark, name=name, text=text.replace(". ", ".\n"))
        taken = sorted({draw.pick(procedures) for _ in range(draw.below(4))})
        hadm = (100_000 if form == 3 else 20_000_000) + number
        found.append(
            Stay(patient, hadm, [codes[i].code.replace(".", "") for i in own], taken, body)
        )
    return found


def table(path: Path, columns: tuple[str, ...], rows: list[list]) -> None:
    """One CSV as PhysioNet writes them: quoted text, empty cells for missing values; gzip when the
    name ends so.
    """
    with atomic_path(path) as temporary:
        opened = (
            gzip.open(temporary, "wt", encoding="utf-8", newline="")
            if path.suffix == ".gz"
            else open(temporary, "w", encoding="utf-8", newline="")
        )
        with opened as out:
            writer = csv.writer(
                out, quoting=csv.QUOTE_NONNUMERIC if columns is NOTEEVENTS else csv.QUOTE_MINIMAL
            )
            writer.writerow(columns)
            writer.writerows(rows)


def code_rows(found: list[Stay], kind: str) -> list[tuple[Stay, int, str]]:
    """(stay, place, code) of a kind; the code of every 40th row is missing, as a few are in the
    sources.
    """
    rows = [
        (stay, place, code) for stay in found for place, code in enumerate(getattr(stay, kind), 1)
    ]
    return [
        (stay, place, "" if i % 40 == 17 else code) for i, (stay, place, code) in enumerate(rows)
    ]


def note_events(found: list[Stay]) -> list[list]:
    """Rows of NOTEEVENTS: reports, addenda before or after them, some twice; nursing notes; a
    summary without admission.
    """
    rows = []
    for i, stay in enumerate(found):
        date = f"2151-{1 + i % 12:02d}-{1 + i % 28:02d}"
        summary = ["Discharge summary", "Report", "", "", stay.text]
        addendum = [
            "Discharge summary",
            "Addendum",
            "",
            "",
            f"Addendum:\nFollow up of stay {stay.hadm}.\n",
        ]
        nursing = ["Nursing", "Report", 17698, "", "NPN 7p-7a:\nslept well\n"]
        order = (
            [addendum, summary, addendum]
            if i % 7 == 3
            else [summary, addendum]
            if i % 5 == 2
            else [summary]
        )
        if i % 23 == 11:  # an admission without a summary
            order = []
        for category, kind, nurse, error, text in [*order, nursing]:
            rows.append([stay.patient, stay.hadm, date, "", "", category, kind, nurse, error, text])
    rows.append(
        [
            found[0].patient,
            "",
            "2151-01-01",
            "",
            "",
            "Discharge summary",
            "Report",
            "",
            "",
            "Of no admission.\n",
        ]
    )
    return [[i, *row] for i, row in enumerate(rows, 1)]


def mimic3(folder: Path, admissions: int = 300, seed: int = 0, labels: int = 120) -> Path:
    """NOTEEVENTS.csv, DIAGNOSES_ICD.csv, PROCEDURES_ICD.csv.gz and the D_ICD tables; the diagnoses'
    codes are ICD-10-CM's.
    """
    import simple_icd_10_cm as terminology

    found = stays(admissions, seed, labels, 3)
    table(folder / "NOTEEVENTS.csv", NOTEEVENTS, note_events(found))
    columns = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE")
    for name, kind in (("DIAGNOSES_ICD.csv", "diagnoses"), ("PROCEDURES_ICD.csv.gz", "procedures")):
        table(
            folder / name,
            columns,
            [
                [i, stay.patient, stay.hadm, place, code]
                for i, (stay, place, code) in enumerate(code_rows(found, kind), 1)
            ],
        )
    used = sorted({code for stay in found for code in stay.diagnoses})
    rows = [[i, c, "short", terminology.get_description(c)] for i, c in enumerate(used, 1)]
    table(
        folder / "D_ICD_DIAGNOSES.csv", ("ROW_ID", "ICD9_CODE", "SHORT_TITLE", "LONG_TITLE"), rows
    )
    rows = [[i, c, "short", f"Generated procedure {c}"] for i, c in enumerate(PROCEDURES9, 1)]
    table(
        folder / "D_ICD_PROCEDURES.csv", ("ROW_ID", "ICD9_CODE", "SHORT_TITLE", "LONG_TITLE"), rows
    )
    return marker(folder, "mimic3", admissions, seed, labels)


def mimic4(folder: Path, admissions: int = 600, seed: int = 0, labels: int = 300) -> Path:
    """note/discharge.csv.gz and hosp/*_icd.csv.gz; three of four admissions are coded in ICD-10,
    the others in ICD-9.
    """
    import simple_icd_10_cm as terminology

    found = stays(admissions, seed, labels, 4)
    rows = [
        [
            f"{s.patient}-DS-{i}",
            s.patient,
            s.hadm,
            "DS",
            i,
            "2180-07-23 00:00:00",
            "2180-07-23 12:00:00",
            s.text,
        ]
        for i, s in enumerate(found, 2)
        if i % 23 != 11
    ]
    rows += [[f"{r[1]}-DS-{r[4]}9", *r[1:]] for r in rows[:3]]  # the same note stored twice
    rows.append(
        [
            "10000000-DS-1",
            10_000_000,
            "",
            "DS",
            1,
            "2180-01-01 00:00:00",
            "",
            "A summary of no admission.\n",
        ]
    )
    table(folder / "note" / "discharge.csv.gz", DISCHARGE, rows)
    version = {stay.hadm: "9" if i % 4 == 3 else "10" for i, stay in enumerate(found)}
    older = {code: PROCEDURES9[i % len(PROCEDURES9)] for i, code in enumerate(PROCEDURES10)}
    for kind, more in (("diagnoses", ()), ("procedures", ("chartdate",))):
        columns, rows = ("subject_id", "hadm_id", "seq_num", *more, "icd_code", "icd_version"), []
        for stay, place, code in code_rows(found, kind):
            code = older[code] if code in older and version[stay.hadm] == "9" else code
            date = ["2180-07-20"] * len(more)
            rows.append([stay.patient, stay.hadm, place, *date, code, version[stay.hadm]])
        table(folder / "hosp" / f"{kind}_icd.csv.gz", columns, rows)
    used = sorted({code for stay in found for code in stay.diagnoses})
    rows = [[code, v, terminology.get_description(code)] for code in used for v in ("9", "10")]
    table(
        folder / "hosp" / "d_icd_diagnoses.csv.gz", ("icd_code", "icd_version", "long_title"), rows
    )
    rows = [
        [c, v, f"Generated procedure {c}"]
        for v, own in (("9", PROCEDURES9), ("10", PROCEDURES10))
        for c in own
    ]
    table(
        folder / "hosp" / "d_icd_procedures.csv.gz", ("icd_code", "icd_version", "long_title"), rows
    )
    return marker(folder, "mimic4", admissions, seed, labels)


def marker(folder: Path, kind: str, admissions: int, seed: int, labels: int) -> Path:
    """synthetic.json: what says that these tables hold no patient."""
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
    given = parser.parse_args(arguments)
    try:
        make = {"mimic3": mimic3, "mimic4": mimic4}[given.kind]
        print(f"generated tables -> {make(given.out, given.admissions, given.seed, given.labels)}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
