"""The study of planted attention on seen and unseen documents."""

import numpy as np
import pandas as pd
import pytest

from companion.report import plots_claims
from companion.studies import planted_mass
from plantlib.training.ingredients import teacher_of


def test_mass_is_that_of_the_softmax_over_planted_scores(prepared):
    frame = planted_mass.measure(prepared, gain=4.0)
    teacher = teacher_of(prepared)
    wanted = []
    for row in prepared.rows["test"]:
        for label in prepared.corpus.labels[row].indices:
            scores = 4.0 * teacher.relevance[label].toarray()[0, prepared.tokens[row]]
            weights = np.exp(scores) / np.exp(scores).sum()
            wanted.append(weights[scores > 0].sum())
    found = frame[frame["read"] == planted_mass.UNSEEN]["mass"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_label_with_one_document_is_found_there_only_by_a_teacher_that_counted_it(prepared):
    frame = planted_mass.measure(prepared)
    one = frame[frame["documents"] == 1].groupby("read")["mass"].mean()
    assert one[planted_mass.COUNTED] > 0.5 and one[planted_mass.WITHHELD] == 0.0
    frequent = frame[frame["documents"] > 10].groupby("read")["mass"].mean()
    assert abs(frequent[planted_mass.COUNTED] - frequent[planted_mass.WITHHELD]) < 0.1


def test_groups_hold_every_pair_once_and_rows_of_a_corpus_are_replaced(prepared, tmp_path):
    frame = planted_mass.measure(prepared)
    table = planted_mass.by_documents(frame)
    assert table["pairs"].sum() == len(frame)
    assert (table["least"] <= table["most"].fillna(10**9)).all()
    for corpus in ("a", "b", "a"):
        planted_mass.keep(table, corpus, tmp_path)
    kept = planted_mass.load(tmp_path)
    assert len(kept) == 2 * len(table) and set(kept["corpus"]) == {"a", "b"}
    part = kept[kept["corpus"] == "a"].drop(columns="corpus").reset_index(drop=True)
    pd.testing.assert_frame_equal(part, table, check_dtype=False)


def test_the_figure_has_a_line_for_each_reading(prepared):
    table = planted_mass.by_documents(planted_mass.measure(prepared))
    ax = plots_claims.planted_mass(table)
    assert len(ax.get_lines()) == 3 and "documents" in ax.get_xlabel()
    with pytest.raises(ValueError, match="mass"):
        plots_claims.planted_mass(table.drop(columns="mass"))
