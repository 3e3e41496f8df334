"""One run, one record: plant a start, fine-tune, choose on dev, read test once.

docs/method.md, "Starts", "Training" and "Choosing on dev, reading test once". A run writes one
small JSON, a `RunRecord`; nothing else of it is needed later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from plantlib.backbones import adapters
from plantlib.data import privacy
from plantlib.data.corpus import Corpus
from plantlib.linear.score import word_cells
from plantlib.model.plant_model import PlantModel
from plantlib.planting import outputs as planted_outputs
from plantlib.planting import starts
from plantlib.training import artefacts, evaluation, trackers, train
from plantlib.training.candidate_fit import fit_candidates, on_candidates
from plantlib.training.ingredients import Ingredients, build_model, ingredients, use_score
from plantlib.training.inputs import Documents, Inputs
from plantlib.training.learning import kept_of
from plantlib.training.options import RunConfig
from plantlib.training.phrases import key_of
from plantlib.training.prepare import prepare
from plantlib.training.records import (
    RunRecord,
    agrees,
    check_id,
    cpu_seconds,
    peak_memory,
    run_name,
)
from plantlib.utils.checks import check_seed
from plantlib.utils.distributed import is_main
from plantlib.utils.io import held, remove_unless_held
from plantlib.utils.progress import tqdm

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
)  # starts that a grid compares


@dataclass(eq=False)
class Run:
    """One start of one seed on one corpus, while it is trained.

    Attributes:
        made: what the start plants.
        model: planted and trained in place.
        folder: where its checkpoints are kept.
        progress: show progress bars.
        unplanted: trainings in which nothing is planted in attention, by start and seed, that
            starts of a grid share; None shares nothing.
        report_to: trackers that follow the training.
        reused: the trainings that this run took from there.
    """

    inputs: Inputs
    start: str
    seed: int
    config: RunConfig
    made: Ingredients
    model: PlantModel
    folder: Path
    progress: bool
    unplanted: dict[tuple[str, int], train.Trained] | None = None
    report_to: str | Sequence[str] = ()
    reused: list[train.Trained] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """The names that the start joins by "+"."""
        return starts.parts_of(self.start)

    @property
    def cached(self) -> bool:
        """Whether the backbone is frozen, so that its cached features are read."""
        return self.config.tuning == "frozen"

    def plant(self, gain: float) -> None:
        """Set every initial value of the model; gain: of planted attention."""
        # initial values are drawn on the CPU, where they are the same on every machine
        starts.plant(
            self.model.cpu().decoder,
            self.start,
            self.made.teacher,
            self.inputs.train_labels,
            planted=self.made.queries,
            l2r_table=self.made.l2r_table,
            config=replace(self.config.start, lookup_gain=gain),
            seed=self.seed,
        )
        use_score(self.model, self.parts, self.made.teacher, self.inputs)
        if "outputs" in self.parts:
            # the background documents are the same for every seed
            documents = self.training_documents()
            planted_outputs.plant_outputs(self.model, documents, self.progress)
        # nothing planted is a table that the model cannot raise
        planted_gain = self.model.decoder.planted_gain
        planted_gain.requires_grad_(planted_gain.item() > 0)
        # planting may have drawn numbers: every start of a seed gets the same adapters and dropout
        set_seed(self.seed)

    def fine_tune(self, folder: Path, what: str = "") -> list[dict]:
        """Train the model to its best dev epoch; the history, one dict per epoch.

        what: said on the progress bar.
        """
        if self.unplanted is None or not self.cached or self.model.decoder.planted_gain.item() > 0:
            return self._train(folder, what)
        key = (starts.unplanted(self.parts), self.seed)
        if key not in self.unplanted:
            self.unplanted[key] = self._trained(folder, what)
            return self.unplanted[key].history
        trained = self.unplanted[key]
        self.model.to(trained.device)  # type: ignore[arg-type]
        self.model.load_state_dict(trained.values, strict=False)
        self.reused.append(trained)
        return trained.history

    def _trained(self, folder: Path, what: str) -> train.Trained:
        """Train, and copy what was trained."""
        began, cpu = time.perf_counter(), cpu_seconds()
        history = self._train(folder, what)
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        parameters = self.model.named_parameters()
        values = {name: p.detach().clone() for name, p in parameters if p.requires_grad}
        return train.Trained(history, values, seconds, cpu)

    def _train(self, folder: Path, what: str) -> list[dict]:
        return train.fine_tune(
            self.model,
            self.training_documents(),
            self.inputs.documents("dev", self.cached, self.made.scored, cells=self.made.cells),
            self.inputs.train_counts,
            folder,
            config=self.config.train_for(self.parts),
            from_linear=starts.from_score(self.parts),
            seed=self.seed,
            progress=self.progress,
            what=what,
            callbacks=trackers.callbacks(
                self.report_to, self.inputs.root / "trackers" / self.folder.name / what
            ),
        )

    def training_documents(self) -> Documents:
        """The training documents; each reads its labels' lists as they are without it."""
        withheld = self.made.withheld
        if withheld is not None and "shuffled" in self.parts:
            withheld = withheld.relabelled(self.made.teacher.shuffled_order(self.seed))
        made = self.made
        return self.inputs.documents("train", self.cached, made.scored, withheld, made.cells)

    def dev_values(self) -> np.ndarray:
        """(n,) the metric by which the run chooses, for each dev document with a label."""
        made = self.made
        return evaluation.dev_values(self.model, self.inputs, made.scored, made.cells)

    def dev_metric(self) -> float:
        """The metric of dev by which the run chooses."""
        return float(self.dev_values().mean())


def run_start(
    inputs: Inputs,
    start: str,
    seed: int = 0,
    *,
    config: RunConfig = RunConfig(),
    results: str | Path | None = None,
    run_id: str | None = None,
    notebook: str | None = None,
    progress: bool = True,
    made: Ingredients | None = None,
    keep_checkpoints: bool = False,
    unplanted: dict[tuple[str, int], train.Trained] | None = None,
    report_to: str | Sequence[str] = (),
) -> tuple[RunRecord, PlantModel]:
    """Plant `start`, fine-tune, choose on dev, read test once.

    Args:
        inputs: a corpus made ready by `prepare`.
        start: one of `planting.starts.STARTS`, or several joined by "+".
        seed: of everything that is drawn.
        results: folder the record is saved in; None saves nothing.
        run_id: name of the record, and of its file; `run_name` when None.
        notebook: stated in the record.
        made: what is planted; `ingredients` of the start when None.
        keep_checkpoints: keep them until the model is saved, so that a run whose model could not
            be saved is not trained again.
        unplanted: trainings shared with other starts of the same corpus and options, see `Run`; the
            seconds of one that is reused count in the record.
        report_to: trackers that follow the training; see `trackers`.

    Returns:
        the record, and the model at its best dev epoch.

    Raises:
        ValueError: an unknown start, or one that the options cannot have.
        DataError: the training rows teach nothing.
    """
    check_start(start, config)
    check_seed(seed)
    trackers.check(report_to, inputs.credentialed)
    cpu = cpu_seconds()
    set_seed(seed)
    run_id = run_id or run_name(inputs, start, seed, config.tuning)
    check_id(run_id)

    # count the teacher, pretrain queries, fit the linear score, as far as the start needs them
    made = made or ingredients(inputs, start, config, seed, progress)
    model = build_model(inputs, made, config)
    key = key_of(inputs.corpus, inputs.rows["train"], start)
    made_of = (asdict(config), seed, *([key] if key else []))
    folder = artefacts.run_folder(inputs, run_id, start, *made_of)
    run = Run(inputs, start, seed, config, made, model, folder, progress, unplanted, report_to)

    with held(folder) if is_main() else contextlib.nullcontext():
        resumed = folder.is_dir() and any(folder.iterdir())
        began = time.perf_counter()
        # plant and fine-tune; dev chooses the gain, the epoch, the weight of the linear score and
        # how far rare labels are raised
        history, chosen = plant_and_fine_tune(run)
        chosen |= choose_linear_weight(run)
        chosen |= evaluation.raise_rare(model, inputs, run.cached, made.scored, made.cells)
        seconds, reused_cpu = (sum(getattr(t, of) for t in run.reused) for of in ("seconds", "cpu"))
        made.seconds["fine_tune"] = time.perf_counter() - began + seconds
        if not resumed:  # what a killed process spent is not known
            made.seconds["train_cpu"] = cpu_seconds() - cpu + reused_cpu

        # threshold and calibration from dev, then the one reading of test
        model.eval()
        began = time.perf_counter()
        judged = evaluation.judge_model(model, inputs, run.cached, made.scored, made.cells)
        made.seconds["evaluate"] = time.perf_counter() - began
        record = record_of(run, run_id, history, chosen, judged, notebook)
        model.record = record
        if is_main():
            if results is not None:
                record.save(results)
            if keep_checkpoints:
                model.checkpoints = folder
            else:
                remove_unless_held(folder)
    return record, model


def check_start(start: str, config: RunConfig) -> None:
    """ValueError for an unknown start, and for planted outputs on a backbone that is trained."""
    if "outputs" in starts.parts_of(start) and config.tuning != "frozen":
        raise ValueError(
            f"start {start!r}: outputs are planted from cached features; use tuning='frozen', or"
            " leave them out"
        )


def plant_and_fine_tune(run: Run) -> tuple[list[dict], dict]:
    """Plant and train; where there are several gains, dev chooses one after training from each.

    Returns:
        the history, one dict per epoch, and what the record says of the choice.
    """
    gains = run.config.gains_for(run.parts)
    if len(gains) > 1:
        return train.choose(gains, run.plant, run.fine_tune, run.dev_values, run.folder)
    run.plant(gains[0])
    if not run.cached:  # several gains are tried on frozen backbones alone
        config = run.config
        load = partial(artefacts.load_backbone, run.inputs)
        adapters.open_backbone(run.model, load, config.tuning, config.lora, config.backbone)
    return run.fine_tune(run.folder), {}


def choose_linear_weight(run: Run) -> dict:
    """Multiply the gain of the linear score by the factor that dev chooses among a few.

    Returns:
        what the record says of the choice; empty where there is none.
    """
    weights = run.config.weights_for(run.parts)
    if not weights:
        return {}
    weight, tried = train.weigh(run.model.decoder.linear_gain, weights, run.dev_metric)
    return {"linear_weight": weight, "linear_weights_tried": tried}


def record_of(
    run: Run, run_id: str, history: list[dict], chosen: dict, judged: dict, notebook: str | None
) -> RunRecord:
    """The record of a finished run."""
    inputs = run.inputs
    decoder = run.model.decoder
    gains = {
        name: getattr(decoder, f"{name}_gain").item() for name in ("planted", "teacher", "linear")
    }
    for name in ("l2r", "context"):
        if (gain := getattr(decoder, f"{name}_gain", None)) is not None:
            gains[name] = gain.tolist()
    found = {"max_tokens": inputs.max_tokens, "final_gains": gains} | made_from(inputs, run.start)
    return RunRecord(
        id=run_id,
        kind="planted",
        system=run.start,
        seed=run.seed,
        params=asdict(run.config) | found | chosen,
        notebook=notebook,
        backbone=Path(inputs.backbone).name,
        teacher=asdict(run.config.teacher) | run.made.about(),
        history=history,
        chosen_epoch=train.chosen_epoch(history),
        times={stage: round(seconds, 2) for stage, seconds in run.made.seconds.items()},
        peak_memory_mb=peak_memory(),
        model_size=adapters.trained_parameters(run.model) | word_cells(run.made.linear),
        **judged,
    )


def run_grid(
    inputs: Inputs,
    starts: Iterable[str] = STARTS,
    seeds: Iterable[int] = (0, 1, 2),
    *,
    config: RunConfig | None = None,
    results: str | Path,
    notebook: str | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """Every start with every seed; runs whose record stands in `results` are read, not repeated.

    Raises:
        ValueError: an unknown start or a wrong seed, before the first run.
    """
    config = config or RunConfig()
    records = []
    starts = list(starts)
    for start in starts:
        check_start(start, config)
    seeds = list(seeds)
    for seed in seeds:
        check_seed(seed)
    jobs = [(start, seed) for seed in seeds for start in starts]
    unplanted: dict[tuple[str, int], train.Trained] = {}
    with tqdm(total=len(jobs), desc="runs", unit="run", disable=not progress) as bar:
        for start, seed in jobs:
            bar.set_postfix_str(f"{start}, seed {seed}")
            path = Path(results) / f"{run_name(inputs, start, seed, config.tuning)}.json"
            record = finished(path, inputs, config, seed)
            if record is None:
                record, _ = run_start(
                    inputs,
                    start,
                    seed,
                    config=config,
                    results=results,
                    notebook=notebook,
                    progress=False,
                    unplanted=unplanted,
                )
            records.append(record)
            bar.update()
    return records


def finished(path: Path, inputs: Inputs, config: RunConfig, seed: int) -> RunRecord | None:
    """The record at `path` where `made_with` accepts it, else None: the run is made again."""
    record = RunRecord.load(path) if path.exists() else None
    return record if record is not None and made_with(record, inputs, config, seed) else None


def made_with(record: RunRecord, inputs: Inputs, config: RunConfig, seed: int) -> bool:
    """Whether a record was made from this corpus with this seed and these options, by runs that
    raise rare labels.
    """
    wanted = asdict(config) | made_from(inputs, record.system)
    raised = config.v1.stateful == "v1" or "rare_added" in record.params
    return raised and record.seed == seed and agrees(record, wanted)


def made_from(inputs: Inputs, start: str) -> dict[str, str]:
    """Fingerprints of what a run of `start` is made from, as its record has them."""
    key = key_of(inputs.corpus, inputs.rows["train"], start)
    return {"inputs": inputs.key} | ({"phrases": key} if key else {})


def fit(
    corpus: Corpus | str,
    *,
    backbone: str = "minilm",
    start: str = "lookup+linear",
    seed: int = 0,
    config: RunConfig = RunConfig(),
    report_to: str | Sequence[str] = (),
    **prepare_options: Any,
) -> PlantModel:
    """Train a model on a corpus: MI gain, learning to rank, planting, fine-tuning.

    The same call after a kill goes on from the last checkpoint. Checkpoints are kept until the
    model is saved, so after a save that failed the same call does not train again.

    Args:
        corpus: a `Corpus`, or the name or folder of one.
        backbone: name or folder of a pretrained language model, or "words" for none.
        start: what is planted; see `planting.starts`.
        seed: of everything that is drawn.
        config: every other option of the run.
        report_to: trackers that follow the training, "tensorboard", "mlflow" or "trackio".
        prepare_options: options of `prepare`, such as max_tokens and train_documents.

    Returns:
        a model that predicts, explains and saves; its `record` holds dev and test metrics.

    Raises:
        ValueError: an unknown start, or options that exclude each other.
        DataError: a corpus that cannot be trained on; see `prepare`.

    Example (with a corpus, a backbone and a folder):
        >>> from plantlib import fit
        >>> options = {"root": folder, "progress": False}
        >>> model = fit(corpus, backbone=backbone, start="linear", **options)
        RunRecord(...)
        >>> label, chance = model.predict(["pulse and valve"], k=1)[0][0]
        >>> label
        'heart'
    """
    check_start(start, config)
    check_seed(seed)
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    trackers.check(report_to, privacy.is_credentialed(corpus))
    frozen = config.tuning == "frozen"
    if frozen and prepare_options.get("frozen") is False:
        raise ValueError(
            "tuning='frozen' reads cached features; leave frozen=True, or choose tuning='lora' or"
            " 'full'"
        )
    inputs = prepare(corpus, backbone=backbone, **{"frozen": frozen} | prepare_options)
    progress = prepare_options.get("progress", True)
    model = fit_prepared(inputs, start, seed, config, progress, report_to)
    print(model.record)
    return model


def fit_prepared(
    inputs: Inputs,
    start: str,
    seed: int,
    config: RunConfig,
    progress: bool = True,
    report_to: str | Sequence[str] = (),
    keep_checkpoints: bool = True,
) -> PlantModel:
    """Train a model with its backbone, on candidates where `candidate_fit.on_candidates` says so.

    Arguments are those of `fit` and `run_start`. A model on candidates does not learn on.
    """
    options: dict[str, Any] = {"progress": progress, "report_to": report_to}
    options["keep_checkpoints"] = keep_checkpoints
    if on_candidates(len(inputs.rows["train"]), inputs.corpus.L, start, config):
        model = fit_candidates(inputs, start, seed, config, **options)
    else:
        record, model = run_start(inputs, start, seed, config=config, **options)
        model.kept = kept_of(inputs, config, record)
    if model.backbone is None:
        model.attach_backbone(artefacts.load_backbone(inputs))
    return model
