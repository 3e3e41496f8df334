"""Credentialed text stays in the data folder: nothing outside it may hold a canary phrase."""

from __future__ import annotations

import dataclasses
import subprocess

import nbformat
import pytest
import yaml

from companion import runner
from companion.peers import library_peers
from companion.report import plots_claims
from data_scripts import describe
from plantlib.data import privacy, sources
from plantlib.data.corpus import Corpus
from plantlib.data.privacy import PrivacyError
from plantlib.model import saving
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
        match="artefacts of secret, a credentialed corpus, would go to elsewhere, outside",
    ):
        privacy.artefacts_root(prepared.corpus, tmp_path / "elsewhere")
    assert privacy.artefacts_root(prepared.corpus, home / "own") == home / "own"
    config = RunConfig(train=TrainConfig(epochs=1))
    out = tmp_path / "results"
    record, model = runs.run_start(prepared, "lookup", config=config, results=out, progress=False)
    assert (out / f"{record.id}.json").is_file()
    model.attach_backbone(artefacts.load_backbone(prepared))
    with pytest.raises(
        PrivacyError, match="trained on secret, a credentialed corpus, and model lies outside"
    ):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.save_pretrained(home / "model")
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


def test_what_a_linear_peer_reads_stays_in_the_data_folder(home, monkeypatch):
    prepared, places = library_peers.words_only("secret"), []
    assert prepared.root == home / "artefacts"
    make = library_peers.tempfile.mkdtemp
    monkeypatch.setattr(
        library_peers.tempfile, "mkdtemp", lambda **o: places.append(o["dir"]) or make(**o)
    )
    job = library_peers.Job.data_of(prepared)
    with pytest.raises((library_peers.WorkerFailed, OSError)):
        job.work("PLT", {}, home / "no python", 0, 1)
    assert places == [home / "artefacts"] and not list(home.glob("artefacts/peer-*")), (
        "and nothing is left"
    )
    assert library_peers.Job.data_of(library_peers.words_only("open")).place is None


def test_credentialed_corpora_are_not_built_where_git_looks(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/data/\n")
    with pytest.raises(
        PrivacyError, match="mimic3-full lies in a git work tree and is not ignored"
    ):
        privacy.check_place(tmp_path / "corpora" / "mimic3-full")
    privacy.check_place(tmp_path / "data" / "mimic3-full")


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
