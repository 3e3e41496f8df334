"""Peers of other libraries on the same documents, split and label space.

The linear peers of docs/method.md, "Controls and peers": one-vs-rest models of scikit-learn,
Parabel and Bonsai of omikuji, PLT of napkinXC, XR-Linear of PECOS. All read the tf-idf of whole
documents, as `peers.runs.run_peers` does; vocabulary and idf come from training rows. Dev chooses
the costs of logistic regression and of the tuned SVM; the plain SVM has C = 1, the others have the
defaults of their library. Test is read once. Each peer runs in a process of `worker.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from plantlib.data import privacy
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import Ragged, tfidf, words
from plantlib.metrics.documents import Scores, StreamingEvaluator, evaluate
from plantlib.training import artefacts
from plantlib.training.evaluation import judge
from plantlib.training.inputs import Inputs
from plantlib.training.records import RunRecord, record_path, run_name
from plantlib.utils.io import fingerprint_of, locked, read_json, temporary_folder, write_json
from plantlib.utils.progress import tqdm

PINS = ("numpy==1.26.4", "scipy==1.13.1", "scikit-learn==1.5.2")
LIBPECOS = "libpecos==1.2.8"
CHECK = "from pecos.xmc.xlinear.model import XLinearModel"


class PecosUnavailable(RuntimeError):
    """PECOS cannot be installed or imported here; the message says why."""


def interpreter(root: str | Path | None = None, base: str = sys.executable) -> Path:
    """A Python that can import pecos.

    $PLANT_PECOS names one; without it an environment is made under `root`/pecos, in about a minute.

    Args:
        root: folder of intermediate artefacts; artefacts/ of the checkout when None.
        base: the Python that makes the environment.

    Raises:
        PecosUnavailable: the environment cannot be made; the message holds that of the installer.
    """
    named = os.environ.get("PLANT_PECOS")
    if named:
        _check(Path(named))
        return Path(named)
    folder = artefacts.root_of(root) / "pecos"
    with locked(folder / "bin"):
        if not (folder / ".ready").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, base)
    return folder / "bin" / "python"


def _install(folder: Path, base: str) -> None:
    """Make the environment in `folder`; `.ready` says that it is whole."""
    python = folder / "bin" / "python"
    _call([base, "-m", "venv", str(folder)], "make a virtual environment")
    options = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    pip = [str(python), "-m", "pip", "install", *options]
    _call([*pip, *PINS], f"install {', '.join(PINS)}")
    _call([*pip, "--no-deps", LIBPECOS], f"install {LIBPECOS}")
    _check(python)
    (folder / ".ready").touch()


def _check(python: Path) -> None:
    _call([str(python), "-c", CHECK], "import pecos")


def _call(command: list[str], what: str) -> None:
    """Run a command; PecosUnavailable with its last lines of error where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PecosUnavailable(
            f"could not {what}: {error.strerror} ({Path(command[0]).name}); set PLANT_PECOS"
        ) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if not line.startswith("WARNING")]
        reason = " / ".join(errors[-2:])[-300:] or f"exit status {done.returncode}"
        raise PecosUnavailable(
            f"could not {what} for Python {sys.version_info[0]}.{sys.version_info[1]}: {reason}."
            f" XR-Linear is not run; {LIBPECOS} has wheels up to Python 3.12: set PLANT_PECOS to"
            " the python of an environment that has it"
        )


NOTEBOOK = "peers"  # `RunRecord.notebook` of these runs


# most labels x training documents for one-vs-rest models, which read every document for every label
ONE_VS_REST_CELLS = 20_000_000


@dataclass(frozen=True)
class Peer:
    """How a peer is run.

    library: its package; grid: the options tried, of which dev chooses; one_vs_rest: it trains one
    model per label; depth: number of labels scored per document.
    """

    library: str
    grid: tuple[dict[str, Any], ...] = ({},)
    one_vs_rest: bool = False
    depth: int = 200


PEERS = {
    "SVM": Peer("scikit-learn", ({"C": 1.0},), one_vs_rest=True, depth=1000),
    "SVM, tuned": Peer(
        "scikit-learn",
        tuple({"C": c} for c in (0.1, 0.3, 1.0, 3.0, 10.0)),
        one_vs_rest=True,
        depth=1000,
    ),
    "logistic": Peer(
        "scikit-learn", ({"C": 1.0}, {"C": 10.0}, {"C": 100.0}), one_vs_rest=True, depth=1000
    ),
    "Parabel": Peer("omikuji"),
    "Bonsai": Peer("omikuji"),
    "PLT": Peer("napkinxc"),
    "XR-Linear": Peer("libpecos"),
}


def words_only(
    corpus: Corpus | str,
    train: int | None = None,
    dev: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> Inputs:
    """As `prepare` with the same caps, but without a backbone: all that linear peers need.

    The tokens of the backbone are empty, so nothing may be run on them.

    Args:
        corpus: a `Corpus`, or the name or folder of one.
        train, dev, test: most documents per split, None for all.
        seed: by which capped documents are drawn.
    """
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    corpus = corpus.labelled().with_dev().subset(train=train, dev=dev, test=test, seed=seed)
    seen = corpus.seen_in_train()
    extra = np.diff(corpus.labels.indptr) - np.diff(seen.labels.indptr)
    none = Ragged(np.zeros(0, np.int32), np.zeros(seen.N + 1, np.int64))
    key = fingerprint_of(seen.fingerprint(), "words")
    return Inputs(
        seen,
        "words",
        none,
        [],
        extra,
        None,
        artefacts.root_of(privacy.artefacts_root(seen, None)),
        None,
        0,
        key,
    )


def possible(
    prepared: Inputs, names: Iterable[str] = tuple(PEERS)
) -> tuple[list[str], dict[str, str]]:
    """(peers that fit the size of this corpus, {peer that does not: why}).

    ValueError for an unknown peer.
    """
    visits = prepared.corpus.L * len(prepared.rows["train"])
    fitting = []
    left_out = {}
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peer {name!r} is not known; use some of {', '.join(PEERS)}")
        if PEERS[name].one_vs_rest and visits > ONE_VS_REST_CELLS:
            left_out[name] = (
                f"{prepared.corpus.L:,} labels x {len(prepared.rows['train']):,} documents are too"
                " many for one model per label; use Parabel, Bonsai and XR-Linear"
            )
        else:
            fitting.append(name)
    return fitting, left_out


def run(
    prepared: Inputs,
    names: Iterable[str] | None = None,
    *,
    results: str | Path | None = None,
    seed: int = 0,
    threads: int = 1,
    root: str | Path | None = None,
    progress: bool = True,
) -> tuple[list[RunRecord], dict[str, str]]:
    """Run peers on a corpus.

    Args:
        prepared: the corpus.
        names: some of PEERS; all when None.
        results: folder of the records; a peer whose record is there is not repeated. Nothing is
            saved when None.
        seed: of the libraries that take one.
        threads: of the libraries that use several.
        root: folder of the environment of PECOS, see `interpreter`.
        progress: show a bar.

    Returns:
        The records, and {peer that was not run: why}.
    """
    chosen, left_out = possible(prepared, tuple(PEERS) if names is None else names)
    records = []
    data = None
    with tqdm(total=len(chosen), desc="peers", unit="peer", disable=not progress) as bar:
        for name in chosen:
            bar.set_postfix_str(name)
            record = finished(prepared, name, seed, threads, results)
            if record is None:
                try:
                    pecos = PEERS[name].library == "libpecos"
                    python = interpreter(root) if pecos else Path(sys.executable)
                    data = data or Job.data_of(prepared)
                    record = train(prepared, name, data, python, seed, threads)
                except (PecosUnavailable, WorkerFailed) as error:
                    left_out[name] = str(error)
                    bar.update()
                    continue
                if results is not None:
                    record = replace(record, id=record_path(prepared, name, seed, results).stem)
                    record.save(results)
            records.append(record)
            bar.update()
    return records, left_out


def params_of(name: str, options: dict, seed: int, threads: int) -> dict:
    """`RunRecord.params` of a peer."""
    peer = PEERS[name]
    seeded = None if peer.library in ("omikuji", "libpecos") else seed
    return {
        "library": peer.library,
        "options": options,
        "tried": list(peer.grid),
        "threads": threads,
        "depth": peer.depth,
        "library_seed": seeded,
        "text": "whole document, words",
    }


def finished(
    prepared: Inputs, name: str, seed: int, threads: int, results: str | Path | None
) -> RunRecord | None:
    """The record of an earlier call on this corpus with these settings; None without one."""
    if results is None or not (path := record_path(prepared, name, seed, results)).is_file():
        return None
    record = RunRecord.load(path)
    params = params_of(name, record.params.get("options", {}), seed, threads)
    same_params = all(record.params.get(k) == v for k, v in params.items())
    same_corpus = record.dataset["fingerprint"] == prepared.corpus.fingerprint()
    return record if same_params and same_corpus else None


class WorkerFailed(RuntimeError):
    """The process of a peer failed; the message holds its last line of error."""


@dataclass(frozen=True, eq=False)
class Job:
    """What every peer of a corpus reads.

    arrays: train_x, dev_x and test_x, tf-idf (n, V), and train_y, labels (n, L), all csr.
    place: folder of the files that a process reads; None is the system's temporary folder.
    """

    arrays: dict[str, sparse.csr_matrix]
    place: Path | None = None

    @classmethod
    def data_of(cls, prepared: Inputs) -> Job:
        """The job of a corpus."""
        rows = prepared.rows
        counts = words(prepared.corpus.texts, rows["train"]).counts
        weights = tfidf(counts, rows["train"]).astype(np.float32)
        arrays = {f"{split}_x": weights[rows[split]] for split in ("train", "dev", "test")}
        # files made of credentialed text stay in the data folder
        place = privacy.artefacts_root(prepared.corpus, None)
        return cls(arrays | {"train_y": prepared.train_labels.astype(np.float32)}, place)

    def work(
        self, name: str, options: dict, python: Path, seed: int, threads: int
    ) -> tuple[dict, dict]:
        """Run a peer in a process; returns (report, {"dev": scores, "test": scores}).

        The report and the scores, csr (n, L), are those of `worker.work`. WorkerFailed where the
        process fails.
        """
        if self.place is not None:
            self.place.mkdir(parents=True, exist_ok=True)
        with temporary_folder(self.place or Path(tempfile.gettempdir())) as folder:
            # hand over the data
            for part, matrix in self.arrays.items():
                sparse.save_npz(folder / f"{part}.npz", matrix)
            job = {
                "engine": name,
                "options": options,
                "depth": PEERS[name].depth,
                "seed": seed,
                "threads": threads,
            }
            write_json(folder / "job.json", job)
            # run a copy: Python looks for imports in the folder of the script first, and a module
            # of this package may have the name of a library
            worker = shutil.copy(Path(__file__).with_name("worker.py"), folder)
            done = subprocess.run(
                [str(python), str(worker), str(folder)], capture_output=True, text=True
            )
            if not (folder / "report.json").is_file():
                last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
                raise WorkerFailed(
                    f"{name} ended with status {done.returncode}: {last}; install the extra `peers`"
                )
            # read what it found
            scores = {
                s: sparse.load_npz(folder / f"{s}_scores.npz").tocsr() for s in ("dev", "test")
            }
            return read_json(folder / "report.json"), scores


def train(
    prepared: Inputs, name: str, data: Job, python: Path, seed: int = 0, threads: int = 1
) -> RunRecord:
    """The record of a peer: every option of its grid is trained, dev's nDCG@5 chooses.

    Only the test scores of the chosen options are read.

    Args:
        prepared: the corpus.
        name: of PEERS.
        data: `Job.data_of(prepared)`.
        python: the interpreter that can import the library.
        seed: of the library.
        threads: of the library.
    """
    # try the options
    dev = prepared.corpus.labels[prepared.rows["dev"]]
    tried = []
    for options in PEERS[name].grid:
        report, scores = data.work(name, options, python, seed, threads)
        read = collect(scores["dev"], dev, prepared)
        value = evaluate(read, dev, prepared.train_counts, len(prepared.rows["train"]))["ndcg@5"]
        tried.append((value, options, report, scores["test"], read))
    _, options, report, scores, read = max(tried, key=lambda item: item[0])
    # judge the best
    test = prepared.corpus.labels[prepared.rows["test"]]
    times = {k: report[k] for k in ("train", "train_cpu", "predict", "predict_cpu")}
    return RunRecord(
        id=run_name(prepared, name, seed),
        kind="linear",
        system=name,
        seed=seed,
        params=params_of(name, options, seed, threads),
        notebook=NOTEBOOK,
        times=times,
        peak_memory_mb=report["peak_memory_mb"],
        model_size={"model_mb": report["model_mb"], "data_mb": report["data_mb"]},
        **judge(prepared, read, collect(scores, test, prepared)),
    )


def collect(
    scores: sparse.csr_matrix, labels: sparse.csr_matrix, prepared: Inputs, size: int = 256
) -> Scores:
    """Scores of a split for the metrics.

    Labels that a peer did not score stay unscored, so there is no AUC.

    Args:
        scores: (n, L) csr.
        labels: (n, L) csr.
        prepared: the corpus.
        size: documents at a time.
    """
    evaluator = StreamingEvaluator(
        labels, prepared.train_counts, 100, prepared.edges, auc_bins=None
    )
    for begin in range(0, labels.shape[0], size):
        rows = np.arange(begin, min(begin + size, labels.shape[0]))
        evaluator.update(rows, scores[rows])
    return evaluator.result()
