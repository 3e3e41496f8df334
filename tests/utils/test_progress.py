"""Progress bars: lines in a log, text bars in a terminal and under papermill, widgets elsewhere."""

import io
import os
import subprocess
import sys

import pytest

from plantlib.utils import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A list that holds the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute_and_a_last_one(clock):
    log = io.StringIO()
    with progress.tqdm(total=1000, desc="steps", file=log, mininterval=0, miniters=1) as bar:
        for step in range(1000):
            clock[0] = (step + 1) / 1000 * 90  # 1,000 steps in 90 seconds
            bar.update()
            bar.set_postfix(loss=step)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue() and log.getvalue().endswith("\n")
    assert [line.split("%")[0] for line in lines] == ["steps:  33", "steps:  67", "steps: 100"]


def test_a_bar_that_leaves_nothing_writes_no_last_line(clock):
    log = io.StringIO()
    for _ in progress.tqdm(range(5), file=log, leave=False):
        pass
    assert log.getvalue() == ""


def test_nested_bars_write_whole_lines(clock):
    log = io.StringIO()
    for _ in progress.tqdm(range(2), desc="outer", file=log):
        for _ in progress.tqdm(range(3), desc="inner", file=log):
            pass
    lines = log.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["inner", "inner", "outer"]
    assert all("100%" in line for line in lines)


def test_a_terminal_keeps_the_bar_that_is_drawn_over():
    terminal = Terminal()
    for _ in progress.tqdm(range(3), file=terminal):
        pass
    assert "\r" in terminal.getvalue()


@pytest.mark.parametrize(("stream", "mode"), [(io.StringIO(), "lines"), (Terminal(), "text")])
def test_kernels_of_papermill_follow_the_stream_of_the_caller(monkeypatch, stream, mode):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv(progress.VARIABLE, "before")
    with progress.bars_as_text():
        assert os.environ[progress.VARIABLE] == mode
        bar = progress.tqdm(range(3), disable=True)
        assert (type(bar).__name__ == "LineBar") == (mode == "lines")
    assert os.environ[progress.VARIABLE] == "before"


def test_the_output_of_a_notebook_cell_is_no_log():
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    assert not progress.is_log(stream) and progress.is_log(io.StringIO())


def test_a_program_whose_standard_error_is_a_pipe_writes_lines():
    code = "from plantlib.utils.progress import tqdm\nfor _ in tqdm(range(10**5)): pass"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "100%" in finished.stderr
    assert "\r" not in finished.stderr
