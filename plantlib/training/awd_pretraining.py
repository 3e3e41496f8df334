"""Pretraining of the AWD-LSTM as a language model on a corpus's own text, and its word tokenizer.

See docs/method.md, "The first version (v1)". Training and unlabelled documents form one stream,
which is cut into rows that are read in parallel, chunk by chunk. The LSTM's state is carried from
chunk to chunk, gradients are not. A backward model is trained on the reversed stream. The result is
a folder that can be given as a backbone. Perplexity is measured on dev text. Not here: fine-tuning
(`tuning="full"`) and the model itself (`backbones/awd_lstm.py`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainingArguments, set_seed

from plantlib.backbones.awd_lstm import AwdLstmConfig, AwdLstmForCausalLM, check_direction
from plantlib.data import credentials
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import tokenise
from plantlib.training.checkpoints import SealingTrainer
from plantlib.training.language_model import texts_of
from plantlib.training.train import StepBar, one_device, start
from plantlib.utils.checks import check_fields, check_seed
from plantlib.utils.folders import atomic_folder, check_target
from plantlib.utils.io import fingerprint_of, held, remove_unless_held, write_json
from plantlib.utils.progress import tqdm


@dataclass(frozen=True)
class PretrainConfig:
    """Options of the pretraining.

    Attributes:
        direction: "forward" or "backward".
        rows: parallel rows of the stream.
        chunk: tokens per step and row, through which gradients flow.
        activation: weight of the mean square of the last hidden states in the loss (the alpha of
            Merity, Keskar and Socher 2018).
        vocabulary: most words of the tokenizer.
        min_documents: least occurrences of a word in the vocabulary.
        sizes: values of `awd_lstm.AwdLstmConfig` that differ from the published ones.
    """

    direction: str = "forward"
    epochs: int = 5
    rows: int = 16
    chunk: int = 70
    learning_rate: float = 3e-3
    activation: float = 2.0
    vocabulary: int = 30000
    min_documents: int = 2
    sizes: dict = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_seed(self.seed)
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate={self.learning_rate}; give a rate of 0 or more")
        for name in ("epochs", "rows", "min_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")
        if self.chunk < 2:
            raise ValueError(f"chunk={self.chunk}; give at least 2 tokens")


def word_tokenizer(
    texts: list[str], size: int = 30000, min_documents: int = 2
) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-cased words and punctuation.

    Args:
        texts: the vocabulary is their most frequent words.
        size: most words, the three special tokens among them.
        min_documents: least occurrences of a word, several in one text counted.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    special_tokens = ["[PAD]", "[UNK]", "[EOS]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size,
        min_frequency=min_documents,
        special_tokens=special_tokens,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


def pretrain(
    corpus: Corpus | str,
    folder: str | Path,
    *,
    config: PretrainConfig | None = None,
    tokenizer=None,
    progress: bool = True,
) -> dict:
    """Pretrain on the training and unlabelled text and write the backbone's folder.

    A killed call resumes from its last epoch when it is repeated.

    Args:
        corpus: a `Corpus`, or the name or folder of one.
        folder: the backbone folder that is written.
        config: options of the pretraining.
        tokenizer: shared by a forward and a backward model; None makes one from the text.
        progress: show progress bars.

    Returns:
        perplexity_before and perplexity (on dev text); documents and tokens trained on; vocabulary,
        the number of words.

    Raises:
        ValueError: an unknown direction, or a corpus without dev text or with too little text.
        PrivacyError: a credentialed corpus, and a folder outside the data folder.
    """
    check_target(folder, "backbone")
    config = config or PretrainConfig()
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    marked = credentials.is_marked(corpus.manifest)
    credentials.check_folder(f"the text of {corpus.name}", folder, marked)
    train_texts, dev_texts = texts_of(corpus)
    tokenizer = tokenizer or word_tokenizer(train_texts, config.vocabulary, config.min_documents)
    set_seed(config.seed)
    model = _model(config, tokenizer)

    # measure, train, measure
    train_rows = stream(train_texts, tokenizer, config)
    dev_rows = stream(dev_texts, tokenizer, config)
    before = perplexity(model, dev_rows, config, progress)
    key = fingerprint_of(corpus.fingerprint(), tokenizer.get_vocab(), asdict(config))
    checkpoints = Path(folder).with_name(f".{Path(folder).name}-{key}.checkpoints")
    with held(checkpoints):
        _train(model, train_rows, config, checkpoints, progress)
        about = {
            "perplexity_before": before,
            "perplexity": perplexity(model, dev_rows, config, progress),
            "documents": len(train_texts),
            "tokens": int(train_rows.size),
            "vocabulary": len(tokenizer),
        }
        if marked:
            about[credentials.MARK] = True

        # the folder appears when it is complete; until then a call goes on from the checkpoints
        model.config.direction = config.direction
        with atomic_folder(folder, "backbone") as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_json(temporary / "pretraining.json", about | {"options": asdict(config)})
        remove_unless_held(checkpoints)
    return about


def _model(config: PretrainConfig, tokenizer) -> AwdLstmForCausalLM:
    """The model before training. It always reads forward here: for a backward model the stream
    itself is reversed.
    """
    check_direction(config.direction)
    sizes = config.sizes | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "direction": "forward",
    }
    return AwdLstmForCausalLM(AwdLstmConfig(**sizes))


def stream(texts: list[str], tokenizer, config: PretrainConfig) -> np.ndarray:
    """Token ids (rows, n): documents in a seeded order, each followed by an end token, cut into
    `config.rows` equal rows.

    ValueError for less than two tokens per row.
    """
    documents = tokenise(texts, tokenizer, progress=False)
    step = -1 if config.direction == "backward" else 1
    order = np.random.default_rng(config.seed).permutation(len(documents))
    parts = [np.append(documents[i][::step], tokenizer.eos_token_id) for i in order]
    flat = np.concatenate(parts).astype(np.int64)
    length = len(flat) // config.rows
    if length < 2:
        raise ValueError(
            f"the text has {len(flat)} tokens for {config.rows} rows; give more text or fewer rows"
        )
    return flat[: length * config.rows].reshape(config.rows, length)


class Chunks:
    """A stream as a data set of steps.

    An item holds input_ids and labels (rows, at most `chunk`), the labels one token later.

    Args:
        rows: (rows, n) token ids.
        chunk: tokens per step and row.
    """

    def __init__(self, rows: np.ndarray, chunk: int):
        self.rows = rows
        self.chunk = chunk

    def __len__(self) -> int:
        return -(-(self.rows.shape[1] - 1) // self.chunk)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        begin = i * self.chunk
        end = min(begin + self.chunk, self.rows.shape[1] - 1)
        return {
            "input_ids": torch.from_numpy(self.rows[:, begin:end].copy()),
            "labels": torch.from_numpy(self.rows[:, begin + 1 : end + 1].copy()),
        }


def perplexity(model, rows: np.ndarray, config: PretrainConfig, progress: bool = False) -> float:
    """exp of the mean loss per token of a stream (rows, n), with the state carried through it."""
    total = 0.0
    tokens = 0
    state = None
    training = model.training
    model.eval()
    chunks = Chunks(rows, config.chunk)
    with torch.inference_mode():
        for batch in tqdm(chunks, desc="perplexity", unit="chunk", delay=5, disable=not progress):
            output = model(**{k: v.to(model.device) for k, v in batch.items()}, state=state)
            state = output.state
            total += float(output.loss) * batch["labels"].numel()
            tokens += batch["labels"].numel()
    model.train(training)
    return math.exp(total / tokens)


class CarriedState(TrainerCallback):
    """The LSTM's state after the last chunk, without gradients; each epoch begins without one."""

    def __init__(self):
        self.state = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.state = None


class StreamTrainer(SealingTrainer):
    """transformers.Trainer over the chunks of a stream, in their order."""

    def __init__(self, *args, carried: CarriedState, activation: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.carried = carried
        self.activation = activation

    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The cross-entropy, and the mean square of the last hidden states times `activation`."""
        output = model(**inputs, state=self.carried.state)
        self.carried.state = tuple(tuple(s.detach() for s in layer) for layer in output.state)
        return output.loss + self.activation * output.last_hidden_state.square().mean()


def _train(model, rows: np.ndarray, config: PretrainConfig, folder: Path, progress: bool) -> None:
    """Train on the stream `rows`; a checkpoint per epoch is written to `folder`."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=1,
        max_grad_norm=0.25,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        save_strategy="epoch",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        log_level="error",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    carried = CarriedState()
    trainer = StreamTrainer(
        model=model,
        args=one_device(arguments),
        train_dataset=Chunks(rows, config.chunk),
        data_collator=lambda items: items[0],
        callbacks=[carried, StepBar("AWD-LSTM", progress)],
        carried=carried,
        activation=config.activation,
    )
    start(trainer)
