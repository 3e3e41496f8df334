"""Published heads with label attention, on the frozen features that planted runs read.

They have the trainer of planted runs, and dev chooses the epoch. CAML (arXiv 1802.05695): a
convolution over the tokens, then one attention per label over its filters. PLM-ICD (arXiv
2207.05289), with the head of LAAT (arXiv 2007.06351): scores come from tanh(V h), values from h.
Both are published with a context of size (B, L, D). What follows it is linear, so one query and one
output vector per label give the same result (docs/method.md, "Planted attention"), and the blocked
attention of `kernels` needs only (B, L); a test compares it with the published form. Different from
the publications are the frozen hidden states, in place of word embeddings (CAML) or a tuned model
(PLM-ICD), and the label biases, which begin at the log-odds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed

from companion.peers.library_peers import NOTEBOOK
from companion.peers.worker import peak_memory
from plantlib import kernels
from plantlib.model.plant_model import PlantOutput
from plantlib.planting.starts import prior_log_odds
from plantlib.training import evaluation, train
from plantlib.training.evaluation import judge
from plantlib.training.inputs import Inputs
from plantlib.training.options import TrainConfig
from plantlib.training.records import RunRecord, agrees, run_name
from plantlib.utils.io import fingerprint_of, held, remove_unless_held

# a randomly initialised head gets more epochs than planted runs have; dev stops it
CONFIG = TrainConfig(epochs=20, patience=4, lr_backbone=1e-3)


class LabelHead(nn.Module):
    """Queries and outputs per label over what `encode` makes of packed hidden states.

    It is trained on cached features; it has no backbone.
    """

    def __init__(self, num_labels: int, query_size: int, output_size: int):
        super().__init__()
        self.label_queries = nn.Parameter(torch.empty(num_labels, query_size))
        self.label_outputs = nn.Parameter(torch.empty(num_labels, output_size))
        self.label_bias = nn.Parameter(torch.zeros(num_labels))
        self.backbone = None  # read by the trainer

    def encode(
        self, hidden: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys (S, query_size) and values (S, output_size) of the attention.

        hidden: (S, D) packed hidden states; offsets: (B + 1,) where each document begins. Values
        are None where they equal the keys.
        """
        raise NotImplementedError

    def forward(
        self, token_ids, offsets, hidden_states, label_rows=None, label_columns=None, **_
    ) -> PlantOutput:
        """As `PlantModel.forward`: logits (B, L), or the loss where positive cells are given.

        offsets: (B + 1,); hidden_states: (S, D) packed; label_rows, label_columns: positive cells.
        """
        keys, values = self.encode(hidden_states, offsets)
        queries = self.label_queries
        outputs = self.label_outputs
        # the kernels read one input: queries see its first columns, outputs its last
        if values is not None:
            keys = torch.cat([keys, values], 1)
            queries = nn.functional.pad(queries, (0, outputs.shape[1]))
            outputs = nn.functional.pad(outputs, (queries.shape[1] - outputs.shape[1], 0))
        # logits, or the loss
        if label_rows is None:
            logits, _ = kernels.attend(keys, offsets, queries, outputs, label_bias=self.label_bias)
            return PlantOutput(logits=logits)
        added = self.label_bias.expand(len(offsets) - 1, -1)
        return PlantOutput(
            *kernels.attend_bce(
                keys, offsets, queries, outputs, label_rows, label_columns, added=added
            )
        )


class Caml(LabelHead):
    """Convolution over `width` tokens to `filters` filters, tanh, one attention per label."""

    def __init__(
        self,
        num_labels: int,
        hidden_size: int,
        filters: int = 50,
        width: int = 9,
        dropout: float = 0.2,
    ):
        super().__init__(num_labels, filters, filters)
        self.convolution = nn.Conv1d(hidden_size, filters, width, padding="same")
        self.dropout = nn.Dropout(dropout)
        for weight in (self.convolution.weight, self.label_queries, self.label_outputs):
            nn.init.xavier_uniform_(weight)

    def encode(self, hidden, offsets):
        # one row per document, so that no filter reads across the end of a document
        parts = self.dropout(hidden).split(offsets.diff().tolist())
        rows = pad_sequence(parts, batch_first=True).transpose(1, 2)
        filtered = self.convolution(rows).tanh().transpose(1, 2)
        real = [row[: len(part)] for row, part in zip(filtered, parts, strict=True)]
        return torch.cat(real), None


class PlmIcd(LabelHead):
    """Scores <tanh(V h), u_l>, values <h, w_l>."""

    def __init__(self, num_labels: int, hidden_size: int, std: float = 0.03):
        super().__init__(num_labels, hidden_size, hidden_size)
        self.projection = nn.Linear(hidden_size, hidden_size, bias=False)
        for weight in (self.projection.weight, self.label_queries, self.label_outputs):
            nn.init.normal_(weight, 0.0, std)

    def encode(self, hidden, offsets):
        return self.projection(hidden).tanh(), hidden


HEADS = {"CAML head": Caml, "PLM-ICD head": PlmIcd}


def run(
    prepared: Inputs,
    names: Iterable[str] = tuple(HEADS),
    seeds: Iterable[int] = (0,),
    *,
    config: TrainConfig = CONFIG,
    results: str | Path | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """The records of every head with every seed.

    Args:
        prepared: a corpus with cached features.
        names: some of HEADS.
        seeds: of the runs.
        config: options of the training.
        results: folder of the records; a head whose record is there with the same options is not
            repeated. Nothing is saved when None.
        progress: show bars.

    Raises:
        ValueError: no cached features, or an unknown head.
    """
    if prepared.features is None:
        raise ValueError("the heads are trained on cached features; call prepare(..., frozen=True)")
    records = []
    for name, seed in [(n, s) for s in seeds for n in names]:
        if name not in HEADS:
            raise ValueError(f"head {name!r} is not known; use some of {', '.join(HEADS)}")
        path = Path(results or ".") / f"{run_name(prepared, name, seed)}.json"
        record = RunRecord.load(path) if results is not None and path.is_file() else None
        params = params_of(prepared, config)
        if record is None or record.seed != seed or not agrees(record, params):
            record = run_head(prepared, name, config, seed=seed, progress=progress)
            if results is not None:
                record.save(results)
        records.append(record)
    return records


def params_of(prepared: Inputs, config: TrainConfig) -> dict:
    """`RunRecord.params` of a head; `read` are tokens, as `max_tokens` marks planted records."""
    backbone = f"{Path(prepared.backbone).name}, frozen"
    return {
        "train": asdict(config),
        "inputs": prepared.key,
        "features": backbone,
        "read": prepared.max_tokens,
    }


def run_head(
    prepared: Inputs, name: str, config: TrainConfig, seed: int = 0, progress: bool = True
) -> RunRecord:
    """Train a head; dev stops the training and chooses the epoch, test is read once."""
    # the model
    set_seed(seed)
    model = HEADS[name](prepared.corpus.L, prepared.hidden_size)
    with torch.no_grad():
        model.label_bias.copy_(prior_log_odds(prepared.train_labels))
    run_id = run_name(prepared, name, seed)
    # train it
    key = fingerprint_of(prepared.key, name, asdict(config), seed)
    folder = prepared.root / "checkpoints" / f"{run_id}-{key}"
    wall = time.perf_counter()
    cpu = time.process_time()
    parts = {split: prepared.documents(split) for split in ("train", "dev", "test")}
    with held(folder):
        epochs = train.fine_tune(
            model,
            parts["train"],
            parts["dev"],
            prepared.train_counts,
            folder,
            config=config,
            seed=seed,
            progress=progress,
        )
        remove_unless_held(folder)
    times = {"train": time.perf_counter() - wall, "train_cpu": time.process_time() - cpu}
    # judge it
    model.eval()
    return _record(prepared, model, name, seed, run_id, config, epochs, times)


def _record(
    prepared: Inputs,
    model: LabelHead,
    name: str,
    seed: int,
    run_id: str,
    config: TrainConfig,
    epochs,
    times,
) -> RunRecord:
    dev, _ = evaluation.score(model, prepared.documents("dev"), prepared.train_counts, auc=False)
    wall = time.perf_counter()
    cpu = time.process_time()
    test, _ = evaluation.score(model, prepared.documents("test"), prepared.train_counts, auc=False)
    times |= {"predict": time.perf_counter() - wall, "predict_cpu": time.process_time() - cpu}
    size = sum(p.numel() for p in model.parameters())
    return RunRecord(
        id=run_id,
        kind="neural",
        system=name,
        seed=seed,
        params=params_of(prepared, config),
        notebook=NOTEBOOK,
        history=epochs,
        chosen_epoch=train.chosen_epoch(epochs),
        times={k: round(v, 3) for k, v in times.items()},
        peak_memory_mb=peak_memory(),
        model_size={"trained_parameters": size, "model_mb": round(4 * size / 2**20, 3)},
        **judge(prepared, dev, test),
    )
