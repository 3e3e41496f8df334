"""MIMIC-IV discharge summaries with ICD-10 codes, with ICD-9 codes, or the 800 notes with rare
codes. Credentialed.

Origin: https://physionet.org/content/mimic-iv-note/2.2/ and mimiciv/2.2/ (PhysioNet Credentialed
Health Data License 1.5.0). --from takes a folder with discharge, diagnoses_icd and procedures_icd
(.csv or .csv.gz; d_icd_diagnoses and d_icd_procedures give label texts) and, for the published
split, Edin et al.'s mimiciv_icd10_split.feather or mimiciv_icd9_split.feather (or the same as .csv
or .parquet). Rule of Edin et al. (SIGIR 2023): notes with a code of the version, codes with at
least 10 notes, patients stratified. few: of the ICD-10 notes those with a code of 3 to 7 training
notes, 800 of them drawn in the shares of the splits, all their labels kept (the slice of PLANT's
latest repository). The notes are read twice and never held together.
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
from data_scripts.mimic_tables import Tables, codes_of, titles, whole  # noqa: E402

SUBSETS = ("icd10", "icd9", "few")
LEAST = 10
SHARES = (75, 10, 15)  # train, dev and test of Edin et al.
# training notes of the codes that select; notes kept; seed of the published draw
RARE, NOTES, SEED = (3, 7), 800, 42
FEW_EDGES = (0, 7, 7)  # its published buckets: codes of no training note, of 1 to 7, of more


class Note(NamedTuple):
    """What is kept of a note while texts pass by."""

    id: str
    patient: str
    hadm: str


def notes(tables: Tables) -> Iterator[tuple[Note, str]]:
    """Every discharge summary with its text; those without admission or text, or repeated in an
    admission, are left out.
    """
    seen: set[bytes] = set()
    columns = ["note_id", "subject_id", "hadm_id", "text"]
    for chunk in tables.chunks("discharge", columns):
        for key, subject, hadm, text in chunk[columns].itertuples(index=False):
            mark = hashlib.blake2b(
                f"{hadm}|{text}".encode("utf-8", "surrogatepass"), digest_size=12
            ).digest()
            if hadm and text.strip() and mark not in seen:
                seen.add(mark)
                yield Note(key.strip(), whole(subject), whole(hadm)), text


def form(version: str, procedure: bool):
    """How the codes of '9' or '10' are written."""
    return partial(clinical.icd9 if version == "9" else clinical.icd10, procedure=procedure)


def frequent(own: dict[Note, list[set[str]]]) -> dict[Note, set[str]]:
    """Each note's codes that at least 10 notes have, diagnoses and procedures counted apart; notes
    left bare are dropped.
    """
    keep = []
    for kind in range(2):
        count = Counter(code for kinds in own.values() for code in kinds[kind])
        keep.append({code for code, n in count.items() if n >= LEAST})
    joined = {note: (kinds[0] & keep[0]) | (kinds[1] & keep[1]) for note, kinds in own.items()}
    return {note: codes for note, codes in joined.items() if codes}


def coded(tables: Tables, version: str) -> dict[Note, set[str]]:
    """{note: codes} by the rule above, in the order of the file."""
    kinds = [
        codes_of(tables, table, "icd_code", form(version, table.startswith("proc")), version)
        for table in ("diagnoses_icd", "procedures_icd")
    ]
    own = {}
    for note, _ in notes(tables):
        codes = [kind.get(note.hadm, set()) for kind in kinds]
        if any(codes):
            own[note] = codes
    return frequent(own)


def split_of(
    tables: Tables, own: dict[Note, set[str]], version: str
) -> tuple[dict[Note, str], str]:
    """({note: split}, how it was made); a supplied file decides which notes there are."""
    stem = f"mimiciv_icd{version}_split"
    if (
        path := tables.find(*(f"{stem}{end}" for end in (".feather", ".parquet", ".csv")))
    ) is not None:
        given = splits.table_file(path)
        found = {note: given.get(note.id, given.get(note.hadm)) for note in own}
        return {n: s for n, s in found.items() if s}, f"split: the supplied {path.name}"
    names = sorted({code for codes in own.values() for code in codes})
    column = {code: i for i, code in enumerate(names)}
    rows = [sorted(column[c] for c in codes) for codes in own.values()]
    sides = splits.stratified([note.patient for note in own], rows, SHARES, f"mimic4 icd{version}")
    note = (
        f"split: DERIVED by rule, patients stratified by codes, since no {stem}.* was supplied; not"
        " the published split"
    )
    return dict(zip(own, sides, strict=True)), note


def few(
    own: dict[Note, set[str]], split: dict[Note, str], cap: int = NOTES
) -> dict[Note, set[str]]:
    """At most `cap` notes with a code of 3 to 7 training notes; each split keeps its share, largest
    remainders first.

    The draw is pandas' own with seed 42 over notes sorted by id: that of the published slice.
    """
    import pandas as pd

    train = Counter(code for note, codes in own.items() if split[note] == "train" for code in codes)
    rare = {code for code, n in train.items() if RARE[0] <= n <= RARE[1]}
    kept = sorted((note for note, codes in own.items() if codes & rare), key=lambda note: note.id)
    if not kept:
        raise DataError(
            f"mimic4-few: no code has {RARE[0]} to {RARE[1]} training notes among {len(own)} notes"
        )
    if len(kept) <= cap:
        return {note: own[note] for note in kept}
    sizes = Counter(split[note] for note in kept)
    exact = {part: cap * n / len(kept) for part, n in sizes.items()}
    take = {part: int(value) for part, value in exact.items()}
    order = sorted(exact, key=lambda part: exact[part] - take[part], reverse=True)
    for part in order[: cap - sum(take.values())]:
        take[part] += 1
    drawn = [
        note
        for part, n in take.items()
        for note in pd.Series([k for k in kept if split[k] == part]).sample(n, random_state=SEED)
    ]
    return {note: own[note] for note in sorted(drawn)}


def name_of(subset: str = "icd10", **_) -> str:
    """mimic4-icd10, mimic4-icd9 or mimic4-few."""
    return f"mimic4-{subset}"


def build(
    out: Path, source: Path | None = None, *, subset: str = "icd10", text: str = "plain"
) -> Path:
    """Write the corpus folder `out` from the tables in `source`; 10 minutes or so, memory below 2
    GB.

    text: plain (word pieces, the default), raw, caml or edin, see clinical.py.
    """
    name = common.credentialed(
        name_of(subset), out, source, text, clinical.TEXTS, {"subset": (subset, SUBSETS)}
    )
    tables, version = Tables(source), "9" if subset == "icd9" else "10"
    own = coded(tables, version)
    split, how = split_of(tables, own, version)
    own = {note: codes for note, codes in own.items() if note in split}
    splits.some(own, "a note with codes")
    remarks = [how, f"text: {text}", f"labels: ICD-{version} codes with at least {LEAST} notes"]
    if subset == "few":
        own = few(own, split)
        remarks.append(
            f"notes: with a code of {RARE[0]} to {RARE[1]} training notes, at most {NOTES}, drawn"
            f" with seed {SEED}"
        )
    labels = sorted({code for codes in own.values() for code in codes})
    column = {label: i for i, label in enumerate(labels)}
    pairs = [
        pair
        for table in ("d_icd_diagnoses", "d_icd_procedures")
        for pair in titles(
            tables, table, "icd_code", form(version, table.endswith("procedures")), version
        )
    ]
    described = clinical.described(pairs)
    manifest = common.clinical_manifest(
        "https://physionet.org/content/mimic-iv-note/2.2/", tables, remarks
    )
    if subset == "few":
        manifest["bucket_edges"] = list(FEW_EDGES)
    texts = [described.get(c) for c in labels]
    longer = (
        clinical.with_inclusion_terms({c: described[c] for c in labels if c in described})
        if version == "10"
        else None
    )
    with CorpusWriter(out, common.marked(name, tables), labels, manifest, texts, longer) as writer:
        for note, raw in notes(tables):
            if note in own:
                writer.add(
                    note.id,
                    clinical.cleaned(raw, text),
                    split[note],
                    [column[c] for c in own[note]],
                )
    return Path(out)


if __name__ == "__main__":
    sys.exit(
        common.cli(
            __doc__,
            name_of,
            build,
            {
                "--subset": {"default": "icd10", "choices": SUBSETS},
                "--text": {"default": "plain", "choices": clinical.TEXTS},
            },
        )
    )
