"""debtags: about 29,000 Debian package descriptions with some 600 facet tags, read through apt.

Origin: Debian's package index (field Tag:) and its English translations, fetched by apt without
root into a private folder. Licence: package metadata of Debian main, vocabulary GPL-2. The lists
change with the release, and a little from day to day; the manifest holds the date of the release
and the counts. A text is "package short. long description". Of packages with the same long
description only the first is kept, so that no text is in both train and test. The split follows
sha1 of the description: mod 10 < 8 is train, the rest test; there is no dev split (use
Corpus.with_dev). --from takes a folder with debtags.jsonl(.xz) (and debtags_vocabulary.json), or a
folder of apt lists.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError
from plantlib.utils.io import sha256

try:
    from data_scripts import common
except ModuleNotFoundError:
    import common

LIST = r"_dists_[a-z]+_(main|universe)_{}(\.gz)?$"
HELP = "pass --from a folder with debtags.jsonl(.xz) or with apt lists"
# apt with private lists and caches, English texts, no sandbox user, none of the system's hooks
APT_SETTINGS = """
Dir::State "{0}/state"; Dir::State::lists "{0}/lists"; Dir::Cache "{0}/cache";
Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";
#clear Acquire::Languages; Acquire::Languages {{ "en"; }};
Acquire::GzipIndexes "false"; APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke; #clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


def _apt(folder: Path, *arguments: str) -> None:
    """Run apt-get with the private settings after those of the system, which name the mirrors."""
    system = Path("/etc/apt/apt.conf")
    include = f'#include "{system}"\n' if system.is_file() else ""
    (folder / "apt.conf").write_text(
        include + APT_SETTINGS.format(folder).replace("; #", ";\n#"), encoding="utf-8"
    )
    (folder / "first.conf").write_text(f'Dir::Etc::main "{folder}/apt.conf";\n', encoding="utf-8")
    run = subprocess.run(
        ["apt-get", "-q", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "APT_CONFIG": str(folder / "first.conf"), "LC_ALL": "C"},
    )
    if run.returncode:
        last = [line for line in (run.stderr or run.stdout).splitlines() if line.strip()][-3:]
        raise DataError(
            f"apt-get {arguments[0]} failed ({' | '.join(last)}): check the network, or {HELP}"
        )


def fetch_lists(folder: Path) -> Path:
    """apt-get update into `folder`, without root; returns the folder of lists (about 85 MB)."""
    if shutil.which("apt-get") is None:
        raise DataError(f"no apt-get on this machine: {HELP}")
    for part in ("lists/partial", "cache/archives/partial", "state"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _apt(folder, "update")
    return folder / "lists"


def fetch_vocabulary(folder: Path) -> dict[str, str]:
    """{tag: its name} from the package `debtags`, which is unpacked but not installed.

    Empty where this fails.
    """
    try:
        _apt(folder, "download", "debtags")
        package = next(folder.glob("debtags_*.deb"))
        subprocess.run(
            ["dpkg-deb", "-x", str(package), str(folder / "debtags")],
            check=True,
            capture_output=True,
        )
        with open(folder / "debtags/usr/share/debtags/vocabulary", encoding="utf-8") as lines:
            tags = [entry for entry in stanzas(lines) if "Tag" in entry and "Description" in entry]
        return {entry["Tag"]: entry["Description"].split("\n")[0] for entry in tags}
    except (DataError, OSError, StopIteration, subprocess.CalledProcessError):
        return {}


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Paragraphs of `Field: value` lines; continuation lines are kept after a newline."""
    fields: dict[str, str] = {}
    key = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line:
            if fields:
                yield fields
            fields = {}
            key = ""
        elif line[0] in " \t":
            if key:
                fields[key] += "\n" + line
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    if fields:
        yield fields


def _lists(folder: Path, tail: str) -> list[Path]:
    """The lists of the release itself, without -updates, -security and -backports."""
    paths = sorted(p for p in folder.iterdir() if re.search(LIST.format(tail), p.name))
    if not paths:
        raise DataError(
            f"{folder} has no apt list *{tail}: run apt-get update with Acquire::Languages=en, or"
            f" {HELP}"
        )
    return paths


def _read(paths: list[Path]) -> Iterator[dict[str, str]]:
    for path in paths:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            yield from stanzas(lines)


def split_description(description: str) -> tuple[str, str]:
    """(short, long): the first line, and the paragraphs after it, one per line.

    A line with a single dot separates paragraphs.
    """
    short, *rest = description.split("\n")
    lines = ["" if line.strip() == "." else line.strip() for line in rest]
    paragraphs = (" ".join(p.split()) for p in "\n".join(lines).split("\n\n"))
    return short.strip(), "\n".join(p for p in paragraphs if p)


def packages(lists: Path) -> list[dict[str, Any]]:
    """Packages with tags and a description, sorted by name.

    Each has package, short, text, labels and group (a hash of the long description).
    """
    english = {
        p["Description-md5"]: p["Description-en"]
        for p in _read(_lists(lists, "i18n_Translation-en"))
        if "Description-en" in p and "Description-md5" in p
    }
    rows = {}
    for p in _read(_lists(lists, "binary-[a-z0-9]+_Packages")):
        tags = sorted({t.strip() for t in p.get("Tag", "").replace("\n", " ").split(",")} - {""})
        tags = [t for t in tags if not t.startswith("special::")]
        description = english.get(p.get("Description-md5", ""))
        if tags and description:
            short, text = split_description(description)
            rows[p["Package"]] = {
                "package": p["Package"],
                "short": short,
                "text": text,
                "labels": tags,
                "group": hashlib.sha1(text.encode()).hexdigest()[:12],
            }
    return [rows[name] for name in sorted(rows)]


def one_per_group(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first package of every group."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["group"], row)
    return list(first.values())


def split_of(group: str) -> str:
    """train or test, by the group's hash."""
    return "train" if int(hashlib.sha1(group.encode()).hexdigest(), 16) % 10 < 8 else "test"


def _from_lists(lists: Path) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Any]]:
    """Packages, {list: sha256} and the release of a folder of apt lists."""
    used = _lists(lists, "i18n_Translation-en") + _lists(lists, "binary-[a-z0-9]+_Packages")
    # a name is "<mirror>_dists_bookworm_main_..."
    mirror, rest = used[0].name.split("_dists_")[:2]
    suite = rest.split("_")[0]
    release = lists / f"{mirror}_dists_{suite}_InRelease"
    date = ""
    if release.is_file():
        head = release.read_text(encoding="utf-8", errors="replace")
        dates = (line[5:].strip() for line in head.splitlines() if line.startswith("Date:"))
        date = next(dates, "")
    sums = {p.name.split("_dists_")[1]: sha256(p) for p in used}
    return packages(lists), sums, {"release": suite, "release_date": date}


def _from_folder(source: Path) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, str]]:
    """Packages, {file: sha256} and {tag: its name} of a folder with debtags.jsonl."""
    files = common.Files(source)
    name = files.find("debtags.jsonl") or files.need("debtags.jsonl.xz")
    words = files.find("debtags_vocabulary.json")
    table = json.loads(files.text(words)) if words else {}
    names = {tag: entry["name"] for tag, entry in table.items()}
    return list(files.jsonl("debtags")), files.sums(name, words), names


def long_texts(source: Path, names: dict[str, str]) -> dict[str, str]:
    """{tag: name and description}; the name alone for tags without a description.

    Descriptions come from debtags_vocabulary.json in `source`.
    """
    path = source / "debtags_vocabulary.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    described = {
        tag: f"{entry['name']}. {entry.get('description', '')}" for tag, entry in table.items()
    }
    return names | described


def build(out: Path, source: Path | None = None) -> Path:
    """Write the corpus folder `out` through apt, or from `source`; about 15 s.

    The lists that apt fetches (85 MB) are deleted afterwards. DataError where apt fails or the
    release has no tags.
    """
    # packages, the files they come from, names of tags
    more: dict[str, Any] = {}
    names: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            rows, sources, more = _from_lists(fetch_lists(Path(temporary)))
            names = fetch_vocabulary(Path(temporary))
        elif Path(source).is_dir() and any(
            p.name.endswith("_Packages") for p in Path(source).iterdir()
        ):
            rows, sources, more = _from_lists(Path(source))
        else:
            rows, sources, names = _from_folder(Path(source))
    if not rows:
        raise DataError(
            f"no package in the index has tags: this release carries no debtags; {HELP}"
        )
    # the corpus
    distinct = one_per_group(rows)
    used = {tag for row in distinct for tag in row["labels"]}
    manifest = common.manifest(
        "Debian package index through apt (field Tag:, Translation-en)",
        "Debian package metadata; vocabulary GPL-2",
        sources,
        f"{len(rows)} tagged packages, {len(distinct)} distinct descriptions",
        "split: sha1(description group) mod 10 < 8 train, else test; no dev split",
        language="en",
        packages=len(rows),
        **more,
    )
    corpus = Corpus.from_lists(
        "debtags",
        [row["package"] for row in distinct],
        [f"{row['package']} {row['short']}. {row['text']}" for row in distinct],
        [row["labels"] for row in distinct],
        [split_of(row["group"]) for row in distinct],
        manifest=manifest,
        label_texts={tag: text for tag, text in names.items() if tag in used},
    )
    longer = names if source is None else long_texts(Path(source), names)
    return common.save(corpus, out, {tag: text for tag, text in longer.items() if tag in used})


if __name__ == "__main__":
    sys.exit(common.cli(__doc__, "debtags", build))
