"""A grid of runs of the first version on AWD-LSTMs, for notebook 09 and `runs/awd-*.yaml`.

The language models are trained on the text of the corpus. The first version has four ingredients
(docs/method.md, "The first version (v1)"); a row of `ABLATIONS` leaves one out, with the same
parameters, data order and number of epochs. With a forward and a backward model their sum is
evaluated too. Finished language models and runs are not repeated.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from plantlib.backbones.adapters import BackboneOptions
from plantlib.data import privacy
from plantlib.data.corpus import Corpus
from plantlib.data.credentials import inside_data
from plantlib.kernels.counts import column_counts
from plantlib.metrics.documents import ndcg_at_k
from plantlib.metrics.topk import TopK
from plantlib.planting.starts import V1Config
from plantlib.training import artefacts
from plantlib.training.awd_pretraining import PretrainConfig, pretrain, word_tokenizer
from plantlib.training.ensemble import made_of, run_ensemble
from plantlib.training.inputs import Inputs
from plantlib.training.language_model import texts_of
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, run_name
from plantlib.training.runs import finished, run_start
from plantlib.utils.checks import safe_name
from plantlib.utils.distributed import is_main, main_first
from plantlib.utils.io import fingerprint_of, read_json, write_json
from plantlib.utils.progress import tqdm

# system of the record -> (start, changed options); "stateful" switches between the two states
ABLATIONS = {
    "v1": ("v1", {}),
    "random": ("random", {}),
    "v1-no-l2r": ("v1", {"v1_l2r": False}),
    "v1-no-lookup": ("v1", {"v1_lookup": False}),
    "v1-no-inattention": ("v1", {"keep": None}),
    "v1-other-state": ("v1", {"stateful": "other"}),
}


# choices that the method leaves open, one changed at a time; not part of a grid by default
VARIANTS = {
    "v1-k4": ("v1", {"keep": 4}),
    "v1-k16": ("v1", {"keep": 16}),
    "v1-sum": ("v1", {"contexts": "sum"}),
    "v1-likely": ("v1", {"l2r_from": "likely"}),
    "v1-expected": ("v1", {"l2r_from": "expected"}),
}
SYSTEMS = ABLATIONS | VARIANTS


def language_model(
    corpus: Corpus,
    direction: str,
    config: PretrainConfig,
    root: str | Path | None = None,
    progress: bool = True,
) -> tuple[str, dict]:
    """Train the language model of one direction, unless it exists.

    Both directions have the same tokenizer.

    Args:
        corpus: its training and unlabelled text is read.
        direction: "forward" or "backward".
        config: options of the pretraining.
        root: folder of intermediate artefacts; artefacts/ of the checkout when None.
        progress: show bars.

    Returns:
        The folder of the model, and the report of its pretraining.
    """
    config = replace(config, direction=direction)
    key = fingerprint_of(corpus.fingerprint(), asdict(config))
    artefacts_folder = artefacts.root_of(privacy.artefacts_root(corpus, root))
    folder = artefacts_folder / "awd" / f"{safe_name(corpus.name)}-{direction}-{key}"
    with main_first():
        if not (folder / "pretraining.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            tokenizer = word_tokenizer(texts_of(corpus)[0], config.vocabulary, config.min_documents)
            pretrain(corpus, folder, config=config, tokenizer=tokenizer, progress=progress)
    return str(folder), read_json(folder / "pretraining.json")


def changed(config: RunConfig, changes: dict) -> RunConfig:
    """`config` with the changes of a row of SYSTEMS."""
    start = {k: v for k, v in changes.items() if k.startswith("v1_")}
    v1 = {k: v for k, v in changes.items() if k in ("contexts", "l2r_from")}
    config = replace(config, start=replace(config.start, **start), v1=replace(config.v1, **v1))
    if "keep" in changes:
        config = replace(
            config, keep=changes["keep"], train=replace(config.train, keep_from=None, keep_epochs=0)
        )
    if changes.get("stateful"):
        other = "v1" if config.v1.stateful == "exact" else "exact"
        config = replace(config, v1=replace(config.v1, stateful=other))
    return config


def run_system(
    prepared: Inputs,
    system: str,
    seed: int,
    config: RunConfig,
    *,
    results: str | Path,
    notebook: str | None = None,
    again: bool = False,
    progress: bool = True,
) -> tuple[RunRecord, object]:
    """Run a row of SYSTEMS.

    Args:
        prepared: the corpus as the language model reads it.
        system: name of the row.
        seed: of the run.
        config: options of the runs, without the changes of the row.
        results: folder of the records.
        notebook: named in the record.
        again: run it even where its record is there.
        progress: show bars.

    Returns:
        The record, and the model; None instead of a model where the run was finished already.

    Raises:
        ValueError: an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system {system!r} is not known; use {', '.join(SYSTEMS)}")
    start, changes = SYSTEMS[system]
    config = changed(config, changes)
    run_id = run_name(prepared, system, seed, config.tuning)
    record = None if again else finished(Path(results) / f"{run_id}.json", prepared, config, seed)
    if record is not None:
        return record, None
    record, model = run_start(
        prepared, start, seed, config=config, run_id=run_id, notebook=notebook, progress=progress
    )
    model.record = replace(record, system=system)
    if is_main():
        model.record.save(results)
    return model.record, model


def configured(
    *,
    hidden_size: int = 400,
    lstm_size: int = 1152,
    layers: int = 3,
    vocabulary: int = 30000,
    lm_epochs: int = 5,
    lm_rows: int = 16,
    lm_learning_rate: float = 3e-3,
    tuning: str = "full",
    epochs: int = 6,
    batch_size: int = 16,
    stages=("head", "last 1", "all"),
    schedule: str = "one_cycle",
    layer_decay: float = 2.6,
    lr_backbone: float = 1e-3,
    lm_weight: float = 0.0,
    contexts: str = "mixed",
    l2r_from: str = "read",
    stateful: str = "exact",
    keep: int | None = 64,
    keep_from: int | None = None,
    keep_epochs: int = 0,
    dim: int = 400,
) -> tuple[PretrainConfig, RunConfig]:
    """Options of the language models and of the runs, from plain parameters.

    hidden_size, lstm_size, layers, vocabulary, lm_...: of `PretrainConfig`. dim: of the static
    ranker. The others are those of `RunConfig`, `V1Config` and `TrainConfig`.
    """
    sizes = {"hidden_size": hidden_size, "lstm_size": lstm_size, "num_hidden_layers": layers}
    pretraining = PretrainConfig(
        epochs=lm_epochs,
        rows=lm_rows,
        learning_rate=lm_learning_rate,
        vocabulary=vocabulary,
        sizes=sizes,
    )
    config = RunConfig(
        keep=keep,
        tuning=tuning,
        static_dim=dim,
        backbone=BackboneOptions(dropout=None),
        v1=V1Config(contexts=contexts, l2r_from=l2r_from, stateful=stateful, l2r_table=True),
        train=TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            stages=tuple(stages) if tuning == "full" else (),
            schedule=schedule,
            layer_decay=layer_decay,
            lr_backbone=lr_backbone,
            lm_weight=lm_weight,
            keep_from=keep_from,
            keep_epochs=keep_epochs,
        ),
    )
    return pretraining, config


def by_frequency(inputs: Inputs) -> float:
    """nDCG@5 on test of ranking labels by their training documents, the same for every document."""
    labels = inputs.corpus.labels
    counts = column_counts(labels[inputs.rows["train"]].tocsr()).astype(float)
    rows = inputs.rows["test"]
    best = TopK.from_dense(np.tile(counts, (len(rows), 1)), 5)
    return float(np.nanmean(ndcg_at_k(best, labels[rows], 5)))


def check_options(options: dict) -> None:
    """ValueError for a name that `configured` does not have; it lists those that there are."""
    known = inspect.signature(configured).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown options {', '.join(unknown)}; known are {', '.join(known)}")


def awd_grid(
    dataset: str,
    *,
    systems=tuple(ABLATIONS),
    directions=("forward",),
    seeds=(0,),
    tokens: int | None = 256,
    window: int | None = None,
    train_documents: int | None = None,
    dev_documents: int | None = None,
    test_documents: int | None = None,
    results: str | Path = "results/runs",
    root: str | Path | None = None,
    notebook: str | None = "09_awd_lstm",
    progress: bool = True,
    **options,
) -> tuple[list[RunRecord], list[dict]]:
    """Run every system with every seed on the language model of every direction.

    With two directions the sum of both is recorded too. The parameters are those of `prepare`;
    options are those of `configured`.

    Returns:
        The records, and the reports of the language models.

    Raises:
        ValueError: an unknown system or option.
    """
    unknown = [system for system in systems if system not in SYSTEMS]
    if unknown:
        raise ValueError(f"system {unknown[0]!r} is not known; use {', '.join(SYSTEMS)}")
    check_options(options)
    pretraining, config = configured(**options)
    # language models, and the corpus as each of them reads it
    caps = {"train": train_documents, "dev": dev_documents, "test": test_documents}
    corpus = Corpus.load(dataset).with_dev().subset(**caps)
    models = []
    ready = {}
    for direction in directions:
        folder, pretrained = language_model(corpus, direction, pretraining, root, progress)
        models.append({"direction": direction, "model": Path(folder).name} | pretrained)
        ready[direction] = prepare(
            dataset,
            backbone=folder,
            max_tokens=tokens,
            window=window,
            frozen=config.tuning == "frozen",
            root=root,
            progress=progress,
            **{f"{split}_documents": cap for split, cap in caps.items()},
        )
    # their reports, beside a folder runs/ of records; those of a credentialed corpus only inside
    # the data folder
    may_write = inside_data(results) or not privacy.is_credentialed(corpus)
    if Path(results).name == "runs" and may_write:
        path = Path(results).parent / f"awd-pretraining-{safe_name(corpus.name)}.json"
        reports = {m["model"]: {k: v for k, v in m.items() if k != "model"} for m in models}
        write_json(path, (read_json(path) if path.exists() else {}) | reports)
    # the runs
    records = []
    jobs = [(seed, system) for seed in seeds for system in systems]
    for seed, system in tqdm(jobs, desc="runs", unit="run", disable=not progress):
        records += _both(ready, system, seed, config, Path(results), notebook)
    return records, models


def _both(
    ready: dict[str, Inputs], system: str, seed: int, config: RunConfig, results: Path, notebook
) -> list[RunRecord]:
    """The records of every direction and, of two directions, of their sum.

    The sum needs the models, so directions are trained again where only its record is missing.
    """
    # each direction
    options = {"results": results, "notebook": notebook, "progress": False}
    models = {}
    records = []
    for direction, prepared in ready.items():
        record, models[direction] = run_system(prepared, system, seed, config, **options)
        records.append(record)
    if len(ready) < 2:
        return records
    # the sum, unless its record is there
    path = results / f"{records[0].id}-ensemble.json"
    if path.exists() and all(model is None for model in models.values()):
        ensemble = RunRecord.load(path)
        if ensemble.params["made_of"] == made_of(records):
            return [*records, ensemble]
    for i, (direction, model) in enumerate(models.items()):
        if model is None:
            again = run_system(ready[direction], system, seed, config, again=True, **options)
            records[i], models[direction] = again
    members = [(ready[direction], model) for direction, model in models.items()]
    return [*records, run_ensemble(members, results=results, notebook=notebook)[0]]
