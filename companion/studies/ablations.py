"""What each part of planting is worth: one switch at a time from one base run, everything else as
it was.

Realises METHOD.md's demand that planted and unplanted runs differ in one thing. A row of SWITCHES
is a start and what changes of the `RunConfig`, or how many windows are read. `run` makes the
records that are missing, under ids of their own; `effects` compares each with the base, document by
document. Records name notebook 06, so that 07's main tables leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.report.compare import compare
from plantlib.training.options import RunConfig
from plantlib.training.pipeline import Prepared, prepare
from plantlib.training.records import RunRecord, run_name
from plantlib.training.runs import finished, run_start
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


NOTEBOOK = "06_ablations"
BASE = "base"
WINDOWS = "windows"  # of the base's tokens each, streamed; the one change that is none of RunConfig


# name -> (start, {option of RunConfig, with a dot for an option inside an option: value})
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("lookup", {}),
    "no planting": ("random", {}),
    "teacher shuffled": ("shuffled", {}),
    "teacher random": ("lookup", {"teacher.variant": "random"}),
    "teacher J": ("lookup", {"teacher.variant": "jaccard"}),
    "teacher MI / H(l)": ("lookup", {"teacher.variant": "label_entropy"}),
    "teacher chi-squared": ("lookup", {"teacher.variant": "chi2"}),
    "teacher pointwise MI": ("lookup", {"teacher.variant": "ppmi"}),
    "published grades": ("lookup", {"teacher.relevance": "grade"}),
    "16 tokens a label": ("lookup", {"teacher.top_k": 16}),
    "256 tokens a label": ("lookup", {"teacher.top_k": 256}),
    "gain 1": ("lookup", {"start.lookup_gain": 1.0}),
    "gain 8": ("lookup", {"start.lookup_gain": 8.0}),
    "queries frozen": ("lookup", {"train.lr_queries": 0.0}),
    "queries slower": ("lookup", {"train.lr_queries": 1e-3}),
    "no planting, queries slower": ("random", {"train.lr_queries": 1e-3}),
    # queries near zero that stay there: every label reads the plain mean of a document
    "no planting, queries frozen": ("random", {"train.lr_queries": 0.0}),
    "queries from approxNDCG": ("l2r", {}),
    "queries from LambdaRank": ("l2r", {"l2r_trainer": "lambdarank"}),
    "L2R for one epoch": ("l2r", {"l2r.epochs": 1}),
    "queries in closed form": ("closed_form", {}),
    "queries and lookup": ("l2r+lookup", {}),
    "outputs planted too": ("lookup+outputs", {}),
    "outputs alone": ("outputs", {}),
    "inattention K 8": ("lookup", {"keep": 8}),
    "inattention K 32": ("lookup", {"keep": 32}),
    "loss approxNDCG": ("lookup", {"train.loss": "approx_ndcg"}),
    "teacher's score too": ("lookup+score", {}),
    "linear score too": ("lookup+linear", {}),
    # the base reads a document's beginning in one window; these read on, a window at a time, and
    # attend over all of them
    "four windows streamed": ("lookup", {WINDOWS: 4}),
    "no planting, four windows streamed": ("random", {WINDOWS: 4}),
}


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """`config` with options replaced; "teacher.top_k" is an option of an option. ValueError for one
    there is not.
    """
    for name, value in changes.items():
        outer, _, inner = name.partition(".")
        if not hasattr(config, outer) or (inner and not hasattr(getattr(config, outer), inner)):
            raise ValueError(
                f"{name!r} is no option of a run; use a field of RunConfig, or teacher.top_k for"
                " one inside"
            )
        part = getattr(config, outer)
        if not inner and is_dataclass(part):
            raise ValueError(
                f"{name!r} holds several options; name one of them, e.g."
                f" {name}.{next(iter(vars(part)))}"
            )
        config = replace(config, **{outer: replace(part, **{inner: value}) if inner else value})
    return config


def run(
    prepared: Prepared,
    switches: Iterable[str] = tuple(SWITCHES),
    seeds: Iterable[int] = (0, 1, 2),
    *,
    config: RunConfig | None = None,
    results: str | Path,
    progress: bool = True,
) -> list[RunRecord]:
    """The records of every switch and seed; those that stand in `results` with the same options are
    read, not made again.
    """
    switches = list(switches)
    unknown = [name for name in switches if name not in SWITCHES]
    if unknown:
        raise ValueError(f"switch {unknown[0]!r} is not known; use {', '.join(SWITCHES)}")
    jobs = [(name, seed) for seed in seeds for name in switches]
    # a corpus is read once for all runs in so many windows
    found, view = [], cache(partial(streamed, prepared))
    with tqdm(jobs, desc="ablations", unit="run", disable=not progress) as bar:
        for name, seed in bar:
            bar.set_postfix_str(f"{name}, seed {seed}")
            found.append(one(prepared, name, seed, config=config, results=results, view=view))
    return found


def one(
    prepared: Prepared,
    name: str,
    seed: int,
    *,
    config: RunConfig | None = None,
    results: str | Path,
    view: Callable[[int], Prepared] | None = None,
) -> RunRecord:
    """One switch and seed as a record whose system is the switch's name.

    view: `prepared` as read in so many windows; `streamed` when None.
    """
    start, changes = SWITCHES[name]
    # one gain in the whole grid: a choice would be a second switch
    base = replace(config or RunConfig(), other_gains=(), linear_weights=())
    read = {WINDOWS: changes[WINDOWS]} if WINDOWS in changes else {}
    own = {key: value for key, value in changes.items() if key not in read}
    prepared = (view or partial(streamed, prepared))(read.get(WINDOWS, 1))
    config, run_id = changed(base, own), run_id_of(prepared, name, seed)
    record = finished(Path(results) / f"{run_id}.json", prepared, config, seed)
    if record is None:
        record, _ = run_start(
            prepared, start, seed, config=config, run_id=run_id, notebook=NOTEBOOK, progress=False
        )
        record = replace(record, system=name, params=record.params | {"start_name": start} | read)
        record.save(results)
    return record


def streamed(prepared: Prepared, windows: int) -> Prepared:
    """The same documents and labels, read on for `windows` times as many tokens, in windows of as
    many as before.

    ValueError for a corpus that is read whole, or in windows already.
    """
    if windows == 1:
        return prepared
    if not prepared.max_tokens or prepared.max_tokens > prepared.window:
        read, most = prepared.max_tokens, prepared.window
        raise ValueError(
            f"{windows} windows of max_tokens={read}: let the base read 1 to {most} tokens"
        )
    more = prepare(
        prepared.corpus,
        backbone=prepared.backbone,
        max_tokens=windows * prepared.max_tokens,
        window=prepared.max_tokens,
        root=prepared.root,
        trust_remote_code=prepared.trust_remote_code,
        label_space="all",
        progress=False,
    )
    # the base's label space as it stands, and the gold labels it lacks
    return replace(more, label_space=prepared.label_space, extra_gold=prepared.extra_gold)


def run_id_of(prepared: Prepared, name: str, seed: int) -> str:
    """Id of an ablation, a file name: "ablation", then as other runs."""
    safe = "".join(c if c.isalnum() else "_" for c in name)
    return f"ablation-{run_name(prepared, safe, seed)}"


def of(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Ablation records by data set, documents and tokens read."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.notebook == NOTEBOOK and record.system in SWITCHES:
            # of the base, where several windows were read
            tokens, windows = record.params["max_tokens"], record.params.get(WINDOWS)
            tokens = tokens // windows if windows else tokens
            key = (
                f"{record.dataset['name']}, {record.dataset['train']:,} documents, {tokens} tokens"
            )
            found.setdefault(key, []).append(record)
    return found


def effects(
    records: Iterable[RunRecord], metrics: Iterable[str] = ("ndcg@5", "few/rp@5", "p@1")
) -> pandas.DataFrame:
    """A row a switch in the order of SWITCHES: mean, difference to the base with its interval from
    paired bootstrap.

    Of the seeds those that every switch has been run with, so that a grid in the making compares
    like with like.
    """
    records = list(records)
    seeds = [{r.seed for r in records if r.system == name} for name in {r.system for r in records}]
    common = set.intersection(*seeds) or set.union(*seeds)
    records = [r for r in records if r.seed in common]
    table = compare(records, BASE, list(metrics))
    return table.loc[[name for name in SWITCHES if name in table.index]]
