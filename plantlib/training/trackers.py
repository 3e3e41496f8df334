"""Trackers that follow a fit: TensorBoard, MLflow or Trackio, by the callbacks of transformers.

None is used unless it is asked for. They get the loss, dev metrics, the options and the
configuration with the names of labels, and no text of a document. A run on credentialed texts
reports to none of them: some send what they get to a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback

from plantlib.data.credentials import PrivacyError

KNOWN = ("tensorboard", "mlflow", "trackio")


def names_of(report_to: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers that an option names: one, several or none."""
    return (report_to,) if isinstance(report_to, str) else tuple(report_to)


def check(report_to: str | Sequence[str], credentialed: bool) -> None:
    """Check what a run reports to, before any long work.

    Raises:
        ValueError: an unknown tracker, or one whose package is not installed.
        PrivacyError: the texts are credentialed.
    """
    names = names_of(report_to)
    for name in names:
        if name not in KNOWN:
            raise ValueError(f"report_to={name!r} is not known; use one of {', '.join(KNOWN)}")
        if find_spec(name) is None:
            raise ValueError(
                f"report_to={name!r}: the package {name} is not installed; pip install {name}"
            )
    if names and credentialed:
        raise PrivacyError(
            f"report_to={names[0]!r}: the texts are credentialed, and nothing of them goes to a"
            " tracker; leave it out"
        )


def callbacks(report_to: str | Sequence[str], folder: Path) -> list[TrainerCallback]:
    """The callbacks of trackers.

    folder: where TensorBoard writes, unless $TENSORBOARD_LOGGING_DIR names another place.
    """
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    made = []
    for name in names_of(report_to):
        callback = INTEGRATION_TO_CALLBACK[name]()
        if name == "tensorboard" and callback.logging_dir is None:
            callback.logging_dir = str(folder)
        made.append(callback)
    return made
