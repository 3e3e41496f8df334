"""Run records, their comparison and the runs themselves: YAML asks, JSON remembers (METHOD section 5).

A run writes one `RunRecord` as results/runs/<id>.json; tables and figures are made from those files alone.
`replace_section` puts a table into the README; the runs themselves are started by `runner.py`.
No document text, host name, user name or absolute path enters a record. Not here: metrics, figures, training.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantlib import privacy
from plantlib.io import atomic_path, read_json
from plantlib.reprs import Card, Rich
from plantlib.statistics import mean_sd, paired_bootstrap

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
KINDS = ("planted", "linear", "teacher", "neural")
_DATASET_KEYS = ("name", "fingerprint", "train", "dev", "test", "labels", "label_space", "synthetic")
_ENVIRONMENT_KEYS = ("python", "torch", "transformers", "cpu", "cores", "commit", "dirty")
_ABSOLUTE_PATH = re.compile(r"(?:^|[\s'\"=:(,])(?:~?/[\w.~-]+){2,}|\b[A-Za-z]:\\")
_LONGEST_STRING = 500


def environment() -> dict[str, Any]:
    """Versions, processor, cores, GPU, code state; no name of machine or user.

    dirty: whether a tracked file differs from the commit; what runs write, results/ of the checkout, says nothing of the code
    and is left out. Outside a git checkout dirty is None and the commit what $PLANT_COMMIT says, else 'unknown'.
    """
    commit = _git("rev-parse", "HEAD")
    # an exclusion alone would mean the folder that git is called in, which is not the whole checkout
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) if find_spec(name) else None for name in ("torch", "transformers")},
        "cpu": f"{platform.system()} {platform.machine()} {_cpu_name()}".strip(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": _gpu_name(),
        "commit": commit or os.environ.get("PLANT_COMMIT") or "unknown",
        "dirty": bool(status) if commit else None,
    }


def device_of(record: RunRecord) -> str:
    """What a record was trained on, in words: the GPU its machine had, for a model that uses one, or the cores."""
    about = record.environment
    gpu = about.get("gpu") if record.kind in ("planted", "neural") else None
    return gpu or f"{about['cores']} cores of {about['cpu']}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _gpu_name() -> str | None:
    """The GPU that PyTorch sees, None without one or where PyTorch was not imported."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(errors="replace")) if info.exists() else None
    return found[1].strip() if found else platform.processor()


def plain(value: Any) -> Any:
    """What JSON can hold: numpy to Python, tuples to lists, keys to str, nan and infinities to None."""
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
    raise ValueError(f"a record cannot hold a {type(value).__name__} ({value!r:.60}): pass a number, text or list")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(item)


def _refuse_leaks(value: Any, where: str) -> None:
    for text in _strings(value):
        if len(text) > _LONGEST_STRING:
            raise ValueError(f"{where} holds {len(text)} characters, wanted {_LONGEST_STRING} at most: no texts here")
        if _ABSOLUTE_PATH.search(text):
            raise ValueError(f"{where} holds an absolute path: store a name, or a path relative to the repository")


@dataclass(frozen=True, repr=False)
class RunRecord(Rich):
    """One run. Values are made JSON-plain on construction (nan becomes None) and checked; ValueError says what to fix.

    dataset: name, fingerprint, train/dev/test (documents), labels (count), label_space (in words), synthetic (bool).
    system: the start or baseline ('random', 'l2r', 'linear'); params: every hyper-parameter; teacher: its settings.
    history: a dict an epoch (epoch, dev metrics, train_loss, seconds); metrics: test, from `metrics.evaluate`;
    per_document: from `metrics.per_document`; times: stage -> seconds; model_size: a number, or several by name.
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
    model_size: dict[str, float] | float | None = None
    environment: dict[str, Any] = field(default_factory=environment)
    created: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def __post_init__(self) -> None:
        for item in fields(self):
            value = plain(getattr(self, item.name))
            _refuse_leaks(value, f"{item.name} of run {str(self.id)[:80]!r}")
            object.__setattr__(self, item.name, value)
        if not re.fullmatch(r"[\w.@+-]{1,120}", str(self.id)):
            raise ValueError(f"run id {self.id!r}: wanted 1 to 120 letters, digits or . _ - @ + (it is a file name)")
        if self.kind not in KINDS:
            raise ValueError(f"run {self.id}: kind {self.kind!r}, wanted one of {', '.join(KINDS)}")
        for name, wanted in (("dataset", _DATASET_KEYS), ("environment", _ENVIRONMENT_KEYS)):
            if missing := [key for key in wanted if key not in getattr(self, name)]:
                raise ValueError(f"run {self.id}: {name} lacks {', '.join(missing)}; wanted {', '.join(wanted)}")
        for name, values in self.per_document.items():
            if len(values) != self.dataset["test"]:
                raise ValueError(f"run {self.id}: {name!r} has {len(values)} values, wanted {self.dataset['test']}")

    def save(self, folder: str | Path) -> Path:
        """Writes <folder>/<id>.json atomically, one field a line, and returns its path."""
        data = {"schema": SCHEMA} | {item.name: getattr(self, item.name) for item in fields(self)}
        lines = [f"{json.dumps(key)}: {json.dumps(x, ensure_ascii=False, allow_nan=False)}" for key, x in data.items()]
        path = Path(folder) / f"{self.id}.json"
        privacy.check_record(self, path)
        with atomic_path(path) as temporary:
            temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        """ValueError if the file is no record, of another schema, lacks a key or has an unknown one."""
        data, name = read_json(path), Path(path).name
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"{name} has schema {schema!r}, wanted {SCHEMA}: run it again with this version")
        names = {item.name for item in fields(cls)}
        missing, unknown = sorted(names - set(data)), sorted(set(data) - names - {"schema"})
        if missing or unknown:
            raise ValueError(f"{name} lacks {missing} and has unknown keys {unknown}: run it again with this version")
        return cls(**{key: data[key] for key in names})

    def __repr__(self) -> str:
        shown = {key: self.metrics.get(key) for key in ("p@1", "ndcg@5", "few/rp@5")}
        numbers = "".join(f", {key}={value:.4f}" for key, value in shown.items() if value is not None)
        dataset = self.dataset["name"]
        return f"RunRecord({self.id!r}, dataset={dataset!r}, system={self.system!r}, seed={self.seed}{numbers})"

    def _card(self) -> Card:
        data = self.dataset
        about = (f"{self.system} on {data['name']}{' (synthetic)' if data['synthetic'] else ''}, "
                 f"{data['train']} training and {data['test']} test documents, label space: {data['label_space']}")
        rows = [[key, "-" if x is None else f"{x:.4f}"] for key, x in sorted(self.metrics.items())]
        return Card(self.id, about, ["metric", "test"], rows)


def load_all(folder: str | Path) -> list[RunRecord]:
    """Every record of a folder, by file name."""
    return [RunRecord.load(path) for path in sorted(Path(folder).glob("*.json"))]


def compare(records: Iterable[RunRecord], baseline: str = "random",
            metrics: Iterable[str] = ("p@1", "p@5", "ndcg@5", "few/rp@5")) -> pandas.DataFrame:
    """One row a system, the baseline first: seeds, then '<metric>' (mean over seeds) and '<metric> sd'.

    Metrics kept a document add '<metric> diff', 'low', 'high' and 'p': paired bootstrap against the baseline over test
    documents, each document's value averaged over seeds first. ValueError unless all records share one data set
    (fingerprint, label space) and backbone, each (system, seed) occurs once and the baseline is among them.
    """
    import pandas as pd

    groups = _by_system(records, baseline)
    rows = []
    for system in sorted(groups, key=lambda name: (name != baseline, name)):
        row: dict[str, Any] = {"system": system, "seeds": len(groups[system])}
        for metric in metrics:
            row[metric], row[f"{metric} sd"] = mean_sd(record.metrics.get(metric) for record in groups[system])
            if system != baseline:
                row |= _difference(groups[system], groups[baseline], metric)
        rows.append(row)
    return pd.DataFrame(rows).set_index("system")


def _by_system(records: Iterable[RunRecord], baseline: str) -> dict[str, list[RunRecord]]:
    records = sorted(records, key=lambda record: (record.system, record.seed))
    for what, values in (
        ("data set", {(r.dataset["name"], r.dataset["fingerprint"], r.dataset["label_space"]) for r in records}),
        ("backbone", {r.backbone for r in records if r.backbone}),
    ):
        if len(values) > 1:
            raise ValueError(f"records of more than one {what}: {sorted(values)}; pass those of one")
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        group = groups.setdefault(record.system, [])
        if group and group[-1].seed == record.seed:
            raise ValueError(f"{group[-1].id} and {record.id} are both {record.system}, seed {record.seed}: pass one")
        group.append(record)
    if baseline not in groups:
        raise ValueError(f"no record of the baseline {baseline!r}; there are {', '.join(groups) or 'no records'}")
    return groups


def comparable(a: RunRecord, b: RunRecord, metric: str) -> bool:
    """Whether a metric means the same in both: of the labels of a bucket, a run on candidates ranks those among them alone."""
    among_few = "/" in metric and not metric.split("/")[1].startswith("overall")
    return not among_few or ("candidates" in a.params) == ("candidates" in b.params)


def _difference(group: list[RunRecord], base: list[RunRecord], metric: str) -> dict[str, float]:
    if any(metric not in record.per_document for record in (*group, *base)) or not comparable(group[0], base[0], metric):
        return {}
    result = paired_bootstrap(*([record.per_document[metric] for record in side] for side in (group, base)))
    names = {"diff": "mean_difference", "low": "low", "high": "high", "p": "p_value"}
    return {f"{metric} {short}": result[name] for short, name in names.items()}


def to_markdown(table: pandas.DataFrame, level: float = 0.05) -> str:
    """The table of `compare` as Markdown: percent with one decimal, mean ± sd, difference [95 % interval], a star."""
    metrics = [name.removesuffix(" sd") for name in table.columns if name.endswith(" sd")]
    tested = [name for name in metrics if f"{name} p" in table.columns]
    head = ["system", "seeds"] + [title for m in metrics for title in ([m, f"Δ {m}"] if m in tested else [m])]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for system, row in table.iterrows():
        cells = [str(system), str(int(row["seeds"]))]
        for metric in metrics:
            sd = row[f"{metric} sd"]
            cells.append(_percent(row[metric]) + ("" if math.isnan(sd) else f" ± {_percent(sd)}"))
            cells += [_interval(row, metric, level)] if metric in tested else []
        lines.append(cells)
    note = "\n\nPercent; mean ± standard deviation over seeds."
    if tested:
        note += (f" Δ: difference to {table.index[0]} [95 % interval], paired bootstrap over test documents; \\* p < "
                 f"{level:g}, not corrected for the number of comparisons.")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + note


def _percent(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def _interval(row: Mapping[str, float], metric: str, level: float) -> str:
    difference, low, high, p = (row[f"{metric} {name}"] for name in ("diff", "low", "high", "p"))
    if math.isnan(difference):
        return "-"
    return f"{_percent(difference, '+')} [{_percent(low, '+')}, {_percent(high, '+')}]" + (" \\*" if p < level else "")


def section(path: str | Path, name: str) -> str:
    """The text between `<!-- table:begin NAME -->` and `<!-- table:end NAME -->` of a file."""
    return _split(path, name)[1].strip("\n")


def replace_section(path: str | Path, name: str, text: str) -> None:
    """Puts `text` between the two markers of NAME, atomically. ValueError unless each marker occurs once, in order."""
    before, _, after = _split(path, name)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}\n{text.strip()}\n{after}", encoding="utf-8")


def _split(path: str | Path, name: str) -> tuple[str, str, str]:
    content = Path(path).read_text(encoding="utf-8")
    begin, end = f"<!-- table:begin {name} -->", f"<!-- table:end {name} -->"
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{Path(path).name}: wanted one '{begin}' and after it one '{end}': add these lines")
    head, rest = content.split(begin)
    body, tail = rest.split(end)
    return head + begin, body, end + tail


# found by a run, told among its parameters
OUTCOMES = (
    "final_gains", "gains_tried", "gain_chosen", "linear_weight", "linear_weights_tried", "rare_added", "rare_tried",
)  # fmt: skip


def unlike(records: Iterable[RunRecord]) -> dict[str, list[str]]:
    """System -> options in which its records differ beyond their seed; a mean over them is not one of seeds alone."""
    said: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for name, value in _options(record.params).items():
            if name == "linear.dense_cells":  # a threshold matters by the side of it that the data lie on
                value = record.dataset["train"] * record.dataset["labels"] > value
            # an option that a record does not know was not there to be chosen, and what came out of a run is none
            if value is not None and name.split(".")[0] not in OUTCOMES:
                said.setdefault(record.system, {}).setdefault(name, set()).add(repr(value))
    found = {system: sorted(n for n, values in options.items() if len(values) > 1) for system, options in sorted(said.items())}
    return {system: names for system, names in found.items() if names}


def _options(params: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Options by their dotted names, without seeds."""
    found = {}
    for name, value in params.items():
        if name != "seed":
            found |= _options(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found
