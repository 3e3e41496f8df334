"""Which of several training processes this one is: who writes files, and who waits for whom."""

from __future__ import annotations

import contextlib
import os


def distributed() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def on_cpu() -> bool:
    """Whether several processes meet over gloo: there is no GPU, or it is not wanted."""
    import torch

    unwanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    return distributed() and (unwanted or not torch.cuda.is_available())


def is_main() -> bool:
    """Whether this process writes files that all share."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def main_first():
    """The first process runs the block before the others, which then find its artefacts; alone it
    costs nothing.
    """
    if not distributed():
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=on_cpu()).main_process_first():
        yield
