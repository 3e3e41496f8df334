"""PlantModel: a backbone and a LabelDecoder behind transformers' save_pretrained / from_pretrained,
predict and explain.

Realises METHOD.md section 4 as one model. Documents travel packed (token ids one after another,
offsets between them), so no padding reaches the decoder. A model may carry no backbone: then hidden
states are handed in, as head training on cached features does, and `attach_backbone` completes it
for use on text. Documents longer than the backbone's window are streamed: one window of each in
memory at a time, in the backward pass too, and (B, L) numbers between them. Not here: what goes to
disk (`saving.py`), what an explanation holds (`explanation.py`, whose names are passed on).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from plantlib.backbones import loading, windows
from plantlib.data.tokens import Ragged, tokenise
from plantlib.kernels.attention_bce import left_out, sparse_bce
from plantlib.model import explanation, lm_head, saving
from plantlib.model.explanation import DocumentExplanation
from plantlib.planting import ranking
from plantlib.planting.decoder import AttentionState, LabelDecoder, Packed
from plantlib.planting.scores import TeacherScore, WordScore


@strict
class PlantConfig(PreTrainedConfig):
    """Sizes of a PlantModel. `id2label` holds the label names; `backbone_config` is None for a
    decoder alone.

    backbone_saved: "whole" when the folder holds the backbone's weights, "adapter" when it holds
    adapters to be put on the backbone that `backbone_fingerprint` names. overlap: see
    `backbones.Backbone`. num_l2r_cells, contexts, stateful: see `LabelDecoder`; l2r_from: whose L2R
    score a position takes, see `lm_head`. lm_head: the folder holds that head. backward:
    texts are read from their end.
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
    max_tokens: int | None = None
    window: int = 510
    overlap: int = 0
    standardised: bool = False
    threshold: float = 0.5
    calibration: list | None = None
    tie_word_embeddings: bool = False


@dataclass
class PlantOutput(ModelOutput):
    """loss: scalar or None; logits: (B, L)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PlantModel(PreTrainedModel):
    """Backbone (optional), LabelDecoder and the teacher's document score."""

    config_class = PlantConfig
    base_model_prefix = "plant"
    main_input_name = "token_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: PlantConfig):
        super().__init__(config)
        self.backbone = None
        if config.backbone_config is not None and config.backbone_saved == "whole":
            options = dict(config.backbone_config)
            self.backbone = AutoModel.from_config(
                AutoConfig.for_model(options.pop("model_type"), **options)
            )
        self.decoder = LabelDecoder(
            config.num_labels,
            config.hidden_size,
            config.num_tokens,
            config.num_planted_cells,
            config.keep,
            num_l2r_cells=config.num_l2r_cells,
            contexts=config.contexts,
            stateful=config.stateful,
        )
        self.teacher_score = (
            TeacherScore(config.num_tokens, config.num_labels, config.num_teacher_cells)
            if config.num_teacher_cells
            else None
        )
        self.word_score = (
            WordScore(config.num_words, config.num_labels, config.num_word_cells)
            if config.num_words
            else None
        )
        if config.standardised:
            self.register_buffer("hidden_shift", torch.zeros(config.hidden_size))
            self.register_buffer("hidden_scale", torch.ones(config.hidden_size))
        self.lm_head = (
            torch.nn.Linear(config.hidden_size, config.num_tokens).requires_grad_(False)
            if config.lm_head
            else None
        )
        self.label_loss = "bce"  # or "approx_ndcg", over the labels of a document
        self.still = None  # (U,) ids of labels that the loss leaves out
        # of the language model's loss beside the labels', while a backbone is trained
        self.lm_weight = 0.0
        self.tokenizer = self.backbone_source = self.record = None
        self.post_init()

    def _init_weights(self, module) -> None:
        """Values come from `planting.plant` or a file, never from here."""

    def encode(self, token_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Hidden states (S, D) of packed token ids, through windows of the backbone."""
        return windows.encode(self.as_backbone(), token_ids, offsets)

    def standardise(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states at the spread the decoder was planted for; see `features.standard_of`."""
        if not self.config.standardised:
            return hidden
        return (hidden.to(self.hidden_shift.dtype) - self.hidden_shift) * self.hidden_scale

    def packed(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, offsets: torch.Tensor
    ) -> Packed:
        """What the decoder reads, from hidden states as the backbone gave them."""
        config, scored = self.config, None
        if config.num_l2r_cells and config.l2r_from != "read":
            scored = lm_head.scored_tokens(
                self.lm_head, hidden, 1 if config.l2r_from == "likely" else lm_head.TOP_N
            )
        return Packed(self.standardise(hidden), token_ids, offsets, scored)

    def lm_loss(self, hidden, token_ids, offsets) -> torch.Tensor | None:
        """(2,) sum and number of the language model's losses; None where they are not asked for."""
        if not (self.lm_weight and self.training):
            return None
        total, count = lm_head.loss_sum(
            self.lm_head, hidden, token_ids, offsets, self.config.backward
        )
        return torch.stack([total, total.new_tensor(count)])

    def as_backbone(self) -> loading.Backbone:
        """The model's own backbone in the form `windows` and `features` read."""
        if self.backbone is None or self.tokenizer is None:
            raise ValueError(
                "this model has no backbone; call attach_backbone(backbones.load(...)) or pass"
                " hidden_states"
            )
        config = self.config
        return loading.Backbone(
            config.backbone_name or "", self.backbone, self.tokenizer, config.window, config.overlap
        )

    def stream(self, token_ids: torch.Tensor, offsets: torch.Tensor) -> AttentionState:
        """The decoder's state after reading documents window by window; equal to reading them at
        once, if `stateful` is exact.

        Of a window nothing is kept for the backward pass but its ids: it is read again there. So
        memory is that of one window of each document and (B, L) numbers a round, however long the
        documents are.
        """
        backbone, batch = self.as_backbone(), len(offsets) - 1
        state, again = (
            tuple(self.decoder.start_state(batch)),
            torch.is_grad_enabled() and self.training,
        )
        state = (*state[:4], self.decoder.label_bias.new_zeros(2))
        for cut in windows.rounds(backbone, offsets):
            lengths = [0 if w is None else w.end - w.begin for w in cut]
            starts = torch.tensor([0, *lengths], device=offsets.device).cumsum(0)
            ids = torch.cat([token_ids[w.begin : w.end] for w in cut if w is not None])

            def read(ids, starts, *state, cut=cut):
                # four tensors of attention, one of the language model's loss, then what a recurrent
                # backbone carries
                hidden, memory = windows.encode_round(backbone, token_ids, cut, state[5:])
                lm = self.lm_loss(hidden, ids, starts)
                read = self.decoder.read(
                    self.packed(hidden, ids, starts), AttentionState(*state[:4])
                )
                return (*read[:4], state[4] if lm is None else state[4] + lm, *memory)

            state = (
                checkpoint(read, ids, starts, *state, use_reentrant=False)
                if again
                else read(ids, starts, *state)
            )
        return AttentionState(*state[:5])

    def read_segments(self, hidden, token_ids, offsets) -> AttentionState:
        """The state of `stateful="v1"` after hidden states that are there already, in the segments
        the backbone would read.
        """
        state = self.decoder.start_state(len(offsets) - 1)
        for cut in windows.rounds_of(
            windows.spans(offsets, self.config.window), self.config.backward
        ):
            places = torch.cat(
                [torch.arange(w.begin, w.end, device=hidden.device) for w in cut if w is not None]
            )
            starts = torch.tensor(
                [0, *(0 if w is None else w.end - w.begin for w in cut)], device=offsets.device
            ).cumsum(0)
            state = self.decoder.read(self.packed(hidden[places], token_ids[places], starts), state)
        return state

    def forward(
        self,
        token_ids,
        offsets,
        hidden_states=None,
        label_rows=None,
        label_columns=None,
        linear_scores=None,
        **_,
    ) -> PlantOutput:
        """token_ids (S,) packed, offsets (B+1), hidden_states (S, D) or None to run the backbone.

        linear_scores (B, L): what a model with a `word_score` adds to the logits, see
        `word_scores`. label_rows, label_columns (P,): the positive cells of (B, L); labels stay
        sparse. The loss is `label_loss`, binary cross-entropy summed over labels or approxNDCG,
        mean over documents; logits beside a loss carry no gradient, and those of `still` labels
        mean nothing there.
        """
        z = self.teacher_score(token_ids, offsets) if self.teacher_score is not None else None
        if (self.word_score is None) != (linear_scores is None):
            raise ValueError(
                "this model adds a linear score over words; pass"
                " linear_scores=model.word_scores(texts)"
                if self.word_score
                else "linear_scores were given to a model that plants none; leave them out"
            )
        long = longest(offsets) > self.config.window
        if long and (hidden_states is None or self.config.stateful == "v1"):
            if hidden_states is None:
                state = self.stream(token_ids, offsets)
            else:
                state = self.read_segments(hidden_states, token_ids, offsets)
            logits = self.decoder.finish(state, z, linear_scores)
            if label_rows is None:
                return PlantOutput(logits=logits)
            loss = self.loss_of(logits, label_rows, label_columns)
            return PlantOutput(self._with_lm(loss, state.lm_loss), logits.detach())
        hidden = self.encode(token_ids, offsets) if hidden_states is None else hidden_states
        packed = self.packed(hidden, token_ids, offsets)
        if label_rows is None:
            return PlantOutput(logits=self.decoder(packed, z, linear_scores))
        if self.label_loss == "bce":
            loss, logits = self.decoder.loss(
                packed, label_rows, label_columns, z, linear_scores, self.still
            )
        else:
            logits = self.decoder(packed, z, linear_scores)
            loss, logits = self.loss_of(logits, label_rows, label_columns), logits.detach()
        lm = self.lm_loss(hidden, token_ids, offsets) if hidden_states is None else None
        return PlantOutput(self._with_lm(loss, lm), logits)

    def loss_of(
        self, logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """The labels' loss from logits (B, L) and positive cells (P,): `label_loss`, a mean over
        documents.
        """
        logits = left_out(logits, self.still)
        if self.label_loss == "bce":
            return sparse_bce(logits, rows, columns)
        return ranking.approx_ndcg(
            logits, torch.zeros_like(logits).index_put((rows, columns), logits.new_ones(()))
        )

    def _with_lm(self, loss: torch.Tensor, lm: torch.Tensor | None) -> torch.Tensor:
        """The labels' loss plus `lm_weight` times the language model's mean over tokens."""
        if lm is None or not self.lm_weight:
            return loss
        return loss + self.lm_weight * lm[0] / lm[1].clamp(min=1)

    def attach_backbone(self, backbone: loading.Backbone) -> PlantModel:
        """Give a decoder trained on cached features its backbone, so that it reads text and saves
        whole.

        The backbone itself, not a copy: it moves to the decoder's device, unless its weights are
        quantised and stay.
        """
        if (
            backbone.hidden_size != self.config.hidden_size
            or backbone.num_tokens != self.config.num_tokens
        ):
            raise ValueError(
                f"the backbone has hidden size {backbone.hidden_size} and {backbone.num_tokens}"
                f" tokens, the decoder wants {self.config.hidden_size} and"
                f" {self.config.num_tokens}; load the backbone it was trained on"
            )
        if getattr(backbone.model, "quantization_method", None) is None:
            backbone.model.to(self.device)
        self.backbone, self.tokenizer = backbone.model, backbone.tokenizer
        config, inner = self.config, backbone.model.config
        config.backbone_name, config.window, config.overlap = (
            Path(backbone.name).name,
            backbone.window,
            backbone.overlap,
        )
        config.backbone_config = inner.to_diff_dict() | {"model_type": inner.model_type}
        config.backbone_dtype = str(next(backbone.model.parameters()).dtype).removeprefix("torch.")
        self.backbone_source = backbone.name
        return self

    def save_pretrained(self, save_directory, state_dict=None, **kwargs) -> None:
        """Weights (safetensors), configuration and tokenizer in one folder; adapters as adapters,
        in peft's format.
        """
        saving.save(self, Path(save_directory), super().save_pretrained, state_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, path, *args, backbone: str | None = None, **kwargs) -> PlantModel:
        """Load what save_pretrained wrote, tokenizer included.

        backbone: where the backbone lies that saved adapters belong to; by default what the
        adapter's own file names.
        """
        return saving.load(super().from_pretrained, path, backbone, *args, **kwargs)

    def tokenise(self, texts: list[str]) -> Ragged:
        """Packed token ids of texts as the model was trained to read them."""
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer; attach a backbone or load a folder saved with one"
            )
        return tokenise(texts, self.tokenizer, self.config.max_tokens, progress=False)

    def _packed(self, tokens: Ragged) -> tuple[torch.Tensor, torch.Tensor]:
        """token_ids (S,) and offsets (B+1) where the model is."""
        ids = torch.from_numpy(tokens.flat.astype(np.int64)).to(self.device)
        return ids, torch.from_numpy(tokens.offsets).to(self.device)

    def word_scores(self, texts: list[str]) -> torch.Tensor | None:
        """(B, L) linear scores of texts, all their words read; None for a model that plants none."""
        return (
            None
            if self.word_score is None
            else self.word_score(*self._packed(self.word_score.word_ids(texts)))
        )

    def linear_of(self, texts: list[str]):
        """What `train.Documents` asks for linear scores: rows of `texts` -> (b, L); None for a
        model that plants none.
        """
        return (
            None
            if self.word_score is None
            else lambda rows: self.word_scores([texts[i] for i in rows]).cpu().numpy()
        )

    @torch.inference_mode()
    def predict(
        self, texts: list[str], k: int = 8, batch: int = 16
    ) -> list[list[tuple[str, float]]]:
        """The k best labels of every text with scores calibrated on dev (probabilities once
        `calibration` is set).
        """
        if isinstance(texts, str):
            raise ValueError("predict takes a list of texts, got one string; write predict([text])")
        self.eval()
        out, slope_shift = [], self.config.calibration or [1.0, 0.0]
        for begin in range(0, len(texts), batch):
            part = texts[begin : begin + batch]
            logits = self(
                *self._packed(self.tokenise(part)), linear_scores=self.word_scores(part)
            ).logits
            best = logits.topk(min(k, logits.shape[1]), dim=1)
            scores = torch.sigmoid(best.values * slope_shift[0] + slope_shift[1])
            for ids, row in zip(best.indices.tolist(), scores.tolist(), strict=True):
                out.append([(self.config.id2label[i], s) for i, s in zip(ids, row, strict=True)])
        return out

    @torch.inference_mode()
    def explain(self, text: str, label: str | Sequence[str], html: str | Path | None = None):
        """Which words of `text` a label was read from: an `Explanation`, or a `DocumentExplanation`
        for several labels.

        Documents longer than the window are read window by window. html: also write a
        self-contained HTML file there.
        """
        self.eval()
        labels = [label] if isinstance(label, str) else list(label)
        found = explanation.explain(self, text, labels)
        shown = found[0] if isinstance(label, str) else DocumentExplanation(found)
        if html is not None:
            shown.save_html(html)
        return shown

    def explain_document(
        self, text: str, k: int = 5, html: str | Path | None = None
    ) -> DocumentExplanation:
        """The k labels that `predict` ranks first, with their scores and the words behind each;
        html as for `explain`.
        """
        return self.explain(text, [label for label, _ in self.predict([text], k)[0]], html)


def longest(offsets: torch.Tensor) -> int:
    """Tokens of the longest of B documents."""
    return int(offsets.diff().max()) if len(offsets) > 1 else 0


AutoConfig.register("plant", PlantConfig)


AutoModel.register(PlantConfig, PlantModel)
