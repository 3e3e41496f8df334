"""CodiEsp v4 (CLEF eHealth 2020): 1,000 clinical cases with ICD-10 codes and 2,751 without.

Origin: Zenodo record 3837305 (codiesp.zip), CC BY 4.0; the cases are published reports from SciELO,
not patient records. Official split; the cases without codes become split 'unlabelled'. Task D takes
ICD-10-CM diagnoses (the default), P ICD-10-PCS procedures, DP both, D3 the three-character
categories of diagnoses. The text is English (machine translation by the organisers, the default) or
the Spanish original. Gold evidence marks the SPANISH text, so only corpora with language es have
it. --from takes codiesp.zip, its unpacked folder, or a folder with
{train,dev,test,background}.jsonl(.xz).
"""

from __future__ import annotations

import csv
import io
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantlib.data import evidence
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError

try:
    from data_scripts import clinical, common
except ModuleNotFoundError:
    import clinical
    import common

if TYPE_CHECKING:
    import pandas as pd

URL = "https://zenodo.org/record/3837305/files/codiesp.zip"
FOLDERS = {"train": "train", "dev": "dev", "test": "test", "background": "unlabelled"}
TASKS = ("D", "D3", "P", "DP")
KINDS = {"DIAGNOSTICO": "D", "PROCEDIMIENTO": "P"}


def _table(files: common.Files, ending: str) -> Iterator[list[str]]:
    """The rows of a tab-separated annotation file, without its header line."""
    for line in files.text(files.need(ending)).splitlines():
        row = line.split("\t")
        if len(row) > 1 and row[0].lower() != "articleid":
            yield row


def archive_records(files: common.Files, folder: str) -> Iterator[dict[str, Any]]:
    """Cases of one folder of the original archive.

    Each has id, text (Spanish), text_en, D and P (lists of codes) and X (rows of evidence).
    """
    annotations = {kind: defaultdict(list) for kind in "DPX"}
    for kind in "DPX" if folder != "background" else "":
        for row in _table(files, f"{folder}/{folder}{kind}.tsv"):
            annotations[kind][row[0]].append(row[1:] if kind == "X" else row[1].strip())
    names = [n for n in files.names if f"/{folder}/text_files/" in f"/{n}" and n.endswith(".txt")]
    if not names:
        raise DataError(
            f"{files.path} has no {folder}/text_files/*.txt: pass --from codiesp.zip or its folder"
        )
    for name in names:
        key = name.rsplit("/", 1)[-1].removesuffix(".txt")
        english = name.replace("/text_files/", "/text_files_en/")
        yield {
            "id": key,
            "text": files.text(name),
            "text_en": files.text(english),
            **{kind: annotations[kind][key] for kind in "DPX"},
        }


def records(files: common.Files) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, case) of every case, from the archive or from .jsonl files."""
    jsonl = files.find("train.jsonl") or files.find("train.jsonl.xz")
    for folder, split in FOLDERS.items():
        for case in files.jsonl(folder) if jsonl else archive_records(files, folder):
            yield split, case


def code_of(code: str, task: str) -> str:
    """The label of a code: the code, or under D3 its category ('r06.00' -> 'r06')."""
    return code.split(".")[0][:3] if task == "D3" else code


def evidence_frame(cases: list[dict[str, Any]], task: str) -> pd.DataFrame:
    """One row per span: id, label, start and end (characters of the Spanish text), its text, and
    the number of its mention, which pieces that stand apart share.
    """
    import pandas as pd

    rows = []
    mention = 0
    for case in cases:
        for kind, code, _, places in case.get("X", ()):
            if KINDS.get(kind) not in task:
                continue
            code = code_of(code, task)
            for place in places.split(";"):
                start, end = map(int, place.split())
                rows.append((case["id"], code, start, end, case["text"][start:end], mention))
            mention += 1
    return pd.DataFrame(rows, columns=list(evidence.COLUMNS)).astype(
        dict.fromkeys(("start", "end", "mention"), int)
    )


def label_texts(files: common.Files, labels: set[str], task: str) -> dict[str, str]:
    """{label: description} from labels_<task>.tsv, else from the package simple-icd-10-cm.

    Without the files and without the package it is empty.
    """
    texts = {}
    # the files describe codes, not categories
    for kind in "" if task == "D3" else task:
        if name := files.find(f"labels_{kind}.tsv"):
            content = io.StringIO(files.text(name))
            for row in csv.DictReader(content, delimiter="\t", quoting=csv.QUOTE_NONE):
                texts[row["code"]] = row["description"]
    return {k: v for k, v in (texts or _from_terminology(labels)).items() if k in labels}


def _from_terminology(labels: set[str]) -> dict[str, str]:
    try:
        import simple_icd_10_cm as terminology
    except ImportError:
        return {}
    return {
        c: terminology.get_description(c.upper())
        for c in labels
        if terminology.is_valid_item(c.upper())
    }


def name_of(task: str, language: str) -> str:
    """codiesp, codiesp-d3, codiesp-p, codiesp-dp, each with -es for the Spanish text."""
    name = "codiesp" if task == "D" else f"codiesp-{task.lower()}"
    return name if language == "en" else f"{name}-{language}"


def build(out: Path, source: Path | None = None, *, task: str = "D", language: str = "en") -> Path:
    """Write the corpus folder `out` and return it.

    Args:
        out: the folder to write.
        source: the archive or folder to read; downloaded from Zenodo when None.
        task: D, D3, P or DP.
        language: en or es.

    Raises:
        DataError: an unknown option, a failed download, or files that cannot be read.
    """
    if task not in TASKS or language not in ("en", "es"):
        raise DataError(
            f"task={task!r}, language={language!r}: wanted task D, D3, P or DP and language en"
            " or es"
        )
    # read the cases
    with tempfile.TemporaryDirectory() as temporary:
        files = common.Files(source or common.download(URL, Path(temporary), "codiesp.zip"))
        splits, cases = (list(column) for column in zip(*records(files), strict=True))
        labels = [
            [code_of(code, task) for kind in task for code in case.get(kind, ())] for case in cases
        ]
        texts = label_texts(files, {code for codes in labels for code in codes}, task)
        endings = (".jsonl", ".jsonl.xz", "labels_D.tsv", "labels_P.tsv")
        named = [name for name in files.names if name.endswith(endings)]
        sources = files.sums(*named) if named else files.digest()
    # write the corpus
    manifest = common.manifest(
        "https://zenodo.org/record/3837305 (CodiEsp, gold v4)",
        "CC BY 4.0",
        sources,
        f"task {task}, text {language}",
        "evidence spans point into the Spanish text"
        + ("" if language == "es" else " and are left out here"),
        task=task,
        language=language,
    )
    corpus = Corpus.from_lists(
        name_of(task, language),
        [case["id"] for case in cases],
        [case["text_en" if language == "en" else "text"] for case in cases],
        labels,
        splits,
        label_texts=texts,
        manifest=manifest,
        evidence=evidence_frame(cases, task) if language == "es" else None,
    )
    return common.save(corpus, out, clinical.with_inclusion_terms(texts))


OPTIONS = {
    "--task": {"default": "D", "choices": TASKS},
    "--language": {"default": "en", "choices": ["en", "es"]},
}

if __name__ == "__main__":
    sys.exit(common.cli(__doc__, name_of, build, OPTIONS))
