"""The audit on the tiny corpus: clean zero-shot labels gain nothing, leaky ones do, and the leaky teacher is out of reach."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from plantlib import RunConfig, leak_audit, planting, runs
from plantlib.results import load_all
from plantlib.train import TrainConfig

QUICK = RunConfig(train=TrainConfig(epochs=1, batch_size=16))


@pytest.fixture(scope="module")
def wide(corpus, backbone_folder, tmp_path_factory):
    """The tiny corpus with its label that only test documents carry."""
    root = tmp_path_factory.mktemp("audit")
    return leak_audit.every_label(corpus, backbone=backbone_folder, max_tokens=None, root=root, progress=False)


def zero_shot(prepared) -> np.ndarray:
    return np.flatnonzero(prepared.train_counts == 0)


def untrained(prepared, start: str, seed: int = 0):
    """Logits (20, L) of test documents where a start begins, and its model."""
    teacher = prepared.teacher()
    model = runs.build_model(prepared, teacher)
    planting.plant(model.decoder, start, teacher, prepared.train_labels, config=planting.StartConfig(seed=seed))
    runs.use_score(model, start.split("+"), teacher, prepared)
    documents = prepared.documents("test")
    batch = {k: v.to(model.device) for k, v in documents.collate(documents.rows.tolist()).items() if not k.startswith("label_")}
    with torch.inference_mode():
        return model.eval()(**batch).logits, model


def test_the_label_space_holds_labels_without_training_documents(wide, prepared):
    names = [wide.corpus.label_names[i] for i in zero_shot(wide)]
    assert names == ["only test"] and wide.corpus.L == prepared.corpus.L + 1
    assert wide.about()["label_space"] == "labels with a document in any split" and not wide.extra_gold.any()
    assert wide.features is not None and wide.key != prepared.key


@pytest.mark.parametrize("start", ["lookup", "lookup+score"])
def test_zero_shot_labels_gain_nothing_under_the_clean_protocol(wide, start):
    column = zero_shot(wide)
    assert wide.teacher().scores[column].nnz == 0 == wide.teacher().relevance[column].nnz
    planted, model = untrained(wide, start)
    bare, _ = untrained(wide, "random")
    cells = model.decoder.planted.cells(torch.arange(len(wide.vocabulary)))
    assert not np.isin(cells.labels.numpy(), column).any(), "no token carries a planted bias for them"
    assert torch.equal(planted[:, column], bare[:, column]), "they begin, and so rank, as random attention does"
    assert not torch.equal(planted, bare)


def test_zero_shot_labels_gain_nothing_by_training_either(wide):
    """A frozen backbone: what a label learns depends on its own cells alone, and the clean teacher has none."""
    column, logits = zero_shot(wide), {}
    for start in ("random", "lookup"):
        _, model = runs.run_start(wide, start, 0, config=QUICK, progress=False)
        documents = wide.documents("test")
        batch = documents.collate(documents.rows.tolist())
        batch = {k: v.to(model.device) for k, v in batch.items() if not k.startswith("label_")}
        with torch.inference_mode():
            logits[start] = model(**batch).logits.cpu()
    assert torch.allclose(logits["random"][:, column], logits["lookup"][:, column], atol=1e-6)
    assert not torch.allclose(logits["random"], logits["lookup"], atol=1e-3)


def test_the_leaky_teacher_tells_zero_shot_labels(wide):
    tainted, column = leak_audit.leaky(wide), zero_shot(wide)
    teacher = tainted.teacher()
    token = wide.vocabulary.index("comet")
    assert teacher.scores[column[0], token] > 0 and teacher.n_train == 100 and wide.teacher().n_train == 60
    planted, _ = untrained(tainted, "lookup+score")
    gold = wide.corpus.labels[wide.rows["test"]][:, column].toarray().ravel() > 0
    z = planted[:, column].ravel().numpy()
    assert z[gold].min() > z[~gold].max(), "it ranks the very documents it was told of first"


def test_the_leaky_teacher_is_named_in_this_module_alone():
    package = Path(leak_audit.__file__).parent
    users = [p.name for p in package.rglob("*.py") if re.search(r"\b_?leaky\b", p.read_text(encoding="utf-8"), re.I)]
    assert users == ["leak_audit.py"]
    assert type(leak_audit.leaky).__name__ == "function" and "leaky" not in planting.STARTS


def test_audit_runs_in_pairs_and_is_not_repeated(wide, tmp_path, monkeypatch):
    records = leak_audit.audit(wide, tmp_path, starts=("lookup+score",), seeds=(0,), config=QUICK, progress=False)
    assert [r.system for r in records] == ["clean lookup+score", "leaky lookup+score"]
    assert all("-audit" in r.id and r.notebook == "leak_audit" for r in records)
    frame = leak_audit.gains(load_all(tmp_path))
    assert frame.set_index("bucket").loc["zero", "gain"] >= 0 and set(frame["bucket"]) == {"zero", "few", "medium"}
    text = leak_audit.paragraph(frame)
    assert f"On tiny, 60 documents, all tokens, {Path(wide.backbone).name}, `lookup+score`, 1 seed: zero" in text
    monkeypatch.setattr(runs, "run_start", lambda *a, **k: pytest.fail("a finished run was repeated"))
    assert leak_audit.audit(wide, tmp_path, starts=("lookup+score",), seeds=(0,), config=QUICK, progress=False) == records


def test_no_runs_no_claims():
    frame = leak_audit.gains([])
    assert frame.empty and "No audit runs yet" in leak_audit.paragraph(frame)
