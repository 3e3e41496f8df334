"""Published numbers and the bars of `results/bars.csv` beside ours: what can be compared, and which
way it falls.

Reads groups of records (`report.groups`), `results/paper_numbers.csv` (what papers report) and
`results/bars.csv` (what peers reached when the project began, to be passed). Ours is one
start fixed beforehand: a choice by test metric would flatter. Nothing here trains or evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from companion.report.metric_names import NAMES
from companion.report.report import Group, markdown_table
from plantlib.data.sources import checkout
from plantlib.metrics.statistics import mean_sd
from plantlib.training.records import RunRecord, device_of
from plantlib.utils.io import read_json

if TYPE_CHECKING:
    import pandas


OURS = ("lookup+linear", "lookup+score", "lookup", "l2r", "closed_form")
UNTRAINED = "linear score"  # what training begins from: an SVM and bare teachers, no attention


# data sets of `paper_numbers.csv` that are measured by the official protocol of CodiEsp -> the file
# of results/ with ours, by the same supervision (`companion.studies.official`)
OFFICIAL = {
    "codiesp-es, official protocol": "official-codiesp-d-spans.json",
    "codiesp-p-es, official protocol": "official-codiesp-p-spans.json",
}


class Found(NamedTuple):
    """Our number: what it is of, mean and sd in percent over seeds, training documents, the first
    run and its device.
    """

    system: str
    seeds: int
    mean: float
    sd: float
    train: int
    run: str
    device: str

    def __str__(self) -> str:
        spread = "" if self.sd != self.sd else f" ± {self.sd:.1f}"
        return f"{self.mean:.1f}{spread} ({self.seeds})"


def paper_numbers(path: str | Path | None = None) -> pandas.DataFrame:
    """results/paper_numbers.csv: system, dataset, train (documents), metric, value (percent),
    comparable, source, note.
    """
    import pandas as pd

    return pd.read_csv(path or checkout() / "results" / "paper_numbers.csv", keep_default_na=False)


def paper_vs_ours(
    paper: pandas.DataFrame, found: list[Group], results: str | Path | None = None
) -> pandas.DataFrame:
    """Published numbers beside ours, a row each: paper, ours (mean ± sd (n)), difference,
    untrained, verdict, run, device; source and note are those of the paper's number.

    results: the folder of the files of OFFICIAL; results/ of the checkout when None.

    Published metrics count gold labels without a training document, so ours do where the metric can
    (`all/...`). untrained: the linear score on the same documents, which says how much of a good
    number is not the attention's. Verdicts: not comparable (the published number was obtained
    otherwise, see its note), not run, different data (another number of training documents),
    reproduced (within one of our standard deviations), below, above.
    """
    import pandas as pd

    rows = []
    for item in paper.to_dict("records"):
        if item["dataset"] in OFFICIAL:
            ours = _official(item, Path(results or checkout() / "results"))
        else:
            ours = of_start(found, item["dataset"], item["metric"], OURS)
        untrained = of_start(found, item["dataset"], item["metric"], (UNTRAINED,))
        row = {name: item[name] for name in ("system", "dataset", "train", "metric")} | {
            "paper": float(item["value"])
        }
        row |= {name: item[name] for name in ("source", "note")}
        row |= {
            "ours": "-" if ours is None else str(ours),
            "start": "-" if ours is None else ours.system,
        }
        row |= {"difference": float("nan") if ours is None else ours.mean - row["paper"]}
        row |= {
            "untrained": "-" if untrained is None else f"{untrained.mean:.1f}",
            "verdict": _verdict(item, ours),
        }
        row |= {
            "run": "-" if ours is None else ours.run,
            "device": "-" if ours is None else ours.device,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _official(item: dict, results: Path) -> Found | None:
    """Ours by the official protocol with as many training documents, where it is measured."""
    path = results / OFFICIAL[item["dataset"]]
    rows = read_json(path)["rows"] if path.is_file() else []
    rows = [row for row in rows if str(row["documents"]) == str(item["train"])]
    if not rows:
        return None
    mean, sd = mean_sd(100 * row[item["metric"]] for row in rows)
    train = rows[0]["documents"]
    return Found("counted phrases and words", len(rows), mean, sd, train, path.stem, "cpu")


def _verdict(item: dict, ours: Found | None) -> str:
    """The verdict on a published number, also where ours has another number of documents."""
    comparable = item["comparable"] == "yes"
    if comparable and ours is not None and str(ours.train) != str(item["train"]):
        return "different data"
    mean, sd = (None, float("nan")) if ours is None else (ours.mean, ours.sd)
    return verdict_of(float(item["value"]), mean, sd, comparable)


def verdict_of(paper: float, ours: float | None, sd: float, comparable: bool) -> str:
    """The verdict on a published number from the same corpus and size.

    ours, sd: mean and standard deviation over seeds; None without a run, nan for a single seed.
    """
    if not comparable:
        return "not comparable"
    if ours is None:
        return "not run"
    if abs(ours - paper) <= sd:  # false where one seed leaves the sd unknown
        return "reproduced"
    return "below" if ours < paper else "above"


def of_start(
    found: list[Group], dataset: str, metric: str, starts: tuple[str, ...]
) -> Found | None:
    """The first of `starts` on the largest group of a data set that has the metric."""
    own = [g for g in found if g.dataset["name"] == dataset]
    for group in sorted(own, key=lambda g: (-g.dataset["train"], not g.systems & set(starts[:1]))):
        for start in starts:
            if ours := _mean(group, start, lambda r: r.metrics.get(_counted(r, metric))):
                return ours
    return None


def _mean(group: Group, start: str, value: Callable[[RunRecord], float | None]) -> Found | None:
    """The runs of a start in a group, where each of them has the value (a fraction)."""
    records = [r for r in group.records if r.system == start]
    values = [value(r) for r in records]
    if not values or None in values:
        return None
    first = records[0]
    mean, sd = mean_sd(100 * v for v in values)
    train = group.dataset["train"]
    return Found(start, len(records), mean, sd, train, first.id, device_of(first))


def _counted(record: RunRecord, metric: str) -> str:
    """The metric with gold labels outside the label space counted, where a record has it."""
    return f"all/{metric}" if f"all/{metric}" in record.metrics else metric


def bars(path: str | Path | None = None) -> pandas.DataFrame:
    """results/bars.csv: dataset, train, metric, system, value (percent) of the peer, ours (the
    start held to it), source.
    """
    import pandas as pd

    return pd.read_csv(path or checkout() / "results" / "bars.csv", keep_default_na=False)


def passed(wanted: pandas.DataFrame, found: list[Group]) -> pandas.DataFrame:
    """The bars with what we have: ours (mean ± sd (n)), difference and met ("yes", "no", "not
    run").

    A bar's metrics were taken in its label space, labels with a training document, and so are ours.
    """
    import pandas as pd

    rows = []
    for item in wanted.to_dict("records"):
        own = [
            g
            for g in found
            if (g.dataset["name"], g.dataset["train"]) == (item["dataset"], int(item["train"]))
        ]
        ours = next(
            filter(
                None,
                (_mean(g, item["ours"], lambda r, m=item["metric"]: r.metrics.get(m)) for g in own),
            ),
            None,
        )
        row = {name: item[name] for name in ("dataset", "train", "metric", "system")} | {
            "bar": float(item["value"])
        }
        if ours is None:
            row |= {"ours": "-", "difference": float("nan"), "met": "not run"}
        else:
            row |= {
                "ours": str(ours),
                "difference": ours.mean - row["bar"],
                "met": "yes" if ours.mean > row["bar"] else "no",
            }
        rows.append(row | {"start": item["ours"]})
    return pd.DataFrame(rows)


def gains(paper: pandas.DataFrame, found: list[Group], metric: str = "p@5") -> pandas.DataFrame:
    """What planting adds to learned attention, in points: published (planted against learned) and
    ours (against random).
    """
    import pandas as pd

    rows, part = [], paper[paper["metric"] == metric]
    learned = part[part["system"] == "v1 learned attention"].set_index("train")["value"]
    for item in part[part["system"] == "PLANT v1"].to_dict("records"):
        rows.append(
            {
                "data": item["dataset"],
                "train": int(item["train"]),
                "start": "PLANT v1 (published)",
                "gain": float(item["value"]) - float(learned[item["train"]]),
            }
        )
    for group in found:
        table = group.table([metric])
        if group.baseline != "random" or f"{metric} diff" not in table.columns:
            continue
        for start in [
            s
            for s in ("l2r", "closed_form", "lookup", "lookup+score", "lookup+linear")
            if s in table.index
        ]:
            rows.append(
                {
                    "data": group.stem,
                    "train": group.dataset["train"],
                    "start": start,
                    "gain": 100 * table.loc[start, f"{metric} diff"],
                }
            )
    return pd.DataFrame(rows)


def published_table(judged: pandas.DataFrame) -> str:
    """`paper_vs_ours` as Markdown: a row for each published system, data set and verdict."""
    head, rows = ["system", "data", "train", "paper", "ours", "untrained", "verdict"], []
    for keys, part in judged.groupby(["system", "dataset", "train", "verdict"], sort=False):
        system, data, train, verdict = keys
        pairs = zip(part["metric"], part["paper"], strict=True)
        paper = ", ".join(f"{named(metric)} {value:.1f}" for metric, value in pairs)
        known = part["ours"].ne("-").any()
        ours, untrained = (", ".join(part[c]) if known else "-" for c in ("ours", "untrained"))
        train = f"{int(train):,}" if train else "-"
        rows.append([system, data, train, paper, ours, untrained, verdict])
    counts = judged["verdict"].value_counts().items()
    counted = ", ".join(f"{n} {verdict}" for verdict, n in counts)
    note = f"Percent on test, mean ± sd (seeds); of {len(judged)} published numbers: {counted}."
    return f"{markdown_table(head, rows, text=len(head))}\n\n{note}"


def bars_table(held: pandas.DataFrame) -> str:
    """`passed` as Markdown."""
    head = ["data", "train", "measure", "bar set by", "our start", "bar", "ours", "difference"]
    rows = []
    for row in held.to_dict("records"):
        difference = row["difference"]
        rows.append(
            [
                row["dataset"],
                f"{int(row['train']):,}",
                named(row["metric"]),
                row["system"],
                row["start"],
                f"{row['bar']:.1f}",
                row["ours"],
                "-" if difference != difference else f"{difference:+z.1f}",
                row["met"],
            ]
        )
    note = "Percent on test, mean ± sd (seeds)."
    return f"{markdown_table([*head, 'passed'], rows, text=5)}\n\n{note}"


def named(metric: str) -> str:
    """A metric as tables write it: `few/p@8` is "P@8 few"."""
    if metric in NAMES:
        return NAMES[metric]
    bucket, _, name = metric.rpartition("/")
    stem, at, k = name.partition("@")
    stem = {"micro_f1": "micro-F1", "ndcg": "nDCG"}.get(stem, stem.upper())
    return f"{stem}{at}{k} {bucket}".strip()
