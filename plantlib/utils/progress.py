"""Progress bars: widgets in JupyterLab, text bars in a terminal, lines in a file or a CI log.

Everything in plantlib that takes more than seconds draws its bar through `tqdm` here. In a log a
bar is one line every half minute. Nobody sees a widget under papermill, so `companion.runner` sets
PLANT_PROGRESS for the kernel (`bars_as_text`) and passes the kernel's standard error on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from time import monotonic

VARIABLE = "PLANT_PROGRESS"  # "text" or "lines" for the bars of a kernel that papermill started
LINE_SECONDS = 30.0


@cache
def _line_bar() -> type:
    """The class of the bars in a log; made here because importing plantlib must not import tqdm."""
    from tqdm.std import tqdm

    class LineBar(tqdm):
        """A bar for files and logs: a line every LINE_SECONDS and, unless leave=False, a last one.

        Nothing moves the cursor, so the text holds no carriage returns.
        """

        def __init__(self, *args, **kwargs) -> None:
            self._next_line = monotonic() + LINE_SECONDS
            super().__init__(*args, **({"ncols": 100} | kwargs))

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            """Write a line if one is due; tqdm calls this at every update and from `close`."""
            closing = self.disable  # `close` sets it first and ends the last line by itself
            due = self.n != self.total and monotonic() >= self._next_line
            if msg == "" or not (closing or due):
                return False
            self._next_line = monotonic() + LINE_SECONDS
            self.fp.write(f"{self}" if closing else f"{self}\n")
            self.fp.flush()
            return True

        def clear(self, nolock: bool = False) -> None:
            """There is nothing to clear: a written line stays."""

    return LineBar


def is_log(stream) -> bool:
    """Whether `stream` is neither a terminal nor the output of a notebook's cell."""
    of_notebook = type(stream).__module__.startswith("ipykernel.")
    return not of_notebook and not (hasattr(stream, "isatty") and stream.isatty())


def tqdm(*args, **kwargs):
    """A progress bar with the arguments of `tqdm.tqdm`.

    PLANT_PROGRESS=text asks for a text bar, PLANT_PROGRESS=lines for lines. Without it, a bar
    writes lines if its stream (`file`, else standard error) is a log, and otherwise
    `tqdm.auto.tqdm` chooses between a widget and a text bar.
    """
    mode = os.environ.get(VARIABLE)
    if mode == "text":
        from tqdm.std import tqdm as text_bar

        return text_bar(
            *args, **({"mininterval": 0.5, "dynamic_ncols": False, "ncols": 100} | kwargs)
        )
    if mode == "lines" or is_log(kwargs.get("file") or sys.stderr):
        return _line_bar()(*args, **kwargs)
    from tqdm.auto import tqdm as bar

    return bar(*args, **kwargs)


def load_libraries(*names: str) -> None:
    """Import modules behind a bar, so that a command shows within a second that it works."""
    for name in tqdm(names, desc="load libraries", unit="library", leave=False):
        import_module(name)


@contextmanager
def without_library_bars(wanted: bool = False) -> Iterator[None]:
    """Inside, transformers draws no bars for loading and saving, unless `wanted`."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    if not wanted:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@contextmanager
def bars_as_text() -> Iterator[None]:
    """Kernels started inside draw text bars, or write lines if standard error is a log.

    Afterwards PLANT_PROGRESS has its former value.
    """
    former = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "lines" if is_log(sys.stderr) else "text"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if former is not None:
            os.environ[VARIABLE] = former
