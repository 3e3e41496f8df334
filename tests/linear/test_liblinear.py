"""LIBLINEAR in several processes gives what one gives, to the bit, and leaves no process behind."""

import os

import numpy as np
import pytest
from scipy import sparse

from plantlib.linear import liblinear, score


@pytest.fixture(scope="module")
def problem():
    """(800, 1200) weights and (800, 40) labels that are noise: a label takes so long that threads
    would work at the same time.
    """
    rng = np.random.default_rng(0)
    x = sparse.random(800, 1200, 0.2, "csr", random_state=0, dtype=np.float64)
    return x, sparse.csr_matrix(rng.random((800, 40)) < 0.2, dtype=np.int32)


@pytest.fixture(scope="module")
def alone(problem):
    """The tables that one process makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return tables(problem)


def tables(problem) -> bytes:
    table = score.svm(*problem, c=3.0)
    return table.cells.data.tobytes() + table.cells.indices.tobytes() + table.intercept.tobytes()


def test_two_fits_on_two_cores_are_equal_to_the_bit(problem, alone, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [tables(problem) for _ in range(2)] == [alone] * 2


def test_processes_share_a_large_problem_and_end_with_it(problem, alone, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(liblinear, "WORK", 1)
    seen = []
    solve_block = liblinear._solve_block
    monkeypatch.setattr(liblinear, "_solve_block", lambda *a: seen.append(1) or solve_block(*a))
    spent = sum(os.times()[2:4])
    with liblinear.workers(800, 40):
        assert tables(problem) == alone
    assert not seen, "the work was done here"
    assert sum(os.times()[2:4]) > spent, "a process has not ended"


def test_processes_are_few_and_only_for_work_that_repays_them(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert liblinear.processes(60, 8) == 1
    assert liblinear.processes(100, 500) == 2
    assert liblinear.processes(10_000, 1_000) == liblinear.MOST
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert liblinear.processes(10_000, 1_000) == 1
