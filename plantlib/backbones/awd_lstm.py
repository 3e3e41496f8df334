"""AWD-LSTM, the encoder of the first published PLANT, as a Hugging Face model.

See docs/method.md, "The first version (v1)" (Merity, Keskar and Socher 2018). The last layer has
the size of the embeddings, so that the language model's decoder can be tied to them. Dropout is on
recurrent matrices (weight drop), on words, and between layers with one mask for all positions. The
dropped matrix is computed in each forward pass and handed to the fused LSTM, so cuDNN, autocast and
recomputation see plain tensors. `direction="backward"` reads every text from its end. Pretraining
is in `training/awd_pretraining.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

DIRECTIONS = ("forward", "backward")


@strict
class AwdLstmConfig(PreTrainedConfig):
    """Sizes and dropout rates.

    hidden_size D is the size of embeddings and of the last layer, lstm_size that of the others.
    """

    model_type = "awd_lstm"

    vocab_size: int = 30000
    hidden_size: int = 400
    lstm_size: int = 1152
    num_hidden_layers: int = 3
    embedding_dropout: float = 0.02
    input_dropout: float = 0.25
    hidden_dropout: float = 0.15
    weight_dropout: float = 0.2
    output_dropout: float = 0.1
    direction: str = "forward"
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True


@dataclass
class AwdLstmOutput(ModelOutput):
    """last_hidden_state: (B, T, D). state: (h, c) per layer, (1, B, size), after the last token.

    loss: scalar, logits: (B, T, V), from the language model only.
    """

    last_hidden_state: torch.Tensor | None = None
    state: tuple | None = None
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class AwdLstmModel(PreTrainedModel):
    """The encoder: token ids -> hidden states, padding on the right."""

    config_class = AwdLstmConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    carries_state = True
    supports_gradient_checkpointing = True

    def __init__(self, config: AwdLstmConfig):
        super().__init__(config)
        check_direction(config.direction)
        check_rates(config)
        # set by `activation_checkpointing_enable`: recompute layers in the backward pass
        self.gradient_checkpointing = False
        # read by `windows.is_causal`
        self.is_causal = config.direction == "forward"
        size = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        sizes = [size, *[config.lstm_size] * (config.num_hidden_layers - 1), size]
        self.layers = nn.ModuleList(
            nn.LSTM(a, b, batch_first=True) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.post_init()

    def _init_weights(self, module) -> None:
        """Uniform, as published: embeddings within 0.1, layers within 1 / sqrt(size)."""
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.1, 0.1)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LSTM):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = value

    def forward(self, input_ids, attention_mask=None, state=None, **_) -> AwdLstmOutput:
        """Hidden states of a batch of texts.

        Args:
            input_ids: (B, T), padded on the right.
            attention_mask: (B, T), true on real tokens; None if there is no padding.
            state: of an earlier segment, as `AwdLstmOutput.state`.

        Raises:
            ValueError: padding on the left.
        """
        config, training = self.config, self.training
        # embed the words
        lengths = _lengths(input_ids, attention_mask)
        if config.direction == "backward":
            input_ids = reverse(input_ids, lengths)
        x = self.embeddings(input_ids)
        x = word_dropout(x, input_ids, config.vocab_size, config.embedding_dropout, training)
        x = variational_dropout(x, config.input_dropout, training)
        # run the layers
        recompute = self.gradient_checkpointing and training and torch.is_grad_enabled()
        run = partial(self._gradient_checkpointing_func, _run) if recompute else _run
        weight_dropout = config.weight_dropout if training else 0.0
        rates = [config.hidden_dropout] * (len(self.layers) - 1) + [config.output_dropout]
        states = []
        for i, (layer, rate) in enumerate(zip(self.layers, rates, strict=True)):
            before = None if state is None else state[i]
            x, after = run(layer, x, lengths, before, weight_dropout)
            states.append(after)
            x = variational_dropout(x, rate, training)
        if config.direction == "backward":
            x = reverse(x, lengths)
        return AwdLstmOutput(last_hidden_state=x, state=tuple(states))


class AwdLstmForCausalLM(PreTrainedModel):
    """The language model: the encoder and a decoder tied to its embeddings."""

    config_class = AwdLstmConfig
    base_model_prefix = "encoder"
    _tied_weights_keys = {"decoder.weight": "encoder.embeddings.weight"}

    def __init__(self, config: AwdLstmConfig):
        super().__init__(config)
        self.encoder = AwdLstmModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        else:
            AwdLstmModel._init_weights(self, module)

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def forward(
        self, input_ids, attention_mask=None, labels=None, state=None, **_
    ) -> AwdLstmOutput:
        """Logits (B, T, V), and the loss if there are labels; see `AwdLstmModel.forward`.

        labels: (B, T), the token to predict at each position (already shifted by one); -100 is left
        out.
        """
        output = self.encoder(input_ids, attention_mask, state)
        logits = self.decoder(output.last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return AwdLstmOutput(output.last_hidden_state, output.state, loss, logits)


def check_rates(config: AwdLstmConfig) -> None:
    """ValueError for a dropout rate outside [0, 1)."""
    for place in ("embedding", "input", "hidden", "weight", "output"):
        rate = getattr(config, f"{place}_dropout")
        if not 0 <= rate < 1:
            raise ValueError(f"{place}_dropout={rate}; give a rate from 0 to below 1")


def check_direction(direction: str) -> None:
    """ValueError for an unknown direction."""
    if direction not in DIRECTIONS:
        known = ", ".join(DIRECTIONS)
        raise ValueError(f"direction={direction!r} is not known; use one of {known}")


def _lengths(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(B,) real tokens per row, on the CPU; ValueError for padding on the left."""
    if attention_mask is None:
        return torch.full((len(input_ids),), input_ids.shape[1])
    mask = attention_mask.bool()
    lengths = mask.sum(1)
    on_the_left = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    if not bool((mask == on_the_left).all()):
        raise ValueError("an LSTM would read padding on the left of a text; pad on the right")
    return lengths.cpu()


def reverse(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """x (B, T) or (B, T, D) with the tokens of each row turned round; padding stays in place."""
    positions = torch.arange(x.shape[1], device=x.device)
    lengths = lengths.to(x.device)[:, None]
    index = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return x.gather(1, index if x.dim() == 2 else index[..., None].expand_as(x))


def word_dropout(
    x: torch.Tensor, input_ids: torch.Tensor, vocabulary: int, p: float, training: bool
) -> torch.Tensor:
    """Embedding dropout: a word is dropped everywhere in the batch or nowhere.

    Args:
        x: (B, T, D) embeddings.
        input_ids: (B, T).
        vocabulary: number of words V.
        p: rate.
        training: nothing is dropped otherwise.
    """
    if not training or p == 0:
        return x
    scale = (torch.rand(vocabulary, device=x.device) >= p).to(x.dtype) / (1 - p)
    return x * scale[input_ids][..., None]


def variational_dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Dropout of x (B, T, F) with one mask per row for all its positions."""
    if not training or p == 0:
        return x
    return x * (torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= p).to(x.dtype) / (1 - p)


def _run(layer: nn.LSTM, x: torch.Tensor, lengths: torch.Tensor, state, p: float):
    """One layer over x (B, T, F), with its recurrent matrix dropped at rate p.

    Returns the outputs (B, T, size) and the state (h, c), (1, B, size) each.
    """
    # a row without tokens cannot be packed: it reads one padding token, and its old state is
    # restored below
    packed = pack_padded_sequence(x, lengths.clamp(min=1), batch_first=True, enforce_sorted=False)
    if state is None:
        state = tuple(x.new_zeros(1, len(x), layer.hidden_size) for _ in range(2))
    order = packed.sorted_indices
    sorted_state = tuple(s.index_select(1, order) for s in state)
    # without dropout the weights stay in one piece of memory, as cuDNN wants them
    recurrent = nn.functional.dropout(layer.weight_hh_l0, p) if p else layer.weight_hh_l0
    weights = [layer.weight_ih_l0, recurrent, layer.bias_ih_l0, layer.bias_hh_l0]
    data, *after = torch._VF.lstm(
        packed.data, packed.batch_sizes, sorted_state, weights, True, 1, 0.0, layer.training, False
    )
    out, _ = pad_packed_sequence(
        PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices),
        batch_first=True,
        total_length=x.shape[1],
    )
    after = tuple(s.index_select(1, packed.unsorted_indices) for s in after)
    empty = (lengths == 0).to(x.device)[None, :, None]
    return out, tuple(torch.where(empty, old, new) for old, new in zip(state, after, strict=True))


AutoConfig.register("awd_lstm", AwdLstmConfig)
AutoModel.register(AwdLstmConfig, AwdLstmModel)
AutoModelForCausalLM.register(AwdLstmConfig, AwdLstmForCausalLM)
