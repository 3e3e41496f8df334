"""The judge on small made records: grouping, tables, figures, verdicts, the README's section, and
no records at all.
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import pandas as pd  # noqa: E402
import pytest  # noqa: E402

from companion.report import report, verdicts, worth
from plantlib.data.sources import checkout  # noqa: E402
from plantlib.training.records import RunRecord  # noqa: E402

ENVIRONMENT = {
    "python": "3",
    "torch": "2",
    "transformers": "5",
    "cpu": "cpu",
    "cores": 2,
    "commit": "c",
    "dirty": False,
}
KEYS = ("p@1", "p@3", "p@5", "ndcg@5", "psp@5", "macro_f1", "few/rp@5", "medium/rp@5", "head/rp@5")


def record(
    system,
    seed=0,
    value=0.5,
    kind="planted",
    data="toy",
    tokens=64,
    backbone="minilm",
    notebook="05_finetune",
    **more,
):
    dataset = {
        "name": data,
        "fingerprint": data + "00",
        "train": 100,
        "dev": 10,
        "test": 4,
        "labels": 7,
        "label_space": "seen",
        "synthetic": True,
    } | more.pop("dataset", {})
    planted = kind == "planted"
    history = (
        [{"epoch": e, "ndcg@5": value + e / 100, "few/rp@5": value} for e in (1, 2)]
        if planted
        else []
    )
    per_document = {
        k: [value, value, value - 0.1, value + 0.1] for k in ("p@1", "p@5", "ndcg@5", "few/rp@5")
    }
    tuning = more.get("params", {}).get("tuning", "")
    identity = f"{data}-{tokens}-{system}-{seed}-{notebook}-{backbone}{tuning}".replace(" ", "_")
    return RunRecord(
        id=identity,
        kind=kind,
        dataset=dataset,
        system=system,
        seed=seed,
        metrics=dict.fromkeys(KEYS, value),
        params={"max_tokens": tokens} | more.pop("params", {}) if planted else {},
        backbone=backbone if planted else None,
        history=history,
        per_document=per_document,
        notebook=notebook,
        environment=ENVIRONMENT,
        **more,
    )


def some() -> list[RunRecord]:
    runs = [
        record(s, seed, v + seed / 100)
        for s, v in (("random", 0.4), ("lookup", 0.5), ("l2r", 0.45))
        for seed in (0, 1)
    ]
    return [
        *runs,
        record("SVM", value=0.6, kind="linear"),
        record("bare PPMI", value=0.1, kind="teacher"),
    ]


def test_groups_split_by_tokens_and_backbone_and_share_the_peers():
    found = report.groups(
        [*some(), record("random", tokens=128), record("random", tokens=128, backbone="other")]
    )
    assert sorted(g.stem for g in found) == ["toy-100d-128t", "toy-100d-128t-other", "toy-100d-64t"]
    assert all("SVM" in {r.system for r in g.records} for g in found)


def test_a_neural_peer_stands_where_as_many_tokens_were_read():
    runs = [
        record("random", tokens=64),
        record("random", tokens=128),
        record("CAML head", kind="neural"),
    ]
    runs[2].params["read"] = 128
    assert {g.stem: "CAML head" in g.systems for g in report.groups(runs)} == {
        "toy-100d-64t": False,
        "toy-100d-128t": True,
    }


def test_a_tuned_backbone_has_its_own_table():
    tuned = record("random", value=0.7, notebook="08_backbones")
    tuned.params["tuning"] = "lora"
    assert len(report.groups([*some(), tuned])) == 1, "backbones have a report of their own"
    found = {g.stem: g for g in report.groups([*some(), tuned], elsewhere=("06",))}
    assert set(found) == {"toy-100d-64t", "toy-100d-64t-minilm-lora"}
    assert "backbone minilm-lora" in found["toy-100d-64t-minilm-lora"].about()


def test_other_fingerprints_never_share_a_table():
    other = record("random", dataset={"fingerprint": "ffffffff"}, notebook="x")
    found = report.groups([*some(), other])
    assert len(found) == 2 and len({g.stem for g in found}) == 2


def test_second_records_are_set_aside_and_ablations_left_out():
    twice = [
        *some(),
        record("random", 0, 0.9, notebook="04_other"),
        record("random", 7, notebook="06_ablations"),
    ]
    (group,) = report.groups(twice)
    assert group.set_aside == 1 and group.table().loc["random", "p@1"] == pytest.approx(0.405)
    assert group.table().loc["random", "seeds"] == 2


def test_a_mean_over_unlike_options_is_said_to_be_one():
    alike = [record("lookup", seed) for seed in range(3)]
    for made in alike:
        made.params["train"] = {"epochs": 3}
        # what a run found out is no option of it
        made.params.update(
            {"gains_tried": {"4": 0.1 * made.seed, "1": 0.1}, "gain_chosen": float(made.seed > 0)}
        )
    assert "differ" not in report.groups(alike)[0].about()
    alike[2].params["train"]["epochs"] = 4
    assert (
        "Runs of lookup differ in more than the seed: train.epochs."
        in report.groups(alike)[0].about()
    )


def test_tables_stand_in_order_with_what_they_were_measured_on(tmp_path):
    (group,) = report.groups(some())
    assert list(group.table().index) == ["random", "l2r", "lookup", "SVM", "bare PPMI"]
    text = report.write_table(group, tmp_path).read_text(encoding="utf-8")
    assert (
        "synthetic" in text
        and "seeds 0, 1" in text
        and "first 64 tokens" in text
        and "| lookup | 2 | 50.5 ± 0.7 |" in text
    )
    assert (tmp_path / "table-toy-100d-64t.md").is_file()


def test_peers_wait_for_the_first_planted_run():
    peers = [record("SVM", kind="linear"), record("bare MI", kind="teacher")]
    assert report.groups(peers) == []
    (group,) = report.groups([*peers, record("lookup")])
    assert group.baseline == "lookup" and list(group.table().index) == ["lookup", "SVM", "bare MI"]


def test_figures_are_written_and_repeat(tmp_path):
    (group,) = report.groups(some())
    first = {p.name: p.read_bytes() for p in report.figures(group, tmp_path / "a")}
    assert first == {p.name: p.read_bytes() for p in report.figures(group, tmp_path / "b")}
    assert {n.split("-")[0] for n in first} == {
        "start_comparison",
        "bucket_bars",
        "learning_curves",
    }


def test_curves_hold_every_epoch_of_every_planted_run():
    frame = report.curves(some())
    assert len(frame) == 12 and set(frame["start"]) == {"random", "lookup", "l2r"}


def paper() -> pd.DataFrame:
    rows = [
        ("A", "toy", 100, "p@1", 40.0, "yes"),
        ("B", "toy", 100, "p@1", 60.0, "yes"),
        ("C", "toy", 999, "p@1", 60.0, "yes"),
        ("D", "toy", 100, "p@1", 60.0, "no"),
        ("E", "far", "", "p@1", 60.0, "yes"),
        ("PLANT v1", "far", 25, "p@5", 30.0, "no"),
        ("v1 learned attention", "far", 25, "p@5", 25.0, "no"),
    ]
    frame = pd.DataFrame(
        rows, columns=["system", "dataset", "train", "metric", "value", "comparable"]
    )
    return frame.assign(source="s", note="n")


def test_verdicts():
    found = (
        verdicts.paper_vs_ours(paper(), report.groups(some()))
        .set_index("system")["verdict"]
        .to_dict()
    )
    assert [found[s] for s in "ABCDE"] == [
        "above",
        "below",
        "different data",
        "not comparable",
        "not run",
    ]


def test_a_verdict_says_spread_seeds_run_and_what_was_there_untrained():
    score = record("linear score", value=0.42, kind="linear")
    score.metrics["all/ndcg@5"] = 0.3
    groups = report.groups([*some(), score])
    found = verdicts.paper_vs_ours(paper(), groups).set_index("system").loc["A"]
    assert (
        found["ours"] == "50.5 ± 0.7 (2)"
        and found["difference"] == pytest.approx(10.5)
        and found["untrained"] == "42.0"
    )
    assert found["run"] == "toy-64-lookup-0-05_finetune-minilm" and found["device"] != "-"
    own = verdicts.of_start(groups, "toy", "ndcg@5", ("linear score",))
    assert own.mean == pytest.approx(30.0), "gold labels outside the label space count"
    near = paper().assign(value=50.0)
    assert (
        verdicts.paper_vs_ours(near, groups).set_index("system").loc["A", "verdict"] == "reproduced"
    ), "within one sd"


def test_bars_are_passed_missed_or_not_run():
    rows = [
        ("toy", 100, "p@1", 40.0, "lookup"),
        ("toy", 100, "p@1", 60.0, "lookup"),
        ("toy", 99, "p@1", 40.0, "lookup"),
    ]
    wanted = pd.DataFrame(rows, columns=["dataset", "train", "metric", "value", "ours"]).assign(
        system="peer"
    )
    assert list(verdicts.passed(wanted, report.groups(some()))["met"]) == ["yes", "no", "not run"]
    assert list(verdicts.passed(verdicts.bars(), [])["met"].unique()) == ["not run"]


def test_a_planted_start_is_held_to_its_controls_over_common_seeds():
    made = [
        record(s, seed, v) for s, v in (("lookup+linear", 0.6), ("linear", 0.5)) for seed in (0, 1)
    ]
    made += [record("shuffled+linear", 0, 0.55), record("SVM + J", value=0.4, kind="linear")]
    frame = worth.differences(report.groups(made)).set_index(["control", "metric"])
    assert frame["seeds"].to_dict() == {
        (c, m): n
        for c, n in (("linear", 2), ("shuffled+linear", 1), ("SVM + J", 2))
        for m in worth.METRICS
    }
    assert (
        frame.loc[("linear", "ndcg@5"), "difference"] == pytest.approx(0.1)
        and frame["p"].max() < 0.05
    )
    text = worth.table(frame.reset_index())
    assert (
        "| toy-100d-64t | lookup+linear | nDCG@5 | +10.0 [+10.0, +10.0] (2) \\* | +5.0 [+5.0, +5.0]"
        " (1) \\* |" in text
    )
    assert worth.table(worth.differences([])).startswith("No planted run")


def test_the_readme_table_compares_planted_with_unplanted_and_the_best_linear_model():
    made = [
        record(start, seed, value, data="codiesp")
        for start, value in (("lookup+linear", 0.6), ("linear", 0.5))
        for seed in (0, 1)
    ]
    made += [
        record("SVM", value=0.4, kind="linear", data="codiesp"),
        record("bare MI", value=0.45, kind="teacher", data="codiesp"),
        record("CAML head", value=0.9, kind="neural", data="codiesp"),
    ]
    little = [
        record(start, 0, value, data="cooking")
        for start, value in (("lookup+linear", 0.7), ("linear", 0.7))
    ]
    other = [record(start, 0, 0.6) for start in ("lookup+linear", "linear")]
    peer = record("SVM", value=0.3, kind="linear", data="cooking")
    lines = worth.headline(report.groups([*little, peer, *other, *made])).splitlines()
    assert lines[2].startswith(
        "| 100 case reports, diagnosis codes (CodiEsp-D) | 45.0 (bare MI) | 50."
    )
    assert lines[2].endswith("| +10.0 [+10.0, +10.0] (2) |"), "the largest difference first"
    assert lines[3].startswith("| 100 cooking questions, tags | 30.0 (SVM) | 70.0 | 70.0 | +0.0")
    assert lines[4] == "", "a corpus that has no name there is left out"


def test_published_numbers_and_bars_as_tables():
    groups = report.groups(some())
    lines = verdicts.published_table(verdicts.paper_vs_ours(paper(), groups)).splitlines()
    assert "| A | toy | 100 | P@1 40.0 | 50.5 ± 0.7 (2) | - | above |" in lines
    assert "| E | far | - | P@1 60.0 | - | - | not run |" in lines
    counted = "3 not comparable, 1 above, 1 below, 1 different data, 1 not run."
    assert lines[-1].endswith(f"of 7 published numbers: {counted}")
    assert verdicts.named("few/p@8") == "P@8 few" and verdicts.named("micro_f1") == "micro-F1"
    assert verdicts.named("head/ndcg@5") == "nDCG@5 head"
    rows = [("toy", 100, "p@1", 40.0, "lookup"), ("toy", 99, "p@1", 40.0, "lookup")]
    columns = ["dataset", "train", "metric", "value", "ours"]
    wanted = pd.DataFrame(rows, columns=columns).assign(system="peer")
    text = verdicts.bars_table(verdicts.passed(wanted, groups))
    assert "| toy | 100 | P@1 | peer | lookup | 40.0 | 50.5 ± 0.7 (2) | +10.5 | yes |" in text
    assert "| toy | 99 | P@1 | peer | lookup | 40.0 | - | - | not run |" in text


def test_ranks_among_candidates_are_not_tested_against_ranks_among_all_labels():
    made = [
        record("lookup+linear", value=0.6, params={"candidates": "linear score", "width": 8}),
        record("linear", value=0.5, params={"candidates": "linear score", "width": 8}),
        record("SVM + J", value=0.7, kind="linear"),
    ]
    groups = report.groups(made)
    pairs = set(worth.differences(groups)[["control", "metric"]].itertuples(index=False, name=None))
    assert (
        ("linear", "few/rp@5") in pairs
        and ("SVM + J", "ndcg@5") in pairs
        and ("SVM + J", "few/rp@5") not in pairs
    )
    row = groups[0].table().loc["SVM + J"]
    assert (
        row["ndcg@5 p"] < 0.05
        and row["few/rp@5 p"] != row["few/rp@5 p"]
        and "\\*" not in report.cell(row, "few/rp@5")
    )


def test_gains_stand_beside_published_ones():
    gains = verdicts.gains(paper(), report.groups(some()))
    assert gains.loc[gains["start"] == "lookup", "gain"].item() == pytest.approx(10.0)
    assert gains.iloc[0]["gain"] == pytest.approx(5.0)


def test_the_summary_has_a_row_a_data_set_and_metric():
    twice = [*some(), record("random", tokens=128), record("random", data="other", value=0.3)]
    lines = report.summary(report.groups(twice)).splitlines()
    systems = (
        "random | lookup | linear score | linear | shuffled+linear | lookup+linear | SVM | SVM + J"
        " | SVM + MI | bare MI"
    )
    assert lines[0] == f"| test, percent | {systems} |"
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        f"| {d}, 100 documents: {m}" for d in ("other", "toy") for m in ("nDCG@5", "RP@5 few")
    ]
    toy = next(line for line in lines if "toy, 100 documents: nDCG@5" in line).split(" | ")
    assert toy[1] == "40.5 ± 0.7" and toy[4] == "-" and toy[7] == "60.0 \\*", (
        "the fuller of two groups, not that of 128 tokens"
    )
    longer = [
        record("linear", tokens=512, value=0.7),
        record("lookup+linear", tokens=512, value=0.8),
    ]
    lines = report.summary(report.groups([*some(), *longer])).splitlines()
    toy = next(line for line in lines if "toy, 100 documents: nDCG@5" in line).split(" | ")
    assert toy[1] == "40.5 ± 0.7 †" and toy[4] == "70.0" and toy[6].startswith("80.0"), (
        "what a group lacks comes from another"
    )
    text = report.all_systems(report.groups(some()))
    assert "| lookup | 2 | 50.5" in text and "RP@5 few" in text


def test_no_records_at_all(tmp_path):
    assert report.load(tmp_path / "missing") == [] and report.groups([]) == []
    assert report.all_systems([]) == report.summary([]) == worth.headline([]) == report.NO_RUNS
    assert set(verdicts.paper_vs_ours(paper(), [])["verdict"]) == {"not comparable", "not run"}
    assert len(verdicts.gains(paper(), [])) == 1


def test_the_committed_paper_numbers_read_and_are_judged():
    numbers = verdicts.paper_numbers()
    assert set(numbers["comparable"]) == {"yes", "no"} and numbers["value"].between(0, 100).all()
    assert (numbers[numbers["comparable"] == "no"]["note"].str.len() > 0).all() and numbers[
        "source"
    ].str.len().min() > 0
    assert len(verdicts.paper_vs_ours(numbers, report.groups(some()))) == len(numbers)


def test_published_numbers_name_whose_they_are_and_meet_ours():
    numbers = verdicts.paper_numbers().set_index(["system", "dataset", "metric"])["value"]
    own = {
        m: numbers["BERT-LWAN, as its authors report", "eurlex57k", m] for m in ("ndcg@5", "rp@5")
    }
    rerun = {
        m: numbers["BERT-LWAN, rerun in LibMultiLabel", "eurlex57k", m] for m in ("ndcg@5", "rp@5")
    }
    assert own == {"ndcg@5": 82.9, "rp@5": 80.3} and all(own[m] > rerun[m] for m in own)
    groups = report.groups(report.load(checkout() / "results" / "runs"))
    judged = verdicts.paper_vs_ours(verdicts.paper_numbers(), groups)
    of = judged.set_index(["dataset", "system", "metric"])
    head = of.loc["eurlex57k", "BERT-LWAN, as its authors report", "head/rp@5"]
    assert head["ours"] != "-" and head["verdict"] in ("reproduced", "below", "above")
    # only records made since labels with 1 to 50 documents are measured have a number of ours
    measured = any(
        "1-50/rp@5" in r.metrics
        for g in groups
        for r in g.records
        if (g.dataset["name"], g.dataset["train"]) == ("eurlex57k", 45000)
    )
    middle = of.loc["eurlex57k", "BERT-LWAN, as its authors report", "1-50/rp@5"]
    assert (middle["verdict"] not in ("not run", "different data")) == measured
    official = judged[judged["dataset"].isin(verdicts.OFFICIAL)]
    assert len(official) == 5 and official["run"].str.startswith("official-codiesp-").all()
    means = official["ours"].str.split().str[0].astype(float)
    assert (means - official["paper"] - official["difference"]).abs().max() < 0.1


def test_on_disk_names_files_relatively(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.json").write_text("{}")
    assert report.on_disk(tmp_path, "**/*.json")["file"].tolist() == [f"{tmp_path.name}/a/x.json"]
    assert report.on_disk(tmp_path / "missing").empty


def backbone_records():
    for backbone, gain in (("minilm", 0.02), ("smollm2", 0.1)):
        for start, extra in (("random", 0.0), ("lookup", gain)):
            for seed in (0, 1):
                made = record(
                    start,
                    seed,
                    0.4 + extra,
                    backbone=backbone,
                    notebook="08_backbones",
                    times={"fine_tune": 90.0},
                    model_size={"trained_parameters": 1500, "trained_in_backbone": 500},
                )
                made.params.update(tuning="lora", train={"epochs": 2})
                yield made


def test_backbones_have_their_table_and_figures(tmp_path):
    from companion.report import backbone_report

    written = backbone_report.write([*some(), *backbone_records()], tmp_path)
    assert [p.name for p in written] == [
        "table-backbones.md",
        "backbones-ndcg@5.png",
        "backbones-few_rp@5.png",
    ]
    text = written[0].read_text(encoding="utf-8")
    row = "| toy, 100 documents | 64 | smollm2-lora | lookup | 2 | 500 + 1,000 | 0.8 | 50.0"
    assert row in text and "2 epochs for minilm-lora" in text and "SVM" not in text
    frame = backbone_report.comparison(backbone_report.groups(backbone_records()))
    assert list(frame["group"].unique()) == ["toy, minilm-lora", "toy, smollm2-lora"]
    assert frame[frame.start == "lookup"]["ndcg@5 diff"].round(3).tolist() == [0.02, 0.1], (
        "to random on the same backbone"
    )


def test_no_backbone_runs_say_how_to_make_some(tmp_path):
    from companion.report import backbone_report

    assert backbone_report.write(some(), tmp_path) == [] and not list(tmp_path.iterdir())
    assert "make run RUN=" in backbone_report.markdown(backbone_report.groups(some()))


def first_version_records():
    for system, value in (("v1", 0.6), ("random", 0.3), ("v1-no-l2r", 0.5)):
        for direction in ("forward", "backward"):
            for seed in (0, 1):
                yield record(
                    system,
                    seed,
                    value,
                    backbone=f"toy-{direction}-0123abcd",
                    notebook="09_awd_lstm",
                )
    both = "toy-forward-0123abcd + toy-backward-0123abcd"
    for system, value in (("v1 ensemble", 0.7), ("random ensemble", 0.35)):
        yield record(system, 0, value, backbone=both, notebook="09_awd_lstm")


def test_tokens_kept_and_a_tuned_encoder_stand_in_places_of_their_own():
    from companion.studies import awd_report

    frozen = {"backbone": "toy-forward-0123abcd", "notebook": "09_awd_lstm"}
    keeps = {"v1": 64, "v1-k4": 4, "v1-k16": 16, "v1-no-inattention": None, "v1-sum": 64}
    records = [record(s, 0, 0.5, **frozen, params={"keep": k}) for s, k in keeps.items()]
    frame = awd_report.kept(records)
    assert (
        set(frame["keep"].dropna()) == {4, 16, 64}
        and frame["keep"].isna().sum() == 1
        and len(frame) == 4
    )
    assert set(frame["start"]) == {"toy, 100 documents, forward"}
    assert not len(awd_report.kept(records[:2])), "two points are no sweep"
    tuned = record("v1", 0, 0.7, **frozen, params={"keep": 64, "tuning": "full"})
    table = awd_report.table([*records, tuned])
    assert table["data"].tolist() == ["toy, 100 documents"] * 5 + [
        "toy, 100 documents, encoder tuned"
    ]
    assert set(table["system"][:5]) == set(keeps)


def test_the_first_version_is_compared_with_its_whole_on_each_encoder(tmp_path):
    from companion.studies import awd_report

    frame = awd_report.table([*some(), *first_version_records()])
    assert frame["encoder"].tolist() == ["forward"] * 3 + ["backward"] * 3 + ["sum"] * 2
    assert frame["system"].tolist() == ["v1", "random", "v1-no-l2r"] * 2 + ["v1", "random"]
    assert frame["ndcg@5 diff"].round(2).fillna(0).tolist() == [
        0,
        -0.3,
        -0.1,
        0,
        -0.3,
        -0.1,
        0,
        -0.35,
    ]
    (path,) = awd_report.write([*some(), *first_version_records()], tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "| toy, 100 documents | forward | v1-no-l2r | 2 |" in text and "-30.0 [" in text
    assert (
        awd_report.write(some(), tmp_path / "none") == []
        and awd_report.markdown(some()) == awd_report.NO_RUNS
    )
    alone = [r for r in first_version_records() if r.system == "random"]
    assert awd_report.markdown(alone).splitlines()[2].endswith("| - |"), (
        "without a run of v1 no difference to it"
    )
