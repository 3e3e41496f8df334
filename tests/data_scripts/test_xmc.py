"""Files of the extreme classification repository in each form: the same corpus, in flat memory."""

from __future__ import annotations

import gzip
import json
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
from plantlib.data.streaming import CorpusWriter
from plantlib.utils.base import DataError

TEXTS = {
    "trn": [
        "Council Regulation /SEP/ on the import of eggs",
        "the fishing of tuna, été",
        "fish  and eggs",
    ],
    "tst": ["eggs /SEP/ again", "a 2 3 document"],
}
LABELS = {"trn": [["import", "egg"], ["fish"], ["fish", "egg"]], "tst": [["egg"], ["only_test"]]}
NAMES = ["egg", "fish", "import", "only_test"]


def write(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(row + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def text_form(folder: Path) -> Path:
    for split, name in (("trn", "train"), ("tst", "test")):
        write(folder / f"{name}_raw_texts.txt", TEXTS[split])
        write(folder / f"{name}_labels.txt", [" ".join(labels) for labels in LABELS[split]])
    return folder


def numbered_form(folder: Path, header: bool = True, cell: str = "{}:1.0") -> Path:
    for split in ("trn", "tst"):
        write(folder / f"X.{split}.txt", TEXTS[split])
        rows = [
            " ".join(cell.format(NAMES.index(label)) for label in labels)
            for labels in LABELS[split]
        ]
        write(folder / f"Y.{split}.txt", [f"{len(rows)} {len(NAMES)}"] * header + rows)
    write(folder / "output-items.txt", NAMES)
    return folder


def json_form(folder: Path, ending: str = ".json.gz") -> Path:
    for split in ("trn", "tst"):
        rows = []
        for i, (text, labels) in enumerate(zip(TEXTS[split], LABELS[split], strict=True)):
            title, _, content = text.rpartition(" /SEP/ ")
            rows.append(
                json.dumps(
                    {
                        "uid": f"B{split}{i}",
                        "title": title,
                        "content": content,
                        "target_ind": [NAMES.index(label) for label in labels],
                        "target_rel": [1.0] * len(labels),
                    }
                )
            )
        write(folder / f"{split}{ending}", rows)
    write(
        folder / f"lbl{ending}",
        [json.dumps({"uid": name, "title": f"about {name}"}) for name in NAMES],
    )
    return folder


def build(out: Path, source: Path | None, dataset: str = "eurlex-4k") -> Path:
    return sources.script("get_xmc").build(out, source, dataset=dataset)


@pytest.mark.parametrize("form", [text_form, numbered_form, json_form])
def test_each_form_gives_the_same_texts_labels_and_split(tmp_path, form):
    corpus = Corpus.load(build(tmp_path / "out", form(tmp_path / "in")))
    assert corpus.texts == [
        "Council Regulation\non the import of eggs",
        "the fishing of tuna, été",
        "fish  and eggs",
        "eggs\nagain",
        "a 2 3 document",
    ]
    assert corpus.label_names == NAMES and corpus.split.tolist() == ["train"] * 3 + ["test"] * 2
    assert corpus.labels.toarray().tolist() == [
        [1, 0, 1, 0],
        [0, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
    ]
    assert (
        corpus.manifest["counts"] == corpus.counts()
        and "XMLRepository" in corpus.manifest["origin"]
    )
    assert corpus.manifest["counts"]["labels_used"] == {"train": 3, "test": 2}
    if form is json_form:
        assert corpus.ids[0] == "train-0-Btrn0" and corpus.label_texts["egg"] == "about egg"


def test_a_streamed_corpus_equals_one_saved_from_memory(tmp_path):
    streamed = Corpus.load(build(tmp_path / "out", text_form(tmp_path / "in")))
    whole = Corpus(
        "eurlex-4k",
        streamed.ids,
        streamed.texts,
        streamed.labels,
        streamed.label_names,
        streamed.split,
    )
    saved = Corpus.load(whole.save(tmp_path / "whole"))
    assert streamed.fingerprint() == whole.fingerprint() == saved.fingerprint()
    assert (streamed.labels != saved.labels).nnz == 0 and streamed.labels.dtype == np.int32


def test_archives_give_the_same_corpus_as_their_folder(tmp_path):
    folder = json_form(tmp_path / "Amazon-3M", ".json")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"Amazon-3M.raw/{path.name}")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(folder, "Amazon-3M.raw")
    corpora = [
        Corpus.load(build(tmp_path / f"out{i}", source, "amazon-3m"))
        for i, source in enumerate((folder, tmp_path / "a.zip", tmp_path / "a.tar.gz"))
    ]
    assert len({c.fingerprint() for c in corpora}) == 1 and corpora[1].name == "amazon-3m"
    assert list(corpora[1].manifest["sources"]) == ["a.zip"] and set(
        corpora[0].manifest["sources"]
    ) == {"trn.json", "tst.json", "lbl.json"}


@pytest.mark.parametrize("cell", ["{}", "{}:1.0"])
def test_two_numbers_are_labels_unless_they_count_the_documents(tmp_path, cell):
    plain = Corpus.load(
        build(tmp_path / "a", numbered_form(tmp_path / "in", header=False, cell=cell))
    )
    headed = Corpus.load(
        build(tmp_path / "b", numbered_form(tmp_path / "in", header=True, cell=cell))
    )
    assert plain.fingerprint() == headed.fingerprint() and plain.labels[0].indices.tolist() == [
        0,
        2,
    ]


def test_a_relevance_of_zero_means_no_label_and_repeated_names_get_a_number(tmp_path):
    folder = json_form(tmp_path / "in", ".json")
    row = {
        "uid": "Z",
        "title": "t",
        "content": "",
        "target_ind": [0, 1, 1],
        "target_rel": [0.0, 1.0, 1.0],
    }
    write(folder / "tst.json", [json.dumps(row)])
    write(
        folder / "lbl.json", [json.dumps({"uid": uid, "title": "x"}) for uid in ("a", "b", "a", "")]
    )
    corpus = Corpus.load(build(tmp_path / "out", folder))
    assert corpus.labels[corpus.rows("test")].indices.tolist() == [1] and corpus.texts[-1] == "t"
    assert corpus.label_names == ["a", "b", "a #2", "3"]


def test_without_files_the_message_names_the_page_and_every_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.delenv("PLANT_DATA", raising=False)
    for dataset in ("eurlex-4k", "wiki10-31k", "amazoncat-13k", "amazon-670k", "amazon-3m"):
        with pytest.raises(DataError) as error:
            Corpus.load(dataset)
        for part in (
            "XMLRepository.html",
            "train_raw_texts.txt",
            "Y.trn.txt",
            "lbl.json",
            "--from",
            f"$PLANT_DATA/{dataset}",
        ):
            assert part in str(error.value)
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/train_raw_texts.txt", ["x"])
    with pytest.raises(DataError, match=r"holds \['train_raw_texts.txt'\].*test_labels.txt"):
        build(tmp_path / "out", tmp_path / "in")
    with pytest.raises(DataError, match="wanted one of eurlex-4k"):
        build(tmp_path / "out", tmp_path / "in", "eurlex")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("test_labels.txt", ["egg"], "test_labels.txt ends after 1 documents"),
        (
            "test_labels.txt",
            ["egg", "egg", "egg"],
            "test_raw_texts.txt ends and test_labels.txt goes on",
        ),
    ],
)
def test_files_of_different_length_are_refused_and_leave_nothing(tmp_path, name, rows, message):
    folder = text_form(tmp_path / "in")
    write(folder / name, rows)
    with pytest.raises(DataError, match=message):
        build(tmp_path / "out", folder)
    assert [p.name for p in tmp_path.iterdir()] == ["in"], "no half-written folder stays"


def test_damaged_lines_are_named(tmp_path):
    folder = json_form(tmp_path / "in", ".json")
    for line, message in (
        ("{", "tst.json line 1 is not JSON"),
        ('{"uid": "1"}', "line 1 lacks .*title"),
        (
            json.dumps({"title": "", "content": "", "target_ind": [9]}),
            "labels 9 to 9, wanted 0 to 3",
        ),
    ):
        write(folder / "tst.json", [line])
        with pytest.raises(DataError, match=message):
            build(tmp_path / "out", folder)
    shutil.copy(json_form(tmp_path / "zipped") / "trn.json.gz", folder / "trn.json.gz")
    (folder / "trn.json").unlink()
    (folder / "trn.json.gz").write_bytes((folder / "trn.json.gz").read_bytes()[:60])
    with pytest.raises(DataError, match="trn.json.gz .* cannot be read"):
        build(tmp_path / "out", folder)
    broken = numbered_form(tmp_path / "numbered", header=False)
    write(broken / "Y.tst.txt", ["egg", "fish"])
    with pytest.raises(DataError, match="'egg' is not a list of label numbers"):
        build(tmp_path / "out", broken)


def test_the_writer_refuses_repeated_ids_and_unknown_splits(tmp_path):
    for again in (("a", "x", "train", []), ("b", "x", "valid", [])):
        with (
            pytest.raises(DataError, match="twice or its split"),
            CorpusWriter(tmp_path / "o", "o", ["l"], {}) as writer,
        ):
            writer.add("a", "x", "train", [0])
            writer.add(*again)
    with pytest.raises(DataError, match="1 label names repeat"):
        CorpusWriter(tmp_path / "o", "o", ["l", "l"], {})


MEASURE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from plantlib.data import sources
from benchmarks.common import peak_mib
folder, documents = Path(sys.argv[1]), int(sys.argv[2])
word = [f"w{i * 7919 % 50021}" for i in range(4096)]
base = [" ".join(word[(i * 31 + j * j) % 4096] for j in range(400)) for i in range(200)]
folder.mkdir()
for name, n in (("trn", documents), ("tst", documents // 10)):
    with open(folder / f"{name}.json", "w") as f:
        for i in range(n):
            document = {"uid": str(i), "title": f"t{i}", "content": base[i % 200]}
            labels = {"target_ind": [i % 1000, 7 * i % 1000], "target_rel": [1.0, 1.0]}
            f.write(json.dumps(document | labels) + "\\n")
with open(folder / "lbl.json", "w") as f:
    f.writelines(json.dumps({"uid": str(i), "title": f"label {i}"}) + "\\n" for i in range(1000))
sources.script("get_xmc").build(folder / "out", folder, dataset="amazon-3m")
print(peak_mib(), (folder / "trn.json").stat().st_size / 2**20)
"""


def test_memory_stays_flat_while_the_text_grows(tmp_path):
    """Seven times the text takes nearly the same memory."""
    peaks, sizes = [], []
    for i, documents in enumerate((8_000, 56_000)):
        command = [
            sys.executable,
            "-c",
            MEASURE,
            str(tmp_path / str(i)),
            str(documents),
            str(sources.checkout()),
        ]
        run = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=sources.checkout()
        )
        peak, size = map(float, run.stdout.split())
        peaks.append(peak)
        sizes.append(size)
        shutil.rmtree(tmp_path / str(i))
    assert sizes[1] > 120 and sizes[1] - sizes[0] > 100, (
        "MiB of text: holding it in memory would show"
    )
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4, (
        f"peaks {peaks} MiB for texts of {sizes} MiB"
    )
