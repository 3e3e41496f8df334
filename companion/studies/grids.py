"""A grid of backbones, starts and seeds on one corpus, for notebook 08 and `companion.launch`.

It turns plain parameters, as YAML and papermill pass them, into the options of `runs.run_start`,
prints the memory that a run is expected to take, and refuses a run that does not fit. Finished runs
are not repeated.
"""

from __future__ import annotations

from pathlib import Path

from plantlib.backbones import loading
from plantlib.backbones.adapters import BackboneOptions, LoraOptions
from plantlib.training import memory
from plantlib.training.inputs import Inputs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from plantlib.training.records import RunRecord
from plantlib.training.runs import run_grid
from plantlib.utils.distributed import is_main, main_first


def backbone_grid(
    dataset: str,
    backbones: list[str],
    *,
    tuning: str = "lora",
    starts=("random", "l2r", "lookup"),
    seeds=(0,),
    tokens=128,
    window: int | None = None,
    overlap: int = 0,
    epochs: int = 4,
    batch_size: int = 16,
    accumulation: int = 1,
    lr_backbone: float = 2e-4,
    dtype: str = "float32",
    quantise: bool = False,
    gradient_checkpointing: bool = False,
    lora_r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.05,
    lora_targets: list[str] | None = None,
    trust_remote_code: bool = False,
    label_space: str = "seen",
    train_documents: int | None = None,
    dev_documents: int | None = None,
    test_documents: int | None = None,
    results: str | Path = "results/runs",
    root: str | Path | None = None,
    notebook: str | None = "08_backbones",
    progress: bool = True,
) -> list[RunRecord]:
    """Run the grid and return its records, backbone by backbone.

    The parameters are those of `prepare`, `run_grid`, `TrainConfig`, `BackboneOptions` (dtype,
    quantise, gradient_checkpointing) and `LoraOptions` (lora_...).

    Raises:
        MemoryExceeded: a backbone does not fit into the memory of the device; raised before its
            first run.
    """
    # options from the plain parameters
    config = RunConfig(
        tuning=tuning,
        lora=LoraOptions(
            lora_r, lora_alpha, lora_dropout, tuple(lora_targets) if lora_targets else None
        ),
        backbone=BackboneOptions(dtype, 0.0, quantise, gradient_checkpointing),
        train=TrainConfig(
            epochs=epochs, batch_size=batch_size, accumulation=accumulation, lr_backbone=lr_backbone
        ),
    )
    caps = {
        "train_documents": train_documents,
        "dev_documents": dev_documents,
        "test_documents": test_documents,
    }
    options = {
        "max_tokens": tokens,
        "window": window,
        "overlap": overlap,
        "root": root,
        "progress": progress,
    } | caps
    options["label_space"] = label_space
    # one backbone after the other
    records: list[RunRecord] = []
    for name in backbones:
        with main_first():
            prepared = prepare(
                dataset,
                backbone=name,
                frozen=tuning == "frozen",
                trust_remote_code=trust_remote_code,
                **options,
            )
        expected = expected_memory(prepared, config)
        if is_main():
            print(expected, flush=True)
        memory.check(expected, memory.available())
        records += run_grid(
            prepared,
            starts,
            seeds,
            config=config,
            results=results,
            notebook=notebook,
            progress=progress,
        )
    return records


def expected_memory(prepared: Inputs, config: RunConfig) -> memory.Estimate:
    """The memory that one run of `config` on this corpus is expected to take."""
    return memory.estimate(
        loading.config_of(prepared.backbone, prepared.trust_remote_code),
        num_labels=prepared.corpus.L,
        tuning=config.tuning,
        lora=config.lora,
        dtype=config.backbone.dtype,
        quantise=config.backbone.quantise,
        gradient_checkpointing=config.backbone.gradient_checkpointing,
        batch_size=config.train.batch_size,
        tokens=int(prepared.tokens.lengths.max()),
        window=prepared.window,
        num_planted_cells=64 * prepared.corpus.L,
        checkpointed_segments=True,
    )
