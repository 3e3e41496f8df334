"""Corpora at the edges: few documents, few labels, buckets without labels, unknown scripts.

`plantlib.fit` runs to the end on each, or refuses in one line before it computes anything.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import random
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from companion import reproduce
from companion.report import plots, report
from data_scripts import get_mimic3
from plantlib import Corpus, fit
from plantlib.cli.inputs import SHELL, in_shell
from plantlib.cli.main import parser
from plantlib.linear import stacking
from plantlib.training import artefacts
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import check_labels, prepare
from plantlib.utils.base import DataError
from tests.conftest import FILLER

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"heart": "pulse", "lung": "cough", "skin": "rash"}


def corpus_of(labels: list[list[str]], split: list[str] | None = None) -> Corpus:
    """One document per list of labels, with a word of each label among others."""
    rng = random.Random(1)
    texts = [
        " ".join([WORDS.get(name, name) for name in names] * 2 + rng.choices(FILLER, k=6))
        for names in labels
    ]
    n = len(labels)
    split = split or ["train"] * (n * 6 // 10) + ["dev"] * (n * 2 // 10)
    split = split + ["test"] * (n - len(split))
    return Corpus.from_lists("edge", [f"d{i}" for i in range(n)], texts, labels, split)


def trained(corpus: Corpus, backbone: str, root: Path, start: str = "lookup+linear"):
    """The model of one epoch; numpy's warnings are errors."""
    config = RunConfig(train=TrainConfig(epochs=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return fit(
            corpus,
            backbone=backbone,
            start=start,
            config=config,
            max_tokens=20,
            root=root,
            progress=False,
        )


def cycle(*lists: list[str], n: int = 40) -> list[list[str]]:
    return [lists[i % len(lists)] for i in range(n)]


@pytest.mark.parametrize(
    "labels, split",
    [
        (cycle(["heart"], ["lung"], ["skin"]), None),
        ([[f"{'abcdefghijklmnop'[i % 16]}x"] for i in range(64)], None),
        (cycle(["heart"], []), None),
        (cycle(["heart"], ["lung"]), None),
        (cycle(["heart"], ["lung"], n=4), ["train", "train", "dev"]),
        (cycle(["heart"], ["lung"], ["heart", "lung"], n=6), ["train"] * 5),
        ([["heart", "rare"], *cycle(["heart"], ["lung"], n=38), ["lung", "rare"]], None),
        (cycle(["heart"], ["lung"], n=20) + [[]] * 5, ["train"] * 15 + ["dev"] * 5),
    ],
    ids=[
        "no rare label",
        "only rare labels",
        "one label",
        "two labels",
        "four documents",
        "six without dev",
        "dev lacks a bucket",
        "test without labels",
    ],
)
def test_fit_runs_to_the_end(labels, split, backbone_folder, tmp_path):
    model = trained(corpus_of(labels, split), backbone_folder, tmp_path)
    [best] = model.predict(["pulse pulse of some"], k=1)
    assert best[0][0] in model.config.id2label.values() and 0 <= best[0][1] <= 1
    assert np.isfinite(model.record.history[0]["ndcg@5"])


@pytest.mark.parametrize(
    "labels, split, said",
    [
        (cycle(["heart"]), None, "every training document has the same labels, all 1 of them"),
        (cycle(["heart", "lung"]), None, "has the same labels, all 2 of them"),
        (
            cycle(["heart"], [], n=15) + [[]] * 5,
            ["train"] * 15 + ["dev"] * 3,
            "no dev document has",
        ),
        ([["heart"], ["lung"]], ["train"], "dev cannot be carved from 1 training documents"),
        (cycle(["heart"], ["lung"], n=6), ["train"] * 6, "'test'; it has .* split='COLUMN'"),
    ],
    ids=["one label everywhere", "all labels everywhere", "dev without", "one document", "no test"],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    labels, split, said, backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(artefacts, "features", lambda *_: pytest.fail("states were computed"))
    corpus = corpus_of(labels, split)
    with pytest.raises(DataError, match=said):
        trained(corpus, backbone_folder, tmp_path)


def test_artefacts_that_cannot_be_written_are_refused_before_any_work(
    corpus, backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("plantlib.training.prepare.tokenise", pytest.fail)
    (tmp_path / "file").write_text("mine")
    for root, message in (
        (tmp_path / "file" / "work", "file is a file, so nothing can be written below it"),
        ("/proc/work", "nothing can be written to /proc .*: name another path"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(corpus, backbone=backbone_folder, root=root, progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_documents_of_the_same_words_have_no_linear_score(backbone_folder, tmp_path):
    corpus = Corpus.from_lists(
        "same",
        [f"d{i}" for i in range(8)],
        ["pulse of", "cough of"] * 4,
        [["heart"], ["lung"]] * 4,
        ["train"] * 4 + ["dev"] * 2 + ["test"] * 2,
    )
    trained(corpus, backbone_folder, tmp_path)
    alike = Corpus.from_lists(
        "alike", corpus.ids, ["pulse of"] * 4 + corpus.texts[4:], [["a"], ["b"]] * 4, corpus.split
    )
    with pytest.raises(ValueError, match="associated with a label|same words"):
        trained(alike, backbone_folder, tmp_path)


def test_certain_scores_do_not_overflow_in_the_stack():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = np.array([[-900.0], [900.0], [-900.0], [900.0]])
        y = np.array([False, True, True, True])
        hats = stacking.hats_of(np.array([1, 1, 1, 1]), (1,))
        weights, _ = stacking.logistic(x, y, np.full(4, 1e4), hats, 0.0)
    assert np.isfinite(weights).all()


# ---- scripts without spaces, and what the tokenizer does not know


def chinese() -> Corpus:
    """Labels are told by two characters; the tiny tokenizer knows none of them."""
    rng = random.Random(0)
    signs = {"heart": "心衰", "lung": "肺炎", "skin": "皮疹"}
    labels = [rng.sample(sorted(signs), rng.choice((1, 2))) for _ in range(100)]
    texts = [
        "患者"
        + "，".join(signs[name] + rng.choice("一二三四五六七八九") for name in own)
        + "复查。"
        for own in labels
    ]
    texts = [f"{rng.choice(FILLER)} {rng.choice(FILLER)} {text}" for text in texts]
    split = ["train"] * 60 + ["dev"] * 20 + ["test"] * 20
    return Corpus.from_lists("zh", [f"d{i}" for i in range(100)], texts, labels, split)


def test_the_default_start_reads_chinese_and_says_how_much_is_unknown(backbone_folder, tmp_path):
    with pytest.warns(UserWarning, match=r"\d\d% of the tokens .* backbone='FOLDER'"):
        model = trained(chinese(), backbone_folder, tmp_path)
    with pytest.warns(UserWarning):
        lookup = trained(chinese(), backbone_folder, tmp_path, start="score")
    assert model.record.metrics["p@1"] == 1.0 >= lookup.record.metrics["p@1"]
    assert model.predict(["今天心衰。"], k=1)[0][0][0] == "heart"


def test_texts_of_unknown_tokens_alone_have_a_linear_score(backbone_folder, tmp_path):
    unknown = dataclasses.replace(chinese(), texts=[t.split()[-1] for t in chinese().texts])
    with pytest.warns(UserWarning, match="100% of the tokens"):
        with pytest.raises(DataError, match="no token .* start='linear'"):
            trained(unknown, backbone_folder, tmp_path)
        model = trained(unknown, backbone_folder, tmp_path, start="linear")
    assert model.record.metrics["p@1"] == 1.0


def test_known_texts_are_not_warned_of(prepared, backbone_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = prepare(
            prepared.corpus,
            backbone=backbone_folder,
            max_tokens=None,
            root=prepared.root,
            progress=False,
        )
    assert again.key == prepared.key


# ---- make reproduce and its notebooks


def test_reproduce_refuses_before_its_first_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setattr(reproduce, "run_notebook", lambda *_: pytest.fail("a notebook ran"))
    for name, labels in (("all", cycle(["heart"])), ("small", [["heart"], ["lung"]])):
        folder = corpus_of(labels, ["train"] * (len(labels) // 2)).save(tmp_path / name)
        assert reproduce.main(["--dataset", str(folder)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "the same labels" in lines[0] and "--split 'COLUMN'" in lines[1]


def cell(notebook: str, holds: str) -> str:
    """The source of the code cell that holds a string."""
    cells = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    [source] = [s for s in ("".join(c["source"]) for c in cells) if holds in s]
    return source


def test_notebook_02_names_the_best_of_the_metrics_that_are_defined():
    bare = pd.DataFrame({"p@1": [0.2, 0.4], "few/rp@5": [np.nan] * 2}, index=["raw", "jaccard"])
    source = cell("02_mutual_information.ipynb", "idxmax")
    *lines, last = ast.parse(source).body
    names = {"bare": bare, "n_l": np.array([3]), "n": 10, "dataset": "x", "train_documents": None}
    exec(compile(ast.Module(lines, []), "cell", "exec"), names)
    assert eval(compile(ast.Expression(last.value), "cell", "eval"), names) == {"p@1": "jaccard"}


def test_curves_of_a_dev_split_without_a_bucket_are_drawn():
    history = [{"epoch": 1, "ndcg@5": 0.5}, {"epoch": 2, "ndcg@5": 0.6}]
    record = type("Record", (), dict(kind="planted", system="lookup", seed=0, history=history))
    frame = report.curves([record])
    assert frame["few/rp@5"].isna().all() and frame["ndcg@5"].tolist() == [0.5, 0.6]
    assert plots.learning_curves(frame, "few/rp@5").get_ylabel() == "dev RP@5 few (%)"


# ---- messages name options that are there


def messages(tree: ast.AST) -> list[str]:
    """The texts of a module's calls and errors, f-strings joined, without docstrings."""
    whole = [
        "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
    ]
    skipped = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    return whole + [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in skipped
    ]


def sources(*folders: str):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def shell_options() -> set[str]:
    [commands] = [a for a in parser()._actions if hasattr(a, "choices") and a.choices]
    return {o for c in commands.choices.values() for a in c._actions for o in a.option_strings}


def test_every_option_that_a_message_names_is_there():
    known = shell_options()
    assert set(SHELL.values()) <= known
    for _, tree in sources("plantlib", "companion", "data_scripts"):
        for node in ast.walk(tree):  # the other commands declare their options as first arguments
            first = node.args[0] if isinstance(node, ast.Call) and node.args else None
            if isinstance(first, ast.Constant) and str(first.value).startswith("--"):
                known.add(first.value)
    known |= {"--from", *get_mimic3.OPTIONS, "--task", "--language", "--dataset"}
    unknown = [
        (path.name, option)
        for path, tree in sources("plantlib", "companion", "data_scripts")
        for text in messages(tree)
        if " " in text.strip() and not re.search(r"\b(pip|git) |->", text)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
        if option not in known
    ]
    assert not unknown


def test_every_parameter_that_an_error_names_is_there():
    trees = list(sources("plantlib"))
    nodes = [node for _, tree in trees for node in ast.walk(tree)]
    known = {n.arg for n in nodes if isinstance(n, ast.arg)} | {"create_graph"}  # of torch
    known |= {
        n.target.id for n in nodes if isinstance(n, ast.AnnAssign) and hasattr(n.target, "id")
    }
    unknown = [
        (path.name, name)
        for path, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        for text in messages(node)
        for name in re.findall(r"(?<![\w$./}-])([a-z_]+)=(?=['\"{\[\d]|None|True|False)", text)
        if name not in known
    ]
    assert not unknown


def test_the_shell_says_its_own_words():
    said = in_shell("max_tokens=0: give 1; start='lookup', epochs=2, k=0; leave out id=")
    assert said == "--tokens 0: give 1; --start 'lookup', --epochs 2, -k 0; leave out --id"
    assert in_shell("pass --from FOLDER") == "pass plant data's --source FOLDER"
    assert in_shell("run data_scripts/x.py --from F") == "run data_scripts/x.py --from F"
    assert in_shell("train_documents=1", reproduce.WORDS) == "--train 1"


def test_a_test_split_without_known_labels_is_said():
    corpus = Corpus.from_lists(
        "t", list("abcd"), list("wxyz"), [["i"], [], ["i"], []], ["train", "train", "dev", "test"]
    )
    with pytest.warns(UserWarning, match="no test document has a label of the training rows"):
        check_labels(corpus)
