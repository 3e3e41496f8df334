"""MIMIC-III discharge summaries with ICD-9 codes: full, top50, rare50 and few. Credentialed.

Origin: https://physionet.org/content/mimiciii/1.4/ (PhysioNet Credentialed Health Data License
1.5.0). --from takes a folder of NOTEEVENTS, DIAGNOSES_ICD and PROCEDURES_ICD (.csv or .csv.gz;
D_ICD_DIAGNOSES and D_ICD_PROCEDURES give label texts) and, for the published split, CAML's
{train,dev,test}_full_hadm_ids.csv and _50_hadm_ids.csv (Mullenbach et al., NAACL 2018). A document
is an admission: its discharge summaries and addenda, reports first, exact repeats dropped. With
--codes published procedure codes have no leading zeros, as in CAML; with --codes exact they keep
them, and admissions without any code are dropped.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from plantlib.data import sources
from plantlib.data.streaming import CorpusWriter
from plantlib.utils.base import DataError

common = sources.script("common")
from data_scripts import clinical, splits  # noqa: E402
from data_scripts.mimic_tables import Tables, codes_of, refuse, titles  # noqa: E402

SUBSETS = ("full", "top50", "rare50", "few")
SHARES = (47_723, 1_631, 3_372)  # train, dev and test documents of CAML's split
DATE = r"(?:\d{4}-\d\d-\d\d.*)?$"
ENDINGS = {"top50": "50_hadm_ids", "rare50": "rare50_hadm_ids", "few": "few_hadm_ids"}
# The published label lists: CAML's 50 most frequent codes (they cannot be counted again from
# version 1.4, Edin et al., 2023) and the 50 rare codes of KEPT (Yang et al., EMNLP Findings 2022).
TOP50 = """
    401.9 38.93 428.0 427.31 414.01 96.04 96.6 584.9 250.00 96.71 272.4 518.81 99.04 39.61 599.0
    530.81 96.72 272.0 285.9 88.56 244.9 486 38.91 285.1 36.15 276.2 496 99.15 995.92 V58.61
    507.0 038.9 88.72 585.9 403.90 311 305.1 37.22 412 33.24 39.95 287.5 410.71 276.1 V45.81
    424.0 45.13 V15.82 511.9 37.23
""".split()
RARE50 = """
    990 378.52 737.43 607.82 569.42 873.52 53.02 40.7 506.0 52.0 318.2 780.94 362.11 148.1
    252.08 550.11 719.49 710.8 747.69 959.7 282.2 34.71 351.9 V26.52 955.3 447.9 V65.3 512.2
    816.02 V18.3 38.47 V10.61 785.9 270.6 955.1 998.01 790.8 813.32 701.0 202.82 171.0 77.7
    958.91 338.28 477.8 17.36 999.82 453.50 596.89 176.0
""".split()


def summaries(tables: Tables) -> dict[str, tuple[str, str]]:
    """{hadm_id: (subject_id, text)} of the category 'Discharge summary'.

    The notes of an admission are joined by blank lines, reports before addenda, then by date and
    row (CAML joins them in the order of the file, by spaces). Notes without admission or text and
    notes that the hospital marked as errors (ISERROR = 1) are left out.

    Raises:
        DataError: there is no such note, or a cell of one is no number or date.
    """
    places: dict[str, dict[str, tuple]] = {}
    patient: dict[str, str] = {}
    columns = ["row_id", "subject_id", "hadm_id", "chartdate", "category", "description", "text"]
    for chunk in tables.chunks("NOTEEVENTS", columns, optional=["iserror"]):
        chunk = discharge_summaries(chunk, tables.need("NOTEEVENTS").name)
        for row, subject, hadm, date, _, kind, text in chunk[columns].itertuples(index=False):
            patient[hadm] = subject
            place = (kind.strip().lower() != "report", date[:10], int(row))
            texts = places.setdefault(hadm, {})
            texts[text] = min(texts.get(text, place), place)
    if not places:
        raise DataError(
            f"{tables.need('NOTEEVENTS').name} holds no discharge summary of an admission (the"
            " public demo comes without notes); get the table from PhysioNet with your own"
            " credentials, see data_scripts/README.md"
        )
    return {
        hadm: (patient[hadm], "\n\n".join(sorted(texts, key=texts.get)))
        for hadm, texts in places.items()
    }


def discharge_summaries(chunk, table: str):
    """The rows of a frame of NOTEEVENTS that `summaries` joins, checked."""
    chunk = chunk[
        (chunk["category"].str.strip().str.lower() == "discharge summary")
        & (chunk["hadm_id"] != "")
        & (chunk["text"].str.strip() != "")
    ]
    if "iserror" in chunk.columns:
        marks = chunk["iserror"].str.strip().str.removesuffix(".0")
        _check(marks.isin(["", "0", "1"]), table, "iserror", "1 or nothing")
        chunk = chunk[marks != "1"]
    for name in ("row_id", "subject_id", "hadm_id"):
        _check(chunk[name].str.fullmatch(r"\d+"), table, name, "a number")
    _check(chunk["chartdate"].str.match(DATE), table, "chartdate", "a date such as 2151-07-16")
    return chunk


def _check(right, table: str, column: str, wanted: str) -> None:
    """DataError that names the first row where `right` (rows,) is False."""
    if not right.all():
        raise refuse(table, column, int(right.idxmin()), f"wanted {wanted}")


def all_codes(tables: Tables, zeros: bool) -> dict[str, set[str]]:
    """{hadm_id: ICD-9 codes} of diagnoses and procedures; an empty set where all are missing."""
    codes = codes_of(tables, "DIAGNOSES_ICD", "icd9_code", partial(clinical.icd9, procedure=False))
    procedure = partial(clinical.icd9, procedure=True, zeros=zeros)
    for hadm, procedures in codes_of(tables, "PROCEDURES_ICD", "icd9_code", procedure).items():
        codes[hadm] = codes.get(hadm, set()) | procedures
    return codes


def label_texts(tables: Tables, zeros: bool) -> dict[str, str]:
    """{code: long title} from the d_icd tables; empty without them."""
    diagnoses = titles(
        tables, "D_ICD_DIAGNOSES", "icd9_code", partial(clinical.icd9, procedure=False)
    )
    procedures = titles(
        tables, "D_ICD_PROCEDURES", "icd9_code", partial(clinical.icd9, procedure=True, zeros=zeros)
    )
    return clinical.described(diagnoses + procedures)


def full_split(tables: Tables, patients: dict[str, str]) -> tuple[dict[str, str], str]:
    """({hadm_id: split}, a note on how it was made) of the full set.

    patients: {hadm_id: subject_id}.
    """
    if (split := splits.id_files(tables, "full_hadm_ids")) is not None:
        return split, "split: the supplied {train,dev,test}_full_hadm_ids.csv"
    sides = splits.by_patient(list(patients.values()), SHARES, "mimic3 split")
    note = (
        "split: DERIVED by rule, patients by hash in CAML's shares, since no "
        "*_full_hadm_ids.csv was supplied; not the published split"
    )
    return dict(zip(patients, sides, strict=True)), note


def top50(codes: dict[str, set[str]], split: dict[str, str]) -> tuple[list[str], str]:
    """CAML's list if all its codes occur, else the 50 most frequent codes of all documents.

    Ties are broken by name. Returns the codes and a note for the manifest.
    """
    count = Counter(code for of_document in codes.values() for code in of_document)
    if set(TOP50) <= set(count):
        return TOP50, "labels: the published list of 50 (CAML)"
    frequent = sorted(count, key=lambda c: (-count[c], c))[:50]
    return frequent, "labels: DERIVED, the 50 most frequent codes of all documents"


def rare50(codes: dict[str, set[str]], split: dict[str, str]) -> tuple[list[str], str]:
    """KEPT's list if all its codes occur, else the 50 codes with the fewest training documents.

    Only codes of both train and test count. Returns the codes and a note for the manifest.
    """
    train = counts(codes, split, "train")
    test = counts(codes, split, "test")
    if set(RARE50) <= {*train, *test}:
        return RARE50, "labels: the published list of 50 (KEPT)"
    least = sorted(set(train) & set(test), key=lambda c: (train[c], -test[c], c))[:50]
    note = (
        "labels: DERIVED, the 50 codes of train and test least frequent in train, ties to the"
        " more frequent in test"
    )
    return least, note


def few(codes: dict[str, set[str]], split: dict[str, str]) -> tuple[list[str], str]:
    """The codes of test documents with 1 to 5 training documents (GP-SOAP, Yang et al., 2023)."""
    train = counts(codes, split, "train")
    rare = [c for c in sorted(counts(codes, split, "test")) if 1 <= train[c] <= 5]
    return rare, "labels: codes of test documents with 1 to 5 training documents"


def counts(codes: dict[str, set[str]], split: dict[str, str], part: str) -> Counter:
    """{code: documents of one split that have it}."""
    return Counter(c for hadm, labels in codes.items() if split[hadm] == part for c in labels)


CHOICES: dict[str, Callable[[dict[str, set[str]], dict[str, str]], tuple[list[str], str]]] = {
    "top50": top50,
    "rare50": rare50,
    "few": few,
}


def narrowed(
    tables: Tables, subset: str, codes: dict[str, set[str]], split: dict[str, str]
) -> tuple[dict[str, set[str]], dict[str, str], list[str]]:
    """Codes, split and notes of a subset.

    The codes are cut to the labels of the subset. Its documents are those that its id files name;
    without such files they are the documents that keep a code.
    """
    chosen, note = CHOICES[subset](codes, split)
    if not chosen:
        raise DataError(
            f"mimic3-{subset}: no code qualifies among {len(codes)} documents; look at the counts"
            " of mimic3-full"
        )
    labels = {hadm: codes[hadm] & set(chosen) for hadm in codes}
    published = splits.id_files(tables, ENDINGS[subset])
    if published is not None:
        labels = {hadm: left for hadm, left in labels.items() if hadm in published}
        splits.some(labels, "an admission with codes and a summary")
        origin = f"documents and split: the supplied *_{ENDINGS[subset]}.csv"
        return labels, published, [note, origin]
    origin = (
        f"documents:{' DERIVED,' * (subset != 'few')} those of the full split with at least"
        f" one of these labels, no *_{ENDINGS[subset]}.csv was supplied"
    )
    return {hadm: left for hadm, left in labels.items() if left}, split, [note, origin]


def name_of(subset: str = "full", codes: str = "published", **_) -> str:
    """mimic3-full, mimic3-top50, ...; with -exact for codes='exact'."""
    return f"mimic3-{subset}" + ("" if codes == "published" else "-exact")


def build(
    out: Path,
    source: Path | None = None,
    *,
    subset: str = "full",
    text: str = "plain",
    codes: str = "published",
) -> Path:
    """Write the corpus folder `out`; a few minutes, memory twice the discharge summaries.

    Args:
        out: the folder to write, inside the data folder.
        source: the folder of tables.
        subset: full, top50, rare50 or few.
        text: how texts are cleaned: plain (for word pieces), raw, caml or edin, see clinical.py.
        codes: published (procedure codes without leading zeros) or exact.

    Returns:
        `out`.

    Raises:
        DataError: an unknown option, no `source`, or tables that cannot be read.
    """
    name = common.credentialed(
        name_of(subset, codes),
        out,
        source,
        text,
        clinical.TEXTS,
        {"subset": (subset, SUBSETS), "codes": (codes, ("published", "exact"))},
    )
    # admissions with codes and a summary, and their split
    tables = Tables(source)
    zeros = codes == "exact"
    coded = all_codes(tables, zeros)
    notes = summaries(tables)
    order = sorted(notes, key=lambda h: (int(notes[h][0]), int(h)))
    both = [hadm for hadm in order if hadm in coded and (coded[hadm] or not zeros)]
    split, origin = full_split(tables, {hadm: notes[hadm][0] for hadm in both})
    documents = {hadm: coded[hadm] for hadm in both if hadm in split}
    splits.some(documents, "an admission with codes and a summary")
    remarks = [
        origin,
        f"text: {text}; discharge summaries and addenda joined",
        f"codes: {codes}",
        (
            f"{len(notes) - len(both)} admissions with notes are not coded,"
            f" {len(both) - len(documents)} stand in no split"
        ),
    ]
    if subset != "full":
        documents, split, more = narrowed(tables, subset, documents, split)
        remarks += more
    # write them
    described = label_texts(tables, zeros)
    labels = sorted({code for codes_of_note in documents.values() for code in codes_of_note})
    column = {label: i for i, label in enumerate(labels)}
    manifest = common.clinical_manifest(
        "https://physionet.org/content/mimiciii/1.4/", tables, remarks
    )
    with CorpusWriter(
        out, common.marked(name, tables), labels, manifest, [described.get(c) for c in labels]
    ) as writer:
        for hadm, codes_of_note in documents.items():
            cleaned = clinical.cleaned(notes[hadm][1], text)
            writer.add(hadm, cleaned, split[hadm], [column[c] for c in codes_of_note])
    return Path(out)


OPTIONS = {
    "--subset": {"default": "full", "choices": SUBSETS},
    "--text": {"default": "plain", "choices": clinical.TEXTS},
    "--codes": {"default": "published", "choices": ["published", "exact"]},
}

if __name__ == "__main__":
    sys.exit(common.cli(__doc__, name_of, build, OPTIONS))
