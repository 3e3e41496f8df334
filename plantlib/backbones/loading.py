"""Backbones: any Hugging Face encoder or causal LM by name, folder or configuration; its window and
its special tokens.

Realises "plug into any backbone" of METHOD.md section 4. `minilm` and `smollm2` are real pretrained
models that need no model hub (`weights.py`). Weights are loaded from safetensors alone; remote code
is off unless asked for. LoRA is in `adapters.py`, reading documents longer than the window in
`windows.py`.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plantlib.backbones import (
    adapters,
    awd_lstm,  # noqa: F401 (registers its classes)
    weights,
)
from plantlib.utils.io import sha256
from plantlib.utils.progress import without_library_bars

DTYPES = ("float32", "bfloat16", "float16")
LONGEST_WINDOW = 4096


# position 0 of these is the one after the padding's
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded backbone. window counts real tokens a forward pass may hold, special tokens already
    taken off.

    overlap: tokens on either side of a window that are read for context alone, where a document has
    several windows.
    """

    name: str
    model: Any
    tokenizer: Any
    window: int
    overlap: int = 0

    @property
    def hidden_size(self) -> int:
        return hidden_size_of(self.model.config)

    @property
    def num_tokens(self) -> int:
        """V: `len(tokenizer)`, added tokens included, never `tokenizer.vocab_size`."""
        return len(self.tokenizer)


def load(
    name_or_config,
    *,
    tokenizer=None,
    dtype: str = "float32",
    quantise: bool = False,
    gradient_checkpointing: bool = False,
    dropout: float | None = None,
    window: int | None = None,
    overlap: int = 0,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load `minilm`, `smollm2`, a local folder or a hub id; or make random weights from a
    configuration object.

    tokenizer: one to use instead of the backbone's own, needed with a configuration. dtype: of the
    weights; the head stays float32. quantise: 4-bit weights through bitsandbytes, where CUDA is.
    gradient_checkpointing: recompute layers in the backward pass. dropout: replaces every dropout
    rate of the configuration; 0 halves time and memory on a CPU. window: at most so many tokens are
    read at a time, fewer than the backbone could. overlap: see `Backbone`. seed: of random weights.
    Raises ValueError naming the fix for what cannot be loaded, before any weight is read.
    """
    from transformers import AutoTokenizer

    check_dtype(dtype)
    if quantise:
        check_quantisable()
    named = isinstance(name_or_config, (str, Path))
    config = (
        config_of(name_or_config, trust_remote_code) if named else copy.deepcopy(name_or_config)
    )
    check_architecture(config)
    if dropout is not None:
        set_dropout(config, dropout)
    if named:
        model = _weights(str(name_or_config), config, dtype, quantise, trust_remote_code)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(
            locate(str(name_or_config)), trust_remote_code=trust_remote_code
        )
    else:
        model = _random(config, tokenizer, dtype, seed)
    fit_vocabulary(model, tokenizer)
    if gradient_checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    name = str(name_or_config) if named else config.model_type
    return Backbone(
        name, model.eval(), tokenizer, window_of(model.config, tokenizer, window), overlap
    )


def _weights(name: str, config, dtype: str, quantise: bool, trust_remote_code: bool):
    import torch
    from transformers import AutoModel

    if adapters.holds_adapter(name):
        return _adapted(name, config, dtype, quantise, trust_remote_code)
    path, options = locate(name), {}
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        raise ValueError(f"{path} holds no safetensors; save the model with save_pretrained")
    if quantise:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    size = (
        sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
        if Path(path).is_dir()
        else 2**40
    )
    options |= {
        "config": config,
        "dtype": getattr(torch, dtype),
        "trust_remote_code": trust_remote_code,
    }
    with without_library_bars(wanted=size > 2**30):
        model = AutoModel.from_pretrained(path, use_safetensors=True, **options)
    return model if quantise else own_memory(model)


def _adapted(folder: str, config, *options):
    """The backbone that an adapter folder names, its adapter merged into the weights: a backbone
    like any other then.
    """
    base = _weights(adapters.base_of(folder), config, *options)
    return adapters.load_adapter(base, folder).merge_and_unload()


def _random(config, tokenizer, dtype: str, seed: int):
    """Random weights of a configuration, from one seed and without touching the global generator."""
    import torch
    from transformers import AutoModel

    if tokenizer is None:
        raise ValueError("a configuration brings no tokenizer; pass tokenizer=")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config).to(getattr(torch, dtype))


def check_dtype(dtype: str) -> None:
    """ValueError for a type of weights that is not known."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known; use one of {', '.join(DTYPES)}")


def reading_dtype(config, device: str) -> str:
    """The type a frozen backbone reads text in: on a GPU that of its stored weights where known,
    float32 elsewhere.
    """
    stored = str(config.get_text_config().dtype or "").removeprefix("torch.")
    return stored if device == "cuda" and stored in DTYPES else "float32"


def check_quantisable() -> None:
    """RuntimeError where 4-bit weights cannot work, with the way out."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            "4-bit weights need a CUDA GPU and there is none here; load with quantise=False"
            " (dtype='bfloat16')"
        )
    if find_spec("bitsandbytes") is None:
        raise RuntimeError(
            "4-bit weights need the package bitsandbytes; install it with: pip install bitsandbytes"
        )


def check_architecture(config) -> None:
    """ValueError for models that have no one sequence of hidden states over the text."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{config.model_type!r} is an encoder-decoder; PLANT reads one sequence of states: use"
            " an encoder or a causal LM"
        )
    if config.model_type == "plant":
        raise ValueError(
            "this folder holds a whole PLANT model; load it with PlantModel.from_pretrained"
        )


def set_dropout(config, rate: float) -> None:
    """Set every dropout rate of a configuration."""
    for name, value in list(config.to_dict().items()):
        if ("dropout" in name or name.endswith(("pdrop", "_drop"))) and isinstance(
            value, (int, float)
        ):
            setattr(config, name, rate)


def fit_vocabulary(model, tokenizer) -> None:
    """Give tokens added to the tokenizer their embedding rows (at the mean of the others) when the
    model lacks them.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        import torch

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            embeddings = model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            embeddings.weight[rows:] = embeddings.weight[:rows].mean(0)


def own_memory(model):
    """Copy weights out of the mapped file: they may lie unaligned there, and alignment decides the
    last bit of a product.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def tokenizer_of(name_or_path: str, trust_remote_code: bool = False):
    """The tokenizer alone."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate(name_or_path), trust_remote_code=trust_remote_code)


def config_of(name_or_path: str, trust_remote_code: bool = False):
    """The configuration alone."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        locate(str(name_or_path)), trust_remote_code=trust_remote_code
    )


def hidden_size_of(config) -> int:
    """D, of the text part where a configuration has several."""
    return config.get_text_config().hidden_size


def locate(name_or_path: str) -> str:
    """A folder for `minilm`, `smollm2` or a local path, the base's for an adapter; a hub id is
    handed on as it is.
    """
    if name_or_path in weights.FOLDERS:
        return str(weights.FOLDERS[name_or_path]())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if adapters.holds_adapter(path):
            return locate(adapters.base_of(path))
        if not (path / "config.json").exists():
            raise ValueError(f"{path} has no config.json; give a folder written by save_pretrained")
        return str(path)
    if path.is_absolute() or name_or_path.startswith(".") or name_or_path.count("/") != 1:
        known = "', '".join(n for n in weights.FOLDERS if not n.startswith("tiny-"))
        raise ValueError(
            f"backbone {name_or_path!r} is no folder here; use '{known}', an existing folder or a"
            " hub id 'owner/name'"
        )
    return name_or_path


def window_of(config, tokenizer, wanted: int | None = None) -> int:
    """Real tokens one forward pass may hold: positions less special tokens, at most the tokenizer's
    own limit and `wanted`.
    """
    limit = min(getattr(config, "max_position_embeddings", None) or LONGEST_WINDOW, LONGEST_WINDOW)
    if tokenizer.model_max_length and tokenizer.model_max_length < 10**6:
        limit = min(limit, tokenizer.model_max_length)
    if config.model_type in OFFSET_POSITIONS:
        limit = min(limit, config.max_position_embeddings - config.pad_token_id - 1)
    prefix, suffix = specials(tokenizer)
    room = limit - len(prefix) - len(suffix)
    if wanted is not None and not 1 <= wanted <= room:
        raise ValueError(f"window={wanted}: this backbone reads 1 to {room} tokens at a time")
    return wanted or room


def specials(tokenizer) -> tuple[list[int], list[int]]:
    """Special tokens the tokenizer puts before and after a text."""
    probe = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for begin in range(len(whole) - len(probe) + 1):
        if whole[begin : begin + len(probe)] == probe:
            return list(whole[:begin]), list(whole[begin + len(probe) :])
    raise ValueError(
        "the tokenizer does not keep a text's own tokens between its special tokens; use another"
        " tokenizer"
    )


def fingerprint(name_or_path: str) -> str:
    """16 hex digits over configuration, tokenizer and every weight file, whole: merged adapters
    change only the middle.

    A hub id is its name and the revision that the local cache holds.
    """
    path, digest = Path(locate(name_or_path)), hashlib.sha256()
    if adapters.holds_adapter(name_or_path):
        digest.update(sha256(Path(name_or_path) / adapters.WEIGHTS).encode())
    patterns = (
        "*.safetensors",
        "*.model",
        "config.json",
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
    )
    files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    if not files:
        digest.update(
            f"{name_or_path}@{getattr(config_of(name_or_path), '_commit_hash', None)}".encode()
        )
    for file in files:
        digest.update(f"{file.name}:{sha256(file)}".encode())
    return digest.hexdigest()[:16]
