"""The kernel benchmark: contenders compute the same numbers, and bars follow the rows."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_kernels as bench  # noqa: E402

from tests.tolerances import assert_within_rounding, near  # noqa: E402

OPERATIONS = 110  # tokens, units and labels of the quick shape

pytestmark = pytest.mark.skipif(
    bench.CUDA, reason="on a GPU inputs are bfloat16: run `make bench` there"
)


@pytest.mark.parametrize("op", ["label_attention", "label_attention_bce"])
def test_contenders_compute_the_same_values_and_gradients(op):
    _, forms, baseline = bench.operations(quick=True)[op]
    results = {}
    for name in set(forms) - {"published"}:  # which projects its inputs
        inputs = bench.inputs(op, bench.QUICK[0])
        bench.once(forms[name], inputs)
        results[name] = [
            forms[name](inputs).detach(),
            *(leaf.grad for leaf in inputs["leaves"][:3]),
        ]
    for name, values in results.items():
        for a, b in zip(values, results[baseline], strict=True):
            assert_within_rounding(a, b, OPERATIONS, name=name)


def test_ranking_contenders_agree():
    for op in ("approx_ndcg", "lambdarank"):
        (shape,), forms, _ = bench.operations(quick=True)[op]
        inputs = bench.inputs(op, shape)
        assert forms["ours"](inputs).item() == near(
            forms["pairwise"](inputs).item(), operations=2 * shape[-1]
        )


def test_quick_run_writes_every_contender_and_column(tmp_path, capsys):
    out = tmp_path / "kernels.csv"
    bench.main(["--quick", "--repetitions", "1", "--out", str(out)])
    rows = list(csv.DictReader(out.open()))
    expected = [
        (op, name) for op, (_, forms, _) in bench.operations(quick=True).items() for name in forms
    ]
    assert [(r["op"], r["implementation"]) for r in rows] == expected and list(
        rows[0]
    ) == bench.COLUMNS
    for row in rows:
        # toy tensors are smaller than a page of memory
        assert (
            float(row["extra_mib"]) >= 0
            and float(row["bandwidth_gbs"]) > 0
            and row["device"]
            and row["versions"]
        )
        timed = (
            []
            if row["op"] == "label_attention_memory"
            else ["forward_ms", "both_ms", "cpu_ms", "time_ratio"]
        )
        assert all(float(row[c]) > 0 for c in timed)
        assert (
            not timed
            or not row["op"].startswith("label_attention")
            or float(row["limit_share"]) > 0
        )
    assert "price" in capsys.readouterr().out


def test_rows_are_appended_and_an_unknown_operation_is_refused(tmp_path):
    out = tmp_path / "kernels.csv"
    for _ in range(2):
        bench.main(["--quick", "--only", "lambdarank", "--repetitions", "1", "--out", str(out)])
    assert [r["implementation"] for r in csv.DictReader(out.open())] == ["pairwise", "ours"] * 2
    with pytest.raises(SystemExit):
        bench.main(["--quick", "--only", "listnet", "--out", str(out)])


def test_memory_sees_a_tensor_that_stays_alive():
    """The plain form stores several matrices (tokens, labels), ours blocks and less than one.

    A matrix is so large that what libraries allocate for themselves, some MiB, does not matter.
    """
    tokens, labels = 2048, 8192
    matrix = tokens * labels * 4 / 2**20
    plain, ours = (
        bench.memory("label_attention", (1, tokens, 32, labels), name, True)
        for name in ("eager", "ours")
    )
    assert plain > 2 * matrix
    assert ours < matrix


def test_bars_follow_the_rows():
    row = dict(op="label_attention", shape="B=1 T=3 D=2 L=9", time_ratio=1.0, cpu_ms=1.0)
    measured = (("eager", 10, 60), ("sdpa", 8, 10), ("ours", 8, 6))
    rows = [row | dict(implementation=n, both_ms=t, extra_mib=m) for n, t, m in measured]
    results = {what.split(": ")[1]: value <= most for what, value, most in bench.bars(rows)}
    assert results == {
        "time / eager": False,
        "time / sdpa": True,
        "memory / eager": True,
        "memory / sdpa": False,
    }
    assert [bench.verdict(v, 1.0) for v in (0.5, 1.0, 1.5, float("nan"))] == [
        "yes",
        "yes",
        "no",
        "not measured",
    ]


def test_what_ran_out_of_memory_has_no_ratio():
    ours = dict(
        op="label_attention",
        shape="B=8 T=3 D=2 L=9",
        implementation="ours",
        cpu_ms="",
        both_ms=8.0,
        forward_ms=2.0,
        extra_mib=6.0,
        limit_share=0.5,
        forward_memory=1.1,
    )
    rows = [
        ours,
        dict(ours, implementation="published", both_ms=32.0),
        dict(
            op=ours["op"],
            shape=ours["shape"],
            implementation="eager",
            extra_mib=bench.OUT_OF_MEMORY,
        ),
    ]
    results = {
        what.split(": ")[1]: bench.verdict(value, most) for what, value, most in bench.bars(rows)
    }
    assert results == {
        "time / published": "yes",
        "forward time / its limit": "yes",
        "time / its limit": "no",
        "forward memory / inputs and outputs": "yes",
        "memory / eager": "not measured",
        "memory / sdpa": "not measured",
    }


def test_operations_counted_are_those_of_the_form():
    shape = (1, 64, 32, 10)
    plain = bench.flop("label_attention", shape, "eager")
    assert (
        plain == 6 * 2 * 64 * 32 * 10
        and bench.flop("label_attention", shape, "ours") * 6 == plain * 7
    )
    assert bench.flop("label_attention", shape, "published") - plain == 3 * 2 * 2 * 32 * 32 * (
        64 + 10
    )
