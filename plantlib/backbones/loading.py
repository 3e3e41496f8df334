"""Backbones: any Hugging Face encoder or causal LM by name, folder or configuration.

`minilm`, `smollm2` and `mpnet` are pretrained models that need no model hub (`weights.py`).
Weights are loaded from safetensors only, and remote code is off by default. LoRA is in
`adapters.py`, documents longer than the window are in `windows.py`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from plantlib.backbones import (
    adapters,
    awd_lstm,  # noqa: F401 (registers its classes)
    weights,
    words,
)
from plantlib.utils.io import sha256
from plantlib.utils.progress import without_library_bars

# what transformers raises for a configuration whose entries have the wrong types
NOT_OF_TRANSFORMERS = (AttributeError, KeyError, TypeError, StrictDataclassError)
DTYPES = ("float32", "bfloat16", "float16")
LONGEST_WINDOW = 4096
# in these the first position comes after that of the padding
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded backbone.

    window: tokens of a text that one forward pass reads, special tokens not counted. overlap:
    tokens on either side of a window that are read for context only, in documents of several
    windows.
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
        """V, added tokens included, which `tokenizer.vocab_size` leaves out."""
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
    """Load a backbone; what cannot be loaded is refused before any weight is read.

    Args:
        name_or_config: `minilm`, `smollm2`, `mpnet`, a local folder, a hub id, or a configuration
            object, which gets random weights.
        tokenizer: replaces the backbone's own; needed with a configuration.
        dtype: of the weights; the head stays float32.
        quantise: 4-bit weights through bitsandbytes, on a CUDA GPU.
        gradient_checkpointing: recompute layers in the backward pass.
        dropout: replaces every dropout rate of the configuration; 0 halves time and memory on a
            CPU.
        window: read at most so many tokens at a time; by default as many as the backbone can.
        overlap: see `Backbone`.
        seed: of random weights.
        trust_remote_code: allow code that comes with a model.

    Raises:
        ValueError: unknown backbone, dtype or window, or an encoder-decoder.
        RuntimeError: 4-bit weights cannot work here.
    """
    # read the configuration, and refuse what cannot work
    check_dtype(dtype)
    if quantise:
        check_quantisable()
    by_name = isinstance(name_or_config, (str, Path))
    if by_name:
        config = config_of(name_or_config, trust_remote_code)
    else:
        config = copy.deepcopy(name_or_config)
    check_architecture(config)
    if dropout is not None:
        set_dropout(config, dropout)
    # load or make the weights
    if by_name:
        model = _weights(str(name_or_config), config, dtype, quantise, trust_remote_code)
        tokenizer = tokenizer or tokenizer_of(str(name_or_config), trust_remote_code)
    else:
        model = _random(config, tokenizer, dtype, seed, trust_remote_code)
    fit_vocabulary(model, tokenizer)
    if gradient_checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    name = str(name_or_config) if by_name else config.model_type
    window = window_of(model.config, tokenizer, window)
    return Backbone(name, model.eval(), tokenizer, window, overlap)


def _weights(name: str, config, dtype: str, quantise: bool, trust_remote_code: bool):
    """The model `name` with its stored weights."""
    import torch
    from transformers import AutoModel

    if adapters.holds_adapter(name):
        return _adapted(name, config, dtype, quantise, trust_remote_code)
    path = locate(name)
    files = list(Path(path).glob("*.safetensors"))
    local = Path(path).is_dir()
    if local and not files:
        raise ValueError(f"{path} holds no safetensors; save the model with save_pretrained")
    options: dict[str, Any] = {"config": config, "dtype": getattr(torch, dtype)}
    if quantise:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    large = not local or sum(file.stat().st_size for file in files) > 2**30
    with without_library_bars(wanted=large), own_code_refused(name):
        model = AutoModel.from_pretrained(
            path, use_safetensors=True, trust_remote_code=trust_remote_code, **options
        )
    return model if quantise else own_memory(model)


def _adapted(folder: str, config, *options):
    """The backbone that an adapter folder names, with the adapter merged into its weights."""
    base = _weights(adapters.base_of(folder), config, *options)
    return adapters.load_adapter(base, folder).merge_and_unload()


def _random(config, tokenizer, dtype: str, seed: int, trust_remote_code: bool):
    """A model with random weights from `seed`; the global generator is left alone."""
    import torch
    from transformers import AutoModel

    if tokenizer is None:
        raise ValueError("a configuration brings no tokenizer; pass tokenizer=")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        return model.to(getattr(torch, dtype))


def check_dtype(dtype: str) -> None:
    """ValueError for an unknown type of weights."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known; use one of {', '.join(DTYPES)}")


def reading_dtype(config, device: str) -> str:
    """The type of a frozen backbone's weights: as stored on a GPU if known, else float32."""
    stored = str(config.get_text_config().dtype or "").removeprefix("torch.")
    return stored if device == "cuda" and stored in DTYPES else "float32"


def check_quantisable() -> None:
    """RuntimeError, with a way out, if 4-bit weights cannot work here."""
    import torch

    if not torch.cuda.is_available():
        fix = "load with quantise=False (dtype='bfloat16')"
        raise RuntimeError(f"4-bit weights need a CUDA GPU and there is none here; {fix}")
    if find_spec("bitsandbytes") is None:
        fix = "install it with: pip install bitsandbytes"
        raise RuntimeError(f"4-bit weights need the package bitsandbytes; {fix}")


def check_architecture(config) -> None:
    """ValueError for models without one sequence of hidden states over the text."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{config.model_type!r} is an encoder-decoder; PLANT reads one sequence of states: use"
            " an encoder or a causal LM"
        )
    if config.model_type == "plant":
        fix = "load it with PlantModel.from_pretrained"
        raise ValueError(f"this folder holds a whole PLANT model; {fix}")


def set_dropout(config, rate: float) -> None:
    """Set every dropout rate of a configuration."""
    for name, value in list(config.to_dict().items()):
        is_rate = "dropout" in name or name.endswith(("pdrop", "_drop"))
        if is_rate and isinstance(value, (int, float)):
            setattr(config, name, rate)


def fit_vocabulary(model, tokenizer) -> None:
    """Give each token that has no embedding yet the mean of the others."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        import torch

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            embeddings = model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            embeddings.weight[rows:] = embeddings.weight[:rows].mean(0)


def own_memory(model):
    """Copy the weights out of the mapped file.

    They may lie unaligned there, and alignment decides the last bit of a product.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


@contextlib.contextmanager
def own_code_refused(name: str | Path) -> Iterator[None]:
    """Says in one line that code which comes with a model was not run.

    transformers asks a question at the terminal where `trust_remote_code` is None, so every call of
    `from_pretrained` of its Auto classes states the argument.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code=True" not in str(error):
            raise
        raise ValueError(
            f"{name} brings Python code of its own, which was not run: use a model of transformers'"
            " own classes, or read that code and load it in Python with trust_remote_code=True"
        ) from None


def tokenizer_of(name_or_path: str, trust_remote_code: bool = False):
    """The tokenizer of a backbone alone; ValueError if it is code and code is not trusted."""
    return tokenizer_in(locate(name_or_path), trust_remote_code)


def tokenizer_in(folder: str | Path, trust_remote_code: bool = False):
    """The tokenizer in a folder, or of a hub id; see `tokenizer_of`."""
    from transformers import AutoTokenizer

    if words.WordTokenizer.lies_in(folder):
        return words.WordTokenizer.from_pretrained(folder)
    with own_code_refused(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def config_of(name_or_path: str | Path, trust_remote_code: bool = False):
    """The configuration alone."""
    from transformers import AutoConfig

    path = locate(str(name_or_path))
    with own_code_refused(path):
        try:
            return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        except NOT_OF_TRANSFORMERS as error:
            raise ValueError(
                f"the config.json of {path} is none of transformers ({type(error).__name__}:"
                f" {' '.join(str(error).split())[:200]}); save the model with save_pretrained"
            ) from error


def float32_bytes(name_or_path: str) -> int:
    """Bytes of a local backbone's weights as float32, read from the headers; 0 for a hub id."""
    from safetensors import safe_open

    total = 0
    for path in Path(locate(name_or_path)).glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names = list(file.keys())
            total += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def tokenizer_bytes(name_or_path: str) -> int:
    """Bytes of the texts beside a local backbone's weights, which are mostly its tokenizer's."""
    files = Path(locate(name_or_path)).glob("*")
    return sum(path.stat().st_size for path in files if path.suffix in (".json", ".txt", ".model"))


def hidden_size_of(config) -> int:
    """D, of the text part if a configuration has several."""
    return config.get_text_config().hidden_size


def locate(name_or_path: str) -> str:
    """Where transformers finds a backbone; ValueError if it cannot.

    A folder for a name of `weights.FOLDERS` or a local path, the base's folder for an adapter, and
    a hub id as it is.
    """
    if name_or_path in weights.FOLDERS:
        return str(weights.FOLDERS[name_or_path]())
    if name_or_path == words.NAME:
        raise ValueError(
            "the backbone 'words' is made of a corpus: give it to fit or prepare; to load one that"
            " was made, name its folder"
        )
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if adapters.holds_adapter(path):
            return locate(adapters.base_of(path))
        if not (path / "config.json").exists():
            raise ValueError(f"{path} has no config.json; give a folder written by save_pretrained")
        return str(path)
    if path.is_absolute() or name_or_path.startswith(".") or name_or_path.count("/") != 1:
        known = "', '".join(name for name in weights.FOLDERS if not name.startswith("tiny-"))
        raise ValueError(
            f"backbone {name_or_path!r} is no folder here; use '{known}', an existing folder or a"
            " hub id 'owner/name'"
        )
    return name_or_path


def window_of(config, tokenizer, wanted: int | None = None) -> int:
    """Tokens of a text that one forward pass reads: `wanted`, or as many as possible.

    The limit is the smallest of the model's positions, the tokenizer's limit and `LONGEST_WINDOW`,
    less the special tokens. ValueError if `wanted` is beyond it.
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
    """Special tokens that the tokenizer puts before and after a text."""
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
    """16 hex digits over configuration, tokenizer and the whole of every weight file.

    For a hub id they are of its name and the revision in the local cache.
    """
    path, digest = Path(locate(name_or_path)), hashlib.sha256()
    if adapters.holds_adapter(name_or_path):
        digest.update(sha256(Path(name_or_path) / adapters.WEIGHTS).encode())
    patterns = ["*.safetensors", "*.model", "config.json", "tokenizer*", "vocab*", "merges.txt"]
    patterns.append("special_tokens_map.json")
    files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    if not files:
        revision = getattr(config_of(name_or_path), "_commit_hash", None)
        digest.update(f"{name_or_path}@{revision}".encode())
    for file in files:
        digest.update(f"{file.name}:{sha256(file)}".encode())
    return digest.hexdigest()[:16]
