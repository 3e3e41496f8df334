"""`plant` on a small table, as a person would call it: output, exit statuses, one-line errors.

The backbone is the tiny one of conftest. A model is fitted once, and most tests read it.
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from companion import runner
from plantlib import PlantModel, RunRecord, fit
from plantlib.cli import commands, main
from plantlib.data.corpus import Corpus

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("--text", "note", "--labels", "codes", "--sep", ";")


def write_table(path: Path, corpus: Corpus, splits: tuple[str, ...]) -> Path:
    """A table with the columns case, note, codes and part of the documents of some splits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "note", "codes", "part"])
        for i in [i for i in range(corpus.N) if corpus.split[i] in splits]:
            codes = ";".join(corpus.label_names[j] for j in corpus.labels[i].indices)
            writer.writerow([corpus.ids[i], corpus.texts[i], codes, corpus.split[i]])
    return path


@pytest.fixture(scope="module")
def shop(corpus, backbone_folder, tmp_path_factory):
    """A folder with tables, notes and a fitted model; what `plant fit` printed is in `fit.out`."""
    folder = tmp_path_factory.mktemp("shop")
    write_table(folder / "mine.csv", corpus, ("train", "dev", "test"))
    write_table(folder / "held.csv", corpus, ("test",))
    (folder / "notes.txt").write_text("valve and pulse today\n\nrash with itch\n", encoding="utf-8")
    (folder / "note.txt").write_text("The patient had a valve\nand no pulse <b>.", encoding="utf-8")
    (folder / "notes").mkdir()
    (folder / "notes" / "b.txt").write_text("cough and smoke", encoding="utf-8")
    (folder / "notes" / "a.txt").write_text("vision lens\nblind", encoding="utf-8")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        files = ["--artefacts", str(folder / "work"), "--out", str(folder / "model")]
        options = ["--split", "part", "--id", "case", "--epochs", "3", "--backbone"]
        arguments = [str(folder / "mine.csv"), *COLUMNS, *options, backbone_folder, *files]
        status = main.main(["fit", *arguments])
    assert status == 0
    (folder / "fit.out").write_text(out.getvalue(), encoding="utf-8")
    return folder


def call(capsys, *arguments) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of one command."""
    capsys.readouterr()
    status = main.main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def numbers(printed: str) -> dict[str, float]:
    """The `name<TAB>value` lines."""
    return {
        n: float(v)
        for n, v in (line.split("\t") for line in printed.splitlines() if line.count("\t") == 1)
    }


def test_the_command_and_the_function_have_the_same_defaults():
    options = vars(main.parser().parse_args(["fit", "codiesp", "--out", "model"]))
    defaults = inspect.signature(fit).parameters
    for option in ("start", "backbone", "seed"):
        assert options[option] == defaults[option].default, option


def test_fit_saves_a_model_and_prints_only_results(shop):
    printed = (shop / "fit.out").read_text()
    # document 7 is blank and dropped
    assert printed.startswith(
        f"model: {shop / 'model'}\nmine: 59 train, 20 dev, 20 test documents; 7 labels with a"
        " training"
    )
    assert (
        "start lookup+linear, backbone tiny-bert, seed 0, epoch " in printed
        and "RunRecord" not in printed
    )
    assert numbers(printed)["p@1"] >= 0.9, "labels depend on words in this corpus"
    assert commands.is_model(shop / "model") and (shop / "model" / "README.md").is_file()
    assert not [p for p in shop.iterdir() if p.name.startswith(".")], (
        "no temporary file may be left"
    )


def test_evaluate_gives_the_numbers_that_fit_gave(shop, capsys):
    """The test documents, read as a split of the table and as a separate table."""
    reached = numbers((shop / "fit.out").read_text())
    status, marked, _ = call(
        capsys, "evaluate", shop / "model", shop / "mine.csv", *COLUMNS, "--split", "part"
    )
    assert status == 0 and numbers(marked) == pytest.approx(reached, abs=2e-4)
    status, alone, _ = call(
        capsys, "evaluate", shop / "model", shop / "held.csv", *COLUMNS, "--out", shop / "m.json"
    )
    assert numbers(alone) == numbers(marked)
    assert alone.splitlines()[0].startswith(
        "held, all: 20 documents; label space: the 7 labels of the model; 2 of "
    )
    written = json.loads((shop / "m.json").read_text())
    assert written["on"] == "all" and written["metrics"]["p@1"] == pytest.approx(
        reached["p@1"], abs=1e-4
    )


def test_tune_keeps_a_rule_that_predict_and_evaluate_use(shop, capsys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(shop / "model", model)
    table = (shop / "mine.csv", *COLUMNS, "--split", "part", "--on")
    plain = PlantModel.from_pretrained(model)
    texts = ["valve and pulse today", "rash with itch"]

    status, out, err = call(capsys, "tune", model, *table, "dev", "--rule", "budget")
    assert status == 0, err
    tuned = PlantModel.from_pretrained(model)
    budget = tuned.config.label_rule["budget"]
    assert f"accepts by the {budget} best labels of each document" in out
    _, out, _ = call(capsys, "predict", model, shop / "notes.txt", "--accepted")
    assert len(out.splitlines()) == budget * len(texts)
    assert tuned.label_sets(texts) == plain.predict(texts, k=budget)

    evaluate = ("evaluate", model, *table, "dev")
    before = numbers(call(capsys, "evaluate", shop / "model", *table, "dev")[1])["micro_f1"]
    assert call(capsys, "tune", model, *table, "dev")[0] == 0
    assert numbers(call(capsys, *evaluate)[1])["micro_f1"] == pytest.approx(before)
    for rule in ("labels", "places"):
        assert call(capsys, "tune", model, *table, "dev", "--rule", rule)[0] == 0
        assert PlantModel.from_pretrained(model).config.label_rule["kind"] == rule
        assert numbers(call(capsys, *evaluate)[1])["micro_f1"] >= 0

    status, out, err = call(capsys, "tune", model, *table, "test", "--recall", "0.8")
    assert status == 0, err
    assert "keeps a mean recall of 0.8" in out
    assert numbers(call(capsys, "evaluate", model, *table, "test")[1])["micro_f1"] > 0
    for wrong, message in (
        (("--recall", "0.8", "--by", "macro_f1"), "leave out --rule and --by"),
        (("--recall", "0.999"), "too few to promise --recall 0.999"),
        (("--recall", "1"), "--recall 1"),
    ):
        status, out, err = call(capsys, "tune", model, *table, "dev", *wrong)
        assert (status, out) == (1, "") and message in err
    both = call(capsys, "predict", model, shop / "notes.txt", "--accepted", "-k", "3")
    assert both[0] == 1 and "leave out -k" in both[2]


def test_review_lists_documents_by_their_expected_errors(shop, capsys):
    model = shop / "model"
    status, out, err = call(capsys, "review", model, shop / "notes")
    assert status == 0, err
    rows = [line.split("\t") for line in out.splitlines()]
    assert sorted(row[0] for row in rows) == ["a.txt", "b.txt"]
    errors = [float(row[1]) for row in rows]
    assert errors == sorted(errors, reverse=True) and min(errors) > 0
    assert all(cell[0] in "+-" for row in rows for cell in row[2:])
    first = call(capsys, "review", model, shop / "notes", "-n", "1")[1]
    assert first == out.splitlines(keepends=True)[0]
    assert call(capsys, "review", model, shop / "notes", "-n", "0")[0] == 1


def test_evaluate_asks_a_held_out_table_for_no_split(shop, capsys):
    """A table of test documents gives no warning about missing splits or unseen labels."""
    command = ("evaluate", shop / "model", shop / "held.csv", *COLUMNS)
    status, alone, err = call(capsys, *command)
    assert status == 0 and "never in train" not in err
    status, marked, err = call(capsys, *command, "--split", "part")
    assert status == 0 and numbers(marked) == numbers(alone) and "never in train" not in err
    assert marked.startswith("held, test: 20 documents")
    status, _, err = call(capsys, *command, "--split", "part", "--on", "dev")
    assert status == 1 and "no documents in split 'train'; it has test (20)" in err


def test_evaluate_reads_the_parts_that_fit_read(shop, capsys, monkeypatch):
    """--on gives the split of `prepare`: drawn or from a column, of a table or a saved corpus."""
    read = []
    monkeypatch.setattr(commands, "model_of", lambda options: None)
    monkeypatch.setattr(
        commands,
        "measure",
        lambda model, corpus, rows: (read.append({corpus.ids[i] for i in rows}) or {}, ""),
    )
    lines = (shop / "mine.csv").read_text().splitlines(keepends=True)
    (shop / "carve.csv").write_text("".join(line for line in lines if not line.endswith(",dev\n")))
    for options in ({"split": "part"}, {}):
        with pytest.warns(UserWarning, match="no text|never in train"):
            table = Corpus.from_csv(shop / "carve.csv", "note", "codes", id="case", **options)
        table.save(shop / "carve")
        fitted = table.labelled().with_dev()
        split = [word for name, value in options.items() for word in (f"--{name}", value)]
        for part in ("train", "dev", "test"):
            for named in ([shop / "carve.csv", *COLUMNS, "--id", "case", *split], [shop / "carve"]):
                status, _, err = call(capsys, "evaluate", "model", *named, "--on", part)
                assert (
                    status == 0
                    and read[-1] == {fitted.ids[i] for i in fitted.rows(part)}
                    and "never in train" not in err
                )
    assert len(read) == 12


def test_labels_are_matched_by_name_and_strangers_counted():
    corpus = Corpus.from_lists(
        "c", ["1", "2"], ["a", "b"], [["x", "new"], ["z"]], ["train", "test"]
    )
    labels, outside = commands.in_label_space(corpus, [0, 1], ["z", "y", "x"])
    assert labels.toarray().tolist() == [[0, 0, 1], [1, 0, 0]] and outside.tolist() == [1, 0]


def test_predict_prints_lines_that_a_shell_can_cut(shop, capsys):
    status, out, err = call(capsys, "predict", shop / "model", shop / "notes.txt", "-k", 2)
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0 and [row[0] for row in rows] == ["1", "1", "3", "3"], (
        "a blank line keeps its number and gets no labels"
    )
    assert (
        rows[0][1] == "heart"
        and rows[2][1] == "skin"
        and all(0 <= float(row[2]) <= 1 for row in rows)
    )
    assert "1 of 3 documents are blank" in err and "documents" not in out


def test_predict_writes_files_and_reads_folders_tables_and_stdin(shop, capsys, monkeypatch):
    status, out, _ = call(
        capsys, "predict", shop / "model", shop / "notes", "-k", 1, "--out", shop / "s.csv"
    )
    assert status == 0 and out == ""
    assert [
        (r["document"], r["rank"], r["label"]) for r in csv.DictReader(open(shop / "s.csv"))
    ] == [("a.txt", "1", "eye"), ("b.txt", "1", "lung")]
    call(
        capsys,
        "predict",
        shop / "model",
        shop / "held.csv",
        "--text",
        "note",
        "--id",
        "case",
        "--out",
        shop / "s.jsonl",
    )
    first = json.loads((shop / "s.jsonl").read_text().splitlines()[0])
    assert (
        first["document"] == "d080"
        and len(first["labels"]) == 7
        and set(first["labels"][0]) == {"label", "score"}
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("rash with itch"))
    assert call(capsys, "predict", shop / "model", "-", "-k", 1)[1].startswith("1\tskin\t")


def test_predict_reads_a_table_as_fit_does(shop, capsys):
    notes = ["valve and pulse", None, "rash with itch", float("nan"), " "]
    pd.DataFrame({"case": list("abcde"), "text": notes}).to_parquet(shop / "gaps.parquet")
    status, out, err = call(
        capsys, "predict", shop / "model", shop / "gaps.parquet", "-k", 1, "--id", "case"
    )
    assert status == 0 and [line.split("\t")[:2] for line in out.splitlines()] == [
        ["a", "heart"],
        ["c", "skin"],
    ]
    assert "3 of 5 documents are blank and were left out" in err
    pd.DataFrame({"n": np.array([None, "cough and smoke"], object)}).to_parquet(
        shop / "null.parquet"
    )
    assert call(capsys, "predict", shop / "model", shop / "null.parquet", "--text", "n", "-k", 1)[
        1
    ].startswith("1\tlung\t")
    (shop / "bars.csv").write_bytes("case|text\ncafé|cough, smoke\n".encode("cp1252"))
    reading = ("--delimiter", "|", "--encoding", "cp1252", "--id", "case")
    status, out, _ = call(capsys, "predict", shop / "model", shop / "bars.csv", "-k", 1, *reading)
    assert status == 0 and out.startswith("café\tlung\t")


def test_explain_prints_words_and_writes_a_page_that_fetches_nothing(shop, capsys):
    status, out, _ = call(
        capsys,
        "explain",
        shop / "model",
        "--label",
        "heart",
        shop / "note.txt",
        "-k",
        3,
        "--out",
        shop / "page.html",
    )
    title, *lines = out.splitlines()
    rows = [line.split("\t") for line in lines if "\t" in line]
    assert status == 0 and title.startswith("heart\tscore ")
    assert rows[0] == ["words", "adds", "by attention", "by teacher", "by linear score"]
    names = [name for name, *_ in rows[1:]]
    assert {"valve", "pulse"} & set(names[:3]) and names[-1] == "(logit)"
    numbers = np.array([row[1:] for row in rows[1:]], float)
    assert numbers[:-1].sum(0) == pytest.approx(numbers[-1], abs=1e-3), "the rows add up"
    model = PlantModel.from_pretrained(shop / "model")
    text = (shop / "note.txt").read_text(encoding="utf-8")
    logit = model.explain(text, "heart").logit
    assert numbers[-1, 0] == pytest.approx(logit, abs=1e-4)
    attention = call(
        capsys, "explain", shop / "model", shop / "note.txt", "-k", 500, "--kind", "attention"
    )[1].splitlines()
    start = attention.index("words\tattention") + 1
    assert sum(float(line.split("\t")[1]) for line in attention[start:]) == pytest.approx(
        1, abs=0.01
    )
    page = (shop / "page.html").read_text(encoding="utf-8")
    assert "heart" in page and "<b>." not in page and "http" not in page and "<script" not in page
    assert call(capsys, "explain", shop / "model", shop / "note.txt")[1].startswith(
        "heart\tscore "
    ), "the best label"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["predict", "nowhere", "notes.txt"],
            "nowhere is no folder of a model: make one with plant fit",
        ),
        (["predict", "model", "absent.txt"], "absent.txt"),
        (["predict", "model", "notes.txt", "-k", "0"], "-k 0: give a whole number of at least 1"),
        (["predict", "model", "notes.txt", "--out", "s.xlsx"], ".csv or .jsonl"),
        (
            ["predict", "model", "mine.csv", "--text", "nota"],
            "no column 'nota' for text; the columns are ['case', 'note', 'codes', 'part']: pass",
        ),
        (["predict", "model", "work"], "holds no document"),
        (["explain", "model", "--label", "liver", "note.txt"], "label 'liver' is not one of"),
        (["explain", "model", "note.txt", "--out", "page.pdf"], ".html"),
        (["evaluate", "model", "mine.csv", "--text", "note"], "no column 'labels'"),
        (
            ["evaluate", "model", "mine.csv", "--text", "note", "--labels", "case"],
            "no document of mine has a label",
        ),
        (["fit", "mine.csv", *COLUMNS, "--out", "model"], "--force"),
        (["fit", "mine.csv", *COLUMNS, "--out", "notes"], "is no model and holds"),
        (["fit", "mine.csv", *COLUMNS, "--out", "new", "--start", "lokup"], "lokup"),
        (["fit", "mine.csv", *COLUMNS, "--out", "new", "--epochs", "0"], "--epochs 0: give"),
        (["fit", "unheard-of", "--out", "new"], "unknown corpus 'unheard-of'"),
        (["data", "unheard-of"], "unknown corpus 'unheard-of'"),
        (["data", "mine", "--source", "notes"], "--source goes with one of codiesp"),
        (["run", "absent.yaml"], "absent.yaml"),
        (["run", "absent.yaml", "epochs"], "'epochs' is no key=value"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "",
)
def test_what_cannot_be_used_is_one_line_and_status_1(
    shop, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(shop)
    status, out, err = call(capsys, *arguments)
    errors = [line for line in err.splitlines() if line.startswith("plant: error: ")]
    assert status == 1 and out == "" and len(errors) == 1
    assert message in errors[0] and "Traceback" not in err
    assert not (shop / "new").exists()


def test_a_credentialed_model_is_refused_before_it_is_trained(
    corpus, capsys, monkeypatch, tmp_path
):
    from plantlib.training import runs

    def train(*arguments, **options):
        raise RuntimeError("it trains")

    monkeypatch.setattr(runs, "fit", train)
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    for name in ("open", "secret"):
        manifest = {"credentialed": name == "secret"}
        copy = dataclasses.replace(corpus, name=name, manifest=manifest)
        copy.save(tmp_path / "home" / name)
    status, _, err = call(capsys, "fit", "secret", "--out", tmp_path / "model")
    assert status == 1 and "it trains" not in err
    assert "secret is credentialed and model lies outside the data folder: write it below" in err
    for name, out in (("secret", tmp_path / "home" / "model"), ("open", tmp_path / "model")):
        assert "it trains" in call(capsys, "fit", name, "--out", out)[2]


def test_debug_shows_where_an_error_came_from(shop, capsys):
    status, _, err = call(capsys, "predict", "nowhere", shop / "notes.txt", "--debug")
    assert (
        status == 1
        and "Traceback" in err
        and err.splitlines()[-1].startswith("plant: error: nowhere")
    )


def test_a_fault_of_the_program_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr(commands, "data", lambda options: {}["lost"])
    status, _, err = call(capsys, "data", "--list")
    assert status == 1 and err == "plant: error: KeyError: 'lost' (run again with --debug)\n"


def test_a_closed_reader_and_an_interrupt_are_no_errors(capsys, monkeypatch):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "data", stop)
    status, _, err = call(capsys, "data", "--list")
    assert status == 130 and "resumes" in err
    done = subprocess.run(
        f"{sys.executable} -m plantlib.cli.main data --list | head -0",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stderr == "" and done.returncode == 0


@pytest.mark.parametrize(
    "arguments", [[], ["fit", "mine.csv"], ["predict"], ["plough"], ["data", "--lst"]]
)
def test_wrong_usage_is_status_2(capsys, arguments):
    status, out, err = call(capsys, *arguments)
    assert status == 2 and out == "" and "usage: plant" in err


@pytest.mark.parametrize(
    "name", ["fit", "predict", "evaluate", "tune", "review", "explain", "export", "data", "run"]
)
def test_every_command_teaches_by_example(capsys, name):
    status, out, _ = call(capsys, name, "--help")
    assert status == 0 and f"  plant {name} " in out.split("example:")[1] and "--debug" in out
    assert name in call(capsys, "--help")[1]


def test_examples_name_labels_as_the_corpus_spells_them(capsys):
    """Labels of codiesp are in lower case, and a label is looked up as it is spelt."""
    assert "--label i50.9 " in call(capsys, "explain", "--help")[1]


def test_help_names_the_starts_there_are():
    from plantlib.planting.starts import parts_of
    from plantlib.training.runs import STARTS

    named = set(main.STARTS.split(", "))
    assert set(STARTS) <= named and all(map(parts_of, named))


def test_help_and_usage_errors_load_no_framework():
    code = (
        "import sys\nfrom plantlib.cli.main import main\n"
        "assert main(['--help']) == 0 and main(['fit', '--help']) == 0 and main(['fit']) == 2\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pandas', 'numpy')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )


def test_the_installed_command_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"plant": "plantlib.cli.main:main"}


def test_a_real_process_keeps_results_and_progress_apart(shop):
    command = [
        sys.executable,
        "-m",
        "plantlib.cli.main",
        "predict",
        "model",
        "notes.txt",
        "-k",
        "1",
    ]
    done = subprocess.run(
        command,
        cwd=shop,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    rows = [line.split("\t")[:2] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and rows == [["1", "heart"], ["3", "skin"]]
    assert "documents: 100%" in done.stderr and "Traceback" not in done.stderr


def test_data_lists_builds_and_describes(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.delenv("PLANT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(capsys, "data", "--list")
    states = {name: state for name, *state in (line.split("\t") for line in out.splitlines())}
    assert status == 0 and states["codiesp"] == ["open", "not built, from its origin"]
    assert states["mimic3-full"][0] == "credentialed" and "PhysioNet" in states["mimic3-full"][1]
    assert states["amazon-3m"][0] == "by browser" and "browser" in states["amazon-3m"][1]
    assert {state[0] for state in states.values()} == {"open", "credentialed", "by browser"}
    status, out, err = call(capsys, "data", "synthetic-icd")
    assert (
        status == 0
        and out.startswith("Corpus(synthetic-icd: 650 documents")
        and "not built yet" in err
    )
    assert str(tmp_path / "synthetic-icd") in call(capsys, "data", "--list")[1]


def test_memory_is_the_memory_estimator(capsys):
    status, out, _ = call(capsys, "memory", "smollm2", "--labels", "100", "--tokens", "64")
    assert status == 0 and "weights" in out
    assert call(capsys, "memory", "--help")[0] == 0 and call(capsys, "memory", "smollm2")[0] == 2


@pytest.fixture
def experiment(tmp_path):
    """A checkout with one grid notebook and its YAML; the notebook writes one record per seed."""
    import nbformat

    environment = {
        "python": "3",
        "torch": "2",
        "transformers": "5",
        "cpu": "c",
        "cores": 1,
        "commit": "c",
        "dirty": False,
    }
    data = {"name": "toy", "fingerprint": "0", "label_space": "s", "synthetic": True}
    data |= dict.fromkeys(("train", "dev", "test", "labels"), 1)
    RunRecord("a", "planted", data, "random", 0, {}, environment=environment).save(
        tmp_path / "template"
    )
    parameters = "results = ''\nseeds = [0]\nepochs = 4"
    body = """\
import json, pathlib
raw = json.loads(pathlib.Path('../template/a.json').read_text())
folder = pathlib.Path(results)
folder.mkdir(parents=True, exist_ok=True)
for seed in seeds:
    (folder / f's{seed}.json').write_text(json.dumps(raw | {'id': f's{seed}'}))"""
    cells = [nbformat.v4.new_code_cell(text) for text in (parameters, body)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel),
        tmp_path / "notebooks" / "grid.ipynb",
    )
    (tmp_path / "runs").mkdir()
    values = "{seeds: [0], results: results/runs}"
    (tmp_path / "runs" / "g.yaml").write_text(
        f"notebook: notebooks/grid.ipynb\nparameters: {values}\n"
    )
    return tmp_path


def test_run_changes_parameters_without_touching_committed_records(experiment, capsys, monkeypatch):
    monkeypatch.chdir(experiment)
    status, out, _ = call(capsys, "run", "runs/g.yaml", "seeds=[1, 2]", "epochs=1")
    folder = experiment / "results" / "local" / "g+seeds-1-2+epochs-1" / "runs"
    assert (
        status == 0
        and out.strip() == str(folder)
        and sorted(p.stem for p in folder.iterdir()) == ["s1", "s2"]
    )
    assert not (experiment / "results" / "runs").exists()
    for wrong, message in (("seeds=1", "write seeds=[1]"), ("epoch=1", "has no parameter epoch")):
        status, out, err = call(capsys, "run", "runs/g.yaml", wrong)
        assert status == 1 and out == "" and message in err


def test_a_changed_id_is_a_file_name_of_bounded_length():
    named, merged = runner._changed("r", {"a": 1, "b": [0]}, {"b": ["x y/z"], "c": "p" * 200})
    assert (
        len(named) <= 100
        and named.startswith("r+b-x-y-z+c-ppp")
        and merged == {"a": 1, "b": ["x y/z"], "c": "p" * 200}
    )
    assert named != runner._changed("r", {}, {"b": ["x y/z"], "c": "p" * 201})[0]
