"""A PlantModel on disk: the whole model, or head and adapters.

The folder of a model with LoRA holds `model.safetensors` (without the backbone), `adapter/` (in
peft's format) and the tokenizer. The backbone is not copied: it is loaded again from where it came
from, and its fingerprint must agree. Only safetensors and JSON are read. `contents.json` holds the
checksum of every file, and a folder that differs from it is refused. `documents.safetensors` holds
what learning on needs (`data.kept`) and may be removed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import torch
from huggingface_hub.dataclasses import type_validator

from plantlib.backbones import adapters, loading
from plantlib.data import credentials, kept
from plantlib.data.kept import Kept
from plantlib.metrics import calibration
from plantlib.model import hub
from plantlib.model.card import write_card
from plantlib.utils.base import DataError
from plantlib.utils.folders import atomic_folder, verify
from plantlib.utils.io import Damaged, naming_full_disk, read_json, remove_unless_held, write_json
from plantlib.utils.progress import without_library_bars

CONFIG = "config.json"
AGAIN = "copy the whole folder again, or train the model again"  # the fix of a damaged one
MODEL = "model"  # the format of the folder, see `utils.folders`
ADAPTER = "adapter"
WORDS = "words.json"
PHRASES = "phrases.json"  # the words of each list of phrases
# what is fetched of a hub's model, and how
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


def save(model, folder: Path, write, state_dict=None, **kwargs) -> None:
    """Save `model` to `folder`; the checkpoints of its run are removed afterwards.

    Args:
        folder: a new or an empty folder, or one of a model, whose files are replaced.
        write: transformers' save_pretrained; it gets `kwargs`.
        state_dict: weights of a Trainer's checkpoint, which gets neither adapters nor a card.

    Raises:
        PrivacyError: a model of a credentialed corpus would be saved outside the data folder.
        DataError: `folder` may not be replaced; see `utils.folders.check_target`.
        OSError: the disk is full.
    """
    if kwargs.get("push_to_hub"):
        hub.check(model)
        raise ValueError("save_pretrained writes a folder; model.push_to_hub('owner/name') uploads")
    credentials.check_folder("the corpus of this model", folder, model.config.credentialed)
    if state_dict is not None:
        with naming_full_disk(folder):
            _write(model, folder, write, state_dict, **kwargs)
        return
    with atomic_folder(folder, MODEL) as temporary:
        _write(model, temporary, write, **kwargs)
    if model.checkpoints is not None:
        remove_unless_held(model.checkpoints)
        model.checkpoints = None


def _write(model, folder: Path, write, state_dict=None, **kwargs) -> None:
    """Write the files of a model, or of a checkpoint where `state_dict` is given."""
    checkpoint = state_dict is not None
    adapted = not checkpoint and adapters.is_adapted(model.backbone)
    if adapted:
        _name_base(model)
        model.config.backbone_saved = "adapter"
        state_dict = {n: t for n, t in model.state_dict().items() if not n.startswith("backbone.")}
    try:
        write(folder, **({} if state_dict is None else {"state_dict": state_dict}), **kwargs)
    finally:
        model.config.backbone_saved = "whole"
    if adapted:
        adapters.save_adapter(model.backbone, folder / ADAPTER)
    if model.word_score is not None and not checkpoint:
        write_json(folder / WORDS, model.word_score.words)
    if model.phrase_score is not None and not checkpoint:
        write_json(folder / PHRASES, model.phrase_score.words)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    if isinstance(model.kept, Path) and model.kept.is_file() and not checkpoint:
        shutil.copyfile(model.kept, folder / kept.FILE)
    elif isinstance(model.kept, Kept) and not checkpoint:
        model.kept.save(folder / kept.FILE)
    if model.record is not None and not checkpoint:
        write_card(model.record, folder)


def _name_base(model) -> None:
    """Name the backbone in the adapters' configuration, and its fingerprint in the model's."""
    source = model.backbone_source
    for config in model.backbone.peft_config.values():
        config.base_model_name_or_path = source
    model.config.backbone_fingerprint = loading.fingerprint(source)


def load(read, path, backbone: str | None = None, *args, trust_remote_code=False, **kwargs):
    """The model in the folder `path`, or of a hub id; `read` is transformers' from_pretrained.

    backbone, trust_remote_code: see `PlantModel.from_pretrained`. args and kwargs go to `read`.
    Raises Damaged for a file that is missing, cut short or changed.
    """
    hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    folder = folder_of(path, **hub)
    check_config(folder / CONFIG, read.__self__.config_class)
    verify(folder, MODEL, AGAIN, optional=(kept.FILE,))
    options = {"use_safetensors": True, "dtype": torch.float32} | kwargs
    try:
        with without_library_bars():
            model = read(folder, *args, trust_remote_code=trust_remote_code, **options)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        about = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: configuration and weights do not fit each other"
            f" ({type(error).__name__}: {about:.300}); save the model again"
        ) from error
    loading.own_memory(model)
    config = model.config
    model.kept = folder / kept.FILE
    if model.word_score is not None:
        model.word_score.set_words(read_json(folder / WORDS))
    if model.phrase_score is not None:
        model.phrase_score.set_words(read_json(folder / PHRASES))
    if config.backbone_saved == "adapter":
        return _put_on_backbone(model, folder, backbone, trust_remote_code)
    if model.backbone is not None:
        model.backbone.to(getattr(torch, config.backbone_dtype))
        model.tokenizer = loading.tokenizer_in(folder, trust_remote_code)
        model.backbone_source = str(path)
    return model


def documents_of(model) -> Kept:
    """The documents of train and dev that a model learns on with.

    Raises:
        DataError: the model has none.
        Damaged: the file changed since it was written.
    """
    if isinstance(model.kept, Path) and model.kept.is_file():
        model.kept = Kept.load(model.kept)
    if not isinstance(model.kept, Kept):
        raise DataError(
            f"this model has no {kept.FILE} with the documents it was trained on, which learning"
            " on needs: use the folder that plant fit wrote, or fit again on all documents"
        )
    return model.kept


def is_model(folder: Path) -> bool:
    """Whether the folder holds what `PlantModel.save_pretrained` writes."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise Damaged(f"{error}: {AGAIN}") from None
    return isinstance(config, dict) and config.get("model_type") == "plant"


def check_config(path: Path, config_class: type) -> None:
    """ValueError that names the entry of a configuration file which has the wrong type."""
    about, own = read_json(path), config_class.__annotations__
    # the base class has annotations that exist for type checkers alone
    module = vars(sys.modules[config_class.__module__])
    types = get_type_hints(SimpleNamespace(__annotations__=own), module)
    for name in sorted(set(about) & set(own)):
        try:
            type_validator(name, about[name], types[name])
        except TypeError as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}; save it again") from None
    labels = about.get("id2label")
    if not isinstance(labels, dict) or set(labels) != set(map(str, range(len(labels)))):
        raise ValueError(f"{path}: id2label does not number the labels from 0; save it again")
    curve = about.get("calibration") or calibration.NONE
    if [type(x) for x in curve] != [float] * len(calibration.NONE):
        raise ValueError(f"{path}: calibration is not three numbers; save it again")


def folder_of(path: str | Path, **hub) -> Path:
    """The folder of a saved model; the files of a hub id 'owner/name' are fetched to the hub's
    cache first, unless they lie there.

    hub: `HUB_OPTIONS`, as `huggingface_hub.snapshot_download` has them.

    Raises:
        ValueError: neither a folder nor a hub id that can be read, or one without a PlantModel.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(path), **hub)
    if not is_model(folder):
        kind = (folder / CONFIG).is_file()
        raise ValueError(
            f"{path} holds {'another kind of model' if kind else f'no {CONFIG}'}, not a PlantModel:"
            " give a folder that PlantModel.save_pretrained or plant fit wrote"
            + (", or train one with this backbone" if kind else "")
        )
    return folder


def _from_hub(name: str, **hub) -> Path:
    """The local copy of the model `name` of the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ValueError(f"{name!r} is no folder here: give a model's folder or hub id owner/name")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, **hub))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name!r} is no folder here and could not be read as a model of the hub ({reason});"
            " give the folder of a model, or set HF_HUB_OFFLINE=0 to let it be downloaded"
        ) from None


def _put_on_backbone(model, path: Path, backbone: str | None, trust_remote_code: bool):
    """Load the backbone of the adapters in `path`, check it and put them on."""
    # the right backbone, by its fingerprint
    name = adapters.base_of(path / ADAPTER)
    source, expected = backbone or name, model.config.backbone_fingerprint
    try:
        actual = loading.fingerprint(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the adapters in {path} belong to the backbone {name!r}, which is not here ({error});"
            " pass backbone= with its folder or hub id"
        ) from error
    if actual != expected:
        raise ValueError(
            f"the adapters in {path} were trained on a backbone of fingerprint {expected},"
            f" {source!r} has {actual}; pass backbone= with the one they were trained on"
        )
    # read as in training, with the adapters around it
    config = model.config
    model.attach_backbone(
        loading.load(
            source,
            tokenizer=loading.tokenizer_in(path, trust_remote_code),
            dtype=config.backbone_dtype,
            window=config.window,
            overlap=config.overlap,
            trust_remote_code=trust_remote_code,
        )
    )
    model.backbone = adapters.load_adapter(model.backbone, path / ADAPTER)
    return model.eval()
