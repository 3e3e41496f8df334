"""The record of one run: options, metrics, history and environment, as one small JSON file.

A record holds no text of any document and no path of the machine. Tables that compare records are
in `companion.report.compare`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plantlib.data import privacy
from plantlib.data.sources import is_checkout
from plantlib.linear import stacking
from plantlib.training.inputs import Inputs
from plantlib.utils.checks import safe_name
from plantlib.utils.io import atomic_path, read_json
from plantlib.utils.reprs import Card, Rich

SCHEMA = 2  # version of the file format; others are refused
# what was trained: a planted model, a linear model, a bare teacher score, a neural peer
KINDS = ("planted", "linear", "teacher", "neural")
_DATASET_KEYS = (
    "name",
    "fingerprint",
    "train",
    "dev",
    "test",
    "labels",
    "label_space",
    "synthetic",
)
_ENVIRONMENT_KEYS = ("python", "torch", "transformers", "cpu", "cores", "commit", "dirty")
_ABSOLUTE_PATH = re.compile(r"(?:^|[\s'\"=:(,])(?:~?/[\w.~-]+){2,}|\b[A-Za-z]:\\")
_LONGEST_STRING = 500  # characters; a longer string may be the text of a document


def environment() -> dict[str, Any]:
    """The software and hardware of this process, without the name of machine or user.

    Returns:
        python, torch, transformers: versions, None for a package that is not installed.
        cpu: system, architecture and model.
        cores: cores that this process may use.
        gpu: name, or None.
        commit: of the git checkout; outside one, $PLANT_COMMIT or 'unknown'.
        dirty: whether a tracked file outside the checkout's results/ differs from the commit; None
            outside a checkout.
    """
    commit = _git("rev-parse", "HEAD")
    # without ":(top)" git would look at this file's folder alone
    status = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results"
    )
    return {
        "python": platform.python_version(),
        **{
            name: metadata.version(name) if find_spec(name) else None
            for name in ("torch", "transformers")
        },
        "cpu": f"{platform.system()} {platform.machine()} {_cpu_name()}".strip(),
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "gpu": _gpu_name(),
        "commit": commit or os.environ.get("PLANT_COMMIT") or "unknown",
        "dirty": bool(status) if commit else None,
    }


def device_of(record: RunRecord) -> str:
    """The device a run was trained on: the GPU, if its kind uses one, else cores and processor."""
    environment = record.environment
    gpu = environment.get("gpu") if record.kind in ("planted", "neural") else None
    return gpu or f"{environment['cores']} cores of {environment['cpu']}"


def _git(*arguments: str) -> str:
    """Output of a git command in this checkout, empty if it fails."""
    if not is_checkout():  # an installed package may lie in somebody else's checkout
        return ""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _gpu_name() -> str | None:
    """The GPU that PyTorch sees; None without one, or if PyTorch is not imported."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"model name\s*:\s*(.+)", info.read_text(errors="replace"))
        if match:
            return match[1].strip()
    return platform.processor()


def plain(value: Any) -> Any:
    """A value as JSON can hold it; ValueError for a type that has no such form.

    Numpy becomes Python, tuples become lists, keys become str, nan and infinities become None.
    """
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise ValueError(
        f"a record cannot hold a {type(value).__name__} ({value!r:.60}): pass a number, text or"
        " list"
    )


def _strings(value: Any) -> Iterator[str]:
    """Every string in a value that is plain, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _refuse_leaks(value: Any, where: str) -> None:
    """ValueError for a string that may be a document's text or a path of the machine."""
    for text in _strings(value):
        if len(text) > _LONGEST_STRING:
            raise ValueError(
                f"{where} holds {len(text)} characters in one string, wanted {_LONGEST_STRING} at"
                " most: a record holds no texts of documents"
            )
        if _ABSOLUTE_PATH.search(text):
            raise ValueError(
                f"{where} holds an absolute path: store a name, or a path relative to the"
                " repository"
            )


def check_id(run_id: str) -> None:
    """ValueError for the id of a run that is no file name."""
    if not re.fullmatch(r"[\w.@+-]{1,120}", str(run_id)):
        raise ValueError(
            f"run id {str(run_id)[:80]!r}: wanted 1 to 120 letters, digits or . _ - @ + (it is a"
            " file name)"
        )


@dataclass(frozen=True, repr=False)
class RunRecord(Rich):
    """What one run was, and its results. Values are made `plain` on construction.

    Attributes:
        id: name of the run and of its file.
        kind: one of KINDS.
        dataset: name, fingerprint, train, dev and test (documents), labels (count), label_space
            (in words) and synthetic (whether the texts are).
        system: the start or baseline, such as 'random', 'lookup+linear' or 'SVM'.
        seed: of everything that is drawn.
        metrics: test metrics by name, from `metrics.documents.evaluate`; None where a metric is
            undefined.
        params: every hyper-parameter, and the values that dev chose.
        notebook: the notebook that made the run, if any.
        backbone: name of the pretrained model, if any.
        teacher: the teacher's options and sizes.
        history: one dict per epoch: epoch, dev metrics, train_loss, seconds.
        chosen_epoch: the epoch that dev chose, from 1.
        threshold: score from which F1 counts a label as predicted, chosen on dev.
        per_document: metric name -> one value per test document, from
            `metrics.documents.per_document`.
        times: stage -> seconds.
        peak_memory_mb: largest resident memory of the process, MiB.
        model_size: one number, or several by name, such as trained parameters.
        environment: see `environment`.
        created: UTC date, ISO format.

    Raises:
        ValueError: a value that JSON cannot hold, text of a document, an absolute path, an id that
            is no file name, an unknown kind, a missing key, or per_document of another length.

    Example:
        >>> from plantlib import RunRecord
        >>> sizes = {"train": 80, "dev": 10, "test": 10, "labels": 5, "label_space": "all labels"}
        >>> dataset = {"name": "mine", "fingerprint": "0123", "synthetic": False} | sizes
        >>> RunRecord("first", "linear", dataset, "SVM", 0, {"p@1": 0.5})
        RunRecord('first', dataset='mine', system='SVM', seed=0, p@1=0.5000)
    """

    id: str
    kind: str
    dataset: dict[str, Any]
    system: str
    seed: int
    metrics: dict[str, float | None]
    params: dict[str, Any] = field(default_factory=dict)
    notebook: str | None = None
    backbone: str | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    chosen_epoch: int | None = None
    threshold: float | None = None
    per_document: dict[str, list[float | None]] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    model_size: Mapping[str, float] | float | None = None
    environment: dict[str, Any] = field(default_factory=environment)
    created: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def __post_init__(self) -> None:
        # make plain
        for item in fields(self):
            value = plain(getattr(self, item.name))
            _refuse_leaks(value, f"{item.name} of run {str(self.id)[:80]!r}")
            object.__setattr__(self, item.name, value)

        # check
        check_id(self.id)
        if self.kind not in KINDS:
            raise ValueError(f"run {self.id}: kind {self.kind!r}, wanted one of {', '.join(KINDS)}")
        for name, keys in (("dataset", _DATASET_KEYS), ("environment", _ENVIRONMENT_KEYS)):
            if missing := [key for key in keys if key not in getattr(self, name)]:
                raise ValueError(
                    f"run {self.id}: {name} lacks {', '.join(missing)}; wanted {', '.join(keys)}"
                )
        for name, values in self.per_document.items():
            if len(values) != self.dataset["test"]:
                raise ValueError(
                    f"run {self.id}: {name!r} has {len(values)} values, wanted"
                    f" {self.dataset['test']}"
                )

    def save(self, folder: str | Path) -> Path:
        """Write <folder>/<id>.json atomically, one field per line.

        Returns:
            the path of the file.

        Raises:
            PrivacyError: the record may hold text of a credentialed data set; see
                `data.privacy.check_record`.
        """
        data = {"schema": SCHEMA} | {item.name: getattr(self, item.name) for item in fields(self)}
        lines = [
            f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for key, value in data.items()
        ]
        path = Path(folder) / f"{self.id}.json"
        privacy.check_record(self, path)
        with atomic_path(path) as temporary:
            temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        """Read a record.

        Raises:
            ValueError: the file is no record, has another schema, or lacks a key or has an unknown
                one.
        """
        data = read_json(path)
        name = Path(path).name
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(
                f"{name} has schema {schema!r}, this version reads {SCHEMA}: delete the file and"
                " run it again, or check out the version that wrote it"
            )
        names = {item.name for item in fields(cls)}
        missing = sorted(names - set(data))
        unknown = sorted(set(data) - names - {"schema"})
        if missing or unknown:
            raise ValueError(
                f"{name} lacks {missing} and has unknown keys {unknown}: run it again with this"
                " version"
            )
        return cls(**{key: data[key] for key in names})

    def __repr__(self) -> str:
        metrics = {key: self.metrics.get(key) for key in ("p@1", "ndcg@5", "few/rp@5")}
        numbers = "".join(
            f", {key}={value:.4f}" for key, value in metrics.items() if value is not None
        )
        dataset = self.dataset["name"]
        return (
            f"RunRecord({self.id!r}, dataset={dataset!r}, system={self.system!r},"
            f" seed={self.seed}{numbers})"
        )

    def _card(self) -> Card:
        data = self.dataset
        about = (
            f"{self.system} on {data['name']}{' (synthetic)' if data['synthetic'] else ''},"
            f" {data['train']} training and {data['test']} test documents, label space:"
            f" {data['label_space']}"
        )
        rows = [
            [key, "-" if value is None else f"{value:.4f}"]
            for key, value in sorted(self.metrics.items())
        ]
        return Card(self.id, about, ["metric", "test"], rows)


def load_all(folder: str | Path) -> list[RunRecord]:
    """Every record of a folder, ordered by file name."""
    return [RunRecord.load(path) for path in sorted(Path(folder).glob("*.json"))]


def agrees(record: RunRecord, params: Mapping[str, Any]) -> bool:
    """Whether a record's params hold all of `params`, with the same values, and its linear score,
    where it has one, is of this version (`stacking.VERSION`).
    """
    linear = record.teacher.get("linear")
    if linear is not None and linear.get("version") != stacking.VERSION:
        return False
    return all(
        name in record.params and record.params[name] == value
        for name, value in plain(params).items()
    )


def run_name(inputs: Inputs, system: str, seed: int, tuning: str = "frozen") -> str:
    """Id of a run, which is also its file name.

    It joins the data set, the number of training documents, the tokens read per document, the
    backbone, what is trained of it, the system and the seed.

    Args:
        inputs: a corpus made ready by `prepare`.
        system: the start or baseline.
        seed: of the run.
        tuning: as `RunConfig.tuning`.
    """
    tokens = f"{inputs.max_tokens}t" if inputs.max_tokens else "all"
    tokens += "" if inputs.label_space == "seen" else f"-{inputs.label_space}-labels"
    backbone = Path(inputs.backbone).name + ("" if tuning == "frozen" else f"-{tuning}")
    # names of users' tables and of peers may have characters that a file name cannot
    system = re.sub(r"[^\w.@+-]+", "_", system)
    name, backbone = safe_name(inputs.corpus.name), safe_name(backbone)
    documents = len(inputs.rows["train"])
    return f"{name[:40]}-{documents}d-{tokens}-{backbone[:40]}-{system}-s{seed}"


def record_path(inputs: Inputs, system: str, seed: int, results: str | Path, end: str = "") -> Path:
    """Path of the record of a system on this corpus.

    `run_name` states neither the number of dev and test documents nor the corpus that a subset was
    drawn from. If another corpus has that name already, this one's fingerprint is added to it.

    Args:
        inputs: a corpus made ready by `prepare`.
        system: the start or baseline.
        seed: of the run.
        results: folder of records.
        end: appended to the name.
    """
    stem = run_name(inputs, system, seed)
    fingerprint = inputs.corpus.fingerprint()
    short = Path(results) / f"{stem}{end}.json"
    marked = Path(results) / f"{stem}-{fingerprint[:6]}{end}.json"
    taken = short.exists() and RunRecord.load(short).dataset["fingerprint"] != fingerprint
    return marked if taken or marked.exists() else short


def peak_memory() -> float:
    """Largest resident memory of this process so far, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that it began and ended, so far."""
    return sum(os.times()[:4])
