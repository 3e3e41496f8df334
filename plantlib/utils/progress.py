"""Progress bars that reach the reader: widgets in JupyterLab, text where a notebook is run by
papermill.

Under papermill a widget is seen by nobody, so `runner.run_notebook` sets PLANT_PROGRESS=text for
its kernel and passes the kernel's standard error on. Everything in plantlib that takes more than
seconds draws its bar through `tqdm` here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "PLANT_PROGRESS"


def tqdm(*args, **kwargs):
    """`tqdm.auto.tqdm`, or the text bar of `tqdm.std` when PLANT_PROGRESS=text."""
    if os.environ.get(VARIABLE) == "text":
        from tqdm.std import tqdm as text_bar

        return text_bar(
            *args, **({"mininterval": 0.5, "dynamic_ncols": False, "ncols": 100} | kwargs)
        )
    from tqdm.auto import tqdm as bar

    return bar(*args, **kwargs)


@contextmanager
def without_library_bars(wanted: bool = False) -> Iterator[None]:
    """transformers' own bars are left out inside, unless `wanted`: they belong to files that take
    longer than seconds.
    """
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    if not wanted:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


@contextmanager
def bars_as_text() -> Iterator[None]:
    """Kernels started inside draw text bars; the variable is put back afterwards."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "text"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
