"""Ablations: one switch changes one thing, finished runs are read, effects are differences."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from companion.report.report import groups
from companion.studies import ablations
from companion.studies.ablations import SWITCHES, changed
from plantlib import prepare
from plantlib.planting import starts
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.records import plain

CONFIG = RunConfig(train=TrainConfig(epochs=1))


def differences(a: dict, b: dict, path: str = "") -> set[str]:
    names = set()
    for name in a:
        where = f"{path}.{name}".strip(".")
        if isinstance(a[name], dict):
            names |= differences(a[name], b[name], where)
        elif a[name] != b[name]:
            names.add(where)
    return names


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_what_it_names_and_nothing_else(name):
    start, changes = SWITCHES[name]
    starts.parts_of(start)
    options = {key: value for key, value in changes.items() if key != ablations.WINDOWS}
    assert differences(asdict(RunConfig()), asdict(changed(RunConfig(), options))) == set(options)
    # switches of L2R and of the unplanted run change that run, all others the base
    parents = {"l2r": "queries from approxNDCG", "random": "no planting"} if changes else {}
    parent = parents.get(start, ablations.BASE)
    assert (start != SWITCHES[parent][0]) + len(changes) == (name != ablations.BASE)


def test_records_are_made_once_compared_with_the_base_and_left_out_of_the_main_table(
    prepared, tmp_path, monkeypatch
):
    names = ["base", "no planting", "teacher chi-squared", "inattention K 8", "queries frozen"]
    records = ablations.run(prepared, names, [0], config=CONFIG, results=tmp_path, progress=False)
    assert [r.system for r in records] == names and len(list(tmp_path.glob("ablation-*.json"))) == 5
    half = ablations.run(
        prepared, ["base"], [0, 1], config=CONFIG, results=tmp_path / "half", progress=False
    )
    monkeypatch.setattr(
        ablations, "run_start", lambda *_, **__: pytest.fail("a finished record was made again")
    )
    assert (
        ablations.run(prepared, names, [0], config=CONFIG, results=tmp_path, progress=False)
        == records
    )
    table = ablations.effects(records)
    assert list(table.index) == [n for n in SWITCHES if n in names] and table.index[0] == "base"
    low, middle, high = (
        table.loc["no planting", f"ndcg@5 {part}"] for part in ("low", "diff", "high")
    )
    assert low <= middle <= high
    assert ablations.effects([*half, *records[1:]]).equals(table), (
        "a seed that only the base has does not count"
    )
    assert groups(records) == [] and list(ablations.of(records).values()) == [records]
    other = RunConfig(train=TrainConfig(epochs=1, batch_size=8))
    with pytest.raises(BaseException, match="made again"):
        ablations.run(prepared, ["base"], [0], config=other, results=tmp_path, progress=False)


def test_windows_read_on_in_the_same_documents_and_labels(corpus, backbone_folder, tmp_path):
    short = prepare(corpus, backbone=backbone_folder, max_tokens=3, root=tmp_path, progress=False)
    long = ablations.streamed(short, 4)
    assert (
        long.corpus.fingerprint() == short.corpus.fingerprint()
        and long.label_space == short.label_space
    )
    assert all(np.array_equal(long.rows[s], short.rows[s]) for s in short.rows)
    assert np.array_equal(long.extra_gold, short.extra_gold) and (long.max_tokens, long.window) == (
        12,
        3,
    )
    lengths = prepare(
        corpus, backbone=backbone_folder, max_tokens=None, root=tmp_path, progress=False
    ).tokens.lengths
    assert np.array_equal(long.tokens.lengths, np.minimum(lengths, 12)) and lengths.max() > 12
    # the first window is what the base reads
    row = int(np.argmax(lengths))
    beginning = torch.from_numpy(short.features.documents(np.array([row])))
    assert torch.equal(torch.from_numpy(long.features.documents(np.array([row])))[:3], beginning)
    names = ["base", "four windows streamed", "no planting, four windows streamed"]
    records = ablations.run(
        short, names, [0], config=CONFIG, results=tmp_path / "records", progress=False
    )
    assert [r.params["max_tokens"] for r in records] == [3, 12, 12] and list(
        ablations.of(records).values()
    ) == [records]
    assert list(ablations.effects(records).index) == names
    assert (
        ablations.run(
            short, names, [0], config=CONFIG, results=tmp_path / "records", progress=False
        )
        == records
    )


def test_windows_need_a_base_of_one_window(prepared):
    with pytest.raises(ValueError, match="4 windows of max_tokens=None"):
        ablations.streamed(prepared, 4)


def test_frozen_queries_stay_where_they_were_planted(prepared, tmp_path):
    from plantlib.training.runs import run_start

    _, model = run_start(
        prepared, "lookup", config=changed(CONFIG, {"train.lr_queries": 0.0}), progress=False
    )
    slow = replace(CONFIG, train=TrainConfig(epochs=1, lr_queries=1e-30))
    fresh = run_start(prepared, "lookup", config=slow, progress=False)[1]
    assert (model.decoder.label_queries - fresh.decoder.label_queries).abs().max() < 1e-6
    assert plain(asdict(CONFIG)) != plain(asdict(changed(CONFIG, {"train.lr_queries": 0.0})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"teacher.kind": 1}, "is not an option of a run"), ({"teacher": 1}, "holds several")],
)
def test_unknown_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(RunConfig(), changes)


def test_unknown_switches_are_named(prepared, tmp_path):
    with pytest.raises(ValueError, match="switch 'gain 3' is not known"):
        ablations.run(prepared, ["gain 3"], [0], results=tmp_path)
