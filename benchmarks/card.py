"""What is measured while a GPU is at hand, some minutes long; a stop loses one row or run at most.

    python benchmarks/card.py pack FOLDER   # where the corpora are: what `runs` needs, in 64 MiB
    python benchmarks/card.py measure       # 8 minutes: GPU tests, head, candidates, backbones
    python benchmarks/card.py runs FOLDER   # 5 minutes: runs/card-*.yaml -> records

`measure` writes the CSV files of results/bench and what the tests say, `runs` one record per run.
Called again, both go on with what is missing. `--tiny` does the same on small sizes, for a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from companion.options import read_yaml
from plantlib import Corpus
from plantlib.backbones import loading

RUNS = sorted((ROOT / "runs").glob("card-*.yaml"))
MOST_BYTES = 64 * 2**20  # that travel to a machine with a GPU
MEASURE, TRAIN = 470.0, 290.0  # seconds of the two commands
SLOW = 10  # times as long with --tiny, on a CPU that may have other work
FEWER = "seeds=[0] epochs=1 train_documents=20 dev_documents=10 test_documents=10".split()


def measurements(out: Path, tiny: bool) -> Iterator[tuple[str, list[str], float]]:
    """Name, command and most seconds of each measurement; the last one gets what is left."""
    gpu_tests = ["-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
    tests = ROOT / "tests" / "kernels" if tiny else ROOT / "tests"
    yield "tests", [*gpu_tests, str(tests), *["--collect-only"] * tiny], 100
    for name, few, seconds in (
        ("kernels", ["--quick", "--repetitions", "1"], 100),
        ("candidates", ["--sizes", "2000"], 60),
        ("backbones", ["--tiny", "--families", "mistral-7b-v0.3"], MEASURE),
    ):
        many = ["--sizes", "131000", "1000000"] if name == "candidates" else []
        command = [str(ROOT / "benchmarks" / f"bench_{name}.py"), "--out", str(out / f"{name}.csv")]
        yield name, [*command, *(few if tiny else many)], seconds


def measure(out: Path, tiny: bool) -> int:
    """Run every measurement until its time is over; the number of those that failed."""
    out.mkdir(parents=True, exist_ok=True)
    slow = SLOW if tiny else 1
    ends = time.monotonic() + slow * MEASURE
    failed = 0
    for name, command, seconds in measurements(out, tiny):
        most = min(slow * seconds, ends - time.monotonic())
        if name == "backbones":
            # it stops by itself before it would be cut off
            command = [*command, "--seconds", str(max(most - 30, 0))]
        failed += not within(name, command, most, out)
    return failed


def within(name: str, command: list[str], seconds: float, out: Path) -> bool:
    """Whether a command of Python ends well in so many seconds; it prints to a file of `out`."""
    began = time.monotonic()
    with (out / f"{name}.txt").open("w") as file:
        try:
            done = subprocess.run(
                [sys.executable, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(seconds, 1),
                cwd=ROOT,
            ).returncode
        except subprocess.TimeoutExpired:
            done = "stopped, its time was over"
    print(f"{name}: {done}, {time.monotonic() - began:.0f} s, see {file.name}", flush=True)
    return done == 0


def backbone_in(folder: Path, name: str) -> Path:
    """Where `pack` writes a backbone."""
    return folder / f"{Path(name).name}-float16"


def corpus_in(folder: Path, run: Path) -> Path:
    """Where `pack` writes the documents of a run."""
    return folder / run.stem


def pack(folder: Path, runs: list[Path]) -> int:
    """Write the documents and backbones of runs, weights in float16; the bytes written.

    Raises:
        ValueError: they are more than `MOST_BYTES`.
    """
    for path in runs:
        options = read_yaml(path)["parameters"]
        splits = ("train", "dev", "test")
        caps = {split: options[f"{split}_documents"] for split in splits}
        corpus = Corpus.load(options["dataset"]).labelled().with_dev().subset(**caps)
        corpus.save(corpus_in(folder, path))
        (name,) = options["backbones"]
        place = backbone_in(folder, name)
        if not place.exists():
            backbone = loading.load(name)
            backbone.model.half().save_pretrained(place)
            backbone.tokenizer.save_pretrained(place)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"{folder} has {size / 2**20:.0f} MiB, and 64 can travel: cap documents")
    return size


def train(folder: Path, runs: list[Path], out: Path, tiny: bool) -> int:
    """Train the runs on what `pack` wrote until the time is over; how many did not finish."""
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + TRAIN * (SLOW if tiny else 1)
    failed = 0
    for place, path in enumerate(runs):
        (name,) = read_yaml(path)["parameters"]["backbones"]
        options = {
            "dataset": corpus_in(folder, path),
            "backbones": f"[{backbone_in(folder, name)}]",
            "results": out,
            "root": folder / "artefacts",
        }
        command = ["-m", "companion.launch", str(path)]
        command += [f"{option}={value}" for option, value in options.items()]
        # what one run leaves over, the later ones share
        most = (ends - time.monotonic()) / (len(runs) - place)
        failed += not within(path.stem, [*command, *FEWER * tiny], most, out)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when everything was measured or trained."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("measure", "pack", "runs"))
    parser.add_argument("folder", nargs="?", type=Path, help="of pack and runs")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--out", type=Path, help="results/bench, or results/card for runs")
    parser.add_argument("--runs", type=Path, nargs="+", default=RUNS, help="YAML files to run")
    options = parser.parse_args(arguments)
    if options.what == "measure":
        return min(measure(options.out or ROOT / "results" / "bench", options.tiny), 1)
    if options.folder is None:
        parser.error(f"name the folder of {options.what}")
    folder = options.folder.resolve()
    if options.what == "pack":
        print(f"{pack(folder, options.runs) / 2**20:.1f} MiB in {folder}")
        return 0
    out = (options.out or ROOT / "results" / "card").resolve()
    return min(train(folder, options.runs, out, options.tiny), 1)


if __name__ == "__main__":
    sys.exit(main())
