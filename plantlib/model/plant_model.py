"""PlantModel: a backbone and a LabelDecoder as one transformers model.

See docs/method.md, "Planted attention" and "Long documents". Documents are packed (token ids one
after another, offsets between them), so no padding reaches the decoder. A model may have no
backbone: then it reads hidden states, as in training on cached features, and `attach_backbone`
completes it for use on text. Documents longer than the backbone's window are read window by window.
Files are in `saving.py`, explanations in `explanation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from plantlib.backbones import loading, windows
from plantlib.data.kept import Kept
from plantlib.data.tokens import Ragged, tokenise, tokens_beyond
from plantlib.kernels import Cells
from plantlib.kernels.attention_bce import left_out, sparse_bce
from plantlib.metrics.calibration import chances
from plantlib.metrics.label_rules import LabelRule
from plantlib.model import explaining, hub, label_sets, listing, lm_head, reading, saving, streaming
from plantlib.model.explanation import DocumentExplanation, Explanation
from plantlib.planting import ranking
from plantlib.planting.contexts import cells_of
from plantlib.planting.decoder import Packed
from plantlib.planting.phrases import Heard, PhraseScore
from plantlib.planting.scores import TeacherScore, WordScore, changes_of
from plantlib.utils.checks import check_whole


@strict
class PlantConfig(PreTrainedConfig):
    """Sizes and options of a PlantModel; `id2label` holds the label names.

    backbone_config: None for a model without a backbone. backbone_saved: "whole" if the folder
    holds the backbone's weights, "adapter" if it holds adapters for the backbone that
    backbone_fingerprint names. overlap: see `loading.Backbone`. num_l2r_cells, contexts, stateful,
    keep: see `LabelDecoder`. candidates: labels per document that a model of very many labels
    scores, its best by the linear score; 0 scores all. rank: see `CandidateDecoder`.
    l2r_from: see `lm_head`. lm_head: the model has that head.
    backward: texts are read from their end. standardised: see `features.standard_of`. threshold:
    of F1, on the logit. label_rule: see `metrics.label_rules`, None for the threshold. calibration:
    see `metrics.calibration`. label_texts: names of codes. phrases: sizes of the lists of a
    `planting.phrases.PhraseScore`, None without one. train_counts: (L,) training documents
    of each label, of train_documents in all. credentialed: the model was trained on such a corpus
    and stays in the data folder.

    >>> from plantlib import PlantConfig
    >>> PlantConfig(id2label={0: "I10", 1: "J45"}).num_labels
    2
    """

    model_type = "plant"

    backbone_name: str | None = None
    backbone_config: dict | None = None
    backbone_saved: str = "whole"
    backbone_fingerprint: str | None = None
    backbone_dtype: str = "float32"
    hidden_size: int = 384
    num_tokens: int = 1
    num_planted_cells: int = 0
    num_teacher_cells: int = 0
    num_words: int = 0
    num_word_cells: int = 0
    num_l2r_cells: int = 0
    contexts: str = "mixed"
    stateful: str = "exact"
    l2r_from: str = "read"
    lm_head: bool = False
    backward: bool = False
    keep: int | list | None = None
    candidates: int = 0
    rank: int = 1
    max_tokens: int | None = None
    window: int = 510
    overlap: int = 0
    standardised: bool = False
    threshold: float = 0.5
    label_rule: dict | None = None
    calibration: list | None = None
    label_texts: dict | None = None
    phrases: list | None = None
    train_counts: list | None = None
    train_documents: int = 0
    credentialed: bool = False
    tie_word_embeddings: bool = False


@dataclass
class PlantOutput(ModelOutput):
    """loss: scalar or None. logits: (B, L)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PlantModel(PreTrainedModel):
    """Backbone (optional), decoder, and the document scores that a start plants.

    >>> from plantlib import PlantConfig, PlantModel
    >>> PlantModel(PlantConfig(hidden_size=24, id2label={0: "I10"})).decoder.label_queries.shape
    torch.Size([1, 24])
    """

    config_class = PlantConfig
    base_model_prefix = "plant"
    main_input_name = "token_ids"
    supports_gradient_checkpointing = True
    hidden_shift: torch.Tensor
    hidden_scale: torch.Tensor

    def __init__(self, config: PlantConfig):
        super().__init__(config)
        # the backbone
        self.backbone: Any = None
        if config.backbone_config is not None and config.backbone_saved == "whole":
            options = dict(config.backbone_config)
            inner = AutoConfig.for_model(options.pop("model_type"), **options)
            self.backbone = AutoModel.from_config(inner, trust_remote_code=False)
        # the decoder and what is added to its logits
        labels = config.num_labels or 0
        self.decoder: Any = listing.decoder_of(config)
        self.teacher_score: TeacherScore | None = None
        if config.num_teacher_cells:
            self.teacher_score = TeacherScore(config.num_tokens, labels, config.num_teacher_cells)
        self.word_score: WordScore | None = None
        if config.num_words:
            self.word_score = WordScore(config.num_words, labels, config.num_word_cells)
        self.phrase_score: PhraseScore | None = None
        if config.phrases:
            self.phrase_score = PhraseScore(config.phrases, labels)
        # what stands between the backbone and the decoder
        if config.standardised:
            self.register_buffer("hidden_shift", torch.zeros(config.hidden_size))
            self.register_buffer("hidden_scale", torch.ones(config.hidden_size))
        self.lm_head: Any = None
        if config.lm_head:
            head = torch.nn.Linear(config.hidden_size, config.num_tokens)
            self.lm_head = head.requires_grad_(False)
        # options of training, set by the trainer
        self.label_loss = "bce"  # or "approx_ndcg", over the labels of a document
        self.still: torch.Tensor | None = None  # (U,) labels that the loss leaves out
        # of the run that trained it; they are removed when the model is saved
        self.checkpoints: Path | None = None
        self.lm_weight = 0.0  # weight of the language model's loss, while a backbone is trained
        # what belongs to the model beside its weights
        self.tokenizer: Any = None
        self.backbone_source: str | None = None
        self.record: Any = None
        # the documents that it may learn on with, or the file that holds them
        self.kept: Kept | Path | None = None
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: values come from `planting.plant` or from a file."""

    def encode(self, token_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Hidden states (S, D) of packed token ids (S,); offsets (B+1)."""
        return windows.encode(self.as_backbone(), token_ids, offsets)

    def standardise(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (S, D) at the spread of the decoder; see `features.standard_of`."""
        if not self.config.standardised:
            return hidden
        return (hidden.to(self.hidden_shift.dtype) - self.hidden_shift) * self.hidden_scale

    def packed(
        self,
        hidden: torch.Tensor,
        token_ids: torch.Tensor,
        offsets: torch.Tensor,
        cells: Cells | None = None,
    ) -> Packed:
        """The decoder's input from the backbone's hidden states (S, D); ids (S,), offsets (B+1).

        cells: planted cells of these documents alone, see `Packed`.
        """
        config, scored = self.config, None
        if config.num_l2r_cells and config.l2r_from != "read":
            top_n = 1 if config.l2r_from == "likely" else lm_head.TOP_N
            scored = lm_head.scored_tokens(self.lm_head, hidden, top_n)
        return Packed(self.standardise(hidden), token_ids, offsets, scored, cells)

    def lm_loss(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor | None:
        """(2,) sum and number of the language model's losses; None if `lm_weight` is 0."""
        if not (self.lm_weight and self.training):
            return None
        backward = self.config.backward
        total, count = lm_head.loss_sum(self.lm_head, hidden, token_ids, offsets, backward)
        return torch.stack([total, total.new_tensor(count)])

    def as_backbone(self) -> loading.Backbone:
        """The model's backbone as `windows` and `features` read it; ValueError if there is none."""
        if self.backbone is None or self.tokenizer is None:
            raise ValueError(
                "this model has no backbone; call attach_backbone(loading.load(...)) or pass"
                " hidden_states"
            )
        name, window, overlap = (
            getattr(self.config, option) for option in ("backbone_name", "window", "overlap")
        )
        return loading.Backbone(name or "", self.backbone, self.tokenizer, window, overlap)

    def forward(
        self,
        token_ids: torch.Tensor,
        offsets: torch.Tensor,
        hidden_states: torch.Tensor | None = None,
        label_rows: torch.Tensor | None = None,
        label_columns: torch.Tensor | None = None,
        linear_scores: torch.Tensor | None = None,
        **own: Any,
    ) -> PlantOutput:
        """Logits of B documents, and the loss if there are labels.

        Args:
            token_ids: (S,) packed.
            offsets: (B+1,) where each document begins.
            hidden_states: (S, D); None runs the backbone.
            label_rows, label_columns: (P,) the positive cells of (B, L); labels stay sparse.
            linear_scores: (B, L) from `word_scores`, for a model that plants a linear score.
            own: what these documents have for themselves. cell_positions, cell_labels and
                cell_values, (M,) each sorted by label, are planted cells, see `Packed`;
                score_rows, score_tokens, score_labels and score_values are added to the teacher's
                scores, see `TeacherScore`. Other names are not read.

        Returns:
            The loss is `label_loss` (binary cross-entropy summed over labels, or approxNDCG), mean
            over documents, plus `lm_weight` times the language model's. Logits (B, L) beside a loss
            carry no gradient, and those of `still` labels mean nothing.

        Raises:
            ValueError: linear scores are missing or not planted, there is no backbone, or a model
                on candidates is given labels.
        """
        z = None
        if self.teacher_score is not None:
            z = self.teacher_score(token_ids, offsets, changes_of(own))
        if self.scores_text != (linear_scores is not None):
            raise ValueError(
                "this model adds a linear score over words; pass"
                " linear_scores=model.word_scores(texts)"
                if self.scores_text
                else "linear_scores were given to a model that plants none; leave them out"
            )
        cells = cells_of(own)
        if self.config.candidates:
            listing.check_unlabelled(label_rows)
            hidden = self.encode(token_ids, offsets) if hidden_states is None else hidden_states
            packed = self.packed(hidden, token_ids, offsets, cells)
            return PlantOutput(logits=listing.of_scores(self, packed, linear_scores))
        # long documents, window by window
        long = windows.longest(offsets) > self.config.window
        if long and (hidden_states is None or self.config.stateful == "v1"):
            if hidden_states is None:
                state = streaming.stream(self, token_ids, offsets, cells)
            else:
                state = streaming.read_segments(self, hidden_states, token_ids, offsets, cells)
            logits = self.decoder.finish(state, z, linear_scores)
            if label_rows is None or label_columns is None:
                return PlantOutput(logits=logits)
            loss = self.loss_of(logits, label_rows, label_columns)
            return PlantOutput(self._with_lm(loss, state.lm_loss), logits.detach())
        # short documents, or hidden states that are computed already, at once
        hidden = self.encode(token_ids, offsets) if hidden_states is None else hidden_states
        packed = self.packed(hidden, token_ids, offsets, cells)
        if label_rows is None or label_columns is None:
            return PlantOutput(logits=self.decoder(packed, z, linear_scores))
        if self.label_loss == "bce":
            loss, logits = self.decoder.loss(
                packed, label_rows, label_columns, z, linear_scores, self.still
            )
        else:
            logits = self.decoder(packed, z, linear_scores)
            loss = self.loss_of(logits, label_rows, label_columns)
            logits = logits.detach()
        lm = self.lm_loss(hidden, token_ids, offsets) if hidden_states is None else None
        return PlantOutput(self._with_lm(loss, lm), logits)

    def loss_of(
        self, logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """The labels' loss, mean over documents, of logits (B, L) and positive cells (P,)."""
        logits = left_out(logits, self.still)
        if self.label_loss == "bce":
            return sparse_bce(logits, rows, columns)
        gold = torch.zeros_like(logits).index_put((rows, columns), logits.new_ones(()))
        return ranking.approx_ndcg(logits, gold)

    def _with_lm(self, loss: torch.Tensor, lm: torch.Tensor | None) -> torch.Tensor:
        """The labels' loss plus `lm_weight` times the language model's mean over tokens."""
        if lm is None or not self.lm_weight:
            return loss
        return loss + self.lm_weight * lm[0] / lm[1].clamp(min=1)

    def attach_backbone(self, backbone: loading.Backbone) -> PlantModel:
        """Give a model trained on cached features its backbone, so that it reads text.

        The backbone is not copied. It moves to the decoder's device, unless its weights are
        quantised.

        Raises:
            ValueError: its hidden size or vocabulary is not the decoder's.
        """
        config, inner = self.config, backbone.model.config
        sizes = (backbone.hidden_size, backbone.num_tokens)
        if sizes != (config.hidden_size, config.num_tokens):
            raise ValueError(
                f"the backbone has hidden size {sizes[0]} and {sizes[1]} tokens, the decoder wants"
                f" {config.hidden_size} and {config.num_tokens}; load the backbone it was trained"
                " on"
            )
        if getattr(backbone.model, "quantization_method", None) is None:
            backbone.model.to(self.device)
        self.backbone = backbone.model
        self.tokenizer = backbone.tokenizer
        self.backbone_source = backbone.name
        config.backbone_name = Path(backbone.name).name
        config.window = backbone.window
        config.overlap = backbone.overlap
        config.backbone_config = inner.to_diff_dict() | {"model_type": inner.model_type}
        config.backbone_dtype = str(next(backbone.model.parameters()).dtype).removeprefix("torch.")
        return self

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """Write weights (safetensors), configuration and tokenizer; see `saving.save`."""
        saving.save(self, Path(save_directory), super().save_pretrained, state_dict, **kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload to a hub as `owner/name`; the address of the commit.

        options: private, token, revision and message, see `hub.push`. PrivacyError for a model of
        credentialed texts.
        """
        return hub.push(self, repo_id, **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, *args: Any, backbone: str | None = None, **kwargs: Any
    ) -> PlantModel:
        """Load what `save_pretrained` wrote, tokenizer included.

        Args:
            path: the model's folder, or its hub id `owner/name`.
            backbone: folder or hub id of the backbone that saved adapters belong to; by default the
                one that the adapters name.
            kwargs: trust_remote_code (code that comes with a tokenizer or backbone runs only where
                it is True), revision and cache_dir of a hub id, and options of transformers.

        Raises:
            ValueError: no PlantModel is there, its tokenizer is code that is not trusted, or the
                backbone of the adapters is missing or another one.
        """
        return saving.load(super().from_pretrained, path, backbone, *args, **kwargs)

    def tokenise(self, texts: list[str]) -> Ragged:
        """Token ids of texts, cut to `config.max_tokens`; ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer; attach a backbone or load a folder saved with one"
            )
        return tokenise(texts, self.tokenizer, self.config.max_tokens, progress=False)

    def unread(self, texts: list[str]) -> np.ndarray:
        """(N,) tokens of each text that lie beyond `config.max_tokens` and are not read."""
        return tokens_beyond(texts, self.tokenizer, self.config.max_tokens)

    def pack(self, tokens: Ragged) -> tuple[torch.Tensor, torch.Tensor]:
        """token_ids (S,) and offsets (B+1) on the model's device."""
        ids = torch.from_numpy(tokens.flat.astype(np.int64)).to(self.device)
        return ids, torch.from_numpy(tokens.offsets).to(self.device)

    @property
    def scores_text(self) -> bool:
        """Whether the logit has a term that whole texts give: of words, of phrases or of both."""
        return self.word_score is not None or self.phrase_score is not None

    def word_scores(self, texts: list[str]) -> torch.Tensor | None:
        """(B, L) scores of whole texts by words and phrases; None for a model without any."""
        return reading.text_scores(self, texts)

    def heard(self, texts: list[str]) -> Heard | None:
        """What planted phrases say of texts; None for a model without phrases."""
        score = self.phrase_score
        return None if score is None else score(texts, self.tokenizer, self.config.max_tokens)

    @torch.inference_mode()
    def predict(
        self, texts: list[str], k: int = 8, batch: int = 16
    ) -> list[list[tuple[str, float]]]:
        """The k best labels of each text, best first, ties by smaller label id.

        Args:
            texts: N documents.
            k: labels per document, at most L, and at most its candidates.
            batch: documents of like length read at a time; of word vectors at least 256.

        Returns:
            For each text, pairs of a label and its score in [0, 1]. With `config.calibration` the
            score is the chance of being right, estimated on dev.

        Raises:
            ValueError: one string instead of a list, k or batch below 1, or a model without a
                backbone.
        """
        check_whole("k", k)
        names = self.config.id2label or {}
        predictions = []
        for best in reading.places(self, texts, k, batch):
            scores = chances(best.scores, self.config.calibration)
            for ids, row in zip(best.ids.tolist(), scores.tolist(), strict=True):
                pairs = zip(ids, row, strict=True)
                predictions.append([(names[i], s) for i, s in pairs if i >= 0])
        return predictions

    def label_sets(self, texts: list[str], batch: int = 16) -> list[list[tuple[str, float]]]:
        """The labels of each text that the model accepts, by the rule that `choose_labels` left or
        else by `config.threshold`; best first, with scores as of `predict`."""
        return label_sets.label_sets(self, texts, batch)

    def choose_labels(
        self, texts: list[str], labels: Sequence[Sequence[str]], **options: Any
    ) -> LabelRule:
        """Choose which labels `label_sets` accepts, on N documents that did not train the model.

        labels: N lists of labels. options: rule, by, recall and batch, see `label_sets.choose`.
        """
        gold = label_sets.in_columns(labels, list((self.config.id2label or {}).values()))
        return label_sets.choose(self, texts, gold, **options)

    @overload
    def explain(
        self, text: str, label: str, html: str | Path | None = None, kind: str = "contribution"
    ) -> Explanation: ...

    @overload
    def explain(
        self,
        text: str,
        label: list[str] | tuple[str, ...],
        html: str | Path | None = None,
        kind: str = "contribution",
    ) -> DocumentExplanation: ...

    @torch.inference_mode()
    def explain(
        self,
        text: str,
        label: str | Sequence[str],
        html: str | Path | None = None,
        kind: str = "contribution",
    ) -> Explanation | DocumentExplanation:
        """What each word of `text` adds to the logit of a label.

        Args:
            text: one document.
            label: a label, or several.
            html: also write a self-contained page there.
            kind: weight of a word in what is drawn: "contribution", what it adds to the logit, or
                "attention".

        Returns:
            An `Explanation`, or a `DocumentExplanation` for several labels.

        Raises:
            ValueError: a label that the model does not know, an unknown kind, or a model without a
                backbone.
        """
        self.eval()
        labels = [label] if isinstance(label, str) else list(label)
        by_label = explaining.explain(self, text, labels, kind)
        result: Explanation | DocumentExplanation
        result = by_label[0] if isinstance(label, str) else DocumentExplanation(by_label)
        if html is not None:
            result.save_html(html)
        return result

    def explain_document(
        self, text: str, k: int = 5, html: str | Path | None = None, kind: str = "contribution"
    ) -> DocumentExplanation:
        """The k labels that `predict` ranks first, each with its score and words; see `explain`."""
        return self.explain(text, [label for label, _ in self.predict([text], k)[0]], html, kind)


AutoConfig.register("plant", PlantConfig)
AutoModel.register(PlantConfig, PlantModel)
