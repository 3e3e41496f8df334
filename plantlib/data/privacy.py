"""Credentialed text stays in the data folder: what leaves it is searched for words of the corpora
that may not leave.

A corpus whose manifest says `credentialed: true` (MIMIC) may be read by its holder alone. Files
outside the data folder (run records, model cards, executed notebooks, explanations as HTML) are
compared with its texts: N_WORDS words in a row that stand in a document are an overlap, and the
write is refused; in a notebook the output is withheld. Only the words to be written are indexed,
then the texts pass by once, so memory is small and a run without long strings costs nothing. Not
searched: pictures, single words and numbers. Generated stand-ins of credentialed tables are treated
as if they were real.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from plantlib.data import sources
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json
from plantlib.utils.progress import tqdm

N_WORDS = 6
WORD = re.compile(r"\w+")
TAG = re.compile(r"<[^<>]*>")
WITHHELD = "[output withheld: it holds words of a credentialed corpus]"
Gram = tuple[str, ...]


class PrivacyError(DataError):
    """Credentialed text was about to leave the data folder. The message names the place, never the
    words.
    """


def data_homes() -> list[Path]:
    """The folders that credentialed text may stand in, resolved."""
    return [home.resolve() for home in sources.homes()]


def inside_data(path: str | Path) -> bool:
    """Whether `path` lies in a data folder ($PLANT_HOME, else data/)."""
    path = Path(path).resolve()
    return any(path == home or home in path.parents for home in data_homes())


def is_credentialed(corpus: Corpus | str | Path) -> bool:
    """Whether a corpus, or the saved one of a name or folder, is credentialed; False for a name
    that is not built.
    """
    if isinstance(corpus, Corpus):
        return bool(corpus.manifest.get("credentialed"))
    folder = _folder(corpus)
    return folder is not None and bool(read_json(folder / "manifest.json").get("credentialed"))


def _folder(name: str | Path) -> Path | None:
    return Path(name) if (Path(name) / "manifest.json").is_file() else sources.find(str(name))


def credentialed_folders() -> list[Path]:
    """Every credentialed corpus in the data folders."""
    found = (
        p.parent
        for home in sources.homes()
        if home.is_dir()
        for p in sorted(home.glob("*/manifest.json"))
    )
    return [folder for folder in found if is_credentialed(folder)]


def grams(text: str) -> Iterator[Gram]:
    """Every N_WORDS words in a row, lower case."""
    words = WORD.findall(text.lower())
    return zip(*(words[i:] for i in range(N_WORDS)), strict=False)


def shown(text: str) -> set[Gram]:
    """What a reader of `text` sees: as it stands, and as HTML with tags taken out, with and without
    space in their place.
    """
    forms = (
        {text, html.unescape(TAG.sub("", text)), html.unescape(TAG.sub(" ", text))}
        if "<" in text
        else {text}
    )
    return {gram for form in forms for gram in grams(form)}


def texts_of(corpus: Corpus | Path, progress: bool = True) -> Iterator[str]:
    """The texts of a corpus in memory, or of a saved one a thousand at a time."""
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


def overlap(wanted: set[Gram], corpora: Iterable[Corpus | Path]) -> set[Gram]:
    """Those of `wanted` that stand in a document of the corpora."""
    found: set[Gram] = set()
    if wanted:
        for corpus in corpora:
            for text in texts_of(corpus):
                if not wanted.isdisjoint(grams(text)):
                    found.update(wanted.intersection(grams(text)))
    return found


def strings(value: Any) -> Iterator[str]:
    """Every text inside dicts, lists and tuples, keys included."""
    if isinstance(value, str):
        yield value
    for item in (
        [*value, *value.values()]
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else ()
    ):
        yield from strings(item)


def check(value: Any, where: str | Path, corpora: Iterable[Corpus | Path] | None = None) -> None:
    """PrivacyError when a text inside `value`, about to be written to `where`, overlaps a
    credentialed corpus.

    corpora: those to compare with, every credentialed one in the data folder when None. A file
    inside the data folder may hold anything.
    """
    if isinstance(where, Path) and inside_data(where):
        return
    wanted = {gram for text in strings(value) for gram in shown(text)}
    if not wanted:
        return
    if overlap(wanted, credentialed_folders() if corpora is None else corpora):
        name = where.name if isinstance(where, Path) else where
        raise PrivacyError(
            f"{name} would hold {N_WORDS} or more words in a row of a credentialed corpus: its text"
            " stays in the data folder; leave the text out, or write below $PLANT_HOME (data/)"
        )


def check_record(record, where: str | Path) -> None:
    """`check` for a RunRecord and what is made of it; costs nothing for a data set that anyone may
    read.
    """
    if not record.dataset.get("credentialed"):
        return
    # the environment names a processor in many words and comes from no text
    held = [getattr(record, item.name) for item in fields(record) if item.name != "environment"]
    corpora = credentialed_folders()
    known = {read_json(folder / "manifest.json")["name"] for folder in corpora}
    if record.dataset["name"] not in known and any(any(shown(text)) for text in strings(held)):
        raise PrivacyError(
            f"{Path(where).name} holds whole sentences and {record.dataset['name']} is not in the"
            " data folder to compare with: set PLANT_HOME to where it stands"
        )
    check(held, Path(where), corpora)


def check_place(folder: str | Path) -> None:
    """PrivacyError when a credentialed corpus would be written where git would add it."""
    near = next(p for p in Path(folder).resolve().parents if p.is_dir())
    git = ["git", "-C", str(near)]
    inside = subprocess.run(
        [*git, "rev-parse", "--is-inside-work-tree"], capture_output=True, text=True
    )
    if (
        inside.stdout.strip() == "true"
        and subprocess.run([*git, "check-ignore", "-q", str(Path(folder).resolve())]).returncode
    ):
        raise PrivacyError(
            f"{Path(folder).name} lies in a git work tree and is not ignored: a credentialed corpus"
            " goes to data/, to $PLANT_HOME outside the checkout, or to a folder that .gitignore"
            " names"
        )


def check_model_folder(record, folder: str | Path) -> None:
    """PrivacyError when a model trained on credentialed text would be saved outside the data
    folder: it is derived from it.
    """
    if record is not None and record.dataset.get("credentialed") and not inside_data(folder):
        raise PrivacyError(
            f"the model was trained on {record.dataset['name']}, a credentialed corpus, and"
            f" {Path(folder).name} lies outside the data folder: save it below"
            f" {sources.homes()[0].name}/ ($PLANT_HOME)"
        )


def artefacts_root(corpus: Corpus, root: str | Path | None) -> str | Path | None:
    """Where features, teachers and checkpoints of a corpus go: `root`; of a credentialed one a
    folder of the data folder.
    """
    if not is_credentialed(corpus):
        return root
    if root is not None and not inside_data(root):
        raise PrivacyError(
            f"artefacts of {corpus.name}, a credentialed corpus, would go to {Path(root).name},"
            f" outside the data folder: name a folder below {sources.homes()[0].name}/"
            " ($PLANT_HOME), or none"
        )
    return root or sources.homes()[0] / "artefacts"


def named_in(parameters: dict[str, Any]) -> list[Path]:
    """The folders of the credentialed corpora that the parameters of a notebook name."""
    # longer ones name no folder
    names = {text for text in strings(list(parameters.values())) if text and len(text) < 200}
    return sorted({_folder(name) for name in names if is_credentialed(name)})


def cell_texts(output: dict) -> Iterator[str]:
    """The texts of one notebook output, pictures left out; several lines may come as a list."""
    data = {
        kind: value
        for kind, value in output.get("data", {}).items()
        if not kind.startswith("image/p")
    }
    for value in (
        output.get("text"),
        output.get("evalue"),
        output.get("traceback"),
        *data.values(),
    ):
        if isinstance(value, list):
            yield "".join(map(str, value))
        elif value is not None:
            yield from strings(value)


def withhold(notebook, corpora: Iterable[Corpus | Path]) -> int:
    """Replace the outputs of a notebook that overlap the corpora by one line each; how many there
    were.
    """
    outputs = [
        (cell, i, {g for text in cell_texts(output) for g in shown(text)})
        for cell in notebook.cells
        for i, output in enumerate(cell.get("outputs", []))
    ]
    found = overlap({gram for *_, own in outputs for gram in own}, corpora)
    hit = [(cell, i) for cell, i, own in outputs if not own.isdisjoint(found)]
    for cell, i in hit:
        import nbformat

        cell.outputs[i] = nbformat.v4.new_output("stream", name="stdout", text=WITHHELD + "\n")
    return len(hit)


def scan(paths: Iterable[str | Path]) -> list[str]:
    """The files among `paths` (folders are searched) that overlap a credentialed corpus; notebooks
    by outputs and cells.
    """
    files = [
        p
        for path in map(Path, paths)
        for p in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if p.is_file()
    ]
    text = {
        p: p.read_text(encoding="utf-8", errors="replace")
        for p in files
        if p.suffix
        in {
            ".json",
            ".md",
            ".ipynb",
            ".html",
            ".txt",
            ".log",
            ".csv",
            ".tsv",
            ".yaml",
            ".yml",
            ".py",
        }
    }
    own = {
        p: (
            {g for s in strings(read_json(p)) for g in shown(s)}
            if p.suffix in {".json", ".ipynb"}
            else shown(t)
        )
        for p, t in text.items()
    }
    found = overlap({gram for each in own.values() for gram in each}, credentialed_folders())
    return [str(p) for p, each in own.items() if not each.isdisjoint(found)]


def main(arguments: list[str]) -> int:
    """`python -m plantlib.data.privacy PATH ...`: names the files that hold credentialed text; exit
    status 1 if there are any.
    """
    if not arguments:
        print(
            "usage: python -m plantlib.data.privacy PATH ... (for example results notebooks"
            " README.md)",
            file=sys.stderr,
        )
        return 2
    corpora = [folder.name for folder in credentialed_folders()]
    print(f"credentialed corpora in the data folder: {', '.join(corpora) or 'none'}")
    for path in (found := scan(arguments)):
        print(f"{path}: holds {N_WORDS} or more words in a row of a credentialed corpus")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
