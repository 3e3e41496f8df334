"""MIMIC-IV discharge summaries: icd10, icd9, or few (800 notes with rare codes). Credentialed.

Origin: https://physionet.org/content/mimic-iv-note/2.2/ and mimiciv/2.2/ (PhysioNet Credentialed
Health Data License 1.5.0). --from takes a folder with discharge, diagnoses_icd and procedures_icd
(.csv or .csv.gz; d_icd_diagnoses and d_icd_procedures give label texts) and, for the published
split, Edin et al.'s mimiciv_icd10_split.feather or mimiciv_icd9_split.feather (or the same as .csv
or .parquet). As in Edin et al. (SIGIR 2023), documents are the notes with a code of the version,
labels the codes with at least 10 notes, and patients are stratified. few takes the ICD-10 notes
with a code of 3 to 7 training notes, draws 800 of them in the shares of the splits and keeps all
their labels (the slice of PLANT's latest repository). The notes are read twice, one at a time.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from plantlib.data import sources
from plantlib.data.streaming import CorpusWriter
from plantlib.utils.base import DataError

common = sources.script("common")
from data_scripts import clinical, splits  # noqa: E402
from data_scripts.mimic_tables import Tables, codes_of, refuse, titles  # noqa: E402

SUBSETS = ("icd10", "icd9", "few")
LEAST = 10
SHARES = (75, 10, 15)  # train, dev and test of Edin et al.
# of the slice `few`
RARE = (3, 7)  # least and most training notes of the codes that select a note
NOTES = 800
SEED = 42
FEW_EDGES = (0, 7, 7)  # published buckets: codes with no training note, with 1 to 7, with more


class Note(NamedTuple):
    """A note without its text."""

    id: str
    patient: str
    hadm: str


def notes(tables: Tables) -> Iterator[tuple[Note, str]]:
    """Every discharge summary with its text.

    Notes without admission or text and repetitions within an admission are left out.

    Raises:
        DataError: a note without id or patient.
    """
    seen: set[bytes] = set()
    columns = ["note_id", "subject_id", "hadm_id", "text"]
    for chunk in tables.chunks("discharge", columns):
        chunk = chunk[(chunk["hadm_id"] != "") & (chunk["text"].str.strip() != "")]
        for name in ("note_id", "subject_id"):
            if (chunk[name] == "").any():
                row = int((chunk[name] == "").idxmax())
                raise refuse(tables.need("discharge").name, name, row, "there is no id")
        for key, subject, hadm, text in chunk[columns].itertuples(index=False):
            mark = hashlib.blake2b(
                f"{hadm}|{text}".encode("utf-8", "surrogatepass"), digest_size=12
            ).digest()
            if mark not in seen:
                seen.add(mark)
                yield Note(key, subject, hadm), text


def form(version: str, procedure: bool):
    """The function that writes a code of version '9' or '10' as a label."""
    return partial(clinical.icd9 if version == "9" else clinical.icd10, procedure=procedure)


def frequent(own: dict[Note, list[set[str]]]) -> dict[Note, set[str]]:
    """{note: codes with at least 10 notes}; notes without such a code are dropped.

    own: {note: [codes of diagnoses, codes of procedures]}; the two kinds are counted separately.
    """
    keep = []
    for kind in range(2):
        count = Counter(code for kinds in own.values() for code in kinds[kind])
        keep.append({code for code, n in count.items() if n >= LEAST})
    joined = {note: (kinds[0] & keep[0]) | (kinds[1] & keep[1]) for note, kinds in own.items()}
    return {note: codes for note, codes in joined.items() if codes}


def coded(tables: Tables, version: str) -> dict[Note, set[str]]:
    """{note: codes} of one ICD version, in the order of the file."""
    kinds = [
        codes_of(tables, table, "icd_code", form(version, table.startswith("proc")), version)
        for table in ("diagnoses_icd", "procedures_icd")
    ]
    by_note = {}
    read = 0
    for note, _ in notes(tables):
        read += 1
        codes = [kind.get(note.hadm, set()) for kind in kinds]
        if any(codes):
            by_note[note] = codes
    if not read:
        raise DataError(
            f"{tables.need('discharge').name} holds no note of an admission; get the table from"
            " PhysioNet with your own credentials, see data_scripts/README.md"
        )
    return frequent(by_note)


def split_of(
    tables: Tables, own: dict[Note, set[str]], version: str
) -> tuple[dict[Note, str], str]:
    """({note: split}, a note on how it was made).

    A supplied file decides which of the notes in `own` ({note: codes}) there are.
    """
    # as published
    stem = f"mimiciv_icd{version}_split"
    path = tables.find(*(f"{stem}{end}" for end in (".feather", ".parquet", ".csv")))
    if path is not None:
        published = splits.table_file(path)
        sides = {note: published.get(note.id, published.get(note.hadm)) for note in own}
        return {n: s for n, s in sides.items() if s}, f"split: the supplied {path.name}"
    # by rule
    names = sorted({code for codes in own.values() for code in codes})
    column = {code: i for i, code in enumerate(names)}
    rows = [sorted(column[c] for c in codes) for codes in own.values()]
    sides = splits.stratified([note.patient for note in own], rows, SHARES, f"mimic4 icd{version}")
    origin = (
        f"split: DERIVED by rule, patients stratified by codes, since no {stem}.* was supplied; not"
        " the published split"
    )
    return dict(zip(own, sides, strict=True)), origin


def few(
    own: dict[Note, set[str]], split: dict[Note, str], cap: int = NOTES
) -> dict[Note, set[str]]:
    """At most `cap` notes with a code of 3 to 7 training notes, in the shares of the splits.

    As for the published slice, pandas draws with seed 42 from the notes sorted by id, and shares
    are rounded by largest remainders.

    Args:
        own: {note: codes}.
        split: {note: split}.
        cap: most notes.
    """
    import pandas as pd

    # notes with a rare code
    train = Counter(code for note, codes in own.items() if split[note] == "train" for code in codes)
    rare = {code for code, n in train.items() if RARE[0] <= n <= RARE[1]}
    fitting = sorted((n for n, codes in own.items() if codes & rare), key=lambda note: note.id)
    if not fitting:
        raise DataError(
            f"mimic4-few: no code has {RARE[0]} to {RARE[1]} training notes among {len(own)} notes"
        )
    if len(fitting) <= cap:
        return {note: own[note] for note in fitting}
    # how many of each split, and which
    sizes = Counter(split[note] for note in fitting)
    exact = {part: cap * n / len(fitting) for part, n in sizes.items()}
    take = {part: int(value) for part, value in exact.items()}
    order = sorted(exact, key=lambda part: exact[part] - take[part], reverse=True)
    for part in order[: cap - sum(take.values())]:
        take[part] += 1
    drawn = []
    for part, n in take.items():
        of_split = pd.Series([note for note in fitting if split[note] == part])
        drawn += list(of_split.sample(n, random_state=SEED))
    return {note: own[note] for note in sorted(drawn)}


def name_of(subset: str = "icd10", **_) -> str:
    """mimic4-icd10, mimic4-icd9 or mimic4-few."""
    return f"mimic4-{subset}"


def build(
    out: Path, source: Path | None = None, *, subset: str = "icd10", text: str = "plain"
) -> Path:
    """Write the corpus folder `out`; about 10 minutes, memory below 2 GB.

    Args:
        out: the folder to write, inside the data folder.
        source: the folder of tables.
        subset: icd10, icd9 or few.
        text: how texts are cleaned: plain (for word pieces), raw, caml or edin, see clinical.py.

    Returns:
        `out`.

    Raises:
        DataError: an unknown option, no `source`, or tables that cannot be read.
    """
    name = common.credentialed(
        name_of(subset), out, source, text, clinical.TEXTS, {"subset": (subset, SUBSETS)}
    )
    # which notes, and their split
    tables = Tables(source)
    version = "9" if subset == "icd9" else "10"
    documents = coded(tables, version)
    split, origin = split_of(tables, documents, version)
    documents = {note: codes for note, codes in documents.items() if note in split}
    splits.some(documents, "a note with codes")
    remarks = [origin, f"text: {text}", f"labels: ICD-{version} codes with at least {LEAST} notes"]
    if subset == "few":
        documents = few(documents, split)
        remarks.append(
            f"notes: with a code of {RARE[0]} to {RARE[1]} training notes, at most {NOTES}, drawn"
            f" with seed {SEED}"
        )
    # labels and their texts
    labels = sorted({code for codes in documents.values() for code in codes})
    column = {label: i for i, label in enumerate(labels)}
    pairs = []
    for table in ("d_icd_diagnoses", "d_icd_procedures"):
        written = form(version, table.endswith("procedures"))
        pairs += titles(tables, table, "icd_code", written, version)
    described = clinical.described(pairs)
    manifest = common.clinical_manifest(
        "https://physionet.org/content/mimic-iv-note/2.2/", tables, remarks
    )
    if subset == "few":
        manifest["bucket_edges"] = list(FEW_EDGES)
    texts = [described.get(c) for c in labels]
    longer = None
    if version == "10":
        longer = {code: described[code] for code in labels if code in described}
        longer = clinical.with_inclusion_terms(longer)
    # the notes, read again
    with CorpusWriter(out, common.marked(name, tables), labels, manifest, texts, longer) as writer:
        for note, raw in notes(tables):
            if note in documents:
                cleaned = clinical.cleaned(raw, text)
                columns = [column[code] for code in documents[note]]
                writer.add(note.id, cleaned, split[note], columns)
    return Path(out)


OPTIONS = {
    "--subset": {"default": "icd10", "choices": SUBSETS},
    "--text": {"default": "plain", "choices": clinical.TEXTS},
}

if __name__ == "__main__":
    sys.exit(common.cli(__doc__, name_of, build, OPTIONS))
