"""EURLEX57K: 57,000 EU laws with 4,271 EuroVoc concepts (Chalkidis et al., ACL 2019).

Origin: http://nlp.cs.aueb.gr/software_and_datasets/EURLEX57K/ (datasets.zip, eurovoc_en.json); CC
BY-SA 4.0, texts (c) European Union, reuse under Decision 2011/833/EU. Official split 45,000 / 6,000
/ 6,000. A text is header, recitals and main_body, as for the published numbers; title and
attachments are left out. --from takes datasets.zip, its unpacked folder, or a folder with
{train,dev,test}.jsonl(.xz) and EURLEX57K.json. This is not EURLEX-4K, which get_xmc.py reads.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError
from plantlib.utils.io import sha256

try:
    from data_scripts import common
except ModuleNotFoundError:
    import common

BASE = "http://nlp.cs.aueb.gr/software_and_datasets/EURLEX57K/"
CONCEPTS = ("EURLEX57K.json", "eurovoc_en.json")
SPLITS = ("train", "dev", "test")


def text_of(law: dict[str, Any]) -> str:
    """Header, recitals and the articles of main_body, one per line."""
    head = [law.get("header") or "", law.get("recitals") or ""]
    return "\n".join([*head, *(law.get("main_body") or [])])


def records(files: common.Files, split: str) -> Iterator[dict[str, Any]]:
    """The laws of one split in the order of file names, from .jsonl or from .json files."""
    if files.find(f"{split}.jsonl") or files.find(f"{split}.jsonl.xz"):
        yield from files.jsonl(split)
        return
    names = [n for n in files.names if n.endswith(".json") and n.split("/")[-2:-1] == [split]]
    if not names:
        raise DataError(
            f"{files.path} has neither {split}.jsonl(.xz) nor {split}/*.json: pass --from"
            " datasets.zip"
        )
    for name in sorted(names, key=lambda n: n.rsplit("/", 1)[-1]):
        yield json.loads(files.text(name))


def concept_names(source: Path) -> tuple[dict[str, str], dict[str, str]]:
    """{concept id: its English name} and {file: sha256}; both empty without a file of concepts."""
    path = _concepts(source)
    if path is None:
        return {}, {}
    names = {key: name for key, (name, *_) in _names(path).items()}
    return names, {path.name: sha256(path)}


def long_texts(source: Path) -> dict[str, str]:
    """{concept id: its English name and its other names}; empty without a file of concepts."""
    path = _concepts(source)
    return {key: ". ".join(names) for key, names in _names(path).items()} if path else {}


def _concepts(source: Path) -> Path | None:
    """The file of concepts in `source` or beside it."""
    places = [folder / name for folder in (source, source.parent) for name in CONCEPTS]
    return next((place for place in places if place.is_file()), None)


def _names(path: Path) -> dict[str, list[str]]:
    """{concept id: [name, other names]} of a file of concepts."""
    table = json.loads(path.read_text(encoding="utf-8"))
    return {
        key: [value["label"], *value.get("alt_labels", ())]
        if isinstance(value, dict)
        else [str(value)]
        for key, value in table.items()
    }


def build(out: Path, source: Path | None = None) -> Path:
    """Write the corpus folder `out` from the public origin or from `source`; a minute, 1 GB memory.

    DataError where the download fails or a split is missing.
    """
    from tqdm.auto import tqdm

    # read the laws and the names of concepts
    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            common.download(
                BASE + "eurovoc_en.json", Path(temporary), "a folder with datasets.zip unpacked"
            )
            source = common.download(BASE + "datasets.zip", Path(temporary), "datasets.zip")
        files = common.Files(source)
        label_texts, concept_sum = concept_names(Path(source).absolute())
        longer = long_texts(Path(source).absolute())
        laws = [
            (law["celex_id"], text_of(law), law["concepts"], split)
            for split in SPLITS
            for law in tqdm(
                records(files, split), desc=f"eurlex57k {split}", unit="doc", delay=5, leave=False
            )
        ]
        sources = {**_sums(files), **concept_sum}
    # write the corpus
    ids, texts, labels, split = (list(column) for column in zip(*laws, strict=True))
    used = {label for concepts in labels for label in concepts}
    manifest = common.manifest(
        BASE,
        "CC BY-SA 4.0; texts (c) European Union, Decision 2011/833/EU",
        sources,
        "text: header, recitals and main_body; official split",
        language="en",
    )
    corpus = Corpus.from_lists(
        "eurlex57k",
        ids,
        texts,
        labels,
        split,
        manifest=manifest,
        label_texts={k: v for k, v in label_texts.items() if k in used},
    )
    return common.save(corpus, out, {k: v for k, v in longer.items() if k in used})


def _sums(files: common.Files) -> dict[str, str]:
    names = [name for name in files.names if name.endswith((".jsonl", ".jsonl.xz"))]
    return files.sums(*names) if names else files.digest()


if __name__ == "__main__":
    sys.exit(common.cli(__doc__, "eurlex57k", build))
