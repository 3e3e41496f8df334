"""Domain adaptation: a backbone's own language modelling on the training text, before planting.

The first stage of the latest published form (December 2025): LoRA adapters are trained by causal
language modelling for a causal LM, by masked language modelling for an encoder with a mask token.
See docs/method.md, "Training", for LoRA. Only the texts of training and unlabelled documents are
used. The result is an adapter folder in peft's format. Given as a backbone
(`prepare(corpus, backbone=folder)`) its adapter is merged into the weights on loading, so cached
features and everything after them are computed with it. Perplexity on dev text is measured before
and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from plantlib.backbones import adapters, loading
from plantlib.data import credentials
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import tokenise
from plantlib.training.checkpoints import SealingTrainer
from plantlib.training.train import StepBar, one_device, start
from plantlib.utils.checks import check_fields, check_seed
from plantlib.utils.folders import atomic_folder, check_target
from plantlib.utils.io import fingerprint_of, held, remove_unless_held, write_json
from plantlib.utils.progress import tqdm

OBJECTIVES = ("causal", "masked")


@dataclass(frozen=True)
class AdaptConfig:
    """Options of the adaptation.

    Attributes:
        objective: "causal" or "masked"; None takes masked where the architecture has a masked
            language model, else causal.
        batch_size: examples per step.
        block: tokens per example.
        masked_share: share of the tokens that the masked objective asks for.
        max_tokens: tokens read per document, None for all.
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
        check_fields(self)
        check_seed(self.seed)
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate={self.learning_rate}; give a rate of 0 or more")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}; give at least 1, or None for all")
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
    """Adapt `backbone` to the text of a corpus and write the adapter folder.

    A killed call resumes from its last checkpoint when it is repeated.

    Args:
        corpus: a `Corpus`, or the name or folder of one.
        backbone: name or folder of a pretrained language model, with its language-modelling head.
        folder: the adapter folder that is written.
        config: options of the adaptation.
        lora: sizes of the adapters.
        progress: show progress bars.

    Returns:
        perplexity_before and perplexity_after (on dev text); documents and tokens trained on;
        objective.

    Raises:
        ValueError: a backbone that lacks its head or is adapted already, a corpus without dev text
            or with too little text.
        PrivacyError: a credentialed corpus, and a folder outside the data folder.
    """
    check_target(folder, "backbone")
    config = config or AdaptConfig()
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    marked = credentials.is_marked(corpus.manifest)
    credentials.check_folder(f"the text of {corpus.name}", folder, marked)
    set_seed(config.seed)
    objective, model, tokenizer = _language_model(backbone, config)

    # the text as rows of equal length
    train_texts, dev_texts = texts_of(corpus)
    train_rows = _blocks(train_texts, tokenizer, config)
    dev_rows = _blocks(dev_texts, tokenizer, config)
    collate = _collator(objective, tokenizer, config)

    # adapters go into the backbone inside the language model, and they alone are trained
    adapted = adapters.add_lora(
        getattr(model, model.base_model_prefix), lora or adapters.LoraOptions()
    )
    setattr(model, model.base_model_prefix, adapted)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)

    # measure, train, measure
    before = perplexity(model, dev_rows, collate, config, progress)
    key = fingerprint_of(
        corpus.fingerprint(), loading.fingerprint(backbone), asdict(config), str(lora)
    )
    checkpoints = Path(folder).with_name(f".{Path(folder).name}-{key}.checkpoints")
    with held(checkpoints):
        _train(model, train_rows, collate, config, checkpoints, progress)
        after = perplexity(model, dev_rows, collate, config, progress)

        about = {
            "perplexity_before": before,
            "perplexity_after": after,
            "documents": len(train_texts),
            "tokens": int(train_rows.size),
            "objective": objective,
        }
        if marked:
            about[credentials.MARK] = True
        _write(adapted, tokenizer, backbone, Path(folder), about | {"options": asdict(config)})
        remove_unless_held(checkpoints)
    return about


def texts_of(corpus: Corpus) -> tuple[list[str], list[str]]:
    """Texts of training and unlabelled documents, and texts of dev.

    ValueError without dev documents, because perplexity is measured on them.
    """
    texts = {
        split: [corpus.texts[i] for i in np.flatnonzero(corpus.split == split)]
        for split in ("train", "unlabelled", "dev")
    }
    if not texts["dev"]:
        raise ValueError(
            "perplexity is measured on dev text and there is none; make a dev split with"
            " corpus.with_dev()"
        )
    return texts["train"] + texts["unlabelled"], texts["dev"]


def _language_model(backbone: str, config: AdaptConfig) -> tuple:
    """Objective, language model in float32, and tokenizer; ValueError if weights of the head are
    missing.
    """
    if adapters.holds_adapter(backbone):
        # only its base would be loaded here, and both adapters would be applied later
        raise ValueError(
            f"{backbone!r} is an adapted backbone already; adapt {adapters.base_of(backbone)!r} on"
            " all the text"
        )
    # the objective
    model_config = loading.config_of(backbone)
    has_masked = model_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    objective = config.objective or ("masked" if has_masked else "causal")
    tokenizer = loading.tokenizer_of(backbone)
    if objective == "masked" and tokenizer.mask_token_id is None:
        raise ValueError(f"{backbone!r} has no mask token; use objective='causal'")

    # the model without dropout
    loading.set_dropout(model_config, 0.0)
    auto_class = AutoModelForMaskedLM if objective == "masked" else AutoModelForCausalLM
    model, info = auto_class.from_pretrained(
        loading.locate(backbone),
        config=model_config,
        use_safetensors=True,
        dtype="float32",
        output_loading_info=True,
        trust_remote_code=False,
    )
    inner = model.base_model_prefix
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(inner))
    if missing:
        raise ValueError(
            f"{backbone!r} was saved without its language-modelling head"
            f" ({', '.join(missing[:3])}); use a backbone that has it"
        )
    return objective, model, tokenizer


def _blocks(texts: list[str], tokenizer, config: AdaptConfig) -> np.ndarray:
    """(rows, block) token ids: all documents, each followed by an end token, cut into equal rows;
    what does not fill the last row is left out.
    """
    end = tokenizer.eos_token_id
    end = tokenizer.sep_token_id if end is None else end
    documents = tokenise(texts, tokenizer, config.max_tokens, progress=False)
    parts = [np.append(documents[i], [] if end is None else [end]) for i in range(len(documents))]
    flat = np.concatenate(parts or [np.zeros(0)]).astype(np.int64)
    if len(flat) < config.block:
        raise ValueError(
            f"the text has {len(flat)} tokens, an example takes {config.block}; give more text or a"
            " smaller block"
        )
    return flat[: len(flat) // config.block * config.block].reshape(-1, config.block)


def _collator(objective: str, tokenizer, config: AdaptConfig) -> DataCollatorForLanguageModeling:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    masked = objective == "masked"
    return DataCollatorForLanguageModeling(
        tokenizer, mlm=masked, mlm_probability=config.masked_share if masked else None
    )


def perplexity(
    model, rows: np.ndarray, collate: Callable, config: AdaptConfig, progress: bool = False
) -> float:
    """exp of the mean loss per predicted token.

    Args:
        model: a language model of transformers.
        rows: (n, block) token ids.
        collate: the collator of the objective. Its masks are drawn from one seed, so every model
            predicts the same tokens.
    """
    total = 0.0
    predicted = 0
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        begins = range(0, len(rows), config.batch_size)
        for begin in tqdm(begins, desc="perplexity", unit="batch", delay=5, disable=not progress):
            batch = collate(_examples(rows[begin : begin + config.batch_size])).to(model.device)
            count = int((batch["labels"] != -100).sum())
            if count:
                total += float(model(**batch).loss) * count
                predicted += count
    model.train(training)
    return math.exp(total / max(predicted, 1))


def _examples(rows: np.ndarray) -> list[dict]:
    """Rows (n, block) as the collator reads them."""
    return [{"input_ids": row.tolist()} for row in rows]


def _train(
    model, rows: np.ndarray, collate: Callable, config: AdaptConfig, folder: Path, progress: bool
) -> None:
    """Train with transformers.Trainer; its checkpoints are kept in `folder`."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        save_strategy="steps",
        save_steps=200,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        log_level="error",
        dataloader_pin_memory=False,
    )
    trainer = SealingTrainer(
        model=model,
        args=one_device(arguments),
        train_dataset=_examples(rows),
        data_collator=collate,
        callbacks=[StepBar("adapt", progress)],
    )
    start(trainer)


def _write(adapted, tokenizer, backbone: str, folder: Path, about: dict) -> None:
    """Write adapter, tokenizer and adaptation.json; the folder appears when it is complete."""
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = backbone
    with atomic_folder(folder, "backbone") as temporary:
        adapters.save_adapter(adapted, temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "adaptation.json", about)
