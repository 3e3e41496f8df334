"""One run, one record: plant a start, fine-tune, choose on dev, read test once.

Realises METHOD.md sections 4 to 7 on what `pipeline.prepare` made ready. Each run writes one small
JSON (`RunRecord`) and nothing else is needed later. Notebooks call these functions and show what
they return.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.backbones import adapters
from plantlib.data.corpus import Corpus
from plantlib.linear import score as linear_score
from plantlib.metrics.documents import evaluate, hits
from plantlib.model.plant_model import PlantModel
from plantlib.planting import outputs as planted_outputs
from plantlib.planting import starts as planting
from plantlib.training import train
from plantlib.training import train as gain_choice
from plantlib.training.ingredients import Ingredients, build_model, ingredients, use_score
from plantlib.training.options import CHOSEN_BY, RunConfig
from plantlib.training.pipeline import Prepared, prepare
from plantlib.training.records import RunRecord, agrees, peak_memory, run_name
from plantlib.utils.distributed import is_main
from plantlib.utils.io import fingerprint_of
from plantlib.utils.progress import tqdm


def run_start(
    prepared: Prepared,
    start: str,
    seed: int = 0,
    *,
    config: RunConfig = RunConfig(),
    results: str | Path | None = None,
    run_id: str | None = None,
    notebook: str | None = None,
    progress: bool = True,
) -> tuple[RunRecord, PlantModel]:
    """Plant `start`, fine-tune, choose the epoch on dev, read test once; the record is saved when
    `results` is given.
    """
    cpu = time.process_time()
    seed_all(seed)
    parts = planting.parts_of(start)
    if "outputs" in parts and config.tuning != "frozen":
        raise ValueError(
            f"start {start!r}: outputs are planted from cached features; use tuning='frozen', or"
            " leave them out"
        )
    made = ingredients(prepared, start, config, seed, progress)
    linear, table, times = made.linear, made.l2r_table, made.times
    model = build_model(
        prepared,
        made.teacher,
        keep=config.keep,
        l2r_table=table,
        v1=config.v1,
        lm_weight=config.train.lm_weight,
        linear=linear,
    )
    cached = config.tuning == "frozen"

    def begin(gain: float) -> None:
        # initial values are drawn where they are the same on every machine
        planting.plant(
            model.cpu().decoder,
            start,
            made.teacher,
            prepared.train_labels,
            planted=made.planted,
            l2r_table=table,
            config=replace(config.start, lookup_gain=gain),
            seed=seed,
        )
        use_score(model, parts, made.teacher, prepared)
        if "outputs" in parts:
            # the background documents are the same for every seed
            planted_outputs.plant_outputs(model, prepared.documents("train"), progress)
        # what came before may have drawn numbers: every start of a seed gets the same adapters and
        # dropout
        seed_all(seed)

    def fit_in(folder: Path, callbacks=()) -> list[dict]:
        documents = [prepared.documents(split, cached, linear) for split in ("train", "dev")]
        return train.fine_tune(
            model,
            *documents,
            prepared.train_counts,
            folder,
            config=config.train_for(parts),
            from_linear="linear" in parts,
            seed=seed,
            progress=progress,
            callbacks=callbacks,
        )

    run_id = run_id or run_name(prepared, start, seed, config.tuning)
    folder = (
        prepared.root
        / "checkpoints"
        / f"{run_id}-{fingerprint_of(prepared.key, start, asdict(config), seed)}"
    )
    fitted, gains, about, resumed = (
        time.perf_counter(),
        config.gains_for(parts),
        {},
        folder.exists(),
    )
    if len(gains) == 1:
        begin(gains[0])
        if not cached:
            adapters.open_backbone(model, prepared, config.tuning, config.lora, config.backbone)
        epochs = fit_in(folder)
    else:
        gain, tried = gain_choice.choose(gains, begin, fit_in, folder, CHOSEN_BY)
        epochs, about = (
            fit_in(gain_choice.folder_of(folder, gain)),
            {"gain_chosen": gain, "gains_tried": tried},
        )
    if weights := config.weights_for(parts):
        weight, tried = gain_choice.weigh(
            model.decoder.linear_gain, weights, lambda: on_dev(model, prepared, made)
        )
        about |= {"linear_weight": weight, "linear_weights_tried": tried}
    times["fine_tune"] = time.perf_counter() - fitted
    if not resumed:  # what a killed process spent is not known
        times["train_cpu"] = time.process_time() - cpu
    trained = adapters.trained_parameters(model)
    model.eval()
    record = _record(prepared, model, start, seed, config, epochs, run_id, notebook, made, trained)
    record = replace(record, params=record.params | about)
    model.record = record
    if is_main():
        if results is not None:
            record.save(results)
        shutil.rmtree(folder, ignore_errors=True)
    return record, model


def on_dev(model: PlantModel, prepared: Prepared, made: Ingredients) -> float:
    """The metric that chooses, of dev, on cached features."""
    counts, rows = prepared.train_counts, prepared.rows["train"]
    scores, labels = train.score(
        model, prepared.documents("dev", True, made.linear), counts, auc=False
    )
    return evaluate(scores, labels, counts, len(rows))[CHOSEN_BY]


def _record(
    prepared, model, start, seed, config, epochs, run_id, notebook, made: Ingredients, trained
) -> RunRecord:
    """Threshold and calibration from dev, then the one reading of test."""
    began, cached, linear, times = (
        time.perf_counter(),
        config.tuning == "frozen",
        made.linear,
        made.times,
    )
    dev_scores, dev_labels = train.score(
        model, prepared.documents("dev", cached, linear), prepared.train_counts, auc=False
    )
    scores, _ = train.score(
        model, prepared.documents("test", cached, linear), prepared.train_counts
    )
    judged = prepared.judge(dev_scores, scores)
    model.config.threshold, model.config.calibration = (
        judged["threshold"],
        calibrate(dev_scores.topk, dev_labels),
    )
    times["evaluate"] = time.perf_counter() - began
    gains = {
        name: getattr(model.decoder, f"{name}_gain").item()
        for name in ("planted", "teacher", "linear")
    }
    further = {name: getattr(model.decoder, f"{name}_gain", None) for name in ("l2r", "context")}
    gains |= {name: gain.tolist() for name, gain in further.items() if gain is not None}
    return RunRecord(
        id=run_id,
        kind="planted",
        system=start,
        seed=seed,
        params=asdict(config)
        | {"max_tokens": prepared.max_tokens, "inputs": prepared.key, "final_gains": gains},
        notebook=notebook,
        backbone=Path(prepared.backbone).name,
        teacher=asdict(config.teacher) | made.about(),
        history=epochs,
        chosen_epoch=train.chosen_epoch(epochs),
        times={k: round(v, 2) for k, v in times.items()},
        peak_memory_mb=peak_memory(),
        model_size=trained | linear_score.word_cells(linear),
        **judged,
    )


def calibrate(topk, labels: sparse.csr_matrix) -> list[float]:
    """Slope and shift of a logistic curve from dev scores to the chance of being right (Platt),
    over the top-k places.
    """
    from sklearn.linear_model import LogisticRegression

    used = topk.ids >= 0
    right, scores = hits(topk, labels, topk.k)[used], topk.scores[used].astype(np.float64)
    if right.all() or not right.any():
        return [1.0, 0.0]
    curve = LogisticRegression(C=1e6).fit(scores[:, None], right)
    return [float(curve.coef_[0, 0]), float(curve.intercept_[0])]


STARTS = (
    "random",
    "l2r",
    "closed_form",
    "lookup",
    "shuffled",
    "score",
    "lookup+score",
    "linear",
    "lookup+linear",
)


def run_grid(
    prepared: Prepared,
    starts=STARTS,
    seeds=(0, 1, 2),
    *,
    config: RunConfig | None = None,
    results: str | Path,
    notebook: str | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """Every start with every seed, and the peers; runs whose record stands in `results` are read,
    not repeated.
    """
    config, results, records = config or RunConfig(), Path(results), []
    for start in starts:
        planting.parts_of(start)  # a misspelt start is an error before the first run, not after it
    jobs = [(start, seed) for seed in seeds for start in starts]
    with tqdm(total=len(jobs), desc="runs", unit="run", disable=not progress) as bar:
        for start, seed in jobs:
            bar.set_postfix_str(f"{start}, seed {seed}")
            found = finished(
                results / f"{run_name(prepared, start, seed, config.tuning)}.json",
                prepared,
                config,
                seed,
            )
            if not found:
                found, _ = run_start(
                    prepared,
                    start,
                    seed,
                    config=config,
                    results=results,
                    notebook=notebook,
                    progress=False,
                )
            records.append(found)
            bar.update()
    return records


def finished(path: Path, prepared: Prepared, config: RunConfig, seed: int) -> RunRecord | None:
    """The record at `path` where `made_with` accepts it, else None: the run is made again."""
    record = RunRecord.load(path) if path.exists() else None
    return record if record is not None and made_with(record, prepared, config, seed) else None


def made_with(record: RunRecord, prepared: Prepared, config: RunConfig, seed: int) -> bool:
    """Whether a record was made from this corpus with this seed and these options."""
    return record.seed == seed and agrees(record, asdict(config) | {"inputs": prepared.key})


def seed_all(seed: int) -> None:
    """One seed for python, numpy and torch."""
    from transformers import set_seed

    set_seed(seed)


def fit(
    corpus: Corpus | str,
    *,
    backbone: str = "minilm",
    start: str = "lookup+linear",
    seed: int = 0,
    config: RunConfig = RunConfig(),
    **prepare_options,
) -> PlantModel:
    """MIG -> L2R -> plant -> fine-tune on a corpus; a model that predicts, explains and saves.
    Resumable after a kill.
    """
    planting.parts_of(start)
    if config.tuning == "frozen" and prepare_options.get("frozen") is False:
        raise ValueError(
            "tuning='frozen' reads cached features; leave frozen=True, or choose tuning='lora' or"
            " 'full'"
        )
    prepared = prepare(
        corpus, backbone=backbone, **{"frozen": config.tuning == "frozen"} | prepare_options
    )
    record, model = run_start(
        prepared, start, seed, config=config, progress=prepare_options.get("progress", True)
    )
    print(record)
    return model if model.backbone is not None else model.attach_backbone(prepared.load_backbone())
