"""Train, apply and measure one peer in a separate process; `library_peers.py` runs this file.

It imports numpy, scipy and the library of the peer, but nothing of plantlib. So an interpreter of
another environment (PECOS) can run it, and the peak memory is that of the peer, without PyTorch.
The peers are named in docs/method.md, "Controls and peers".

The folder of a job holds train_x, dev_x, test_x (tf-idf (n, V)) and train_y (labels (n, L)), all as
`scipy.sparse.save_npz` writes them, and job.json (engine, options, depth, threads, seed). The
worker adds dev_scores.npz and test_scores.npz, with the best `depth` labels per document, and
report.json. Times are those of the library: loading data and writing its input file are not
counted.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

# Parabel is the library's default; the options of Bonsai (a shallow, unbalanced tree) are those
# that the authors of omikuji give
OMIKUJI = {"Parabel": {}, "Bonsai": {"cluster_balanced": False, "cluster_k": 100, "max_depth": 3}}


class OneVsRest:
    """Linear models of scikit-learn, one per label.

    A label of all training rows, or of none, scores a constant.
    """

    def __init__(self, job: dict, folder: Path):
        # imported here, so that the import is not timed as training
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC

        options = {"C": job["options"]["C"], "random_state": job["seed"]}
        if job["engine"].startswith("SVM"):
            self.model = partial(LinearSVC, **options)
        else:
            self.model = partial(LogisticRegression, solver="liblinear", **options)

    def fit(self, x: sparse.csr_matrix, y: sparse.csr_matrix) -> None:
        y = y.tocsc()
        self.coef = np.zeros((y.shape[1], x.shape[1]), np.float32)
        self.intercept = np.full(y.shape[1], -1.0, np.float32)
        for label in range(y.shape[1]):
            positive = y[:, [label]].toarray().ravel() > 0
            if not positive.any() or positive.all():
                self.intercept[label] = 1.0 if positive.all() else -1.0
                continue
            model = self.model().fit(x, positive)
            self.coef[label] = model.coef_[0]
            self.intercept[label] = model.intercept_[0]

    def predict(self, x: sparse.csr_matrix, depth: int) -> sparse.csr_matrix:
        parts = [
            best(x[i : i + 256] @ self.coef.T + self.intercept, depth)
            for i in range(0, x.shape[0], 256)
        ]
        return sparse.vstack(parts, format="csr")

    def size(self, folder: Path) -> int:
        return self.coef.nbytes + self.intercept.nbytes


class Omikuji:
    """Parabel and Bonsai of omikuji, which takes no seed."""

    def __init__(self, job: dict, folder: Path):
        import omikuji

        self.library = omikuji.Model
        self.options = OMIKUJI[job["engine"]] | job["options"]
        self.threads = job["threads"]
        self.folder = folder

    def prepare(self, x: sparse.csr_matrix, y: sparse.csr_matrix) -> None:
        """Write the text file that omikuji reads.

        Its first line holds the numbers of documents, features and labels; a document per line
        follows.
        """
        used = np.flatnonzero((np.diff(x.indptr) > 0) & (np.diff(y.indptr) > 0))
        with open(self.folder / "train.txt", "w") as file:
            file.write(f"{len(used)} {x.shape[1]} {y.shape[1]}\n")
            for row in used:
                words = slice(x.indptr[row], x.indptr[row + 1])
                cells = zip(x.indices[words], x.data[words], strict=True)
                features = " ".join(f"{i}:{v:.6g}" for i, v in cells)
                labels = ",".join(map(str, y.indices[y.indptr[row] : y.indptr[row + 1]]))
                file.write(f"{labels} {features}\n")
        self.labels = y.shape[1]

    def fit(self, x: sparse.csr_matrix, y: sparse.csr_matrix) -> None:
        options = self.library.default_hyper_param()
        for name, value in self.options.items():
            if name != "beam_size":
                setattr(options, name, value)
        self.model = self.library.train_on_data(
            str(self.folder / "train.txt"), options, self.threads
        )
        self.model.init_prediction_thread_pool(self.threads)

    def predict(self, x: sparse.csr_matrix, depth: int) -> sparse.csr_matrix:
        rows = []
        beam = self.options.get("beam_size", 10)
        for row in range(x.shape[0]):
            words = slice(x.indptr[row], x.indptr[row + 1])
            pairs = list(zip(x.indices[words].tolist(), x.data[words].tolist(), strict=True))
            rows.append(self.model.predict(pairs, beam, depth) if pairs else [])
        return from_pairs(rows, self.labels)

    def size(self, folder: Path) -> int:
        self.model.save(str(folder / "model"))
        return on_disk(folder / "model")


class Plt:
    """The probabilistic label tree of napkinXC."""

    def __init__(self, job: dict, folder: Path):
        from napkinxc.models import PLT

        self.folder = folder
        self.model = PLT(
            str(folder / "model"), threads=job["threads"], seed=job["seed"], **job["options"]
        )

    def fit(self, x: sparse.csr_matrix, y: sparse.csr_matrix) -> None:
        self.labels = y.shape[1]
        self.model.fit(x, [row.tolist() for row in np.split(y.indices, y.indptr[1:-1])])

    def predict(self, x: sparse.csr_matrix, depth: int) -> sparse.csr_matrix:
        return from_pairs(self.model.predict_proba(x, top_k=min(depth, self.labels)), self.labels)

    def size(self, folder: Path) -> int:
        return on_disk(folder / "model")


class XRLinear:
    """XR-Linear of PECOS with its default tree; label features sum their documents (PIFA)."""

    def __init__(self, job: dict, folder: Path):
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel

        self.options = job["options"]
        self.threads = job["threads"]
        self.library = XLinearModel
        self.embed = LabelEmbeddingFactory.create
        self.index = Indexer.gen

    def fit(self, x: sparse.csr_matrix, y: sparse.csr_matrix) -> None:
        x = x.astype(np.float32)
        y = y.astype(np.float32)
        tree = self.index(self.embed(y, x, method="pifa"))
        self.model = self.library.train(x, y.tocsc(), C=tree, threads=self.threads, **self.options)

    def predict(self, x: sparse.csr_matrix, depth: int) -> sparse.csr_matrix:
        x = x.astype(np.float32)
        return self.model.predict(x, only_topk=depth, threads=self.threads).tocsr()

    def size(self, folder: Path) -> int:
        self.model.save(str(folder / "model"))
        return on_disk(folder / "model")


ENGINES = {
    **dict.fromkeys(("SVM", "SVM, tuned", "logistic"), OneVsRest),
    **dict.fromkeys(("Parabel", "Bonsai"), Omikuji),
    "PLT": Plt,
    "XR-Linear": XRLinear,
}


def best(scores: np.ndarray, depth: int) -> sparse.csr_matrix:
    """The `depth` largest scores of each row of (n, L), as csr; zeros among them are stored."""
    depth = min(depth, scores.shape[1])
    columns = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    data = np.take_along_axis(scores, columns, 1).astype(np.float32)
    indptr = np.arange(0, depth * len(scores) + 1, depth)
    return sparse.csr_matrix((data.ravel(), columns.ravel(), indptr), shape=scores.shape)


def from_pairs(rows: list, labels: int) -> sparse.csr_matrix:
    """Lists of (label, score), one per document, as csr (n, labels)."""
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    columns = np.array([label for row in rows for label, _ in row], np.int32)
    data = np.array([score for row in rows for _, score in row], np.float32)
    return sparse.csr_matrix((data, columns, indptr), shape=(len(rows), labels))


def on_disk(path: Path) -> int:
    """Bytes of a file or of all files under a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def peak_memory() -> float:
    """Largest resident memory of this process, MiB.

    /proc counts this program alone. getrusage, used where there is no /proc, also counts the
    process before it became this program, and so the memory of the program that started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    if kilobytes:
        return round(kilobytes[0] / 1024, 1)
    unit = 2**20 if platform.system() == "Darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def timed(function: Callable, *arguments) -> tuple[Any, float, float]:
    """What the function returns, its seconds of wall time and of CPU."""
    wall = time.perf_counter()
    cpu = time.process_time()
    result = function(*arguments)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def work(folder: Path) -> dict:
    """Do the job of a folder; returns the contents of report.json (seconds, MiB)."""
    # load the data
    job = json.loads((folder / "job.json").read_text())
    data = {
        name: sparse.load_npz(folder / f"{name}.npz").tocsr()
        for name in ("train_x", "train_y", "dev_x", "test_x")
    }
    before = peak_memory()
    # train
    engine = ENGINES[job["engine"]](job, folder)
    if hasattr(engine, "prepare"):
        engine.prepare(data["train_x"], data["train_y"])
    _, train, train_cpu = timed(engine.fit, data["train_x"], data["train_y"])
    # predict; only test is timed
    sparse.save_npz(folder / "dev_scores.npz", engine.predict(data["dev_x"], job["depth"]))
    scores, predict, predict_cpu = timed(engine.predict, data["test_x"], job["depth"])
    peak = peak_memory()
    sparse.save_npz(folder / "test_scores.npz", scores)
    return {
        "train": round(train, 3),
        "train_cpu": round(train_cpu, 3),
        "predict": round(predict, 4),
        "predict_cpu": round(predict_cpu, 4),
        "peak_memory_mb": peak,
        "data_mb": before,
        "model_mb": round(engine.size(folder) / 2**20, 3),
        "python": platform.python_version(),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    report = work(folder)
    # written last: the file means that the job is complete
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
