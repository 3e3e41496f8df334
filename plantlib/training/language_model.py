"""Domain-adaptive step: a backbone's own language modelling on the training text, by LoRA, before
anything is planted.

Realises stage 1 of the latest published form (v4): causal language modelling for a causal LM,
masked for an encoder with a mask token. The text is that of training and unlabelled documents
alone. What is left is an adapter folder in peft's format; given as a backbone (`prepare(corpus,
backbone="folder")`) its adapter is merged on loading, so everything after it, frozen features too,
is computed with it. Perplexity is stated before and after, on dev text. Head weights that a
checkpoint lacks are refused.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from plantlib.backbones import adapters, loading
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import tokenise
from plantlib.training.train import StepBar, start
from plantlib.utils.io import atomic_path, fingerprint_of, write_json
from plantlib.utils.progress import tqdm

OBJECTIVES = ("causal", "masked")


@dataclass(frozen=True)
class AdaptConfig:
    """Options of the step. objective None: causal for causal LMs, masked for the rest. block:
    tokens a training example.
    """

    objective: str | None = None
    epochs: int = 1
    batch_size: int = 8
    block: int = 128
    learning_rate: float = 2e-4
    masked_share: float = 0.15
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.objective not in (None, *OBJECTIVES):
            raise ValueError(
                f"objective={self.objective!r} is not known; use one of {', '.join(OBJECTIVES)} or"
                " None"
            )
        if self.block < 2 or self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"block={self.block}, epochs={self.epochs}, batch_size={self.batch_size}: give at"
                " least 2, 1, 1"
            )


def adapt(
    corpus: Corpus | str,
    backbone: str,
    folder: str | Path,
    *,
    config: AdaptConfig | None = None,
    lora: adapters.LoraOptions | None = None,
    progress: bool = True,
) -> dict:
    """Adapt `backbone` to the corpus's text; writes the adapter folder and returns perplexity
    before and after.

    The keys are perplexity_before, perplexity_after (of dev text), documents, tokens, objective.
    """
    from transformers import set_seed

    config = config or AdaptConfig()
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    set_seed(config.seed)
    objective, model, tokenizer = _language_model(backbone, config)
    own, dev = texts_of(corpus)
    rows, held_out = _blocks(own, tokenizer, config), _blocks(dev, tokenizer, config)
    inner = adapters.add_lora(
        getattr(model, model.base_model_prefix), lora or adapters.LoraOptions()
    )
    setattr(model, model.base_model_prefix, inner)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    collate = _collator(objective, tokenizer, config)
    before = perplexity(model, held_out, collate, config, progress)
    key = fingerprint_of(
        corpus.fingerprint(), loading.fingerprint(backbone), asdict(config), str(lora)
    )
    work = Path(folder).with_name(f".{Path(folder).name}-{key}.checkpoints")
    _train(model, rows, collate, config, work, progress)
    after = perplexity(model, held_out, collate, config, progress)
    found = {
        "perplexity_before": before,
        "perplexity_after": after,
        "documents": len(own),
        "tokens": int(rows.size),
        "objective": objective,
    }
    _write(inner, tokenizer, backbone, Path(folder), found | {"options": asdict(config)})
    return found


def texts_of(corpus: Corpus) -> tuple[list[str], list[str]]:
    """(texts of training and unlabelled documents, texts of dev); ValueError without dev, on which
    perplexity is stated.
    """
    texts = {
        s: [corpus.texts[i] for i in np.flatnonzero(corpus.split == s)]
        for s in ("train", "unlabelled", "dev")
    }
    if not texts["dev"]:
        raise ValueError(
            "perplexity is stated on dev text and there is none; carve a dev split with"
            " corpus.with_dev()"
        )
    return texts["train"] + texts["unlabelled"], texts["dev"]


def _language_model(backbone: str, config: AdaptConfig):
    """(objective, model with its language-modelling head in float32, tokenizer); a head the weights
    lack is refused.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if adapters.holds_adapter(backbone):
        # its base alone would be read here, and the new adapter put on top of the old one later
        raise ValueError(
            f"{backbone!r} is an adapted backbone already; adapt {adapters.base_of(backbone)!r}, on"
            " all the text"
        )
    kind = loading.config_of(backbone)
    masked = config.objective == "masked" or (
        config.objective is None and kind.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    tokenizer = loading.tokenizer_of(backbone)
    if masked and tokenizer.mask_token_id is None:
        raise ValueError(f"{backbone!r} has no mask token; use objective='causal'")
    loading.set_dropout(kind, 0.0)
    loader = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model, info = loader.from_pretrained(
        loading.locate(backbone),
        config=kind,
        use_safetensors=True,
        dtype="float32",
        output_loading_info=True,
    )
    if missing := sorted(
        n for n in info["missing_keys"] if not n.startswith(model.base_model_prefix)
    ):
        raise ValueError(
            f"{backbone!r} was saved without its language-modelling head"
            f" ({', '.join(missing[:3])}); use a backbone that has it"
        )
    return ("masked" if masked else "causal"), model, tokenizer


def _blocks(texts: list[str], tokenizer, config: AdaptConfig) -> np.ndarray:
    """(rows, block) token ids: documents one after another with an end token between, cut into
    equal rows.
    """
    end = next((i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None), None)
    documents = tokenise(texts, tokenizer, config.max_tokens, progress=False)
    parts = [np.append(documents[i], [] if end is None else [end]) for i in range(len(documents))]
    flat = np.concatenate(parts or [np.zeros(0)]).astype(np.int64)
    if len(flat) < config.block:
        raise ValueError(
            f"the text has {len(flat)} tokens, an example takes {config.block}; give more text or a"
            " smaller block"
        )
    return flat[: len(flat) // config.block * config.block].reshape(-1, config.block)


def _collator(objective: str, tokenizer, config: AdaptConfig):
    from transformers import DataCollatorForLanguageModeling

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return DataCollatorForLanguageModeling(
        tokenizer,
        mlm=objective == "masked",
        mlm_probability=config.masked_share if objective == "masked" else None,
    )


def perplexity(
    model, rows: np.ndarray, collate, config: AdaptConfig, progress: bool = False
) -> float:
    """exp of the mean loss over `rows`; masks are drawn from one seed, so two models are asked the
    same questions.
    """
    import torch

    total, seen, training = 0.0, 0, model.training
    model.eval()
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        begins = range(0, len(rows), config.batch_size)
        for begin in tqdm(begins, desc="perplexity", unit="batch", delay=5, disable=not progress):
            batch = _batch(collate, rows[begin : begin + config.batch_size], model.device)
            asked = int((batch["labels"] != -100).sum())
            if asked:
                total, seen = total + float(model(**batch).loss) * asked, seen + asked
    model.train(training)
    return math.exp(total / max(seen, 1))


def _batch(collate, rows: np.ndarray, device) -> dict:
    return {
        k: v.to(device) for k, v in collate([{"input_ids": row.tolist()} for row in rows]).items()
    }


def _train(
    model, rows: np.ndarray, collate, config: AdaptConfig, work: Path, progress: bool
) -> None:
    """transformers.Trainer on the rows; its checkpoints in `work`, resumed from after a kill,
    removed at the end.
    """
    import shutil

    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        save_strategy="steps",
        save_steps=200,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        log_level="error",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row.tolist()} for row in rows],
        data_collator=collate,
        callbacks=[StepBar("adapt", progress)],
    )
    start(trainer)
    shutil.rmtree(work, ignore_errors=True)


def _write(inner, tokenizer, backbone: str, folder: Path, about: dict) -> None:
    """The adapter folder: adapter, tokenizer and adaptation.json, at once or not at all."""
    for config in inner.peft_config.values():
        config.base_model_name_or_path = backbone
    with atomic_path(folder) as temporary:
        adapters.save_adapter(inner, temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "adaptation.json", about)
