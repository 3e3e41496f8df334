"""The record of one run: options, metrics, history and environment, as one small JSON file.

A record holds no text of any document. Not here: tables that compare records
(`companion.report.compare`).
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
from plantlib.training.inputs import Inputs
from plantlib.utils.io import atomic_path, read_json
from plantlib.utils.reprs import Card, Rich

SCHEMA = 2
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
_LONGEST_STRING = 500


def environment() -> dict[str, Any]:
    """Versions, processor, cores, GPU, code state; no name of machine or user.

    dirty: whether a tracked file differs from the commit; what runs write, results/ of the
    checkout, says nothing of the code and is left out. Outside a git checkout dirty is None and the
    commit what $PLANT_COMMIT says, else 'unknown'.
    """
    commit = _git("rev-parse", "HEAD")
    # an exclusion alone would mean the folder that git is called in, which is not the whole
    # checkout
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
    """What a record was trained on, in words: the GPU its machine had, for a model that uses one,
    or the cores.
    """
    about = record.environment
    gpu = about.get("gpu") if record.kind in ("planted", "neural") else None
    return gpu or f"{about['cores']} cores of {about['cpu']}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _gpu_name() -> str | None:
    """The GPU that PyTorch sees, None without one or where PyTorch was not imported."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = (
        re.search(r"model name\s*:\s*(.+)", info.read_text(errors="replace"))
        if info.exists()
        else None
    )
    return found[1].strip() if found else platform.processor()


def plain(value: Any) -> Any:
    """What JSON can hold: numpy to Python, tuples to lists, keys to str, nan and infinities to
    None.
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
    if isinstance(value, str):
        yield value
    for item in (
        [*value, *value.values()]
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else ()
    ):
        yield from _strings(item)


def _refuse_leaks(value: Any, where: str) -> None:
    for text in _strings(value):
        if len(text) > _LONGEST_STRING:
            raise ValueError(
                f"{where} holds {len(text)} characters, wanted {_LONGEST_STRING} at most: no texts"
                " here"
            )
        if _ABSOLUTE_PATH.search(text):
            raise ValueError(
                f"{where} holds an absolute path: store a name, or a path relative to the"
                " repository"
            )


@dataclass(frozen=True, repr=False)
class RunRecord(Rich):
    """One run. Values are made JSON-plain on construction (nan becomes None) and checked;
    ValueError says what to fix.

    dataset: name, fingerprint, train/dev/test (documents), labels (count), label_space (in words),
    synthetic (bool). system: the start or baseline ('random', 'l2r', 'linear'); params: every
    hyper-parameter; teacher: its settings. history: a dict an epoch (epoch, dev metrics,
    train_loss, seconds); metrics: test, from `metrics.evaluate`; per_document: from
    `metrics.per_document`; times: stage -> seconds; model_size: a number, or several by name.
    created: UTC date.
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
        for item in fields(self):
            value = plain(getattr(self, item.name))
            _refuse_leaks(value, f"{item.name} of run {str(self.id)[:80]!r}")
            object.__setattr__(self, item.name, value)
        if not re.fullmatch(r"[\w.@+-]{1,120}", str(self.id)):
            raise ValueError(
                f"run id {self.id!r}: wanted 1 to 120 letters, digits or . _ - @ + (it is a file"
                " name)"
            )
        if self.kind not in KINDS:
            raise ValueError(f"run {self.id}: kind {self.kind!r}, wanted one of {', '.join(KINDS)}")
        for name, wanted in (("dataset", _DATASET_KEYS), ("environment", _ENVIRONMENT_KEYS)):
            if missing := [key for key in wanted if key not in getattr(self, name)]:
                raise ValueError(
                    f"run {self.id}: {name} lacks {', '.join(missing)}; wanted {', '.join(wanted)}"
                )
        for name, values in self.per_document.items():
            if len(values) != self.dataset["test"]:
                raise ValueError(
                    f"run {self.id}: {name!r} has {len(values)} values, wanted"
                    f" {self.dataset['test']}"
                )

    def save(self, folder: str | Path) -> Path:
        """Writes <folder>/<id>.json atomically, one field a line, and returns its path."""
        data = {"schema": SCHEMA} | {item.name: getattr(self, item.name) for item in fields(self)}
        lines = [
            f"{json.dumps(key)}: {json.dumps(x, ensure_ascii=False, allow_nan=False)}"
            for key, x in data.items()
        ]
        path = Path(folder) / f"{self.id}.json"
        privacy.check_record(self, path)
        with atomic_path(path) as temporary:
            temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        """ValueError if the file is no record, of another schema, lacks a key or has an unknown
        one.
        """
        data, name = read_json(path), Path(path).name
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(
                f"{name} has schema {schema!r}, this version reads {SCHEMA}: delete the file and"
                " run it again, or check out the version that wrote it"
            )
        names = {item.name for item in fields(cls)}
        missing, unknown = sorted(names - set(data)), sorted(set(data) - names - {"schema"})
        if missing or unknown:
            raise ValueError(
                f"{name} lacks {missing} and has unknown keys {unknown}: run it again with this"
                " version"
            )
        return cls(**{key: data[key] for key in names})

    def __repr__(self) -> str:
        shown = {key: self.metrics.get(key) for key in ("p@1", "ndcg@5", "few/rp@5")}
        numbers = "".join(
            f", {key}={value:.4f}" for key, value in shown.items() if value is not None
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
        rows = [[key, "-" if x is None else f"{x:.4f}"] for key, x in sorted(self.metrics.items())]
        return Card(self.id, about, ["metric", "test"], rows)


def load_all(folder: str | Path) -> list[RunRecord]:
    """Every record of a folder, by file name."""
    return [RunRecord.load(path) for path in sorted(Path(folder).glob("*.json"))]


def agrees(record: RunRecord, params: Mapping[str, Any]) -> bool:
    """Whether a record's params hold all of `params`, with the same values."""
    return all(
        name in record.params and record.params[name] == value
        for name, value in plain(params).items()
    )


def run_name(inputs: Inputs, system: str, seed: int, tuning: str = "frozen") -> str:
    """Id of a run: data set, training documents, tokens read, backbone and what is trained of it,
    system, seed.
    """
    read = f"{inputs.max_tokens}t" if inputs.max_tokens else "all"
    read += "" if inputs.label_space == "seen" else f"-{inputs.label_space}-labels"
    backbone = Path(inputs.backbone).name + ("" if tuning == "frozen" else f"-{tuning}")
    # the id is a file name; a user's table may be called anything, a peer has spaces in its name
    name, backbone, system = (
        re.sub(r"[^\w.@+-]+", "_", part) for part in (inputs.corpus.name, backbone, system)
    )
    name, backbone = name[:40], backbone[:40]
    return f"{name}-{len(inputs.rows['train'])}d-{read}-{backbone}-{system}-s{seed}"


def record_path(inputs: Inputs, system: str, seed: int, results: str | Path, end: str = "") -> Path:
    """Where the record of a system on this corpus stands: named by `run_name` and `end`.

    A name tells how many training documents there are, not how many of dev and test, nor what they
    were drawn from: where another corpus has it, this one's fingerprint is added.
    """
    stem, fingerprint = run_name(inputs, system, seed), inputs.corpus.fingerprint()
    plain, own = (Path(results) / f"{stem}{mark}{end}.json" for mark in ("", f"-{fingerprint[:6]}"))
    taken = plain.exists() and RunRecord.load(plain).dataset["fingerprint"] != fingerprint
    return own if taken or own.exists() else plain


def peak_memory() -> float:
    """Largest resident memory of this process so far, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
