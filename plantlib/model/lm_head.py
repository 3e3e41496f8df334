"""The language model's own head beside a PlantModel: whose L2R score a position takes, and the
auxiliary loss.

Realises METHOD.md section 4, "`v1`": the score may be that of the token read (no head is needed),
of the model's most likely token at that place (as published: its guess after reading up to it), or
expected over its TOP_N most likely ones, which is the score of their mean embedding as scores are
linear in it. The head stays as pretrained; logits exist for blocks of tokens.
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
    """The output layer of the causal language model `name`, (num_tokens, D), frozen; ValueError
    where there is none.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = loading.config_of(name, trust_remote_code)
    refusal = (
        f"{name!r} ({config.model_type}) is no causal language model with its head; use"
        " l2r_from='read' and no LM loss, or a backbone such as an AWD-LSTM of"
        " awd_pretraining.pretrain"
    )
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    ):
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
    layer = (
        getattr(model, "decoder", None)
        if config.model_type == "awd_lstm"
        else model.get_output_embeddings()
    )
    head = nn.Linear(layer.in_features, num_tokens, bias=True)
    with torch.no_grad():
        head.weight.copy_(layer.weight[:num_tokens])
        head.bias.copy_(
            layer.bias[:num_tokens] if layer.bias is not None else torch.zeros(num_tokens)
        )
    return head.requires_grad_(False)


@torch.no_grad()
def scored_tokens(head: nn.Linear, hidden: torch.Tensor, top_n: int) -> Scored:
    """The `top_n` most likely tokens of every position (S, D) with their probabilities among
    themselves.
    """
    n, ids, weights = min(top_n, head.out_features), [], []
    for block in hidden.detach().split(BLOCK):
        best = head(block.to(head.weight.dtype)).topk(n, dim=1)
        ids.append(best.indices)
        weights.append(torch.softmax(best.values, 1))
    if not ids:
        return Scored(
            torch.zeros(0, n, dtype=torch.long, device=hidden.device), hidden.new_zeros(0, n)
        )
    return Scored(torch.cat(ids), torch.cat(weights))


def loss_sum(
    head: nn.Linear,
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    offsets: torch.Tensor,
    backward: bool,
):
    """(sum of -ln p of every next token within its document, how many): hidden (S, D), token_ids
    (S,), offsets (B+1).

    backward: the model reads texts from their end, so the next token is the one before. Logits are
    made again in the backward pass.
    """
    document = torch.repeat_interleave(
        torch.arange(len(offsets) - 1, device=hidden.device), offsets.diff().to(hidden.device)
    )
    inner = (document[1:] == document[:-1]).nonzero().squeeze(1)
    at, target = (inner + 1, token_ids[inner]) if backward else (inner, token_ids[inner + 1])
    total = hidden.new_zeros(())
    for place, wanted in zip(at.split(BLOCK), target.split(BLOCK), strict=True):
        total = total + checkpoint(_block_loss, head, hidden[place], wanted, use_reentrant=False)
    return total, len(at)


def _block_loss(head, hidden, wanted) -> torch.Tensor:
    return nn.functional.cross_entropy(head(hidden.to(head.weight.dtype)), wanted, reduction="sum")
