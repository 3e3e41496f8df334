"""Peers of other libraries on the tiny corpus: processes, records, table, figures and failures."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from scipy import sparse  # noqa: E402

from companion.peers import library_peers
from companion.peers import runs as peer_runs
from companion.peers import table as peer_table
from companion.peers import worker as peer_worker
from companion.peers.library_peers import PEERS, Job, Peer
from companion.report import plots, plots_claims
from companion.studies import convergence
from plantlib.training import runs
from plantlib.training.records import RunRecord

# the peers that can run here; SVM and logistic regression need no extra
INSTALLED = [
    n
    for n, p in PEERS.items()
    if p.library == "scikit-learn" or importlib.util.find_spec(p.library)
]


@pytest.fixture(scope="module")
def words(corpus):
    return library_peers.words_only(corpus)


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """(records, folder) of every peer that is installed."""
    folder = tmp_path_factory.mktemp("peers")
    return library_peers.run(words, INSTALLED, results=folder, progress=False)[0], folder


def test_the_label_space_and_documents_are_those_of_the_planted_runs(words, prepared):
    assert words.about() == prepared.about() and (words.extra_gold == prepared.extra_gold).all()
    assert words.train_counts.tolist() == prepared.train_counts.tolist()


def test_every_installed_peer_finds_words_and_is_measured(finished):
    records, _ = finished
    assert [r.system for r in records] == INSTALLED and len(INSTALLED) >= 2
    for record in records:
        assert record.metrics["p@1"] > 0.8 and record.metrics["few/rp@5"] == 1.0, (
            "labels follow from words"
        )
        assert (
            record.kind == "linear"
            and record.notebook == "peers"
            and len(record.per_document["ndcg@5"]) == 20
        )
        assert set(record.times) == {"train", "train_cpu", "predict", "predict_cpu"}
        assert 0 < record.model_size["model_mb"] < 1
        # with the count of this process the worker would report the memory of PyTorch
        assert record.model_size["data_mb"] <= record.peak_memory_mb < 400
    assert (
        dict(zip(INSTALLED, records, strict=True))["logistic"].params["options"]
        in PEERS["logistic"].grid
    )


@pytest.mark.parametrize("library", ["omikuji", "napkinxc"])
def test_the_extra_is_installed(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"the extra `peers` ({library}) is not installed")
    assert [n for n in INSTALLED if PEERS[n].library == library]


def test_the_svm_equals_the_one_of_run_peers(words, finished):
    (mine,) = [r for r in finished[0] if r.system == "SVM"]
    (other,) = [r for r in peer_runs.run_peers(words, progress=False) if r.system == "SVM"]
    assert (
        mine.metrics["ndcg@5"] == pytest.approx(other.metrics["ndcg@5"])
        and mine.per_document == other.per_document
    )


def test_finished_peers_are_read_and_others_made_again(words, finished, monkeypatch):
    records, folder = finished
    monkeypatch.setattr(
        library_peers, "train", lambda *a, **k: pytest.fail("a finished peer was repeated")
    )
    assert library_peers.run(words, INSTALLED, results=folder, progress=False)[0] == records
    trained = []
    monkeypatch.setattr(
        library_peers, "train", lambda p, name, *a: trained.append(name) or records[0]
    )
    monkeypatch.setitem(PEERS, "SVM", replace(PEERS["SVM"], grid=({"C": 2.0},)))
    library_peers.run(words, ["SVM"], results=None, progress=False)
    assert library_peers.finished(words, "SVM", 0, 1, folder) is None and trained == ["SVM"]


def test_a_record_of_another_corpus_is_not_overwritten(words, finished, tmp_path):
    """Another corpus with as many training documents gives the same id."""
    record = next(r for r in finished[0] if r.system == "SVM")
    other = replace(record, dataset=record.dataset | {"fingerprint": "ffffffff"})
    other.save(tmp_path)
    (again,), _ = library_peers.run(words, ["SVM"], results=tmp_path, progress=False)
    assert (
        again.id == f"{record.id}-{words.corpus.fingerprint()[:6]}"
        and again.metrics == record.metrics
    )
    assert RunRecord.load(tmp_path / f"{other.id}.json") == other
    assert library_peers.run(words, ["SVM"], results=tmp_path, progress=False)[0] == [again]


def test_dev_chooses_the_option_and_test_does_not(words, monkeypatch):
    dev = words.corpus.labels[words.rows["dev"]]

    def work(self, name, options, *rest):
        right = sparse.csr_matrix(np.where(dev.toarray() > 0, 1.0, 0.1).astype(np.float32))
        wrong = sparse.csr_matrix(np.where(dev.toarray() > 0, 0.1, 1.0).astype(np.float32))
        report = dict.fromkeys(
            (
                "train",
                "train_cpu",
                "predict",
                "predict_cpu",
                "peak_memory_mb",
                "model_mb",
                "data_mb",
            ),
            1.0,
        )
        gold = words.corpus.labels[words.rows["test"]].toarray()
        best = options["C"] == 10.0
        # the best option on dev is the worst on test
        scores = np.where(gold > 0, *((0.1, 1.0) if best else (1.0, 0.1))).astype(np.float32)
        return report, {"dev": right if best else wrong, "test": sparse.csr_matrix(scores)}

    monkeypatch.setattr(Job, "work", work)
    record = library_peers.train(words, "logistic", Job({}), sys.executable)
    assert record.params["options"] == {"C": 10.0} and record.metrics["p@1"] < 0.5


def test_a_worker_that_fails_names_its_last_line(words, monkeypatch):
    monkeypatch.setitem(PEERS, "PLT", Peer("napkinxc", ({"tree_type": "no such tree"},)))
    monkeypatch.setitem(PEERS, "XR-Linear", Peer("scikit-learn"))
    records, left_out = library_peers.run(words, ["XR-Linear"], progress=False)
    assert (
        records == []
        and "No module named 'pecos'" in left_out["XR-Linear"]
        and "`peers`" in left_out["XR-Linear"]
    )


def test_large_label_sets_leave_one_vs_rest_out_and_say_so(words, monkeypatch):
    monkeypatch.setattr(library_peers, "ONE_VS_REST_CELLS", 100)
    fitting, left_out = library_peers.possible(words)
    assert fitting == ["Parabel", "Bonsai", "PLT", "XR-Linear"] and set(left_out) == {
        "SVM",
        "SVM, tuned",
        "logistic",
    }
    assert "7 labels x 60 documents" in left_out["SVM"]
    with pytest.raises(ValueError, match="'FastXML' is not known; use some of SVM"):
        library_peers.possible(words, ["FastXML"])


def test_pecos_says_why_it_cannot_be_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("PLANT_PECOS", raising=False)
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\necho 'WARNING: noise' >&2\necho 'ERROR: No matching distribution' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    with pytest.raises(
        library_peers.PecosUnavailable,
        match=r"make a virtual environment.*ERROR: No matching distribution.*not run",
    ):
        library_peers.interpreter(tmp_path, str(fake))
    assert not (tmp_path / "pecos" / ".ready").exists()
    monkeypatch.setenv("PLANT_PECOS", str(tmp_path / "absent"))
    with pytest.raises(library_peers.PecosUnavailable, match="import pecos"):
        library_peers.interpreter()


@pytest.mark.network
def test_pecos_is_installed_beside_and_runs(words, tmp_path):
    records, left_out = library_peers.run(words, ["XR-Linear"], root=tmp_path, progress=False)
    assert left_out == {} and records[0].metrics["p@1"] > 0.8
    shutil.rmtree(tmp_path / "pecos")


def test_best_keeps_the_largest_of_each_row():
    largest = peer_worker.best(np.array([[3.0, 1.0, 2.0], [0.0, -1.0, -2.0]]), 2)
    assert largest.toarray().tolist() == [[3.0, 0.0, 2.0], [0.0, -1.0, 0.0]] and largest.nnz == 4


def test_peak_memory_counts_the_worker_alone():
    """getrusage of a child begins at the peak of its parent; the worker's count does not."""
    ballast = np.ones(60_000_000)  # 460 MiB here
    code = (
        "import runpy, sys; print(runpy.run_path(sys.argv[1], run_name='worker')['peak_memory']())"
    )
    command = [sys.executable, "-c", code, peer_worker.__file__]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert ballast.nbytes / 2**20 > peak > 5


def test_the_table_states_quality_costs_and_what_was_not_run(finished, tmp_path):
    records, _ = finished
    dear = next(r for r in records if r.system == "SVM")
    cheap = replace(
        dear, times={"train": 9.0}, model_size=None, id="tiny-again", notebook="05_finetune"
    )
    head = replace(
        dear,
        system="random",
        kind="planted",
        id="tiny-random",
        notebook="05_finetune",
        backbone="minilm",
        times={"teacher": 1.0, "l2r": 0.0, "fine_tune": 2.0},
        model_size={"trained_parameters": 2**20},
    )
    other = replace(head, id="elsewhere", system="lookup+score", notebook="leak_audit")
    listed = replace(
        head, id="tiny-candidates", system="lookup+linear", times={"teacher": 1.0, "fine_tune": 4.0}
    )
    path = peer_table.write([*records, cheap, head, other, listed], tmp_path / "peers.csv")
    odd = replace(dear, dataset={**dear.dataset, "name": "=1+1"})
    assert "'=1+1," in peer_table.write([odd], tmp_path / "odd.csv").read_text()
    import pandas as pd

    table = pd.read_csv(path).set_index("system")
    assert list(table.columns) == [c for c in peer_table.COLUMNS if c != "system"]
    assert table.loc["SVM", "seeds"] == 1 and table.loc["SVM", "train_s"] == round(
        dear.times["train"], 2
    ), "costs are kept"
    assert table.loc["random", "train_s"] == 3.0 and table.loc["random", "model_mb"] == 4.0
    assert table.loc["lookup+linear", "train_s"] == 5.0, "a run on candidates has no L2R step"
    assert "lookup+score" not in table.index
    assert table.loc["SVM", "p@1"] == pytest.approx(100 * dear.metrics["p@1"], abs=0.01)
    absent = [n for n in peer_table.expected() if n not in INSTALLED]
    assert (
        absent[-2:] == ["CAML head", "PLM-ICD head"]
        and (table.loc[absent, "status"] == "not run").all()
    )
    plots.save(plots_claims.quality_cost(table.reset_index()), tmp_path / "a.png")
    wide = replace(
        dear, dataset=dear.dataset | {"labels": 4108, "train": 45000}, system="XR-Linear", id="wide"
    )
    status = peer_table.frame([wide]).set_index("system")["status"]
    assert "too long" in status["SVM"] and status["Parabel"] == "not run"


def long_run(start: str, seed: int, values: list[float]) -> RunRecord:
    environment = {
        "python": "3",
        "torch": "2",
        "transformers": "5",
        "cpu": "cpu",
        "cores": 2,
        "commit": "c",
        "dirty": False,
    }
    dataset = {
        "name": "toy",
        "fingerprint": "f",
        "train": 100,
        "dev": 10,
        "test": 4,
        "labels": 7,
        "label_space": "seen",
        "synthetic": True,
    }
    history = [
        {"epoch": i + 1, "seconds": 10.0 * (i + 1), "ndcg@5": v} for i, v in enumerate(values)
    ]
    return RunRecord(
        id=f"toy-{start}-{seed}-long",
        kind="planted",
        dataset=dataset,
        system=start,
        seed=seed,
        metrics={},
        params={"train": {"batch_size": 16, "epochs": 20}, "max_tokens": 8},
        notebook="convergence",
        history=history,
        environment=environment,
    )


def test_steps_to_the_best_of_random_worked_by_hand(tmp_path):
    records = [
        long_run("random", 0, [0.1, 0.2, 0.3, 0.25]),
        long_run("random", 1, [0.1, 0.4]),
        long_run("lookup", 0, [0.3, 0.5]),
        long_run("lookup", 1, [0.2, 0.35, 0.4]),
        long_run("shuffled", 0, [0.1, 0.2]),
    ]
    ((name, runs_of_set),) = convergence.sets(records).items()
    assert name == "toy-100d-8t-long"
    frame = convergence.steps(runs_of_set)
    table = convergence.reached(frame)
    # 7 steps per epoch (100 documents, 16 per batch); random is best in epochs 3 and 2, lookup gets
    # there in epochs 1 and 3
    assert table.loc["random", ["steps", "seconds", "share"]].tolist() == [17.5, 25.0, 1.0]
    assert table.loc["lookup", ["steps", "seconds"]].tolist() == [14.0, 20.0]
    assert (
        table.loc["lookup", "share"] == pytest.approx((7 / 21 + 21 / 14) / 2)
        and table.loc["lookup", "reached"] == 2
    )
    assert table.loc["shuffled", "reached"] == 0 and np.isnan(table.loc["shuffled", "steps"])
    sentence = convergence.sentence("toy", table)
    assert (
        "`lookup` reaches it after 14 steps" in sentence
        and "`shuffled` never reaches it (best 20.0)" in sentence
    )
    plots.save(plots_claims.convergence(frame), tmp_path / "a.png")
    with pytest.raises(ValueError, match="no run of 'random'"):
        convergence.reached(frame[frame["start"] == "lookup"])


def test_long_runs_have_their_own_ids_and_are_not_repeated(prepared, tmp_path, monkeypatch):
    config = convergence.long_config(epochs=1)
    records = convergence.run(
        prepared, tmp_path, starts=("random",), seeds=(0,), config=config, progress=False
    )
    assert [r.id.endswith("random-s0-long") for r in records] == [True] and records[
        0
    ].notebook == "convergence"
    monkeypatch.setattr(
        runs, "run_start", lambda *a, **k: pytest.fail("a finished run was repeated")
    )
    assert (
        convergence.run(
            prepared, tmp_path, starts=("random",), seeds=(0,), config=config, progress=False
        )
        == records
    )
