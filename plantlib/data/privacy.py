"""Keeps credentialed text in the data folder: searches what leaves it for words of the corpora.

A corpus whose manifest says `credentialed: true` (MIMIC) may be read by its holder alone. Files
outside the data folder (run records, model cards, executed notebooks, explanations as HTML) are
compared with its texts. If they share N_WORDS words in a row, the write is refused; in a notebook
the output is withheld. Only the words to be written are indexed, and the texts are read once, so
memory is small and a run without long strings costs nothing. Single words and numbers are not
searched; pictures cannot be, so none of a credentialed run leaves. Generated stand-ins of
credentialed tables are treated as if they were real. Whole corpora, models and pages do not leave
at all (`credentials.py`).
"""

from __future__ import annotations

import html
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from plantlib.data import credentials, sources
from plantlib.data.corpus import Corpus
from plantlib.data.credentials import PrivacyError, inside_data
from plantlib.data.storage import manifest_of
from plantlib.utils.io import read_json
from plantlib.utils.progress import tqdm

N_WORDS = 6
WORD = re.compile(r"\w+")
TAG = re.compile(r"<[^<>]*>")
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a traceback
WITHHELD = "[output withheld: it holds words of a credentialed corpus]"
PICTURE_WITHHELD = "[picture withheld: this run read a credentialed corpus]"
# of displayed data, what a reader of text sees; everything else may hold a picture of a text
READABLE = {"text/plain", "text/markdown"}
EMBEDDED = re.compile(r"!\[|<\s*(?:img|svg|canvas|iframe|object|embed|script)|data:", re.IGNORECASE)
TEXT_SUFFIXES = set(".json .md .ipynb .html .txt .log .csv .tsv .yaml .yml .py".split())
Gram = tuple[str, ...]


def is_credentialed(corpus: Corpus | str | Path) -> bool:
    """Whether a corpus is credentialed.

    corpus: in memory, a folder, or a name; the answer for a name that is not built is False.
    """
    if isinstance(corpus, Corpus):
        return credentials.is_marked(corpus.manifest)
    folder = _folder(corpus)
    return folder is not None and credentials.folder_is_marked(folder)


def _folder(name: str | Path, beside: Path | None = None) -> Path | None:
    """The folder of a corpus, model or backbone by name or path, also relative to `beside`."""
    for path in (Path(name).expanduser(), *([beside / name] if beside else [])):
        if any((path / file).is_file() for file in credentials.MARKED_FILES):
            return path.resolve()
    return sources.find(str(name))


def credentialed_folders() -> list[Path]:
    """Every credentialed corpus in the data folders."""
    homes = [home for home in sources.homes() if home.is_dir()]
    manifests = [path for home in homes for path in sorted(home.glob("*/manifest.json"))]
    return [path.parent for path in manifests if is_credentialed(path.parent)]


def grams(text: str) -> Iterator[Gram]:
    """Every N_WORDS words in a row, lower case."""
    words = WORD.findall(text.lower())
    return zip(*(words[i:] for i in range(N_WORDS)), strict=False)


def shown(text: str) -> set[Gram]:
    """The grams that a reader of `text` sees.

    They come from the text as it is and, for HTML, from the text without tags, with and without a
    space in their place. Colours of a terminal are left out.
    """
    text = ESCAPES.sub("", text)
    forms = {text}
    if "<" in text:
        forms |= {html.unescape(TAG.sub(mark, text)) for mark in ("", " ")}
    return {gram for form in forms for gram in grams(form)}


def texts_of(corpus: Corpus | Path, progress: bool = True) -> Iterator[str]:
    """The texts of a corpus in memory, or of a saved one, read a thousand at a time."""
    if isinstance(corpus, Corpus):
        yield from corpus.texts
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(corpus / "documents.parquet") as file:
        bar = tqdm(
            total=file.metadata.num_rows,
            desc=f"privacy: {corpus.name}",
            delay=5,
            leave=False,
            disable=not progress,
        )
        with bar:
            for batch in file.iter_batches(batch_size=1000, columns=["text"]):
                yield from batch["text"].to_pylist()
                bar.update(batch.num_rows)


def overlap(wanted: set[Gram], corpora: Iterable[Corpus | Path] | None) -> set[Gram]:
    """The grams among `wanted` that occur in a document of the corpora.

    None means every credentialed corpus in the data folders and in this process.
    """
    if not wanted:
        return set()
    if corpora is None:
        in_folders = (text for corpus in credentialed_folders() for text in texts_of(corpus))
        texts = chain(in_folders, credentials.texts_in_memory())
    else:
        texts = (text for corpus in corpora for text in texts_of(corpus))
    shared: set[Gram] = set()
    for text in texts:
        if not wanted.isdisjoint(grams(text)):
            shared.update(wanted.intersection(grams(text)))
    return shared


def strings(value: Any) -> Iterator[str]:
    """Every text inside dicts, lists and tuples, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def check(value: Any, where: str | Path, corpora: Iterable[Corpus | Path] | None = None) -> None:
    """Refuse to write credentialed text outside the data folder.

    Args:
        value: text, or dicts, lists and tuples of texts, about to be written.
        where: the file; inside the data folder it may hold anything. A str is only a name.
        corpora: to compare with; see `overlap`.

    Raises:
        PrivacyError: a text in `value` overlaps one of the corpora.
    """
    if isinstance(where, Path) and inside_data(where):
        return
    to_write = {gram for text in strings(value) for gram in shown(text)}
    if not to_write:
        return
    if overlap(to_write, corpora):
        name = where.name if isinstance(where, Path) else where
        raise PrivacyError(
            f"{name} would hold {N_WORDS} or more words in a row of a credentialed corpus: its text"
            " stays in the data folder; leave the text out, or write below $PLANT_HOME (data/)"
        )


def check_record(record, where: str | Path) -> None:
    """`check` for a RunRecord, or a file made from it, of a credentialed data set.

    Raises:
        PrivacyError: the record overlaps a credentialed corpus, or holds sentences while its data
            set is not in the data folder to compare with.
    """
    if not record.dataset.get("credentialed"):
        return
    # the environment names a processor in many words and comes from no text
    values = [getattr(record, item.name) for item in fields(record) if item.name != "environment"]
    known = {manifest_of(folder)["name"] for folder in credentialed_folders()}
    known |= {corpus.name for corpus in credentials.IN_MEMORY}
    if record.dataset["name"] not in known and any(any(shown(text)) for text in strings(values)):
        raise PrivacyError(
            f"{Path(where).name} holds whole sentences and {record.dataset['name']} is not in the"
            " data folder to compare with: set PLANT_HOME to the folder that holds it"
        )
    check(values, Path(where))


def artefacts_root(corpus: Corpus, root: str | Path | None) -> str | Path | None:
    """Where features, teachers and checkpoints of a corpus go.

    Returns:
        `root`, or for a credentialed corpus without `root` the folder artefacts/ of the data
        folder.

    Raises:
        PrivacyError: the corpus is credentialed and `root` lies outside the data folder.
    """
    if not is_credentialed(corpus):
        return root
    if root is not None:
        credentials.check_folder(f"what is computed from {corpus.name}", root)
    return root or sources.homes()[0] / "artefacts"


def temporary_folder(corpus: Corpus | str | Path) -> tempfile.TemporaryDirectory:
    """A temporary folder for files that are made of a corpus; in the data folder where it must."""
    return folder_for(is_credentialed(corpus))


def folder_for(credentialed: bool) -> tempfile.TemporaryDirectory:
    """A temporary folder; for what is credentialed in the data folder."""
    place = None
    if credentialed:
        place = sources.homes()[0] / "temporary"
        place.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=place)


def named_in(parameters: dict[str, Any], beside: Path | None = None) -> list[Path]:
    """The credentialed folders that the parameters of a notebook, or $DATASET, name.

    Args:
        parameters: of the notebook.
        beside: the folder that it runs in, from which its relative paths start.

    Returns:
        folders of corpora, and of models and backbones made from one.
    """
    values = [*parameters.values(), os.environ.get("DATASET", "")]
    # a longer text is no name of a folder
    names = {text for text in strings(values) if text and len(text) < 200}
    folders = {_folder(name, beside) for name in names} - {None}
    return sorted(folder for folder in folders if credentials.folder_is_marked(folder))


def corpora_beside(marked: Iterable[Path]) -> list[Path]:
    """The corpora that a run of these credentialed folders is compared with.

    They are those among the folders and, where a run is credentialed at all, those of the data
    folder: a model does not say which one it was trained on.
    """
    marked = list(marked)
    here = [folder.resolve() for folder in credentialed_folders()] if marked else []
    corpora = {folder for folder in marked if (folder / "documents.parquet").is_file()}
    return sorted(corpora.union(here))


def cell_texts(output: dict) -> Iterator[str]:
    """The texts of one notebook output without its pictures."""
    data = output.get("data", {}).items()
    values = [output.get(key) for key in ("text", "ename", "evalue", "traceback", "metadata")]
    values += [value for kind, value in data if not kind.startswith("image/p")]
    for value in values:
        if isinstance(value, list):  # lines of one text
            yield "".join(map(str, value))
        elif value is not None:
            yield from strings(value)


def withhold(notebook, corpora: Iterable[Corpus | Path]) -> int:
    """Replace the outputs of a notebook that overlap the corpora by one line each.

    Returns:
        The number of replaced outputs.
    """
    outputs = [
        (cell, i, {gram for text in cell_texts(output) for gram in shown(text)})
        for cell in notebook.cells
        for i, output in enumerate(cell.get("outputs", []))
    ]
    shared = overlap({gram for *_, output_grams in outputs for gram in output_grams}, corpora)
    overlapping = [(cell, i) for cell, i, output in outputs if not output.isdisjoint(shared)]
    for cell, i in overlapping:
        cell.outputs[i] = _line(WITHHELD)
    return len(overlapping)


def withhold_pictures(notebook) -> int:
    """Leave of all displayed outputs plain text and Markdown alone.

    A picture, an HTML page or a script can show a text that no search of words finds.

    Returns:
        The number of outputs that had nothing else and are replaced by one line each.
    """
    count = 0
    for cell in notebook.cells:
        for i, output in enumerate(cell.get("outputs", [])):
            if "data" not in output:
                continue
            drawn = set(output["data"]) - READABLE
            for kind in READABLE & set(output["data"]):
                if EMBEDDED.search("".join(output["data"][kind])):
                    drawn.add(kind)
            # the text beside a picture says nothing but its size
            pictures = any(kind.startswith("image/") for kind in drawn)
            if pictures or drawn == set(output["data"]):
                cell.outputs[i] = _line(PICTURE_WITHHELD)
                count += 1
                continue
            for kind in drawn:
                del output["data"][kind]
    return count


def _line(text: str):
    """A notebook output of one line."""
    import nbformat

    return nbformat.v4.new_output("stream", name="stdout", text=text + "\n")


def scan(paths: Iterable[str | Path]) -> list[str]:
    """The files among `paths` that overlap a credentialed corpus; folders are searched.

    Of JSON and notebooks every text inside is read, of other text files the whole content.
    """
    # the text files
    files = []
    for path in map(Path, paths):
        files += sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [path for path in files if path.is_file() and path.suffix in TEXT_SUFFIXES]
    # their grams, compared with the corpora in one pass
    grams_of: dict[Path, set[Gram]] = {}
    for path in files:
        if path.suffix in {".json", ".ipynb"}:
            texts = list(strings(read_json(path)))
        else:
            texts = [path.read_text(encoding="utf-8", errors="replace")]
        grams_of[path] = {gram for text in texts for gram in shown(text)}
    shared = overlap({g for file in grams_of.values() for g in file}, credentialed_folders())
    return [str(path) for path, file in grams_of.items() if not file.isdisjoint(shared)]


def main(arguments: list[str]) -> int:
    """`python -m plantlib.data.privacy PATH ...`: print the files that hold credentialed text.

    Returns:
        The exit status: 1 if there are such files, 2 without paths or where one is missing.
    """
    if not arguments:
        print(
            "usage: python -m plantlib.data.privacy PATH ... (for example results notebooks"
            " README.md)",
            file=sys.stderr,
        )
        return 2
    if absent := [path for path in arguments if not Path(path).exists()]:
        print(f"{', '.join(absent)}: no such file or folder", file=sys.stderr)
        return 2
    corpora = [folder.name for folder in credentialed_folders()]
    print(f"credentialed corpora in the data folder: {', '.join(corpora) or 'none'}")
    overlapping = scan(arguments)
    for path in overlapping:
        print(f"{path}: holds {N_WORDS} or more words in a row of a credentialed corpus")
    return 1 if overlapping else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
