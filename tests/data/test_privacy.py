"""Credentialed text stays in the data folder: nothing outside it may hold a canary phrase."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import weakref

import nbformat
import pandas as pd
import pytest
import yaml

from companion import runner
from companion.peers import library_peers
from companion.report import plots, plots_claims
from data_scripts import describe
from plantlib.data import credentials, privacy, sources
from plantlib.data.corpus import Corpus
from plantlib.data.credentials import PrivacyError
from plantlib.data.streaming import CorpusWriter
from plantlib.model import saving
from plantlib.model.explanation import save_page
from plantlib.model.plant_model import PlantModel
from plantlib.training import artefacts
from plantlib.training.options import RunConfig
from plantlib.training.records import RunRecord
from plantlib.utils.io import read_json

CANARY = "the violet heron counted seven brass kettles by moonlight"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A data folder with a credentialed corpus, the canary in its first text, and an open one."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    texts = [f"{'cough' if i % 2 else 'rash'} seen on day {i}" for i in range(30)]
    texts[0] = f"cough and fever today {CANARY} no more"
    labels = [["cough"] if "cough" in text else ["rash"] for text in texts]
    split = ["train"] * 20 + ["dev"] * 5 + ["test"] * 5
    ids = [f"n{i}" for i in range(30)]
    for name, manifest in (("secret", {"credentialed": True}), ("open", {})):
        Corpus.from_lists(name, ids, texts, labels, split, manifest=manifest).save(
            tmp_path / "home" / name
        )
    return tmp_path / "home"


def test_overlap_is_words_in_a_row_whatever_the_form(home):
    assert privacy.credentialed_folders() == [home / "secret"]
    cells = "".join(f"<td>{word}</td>" for word in CANARY.split())
    for text in (
        CANARY.upper(),
        "the violet, heron\ncounted: seven brass",
        cells,
        "<b>the vi</b>olet <i>heron</i> counted seven brass",
    ):
        with pytest.raises(PrivacyError, match="card.md would hold 6 or more words") as refused:
            privacy.check({"a": [("x", text)]}, home.parent / "card.md")
        assert "heron" not in str(refused.value)
        privacy.check(text, home / "inside.md")
    privacy.check(
        "the violet heron counted seven tin kettles by moonlight", home.parent / "card.md"
    )
    privacy.check(
        "labels with a training document, the violet heron counted seven", home.parent / "card.md"
    )


def test_the_canary_reaches_no_record_card_model_or_artefact(home, backbone_folder, tmp_path):
    from plantlib.training import runs
    from plantlib.training.options import TrainConfig
    from plantlib.training.prepare import prepare

    prepared = prepare("secret", backbone=backbone_folder, max_tokens=None, progress=False)
    assert prepared.root == home / "artefacts" and prepared.about()["credentialed"] is True
    with pytest.raises(
        PrivacyError,
        match="what is computed from secret is credentialed and elsewhere lies outside the data",
    ):
        privacy.artefacts_root(prepared.corpus, tmp_path / "elsewhere")
    assert privacy.artefacts_root(prepared.corpus, home / "own") == home / "own"
    config = RunConfig(train=TrainConfig(epochs=1))
    out = tmp_path / "results"
    record, model = runs.run_start(prepared, "lookup", config=config, results=out, progress=False)
    assert (out / f"{record.id}.json").is_file()
    model.attach_backbone(artefacts.load_backbone(prepared))
    with pytest.raises(
        PrivacyError, match="corpus of this model is credentialed and model lies outside"
    ):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.save_pretrained(home / "model")
    again = PlantModel.from_pretrained(home / "model")
    with pytest.raises(PrivacyError, match="it goes to no hub"):
        again.save_pretrained(home / "pushed", push_to_hub=True)
    assert not (home / "pushed").exists()
    with pytest.raises(PrivacyError, match="model is credentialed and copy lies outside"):
        again.save_pretrained(tmp_path / "copy")
    # without PLANT_HOME nothing is found to compare with, and the mark alone decides
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PLANT_HOME")
        patch.setattr(sources, "checkout", lambda: tmp_path / "checkout")
        for page in (
            again.explain(CANARY, "cough"),
            again.explain(CANARY, ["cough", "rash"]),
            again.explain_document(CANARY, 1),
        ):
            with pytest.raises(PrivacyError, match="page is credentialed and page.html lies"):
                page.save_html(tmp_path / "page.html")
        with pytest.raises(PrivacyError):
            again.save_pretrained(tmp_path / "copy")
        with pytest.raises(PrivacyError):
            Corpus.load(home / "secret").save(tmp_path / "copy")
    assert not (tmp_path / "page.html").exists() and not (tmp_path / "copy").exists()
    again.explain(CANARY, "cough", html=home / "page.html")
    saving.write_card(record, tmp_path / "card")
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and home not in p.parents]
    assert {p.name for p in outside} >= {f"{record.id}.json", "README.md", "run.json"}
    assert (
        not any(b"heron" in p.read_bytes() for p in outside)
        and privacy.scan([out, tmp_path / "card"]) == []
    )
    with_canary = dataclasses.replace(record, params={**record.params, "example": CANARY})
    named = dataclasses.replace(record, system=CANARY)
    for write in (
        lambda: with_canary.save(out),
        lambda: saving.write_card(named, tmp_path / "card"),
    ):
        with pytest.raises(PrivacyError, match="credentialed"):
            write()
    assert "heron" not in (tmp_path / "card" / "README.md").read_text()


def test_a_record_that_cannot_be_compared_is_refused(home, monkeypatch, tmp_path):
    record = RunRecord.__new__(RunRecord)
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "empty"))
    # other tests read a corpus of this name in this process
    monkeypatch.setattr(credentials, "IN_MEMORY", weakref.WeakSet())
    for item in dataclasses.fields(RunRecord):
        object.__setattr__(
            record,
            item.name,
            {"credentialed": True, "name": "secret"} if item.name == "dataset" else "x",
        )
    privacy.check_record(record, tmp_path / "a.json")
    object.__setattr__(record, "system", CANARY)
    with pytest.raises(
        PrivacyError, match="secret is not in the data folder to compare with: set PLANT_HOME"
    ):
        privacy.check_record(record, tmp_path / "a.json")
    monkeypatch.setenv("PLANT_HOME", str(home))
    object.__setattr__(record, "dataset", {"credentialed": True, "name": "built elsewhere"})
    with pytest.raises(PrivacyError, match="built elsewhere is not in the data folder"):
        privacy.check_record(record, tmp_path / "a.json")
    object.__setattr__(record, "dataset", {"name": "open"})
    privacy.check_record(record, tmp_path / "a.json")


def notebook(folder, *sources_of_cells: str):
    notebook_node = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    )
    notebook_node.cells = [
        nbformat.v4.new_code_cell('dataset = "open"', metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(source) for source in sources_of_cells),
    ]
    path = folder / "show.ipynb"
    nbformat.write(notebook_node, path)
    return path


def test_executed_notebooks_leave_without_the_canary(home, tmp_path, capsys):
    path = notebook(
        tmp_path,
        "from plantlib import Corpus\nfrom IPython.display import HTML",
        "text = Corpus.load(dataset).texts[0]\nprint('numbers', 1 + 1)",
        "HTML(''.join(f'<b>{w}</b> ' for w in text.split()))",
        "text",
        "raise ValueError(text)",
    )
    output = tmp_path / "executed" / "show.ipynb"
    with pytest.raises(RuntimeError, match="ValueError") as failed:
        runner.run_notebook(path, {"dataset": "secret"}, output, progress=False)
    assert (
        "heron" not in str(failed.value)
        and failed.value.__cause__ is None
        and privacy.WITHHELD in str(failed.value)
    )
    stored = output.read_text()
    assert "heron" not in stored and stored.count(privacy.WITHHELD) == 3 and "numbers 2" in stored
    stored_notebook = nbformat.read(path, 4)
    stored_notebook.metadata["widgets"] = {"state": {"value": CANARY}}
    nbformat.write(stored_notebook, path)
    with pytest.raises(RuntimeError):
        runner.run_notebook(path, {"dataset": "secret"}, output, progress=False)
    assert "heron" not in output.read_text(), "what a text box held"
    assert (
        "outputs withheld" in capsys.readouterr().err
        and "heron" in (home / "executed" / "show.ipynb").read_text()
    )
    with pytest.raises(RuntimeError):
        runner.run_notebook(path, {"dataset": "open"}, output, progress=False)
    assert "heron" in output.read_text() and privacy.scan([tmp_path / "executed"]) == [str(output)]
    assert (
        privacy.main([str(tmp_path / "executed")]) == 1
        and "show.ipynb: holds 6" in capsys.readouterr().out
    )


DRAWN = """
from IPython.display import HTML, SVG, Image, Markdown, display
display(HTML("<p>small</p>"))
display(SVG("<svg xmlns='http://www.w3.org/2000/svg'><text>violet heron</text></svg>"))
display({"text/html": "<img src='data:image/png;base64,AA'>", "text/plain": "a table"}, raw=True)
display({"image/png": "AAAA", "text/plain": "<Figure size 640x480>"}, raw=True)
display(Markdown("![words](data:image/png;base64,AA)"))
display(Markdown("**plain** words"))
display({"application/javascript": "draw()"}, raw=True)
"""


@pytest.mark.parametrize("how", ["parameter", "path beside the notebook", "model", "DATASET"])
def test_no_picture_of_a_credentialed_run_leaves(how, home, tmp_path, monkeypatch, capsys):
    path = notebook(tmp_path, DRAWN)
    (home / "model").mkdir()
    (home / "model" / "config.json").write_text('{"model_type": "plant", "credentialed": true}')
    dataset = {
        "parameter": "secret",
        "path beside the notebook": "home/secret",
        "model": str(home / "model"),
        "DATASET": "open",
    }[how]
    if how == "DATASET":
        monkeypatch.setenv("DATASET", "secret")
    output = tmp_path / "executed" / "show.ipynb"
    runner.run_notebook(path, {"dataset": dataset}, output, progress=False)
    shown = [o for c in nbformat.read(output, 4).cells for o in c.get("outputs", [])]
    kinds = {kind for o in shown for kind in o.get("data", {})}
    assert kinds == {"text/plain", "text/markdown"}
    lines = [o["text"].strip() for o in shown if o.output_type == "stream"]
    assert lines == [privacy.PICTURE_WITHHELD] * 3
    assert "a table" in output.read_text()
    assert "**plain** words" in output.read_text()
    assert "3 pictures" in capsys.readouterr().err


def test_pictures_of_an_open_run_stay(home, tmp_path):
    output = tmp_path / "executed" / "show.ipynb"
    runner.run_notebook(notebook(tmp_path, DRAWN), {}, output, progress=False)
    shown = [o for c in nbformat.read(output, 4).cells for o in c.get("outputs", [])]
    assert {"image/png", "image/svg+xml", "text/html"} <= {k for o in shown for k in o["data"]}


def test_a_corpus_read_from_anywhere_is_compared_while_it_lives(home, tmp_path, monkeypatch):
    """Also where the data folder is another one, as without PLANT_HOME."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "empty"))
    page = tmp_path / "page.html"
    gc.collect()
    save_page(page, "before", "the quick brown fox jumps over the lazy dog")
    part = Corpus.load(home / "secret").subset(train=15)
    with pytest.raises(PrivacyError, match="page.html would hold"):
        save_page(page, "a page", f"<p>{CANARY}</p>")
    assert part.N < 30, "the subset alone is alive"
    save_page(page, "after", "none of the words that it holds are there")


def test_a_figure_of_a_documents_words_is_compared(home, tmp_path):
    def strip():
        return plots.attention_strip(CANARY.split(), [0.1] * len(CANARY.split()), "a title")

    with pytest.raises(PrivacyError, match="strip.png would hold"):
        plots.save(strip(), tmp_path / "strip.png")
    assert not (tmp_path / "strip.png").exists()
    assert plots.save(strip(), home / "strip.png").is_file()
    words = plots.attention_strip("no such words in any of them".split(), [0.1] * 7)
    assert plots.save(words, tmp_path / "strip.png").is_file()


def test_colours_of_a_traceback_hide_no_words():
    words = "\x1b[31m" + "\x1b[39m \x1b[32m".join(CANARY.split()) + "\x1b[0m"
    assert privacy.shown(words) == privacy.shown(CANARY)


def test_what_a_linear_peer_reads_stays_in_the_data_folder(home, monkeypatch):
    prepared, places = library_peers.words_only("secret"), []
    assert prepared.root == home / "artefacts"
    make = library_peers.temporary_folder
    monkeypatch.setattr(
        library_peers, "temporary_folder", lambda place: places.append(place) or make(place)
    )
    job = library_peers.Job.data_of(prepared)
    with pytest.raises((library_peers.WorkerFailed, OSError)):
        job.work("PLT", {}, home / "no python", 0, 1)
    assert places == [home / "artefacts"]
    left = [path for path in (home / "artefacts").rglob("*") if path.suffix in (".npz", ".txt")]
    assert left == [], "and nothing is left"
    assert library_peers.Job.data_of(library_peers.words_only("open")).place is None


def test_credentialed_corpora_are_not_built_where_git_looks(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/data/\n")
    with pytest.raises(
        PrivacyError, match="mimic3-full lies in a git work tree and is not ignored"
    ):
        credentials.check_place(tmp_path / "corpora" / "mimic3-full")
    credentials.check_place(tmp_path / "data" / "mimic3-full")


def test_a_marked_corpus_is_written_in_the_data_folder_alone(home, tmp_path):
    corpus = Corpus.load("secret")
    for part in (corpus, corpus.subset(train=5), corpus.labelled(), corpus.seen_in_train()):
        with pytest.raises(PrivacyError, match="secret is credentialed and elsewhere lies outside"):
            part.save(tmp_path / "elsewhere")
    (home / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(PrivacyError, match="secret is credentialed"):
        corpus.save(home / "link" / "elsewhere")
    with pytest.raises(PrivacyError, match="streamed is credentialed"):
        CorpusWriter(tmp_path / "elsewhere", "streamed", ["a"], {"credentialed": True})
    assert not (tmp_path / "elsewhere").exists()
    corpus.subset(train=5).save(home / "part")
    assert privacy.is_credentialed("part") and not privacy.is_credentialed("open")


def test_a_table_is_marked_by_hand(home, tmp_path):
    frame = pd.DataFrame({"text": ["cough at night", "itch and rash"], "labels": ["a", "b"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for read in (
        lambda **mark: Corpus.from_csv(tmp_path / "t.csv", **mark),
        lambda **mark: Corpus.from_file(tmp_path / "t.parquet", **mark),
        lambda **mark: Corpus.from_pandas(frame, "text", "labels", **mark),
    ):
        with pytest.raises(PrivacyError, match="is credentialed"):
            read(credentialed=True).save(tmp_path / "saved")
        assert not privacy.is_credentialed(read())
    assert not (tmp_path / "saved").exists()


def test_the_data_folder_is_ignored():
    assert "/data/" in (sources.checkout() / ".gitignore").read_text().splitlines()


def test_runs_on_credentialed_data_fail_early_and_say_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.delenv("PLANT_DATA", raising=False)
    rows = sorted((sources.checkout() / "runs").glob("*-mimic*.yaml"))
    names = {yaml.safe_load(path.read_text())["parameters"]["dataset"] for path in rows}
    assert names == {name for name in sources.KNOWN if name.startswith("mimic")} - {
        "mimic3-full-exact"
    }
    monkeypatch.setattr(
        runner, "run_notebook", lambda *a, **k: pytest.fail("a notebook was started")
    )
    assert runner.main([str(path) for path in rows]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == len(rows) and all(
        "is not built and needs your own credentials" in line for line in lines
    )


def test_counts_of_a_credentialed_corpus_are_not_written_among_the_results(home, tmp_path):
    out = tmp_path / "corpora.json"
    assert describe.main(["open", "--out", str(out)]) == 0
    about = read_json(out)["open"]
    assert about["labels"] == 2 and about["places"] == [1, 2] and about["counts"] == [11, 9]
    assert about["labels_by_training_documents"] == {"zero": 0, "few": 0, "medium": 2, "head": 0}
    with pytest.raises(PrivacyError, match="secret is under a data-use agreement"):
        describe.main(["open", "secret", "--out", str(out)])
    assert list(read_json(out)) == ["open"]
    assert (
        plots_claims.long_tails(read_json(out)).get_legend().get_texts()[0].get_text()
        == "open: 2 labels"
    )
    with pytest.raises(ValueError, match="describe open"):
        plots_claims.long_tails({"open": about | {"counts": []}})
