"""Steps, epochs and sentences of the convergence study, against values worked out by hand."""

from __future__ import annotations

import pytest

from companion.studies import convergence
from plantlib.training.records import RunRecord


def run_of(
    start: str, seed: int, values: list[float], allowed: int, first: int = 1, nested: bool = True
) -> RunRecord:
    """A record with dev nDCG@5 by epoch, from epoch `first` on.

    allowed: most epochs; nested: the training options are nested, as in all but runs on candidates.
    """
    environment = {
        "python": "3",
        "torch": "2",
        "transformers": "5",
        "cpu": "c",
        "cores": 2,
        "commit": "c",
        "dirty": False,
    }
    dataset = {
        "name": "toy",
        "fingerprint": "f",
        "train": 100,
        "dev": 10,
        "test": 4,
        "labels": 7,
        "label_space": "seen",
        "synthetic": True,
    }
    options = {"batch_size": 16, "epochs": allowed} if nested else {"epochs": allowed}
    history = [{"epoch": i, "seconds": 10.0 * i, "ndcg@5": v} for i, v in enumerate(values, first)]
    return RunRecord(
        id=f"toy-{start}-{seed}-long",
        kind="planted",
        dataset=dataset,
        system=start,
        seed=seed,
        metrics={},
        params=({"train": options} if nested else options) | {"max_tokens": 8},
        notebook="convergence",
        history=history,
        environment=environment,
    )


def sentence_of(records: list[RunRecord]) -> str:
    return convergence.sentence("toy", convergence.reached(convergence.steps(records)))


def test_the_sentence_says_where_the_best_epoch_is_the_last_one_allowed():
    rising = [run_of("random", seed, [0.1, 0.2, 0.3], allowed=3) for seed in (0, 1)]
    planted = [run_of("lookup", seed, [0.3, 0.4, 0.35], allowed=3) for seed in (0, 1)]
    table = convergence.reached(convergence.steps(rising + planted))
    assert table["ended"].to_dict() == {"random": 2, "lookup": 0}
    assert (
        "best dev nDCG@5, 30.0 (the last epoch allowed in 2 of 2 seeds); `lookup` reaches"
        in sentence_of(rising + planted)
    )
    fallen = run_of("random", 1, [0.1, 0.3, 0.2], allowed=3)
    assert "30.0 (the last epoch allowed in 1 of 2 seeds)." in sentence_of([rising[0], fallen])
    assert "30.0." in sentence_of([fallen]), "dev fell before the epochs ended"


@pytest.mark.parametrize(
    ("values", "allowed", "first", "nested", "ended"),
    [
        # stopped early, on another metric: more epochs were allowed
        ([0.1, 0.2, 0.3], 20, 1, True, 0),
        ([0.1, 0.2, 0.3], 3, 1, True, 1),
        ([0.0, 0.1, 0.2, 0.3], 3, 0, False, 1),  # on candidates dev is read before training too
        ([0.0, 0.1, 0.2], 3, 0, False, 0),
        ([0.1, 0.3, 0.3], 3, 1, True, 0),  # the earliest if tied
    ],
)
def test_the_last_epoch_allowed_differs_from_early_stopping(values, allowed, first, nested, ended):
    records = [run_of("random", 0, values, allowed, first, nested)]
    assert convergence.reached(convergence.steps(records)).loc["random", "ended"] == ended
    assert ("the last epoch allowed" in sentence_of(records)) is bool(ended)
