"""One peer in a process of its own: reads a job's folder, trains, predicts, measures; run by path,
never imported for work.

It knows numpy, scipy and the library of the peer, nothing of plantlib, so that an interpreter of
another environment (PECOS) can run it, and so that the peak memory it reports is the peer's and not
that of PyTorch. METHOD.md section 7 names the peers.

The folder holds train_x, train_y, dev_x, test_x (`scipy.sparse.save_npz`: tf-idf (n, V), labels (n,
L)) and job.json (engine, options, depth, threads, seed). It gets dev_scores.npz and
test_scores.npz, the best `depth` labels a document, and report.json. Timed is the library alone:
writing its input file and loading the data are not counted.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
from scipy import sparse

# Bonsai as omikuji's authors give it: a shallow, unbalanced tree; Parabel is the library's default
OMIKUJI = {"Parabel": {}, "Bonsai": {"cluster_balanced": False, "cluster_k": 100, "max_depth": 3}}


class OneVsRest:
    """scikit-learn's linear models, a label at a time; a label on every or no training row scores a
    constant.
    """

    def __init__(self, job: dict, folder: Path):
        # imported here, so that no second of it is counted as training
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC

        c, seed = job["options"]["C"], job["seed"]
        self.model = lambda: (
            LinearSVC(C=c, random_state=seed)
            if job["engine"].startswith("SVM")
            else LogisticRegression(C=c, solver="liblinear", random_state=seed)
        )

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
            self.coef[label], self.intercept[label] = model.coef_[0], model.intercept_[0]

    def predict(self, x: sparse.csr_matrix, depth: int) -> sparse.csr_matrix:
        parts = [
            best(x[i : i + 256] @ self.coef.T + self.intercept, depth)
            for i in range(0, x.shape[0], 256)
        ]
        return sparse.vstack(parts, format="csr")

    def size(self, folder: Path) -> int:
        return self.coef.nbytes + self.intercept.nbytes


class Omikuji:
    """Parabel and Bonsai of omikuji; it draws its own random numbers and takes no seed."""

    def __init__(self, job: dict, folder: Path):
        import omikuji

        self.library, self.options = omikuji.Model, OMIKUJI[job["engine"]] | job["options"]
        self.threads, self.folder = job["threads"], folder

    def prepare(self, x: sparse.csr_matrix, y: sparse.csr_matrix) -> None:
        """omikuji reads a text file: documents, features and labels in the first line, then a
        document a line.
        """
        used = np.flatnonzero((np.diff(x.indptr) > 0) & (np.diff(y.indptr) > 0))
        with open(self.folder / "train.txt", "w") as file:
            file.write(f"{len(used)} {x.shape[1]} {y.shape[1]}\n")
            for row in used:
                words = slice(x.indptr[row], x.indptr[row + 1])
                pairs = " ".join(
                    f"{i}:{v:.6g}" for i, v in zip(x.indices[words], x.data[words], strict=True)
                )
                file.write(
                    ",".join(map(str, y.indices[y.indptr[row] : y.indptr[row + 1]])) + f" {pairs}\n"
                )
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
        rows, beam = [], self.options.get("beam_size", 10)
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
    """PECOS XR-Linear with its default tree: label features are sums of their documents (PIFA)."""

    def __init__(self, job: dict, folder: Path):
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel

        self.options, self.threads = job["options"], job["threads"]
        self.library, self.embed, self.index = (
            XLinearModel,
            LabelEmbeddingFactory.create,
            Indexer.gen,
        )

    def fit(self, x: sparse.csr_matrix, y: sparse.csr_matrix) -> None:
        x, y = x.astype(np.float32), y.astype(np.float32)
        tree = self.index(self.embed(y, x, method="pifa"))
        self.model = self.library.train(x, y.tocsc(), C=tree, threads=self.threads, **self.options)

    def predict(self, x: sparse.csr_matrix, depth: int) -> sparse.csr_matrix:
        return self.model.predict(
            x.astype(np.float32), only_topk=depth, threads=self.threads
        ).tocsr()

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
    """The `depth` largest of each row of a dense block, as csr; zeros among them stay stored."""
    depth = min(depth, scores.shape[1])
    columns = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    data = np.take_along_axis(scores, columns, 1).astype(np.float32)
    indptr = np.arange(0, depth * len(scores) + 1, depth)
    return sparse.csr_matrix((data.ravel(), columns.ravel(), indptr), shape=scores.shape)


def from_pairs(rows: list, labels: int) -> sparse.csr_matrix:
    """Lists of (label, score) as csr (n, labels)."""
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    columns = np.array([label for row in rows for label, _ in row], np.int32)
    data = np.array([score for row in rows for _, score in row], np.float32)
    return sparse.csr_matrix((data, columns, indptr), shape=(len(rows), labels))


def on_disk(path: Path) -> int:
    """Bytes of a file or of all files under a folder."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    )


def peak_memory() -> float:
    """Largest resident memory of this process, MiB.

    The kernel's count for this program alone where it can be read: getrusage also counts what the
    process was before it became this program, which is the memory of the one that started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    if found:
        return round(found[0] / 1024, 1)
    unit = 2**20 if platform.system() == "Darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def work(folder: Path) -> dict:
    """Do the job of a folder; what report.json holds."""
    job = json.loads((folder / "job.json").read_text())
    data = {
        name: sparse.load_npz(folder / f"{name}.npz").tocsr()
        for name in ("train_x", "train_y", "dev_x", "test_x")
    }
    before = peak_memory()
    engine = ENGINES[job["engine"]](job, folder)
    if hasattr(engine, "prepare"):
        engine.prepare(data["train_x"], data["train_y"])
    began, cpu = time.perf_counter(), time.process_time()
    engine.fit(data["train_x"], data["train_y"])
    trained, cpu = time.perf_counter() - began, time.process_time() - cpu
    sparse.save_npz(folder / "dev_scores.npz", engine.predict(data["dev_x"], job["depth"]))
    began, cpu_predict = time.perf_counter(), time.process_time()
    scores = engine.predict(data["test_x"], job["depth"])
    predicted, cpu_predict = time.perf_counter() - began, time.process_time() - cpu_predict
    peak = peak_memory()
    sparse.save_npz(folder / "test_scores.npz", scores)
    return {
        "train": round(trained, 3),
        "train_cpu": round(cpu, 3),
        "predict": round(predicted, 4),
        "predict_cpu": round(cpu_predict, 4),
        "peak_memory_mb": peak,
        "data_mb": before,
        "model_mb": round(engine.size(folder) / 2**20, 3),
        "python": platform.python_version(),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    report = work(folder)
    # written last: its presence says that the job was done to its end
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
