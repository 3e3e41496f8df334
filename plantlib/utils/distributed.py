"""Which of several training processes this one is: one writes files, the others wait for it."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta

# how long processes wait for the first one, which may fit a linear score for hours
LONGEST_WAIT = timedelta(days=7)


def distributed() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def on_cpu() -> bool:
    """Whether several processes meet over gloo: there is no GPU, or ACCELERATE_USE_CPU is set."""
    import torch

    cpu_requested = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    return distributed() and (cpu_requested or not torch.cuda.is_available())


def is_main() -> bool:
    """Whether this process writes the files that all processes share."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def main_first():
    """The first process runs the block before the others, which then find its artefacts.

    With one process the block simply runs. The wait may last as long as `LONGEST_WAIT`.
    """
    if not distributed():
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=on_cpu(), timeout=LONGEST_WAIT).main_process_first():
        yield
