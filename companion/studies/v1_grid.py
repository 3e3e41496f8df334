"""The first version's runs from plain parameters: AWD-LSTMs of a corpus's own text, `v1` and each
ingredient off, the ensemble.

Realises METHOD.md section 4 as notebook 09 and `runs/awd-*.yaml` ask for it. The published PLANT
stands on four ingredients; a row of `ABLATIONS` takes one away and leaves parameters, data order
and budget as they are. Language models and finished records are read, not made again.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from plantlib.backbones.adapters import BackboneOptions
from plantlib.data import privacy
from plantlib.data.corpus import Corpus
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
from plantlib.utils.distributed import is_main, main_first
from plantlib.utils.io import fingerprint_of, read_json, write_json
from plantlib.utils.progress import tqdm

# system of the record -> (start, what is changed of the run); "stateful" takes the running state
# away, or puts it in
ABLATIONS = {
    "v1": ("v1", {}),
    "random": ("random", {}),
    "v1-no-l2r": ("v1", {"v1_l2r": False}),
    "v1-no-lookup": ("v1", {"v1_lookup": False}),
    "v1-no-inattention": ("v1", {"keep": None}),
    "v1-other-state": ("v1", {"stateful": "other"}),
}


# what the method leaves open, one choice changed at a time; not part of a grid unless asked for
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
    """(folder, what pretraining found) of one direction; both directions share the tokenizer of the
    same text.
    """
    config = replace(config, direction=direction)
    key = fingerprint_of(corpus.fingerprint(), asdict(config))
    folder = (
        artefacts.root_of(privacy.artefacts_root(corpus, root))
        / "awd"
        / f"{corpus.name}-{direction}-{key}"
    )
    with main_first():
        if not (folder / "pretraining.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            tokenizer = word_tokenizer(texts_of(corpus)[0], config.vocabulary, config.min_documents)
            pretrain(corpus, folder, config=config, tokenizer=tokenizer, progress=progress)
    return str(folder), read_json(folder / "pretraining.json")


def changed(config: RunConfig, changes: dict) -> RunConfig:
    """The run of a row of SYSTEMS: `changes` as there."""
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
    """One row of SYSTEMS as a record of that name; (record, None) where it is finished already,
    unless `again`.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system {system!r} is not known; use {', '.join(SYSTEMS)}")
    start, changes = SYSTEMS[system]
    config, run_id = changed(config, changes), run_name(prepared, system, seed, config.tuning)
    found = None if again else finished(Path(results) / f"{run_id}.json", prepared, config, seed)
    if found:
        return found, None
    record, model = run_start(
        prepared, start, seed, config=config, run_id=run_id, notebook=notebook, progress=progress
    )
    model.record = replace(record, system=system)
    if is_main():
        model.record.save(results)
    return model.record, model


def awd_grid(
    dataset: str,
    *,
    systems=tuple(ABLATIONS),
    directions=("forward",),
    seeds=(0,),
    tokens: int | None = 256,
    window: int | None = None,
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
    train_documents: int | None = None,
    dev_documents: int | None = None,
    test_documents: int | None = None,
    results: str | Path = "results/runs",
    root: str | Path | None = None,
    notebook: str | None = "09_awd_lstm",
    progress: bool = True,
) -> tuple[list[RunRecord], list[dict]]:
    """(records, what each language model found); with two directions the sum of both is a record of
    every system and seed.
    """
    unknown = [system for system in systems if system not in SYSTEMS]
    if unknown:
        raise ValueError(f"system {unknown[0]!r} is not known; use {', '.join(SYSTEMS)}")
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
    caps = {"train": train_documents, "dev": dev_documents, "test": test_documents}
    corpus = Corpus.load(dataset).with_dev().subset(**caps)
    models, ready = [], {}
    for direction in directions:
        folder, found = language_model(corpus, direction, pretraining, root, progress)
        models.append({"direction": direction, "model": Path(folder).name} | found)
        ready[direction] = prepare(
            dataset,
            backbone=folder,
            max_tokens=tokens,
            window=window,
            frozen=tuning == "frozen",
            root=root,
            progress=progress,
            **{f"{split}_documents": cap for split, cap in caps.items()},
        )
    # beside the records; a lesson's temporary folder keeps none, a credentialed corpus none outside
    # the data folder
    if Path(results).name == "runs" and (
        privacy.inside_data(results) or not privacy.is_credentialed(corpus)
    ):
        path = Path(results).parent / f"awd-pretraining-{corpus.name}.json"
        told = {m["model"]: {k: v for k, v in m.items() if k != "model"} for m in models}
        write_json(path, (read_json(path) if path.exists() else {}) | told)
    records = []
    jobs = [(seed, system) for seed in seeds for system in systems]
    for seed, system in tqdm(jobs, desc="runs", unit="run", disable=not progress):
        records += _both(ready, system, seed, config, Path(results), notebook)
    return records, models


def _both(
    ready: dict[str, Inputs], system: str, seed: int, config: RunConfig, results: Path, notebook
) -> list[RunRecord]:
    """Records of every direction and, of two, of their sum; directions are trained again where the
    sum alone is missing.
    """
    options = {"results": results, "notebook": notebook, "progress": False}
    made = {
        d: run_system(prepared, system, seed, config, **options) for d, prepared in ready.items()
    }
    records = [record for record, _ in made.values()]
    if len(ready) < 2:
        return records
    path = results / f"{records[0].id}-ensemble.json"
    if path.exists() and all(model is None for _, model in made.values()):
        found = RunRecord.load(path)
        if found.params["made_of"] == made_of(records):
            return [*records, found]
    made = {
        d: found
        if found[1] is not None
        else run_system(ready[d], system, seed, config, again=True, **options)
        for d, found in made.items()
    }
    members = [(ready[d], model) for d, (_, model) in made.items()]
    return [*records, run_ensemble(members, results=results, notebook=notebook)[0]]
