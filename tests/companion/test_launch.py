"""Several processes: the loss curve of one process with twice the accumulation; what dropout and
uneven batches change; a killed launch goes on to the same numbers; divided weights (FSDP).

Real `accelerate launch` with two CPU processes over gloo and the configuration files that ship in
runs/accelerate.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from companion import launch
from plantlib import PlantConfig, PlantModel, RunRecord
from plantlib.training import sharding
from tests.conftest import WINDOW
from tests.tolerances import near

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "runs" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
DDP = [*LAUNCH, str(FILES / "ddp_cpu.yaml")]
FSDP = [*LAUNCH, str(FILES / "fsdp.yaml")]


# the losses of one curve differ by rounding that 36 steps of Adam enlarge; a lost gradient, or a
# document that counts twice, changes them by a hundredth
LOSS = 1e-4

# the same command, waiting to be killed once a checkpoint stands
SLOW = """
import sys, time
from pathlib import Path
from companion import launch
from plantlib.training import train

class Slow(train._Progress):
    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if list(Path(args.output_dir).glob("checkpoint-*/trainer_state.json")):
            time.sleep(60)

train._Progress = Slow
sys.exit(launch.main(sys.argv[1:]))
"""


# the same command, writing down which documents of train each process reads
READS = """
import os, sys
from companion import launch
from plantlib.training.inputs import Documents

collate = Documents.collate

def writing(self, rows, **options):
    if len(self.rows) == 60:
        with open(sys.argv[2] + "." + os.environ.get("RANK", "0"), "a") as file:
            file.write(" ".join(map(str, rows)) + "\\n")
    return collate(self, rows, **options)

Documents.collate = writing
sys.exit(launch.main(sys.argv[1:2] + sys.argv[3:]))
"""


# the same command with the weights divided; accelerate would do so on GPUs alone
SHARDS = """
import sys
import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from companion import launch
from plantlib.training import sharding

torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
gather = sharding.whole_values

def divided(trained):
    units = [m for m in trained.modules() if isinstance(m, FSDPModule)]
    assert len(units) > 2 and trained in units, "a layer, the backbone and the rest"
    return gather(trained)

sharding.whole_values = divided
sys.exit(launch.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def job(corpus, backbone_folder, tmp_path_factory):
    """A YAML run of the tiny corpus on the tiny backbone, and a function that starts it."""
    home = tmp_path_factory.mktemp("launch")
    corpus.save(home / "corpus")
    parameters = {
        "dataset": str(home / "corpus"),
        "backbones": [backbone_folder],
        "tuning": "lora",
        "starts": ["l2r"],
        "seeds": [0],
        "tokens": None,
        "epochs": 3,
        "batch_size": 5,
        "lr_backbone": 0.01,
        "lora_dropout": 0.0,
        "notebook": None,
    }
    (home / "run.yaml").write_text(yaml.safe_dump({"parameters": parameters}))

    (home / "slow.py").write_text(SLOW)
    (home / "reads.py").write_text(READS)
    (home / "shards.py").write_text(SHARDS)

    def start(
        name: str,
        *command: str,
        accumulation: int,
        port: int | None = None,
        script: str | None = None,
        more: tuple[str, ...] = (),
    ) -> subprocess.Popen:
        script = [str(home / script)] if script else ["-m", "companion.launch"]
        arguments = [str(home / "run.yaml")]
        arguments += [str(home / f"{name}.reads")] * (script == [str(home / "reads.py")])
        extra = ["--main_process_port", str(port)] if port else []
        overrides = [
            f"accumulation={accumulation}",
            f"results={home / name}",
            f"root={home / (name + '-artefacts')}",
            *more,
        ]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TOKENIZERS_PARALLELISM": "false",
            "ACCELERATE_TORCH_DEVICE": "cpu",
        }
        return subprocess.Popen(
            [*command, *extra, *script, *arguments, *overrides],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return home, start


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def alone(job):
    """The record of one process with twice the accumulation."""
    home, start = job
    output = finish(start("alone", sys.executable, accumulation=2))
    assert output.count("RunRecord(") == 1 and "most of it" in output, (
        "states its memory and its record"
    )
    return RunRecord.load(next((home / "alone").glob("*.json")))


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL the launcher and the processes it started, which run in other sessions."""
    import psutil

    launcher = psutil.Process(process.pid)
    for running in (launcher, *launcher.children(recursive=True)):
        running.kill()
    process.communicate(timeout=60)


def check_same(record: RunRecord, expected: RunRecord) -> None:
    assert (
        [row["epoch"] for row in record.history]
        == [row["epoch"] for row in expected.history]
        == [1, 2, 3]
    )
    for ours, theirs in zip(record.history, expected.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=LOSS)
        assert ours["ndcg@5"] == pytest.approx(theirs["ndcg@5"], abs=LOSS)
    assert record.metrics == pytest.approx(expected.metrics, abs=LOSS, nan_ok=True)
    assert record.history[-1]["train_loss"] < record.history[0]["train_loss"]


def test_two_processes_are_one_with_twice_the_accumulation(job, alone):
    home, start = job
    output = finish(start("two", *DDP, accumulation=1, port=free_port()))
    assert output.count("RunRecord(") == 1, "one process prints"
    [path] = (home / "two").glob("*.json")
    check_same(RunRecord.load(path), alone)


def test_divided_weights_train_to_the_numbers_of_whole_ones(job, corpus):
    """FSDP: every document in one window, and none empty, so that processes keep in step."""
    home, start = job
    words = [text.strip() or "again" for text in corpus.texts]
    replace(corpus, texts=words).save(home / "words")
    options = (f"dataset={home / 'words'}", f"tokens={WINDOW}", "epochs=2", "starts=[lookup]")
    two = start("shards", *FSDP, accumulation=1, port=free_port(), script="shards.py", more=options)
    folders = (f"results={home / 'one'}", f"root={home / 'one-artefacts'}")
    assert launch.main([str(home / "run.yaml"), "accumulation=2", *options, *folders]) == 0
    finish(two)
    divided, whole = (
        RunRecord.load(next((home / name).glob("*.json"))) for name in ("shards", "one")
    )
    assert len(divided.history) == 2
    for ours, theirs in zip(divided.history, whole.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=LOSS)
        assert ours["ndcg@5"] == pytest.approx(theirs["ndcg@5"], abs=LOSS)
    assert divided.metrics == pytest.approx(whole.metrics, abs=LOSS, nan_ok=True)
    assert divided.model_size == whole.model_size


def test_divided_weights_refuse_what_would_hang(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for lengths in ([3, 15], [0, 14]):
        with pytest.raises(ValueError, match="they need 1 to 14, what the backbone reads at once"):
            sharding.check_documents(np.array(lengths), 14)
    sharding.check_documents(np.array([1, 14]), 14)
    frozen = PlantModel(PlantConfig(hidden_size=24, id2label={0: "I10"}))
    with pytest.raises(ValueError, match="FSDP divides the layers of a backbone that is trained"):
        with sharding.sharded(frozen):
            pass


def test_dropout_and_uneven_batches_are_as_the_guide_says(job):
    """Each process draws its own dropout; some documents are read twice, so that each process has
    as many batches; two launches are equal to the bit, and one process trains otherwise.
    """
    home, start = job
    options = ("batch_size=7", "lora_dropout=0.3", "epochs=1", "starts=[lookup]")
    launches = {"first": (*DDP,), "second": (*DDP,), "single": (sys.executable,)}
    records = {}
    for name, command in launches.items():
        ports = {"port": free_port()} if command == (*DDP,) else {}
        accumulation = 1 if ports else 2
        finish(
            start(
                name, *command, accumulation=accumulation, script="reads.py", more=options, **ports
            )
        )
        records[name] = RunRecord.load(next((home / name).glob("*.json")))

    # 60 documents are 8 batches of 7 and one of 4: the tenth batch begins again at the front
    def batches(name: str, rank: int) -> list[list[int]]:
        lines = (home / f"{name}.reads.{rank}").read_text().splitlines()
        return [[int(row) for row in line.split()] for line in lines]

    shared = [batches("first", rank) for rank in (0, 1)]
    assert [len(part) for part in shared] == [5, 5] and len(batches("single", 0)) == 9
    rows = sorted(row for part in shared for batch in part for row in batch)
    assert set(rows) == set(range(60)) and len(rows) == 70
    assert sorted(row for batch in batches("single", 0) for row in batch) == list(range(60))

    first, second, single = records.values()
    assert second.metrics == near(first.metrics, operations=0)
    assert second.history[0]["train_loss"] == first.history[0]["train_loss"]
    assert abs(single.history[0]["train_loss"] - first.history[0]["train_loss"]) > LOSS


def test_a_killed_launch_continues_at_its_checkpoint(job, alone):
    """Both processes are killed after a checkpoint; a second launch ends with the same numbers."""
    home, start = job
    victim = start("killed", *DDP, accumulation=1, port=free_port(), script="slow.py")
    checkpoints = home / "killed-artefacts" / "checkpoints"
    deadline = time.monotonic() + 1200
    while not list(checkpoints.glob("*/checkpoint-*/trainer_state.json")):
        assert victim.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    kill_all(victim)
    assert not list((home / "killed").glob("*.json"))
    finish(start("killed", *DDP, accumulation=1, port=free_port()))
    check_same(RunRecord.load(next((home / "killed").glob("*.json"))), alone)


def test_overrides_and_unknown_parameters(job, tmp_path):
    home, _ = job
    parameters = launch.read_parameters(home / "run.yaml", ["epochs=7", "seeds=[1, 2]"])
    assert (parameters["epochs"], parameters["seeds"], parameters["tuning"]) == (7, [1, 2], "lora")
    with pytest.raises(
        ValueError, match=r"unknown parameters epoch; known are accumulation, .*epochs"
    ):
        launch.read_parameters(home / "run.yaml", ["epoch=7"])
    with pytest.raises(ValueError, match="'epochs' is not an override: write name=value"):
        launch.read_parameters(home / "run.yaml", ["epochs"])
    (tmp_path / "bad.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="expected the key parameters with a mapping"):
        launch.read_parameters(tmp_path / "bad.yaml")
    assert launch.main([str(tmp_path / "bad.yaml")]) == 1


def test_memory_is_refused_before_any_training(job, monkeypatch, capsys):
    from plantlib.training import memory

    home, _ = job
    monkeypatch.setattr(memory, "available", lambda device=None: 1000)
    assert (
        launch.main(
            [str(home / "run.yaml"), f"results={home / 'none'}", f"root={home / 'none-artefacts'}"]
        )
        == 1
    )
    assert "1000 B" in capsys.readouterr().err and not (home / "none").exists()


RUNS = sorted((ROOT / "runs").glob("*.yaml"))
OF_NOTEBOOKS = [path for path in RUNS if "notebook" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", OF_NOTEBOOKS, ids=lambda path: path.stem)
def test_every_yaml_run_is_understood_by_launch_and_notebook(path):
    import papermill

    run = yaml.safe_load(path.read_text())
    known = papermill.inspect_notebook(ROOT / run["notebook"])
    assert set(run["parameters"]) <= set(known)
    # several processes can train the grid of notebook 08 only; other runs are refused at once
    if Path(run["notebook"]).stem == "08_backbones":
        assert set(launch.read_parameters(path)) <= set(known)
    else:
        with pytest.raises(
            ValueError, match=f"{path.name}: unknown parameters|takes runs of 08_backbones"
        ):
            launch.read_parameters(path)


def test_layers_to_adapt_can_be_named(job):
    """For an architecture that is not in the list; a wrong name is refused before anything is
    trained.
    """
    home, _ = job
    options = [
        f"results={home / 'named'}",
        f"root={home / 'named-artefacts'}",
        "epochs=1",
        "starts=[random]",
    ]
    assert launch.main([str(home / "run.yaml"), "lora_targets=[query]", *options]) == 0
    [record] = [RunRecord.load(p) for p in (home / "named").glob("*.json")]
    assert record.model_size["trained_in_backbone"] == 2 * 16 * 24, (
        "one layer, one matrix of 24 x 24, rank 16"
    )
    assert (
        launch.main([str(home / "run.yaml"), "lora_targets=[nowhere]", "seeds=[1]", *options]) == 1
    )
