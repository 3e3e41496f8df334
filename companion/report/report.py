"""Run records to tables and figures (docs/method.md, "Metrics" and "Controls and peers").

It reads the JSON of `results` and nothing else, so a table can be made again from the committed
files on any machine. A group is what may stand in one table: one data set (fingerprint), backbone
and number of tokens read; the peers read whole documents and stand in every group of their data
set, neural ones in that of their tokens. Published numbers and bars are held beside groups in
`verdicts.py`, planted starts beside their controls in `worth.py`; `companion.pages` puts the tables
into the pages. Nothing here trains or evaluates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from companion.report import plots
from companion.report.compare import compare, to_markdown, unlike
from companion.report.metric_names import NAMES
from plantlib.data.sources import checkout
from plantlib.metrics.buckets import EDGES, checked, in_words
from plantlib.training.options import HISTORY_METRICS
from plantlib.training.records import RunRecord, device_of, load_all
from plantlib.utils.checks import safe_name
from plantlib.utils.io import atomic_path

if TYPE_CHECKING:
    import pandas


# systems as the tables show them; those without a place here follow by name
ORDER = (
    "random",
    "shuffled",
    "l2r",
    "closed_form",
    "lookup",
    "score",
    "lookup+score",
    "linear",
    "shuffled+linear",
    "lookup+linear",
    "linear score",
    "SVM",
    "SVM, tuned",
    "SVM + J",
    "SVM + MI",
    "logistic",
    "Parabel",
    "Bonsai",
    "PLT",
    "XR-Linear",
    "CAML head",
    "PLM-ICD head",
)
FIGURE_METRICS = ("ndcg@5", "few/rp@5")
# columns of `summary`
SUMMARY = (
    "random",
    "lookup",
    "linear score",
    "linear",
    "shuffled+linear",
    "lookup+linear",
    "SVM",
    "SVM + J",
    "SVM + MI",
    "bare MI",
)
# systems of the figure of label frequencies
BAR_SYSTEMS = (
    "random",
    "closed_form",
    "lookup",
    "score",
    "lookup+score",
    "linear",
    "lookup+linear",
    "SVM",
    "SVM + MI",
    "bare MI",
)
# notebooks and studies whose records have tables of their own
ELSEWHERE = ("06", "08", "09", "convergence", "leak_audit", "learning_curves")
NO_RUNS = "No runs yet: `make reproduce` makes them, `make promote` copies them to results/runs."
METRICS = tuple(NAMES)


@dataclass(frozen=True)
class Group:
    """Records that may stand in one table.

    `set_aside` counts further records of the same system and seed, which are left out.
    """

    stem: str
    records: list[RunRecord]
    set_aside: int = 0

    @property
    def dataset(self) -> dict:
        return self.records[0].dataset

    @property
    def quick(self) -> bool:
        """Whether its models are of the quick tier, without a language model."""
        return any(record.backbone == "words" for record in self.records)

    @property
    def systems(self) -> set[str]:
        return {record.system for record in self.records}

    @property
    def baseline(self) -> str:
        """The system that differences are taken to: the first of ORDER that the group has."""
        return in_order({record.system for record in self.records})[0]

    def table(self, metrics: Iterable[str] = METRICS) -> pandas.DataFrame:
        """`compare.compare` in the order of ORDER; metrics that no record has are left out."""
        wanted = [m for m in metrics if m in self._whole.columns]
        columns = [
            c for m in wanted for c in self._whole.columns if c == m or c.startswith(f"{m} ")
        ]
        return self._whole[["seeds", *columns]]

    @cached_property
    def _whole(self) -> pandas.DataFrame:
        # computed once: the bootstraps take most of the time, and every table and figure needs them
        have = [
            m for m in METRICS if any(record.metrics.get(m) is not None for record in self.records)
        ]
        found = compare(self.records, self.baseline, have)
        return found.loc[in_order(found.index)]

    def about(self) -> str:
        """What every number is stated with: data, label space, tokens, seeds and device."""
        data, planted = self.dataset, [r for r in self.records if r.kind == "planted"]
        seeds = ", ".join(map(str, sorted({r.seed for r in planted})))
        devices = " and ".join(sorted({device_of(r) for r in planted}))
        read = f"first {tokens_of(planted[0])} tokens read, backbone {backbone_of(planted[0])}"
        if "candidates" in planted[0].params:
            read += (
                f", each document's {planted[0].params['width']} best labels by"
                f" {planted[0].params['candidates']} scored"
            )
        sizes = ", ".join(f"{data[split]:,} {split}" for split in ("train", "dev", "test"))
        own = (
            f" Buckets of its own: {in_words(checked(data['bucket_edges']))}."
            if "bucket_edges" in data
            else ""
        )
        return (
            f"**{data['name']}**{' (synthetic)' if data['synthetic'] else ''}: {sizes} documents;"
            f" {data['labels']:,} {data['label_space']}; {read}; seeds {seeds}; {devices}. Linear"
            " peers and bare teachers read whole documents."
            + own
            + "".join(
                f" Runs of {s} differ in more than the seed: {', '.join(o)}."
                for s, o in unlike(self.records).items()
            )
        )


def in_order(systems: Iterable[str]) -> list[str]:
    """Systems as the tables show them: starts, linear peers, then the rest by name."""
    return sorted(systems, key=lambda s: (ORDER.index(s) if s in ORDER else len(ORDER), s))


def tokens_of(record: RunRecord) -> int | str:
    """Tokens that a planted run read of each document."""
    return record.params.get("max_tokens") or "all"


def backbone_of(record: RunRecord) -> str:
    """Backbone of a planted run, and how it was tuned when it was not frozen: `minilm`,
    `minilm-lora`.
    """
    tuning = record.params.get("tuning") or "frozen"
    return str(record.backbone) + ("" if tuning == "frozen" else f"-{tuning}")


def load(folder: str | Path) -> list[RunRecord]:
    """Every record of a folder; none when the folder is missing."""
    return load_all(folder) if Path(folder).is_dir() else []


def groups(records: Iterable[RunRecord], elsewhere: tuple[str, ...] = ELSEWHERE) -> list[Group]:
    """Records by data set, backbone and tokens; a data set without a planted run is left out.

    elsewhere: notebooks whose records have tables of their own: ablations (06), backbones (08,
    `backbone_report.py`), the first version (09), leak audit, learning curves, the long runs of
    `convergence.py`.
    """
    by_data: dict[tuple, list[RunRecord]] = {}
    for record in [r for r in records if not (r.notebook or "-").startswith(elsewhere)]:
        by_data.setdefault(
            (record.dataset["name"], record.dataset["train"], record.dataset["fingerprint"]), []
        ).append(record)
    found: list[Group] = []
    for (name, train, fingerprint), part in sorted(by_data.items()):
        peers = [r for r in part if r.kind != "planted"]
        planted: dict[tuple, list[RunRecord]] = {}
        for record in [r for r in part if r.kind == "planted"]:
            planted.setdefault((backbone_of(record), str(tokens_of(record))), []).append(record)
        for (backbone, tokens), own in sorted(planted.items()):
            stem, ends = (
                f"{safe_name(name)}-{train}d-{tokens}t",
                ("", f"-{backbone}", f"-{backbone}-{fingerprint[:6]}")[backbone == "words" :],
            )
            stem = next(stem + end for end in ends if stem + end not in {g.stem for g in found})
            # a neural peer reads so many tokens
            beside = [r for r in peers if str(r.params.get("read", tokens)) == tokens]
            kept = _one_each([*own, *beside])
            # a peer measured again for its costs (`library_peers.py`) is the same row, not another
            # one
            aside = [r for r in (*own, *beside) if r not in kept and r.notebook != "peers"]
            found.append(Group(stem, kept, len(aside)))
    return found


def _one_each(records: list[RunRecord]) -> list[RunRecord]:
    """One record per system and seed; notebook 05's where there are several."""
    worst_first = sorted(records, key=lambda r: (r.notebook == "05_finetune", r.id))
    return list({(r.system, r.seed): r for r in worst_first}.values())


def write_table(group: Group, out: str | Path) -> Path:
    """<out>/table-<data set>-<train>d-<tokens>t.md: what was measured, on what, with differences to
    the baseline.
    """
    aside = (
        f"\n\n{group.set_aside} further records of the same system and seed were set aside."
        if group.set_aside
        else ""
    )
    path = Path(out) / f"table-{group.stem}.md"
    with atomic_path(path) as temporary:
        temporary.write_text(
            f"# {group.stem}\n\n{group.about()}\n\n{to_markdown(group.table())}{aside}\n",
            encoding="utf-8",
        )
    return path


def figures(group: Group, folder: str | Path) -> list[Path]:
    """start_comparison, bucket_bars and learning_curves of a group as PNG; a figure without data is
    left out.

    `bare PPMI` stands in the tables alone: it lies so far below that every other difference would
    vanish beside it.
    """
    import pandas as pd

    paths, table = [], group.table().drop(index="bare PPMI", errors="ignore")
    for metric in [m for m in FIGURE_METRICS if f"{m} diff" in table.columns]:
        ax = plots.start_comparison(table, metric)
        ax.set_title(f"{plots.plain(group.stem)}: difference in {NAMES[metric]}")
        paths.append(
            plots.save(
                ax, Path(folder) / f"start_comparison-{metric.replace('/', '_')}-{group.stem}.png"
            )
        )
    rows = [{"system": s, **r.metrics} for s in BAR_SYSTEMS for r in group.records if r.system == s]
    frame = pd.DataFrame(rows).reindex(columns=["system", "few/rp@5", "medium/rp@5", "head/rp@5"])
    if len(frame):
        ax = plots.bucket_bars(frame.astype({c: float for c in frame.columns[1:]}))
        ax.set_title(f"{plots.plain(group.stem)}: RP@5 by training frequency of the labels")
        paths.append(plots.save(ax, Path(folder) / f"bucket_bars-{group.stem}.png"))
    epochs = curves(group.records)
    if len(epochs):
        ax = plots.learning_curves(epochs)
        ax.set_title(f"{plots.plain(group.stem)}: dev nDCG@5 while training")
        paths.append(plots.save(ax, Path(folder) / f"learning_curves-{group.stem}.png"))
    return paths


def curves(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """History of planted runs as `plots.learning_curves` reads it: start, seed, epoch and dev
    metrics, nan where dev has no label of a bucket.
    """
    import pandas as pd

    records = [r for r in records if r.kind == "planted"]
    rows = [
        {"start": s, "seed": r.seed, **e}
        for s in in_order({r.system for r in records})
        for r in records
        if r.system == s
        for e in r.history
    ]
    columns = dict.fromkeys(["start", "seed", "epoch", *(k for row in rows for k in row)])
    return pd.DataFrame(rows, columns=list(columns | dict.fromkeys(HISTORY_METRICS)))


def all_systems(found: list[Group]) -> str:
    """Every system in a table for each data set: mean ± sd over seeds, a star where the baseline is
    passed or missed.
    """
    if not found:
        return NO_RUNS
    parts = []
    for group in found:
        table = group.table()
        have = [m for m in METRICS if m in table.columns]
        rows = [
            [system, f"{int(row['seeds'])}", *(cell(row, m) for m in have)]
            for system, row in table.iterrows()
        ]
        head = ["system", "seeds", *(NAMES[m] for m in have)]
        parts.append(f"{group.about()}\n\n{markdown_table(head, rows)}")
    note = (
        "Percent on test; mean ± sd over seeds. \\*: p < 0.05 against the first row in either"
        " direction, paired bootstrap over seeds and test documents, tested for P@1, P@5, nDCG@5"
        " and RP@5 few alone, not corrected for their number. Runs on candidates share one linear"
        f" score, so their sd is that of the decoder alone. {in_words(EDGES)}."
    )
    return "\n\n".join([*parts, note])


def summary(found: list[Group]) -> str:
    """The main systems in one table: a row for each data set and metric of FIGURE_METRICS, a column
    for each system of SUMMARY.

    Of groups with the same data set and number of documents the one with `lookup+linear` stands
    here, else that with most records; a system it lacks comes from the fullest of the others, with
    a dagger. All of them stand in `all_systems`.
    """
    if not found:
        return NO_RUNS
    sets: dict[tuple, list[Group]] = {}
    for group in found:
        sets.setdefault((group.dataset["name"], group.dataset["train"]), []).append(group)
    rows = []
    for (name, train), groups_of_set in sets.items():
        main, *others = sorted(
            groups_of_set, key=lambda g: ("lookup+linear" not in g.systems, -len(g.records))
        )
        tables = [g.table(FIGURE_METRICS) for g in (main, *others[:1])]
        for metric in [m for m in FIGURE_METRICS if m in tables[0].columns]:
            own = [_summary_cell(tables, system, metric) for system in SUMMARY]
            rows.append([f"{name}, {train:,} documents: {NAMES[metric]}", *own])
    note = (
        "Mean ± sd over seeds. †: a run that read fewer tokens and, on EURLEX57K, had another dev"
        " set. \\*: p < 0.05 against `random`, or against `linear` in rows where `random` is"
        " missing or has a †. RP@5 few of runs on candidates is not tested against systems that"
        " rank all labels."
    )
    return f"{markdown_table(['test, percent', *SUMMARY], rows)}\n\n{note}"


def _summary_cell(tables: list, system: str, metric: str) -> str:
    """The cell of the first table that has the system; without a star and with a dagger when it is
    not the first of all.
    """
    for place, table in enumerate(tables):
        if system in table.index:
            row = table.loc[system]
            return (
                cell(row.drop(f"{metric} p", errors="ignore"), metric) + " †"
                if place
                else cell(row, metric)
            )
    return "-"


def cell(row, metric: str) -> str:
    """Mean ± sd in percent, a star where the difference to the baseline has p < 0.05."""
    value, sd, p = (row.get(f"{metric}{suffix}") for suffix in ("", " sd", " p"))
    text = "-" if value != value else f"{100 * value:.1f}"
    return (
        text
        + ("" if sd != sd else f" ± {100 * sd:.1f}")
        + (" \\*" if p is not None and p < 0.05 else "")
    )


def markdown_table(head: list[str], rows: Iterable[list[str]], text: int = 1) -> str:
    """A table in Markdown; the first `text` columns are text, the others numbers."""
    marks = ["---"] * text + ["---:"] * (len(head) - text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, marks, *rows])


def on_disk(folder: str | Path, pattern: str = "**/*") -> pandas.DataFrame:
    """Files under a folder, by relative name, with their size in MB: the last look of every
    notebook.
    """
    import pandas as pd

    folder = Path(folder)
    files = sorted(p for p in folder.glob(pattern) if p.is_file() and not p.name.startswith("."))
    names = [f"{folder.name}/{p.relative_to(folder).as_posix()}" for p in files]
    return pd.DataFrame({"file": names, "MB": [round(p.stat().st_size / 2**20, 2) for p in files]})


def kernel_benchmarks(path: str | Path | None = None) -> pandas.DataFrame:
    """Every row of results/bench/kernels.csv, in the order `make bench` appended them."""
    import pandas as pd

    path = Path(path) if path else checkout() / "results" / "bench" / "kernels.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is not in {path.parent.name}/; run `make bench` to measure it"
        )
    return pd.read_csv(path)


def newest_rows(measured: pandas.DataFrame) -> pandas.DataFrame:
    """The last measurement of each device, op, shape and implementation."""
    return measured.drop_duplicates(["device", "op", "shape", "implementation"], keep="last")


def memory_rows(measured: pandas.DataFrame) -> pandas.DataFrame:
    """What `plots.memory_law` draws: labels, implementation, memory_mb (MiB), from the rows of
    label_attention_memory.
    """
    rows = newest_rows(measured[measured.op == "label_attention_memory"])
    labels = rows["shape"].str.extract(r"L=(\d+)")[0].astype(int)
    return rows.assign(labels=labels, memory_mb=rows.extra_mib)[
        ["labels", "implementation", "memory_mb"]
    ]
