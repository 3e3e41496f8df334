"""The committed numbers are what their digests say, and every committed record is read by this
version.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from companion import reproduce
from companion.report import digests
from plantlib.linear import stacking
from plantlib.training.records import RunRecord, agrees, load_all
from plantlib.utils.io import read_json, write_json

RESULTS = Path(__file__).resolve().parents[2] / "results"


def test_no_committed_number_has_changed():
    """`python -m companion.report.digests` rewrites the file after runs were made anew."""
    committed = read_json(RESULTS / digests.FILE)
    now = digests.digests(RESULTS)
    assert len(committed["runs"]) > 500 and {"peers.csv", "evidence.json"} <= set(
        committed["files"]
    )
    for group in ("runs", "files"):
        assert now[group] == committed[group], group


def test_a_digest_holds_outcomes_and_no_option(tmp_path):
    source = RESULTS / "runs" / "codiesp-500d-256t-minilm-lookup-s0.json"
    record = read_json(source)
    digest = digests.digest_of_record(source)
    record["params"]["train"]["epochs"] += 1
    changed = write_json(tmp_path / source.name, record)
    assert digests.digest_of_record(changed) == digest
    record["params"]["final_gains"]["planted"] += 1e-12
    assert digests.digest_of_record(write_json(changed, record)) != digest
    record = read_json(source)
    record["metrics"]["p@1"] += 1e-12
    assert digests.digest_of_record(write_json(changed, record)) != digest


def test_a_table_is_compared_by_its_numbers(tmp_path):
    for name, text in (("a", "x,1.50\n"), ("b", '"x",1.5\r\n'), ("c", "x,1.51\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    a, b, c = (digests.digest_of_file(tmp_path / f"{name}.csv") for name in "abc")
    assert a == b != c


def test_every_committed_record_is_read():
    records = load_all(RESULTS / "runs")
    assert len(records) == len(read_json(RESULTS / digests.FILE)["runs"])


def test_promoting_a_job_digests_its_records_too(tmp_path):
    name = "codiesp-500d-256t-minilm-lookup-s0"
    (tmp_path / "local").mkdir()
    shutil.copy(RESULTS / "runs" / f"{name}.json", tmp_path / "local")
    reproduce.promote(tmp_path / "local", tmp_path / "results" / "runs")
    found, committed = (
        read_json(folder / digests.FILE) for folder in (tmp_path / "results", RESULTS)
    )
    assert found["runs"] == {name: committed["runs"][name]}


def test_a_record_of_another_linear_score_is_told_apart():
    """A run whose options are the same is made again when the linear score has another version."""
    record = load_one("codiesp-500d-510t-minilm-linear-s0")
    about = record.teacher["linear"]
    for version, same in ((stacking.VERSION, True), (stacking.VERSION - 1, False)):
        other = replace(record, teacher={"linear": about | {"version": version}})
        assert agrees(other, record.params) is same
    about.pop("version", None)
    assert not agrees(record, record.params), "records from before there were versions"
    without = load_one("codiesp-500d-256t-minilm-lookup-s0")
    assert agrees(without, without.params)


def load_one(name: str) -> RunRecord:
    return RunRecord.load(RESULTS / "runs" / f"{name}.json")
