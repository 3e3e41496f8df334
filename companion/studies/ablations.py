"""What each part of planting is worth: runs that differ from one base run in one thing.

The ablations of docs/method.md, "Controls and peers". A row of SWITCHES is a start and the options
of `RunConfig` that change, or the number of windows that are read. `run` makes the records that are
missing, and `effects` compares each switch with the base, document by document. The records name
notebook 06, so the main tables of notebook 07 leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.report.compare import compare
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, run_name
from plantlib.training.runs import finished, run_start
from plantlib.utils.progress import tqdm

if TYPE_CHECKING:
    import pandas


NOTEBOOK = "06_ablations"
BASE = "base"
WINDOWS = "windows"  # number of windows read; the one change that is not an option of RunConfig


# name -> (start, {option of RunConfig: value}); "teacher.top_k" is the option top_k of teacher
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
    # a training document reads the lists that it has been counted for
    "teacher in-sample": ("lookup", {"teacher.cross_fitted": False}),
    "16 tokens a label": ("lookup", {"teacher.top_k": 16}),
    "256 tokens a label": ("lookup", {"teacher.top_k": 256}),
    "gain 1": ("lookup", {"start.lookup_gain": 1.0}),
    "gain 8": ("lookup", {"start.lookup_gain": 8.0}),
    "queries frozen": ("lookup", {"train.lr_queries": 0.0}),
    "queries slower": ("lookup", {"train.lr_queries": 1e-3}),
    "no planting, queries slower": ("random", {"train.lr_queries": 1e-3}),
    # the queries stay near zero, so every label reads the mean of a document
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
    # the base reads the first window of a document; these read four and attend over all of them
    "four windows streamed": ("lookup", {WINDOWS: 4}),
    "no planting, four windows streamed": ("random", {WINDOWS: 4}),
}


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """`config` with options replaced.

    changes: option -> value; "teacher.top_k" is the option top_k of teacher. ValueError for an
    option that does not exist.
    """
    for name, value in changes.items():
        outer, _, inner = name.partition(".")
        if not hasattr(config, outer) or (inner and not hasattr(getattr(config, outer), inner)):
            raise ValueError(
                f"{name!r} is not an option of a run; use a field of RunConfig, or a name such as"
                " teacher.top_k for a field of a field"
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
    prepared: Inputs,
    switches: Iterable[str] = tuple(SWITCHES),
    seeds: Iterable[int] = (0, 1, 2),
    *,
    config: RunConfig | None = None,
    results: str | Path,
    progress: bool = True,
) -> list[RunRecord]:
    """The records of every switch and seed.

    Args:
        prepared: the corpus as the base reads it.
        switches: names of SWITCHES.
        seeds: of the runs.
        config: options of the base.
        results: folder of the records; a run whose record is there with the same options is not
            repeated.
        progress: show a bar.
    """
    switches = list(switches)
    unknown = [name for name in switches if name not in SWITCHES]
    if unknown:
        raise ValueError(f"switch {unknown[0]!r} is not known; use {', '.join(SWITCHES)}")
    jobs = [(name, seed) for seed in seeds for name in switches]
    # the corpus is read once per number of windows
    view = cache(partial(streamed, prepared))
    records = []
    with tqdm(jobs, desc="ablations", unit="run", disable=not progress) as bar:
        for name, seed in bar:
            bar.set_postfix_str(f"{name}, seed {seed}")
            records.append(one(prepared, name, seed, config=config, results=results, view=view))
    return records


def one(
    prepared: Inputs,
    name: str,
    seed: int,
    *,
    config: RunConfig | None = None,
    results: str | Path,
    view: Callable[[int], Inputs] | None = None,
) -> RunRecord:
    """The record of one switch and seed; its system is the name of the switch.

    The arguments are those of `run`. view: returns `prepared` read in a number of windows;
    `streamed` when None.
    """
    start, changes = SWITCHES[name]
    # the gains are not chosen on dev: that would be a second change
    base = replace(config or RunConfig(), other_gains=(), linear_weights=())
    read = {WINDOWS: changes[WINDOWS]} if WINDOWS in changes else {}
    options = {key: value for key, value in changes.items() if key not in read}
    prepared = (view or partial(streamed, prepared))(read.get(WINDOWS, 1))
    config = changed(base, options)
    run_id = run_id_of(prepared, name, seed)
    record = finished(Path(results) / f"{run_id}.json", prepared, config, seed)
    if record is None:
        record, _ = run_start(
            prepared, start, seed, config=config, run_id=run_id, notebook=NOTEBOOK, progress=False
        )
        record = replace(record, system=name, params=record.params | {"start_name": start} | read)
        record.save(results)
    return record


def streamed(prepared: Inputs, windows: int) -> Inputs:
    """The same documents and labels, read in `windows` windows as long as that of `prepared`.

    ValueError where `prepared` is read whole or in several windows.
    """
    if windows == 1:
        return prepared
    if not prepared.max_tokens or prepared.max_tokens > prepared.window:
        raise ValueError(
            f"{windows} windows of max_tokens={prepared.max_tokens}: let the base read 1 to"
            f" {prepared.window} tokens"
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
    # the label space and the gold labels outside it are those of the base
    return replace(more, label_space=prepared.label_space, extra_gold=prepared.extra_gold)


def run_id_of(prepared: Inputs, name: str, seed: int) -> str:
    """Id of an ablation: "ablation-", then as for other runs."""
    safe = "".join(c if c.isalnum() else "_" for c in name)
    return f"ablation-{run_name(prepared, safe, seed)}"


def of(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Ablation records by data set, training documents and tokens that the base reads."""
    by_base: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.notebook == NOTEBOOK and record.system in SWITCHES:
            tokens = record.params["max_tokens"]
            if WINDOWS in record.params:
                tokens //= record.params[WINDOWS]
            data = record.dataset
            key = f"{data['name']}, {data['train']:,} documents, {tokens} tokens"
            by_base.setdefault(key, []).append(record)
    return by_base


def effects(
    records: Iterable[RunRecord], metrics: Iterable[str] = ("ndcg@5", "few/rp@5", "p@1")
) -> pandas.DataFrame:
    """Each switch beside the base, as `compare.compare` returns it, in the order of SWITCHES.

    Only seeds that every switch has been run with count, so an unfinished grid is compared fairly.
    """
    records = list(records)
    seeds = [{r.seed for r in records if r.system == name} for name in {r.system for r in records}]
    common = set.intersection(*seeds) or set.union(*seeds)
    records = [r for r in records if r.seed in common]
    table = compare(records, BASE, list(metrics))
    return table.loc[[name for name in SWITCHES if name in table.index]]
