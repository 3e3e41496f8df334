"""Published label-attention heads on the same frozen features, trainer and dev selection as the
planted runs.

CAML (arXiv 1802.05695): a convolution over the tokens, then one attention a label over its filters.
PLM-ICD (arXiv 2107.03126), whose head is LAAT's (arXiv 2007.06351): scores from tanh(V h), values
from h itself. Both are published with a (B, L, D) context; what follows it is linear, so query and
output vectors a label say the same (METHOD.md section 4) and the blocked attention of `kernels`
computes it in (B, L): the folded equivalent, equal to the published form (tested). Not published:
frozen MiniLM states instead of word embeddings (CAML) or a tuned model (PLM-ICD), label biases that
begin at the log-odds.
"""

from __future__ import annotations

import shutil
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
from plantlib.utils.io import fingerprint_of

# a head that begins from nothing: more epochs than the planted runs have, stopped on dev
CONFIG = TrainConfig(epochs=20, patience=4, lr_backbone=1e-3)


class LabelHead(nn.Module):
    """Per-label queries and outputs over what `encode` makes of packed hidden states; trains on
    cached features alone.
    """

    def __init__(self, num_labels: int, query_size: int, output_size: int):
        super().__init__()
        self.label_queries = nn.Parameter(torch.empty(num_labels, query_size))
        self.label_outputs = nn.Parameter(torch.empty(num_labels, output_size))
        self.label_bias = nn.Parameter(torch.zeros(num_labels))
        self.backbone = None  # the trainer asks

    def encode(
        self, hidden: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What is scored (S, query_size) and what is read (S, output_size); None where both are the
        same.
        """
        raise NotImplementedError

    def forward(
        self, token_ids, offsets, hidden_states, label_rows=None, label_columns=None, **_
    ) -> PlantOutput:
        """As `PlantModel.forward`: packed hidden states (S, D), offsets (B+1); loss where positive
        cells are given.
        """
        scored, read = self.encode(hidden_states, offsets)
        queries, outputs = self.label_queries, self.label_outputs
        if read is not None:
            # one (S, query_size + output_size) input: queries see its first part, outputs its
            # second
            scored = torch.cat([scored, read], 1)
            queries = nn.functional.pad(queries, (0, outputs.shape[1]))
            outputs = nn.functional.pad(outputs, (queries.shape[1] - outputs.shape[1], 0))
        if label_rows is None:
            value, _ = kernels.attend(scored, offsets, queries, outputs, label_bias=self.label_bias)
            return PlantOutput(logits=value)
        added = self.label_bias.expand(len(offsets) - 1, -1)
        return PlantOutput(
            *kernels.attend_bce(
                scored, offsets, queries, outputs, label_rows, label_columns, added=added
            )
        )


class Caml(LabelHead):
    """Convolution over `width` tokens to `filters` filters, tanh, one attention a label."""

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
        # documents side by side, so that no filter reads over the end of one into the next
        parts = self.dropout(hidden).split(offsets.diff().tolist())
        filtered = (
            self.convolution(pad_sequence(parts, batch_first=True).transpose(1, 2))
            .tanh()
            .transpose(1, 2)
        )
        return torch.cat(
            [row[: len(part)] for row, part in zip(filtered, parts, strict=True)]
        ), None


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
    """Every head with every seed; records that stand in `results` and were made so are read, not
    repeated.
    """
    if prepared.features is None:
        raise ValueError("the heads are trained on cached features; call prepare(..., frozen=True)")
    made = []
    for name, seed in [(n, s) for s in seeds for n in names]:
        if name not in HEADS:
            raise ValueError(f"head {name!r} is not known; use some of {', '.join(HEADS)}")
        path = Path(results or ".") / f"{run_name(prepared, name, seed)}.json"
        found = RunRecord.load(path) if results is not None and path.is_file() else None
        wanted = params_of(prepared, config)
        if found is None or found.seed != seed or not agrees(found, wanted):
            found = run_head(prepared, name, config, seed=seed, progress=progress)
            if results is not None:
                found.save(results)
        made.append(found)
    return made


def params_of(prepared: Inputs, config: TrainConfig) -> dict:
    """What a record says of how it was made; `read` is not `max_tokens`, which only planted records
    carry.
    """
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
    """Train on train, stop and choose the epoch on dev, read test once."""
    set_seed(seed)
    model = HEADS[name](prepared.corpus.L, prepared.hidden_size)
    with torch.no_grad():
        model.label_bias.copy_(prior_log_odds(prepared.train_labels))
    run_id = run_name(prepared, name, seed)
    folder = (
        prepared.root
        / "checkpoints"
        / f"{run_id}-{fingerprint_of(prepared.key, name, asdict(config), seed)}"
    )
    began, cpu = time.perf_counter(), time.process_time()
    parts = {split: prepared.documents(split) for split in ("train", "dev", "test")}
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
    times = {"train": time.perf_counter() - began, "train_cpu": time.process_time() - cpu}
    model.eval()
    record = _record(prepared, model, name, seed, run_id, config, epochs, times)
    shutil.rmtree(folder, ignore_errors=True)
    return record


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
    began, cpu = time.perf_counter(), time.process_time()
    test, _ = evaluation.score(model, prepared.documents("test"), prepared.train_counts, auc=False)
    times |= {"predict": time.perf_counter() - began, "predict_cpu": time.process_time() - cpu}
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
