"""Which admission is train, dev or test: published id files when the user has them, else a rule
that depends on nothing else.

The rules keep all notes of a patient on one side and follow SHA-256 of the patient's id, so that
they are the same on every machine. A manifest says which of the two made the split; counts can
equal published ones only with the published files.
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
    """{hadm_id: split} from {train,dev,test}_<ending>.csv or .csv.gz, one id a line as CAML has
    them; None when none is there.

    DataError when one of the three is missing or an id stands in two.
    """
    paths = {part: tables.find(f"{part}_{ending}.csv", f"{part}_{ending}.csv.gz") for part in PARTS}
    if not any(paths.values()):
        return None
    if missing := [part for part, path in paths.items() if path is None]:
        raise DataError(
            f"{tables.folder} has *_{ending}.csv, but not {missing[0]}_{ending}.csv: give all three"
            " or none"
        )
    found: dict[str, str] = {}
    for part, path in paths.items():
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in content.decode("utf-8-sig").splitlines():
            key = whole(line.split(",")[0].strip('"'))
            if not key.isdigit():
                continue
            if found.setdefault(key, part) != part:
                raise DataError(
                    f"{path.name}: admission {key} also stands in {found[key]}; the split files"
                    " overlap"
                )
    return found


def some(own: dict, what: str) -> None:
    """DataError when the split left no document."""
    if not own:
        raise DataError(
            f"no document is left: no id of the split is {what} of these tables; wanted the id"
            " first on each line of a split file, as published, and tables and split files of one"
            " release"
        )


def table_file(path: Path) -> dict[str, str]:
    """{id: split} from Edin et al.'s split table (.feather, .parquet or .csv): _id, hadm_id or
    note_id, and split.
    """
    import pandas as pd

    read = {".feather": pd.read_feather, ".parquet": pd.read_parquet}.get(path.suffix)
    frame = read(path) if read else pd.read_csv(path, dtype=str)
    key = next((c for c in ("_id", "hadm_id", "note_id") if c in frame.columns), None)
    if key is None or "split" not in frame.columns:
        raise DataError(
            f"{path.name} has the columns {list(frame.columns)[:6]}; wanted _id (or hadm_id,"
            " note_id) and split"
        )
    parts = [WORDS.get(part, part) for part in frame["split"].astype(str)]
    if unknown := sorted(set(parts) - set(PARTS)):
        raise DataError(f"{path.name}: unknown splits {unknown[:3]}; wanted train, val and test")
    return dict(zip((whole(str(k)) for k in frame[key]), parts, strict=True))


def by_patient(patients: Sequence[str], shares: Sequence[float], salt: str) -> list[str]:
    """The split of each document: patients in hashed order fill train, dev and test up to their
    shares of documents.
    """
    own = Counter(patients)
    names = sorted(own)
    edges = np.cumsum(shares) / sum(shares) * len(patients)
    side, filled = {}, 0
    for i in hash_order(names, 0, salt):
        # the middle of a patient's documents decides, so that no share is passed by more than half
        # a patient
        side[names[i]] = PARTS[
            min(int(np.searchsorted(edges, filled + own[names[i]] / 2, side="right")), 2)
        ]
        filled += own[names[i]]
    return [side[patient] for patient in patients]


def stratified(
    patients: Sequence[str], labels: Sequence[Sequence[int]], shares: Sequence[float], salt: str
) -> list[str]:
    """The split of each document: patients dealt out so that every label is spread by `shares`.

    Iterative stratification (Sechidis et al., 2011) with patients as examples, as Edin et al. use
    it, in one fixed order: labels from rare to frequent, patients by hash. Edin et al. draw at
    random, so their files hold another split.
    """
    names = sorted(set(patients))
    at = {name: i for i, name in enumerate(names)}
    own: list[Counter] = [Counter() for _ in names]
    size = np.zeros(len(names))
    for patient, columns in zip(patients, labels, strict=True):
        own[at[patient]].update(columns)
        size[at[patient]] += 1
    order = hash_order(names, 0, salt)
    total, holders = Counter(), {}
    for i in order:
        for label, count in own[i].items():
            total[label] += count
            holders.setdefault(label, []).append(i)
    share = np.asarray(shares) / sum(shares)
    wanted = np.outer(share, [total[label] for label in range(max(total, default=-1) + 1)])
    room, side = share * size.sum(), np.full(len(names), -1)
    for label in [*sorted(total, key=lambda k: (total[k], k)), None]:
        for i in order if label is None else holders[label]:
            if side[i] >= 0:
                continue
            need = room if label is None else wanted[:, label]
            best = np.flatnonzero(need >= need.max() - 1e-9)
            # a tie goes to the split that has got least of its share: the largest one would take
            # every rare label
            side[i] = best[np.argmax(room[best] / share[best])]
            columns = list(own[i])
            wanted[side[i], columns] -= [own[i][c] for c in columns]
            room[side[i]] -= size[i]
    return [PARTS[side[at[patient]]] for patient in patients]
