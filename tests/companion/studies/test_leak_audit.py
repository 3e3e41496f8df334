"""The audit on the tiny corpus: zero-shot labels gain with the leaking teacher and only with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from companion.studies import leak_audit
from plantlib import RunConfig
from plantlib.planting import starts
from plantlib.training import ingredients, runs
from plantlib.training.ingredients import build_model, teacher_of, use_score
from plantlib.training.options import TrainConfig
from plantlib.training.records import load_all

QUICK = RunConfig(train=TrainConfig(epochs=1, batch_size=16))


@pytest.fixture(scope="module")
def wide(corpus, backbone_folder, tmp_path_factory):
    """The tiny corpus with its label that only test documents carry."""
    root = tmp_path_factory.mktemp("audit")
    return leak_audit.every_label(
        corpus, backbone=backbone_folder, max_tokens=None, root=root, progress=False
    )


def zero_shot(prepared) -> np.ndarray:
    return np.flatnonzero(prepared.train_counts == 0)


def untrained(prepared, start: str, seed: int = 0, teacher=None):
    """Logits (20, L) of test documents where a start begins, and its model."""
    parts = ingredients.ingredients(prepared, start, QUICK, progress=False, teacher=teacher)
    model = build_model(prepared, parts.teacher)
    options = {"planted": parts.queries, "seed": seed}
    starts.plant(model.decoder, start, parts.teacher, prepared.train_labels, **options)
    use_score(model, start.split("+"), parts.teacher, prepared)
    return logits_of(model, prepared), model


def logits_of(model, prepared) -> torch.Tensor:
    """Logits (20, L) of test documents."""
    documents = prepared.documents("test")
    batch = {
        k: v.to(model.device)
        for k, v in documents.collate(documents.rows.tolist()).items()
        if not k.startswith("label_")
    }
    with torch.inference_mode():
        return model.eval()(**batch).logits.cpu()


def trained(prepared, start: str) -> torch.Tensor:
    """Logits (20, L) of test documents after an epoch."""
    _, model = runs.run_start(prepared, start, 0, config=QUICK, progress=False)
    return logits_of(model, prepared)


def test_the_label_space_holds_labels_without_training_documents(wide, prepared):
    names = [wide.corpus.label_names[i] for i in zero_shot(wide)]
    assert names == ["only test"] and wide.corpus.L == prepared.corpus.L + 1
    assert (
        wide.about()["label_space"] == "labels with a document in any split"
        and not wide.extra_gold.any()
    )
    assert wide.features is not None and wide.key != prepared.key


@pytest.mark.parametrize("start", ["lookup", "lookup+score"])
def test_zero_shot_labels_gain_nothing_under_the_clean_protocol(wide, start):
    column = zero_shot(wide)
    assert teacher_of(wide).scores[column].nnz == 0 == teacher_of(wide).relevance[column].nnz
    planted, model = untrained(wide, start)
    bare, _ = untrained(wide, "random")
    cells = model.decoder.planted.cells(torch.arange(len(wide.vocabulary)))
    assert not np.isin(cells.labels.numpy(), column).any(), (
        "no token carries a planted bias for them"
    )
    assert torch.equal(planted[:, column], bare[:, column]), (
        "they begin, and so rank, as random attention does"
    )
    assert not torch.equal(planted, bare)


@pytest.mark.parametrize("start", ["l2r", "closed_form"])
def test_zero_shot_labels_get_no_query_from_mi_under_the_clean_protocol(wide, start):
    """They begin at a query of zero, even attention, which no teacher told; all else is as `random`
    has it.
    """
    column = zero_shot(wide)
    planted, model = untrained(wide, start)
    _, bare = untrained(wide, "random")
    queries = model.decoder.label_queries
    others = np.flatnonzero(teacher_of(wide).taught)
    assert (
        not queries[column].any()
        and queries[others].abs().sum(1).all()
        and len(others) == wide.corpus.L - len(column)
    )
    for name in ("label_outputs", "label_bias"):
        assert torch.equal(getattr(model.decoder, name), getattr(bare.decoder, name))
    with torch.no_grad():
        bare.decoder.label_queries[column] = 0.0
    even = logits_of(bare, wide)
    assert torch.equal(planted[:, column], even[:, column]), (
        "they are ranked by even attention and random outputs"
    )
    assert not torch.equal(planted, even)
    leaking = replace(wide, key="leaky")
    tainted, informed = untrained(leaking, start, teacher=leak_audit.leaky(wide))
    assert informed.decoder.label_queries[column].any() and not torch.equal(
        tainted[:, column], even[:, column]
    ), "the leak shows"


def test_zero_shot_labels_gain_nothing_by_training_either(wide):
    """With a frozen backbone a label learns from its cells or its query, and has neither here."""
    column = zero_shot(wide)
    # starts in which a zero-shot label begins alike: with random values, with a query of zero
    for pair in (("random", "lookup"), ("l2r", "closed_form")):
        first, second = (trained(wide, start) for start in pair)
        assert torch.allclose(first[:, column], second[:, column], atol=1e-6)
        assert not torch.allclose(first, second, atol=1e-3)


def test_the_leaking_teacher_knows_zero_shot_labels(wide):
    teacher = leak_audit.leaky(wide)
    column = zero_shot(wide)
    token = wide.vocabulary.index("comet")
    assert (
        teacher.scores[column[0], token] > 0
        and teacher.n_train == 100
        and teacher_of(wide).n_train == 60
    )
    planted, _ = untrained(wide, "lookup+score", teacher=teacher)
    gold = wide.corpus.labels[wide.rows["test"]][:, column].toarray().ravel() > 0
    z = planted[:, column].ravel().numpy()
    assert z[gold].min() > z[~gold].max(), "the test documents it has counted are ranked first"


def test_only_the_audit_uses_the_leaking_teacher():
    checkout = Path(leak_audit.__file__).parents[2]
    users = [
        p.name
        for package in ("plantlib", "companion")
        for p in (checkout / package).rglob("*.py")
        if re.search(r"\bleaky\(|import .*\bleaky\b", p.read_text(encoding="utf-8"))
    ]
    assert users == ["leak_audit.py"]
    assert type(leak_audit.leaky).__name__ == "function" and "leaky" not in starts.STARTS


def test_audit_runs_in_pairs_and_is_not_repeated(wide, tmp_path, monkeypatch):
    records = leak_audit.audit(
        wide, tmp_path, starts=("lookup+score", "l2r"), seeds=(0,), config=QUICK, progress=False
    )
    assert [r.system for r in records] == [
        "clean lookup+score",
        "leaky lookup+score",
        "clean l2r",
        "leaky l2r",
    ]
    assert all("-audit" in r.id and r.notebook == "leak_audit" for r in records)
    frame = leak_audit.gains(load_all(tmp_path))
    gain = frame.set_index(["start", "bucket"])["gain"]
    assert gain["lookup+score", "zero"] >= 0 and set(frame["bucket"]) == {"zero", "few", "medium"}
    assert set(frame["start"]) == {"lookup+score", "l2r"}
    text = leak_audit.paragraph(frame)
    assert (
        f"On tiny, 60 documents, all tokens, {Path(wide.backbone).name}, `lookup+score`, 1 seed:"
        " zero" in text
    )
    monkeypatch.setattr(
        runs, "run_start", lambda *a, **k: pytest.fail("a finished run was repeated")
    )
    again = leak_audit.audit(
        wide,
        tmp_path,
        starts=iter(("lookup+score", "l2r")),
        seeds=(0,),
        config=QUICK,
        progress=False,
    )
    assert again == records


def gained(data: str, start: str, **points: float) -> list[dict]:
    """Rows as `gains` returns them; two seeds lie half a point around each gain."""
    rows = [
        (bucket, seed, (mean + seed - 0.5) / 100)
        for bucket, mean in points.items()
        for seed in (0, 1)
    ]
    return [
        {
            "data": data,
            "start": start,
            "seed": seed,
            "bucket": bucket,
            "clean": 0.01,
            "leaky": 0.01 + gain,
            "gain": gain,
        }
        for bucket, seed, gain in rows
    ]


def test_conclusions_are_drawn_per_start():
    lookup = gained("x", "lookup", zero=-0.01, few=7.7, medium=6.9, head=0.5)
    score = gained("x", "lookup+score", zero=96.2, few=67.1, medium=24.7, head=2.2)
    paragraph = leak_audit.paragraph(pd.DataFrame(lookup + score))
    assert (
        "`lookup` gains most on few labels (+7.7 points), nothing on zero; `lookup+score` gains"
        " most on zero labels" in paragraph
    )
    assert (
        "(+96.2 points). Such gains come" in paragraph
        and "zero 1.0 to 1.0 (0.0); few 1.0 to 8.7 (+7.7)" in paragraph
    )
    assert "48.1" not in paragraph and "-0.0" not in paragraph, (
        "a mean over starts is of no system, and nothing has no sign"
    )
    other = gained("y", "lookup", zero=0.0, few=-1.0)
    paragraph = leak_audit.paragraph(pd.DataFrame(lookup + other))
    assert (
        "on x, `lookup` gains most on few labels (+7.7 points), nothing on zero; on y, `lookup`"
        " gains nothing on" in paragraph
    )


def test_starts_are_given_by_name(wide, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="'lokup' is not known"):
        leak_audit.audit(wide, tmp_path, starts=("random", "lokup"), progress=False)
    assert not list(tmp_path.iterdir()), "before the first run"
    requested = []
    monkeypatch.setattr(leak_audit, "every_label", lambda *a, **k: wide)
    monkeypatch.setattr(leak_audit, "audit", lambda *a, **k: requested.append(k) or [])
    leak_audit.main(["tiny"])
    leak_audit.main(["tiny", "--starts", "l2r", "closed_form", "--seeds", "0"])
    assert requested == [
        {"starts": list(leak_audit.STARTS), "seeds": [0, 1, 2]},
        {"starts": ["l2r", "closed_form"], "seeds": [0]},
    ]
    assert "No audit runs yet" in capsys.readouterr().out


def test_no_runs_no_claims():
    frame = leak_audit.gains([])
    assert frame.empty and "No audit runs yet" in leak_audit.paragraph(frame)
