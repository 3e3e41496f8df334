"""The benchmark measures what it says: contenders compute the same numbers, rows are whole, bars come from the rows."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import bench_kernels as bench  # noqa: E402

pytestmark = pytest.mark.skipif(bench.CUDA, reason="on a GPU inputs are bfloat16: run `make bench` there")


@pytest.mark.parametrize("op", ["label_attention", "label_attention_bce"])
def test_contenders_compute_the_same_values_and_gradients(op):
    _, forms, baseline = bench.operations(quick=True)[op]
    found = {}
    for name in set(forms) - {"published"}:  # it has projections of its own
        made = bench.inputs(op, bench.QUICK[0])
        bench.once(forms[name], made)
        found[name] = [forms[name](made).detach(), *(leaf.grad for leaf in made["leaves"][:3])]
    for name, values in found.items():
        for a, b in zip(values, found[baseline], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_ranking_contenders_agree():
    for op in ("approx_ndcg", "lambdarank"):
        (shape,), forms, _ = bench.operations(quick=True)[op]
        made = bench.inputs(op, shape)
        assert forms["ours"](made).item() == pytest.approx(forms["pairwise"](made).item(), rel=1e-5)


def test_rows_are_whole_and_appended(tmp_path, capsys):
    out = tmp_path / "kernels.csv"
    for _ in range(2):
        bench.main(["--quick", "--only", "lambdarank", "--repetitions", "1", "--out", str(out)])
    rows = list(csv.DictReader(out.open()))
    assert [r["implementation"] for r in rows] == ["pairwise", "ours"] * 2 and list(rows[0]) == bench.COLUMNS
    assert all(float(r["both_ms"]) >= float(r["forward_ms"]) > 0 and float(r["extra_mib"]) >= 0 and r["device"] for r in rows)
    assert "price" in capsys.readouterr().out


def test_memory_sees_a_tensor_that_stays_alive():
    """The plain form keeps matrices of 4 MiB here; ours keeps blocks."""
    shape = (1, 512, 32, 2048)
    assert bench.memory("label_attention", shape, "eager", True) > 8 > bench.memory("label_attention", shape, "ours", True)


def test_bars_follow_the_rows():
    row = dict(op="label_attention", shape="B=1 T=3 D=2 L=9", time_ratio=1.0, cpu_ms=1.0)
    measured = (("eager", 10, 60), ("sdpa", 8, 10), ("ours", 8, 6))
    rows = [row | dict(implementation=n, both_ms=t, extra_mib=m) for n, t, m in measured]
    found = {what.split(": ")[1]: value <= most for what, value, most in bench.bars(rows)}
    assert found == {"time / eager": False, "time / sdpa": True, "memory / eager": True, "memory / sdpa": False}
