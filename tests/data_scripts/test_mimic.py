"""MIMIC-III and IV from generated tables in the schema of the sources.

Rules against values worked out by hand, whole builds, and the table of published counts. Small
tables are written here, each for one rule; fixtures.py generates the larger ones.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_scripts import (
    check,
    clinical,
    fixtures,
    get_mimic3,
    get_mimic4,
    get_xmc,
    mimic_tables,
    splits,
)
from data_scripts.mimic_tables import Tables, titles
from plantlib.data import sources
from plantlib.data.corpus import Corpus
from plantlib.metrics import buckets
from plantlib.teacher import label_texts
from plantlib.utils.base import DataError


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """Credentialed corpora are built in the data folder alone."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))


@pytest.mark.parametrize(
    "code, procedure, zeros, wanted",
    [
        ("4019", False, True, "401.9"),
        ("0389", False, True, "038.9"),
        ("486", False, True, "486"),
        ("V5861", False, True, "V58.61"),
        ("E8497", False, True, "E849.7"),
        ("E849", False, True, "E849"),
        (" 4019 ", False, True, "401.9"),
        ("", False, True, ""),
        ("3893", True, True, "38.93"),
        ("966", True, True, "96.6"),
        ("0044", True, True, "00.44"),
        ("044", True, True, "04.4"),
        ("0044", True, False, "44"),
        ("044", True, False, "44"),
        ("0117", True, False, "11.7"),
        ("117", True, False, "11.7"),
        ("", True, False, ""),
    ],
)
def test_icd9(code, procedure, zeros, wanted):
    assert clinical.icd9(code, procedure, zeros) == wanted


@pytest.mark.parametrize(
    "code, procedure, wanted",
    [
        ("I10", False, "I10"),
        ("E785", False, "E78.5"),
        ("S52521A", False, "S52.521A"),
        ("02HV33Z", True, "02HV33Z"),
        ("", True, ""),
    ],
)
def test_icd10(code, procedure, wanted):
    assert clinical.icd10(code, procedure) == wanted


def test_texts_as_published():
    text = (
        "Admission Date:  [**2151-7-16**]\n\nMr. [**Known lastname\n1158**] took 2 Aspirin_81"
        " (81mg), 40 %.\nT 37.2"
    )
    assert (
        clinical.plain(text)
        == "Admission Date: ___\nMr. ___ took 2 Aspirin_81 (81mg), 40 %. T 37.2"
    )
    assert clinical.caml(text) == "admission date mr known lastname took aspirin_81 81mg t"
    # their expression needs a space after a number, so the last one stays
    assert clinical.edin(text) == "admission date mr known lastname took aspirin 81mg t 2"
    assert clinical.cleaned(text, "raw") == text


def test_codes_that_lost_their_zeros_keep_all_their_descriptions():
    assert clinical.described([("44", "a"), ("44", "b"), ("44", "a"), ("", "x"), ("1", "")]) == {
        "44": "a / b"
    }


def write(path: Path, columns: str, rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = (
        gzip.open(path, "wt", newline="") if path.suffix == ".gz" else open(path, "w", newline="")
    )
    with opened as out:
        csv.writer(out).writerows([columns.split(), *rows])


EVENTS = (
    "ROW_ID SUBJECT_ID HADM_ID CHARTDATE CHARTTIME STORETIME CATEGORY DESCRIPTION CGID ISERROR TEXT"
)


def event(row, subject, hadm, kind, text, category="Discharge summary", date="2100-01-01"):
    return [row, subject, hadm, date, "", "", category, kind, "", "", text]


@pytest.fixture
def three(tmp_path) -> Path:
    """Six admissions of four patients, each for one rule."""
    folder = tmp_path / "mimic3"
    write(
        folder / "NOTEEVENTS.csv.gz",
        EVENTS,
        [
            event(1, 7, 100, "Addendum", 'late,\nwith a "quote"'),
            event(2, 7, 100, "Report", "first\n\nline"),
            event(3, 7, 100, "Addendum", 'late,\nwith a "quote"'),
            event(4, 7, "101.0", "Report", "second stay"),
            event(5, 8, 102, "Report", "nursing", category="Nursing"),
            event(6, 8, "", "Report", "no admission"),
            event(7, 9, 103, "Report", "only a missing code"),
            event(8, 9, 104, "Report", "not coded"),
            event(9, 10, 105, "Report", "zeros"),
        ],
    )
    write(
        folder / "DIAGNOSES_ICD.csv",
        "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
        [
            [1, 7, 100, 1, "4019"],
            [2, 7, 100, 2, "4019"],
            [3, 7, 101, 1, "0389"],
            [4, 8, 102, 1, "4019"],
            [5, 9, 103, 1, ""],
        ],
    )
    write(
        folder / "sub" / "procedures_icd.csv",
        "row_id subject_id hadm_id seq_num icd9_code",
        [[1, 10, 105, 1, "0044"], [2, 10, 105, 2, "044"], [3, 7, 100, 1, "3893"]],
    )
    return folder


def ids(folder: Path, ending: str, **parts) -> None:
    for part in ("train", "dev", "test"):
        (folder / f"{part}_{ending}.csv").write_text("".join(f"{i}\n" for i in parts.get(part, ())))


def test_mimic3_published_and_exact(tmp_path, three):
    ids(three, "full_hadm_ids", train=[100, 103], dev=[101], test=[105, 999])
    loaded = Corpus.load(get_mimic3.build(tmp_path / "out", three))
    assert loaded.ids == ["100", "101", "103", "105"] and loaded.split.tolist() == [
        "train",
        "dev",
        "train",
        "test",
    ]
    assert loaded.texts[0] == 'first\nline\nlate, with a "quote"' and loaded.name == "mimic3-full"
    assert loaded.label_names == ["038.9", "38.93", "401.9", "44"] and loaded.labels.sum(
        axis=1
    ).ravel().tolist() == [[2, 1, 0, 1]]
    assert loaded.manifest["credentialed"] is True and "synthetic" not in loaded.manifest
    assert any("supplied" in note for note in loaded.manifest["notes"])
    exact = Corpus.load(get_mimic3.build(tmp_path / "exact", three, codes="exact", text="caml"))
    assert exact.ids == ["100", "101", "105"] and exact.label_names == [
        "00.44",
        "038.9",
        "04.4",
        "38.93",
        "401.9",
    ]
    assert exact.texts[0] == "first line late with a quote" and exact.name == "mimic3-full-exact"


def test_mimic3_without_id_files_splits_by_patient_and_notes_it(tmp_path, three):
    loaded = Corpus.load(get_mimic3.build(tmp_path / "out", three))
    side = dict(zip(loaded.ids, loaded.split, strict=True))
    assert side["100"] == side["101"] and any(
        "DERIVED by rule" in note for note in loaded.manifest["notes"]
    )


def test_mimic3_few_and_lists():
    codes = {str(i): {"common", *(["rare"] if i < 2 else [])} for i in range(9)} | {
        "t": {"common", "rare", "unseen"}
    }
    split = {str(i): "train" for i in range(9)} | {"t": "test"}
    assert get_mimic3.few(codes, split)[0] == ["rare"]
    labels, note = get_mimic3.rare50(codes, split)
    assert labels == ["rare", "common"] and "DERIVED" in note
    every = {str(i): {code} for i, code in enumerate([*get_mimic3.RARE50, *get_mimic3.TOP50])} | {
        "x": {"401.9", "9"}
    }
    sides = dict.fromkeys(every, "train")
    assert (
        get_mimic3.rare50(every, sides)[0] == get_mimic3.RARE50
        and get_mimic3.top50(every, sides)[0] == get_mimic3.TOP50
    )
    assert len(set(get_mimic3.RARE50)) == len(set(get_mimic3.TOP50)) == 50
    del every["0"]
    labels, note = get_mimic3.top50(every, sides)
    assert labels[0] == "401.9" and len(labels) == 50 and "published" in note
    assert get_mimic3.top50({"a": {"x", "y"}, "b": {"y"}}, {})[0] == ["y", "x"]


def test_a_mimic3_subset_uses_the_id_files_of_that_subset(tmp_path, three):
    ids(three, "full_hadm_ids", train=[100], dev=[101], test=[105])
    ids(three, "50_hadm_ids", train=[101], dev=[105], test=[100])
    loaded = Corpus.load(get_mimic3.build(tmp_path / "out", three, subset="top50"))
    assert dict(zip(loaded.ids, loaded.split, strict=True)) == {
        "100": "test",
        "101": "train",
        "105": "dev",
    }


def test_split_files_with_a_byte_order_mark_or_packed(tmp_path, three):
    ids(three, "full_hadm_ids", train=[100], dev=[101], test=[105])
    (three / "train_full_hadm_ids.csv").write_text("\ufeff100\n", encoding="utf-8")
    (three / "dev_full_hadm_ids.csv").unlink()
    (three / "dev_full_hadm_ids.csv.gz").write_bytes(gzip.compress(b"101\n"))
    loaded = Corpus.load(get_mimic3.build(tmp_path / "out", three))
    assert loaded.ids == ["100", "101", "105"] and loaded.split.tolist() == ["train", "dev", "test"]


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda f: ids(f, "full_hadm_ids", train=[7], dev=[8], test=[9]),
            "no document is left: no id of the split",
        ),
        (
            lambda f: (f / "DIAGNOSES_ICD.csv").write_text(""),
            "DIAGNOSES_ICD.csv cannot be read .EmptyDataError",
        ),
        (lambda f: (f / "DIAGNOSES_ICD.csv").unlink(), "lacks DIAGNOSES_ICD.csv"),
        (
            lambda f: (f / "dev_full_hadm_ids.csv").write_text("100\n"),
            "not train_full_hadm_ids.csv",
        ),
        (
            lambda f: ids(f, "full_hadm_ids", train=[100], test=[100]),
            "admission 100 is also in train",
        ),
        (
            lambda f: write(f / "DIAGNOSES_ICD.csv", "HADM_ID CODE", [[1, 2]]),
            r"lacks the columns \['icd9_code'\]",
        ),
        (
            lambda f: (f / "NOTEEVENTS.csv.gz").write_bytes(
                (f / "NOTEEVENTS.csv.gz").read_bytes()[:-60]
            ),
            "cut off or not a CSV",
        ),
    ],
)
def test_mimic3_names_what_is_wrong(tmp_path, three, spoil, said):
    spoil(three)
    with pytest.raises(DataError, match=said):
        get_mimic3.build(tmp_path / "out", three)
    assert not (tmp_path / "out").exists()


def test_options_and_missing_tables_are_refused_early(tmp_path, monkeypatch):
    monkeypatch.delenv("PLANT_DATA", raising=False)
    with pytest.raises(DataError, match="subset='half': wanted one of full"):
        get_mimic3.build(tmp_path / "out", tmp_path, subset="half")
    with pytest.raises(DataError, match="text='upper': wanted one of plain"):
        get_mimic4.build(tmp_path / "out", tmp_path, text="upper")
    for name in ("mimic3-rare50", "mimic4-icd9"):
        with pytest.raises(
            DataError, match=f"{name} is credentialed: nobody but you can fetch it.*--from"
        ):
            Corpus.load(name, root=tmp_path / "home")


def four(
    folder: Path, notes: list[list], codes: list[list], name: str = "discharge.csv.gz"
) -> Path:
    write(
        folder / "note" / name,
        "note_id subject_id hadm_id note_type note_seq charttime storetime text",
        [[n, s, h, "DS", 1, "", "", t] for n, s, h, t in notes],
    )
    write(
        folder / "hosp" / "diagnoses_icd.csv.gz",
        "subject_id hadm_id seq_num icd_code icd_version",
        codes,
    )
    write(
        folder / "hosp" / "procedures_icd.csv.gz",
        "subject_id hadm_id seq_num chartdate icd_code icd_version",
        [[1, "h1", 1, "", "02HV33Z", 10]],
    )
    return folder


def test_mimic4_rule_and_supplied_split(tmp_path):
    notes = [[f"n{i}", i // 2, f"h{i}", f'note {i}\nwith, "two" lines'] for i in range(13)]
    notes += [
        ["twice", 0, "h0", 'note 0\nwith, "two" lines'],
        ["none", 3, "", "x"],
        ["empty", 3, "h3", " "],
    ]
    codes = [[0, f"h{i}", 1, "I10  " if i < 10 else "E785", 10] for i in range(12)]
    codes += [[0, "h12", 1, "I10", 9], [0, "h1", 2, "I10", 10]]
    folder = four(tmp_path / "mimic4", notes, codes)
    split = "".join(
        f"h{i},{'val' if i == 4 else 'test' if i == 5 else 'train'}\n" for i in range(9)
    )
    (folder / "mimiciv_icd10_split.csv").write_text("_id,split\n" + split)
    loaded = Corpus.load(get_mimic4.build(tmp_path / "out", folder))
    # E78.5 has 2 notes and the procedure 1, fewer than 10; h9 is in no split
    assert (
        loaded.ids == [f"n{i}" for i in range(9)]
        and loaded.label_names == ["I10"]
        and loaded.labels.nnz == 9
    )
    assert (
        loaded.split[4] == "dev"
        and loaded.split[5] == "test"
        and loaded.texts[0] == 'note 0 with, "two" lines'
    )
    (folder / "mimiciv_icd10_split.csv").unlink()
    loaded = Corpus.load(get_mimic4.build(tmp_path / "out2", folder))
    assert len(loaded.ids) == 10 and any("DERIVED" in note for note in loaded.manifest["notes"])
    with pytest.raises(DataError, match="no code has 3 to 7 training notes among 10 notes"):
        get_mimic4.build(tmp_path / "few", folder, subset="few")


def test_mimic4_few_keeps_shares_and_every_label():
    codes_of = {
        get_mimic4.Note(f"n{i:03d}", str(i), str(i)): {"rare" if i % 2 else "head", "head"}
        for i in range(24)
    }
    split = {
        note: "train" if i < 14 else "val" if i < 18 else "test" for i, note in enumerate(codes_of)
    }
    # 12 notes with the code of 7 training notes: 7, 2 and 3 of 12
    few = get_mimic4.few(codes_of, split, cap=7)
    assert Counter(split[note] for note in few) == {"train": 4, "test": 2, "val": 1}
    assert all(codes == {"rare", "head"} for codes in few.values()) and few == get_mimic4.few(
        codes_of, split, cap=7
    )
    assert len(get_mimic4.few(codes_of, split, cap=12)) == 12


def test_rules_keep_patients_together_and_labels_spread():
    patients = [str(i // 3) for i in range(3000)]
    sides = splits.by_patient(patients, (70, 10, 20), "a")
    assert len({(p, s) for p, s in zip(patients, sides, strict=True)}) == 1000
    assert [round(sides.count(part) / 3000, 2) for part in splits.PARTS] == [0.7, 0.1, 0.2]
    assert (
        sides
        == splits.by_patient(patients, (70, 10, 20), "a")
        != splits.by_patient(patients, (70, 10, 20), "b")
    )
    rng = np.random.default_rng(0)
    labels = [sorted(set(np.minimum(rng.geometric(0.03, 4), 100).tolist())) for _ in patients]
    dealt = splits.stratified(patients, labels, (75, 10, 15), "a")
    assert len({(p, s) for p, s in zip(patients, dealt, strict=True)}) == 1000
    assert [round(dealt.count(part) / 3000, 2) for part in splits.PARTS] == pytest.approx(
        [0.75, 0.1, 0.15], abs=0.011
    )
    assert miss(labels, dealt) < 0.5 * miss(labels, splits.by_patient(patients, (75, 10, 15), "a"))


def miss(labels: list[list[int]], sides: list[str]) -> float:
    """Mean distance of a label's share in test from 15 %."""
    every, test = Counter(x for columns in labels for x in columns), Counter()
    for columns, side in zip(labels, sides, strict=True):
        test.update(columns if side == "test" else [])
    return float(np.mean([abs(test[x] / n - 0.15) for x, n in every.items()]))


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    fixtures.mimic3(folder / "mimic3")
    fixtures.mimic4(folder / "mimic4")
    return folder


def test_generated_tables_have_the_difficulties_of_the_real_ones(generated):
    rows = list(csv.reader((generated / "mimic3/NOTEEVENTS.csv").open(newline="")))
    assert tuple(rows[0]) == fixtures.NOTEEVENTS
    summaries = [row for row in rows[1:] if row[6] == "Discharge summary"]
    per_stay = Counter((row[2], row[10]) for row in summaries)
    assert max(per_stay.values()) == 2 and any(row[2] == "" for row in summaries)
    assert all("\n" in row[10] for row in summaries) and any('"' in row[10] for row in summaries)
    stays, noted = {row[2] for row in rows[1:]} - {""}, {row[2] for row in summaries}
    assert stays - noted and len({row[1] for row in summaries}) < len(noted)
    codes = list(csv.reader((generated / "mimic3/DIAGNOSES_ICD.csv").open(newline="")))
    assert any(row[4] == "" for row in codes) and not any("." in row[4] for row in codes)


def test_generated_tables_build_every_corpus_and_are_marked_synthetic(
    generated, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PLANT_DATA", str(generated))
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    names = [name for name in sources.KNOWN if name.startswith("mimic")]
    corpora = {name: Corpus.load(name) for name in names}
    assert len(names) == 8
    for name, corpus in corpora.items():
        assert (
            corpus.name == f"synthetic-{name}"
            and corpus.manifest["synthetic"]
            and corpus.manifest["credentialed"]
        )
        assert "synthetic" in repr(corpus) and set(corpus.split) == {"train", "dev", "test"}
        assert (
            not any("[**" in text for text in corpus.texts)
            and len(corpus.label_texts) > 0.9 * corpus.L
        )
    full, few = corpora["mimic3-full"], corpora["mimic3-few"]
    train = np.asarray(full.labels[full.rows("train")].sum(axis=0)).ravel()
    for label in few.label_names:
        assert 1 <= train[full.label_names.index(label)] <= 5
    # 00.44 and 04.4 are one label in the published space
    assert corpora["mimic3-full-exact"].L == full.L + 1
    assert corpora["mimic3-top50"].L == corpora["mimic3-rare50"].L == 50
    assert not set(corpora["mimic4-few"].ids) - set(corpora["mimic4-icd10"].ids)
    for name in ("mimic4-icd10", "mimic4-few"):
        longer = {
            label: text
            for label, text in zip(
                corpora[name].label_names, label_texts.read(corpora[name]), strict=True
            )
            if text
        }
        assert any(
            len(text) > len(corpora[name].label_texts[label]) for label, text in longer.items()
        ), "inclusion terms too"
    assert buckets.edges_of(corpora["mimic4-few"].manifest) == (0, 7, 7), (
        "the published buckets of this slice"
    )
    assert buckets.edges_of(corpora["mimic4-icd10"].manifest) == buckets.EDGES
    ten = corpora["mimic4-icd10"]
    assert np.asarray(ten.labels.sum(axis=0)).min() >= 10 and len(set(ten.ids)) == ten.N
    real = tmp_path / "tables" / "mimic3"
    real.mkdir(parents=True)
    assert not sources._outdated("mimic3-full", tmp_path / "mimic3-full")
    monkeypatch.setenv("PLANT_DATA", str(tmp_path / "tables"))
    assert sources._outdated("mimic3-full", tmp_path / "mimic3-full"), (
        "real tables replace generated ones"
    )
    capsys.readouterr()
    assert check.main(names) == 0
    assert capsys.readouterr().out.count("made of generated notes, nothing to compare") == 8


def test_titles_are_formatted_like_codes(generated):
    pairs = titles(
        Tables(generated / "mimic3"),
        "D_ICD_PROCEDURES",
        "icd9_code",
        lambda code: clinical.icd9(code, True),
    )
    assert ("00.44", "Generated procedure 0044") in pairs and (
        "04.4",
        "Generated procedure 044",
    ) in pairs


def test_notes_are_read_in_chunks_and_not_held(tmp_path, monkeypatch):
    words = " ".join(f"word{i}" for i in range(1200))
    notes = [[f"n{i}", i, f"h{i}", f"{i}\n{words}"] for i in range(1_500)]
    tables = Tables(four(tmp_path / "mimic4", notes, [[0, "h0", 1, "I10", 10]], "discharge.csv"))
    read = []

    def bar(**options):
        counter = contextlib.nullcontext()
        counter.update = read.append
        return counter

    monkeypatch.setattr(mimic_tables, "tqdm", bar)
    monkeypatch.setattr(mimic_tables, "ROWS", 50)
    notes_read = get_mimic4.notes(tables)
    assert (
        next(notes_read)[0].id == "n0"
        and sum(read) < 0.4 * (tables.folder / "note/discharge.csv").stat().st_size
    )
    assert (
        sum(1 for _ in notes_read) == 1_499
        and sum(read) == (tables.folder / "note/discharge.csv").stat().st_size
    )


def corpus(home: Path, name: str, **manifest) -> Path:
    small = Corpus.from_lists(
        name,
        ["a", "b", "c"],
        ["one two", "one", "one two three"],
        [["x"], ["x", "y"], ["z"]],
        ["train", "train", "test"],
        manifest=manifest,
    )
    return small.save(home / name)


def test_check_names_every_difference(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    corpus(tmp_path, "good")
    corpus(tmp_path, "bad")
    corpus(tmp_path, "ours", notes=["split: DERIVED by rule"])
    right = [
        ("all", "documents", 3),
        ("train", "documents", 2),
        ("all", "labels", 3),
        ("train", "labels", 2),
        ("all", "labels/doc", 1.33),
        ("train", "labels/doc", 1.5),
        ("all", "median labels", 1),
        ("all", "median words", 2),
        ("test", "labels not in train", 1),
        ("train", "labels in 0 documents", 1),
        ("train", "labels in 2 or more documents", 1),
        ("train", "labels in 1 to 5 documents", 2),
    ]
    wrong = [
        ("all", "documents", 4),
        ("all", "labels/doc", 1.34),
        ("train", "labels in 0 documents", 2),
    ]
    rows = [("good", *r, "s") for r in [*right, ("all", "labels", 9)]] + [
        (n, *r, "s") for n in ("bad", "ours") for r in wrong
    ]
    table = tmp_path / "expected.csv"
    write(
        table,
        "dataset split quantity expected source",
        [*rows, ("absent", "all", "labels", 1, "s")],
    )
    assert check.check(path=table) == 1
    printed = capsys.readouterr().out
    assert "good: 12 quantities as published" in printed and "absent: not built" in printed
    assert (
        "bad: 3 of 3 quantities differ\n  all documents: 3, published 4 (s)\n  all labels/doc:"
        " 1.33333, published" in printed
    )
    assert (
        "ours: not the published selection (split: DERIVED by rule); 3 of 3 quantities differ"
        in printed
    )
    with pytest.raises(DataError, match="no published counts for nowhere"):
        check.check(["nowhere"], table)
    with pytest.raises(DataError, match="asks for 'pages'"):
        check.Built(tmp_path / "good").measure("all", "pages")


def test_the_published_table_is_whole():
    published = check.expectations()
    known = set(sources.KNOWN)
    assert {name for name in published if name.startswith("mimic")} == {
        name for name in known if name.startswith("mimic")
    }
    assert (
        set(get_xmc.DATASETS) <= set(published)
        and len(published["eurlex-4k"]["all", "labels"]) == 2
    ), "with the repository's copy"
    assert {
        "codiesp",
        "codiesp-d3",
        "codiesp-p",
        "codiesp-dp",
        "codiesp-es",
        "eurlex57k",
        "cooking",
        "debtags",
    } <= set(published)
    built = check.Built.__new__(check.Built)
    built.split, built.L = np.array(["train"]), 1
    built.row, built.column, built.lengths = np.array([0]), np.array([0]), np.array([1])
    built.words = lambda: iter([1])
    for rows in (r for quantities in published.values() for r in quantities.values()):
        assert all(float(row.expected) >= 0 and row.source for row in rows)
        built.measure("train", rows[0].quantity)
    full = {key: [row.expected for row in rows] for key, rows in published["mimic3-full"].items()}
    assert (
        sum(int(full[part, "documents"][0]) for part in splits.PARTS)
        == int(full["all", "documents"][0])
        == 52726
    )
    few = {
        q: int(rows[0].expected)
        for (s, q), rows in published["mimic4-few"].items()
        if s == "train+dev"
    }
    assert sum(few.values()) == 3343


def test_command_line_of_fixtures(tmp_path):
    assert (
        fixtures.main(
            ["mimic4", "--out", str(tmp_path / "t"), "--admissions", "12", "--labels", "40"]
        )
        == 0
    )
    assert json.loads((tmp_path / "t/synthetic.json").read_text())["admissions"] == 12
    assert fixtures.main(["mimic3", "--out", str(tmp_path / "u"), "--admissions", "0"]) == 1


MEASURE = """
import csv, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from benchmarks.common import peak_mib
from plantlib.data import sources
from plantlib.metrics import buckets
from plantlib.teacher import label_texts
sources.script("common")
from data_scripts import fixtures, get_mimic3
folder, notes = Path(sys.argv[1]), int(sys.argv[2])
fixtures.mimic3(folder)
note = "\\n".join(f'the nurse wrote "line {i}" of a long shift' for i in range(100))
with open(folder / "NOTEEVENTS.csv", "a", newline="") as f:
    rows = csv.writer(f, quoting=csv.QUOTE_ALL)
    for i in range(notes):
        rows.writerow([10**6 + i, 1, 100, "2100-01-01", "", "", "Nursing", "Report", "", "", note])
get_mimic3.build(folder / "data" / "out", folder)
print(peak_mib(), (folder / "NOTEEVENTS.csv").stat().st_size / 2**20)
"""


def test_notes_of_other_kinds_take_the_memory_of_one_chunk(tmp_path):
    """Seven times as many notes that are not discharge summaries take nearly the same memory."""
    peaks, sizes = [], []
    for count in (6_000, 40_000):
        command = [
            sys.executable,
            "-c",
            MEASURE,
            str(tmp_path / str(count)),
            str(count),
            str(sources.checkout()),
        ]
        run = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=sources.checkout()
        )
        peak, size = map(float, run.stdout.split())
        peaks.append(peak)
        sizes.append(size)
        shutil.rmtree(tmp_path / str(count))
    assert sizes[1] - sizes[0] > 120, "MiB of text: holding it in memory would show"
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4, (
        f"peaks {peaks} MiB for tables of {sizes} MiB"
    )
