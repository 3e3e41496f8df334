"""The get_*.py scripts on tiny files in the schema of each source, read by the real loaders."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from plantlib.data import sources
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json


def jsonl(path: Path, rows: list[dict]) -> None:
    """Write rows as .jsonl, compressed if the name ends in .xz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)


def zipped(folder: Path, path: Path) -> Path:
    """All files of `folder` as a zip, with a file that archives made on a Mac hold too."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder.parent).as_posix())
        archive.writestr("__MACOSX/._x.json", b"\0")
    return path


def no_network(monkeypatch) -> None:
    """Every download fails as it does without a network."""

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


CASES = {
    "train": [
        (
            "S01",
            "Fiebre alta.\nTos seca.",
            "High fever.\nDry cough.",
            ["r50.9", "r05"],
            ["bw03zzz"],
            [
                ["DIAGNOSTICO", "r50.9", "Fiebre", "0 6"],
                ["DIAGNOSTICO", "r05", "Tos seca", "13 16;17 21"],
                ["PROCEDIMIENTO", "bw03zzz", "alta", "7 11"],
            ],
        ),
        ("S02", "Sin códigos.", "No codes.", [], [], []),
    ],
    "dev": [("S03", "Tos.", "Cough.", ["r05"], [], [["DIAGNOSTICO", "r05", "Tos", "0 3"]])],
    "test": [("S04", "Disnea.", "Dyspnoea.", ["r06.00"], ["3e02329"], [])],
    "background": [("S05", "Nada.", "Nothing.", None, None, None)],
}


@pytest.fixture
def codiesp_lines(tmp_path) -> Path:
    folder = tmp_path / "codiesp"
    for split, cases in CASES.items():
        rows = [
            dict(zip(("id", "text", "text_en", "D", "P", "X"), case, strict=True)) for case in cases
        ]
        jsonl(
            folder / f"{split}.jsonl.xz",
            [{k: v for k, v in row.items() if v is not None} for row in rows],
        )
    (folder / "labels_D.tsv").write_text(
        'code\tmatch\tdescription\nr05\texact\tCough, "dry\nr99\texact\tOther\n'
    )
    return folder


@pytest.fixture
def codiesp_archive(tmp_path) -> Path:
    root = tmp_path / "final_dataset_v4_to_publish"
    for split, cases in CASES.items():
        tables = {kind: "" for kind in "DPX"}
        for key, spanish, english, d, p, x in cases:
            for name, text in (("text_files", spanish), ("text_files_en", english)):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                (root / split / name / f"{key}.txt").write_text(text, encoding="utf-8", newline="")
            tables["D"] += "".join(f"{key}\t{code}\n" for code in d or ())
            tables["P"] += "".join(f"{key}\t{code}\n" for code in p or ())
            tables["X"] += "".join("\t".join([key, *mark]) + "\n" for mark in x or ())
        for kind, text in tables.items() if split != "background" else ():
            (root / split / f"{split}{kind}.tsv").write_text(text)
    return root


def test_codiesp_reads_english_diagnoses(tmp_path, codiesp_lines):
    corpus = Corpus.load(sources.script("get_codiesp").build(tmp_path / "out", codiesp_lines))
    assert corpus.name == "codiesp" and corpus.ids == ["S01", "S02", "S03", "S04", "S05"]
    assert corpus.split.tolist() == ["train", "train", "dev", "test", "unlabelled"]
    assert (
        corpus.label_names == ["r05", "r06.00", "r50.9"]
        and corpus.texts[0] == "High fever.\nDry cough."
    )
    assert corpus.evidence is None and corpus.label_texts == {"r05": 'Cough, "dry'}
    assert set(corpus.manifest["sources"]) == {f"{s}.jsonl.xz" for s in CASES} | {"labels_D.tsv"}
    assert (
        corpus.manifest["licence"] == "CC BY 4.0"
        and corpus.manifest["counts"]["documents"]["unlabelled"] == 1
    )


def test_codiesp_evidence_points_into_the_spanish_text(tmp_path, codiesp_lines):
    corpus = Corpus.load(
        sources.script("get_codiesp").build(
            tmp_path / "out", codiesp_lines, task="DP", language="es"
        )
    )
    assert corpus.name == "codiesp-dp-es" and corpus.L == 5 and len(corpus.evidence) == 5
    for span in corpus.evidence.itertuples():
        assert corpus.texts[corpus.ids.index(span.id)][span.start : span.end] == span.text
    assert corpus.evidence["text"].tolist() == ["Fiebre", "Tos", "seca", "alta", "Tos"]


def test_codiesp_archive_folder_and_lines_agree(tmp_path, codiesp_lines, codiesp_archive):
    build = sources.script("get_codiesp").build
    archive = zipped(codiesp_archive, tmp_path / "codiesp.zip")
    corpora = [
        Corpus.load(build(tmp_path / f"out{i}", source, task="DP", language="es"))
        for i, source in enumerate((codiesp_lines, codiesp_archive, archive))
    ]
    assert len({c.fingerprint() for c in corpora}) == 1
    assert corpora[0].evidence.equals(corpora[2].evidence)
    assert list(corpora[2].manifest["sources"]) == ["codiesp.zip"]


def test_codiesp_categories_and_every_variant_by_name(tmp_path, codiesp_lines):
    corpora = {
        name: Corpus.load(
            sources.script("get_codiesp").build(
                tmp_path / "out" / name, codiesp_lines, **known.options
            )
        )
        for name, known in sources.KNOWN.items()
        if known.script == "get_codiesp"
    }
    assert {c.name for c in corpora.values()} == set(corpora) and len(corpora) == 8
    assert (
        corpora["codiesp-d3"].label_names == ["r05", "r06", "r50"]
        and corpora["codiesp-dp-es"].L == corpora["codiesp-dp"].L == 5
    )
    assert (
        corpora["codiesp-d3-es"].evidence["label"].unique().tolist() == ["r50", "r05"]
        and corpora["codiesp-d3"].evidence is None
    )
    assert corpora["codiesp-d3"].label_texts["r05"] == "Cough"


def test_codiesp_refuses_unknown_tasks_and_missing_files(tmp_path, codiesp_archive):
    build = sources.script("get_codiesp").build
    with pytest.raises(DataError, match="wanted task D, D3, P or DP and language en or es"):
        build(tmp_path / "out", codiesp_archive, task="X")
    shutil.rmtree(codiesp_archive / "dev")
    with pytest.raises(DataError, match="lacks dev/devD.tsv"):
        build(tmp_path / "out", codiesp_archive)
    assert not (tmp_path / "out").exists()


def law(key: str, concepts: list[str], **parts) -> dict:
    return {
        "celex_id": key,
        "uri": "u",
        "type": "Decision",
        "concepts": concepts,
        "title": "TITLE",
        "header": "HEAD",
        "recitals": "WHEREAS",
        "main_body": ["Article 1", "Article 2"],
        "attachments": "ANNEX",
        **parts,
    }


LAWS = {
    "train": [
        law("31960D0712", ["1086", "1196"]),
        law("31961R0001", ["20"], header=None, recitals=None),
    ],
    "dev": [law("31962L0002", ["20"])],
    "test": [law("31963L0003", ["9999"], main_body=[])],
}
CONCEPTS = {
    k: {"concept_id": k, "label": f"concept {k}", "alt_labels": [], "parents": []}
    for k in ("1086", "20", "5")
}


def test_eurlex_lines_archive_and_folder_agree(tmp_path):
    lines = tmp_path / "eurlex57k"
    root = tmp_path / "dataset"
    for split, laws in LAWS.items():
        jsonl(lines / f"{split}.jsonl.xz", laws)
        (root / split).mkdir(parents=True)
        for one in laws:
            (root / split / f"{one['celex_id']}.json").write_text(json.dumps(one))
    (lines / "EURLEX57K.json").write_text(json.dumps(CONCEPTS))
    (tmp_path / "eurovoc_en.json").write_text(json.dumps(CONCEPTS))
    build = sources.script("get_eurlex57k").build
    archive = zipped(root, tmp_path / "datasets.zip")
    corpora = [
        Corpus.load(build(tmp_path / f"out{i}", s)) for i, s in enumerate((lines, archive, root))
    ]
    assert len({c.fingerprint() for c in corpora}) == 1
    assert corpora[0].texts == [
        "HEAD\nWHEREAS\nArticle 1\nArticle 2",
        "\n\nArticle 1\nArticle 2",
        "HEAD\nWHEREAS\nArticle 1\nArticle 2",
        "HEAD\nWHEREAS",
    ]
    assert corpora[0].label_names == ["1086", "1196", "20", "9999"]
    assert (
        corpora[0].label_texts
        == corpora[1].label_texts
        == {"1086": "concept 1086", "20": "concept 20"}
    )
    assert set(corpora[1].manifest["sources"]) == {"datasets.zip", "eurovoc_en.json"}


def test_eurlex_names_what_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither train.jsonl.* nor train/"):
        sources.script("get_eurlex57k").build(tmp_path / "out", tmp_path / "empty")


TITLES = (
    "__label__sauce __label__cheese How much does starch affect a sauce?\n__label__food-safety Is"
    " it safe?\n__label__cheese Why does it melt?\n"
)


@pytest.fixture
def cooking(tmp_path) -> Path:
    folder = tmp_path / "stackexchange_cooking"
    folder.mkdir()
    (folder / "cooking.stackexchange.txt").write_text(TITLES)
    (folder / "cooking.stackexchange.id").write_text("11\n22\n33\n")
    return folder


def test_cooking_reads_titles_tags_and_ids(tmp_path, cooking):
    build = sources.script("get_cooking").build
    corpus = Corpus.load(build(tmp_path / "out", cooking, test_lines=1))
    assert corpus.ids == ["11", "22", "33"] and corpus.split.tolist() == ["train", "train", "test"]
    assert corpus.texts[0] == "How much does starch affect a sauce?"
    assert corpus.label_names == ["cheese", "food-safety", "sauce"]
    with tarfile.open(tmp_path / "cooking.tar.gz", "w:gz") as archive:
        for file in sorted(cooking.iterdir()):
            archive.add(file, file.name)
    again = Corpus.load(build(tmp_path / "out2", tmp_path / "cooking.tar.gz", test_lines=1))
    assert again.fingerprint() == corpus.fingerprint()
    with pytest.raises(DataError, match="has 3 lines, wanted more than the 3000"):
        build(tmp_path / "out3", cooking)


def serve(monkeypatch, data: bytes) -> None:
    """Any download yields `data`."""

    class Answer:
        headers = {"Content-Length": str(len(data))}

        def __init__(self):
            self.left = data

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read(self, size):
            block, self.left = self.left[:size], self.left[size:]
            return block

    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: Answer())


def test_a_download_is_checked(tmp_path, cooking, monkeypatch):
    module = sources.script("get_cooking")
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(cooking / "cooking.stackexchange.txt", "cooking.stackexchange.txt")
    serve(monkeypatch, (tmp_path / "c.tar.gz").read_bytes())
    with pytest.raises(DataError, match="the public file changed"):
        module.build(tmp_path / "out", test_lines=1)
    monkeypatch.setattr(module, "TEXT_SHA256", hashlib.sha256(TITLES.encode()).hexdigest())
    corpus = Corpus.load(module.build(tmp_path / "out", test_lines=1))
    assert (
        corpus.ids == ["line-0", "line-1", "line-2"]
        and "cooking.stackexchange.tar.gz" in corpus.manifest["sources"]
    )


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    common = sources.script("common")
    serve(monkeypatch, b"x" * 10)
    with pytest.raises(DataError, match="wanted 00: the file changed or is damaged; .*--from"):
        common.download("http://example.org/a.zip", tmp_path, "a.zip", expected="00")
    (tmp_path / "a.zip").unlink()
    no_network(monkeypatch)
    with pytest.raises(DataError, match="no route to host"):
        common.download("http://example.org/a.zip", tmp_path, "a.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["codiesp", "eurlex57k", "cooking"])
def test_a_failed_download_names_the_alternative(tmp_path, monkeypatch, name, capsys):
    no_network(monkeypatch)
    monkeypatch.delenv("PLANT_DATA", raising=False)
    with pytest.raises(DataError, match="could not download http.*no route to host.*--from"):
        Corpus.load(name, root=tmp_path / "home")
    assert not (tmp_path / "home" / name).exists()
    assert capsys.readouterr().err.count("\n") == 1


PACKAGES = """Package: zeta
Version: 1
Description-md5: aa
Tag: role::program, interface::commandline,
 use::editing, special::auto-inst-parts

Package: alpha-dev
Description-md5: bb
Tag: role::devel-lib

Package: alpha
Description-md5: bb
Tag: role::shared-lib

Package: untagged
Description-md5: aa

Package: untranslated
Description-md5: cc
Tag: role::program
"""
TRANSLATION = """Package: zeta
Description-md5: aa
Description-en: an editor
 It edits text,
 and more.
 .
 Second paragraph.

Package: alpha
Description-md5: bb
Description-en: a library
 Shared by two.
"""


def apt_lists(folder: Path, packages: str = PACKAGES) -> Path:
    folder.mkdir()
    stem = "mirror.example_debian_dists_bookworm"
    (folder / f"{stem}_main_binary-amd64_Packages").write_text(packages)
    (folder / f"{stem}-updates_main_binary-amd64_Packages").write_text(
        PACKAGES.replace("zeta", "newer")
    )
    (folder / f"{stem}_main_i18n_Translation-en").write_text(TRANSLATION)
    (folder / f"{stem}_InRelease").write_text(
        "Origin: Debian\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n"
    )
    return folder


def test_debtags_from_apt_lists(tmp_path):
    corpus = Corpus.load(
        sources.script("get_debtags").build(tmp_path / "out", apt_lists(tmp_path / "lists"))
    )
    assert corpus.ids == ["alpha", "zeta"] and corpus.label_names == [
        "interface::commandline",
        "role::program",
        "role::shared-lib",
        "use::editing",
    ]
    assert corpus.texts[1] == "zeta an editor. It edits text, and more.\nSecond paragraph."
    assert (
        corpus.manifest["release_date"].startswith("Sat, 11 Jul 2026")
        and corpus.manifest["packages"] == 3
    )
    assert all("mirror" not in name for name in corpus.manifest["sources"])


def test_debtags_folder_and_lists_agree(tmp_path):
    module = sources.script("get_debtags")
    lists = apt_lists(tmp_path / "lists")
    jsonl(tmp_path / "debtags/debtags.jsonl.xz", module.packages(lists))
    (tmp_path / "debtags/debtags_vocabulary.json").write_text(
        json.dumps(
            {"role::program": {"name": "Program", "description": "d"}, "x::y": {"name": "n"}}
        )
    )
    corpus = Corpus.load(module.build(tmp_path / "out", tmp_path / "debtags"))
    assert corpus.fingerprint() == Corpus.load(module.build(tmp_path / "out2", lists)).fingerprint()
    assert corpus.label_texts == {"role::program": "Program"}


def test_debtags_split_is_the_published_rule():
    module = sources.script("get_debtags")
    groups = [hashlib.sha1(str(i).encode()).hexdigest()[:12] for i in range(400)]
    for group in groups:
        digit = int(hashlib.sha1(group.encode()).hexdigest(), 16) % 10
        assert module.split_of(group) == ("train" if digit < 8 else "test")
    assert 50 < sum(module.split_of(g) == "test" for g in groups) < 110


def test_debtags_says_what_is_missing(tmp_path, monkeypatch):
    module = sources.script("get_debtags")
    with pytest.raises(DataError, match="this release carries no debtags; pass --from"):
        module.build(
            tmp_path / "out", apt_lists(tmp_path / "lists", PACKAGES.replace("Tag:", "Tog:"))
        )
    monkeypatch.setattr(module.shutil, "which", lambda program: None)
    with pytest.raises(DataError, match="no apt-get on this machine: pass --from"):
        module.build(tmp_path / "out")


def test_debtags_reports_apt_failures(tmp_path, monkeypatch):
    module = sources.script("get_debtags")
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ngrep -q pkgcache "${APT_CONFIG%/*}/apt.conf" && echo "E: no mirror" >&2\nexit'
        " 100\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with pytest.raises(
        DataError,
        match=r"apt-get update failed \(E: no mirror\): check the network, or pass --from",
    ):
        module.build(tmp_path / "out")


@pytest.mark.network
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_debtags_through_apt(tmp_path):
    corpus = Corpus.load(sources.script("get_debtags").build(tmp_path / "out"))
    assert (
        corpus.N > 10_000
        and corpus.L > 300
        and len(corpus.rows("train")) > 3 * len(corpus.rows("test"))
    )


@pytest.fixture(scope="module")
def synthetic() -> Corpus:
    return sources.script("get_synthetic_icd").make()


def test_synthetic_is_long_tailed_marked_as_synthetic_and_of_the_size_given(synthetic):
    assert {s: len(synthetic.rows(s)) for s in ("train", "dev", "test")} == {
        "train": 400,
        "dev": 100,
        "test": 150,
    }
    assert (
        synthetic.manifest["synthetic"]
        and "synthetic" in synthetic.name
        and "synthetic" in repr(synthetic)
    )
    frequency = np.asarray(synthetic.labels[synthetic.rows("train")].sum(axis=0)).ravel()
    assert (
        250 <= synthetic.L <= 300
        and ((frequency > 0) & (frequency <= 5)).sum() > 100
        and frequency.max() > 100
    )
    per_note = synthetic.labels.getnnz(axis=1)
    assert per_note.min() >= 3 and per_note.max() <= 8
    assert set(synthetic.label_texts) == set(synthetic.label_names)


def test_synthetic_evidence_spans_hold_their_text_and_cover_every_label(synthetic):
    spans = synthetic.evidence
    text = dict(zip(synthetic.ids, synthetic.texts, strict=True))
    assert all(text[s.id][s.start : s.end] == s.text for s in spans.itertuples())
    marked = set(zip(spans["id"], spans["label"], strict=True))
    rows, columns = synthetic.labels.nonzero()
    assert marked == {
        (synthetic.ids[i], synthetic.label_names[j]) for i, j in zip(rows, columns, strict=True)
    }


def test_synthetic_is_the_same_for_a_seed_and_a_package_version(synthetic):
    if synthetic.manifest["package"] == "simple-icd-10-cm==1.5.0":
        assert synthetic.fingerprint() == "7eb374b52093adaf"
    module = sources.script("get_synthetic_icd")
    small = module.make((40, 10, 10), 300, 0)
    other = module.make((40, 10, 10), 300, 1)
    assert small.texts[:40] == synthetic.texts[:40] and small.texts != other.texts


def test_synthetic_is_neither_trivial_nor_hopeless(synthetic):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    corpus = synthetic.seen_in_train()
    train, test = corpus.rows("train"), corpus.rows("test")
    tfidf = TfidfVectorizer(sublinear_tf=True)
    x = tfidf.fit_transform([corpus.texts[i] for i in train])
    model = Ridge(alpha=1.0).fit(x, corpus.labels[train].toarray())
    best = model.predict(tfidf.transform([corpus.texts[i] for i in test])).argmax(axis=1)
    precision = np.mean([corpus.labels[i, j] for i, j in zip(test, best, strict=True)])
    assert 0.5 < precision < 0.9


def test_synthetic_refuses_impossible_sizes():
    with pytest.raises(DataError, match="labels=1: wanted 2 to"):
        sources.script("get_synthetic_icd").make((4, 1, 1), labels=1)


def test_load_builds_from_plant_data_once_and_says_so(tmp_path, monkeypatch, capsys, codiesp_lines):
    monkeypatch.setenv("PLANT_DATA", str(tmp_path))
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    corpus = Corpus.load("codiesp-es")
    line = capsys.readouterr().err
    assert (
        line == "codiesp-es: not built yet, making it from $PLANT_DATA/codiesp with"
        " data_scripts/get_codiesp.py\n"
    )
    assert (
        Corpus.load("codiesp-es").fingerprint() == corpus.fingerprint()
        and capsys.readouterr().err == ""
    )
    assert read_json(tmp_path / "home/codiesp-es/manifest.json")["language"] == "es"


@pytest.mark.parametrize("where", ["script", "elsewhere"])
def test_command_line(tmp_path, codiesp_lines, where):
    script = sources.checkout() / "data_scripts/get_codiesp.py"
    environment = {
        "PYTHONPATH": str(sources.checkout()),
        "PATH": "/usr/bin:/bin",
        "PLANT_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, str(script), "--from", str(codiesp_lines), "--task", "DP"]
    good = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=script.parent if where == "script" else tmp_path,
    )
    assert good.returncode == 0 and "5 documents" in good.stdout, good.stderr
    assert (tmp_path / "home/codiesp-dp/manifest.json").is_file()
    bad = subprocess.run(
        [*command[:2], "--from", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert (
        bad.returncode == 1 and bad.stderr.startswith("error: ") and "Traceback" not in bad.stderr
    )
