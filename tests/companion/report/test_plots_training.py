"""The figures of what training does to planted attention."""

import numpy as np
import pandas as pd

from companion.report import plots_training
from companion.studies import margins


def survived() -> pd.DataFrame:
    """Two trainings of one epoch and one of two, as the study writes them."""
    rows = []
    for way, seed, epochs in (
        ("trained", 0, 2),
        ("trained", 1, 2),
        ("frozen", 0, 2),
        ("slow", 0, 1),
    ):
        for epoch in range(epochs + 1):
            about = {"corpus": "c", "way": way, "epochs": epochs, "seed": seed, "split": "dev"}
            moved = 0.0 if way == "frozen" else 0.1 * epoch * (seed + 1)
            score = 0.5 if epoch else np.nan
            rows.append(
                about | {"epoch": epoch, "distance": moved, "precision": 0.4, "ndcg@5": score}
            )
    return pd.DataFrame(rows)


def test_survival_draws_means_over_seeds_of_the_trainings_asked_for():
    figure = plots_training.survival(survived(), epochs=2)
    moved, _, quality = figure.axes
    lines = {line.get_label(): line for line in moved.get_lines()}
    np.testing.assert_allclose(lines["trained"].get_ydata(), [0, 0.15, 0.3])
    np.testing.assert_allclose(lines["frozen"].get_ydata(), [0, 0, 0])
    assert not len(lines["slow"].get_ydata()), "it was trained for one epoch"
    assert quality.get_lines()[0].get_xdata().tolist() == [1, 2], (
        "nothing is scored before training"
    )


def test_margins_draw_what_each_teacher_adds():
    rows = [
        {"corpus": "c", "planted": planted, "seed": 0, "split": split, "least": 1, "most": 1}
        | {"margin": value}
        for split, values in (("training", (0.0, 3.0, 1.0)), ("test", (0.0, -1.0, 0.5)))
        for planted, value in zip(margins.PLANTED, values, strict=True)
    ]
    table = pd.DataFrame(rows).astype({"most": "Int64"})
    figure = plots_training.margins(margins.added(table, "c"))
    drawn = {
        ax.get_title(): [line.get_ydata()[0] for line in ax.get_lines()[:2]] for ax in figure.axes
    }
    assert drawn == {margins.COUNTED: [3.0, -1.0], margins.CROSS_FITTED: [1.0, 0.5]}
