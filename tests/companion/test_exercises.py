"""The notebooks' exercises: solutions pass their checks, plausible mistakes get a hint."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from companion import exercises
from companion.exercises import NotYet
from tests.model.test_explanation import hand

ROOT = Path(__file__).resolve().parents[2]
CHECKS = [name for name, _ in inspect.getmembers(exercises) if name.startswith("check_")]


def solutions() -> dict[str, str]:
    """Name of the check -> the code of its solution."""
    text = (ROOT / "docs" / "solutions.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", text, re.S)
    return {re.search(r"check_\d\d_\d", code)[0]: code for code in codes}


def test_each_check_has_a_folded_solution_and_a_place_in_its_notebook():
    assert sorted(solutions()) == CHECKS and len(CHECKS) >= 17
    for name in CHECKS:
        [notebook] = (ROOT / "notebooks").glob(f"{name[6:8]}_*.ipynb")
        assert f"exercises.{name}(" in notebook.read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", CHECKS)
def test_the_solution_is_right(name, capsys):
    exec(compile(solutions()[name], name, "exec"), {})
    assert capsys.readouterr().out == "right\n"


def halves(log_sum_1, value_1, log_sum_2, value_2):
    return torch.logaddexp(log_sum_1, log_sum_2), (value_1 + value_2) / 2


def weights_cut(h, q, w, g, gamma, k):
    attention = (h @ q.T + gamma * g).softmax(0)
    best = attention.topk(k, dim=0)
    return (torch.zeros_like(attention).scatter_(0, best.indices, best.values) * (h @ w.T)).sum(0)


def counted_with_itself(token, label, i):
    return exercises._jaccard(token, label)


def no_scale(x, w, a, b, alpha):
    return x @ (w + b @ a).T


def one_softmax(learned, lookup, l2r, outputs):
    return ((learned + lookup + l2r).softmax(0) * outputs).sum()


def unsorted_ideal(scores, relevance, alpha):
    above = torch.sigmoid(alpha * (scores[None, :] - scores[:, None]))
    rank = 1 + above.sum(1) - above.diagonal()
    discount = 1 / torch.log2(torch.arange(2.0, len(scores) + 2))
    return 1 - (relevance / torch.log2(1 + rank)).sum() / (relevance * discount).sum()


@pytest.mark.parametrize(
    "name, wrong, hint",
    [
        ("check_01_1", lambda s, gold, k: len(set(np.argsort(-s)[:k]) & gold) / k, "min"),
        ("check_01_2", lambda s, gold, k: 1.0, "log2"),
        ("check_02_1", lambda both, token, label, n: both / n, "four cells"),
        ("check_02_2", lambda both, token, label, n: both > 0, "does not see the sign"),
        ("check_03_1", unsorted_ideal, "sorted order"),
        ("check_03_2", lambda h, g, mu: torch.zeros(6, 3), "shape"),
        ("check_04_1", weights_cut, "sum to one"),
        ("check_04_2", halves, "logaddexp"),
        ("check_05_1", torch.nn.functional.binary_cross_entropy_with_logits, "SUMMED over labels"),
        ("check_05_2", lambda a, b: float(a.mean() <= b.mean()), "with replacement"),
        ("check_06_1", counted_with_itself, "n - 1 as well"),
        ("check_07_1", lambda p, o, sd, ok: "above" if ok and o and o > p else "below", "one seed"),
        ("check_08_1", no_scale, "alpha / r"),
        ("check_08_2", lambda layers, r: sum(d * e for d, e in layers), "r x D"),
        ("check_09_1", one_softmax, "a softmax of its own"),
        ("check_09_2", lambda means, bias: [mean + bias for mean in means], "sigmoid"),
    ],
)
def test_a_usual_mistake_gets_a_hint(name, wrong, hint):
    with pytest.raises(NotYet, match=hint):
        getattr(exercises, name)(wrong)


def test_the_bias_is_no_word():
    explanation = hand()
    with pytest.raises(NotYet, match="the bias is not a word"):
        exercises.check_00_1(explanation, explanation.logit)
