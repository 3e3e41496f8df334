"""Which admission is train, dev or test: by published id files, else by a rule.

The rules keep all notes of a patient in one split and order patients by SHA-256 of their id, so the
split is the same on every machine. The manifest says how the split was made. Only with the
published files can counts equal published ones.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_scripts.mimic_tables import Tables, whole
from plantlib.utils.base import DataError, hash_order

PARTS = ("train", "dev", "test")
WORDS = {"val": "dev", "valid": "dev", "validation": "dev"}


def id_files(tables: Tables, ending: str) -> dict[str, str] | None:
    """{hadm_id: split} from {train,dev,test}_<ending>.csv or .csv.gz, one id per line as in CAML.

    None where none of the files is there; DataError where one of the three is missing or an id
    occurs in two.
    """
    paths = {part: tables.find(f"{part}_{ending}.csv", f"{part}_{ending}.csv.gz") for part in PARTS}
    if not any(paths.values()):
        return None
    if missing := [part for part, path in paths.items() if path is None]:
        raise DataError(
            f"{tables.folder} has *_{ending}.csv, but not {missing[0]}_{ending}.csv: give all three"
            " or none"
        )
    split: dict[str, str] = {}
    for part, path in paths.items():
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for number, line in enumerate(content.decode("utf-8-sig").splitlines()):
            key = whole(line.split(",")[0].strip('"'))
            if not key or (number == 0 and key[0].isalpha()):  # blank, or a header
                continue
            if not key.isdigit():
                raise DataError(
                    f"{path.name}, line {number + 1}: wanted the number of an admission; take the"
                    " file as published"
                )
            if split.setdefault(key, part) != part:
                raise DataError(
                    f"{path.name}: admission {key} is also in {split[key]}; the split files overlap"
                )
    return split


def some(own: dict, what: str) -> None:
    """DataError where the split left no document.

    own: {id: codes} of the documents that are left; what: what their ids are, for the message.
    """
    if not own:
        raise DataError(
            f"no document is left: no id of the split is {what} of these tables; give tables and"
            " split files of one release, the files as published, with the id first on each line"
        )


def table_file(path: Path) -> dict[str, str]:
    """{id: split} from Edin et al.'s split table (.feather, .parquet or .csv).

    Its columns are split and one of _id, hadm_id and note_id.
    """
    import pandas as pd

    read = {".feather": pd.read_feather, ".parquet": pd.read_parquet}.get(path.suffix)
    frame = read(path) if read else pd.read_csv(path, dtype=str)
    frame.columns = [str(column).strip().lower() for column in frame.columns]
    key = next((c for c in ("_id", "hadm_id", "note_id") if c in frame.columns), None)
    if key is None or "split" not in frame.columns:
        raise DataError(
            f"{path.name} has the columns {list(frame.columns)[:6]}; wanted _id (or hadm_id,"
            " note_id) and split"
        )
    parts = [WORDS.get(part, part) for part in frame["split"].astype(str).str.strip().str.lower()]
    if unknown := sorted(set(parts) - set(PARTS)):
        raise DataError(f"{path.name}: unknown splits {unknown[:3]}; wanted train, val and test")
    return dict(zip((whole(str(k)) for k in frame[key]), parts, strict=True))


def by_patient(patients: Sequence[str], shares: Sequence[float], salt: str) -> list[str]:
    """The split of each document: patients in hashed order fill train, dev and test.

    Args:
        patients: the patient of each document.
        shares: of the documents that train, dev and test get, in any unit.
        salt: of the hash.
    """
    documents = Counter(patients)
    names = sorted(documents)
    edges = np.cumsum(shares) / sum(shares) * len(patients)
    split = {}
    filled = 0
    for i in hash_order(names, 0, salt):
        # the middle of a patient's documents decides, so a share is exceeded by half a patient at
        # most
        middle = filled + documents[names[i]] / 2
        split[names[i]] = PARTS[min(int(np.searchsorted(edges, middle, side="right")), 2)]
        filled += documents[names[i]]
    return [split[patient] for patient in patients]


def stratified(
    patients: Sequence[str], labels: Sequence[Sequence[int]], shares: Sequence[float], salt: str
) -> list[str]:
    """The split of each document, such that the documents of every label are spread by `shares`.

    Iterative stratification (Sechidis et al., 2011) of patients, as Edin et al. use it, in a fixed
    order: labels from rare to frequent, patients by hash. Edin et al. draw at random, so their
    files hold another split.

    Args:
        patients: the patient of each document.
        labels: the label columns of each document.
        shares: of the documents that train, dev and test get, in any unit.
        salt: of the hash.
    """
    # labels and documents of each patient
    names = sorted(set(patients))
    index = {name: i for i, name in enumerate(names)}
    codes: list[Counter] = [Counter() for _ in names]
    size = np.zeros(len(names))
    for patient, columns in zip(patients, labels, strict=True):
        codes[index[patient]].update(columns)
        size[index[patient]] += 1
    # documents and patients of each label
    order = hash_order(names, 0, salt)
    total = Counter()
    holders = {}
    for i in order:
        for label, count in codes[i].items():
            total[label] += count
            holders.setdefault(label, []).append(i)
    # documents that each split still lacks, per label and in all
    share = np.asarray(shares) / sum(shares)
    lacking = np.outer(share, [total[label] for label in range(max(total, default=-1) + 1)])
    room = share * size.sum()
    # the rarest label first; at the end patients without labels
    split = np.full(len(names), -1)
    for label in [*sorted(total, key=lambda k: (total[k], k)), None]:
        for i in order if label is None else holders[label]:
            if split[i] >= 0:
                continue
            need = room if label is None else lacking[:, label]
            best = np.flatnonzero(need >= need.max() - 1e-9)
            # a tie goes to the split that has the smallest part of its share; otherwise the largest
            # split would get every rare label
            split[i] = best[np.argmax(room[best] / share[best])]
            columns = list(codes[i])
            lacking[split[i], columns] -= [codes[i][c] for c in columns]
            room[split[i]] -= size[i]
    return [PARTS[split[index[patient]]] for patient in patients]
