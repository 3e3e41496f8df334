"""Language-model pretraining of the AWD-LSTM on a corpus's own text, and the word tokenizer it
reads with.

Realises METHOD.md section 4, "v1 encoder: language-model pretraining on the training text, forward
and backward models". Training and unlabelled documents run as one stream in parallel rows; the
state is carried over chunks, gradients are not. A backward model is trained on the reversed stream.
What is left is a folder that is a backbone like any other. Perplexity is stated on dev text. Not
here: fine-tuning (`tuning="full"`), the model itself (`awd_lstm.py`).
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from plantlib.backbones.awd_lstm import AwdLstmConfig, AwdLstmForCausalLM, check_direction
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import tokenise
from plantlib.training.language_model import texts_of
from plantlib.training.train import StepBar, start
from plantlib.utils.io import atomic_path, fingerprint_of, write_json
from plantlib.utils.progress import tqdm


@dataclass(frozen=True)
class PretrainConfig:
    """Options of the pretraining. sizes: those of `awd_lstm.AwdLstmConfig` that differ from the
    published ones.
    """

    direction: str = "forward"
    epochs: int = 5
    rows: int = 16  # parallel rows of the stream
    chunk: int = 70  # tokens a step and row (back-propagation through time)
    learning_rate: float = 3e-3
    activation: float = 2.0  # weight of the mean square of the last hidden states (Merity's alpha)
    vocabulary: int = 30000
    min_documents: int = 2  # occurrences that a word of the vocabulary has at least
    sizes: dict = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "rows", "min_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")
        if self.chunk < 2:
            raise ValueError(f"chunk={self.chunk}; give at least 2 tokens")


def word_tokenizer(texts: list[str], size: int = 30000, min_documents: int = 2):
    """A fast tokenizer of lower-cased words and punctuation, its vocabulary the most frequent of
    `texts`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[EOS]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=min_documents, special_tokens=specials, show_progress=False
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
    """Pretrain on the training and unlabelled text; writes the backbone folder, returns
    perplexities and sizes.

    tokenizer: one to share between the forward and the backward model; made from the same text by
    default.
    """
    from transformers import set_seed

    config = config or PretrainConfig()
    corpus = Corpus.load(corpus) if isinstance(corpus, str) else corpus
    own, dev = texts_of(corpus)
    tokenizer = tokenizer or word_tokenizer(own, config.vocabulary, config.min_documents)
    set_seed(config.seed)
    model = _model(config, tokenizer)
    rows, held_out = stream(own, tokenizer, config), stream(dev, tokenizer, config)
    before = perplexity(model, held_out, config, progress)
    key = fingerprint_of(corpus.fingerprint(), tokenizer.get_vocab(), asdict(config))
    _train(
        model,
        rows,
        config,
        Path(folder).with_name(f".{Path(folder).name}-{key}.checkpoints"),
        progress,
    )
    found = {
        "perplexity_before": before,
        "perplexity": perplexity(model, held_out, config, progress),
        "documents": len(own),
        "tokens": int(rows.size),
        "vocabulary": len(tokenizer),
    }
    model.config.direction = config.direction
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "pretraining.json", found | {"options": asdict(config)})
    return found


def _model(config: PretrainConfig, tokenizer):

    check_direction(config.direction)
    # the stream itself is reversed for a backward model, so the language model reads forward while
    # it is trained
    sizes = config.sizes | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "direction": "forward",
    }
    return AwdLstmForCausalLM(AwdLstmConfig(**sizes))


def stream(texts: list[str], tokenizer, config: PretrainConfig) -> np.ndarray:
    """(rows, n) token ids: documents in a seeded order, an end token after each, cut into `rows`
    equal parts.
    """
    documents, backward = tokenise(texts, tokenizer, progress=False), config.direction == "backward"
    order = np.random.default_rng(config.seed).permutation(len(documents))
    parts = [
        np.append(documents[i][::-1] if backward else documents[i], tokenizer.eos_token_id)
        for i in order
    ]
    flat = np.concatenate(parts).astype(np.int64)
    length = len(flat) // config.rows
    if length < 2:
        raise ValueError(
            f"the text has {len(flat)} tokens for {config.rows} rows; give more text or fewer rows"
        )
    return flat[: length * config.rows].reshape(config.rows, length)


class Chunks:
    """The stream as a data set of steps: item i holds input_ids and labels (rows, at most chunk),
    labels one token later.
    """

    def __init__(self, rows: np.ndarray, chunk: int):
        self.rows, self.chunk = rows, chunk

    def __len__(self) -> int:
        return -(-(self.rows.shape[1] - 1) // self.chunk)

    def __getitem__(self, i: int) -> dict:
        import torch

        if not 0 <= i < len(self):
            raise IndexError(i)
        begin = i * self.chunk
        end = min(begin + self.chunk, self.rows.shape[1] - 1)
        shifted = {"input_ids": 0, "labels": 1}
        return {
            name: torch.from_numpy(self.rows[:, begin + k : end + k].copy())
            for name, k in shifted.items()
        }


def perplexity(model, rows: np.ndarray, config: PretrainConfig, progress: bool = False) -> float:
    """exp of the mean loss over a stream, the state carried through it."""
    import torch

    total, seen, state, training = 0.0, 0, None, model.training
    model.eval()
    with torch.inference_mode():
        chunks = tqdm(
            Chunks(rows, config.chunk),
            desc="perplexity",
            unit="chunk",
            delay=5,
            disable=not progress,
        )
        for batch in chunks:
            output = model(**{k: v.to(model.device) for k, v in batch.items()}, state=state)
            state, count = output.state, batch["labels"].numel()
            total, seen = total + float(output.loss) * count, seen + count
    model.train(training)
    return math.exp(total / seen)


def _train(model, rows: np.ndarray, config: PretrainConfig, work: Path, progress: bool) -> None:
    """transformers.Trainer over the chunks in order; a checkpoint an epoch in `work`, where the
    carried state begins anew.
    """
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class StreamTrainer(Trainer):
        carried = None

        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs, state=self.carried)
            self.carried = tuple(tuple(s.detach() for s in layer) for layer in output.state)
            return output.loss + config.activation * output.last_hidden_state.square().mean()

    class Begin(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            trainer.carried = None

    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=1,
        max_grad_norm=0.25,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        log_level="error",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = StreamTrainer(
        model=model,
        args=arguments,
        train_dataset=Chunks(rows, config.chunk),
        data_collator=lambda items: items[0],
        callbacks=[Begin(), StepBar("AWD-LSTM", progress)],
    )
    trainer.model_accepts_loss_kwargs = False
    # a stream has one reader: several cards would be given rows of different steps
    arguments._n_gpu = min(arguments.n_gpu, 1)
    start(trainer)
    shutil.rmtree(work, ignore_errors=True)
