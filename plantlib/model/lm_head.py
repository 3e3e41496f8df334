"""The language model's own head beside a PlantModel: whose L2R score a position takes, and a loss.

See docs/method.md, "The first version (v1)", "Whose score". A position takes the L2R score of the
token read ("read", which needs no head), of the most likely token there after reading up to it
("likely", as published), or the expected score over the TOP_N most likely ones. The head is not
trained, and logits exist for one block of tokens at a time.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from plantlib.backbones import adapters, loading
from plantlib.planting.decoder import Scored

TOP_N = 8  # most likely tokens that an expected score is taken over
BLOCK = 512  # tokens whose logits over the vocabulary are held at once


def load(name: str, num_tokens: int, trust_remote_code: bool = False) -> nn.Linear:
    """The frozen output layer (D) -> (num_tokens) of the causal language model `name`.

    ValueError if `name` is an adapter, or not a causal language model with its head.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    # refuse what has no such head
    config = loading.config_of(name, trust_remote_code)
    kind = config.model_type
    refusal = (
        f"{name!r} ({kind}) is no causal language model with its head; use l2r_from='read' and no"
        " LM loss, or a backbone such as an AWD-LSTM of awd_pretraining.pretrain"
    )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ValueError(refusal)
    if adapters.holds_adapter(name):
        raise ValueError(
            f"{name!r} is an adapter, its head is the base's; use {adapters.base_of(name)!r}, or"
            " l2r_from='read'"
        )
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            loading.locate(name),
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except ValueError as error:
        raise ValueError(refusal) from error
    if any(not key.startswith(model.base_model_prefix) for key in info["missing_keys"]):
        raise ValueError(refusal)
    # copy its output layer
    layer = model.decoder if kind == "awd_lstm" else model.get_output_embeddings()
    head = nn.Linear(layer.in_features, num_tokens, bias=True)
    bias = torch.zeros(num_tokens) if layer.bias is None else layer.bias[:num_tokens]
    with torch.no_grad():
        head.weight.copy_(layer.weight[:num_tokens])
        head.bias.copy_(bias)
    return head.requires_grad_(False)


@torch.no_grad()
def scored_tokens(head: nn.Linear, hidden: torch.Tensor, top_n: int) -> Scored:
    """The `top_n` most likely tokens at each position of hidden states (S, D).

    Returns ids and weights, (S, top_n) each; the weights are probabilities among these tokens.
    """
    n = min(top_n, head.out_features)
    blocks = hidden.detach().split(BLOCK)
    best = [head(block.to(head.weight.dtype)).topk(n, dim=1) for block in blocks]
    weights = torch.cat([torch.softmax(b.values, 1) for b in best])
    return Scored(torch.cat([b.indices for b in best]), weights)


def loss_sum(
    head: nn.Linear,
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    offsets: torch.Tensor,
    backward: bool,
) -> tuple[torch.Tensor, int]:
    """The language model's loss, summed over next tokens within their documents.

    Args:
        head: from `load`, (D) -> (V).
        hidden: (S, D) hidden states.
        token_ids: (S,) packed.
        offsets: (B+1,).
        backward: texts are read from their end, so the next token is the one before.

    Returns:
        The sum of -ln p and the number of predicted tokens.
    """
    document = torch.repeat_interleave(
        torch.arange(len(offsets) - 1, device=hidden.device), offsets.diff().to(hidden.device)
    )
    # positions whose right neighbour is in the same document
    inner = (document[1:] == document[:-1]).nonzero().squeeze(1)
    at, target = (inner + 1, token_ids[inner]) if backward else (inner, token_ids[inner + 1])
    total = hidden.new_zeros(())
    # logits are computed again in the backward pass
    for places, ids in zip(at.split(BLOCK), target.split(BLOCK), strict=True):
        total = total + checkpoint(_block_loss, head, hidden[places], ids, use_reentrant=False)
    return total, len(at)


def _block_loss(head, hidden, ids) -> torch.Tensor:
    return nn.functional.cross_entropy(head(hidden.to(head.weight.dtype)), ids, reduction="sum")
