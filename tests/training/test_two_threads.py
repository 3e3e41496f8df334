"""Two processes with one seed, each on two threads, end at the same model to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FIT = """
import hashlib, sys
from plantlib import prepare
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.runs import run_start
from tests.training.test_protocol import hard_corpus

start, tuning, backbone, root = sys.argv[1:]
inputs = prepare(
    hard_corpus(), backbone=backbone, max_tokens=None, root=root, frozen=tuning == "frozen",
    progress=False,
)
config = RunConfig(tuning=tuning, train=TrainConfig(epochs=2, batch_size=16))
record, model = run_start(inputs, start, 0, config=config, progress=False)
digest = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    digest.update(name.encode() + value.cpu().numpy().tobytes())
print(digest.hexdigest(), record.threshold)
"""


@pytest.mark.parametrize(
    ("start", "tuning"),
    [("lookup+linear", "frozen"), ("lookup", "full"), ("lookup+linear", "lora")],
    ids=["frozen", "full", "lora"],
)
def test_two_fits_are_equal_to_the_bit(start, tuning, backbone_folder, tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "random"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    fits = [
        subprocess.Popen(
            [sys.executable, "-c", FIT, start, tuning, backbone_folder, str(tmp_path / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in ("first", "second")
    ]
    ends = []
    for fit in fits:
        out, errors = fit.communicate()
        assert fit.returncode == 0, errors[-2000:]
        ends.append(out.splitlines()[-1])
    assert ends[0] == ends[1]
