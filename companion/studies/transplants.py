"""Is it the attention that planting helps by? One trained model gets the attention of another.

Starts differ in their initial values alone, which end in other attention and in better ranks of
rare labels; whether the first causes the second needs attention to be changed and nothing else.
Here the queries, the planted table and its gain of one trained model are put into another and held
still, while outputs and biases train on from the host's. Every host meets every attention, its own
included, so all cells train equally long. The gain of the planted over the unplanted model is then
the sum of an effect of attention, averaged over hosts, and one of the host, averaged over
attentions; the first as a share of the whole is the mediated share. Attention of the shuffled
teacher is the control. Where the corpus marks evidence, the change of attention at each label is
held against the change of the label's average precision.

    python -m companion.runner runs/questions-transplants.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import set_seed

from companion.studies import evidence, steps, trained
from companion.studies.official import average_precisions
from plantlib.data.sources import checkout
from plantlib.metrics.statistics import bootstrap_ratio, paired_bootstrap
from plantlib.model.plant_model import PlantModel
from plantlib.planting.decoder import LabelDecoder
from plantlib.teacher.mig import Teacher
from plantlib.training import artefacts, evaluation, train
from plantlib.training.ingredients import build_model, teacher_of, use_score, withheld_of
from plantlib.training.inputs import Documents, Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.utils.io import remove_unless_held

if TYPE_CHECKING:
    import pandas

STUDY = "transplants"
# start -> what its trained model is called
MODELS = {"random": "unplanted", "lookup": "planted", "shuffled": "shuffled"}
# (host, attention): every host with every attention, and the control
CELLS = (
    ("unplanted", "unplanted"),
    ("unplanted", "planted"),
    ("planted", "unplanted"),
    ("planted", "planted"),
    ("unplanted", "shuffled"),
)
METRICS = ("ndcg@5", "few/rp@5")
EFFECTS = ("planting as a whole", "attention alone", "host alone", "shuffled attention alone")
SAMPLES = 1000


def run(
    dataset: str = "codiesp-es",
    backbone: str = "minilm",
    tokens: int = 256,
    epochs: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    results: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Train, transplant and measure; what is there is not made again.

    Args:
        dataset: a known name or the folder of a saved corpus; one with evidence has its labels'
            attention measured too.
        epochs: most passes of every training.
        results: results/ of the checkout when None.
        force: make everything again.

    Returns:
        `results`.
    """
    results = Path(results or checkout() / "results")
    inputs = prepare(dataset, backbone=backbone, max_tokens=tokens, progress=False)
    config = RunConfig(train=TrainConfig(epochs=epochs))
    for seed in seeds:
        path = results / steps.FOLDER / f"{STUDY}-{inputs.file_name}-s{seed}.json"
        about = {"dataset": inputs.about(), "inputs": inputs.key, "tokens": tokens, "seed": seed}
        measure(inputs, config, seed, steps.Steps(path, about | {"config": asdict(config)}, force))
    return results


def measure(inputs: Inputs, config: RunConfig, seed: int, step: steps.Steps) -> None:
    """All cells of one seed, and the labels of the test documents."""
    teacher = teacher_of(inputs, config.teacher)
    decoders: dict[str, LabelDecoder] = {}

    def decoder_of(name: str) -> LabelDecoder:
        start = next(s for s, called in MODELS.items() if called == name)
        if name not in decoders:
            decoders[name] = trained.after(inputs, start, seed, config, teacher, progress=False)
        return decoders[name]

    for host, attention in CELLS:
        step(
            f"{host} with attention of {attention}",
            lambda host=host, attention=attention: transplanted(
                inputs, config, seed, teacher, decoder_of(host), decoder_of(attention), attention
            ),
        )
    if inputs.corpus.evidence is not None:
        names = ("unplanted", "planted")
        step("labels", lambda: quality(inputs, {name: decoder_of(name) for name in names}))


def transplanted(
    inputs: Inputs,
    config: RunConfig,
    seed: int,
    teacher: Teacher,
    host: LabelDecoder,
    donor: LabelDecoder,
    attention: str,
) -> dict:
    """Put the donor's attention into the host, train the outputs on, and measure test.

    attention: which attention that is, one of the values of MODELS.

    Returns:
        metrics and per_document of METRICS, and average_precision of every label.
    """
    set_seed(seed)
    model = joined(inputs, teacher, host, donor)
    folder = artefacts.run_folder(inputs, f"transplant-{attention}-s{seed}", asdict(config), seed)
    try:
        train.fine_tune(
            model,
            _documents(inputs, config, teacher, attention, seed),
            inputs.documents("dev"),
            inputs.train_counts,
            folder,
            config=config.train,
            seed=seed,
            resume=False,
            progress=False,
        )
    finally:
        remove_unless_held(folder)
    judged = evaluation.judge_model(model.eval(), inputs)
    gold = inputs.corpus.labels[inputs.rows["test"]]
    precisions = average_precisions(logits(model, inputs).T, gold.T.tocsr())
    return {
        "metrics": {name: judged["metrics"][name] for name in METRICS},
        "per_document": {name: judged["per_document"][name] for name in METRICS},
        "average_precision": steps.rounded(precisions),
    }


def joined(inputs: Inputs, teacher: Teacher, host: LabelDecoder, donor: LabelDecoder) -> PlantModel:
    """A model of the host's outputs and the donor's attention, which does not train."""
    model = build_model(inputs, teacher)
    use_score(model, [], teacher, inputs)
    decoder = model.decoder
    decoder.load_state_dict(donor.state_dict())
    with torch.no_grad():
        decoder.label_outputs.copy_(host.label_outputs)
        decoder.label_bias.copy_(host.label_bias)
    decoder.label_queries.requires_grad_(False)
    decoder.planted_gain.requires_grad_(False)
    return model


def _documents(
    inputs: Inputs, config: RunConfig, teacher: Teacher, attention: str, seed: int
) -> Documents:
    """The training documents as the donor of this attention read them."""
    if attention == "unplanted":
        return inputs.documents("train")
    withheld = withheld_of(inputs, teacher, ["lookup"], config.teacher)
    if withheld is not None and attention == "shuffled":
        withheld = withheld.relabelled(teacher.shuffled_order(seed))
    return inputs.documents("train", withheld=withheld)


def logits(model: PlantModel, inputs: Inputs, batch: int = 16) -> np.ndarray:
    """(n, L) logits of the test documents; for corpora so small that they fit into memory."""
    documents = inputs.documents("test")
    found = []
    with torch.inference_mode():
        for begin in range(0, len(documents), batch):
            rows = [int(row) for row in documents.rows[begin : begin + batch]]
            values = documents.collate(rows)
            read = {name: x for name, x in values.items() if not name.startswith("label_")}
            found.append(model(**read).logits.float().numpy())
    return np.concatenate(found)


def quality(inputs: Inputs, decoders: dict[str, LabelDecoder]) -> dict:
    """Attention of decoders against evidence, by label.

    Returns:
        label and count (its training documents) of each label whose evidence stands in test, and
        the mean AUC over its documents by decoder.
    """
    frame = evidence.measure(inputs, "test", decoders, teacher_of(inputs))
    frame = frame[frame["system"].isin(decoders)]
    means = frame.groupby(["system", "label"])["auc"].mean().unstack("system")
    return {
        "label": means.index.tolist(),
        "count": inputs.train_counts[means.index].tolist(),
        "auc": {name: steps.rounded(means[name]) for name in decoders},
    }


def is_whole(file: dict) -> bool:
    """Whether a file has all cells of its seed."""
    return all("{} with attention of {}".format(*cell) in file["steps"] for cell in CELLS)


def effects(files: Sequence[dict], metric: str) -> pandas.DataFrame:
    """What the files of one corpus say: a row per effect of EFFECTS and one of the mediated share.

    Args:
        files: contents of the files of its seeds.
        metric: one of METRICS.

    Returns:
        columns effect, value, low, high (95 %, over seeds and test documents) and seeds, in
        fractions; the share is left out where the whole effect cannot be told from zero.
    """
    import pandas as pd

    uu, up, pu, pp, us = (_values(files, cell, metric) for cell in CELLS)
    whole, attention = pp - uu, (up - uu + pp - pu) / 2
    parts = dict(zip(EFFECTS, (whole, attention, whole - attention, us - uu), strict=True))
    rows = []
    for name, difference in parts.items():
        found = paired_bootstrap(difference, np.zeros_like(difference))
        rows.append({"effect": name, "value": found["mean_difference"]} | _bounds(found))
    if rows[0]["low"] > 0 or rows[0]["high"] < 0:
        found = bootstrap_ratio(attention, whole)
        rows.append({"effect": "mediated share", "value": found["ratio"]} | _bounds(found))
    return pd.DataFrame(rows).assign(seeds=len(files))


def _values(files: Sequence[dict], cell: tuple[str, str], metric: str) -> np.ndarray:
    """(seeds, n) values of a metric for each test document, nan where undefined."""
    name = "{} with attention of {}".format(*cell)
    return np.array([file["steps"][name]["per_document"][metric] for file in files], float)


def _bounds(found: dict) -> dict:
    return {"low": found["low"], "high": found["high"]}


def by_label(files: Sequence[dict], least: int = 1, most: int | None = None) -> dict | None:
    """Spearman's correlation over labels between the change of attention's AUC, planted minus
    unplanted, and the change of average precision when the unplanted host gets planted attention.

    Args:
        files: of one corpus; None is returned where they have no labels measured.
        least, most: training documents of the labels.

    Returns:
        correlation, low, high (95 %, labels and seeds drawn) and labels.
    """
    if not files or "labels" not in files[0]["steps"]:
        return None
    better, higher = [], []
    for file in files:
        of = file["steps"]["labels"]
        label, count = np.array(of["label"]), np.array(of["count"])
        inside = (count >= least) & (count <= (most or np.inf))
        auc = {name: np.array(column, float)[inside] for name, column in of["auc"].items()}
        better.append(auc["planted"] - auc["unplanted"])
        with_planted, with_own = (
            np.array(
                file["steps"][f"unplanted with attention of {name}"]["average_precision"], float
            )
            for name in ("planted", "unplanted")
        )
        higher.append((with_planted - with_own)[label[inside]])
    found = correlation(np.array(better), np.array(higher))
    return found | {"labels": len(better[0])}


def correlation(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Spearman's correlation of means over seeds with its 95 % interval; x, y: (seeds, n) each.

    A resample draws seeds and columns.
    """
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(SAMPLES):
        seeds = rng.integers(0, len(x), len(x))
        columns = rng.integers(0, x.shape[1], x.shape[1])
        sides = (values[seeds][:, columns].mean(0) for values in (x, y))
        drawn.append(spearmanr(*sides)[0])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"correlation": float(spearmanr(x.mean(0), y.mean(0))[0]), "low": low, "high": high}
