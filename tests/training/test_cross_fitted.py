"""A training document reads its own labels' lists as if it had not been counted; docs/method.md,
"The cross-fitted teacher". What is withheld is computed in tests/teacher/test_crossfit.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from plantlib import RunConfig
from plantlib.planting import l2r, starts
from plantlib.teacher import mig
from plantlib.teacher.crossfit import withhold
from plantlib.teacher.mig import TeacherConfig
from plantlib.training.ingredients import build_model, ingredients, use_score
from plantlib.training.options import TrainConfig
from plantlib.training.runs import run_start


def planted_model(prepared, teacher, start: str):
    """A model of `start` with this teacher; outputs are drawn, so that attention shows."""
    model = build_model(prepared, teacher)
    starts.plant(model.decoder, start, teacher, prepared.train_labels)
    use_score(model, start.split("+"), teacher, prepared)
    torch.nn.init.normal_(
        model.decoder.label_outputs, std=0.5, generator=torch.Generator().manual_seed(0)
    )
    return model.eval()


@pytest.mark.parametrize("start", ["lookup", "lookup+score"])
def test_logits_are_those_of_a_teacher_that_has_not_counted_the_document(prepared, start):
    made = ingredients(prepared, start, RunConfig(), progress=False)
    model = planted_model(prepared, made.teacher, start)
    documents = prepared.documents("train", withheld=made.withheld)
    checked = 0
    for i, row in enumerate(prepared.rows["train"][:25]):
        gold = prepared.corpus.labels[row].indices
        others = np.arange(len(prepared.rows["train"])) != i
        again = mig.teach(prepared.train_tokens[others], prepared.train_labels[others])
        expected = planted_model(prepared, again, start)
        if expected.teacher_score is not None:  # idf and scale stay those of all rows
            expected.teacher_score.idf.copy_(model.teacher_score.idf)
            expected.teacher_score.scale.copy_(model.teacher_score.scale)
        own = documents.collate([int(row)])
        plain = prepared.documents("train").collate([int(row)])
        with torch.no_grad():
            logits = model(**own).logits[0, gold]
            wanted = expected(**plain).logits[0, gold]
            unfitted = model(**plain).logits[0, gold]
        # float32 sums over some forty tokens
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
        checked += int((logits - unfitted).abs().max() > 1e-2) if len(gold) else 0
    assert checked > 10, "withholding changes what most documents read"


def test_a_batch_holds_the_changes_of_each_of_its_documents(prepared):
    made = ingredients(prepared, "lookup", RunConfig(), progress=False)
    model = planted_model(prepared, made.teacher, "lookup")
    documents = prepared.documents("train", withheld=made.withheld)
    rows = [int(row) for row in prepared.rows["train"][[4, 22, 0, 7]]]
    with torch.no_grad():
        together = model(**documents.collate(rows)).logits
        alone = torch.cat([model(**documents.collate([row])).logits for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_dev_and_test_read_the_whole_teacher(prepared):
    for split in ("dev", "test"):
        batch = prepared.documents(split).collate([int(prepared.rows[split][0])])
        assert not any(name.startswith(("cell_", "score_")) for name in batch)


def test_the_closed_form_equals_one_with_the_lists_of_each_document(prepared):
    """Q' = (H'H)^-1 sum over documents of H_d' G_d, G_d without the document's own counts."""
    rows = prepared.rows["train"]
    teacher = mig.teach(prepared.train_tokens, prepared.train_labels)
    withheld = withhold(prepared.train_tokens, prepared.train_labels, teacher)
    features = prepared.features
    queries = l2r.closed_form(features, rows, teacher, False, withheld)
    hidden = np.concatenate([features.documents([row]) for row in rows]).astype(np.float64)
    targets = []
    for i, row in enumerate(rows):
        relevance = teacher.relevance.toarray()
        tokens, labels, change, _ = withheld.document(i)
        relevance[labels, tokens] += change
        targets.append(relevance[:, features.tokens[row]].T)
    target = np.concatenate(targets)
    centred = hidden - hidden.mean(0)
    gram = centred.T @ centred
    ridge = l2r.RIDGE * np.trace(gram) / gram.shape[0] + 1e-8
    wanted = np.linalg.solve(gram + ridge * np.eye(len(gram)), centred.T @ target).T
    plain = l2r.closed_form(features, rows, teacher, False).numpy()
    error = np.abs(queries.numpy() - wanted).max()
    assert error < 1e-3 * np.abs(wanted).max() < np.abs(plain - wanted).max()


def test_records_tell_what_documents_read(prepared):
    config = RunConfig(train=TrainConfig(epochs=1))
    fitted, _ = run_start(prepared, "lookup", config=config, progress=False)
    teacher = TeacherConfig(cross_fitted=False)
    counted, _ = run_start(
        prepared, "lookup", config=replace(config, teacher=teacher), progress=False
    )
    assert fitted.params["teacher"]["cross_fitted"] is True
    assert counted.params["teacher"]["cross_fitted"] is False
    assert fitted.history[0]["train_loss"] != counted.history[0]["train_loss"]
