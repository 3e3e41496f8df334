"""A PlantModel as one ONNX graph, from the token ids of a document to the chances of its labels:
backbone, planted attention with its table, teacher and linear scores, phrases, calibration.

The folder holds `model.onnx`, two tokenizers that the package `tokenizers` reads by itself
(`tokenizer.json` for the backbone, `words.json` for the linear score), and `export.json` with the
labels, the windows and the rule of `label_sets`; that of a model with phrases also holds
`phrases.json` (`export_phrases.py`). The graph reads one document, as windows of token ids. Sums
over the tokens of a document are taken over static tables, so that no shape depends on what is
read. docs/guide.md, "Without Python, or without PyTorch".
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plantlib.backbones import adapters, loading, windows
from plantlib.backbones.words import is_static
from plantlib.data import credentials
from plantlib.data.tokens import WORD
from plantlib.metrics import calibration
from plantlib.model.export_phrases import CellLists, Phrases, listed
from plantlib.model.label_sets import rule_of
from plantlib.utils.folders import atomic_folder, check_target
from plantlib.utils.io import write_json

FORMAT = "onnx export"
GRAPH = "model.onnx"
ABOUT = "export.json"
TOKENIZER = "tokenizer.json"
WORDS = "words.json"
PHRASES = "phrases.json"
INPUTS = ("input_ids", "lengths", "word_ids")
OF_PHRASES = ("phrase_ids", "phrase_places")  # further inputs of a model with phrases
OUTPUTS = ("logits", "chances")
OPSET = 20


class CellSum(nn.Module):
    """The score of `planting.scores.TeacherScore` for one document, as sums over the whole table.

    score: a TeacherScore or WordScore. One more token than it has is read and counts nothing.
    """

    def __init__(self, score: Any):
        super().__init__()
        table = score.table
        count = table.planted_indptr.diff()
        self.register_buffer("tokens", torch.arange(len(count)).repeat_interleave(count))
        self.register_buffer("labels", table.planted_labels.long())
        self.register_buffer("values", table.planted_values / score.scale)
        self.register_buffer("idf", torch.cat([score.idf, score.idf.new_zeros(1)]))
        intercept = getattr(score, "intercept", None)
        none = torch.zeros(score.num_labels)
        self.register_buffer("intercept", none if intercept is None else intercept.clone())

    def forward(self, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """(L,) scores of a document with ids (S,), of which those with kept (S,) 1.0 count."""
        counts = torch.zeros_like(self.idf).scatter_add(0, ids, kept)
        weight = torch.where(counts > 0, 1 + counts.clamp(min=1.0).log(), 0.0) * self.idf
        weight = weight / weight.square().sum().sqrt().clamp(min=1e-12)
        added = self.values * weight[self.tokens]
        return torch.zeros_like(self.intercept).scatter_add(0, self.labels, added) + self.intercept


class PlantedScores(nn.Module):
    """The planted table for one document: every token's list of cells, as long as the longest."""

    def __init__(self, table: Any, gain: torch.Tensor):
        super().__init__()
        values = gain.detach() * table.planted_values
        self.lists = CellLists(table.planted_indptr, table.planted_labels, values)

    def forward(
        self, scores: torch.Tensor, ids: torch.Tensor, column: torch.Tensor | None = None
    ) -> torch.Tensor:
        """scores (S, L) of tokens ids (S,) plus gain times their planted cells; column: (L,) of
        each label, where they are not the labels.
        """
        labels, values = self.lists(ids)
        return scores.scatter_add(1, labels if column is None else column[labels], values)


class AllLabels(nn.Module):
    """Attention's part of the logits of all labels, and what all of them add."""

    def __init__(self, decoder: Any):
        super().__init__()
        self.planted = PlantedScores(decoder.planted, decoder.planted_gain)
        self.register_buffer("queries", decoder.label_queries.detach().T.contiguous())
        self.register_buffer("outputs", decoder.label_outputs.detach().T.contiguous())
        self.register_buffer("bias", decoder.label_bias.detach().clone())
        self.register_buffer("gain", decoder.linear_gain.detach().clone())
        self.register_buffer("planted_gain", decoder.planted_gain.detach().clone())

    def forward(
        self,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        kept: torch.Tensor,
        linear: torch.Tensor,
        own: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(L,) logits.

        Args:
            hidden: (S, D) of tokens.
            ids: (S,) of the same tokens.
            kept: (S,) bool, tokens of the document.
            linear: (L,) the linear score.
            own: (S, L) what phrases of the document plant beside the table.
        """
        scores = self.planted(hidden @ self.queries, ids)
        if own is not None:
            scores = scores + self.planted_gain * own
        read = attended(scores, hidden @ self.outputs, kept)
        return read + self.bias + self.gain * linear


class Candidates(nn.Module):
    """The same where the best labels by the linear score are read; the others have minus infinity.

    width: labels that are read.
    """

    def __init__(self, decoder: Any, width: int):
        super().__init__()
        self.planted = PlantedScores(decoder.planted, decoder.planted_gain)
        self.width = width
        for name in ("list_scale", "list_shift", "query_basis", "output_basis"):
            self.register_buffer(name, getattr(decoder, name).detach().clone())
        self.register_buffer("query_rows", decoder.query_rows.weight.detach().clone())
        self.register_buffer("output_rows", decoder.output_rows.weight.detach().clone())
        self.register_buffer("bias", decoder.label_bias.weight.detach()[:, 0].clone())
        self.register_buffer("gain", decoder.score_gain.detach().clone())

    def forward(
        self, hidden: torch.Tensor, ids: torch.Tensor, kept: torch.Tensor, linear: torch.Tensor
    ) -> torch.Tensor:
        """(L,) logits; see `AllLabels`."""
        best = torch.topk(self.list_shift + self.list_scale * linear, self.width).indices
        # planted cells of other labels go to a column that is left out
        place = torch.full_like(self.bias, self.width, dtype=torch.long)
        place = place.scatter(0, best, torch.arange(self.width))
        learned = hidden @ (self.query_rows[best] @ self.query_basis).T
        learned = torch.cat([learned, torch.zeros_like(learned[:, :1])], 1)
        scores = self.planted(learned, ids, place)[:, : self.width]
        outputs = hidden @ (self.output_rows[best] @ self.output_basis).T
        found = attended(scores, outputs, kept) + self.bias[best] + self.gain * linear[best]
        return torch.full_like(linear, float("-inf")).scatter(0, best, found)


def attended(scores: torch.Tensor, outputs: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(U,) attention over the kept tokens (S,) bool of scores and outputs (S, U); a document
    without any adds nothing.
    """
    scores = torch.where(kept[:, None], scores, -1e30)
    weights = torch.softmax(scores, 0) * kept[:, None].to(scores.dtype)
    return (weights * outputs).sum(0)


class WholePath(nn.Module):
    """What `PlantModel.predict` computes for one document, as a graph of static shape.

    model: a PlantModel with a backbone, in evaluation mode, on the CPU.
    """

    def __init__(self, model: Any):
        super().__init__()
        backbone = copy.deepcopy(model.backbone)
        if adapters.is_adapted(backbone):
            backbone = backbone.merge_and_unload()
        self.backbone = backbone.float().eval()
        decoder = model.decoder
        prefix, suffix = loading.specials(model.tokenizer)
        self.prefix, self.suffix = len(prefix), len(suffix)
        width = min(model.config.candidates, model.config.num_labels or 0)
        self.head = Candidates(decoder, width) if width else AllLabels(decoder)
        self.teacher = None if model.teacher_score is None else CellSum(model.teacher_score)
        self.linear = None if model.word_score is None else CellSum(model.word_score)
        self.phrases = None if model.phrase_score is None else Phrases(model.phrase_score)
        self.labels = model.config.num_labels
        if self.teacher is not None:
            self.register_buffer("teacher_gain", decoder.teacher_gain.detach().clone())
        width = model.config.hidden_size
        standardised = model.config.standardised
        shift = model.hidden_shift if standardised else torch.zeros(width)
        scale = model.hidden_scale if standardised else torch.ones(width)
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())
        self.curve = tuple(model.config.calibration or calibration.NONE)

    def forward(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        word_ids: torch.Tensor,
        phrase_ids: torch.Tensor | None = None,
        phrase_places: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and chances of one document, (L,) each.

        Args:
            input_ids: (W, T) its windows with special tokens, padded on the right.
            lengths: (W,) tokens of each window, special ones not counted.
            word_ids: (M,) its words; not read where the model has no linear score.
            phrase_ids, phrase_places: (P,) each, the phrases that it holds and the tokens that they
                touch, counted through the document; a phrase that touches none has the number of
                tokens. Only a model with phrases takes them.
        """
        # which places are read, and which are tokens of the document
        place = torch.arange(input_ids.shape[1])
        ends = lengths[:, None] + self.prefix
        read = (place < ends + self.suffix).long()
        kept = ((place >= self.prefix) & (place < ends)).flatten()
        hidden = self.backbone(input_ids=input_ids, attention_mask=read).last_hidden_state
        hidden = (hidden.flatten(0, 1) - self.shift) * self.scale
        ids = input_ids.flatten()
        # planted attention over the tokens of all windows, and the scores of the document
        linear = hidden.new_zeros(self.labels)
        if self.linear is not None:
            linear = self.linear(word_ids, torch.ones_like(word_ids, dtype=hidden.dtype))
        own: tuple[torch.Tensor, ...] = ()
        if self.phrases is not None:
            linear = linear + self.phrases.score(phrase_ids)
            slots = self._slots(phrase_places, lengths, input_ids.shape[1])
            own = (self.phrases.planted(phrase_ids, slots, ids.shape[0]),)
        logits = self.head(hidden, ids, kept, linear, *own)
        if self.teacher is not None:
            logits = logits + self.teacher_gain * self.teacher(ids, kept.to(logits.dtype))
        slope, shift, ceiling = self.curve
        return logits, ceiling * torch.sigmoid(slope * logits + shift)

    def _slots(self, places: torch.Tensor, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """Where tokens at `places` (P,) of the document stand in its windows (W, width), one after
        the other; those behind the last token come out behind the last window.
        """
        ends = lengths.cumsum(0)
        window = (places[:, None] >= ends).sum(1)
        begin = torch.cat([torch.zeros_like(ends[:1]), ends])[window]
        return window * width + self.prefix + places - begin


def check_exportable(model: Any) -> None:
    """ValueError for a model that the graph cannot express; it says which part."""
    model.as_backbone()
    decoder = model.decoder
    reasons = {
        "inattention (keep=)": any(decoder.keeps),
        "three contexts (contexts='sum')": decoder.contexts != "mixed",
        "the running state of the first version (stateful='v1')": decoder.stateful != "exact",
        "a static L2R table": decoder.l2r is not None,
        "windows that overlap": model.config.overlap > 0,
        "a recurrent backbone": windows.carries_state(model.as_backbone()),
        "a backbone without a tokenizer of the package tokenizers": not (
            hasattr(model.tokenizer, "backend_tokenizer") or is_static(model.backbone.config)
        ),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(
            f"this model has {' and '.join(found)}, which the ONNX graph does not express; train"
            " without it, or predict with plantlib"
        )


def word_tokenizer(words: list[str]) -> Any:
    """A tokenizer of the package tokenizers that gives the ids of `tokens.word_analyser`'s words.

    An unknown word gets the id V, which the graph reads as nothing. Words of scripts without
    spaces, which are pairs of characters there, are not known here.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    unknown = "[UNK]"
    vocabulary = {word: i for i, word in enumerate(words)} | {unknown: len(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    pattern = Regex(WORD)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "removed", invert=True)
    return tokenizer


def _whole_texts(tokenizer: Any) -> Any:
    """The tokenizer of the package tokenizers, without the truncation of earlier calls.

    That of word vectors repeats a word where the text does, and knows what it does not know.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        return word_tokenizer(tokenizer.words)
    whole = copy.deepcopy(tokenizer.backend_tokenizer)
    whole.no_truncation()
    whole.no_padding()
    return whole


def to_onnx(model: Any, folder: str | Path, int8: bool = False) -> Path:
    """Write a model as an ONNX graph with its tokenizers.

    Args:
        model: a PlantModel with a backbone.
        folder: a new or an empty folder, or one of an earlier export, which is replaced.
        int8: store the weights of matrix products as 8-bit integers.

    Returns:
        the folder.

    Raises:
        ValueError: a part of the model has no form as a graph, or a package is missing.
        PrivacyError: a credentialed model would leave the data folder.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ValueError(f"{error}; install them with pip install 'plantlib[onnx]'") from None
    check_exportable(model)
    check_target(folder, FORMAT)
    credentials.check_folder("the corpus of this model", folder, model.config.credentialed)
    path = WholePath(copy.deepcopy(model).cpu().eval())
    with atomic_folder(folder, FORMAT) as temporary:
        graph = temporary / GRAPH
        _trace(path, model, graph)
        if int8:
            whole = graph.rename(temporary / "whole.onnx")
            quantize_dynamic(whole, graph, weight_type=QuantType.QInt8)
            whole.unlink()
        _whole_texts(model.tokenizer).save(str(temporary / TOKENIZER))
        words = model.word_score.words if model.word_score is not None else []
        word_tokenizer(words).save(str(temporary / WORDS))
        if model.phrase_score is not None:
            write_json(temporary / PHRASES, listed(model.phrase_score))
        write_json(temporary / ABOUT, about(model))
    return Path(folder)


def about(model: Any) -> dict[str, Any]:
    """What a reader of the graph needs beside it; see docs/guide.md."""
    config = model.config
    prefix, suffix = loading.specials(model.tokenizer)
    distinct = is_static(model.backbone.config)
    return {
        "distinct": distinct,
        "unknown": len(model.tokenizer) if distinct else None,
        "labels": [config.id2label[i] for i in range(config.num_labels)],
        "prefix": list(prefix),
        "suffix": list(suffix),
        "padding": model.tokenizer.pad_token_id or 0,
        "window": config.window,
        "max_tokens": config.max_tokens,
        "rule": rule_of(model).as_dict(),
        "credentialed": config.credentialed,
    }


def _trace(path: WholePath, model: Any, graph: Path) -> None:
    """Write the graph of `path`, with any number of windows, tokens, words and phrases."""
    dim = torch.export.Dim.DYNAMIC
    prefix, suffix = loading.specials(model.tokenizer)
    special = len(prefix) + len(suffix)
    example = [
        torch.ones(3, 5 + special, dtype=torch.long),
        torch.tensor([5, 4, 3]),
        torch.zeros(7, dtype=torch.long),
    ]
    shapes: list[Any] = [{0: dim, 1: dim}, {0: dim}, {0: dim}]
    names: tuple[str, ...] = INPUTS
    if path.phrases is not None:
        names += OF_PHRASES
        # two tensors: the tracer takes one that is given twice for one input
        example += [torch.zeros(9, dtype=torch.long) for _ in OF_PHRASES]
        shapes += [{0: dim}, {0: dim}]
    with torch.no_grad():
        program = torch.onnx.export(
            path.eval(),
            tuple(example),
            dynamo=True,
            dynamic_shapes=tuple(shapes),
            input_names=list(names),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
    program.save(str(graph), external_data=False)
