"""Upload a PlantModel to a Hugging Face hub; `PlantModel.from_pretrained` reads it from there.

The files are those of `save_pretrained` without the documents that a model may learn on with: they
say what the training texts say. A credentialed model goes to no hub.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from plantlib.data import kept
from plantlib.data.credentials import PrivacyError


def check(model: Any) -> None:
    """PrivacyError for a model that was trained on credentialed texts."""
    if model.config.credentialed:
        raise PrivacyError("the corpus of this model is credentialed: it goes to no hub")


def push(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a PLANT model",
) -> str:
    """Upload a model; the address of the commit.

    Args:
        model: a PlantModel with a backbone.
        repo_id: "owner/name"; made where it does not exist.
        private: of a new repository; None takes the owner's default.
        token: of the hub; None takes the one of `hf auth login`.
        revision: branch; None takes the main one.
        message: of the commit.

    Raises:
        PrivacyError: the model was trained on credentialed texts.
        ValueError: the model has no backbone, or the hub does not answer or refuses.
    """
    from huggingface_hub import HfApi

    check(model)
    model.as_backbone()
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        documents, model.kept = model.kept, None
        try:
            model.save_pretrained(folder)
        finally:
            model.kept = documents
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message,
                ignore_patterns=[kept.FILE],
            )
        except Exception as error:  # of the hub, the network or the name: one line for all
            about = " ".join(str(error).split())
            raise ValueError(
                f"the model could not be uploaded as {repo_id!r} ({about:.300}); give owner/name,"
                " log in with hf auth login, and set HF_HUB_OFFLINE=0"
            ) from error
    return str(commit.commit_url)
