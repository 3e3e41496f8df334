"""`make reproduce`: the main job on one corpus, notebook by notebook, through papermill.

Chooses the corpus, says why, runs notebooks 02 (MI gain), 03 (pretraining), 05 (fine-tuning: starts
x seeds, and the peers) and 07 (table and figures) with the parameters below, prints the table,
saves the best planted model. Finished runs are read again, so a second call or a call after a kill
costs little. Everything it writes lies in results/local and artefacts/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from companion.report import digests
from companion.runner import run_notebook
from plantlib.data import privacy, sources
from plantlib.data.corpus import Corpus
from plantlib.planting.starts import parts_of
from plantlib.training import pipeline, runs
from plantlib.training.options import CHOSEN_BY, RunConfig, TrainConfig
from plantlib.training.records import load_all
from plantlib.training.runs import STARTS
from plantlib.utils.base import DataError
from plantlib.utils.io import atomic_path, read_json

# documents a split that keep the job under 20 minutes on two cores, for the known corpora alone;
# what is not named is whole
CAPS: dict[str, dict] = {
    "codiesp": {},
    "eurlex57k": {"train_documents": 1000, "dev_documents": 300, "test_documents": 1000},
    "debtags": {"train_documents": 2000, "dev_documents": 500, "test_documents": 1000},
    "cooking": {"train_documents": 4000, "dev_documents": 500, "test_documents": 1000},
    "synthetic-icd": {},
}
LARGE = {"train_documents": 1000, "dev_documents": 300, "test_documents": 1000}


def caps_of(dataset: str) -> dict:
    """The caps of a known corpus, by name or as the folder it was built in; none for a corpus of
    the user's own.
    """
    name = Path(dataset).name
    built = Path(dataset).resolve().parent in [home.resolve() for home in sources.homes()]
    return CAPS.get(name, LARGE) if name in sources.KNOWN and (dataset == name or built) else {}


def job(dataset: str, options: argparse.Namespace) -> dict:
    """Parameters every notebook of the job receives."""
    caps = {"train_documents": None, "dev_documents": None, "test_documents": None} | caps_of(
        dataset
    )
    given = {
        "train_documents": options.train,
        "dev_documents": options.dev,
        "test_documents": options.test,
    }
    caps |= {k: v for k, v in given.items() if v is not None}
    return {"dataset": dataset, "backbone": options.backbone, "max_tokens": options.tokens, **caps}


def main(arguments: list[str] | None = None) -> int:
    """Run the job; exit status 1 with one line when something is wrong."""
    options = _parse(arguments)
    began = time.perf_counter()
    try:
        _check(options)
        dataset, reason = _table(options) or sources.choose(options.dataset or None)
        print(reason, flush=True)
        if (Path(dataset) / "manifest.json").is_file():
            dataset = str(Path(dataset).resolve())
        common = job(dataset, options)
        _describe(common)
        _run(common, options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1
    print(f"done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def _describe(common: dict) -> None:
    """The corpus after its caps, and how many of its dev and test documents also stand in train."""

    caps = {s: common[f"{s}_documents"] for s in ("train", "dev", "test")}
    whole = Corpus.load(common["dataset"]).labelled().with_dev()
    corpus = whole.subset(**caps)
    cut = [
        f"{cap:,} of {whole.rows(s).size:,} {s}"
        for s, cap in caps.items()
        if cap and cap < whole.rows(s).size
    ]
    if cut:
        print(
            f"capped: {', '.join(cut)} documents; change it with --train, --dev and --test "
            '(make: TRAIN=n ARGS="--dev n --test n")'
        )
    print(f"{corpus}\n{corpus.summary().to_string()}", flush=True)
    for split, found in corpus.near_duplicates().items():
        print(
            f"near-duplicates: {found['exact']} exact and {found['near']} near copies of training"
            f" documents in {split}"
        )


def _table(options: argparse.Namespace) -> tuple[str, str] | None:
    """A CSV or parquet named as the data set becomes a saved corpus under the file's name."""
    path = Path(options.dataset or "")
    kind = path.suffix.lower()
    if kind not in {".csv", ".tsv", ".parquet"}:
        return None

    target = sources.homes()[0] / path.stem
    if path.stem in {*sources.KNOWN, *sources.ALIASES} or (
        target.exists() and not (target / "manifest.json").is_file()
    ):
        raise DataError(
            f"{path.name} would take the name {path.stem!r}, which is in use; rename the file"
        )
    columns = {n: getattr(options, n) for n in ("text", "labels", "sep", "split", "id")}
    if kind == ".parquet":
        corpus = Corpus.from_parquet(path, **columns)
    else:
        delimiter = options.delimiter or ("\t" if kind == ".tsv" else ",")
        corpus = Corpus.from_csv(path, **columns, encoding=options.encoding, delimiter=delimiter)
    corpus.save(target)
    return corpus.name, f"data set {corpus.name}: your table {path.name}"


def _check(options: argparse.Namespace) -> None:
    """Refuse what would fail only after the hidden states are computed; make paths absolute for the
    notebooks.
    """

    for start in options.starts.split(","):
        parts_of(start)
    for name in ("seeds", "epochs", "tokens", "train", "dev", "test"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: give at least 1")
    if Path(options.backbone).expanduser().is_dir():
        options.backbone = str(Path(options.backbone).expanduser().resolve())
    if os.environ.get("PLANT_HOME"):
        os.environ["PLANT_HOME"] = str(Path(os.environ["PLANT_HOME"]).resolve())


def _run(common: dict, options: argparse.Namespace) -> None:

    root = sources.checkout()
    local = root / "results" / "local" / Path(common["dataset"]).name
    records = str(local / "runs")
    seeds, epochs = list(range(options.seeds)), options.epochs
    steps = [
        ("02_mutual_information", common),
        ("03_attention_pretraining", common | {"seeds": seeds}),
        (
            "05_finetune",
            common
            | {
                "starts": options.starts.split(","),
                "seeds": seeds,
                "epochs": epochs,
                "results": records,
            },
        ),
        ("07_paper_vs_ours", {"runs": records, "out": str(local)}),
    ]
    for name, parameters in steps:
        print(f"{name} ...", flush=True)
        run_notebook(
            root / "notebooks" / f"{name}.ipynb", parameters, local / "executed" / f"{name}.ipynb"
        )
    for table in sorted(local.glob("*.md")):
        print(f"\n{table.read_text(encoding='utf-8')}")
    # a model is derived from its text: a credentialed one stays in the data folder
    private = privacy.is_credentialed(common["dataset"])
    save_best(
        common,
        epochs,
        local / "runs",
        sources.homes()[0] / "models" / local.name if private else local / "model",
    )
    print(f"records, table and figures: {os.path.relpath(local)}")


def best_run(records: list):
    """The planted run with the best dev value of its own choosing metric (nDCG@5); None where
    nothing was planted.
    """

    def value(record) -> float:
        return max(row[CHOSEN_BY] for row in record.history)

    planted = [
        r
        for r in records
        if r.kind == "planted" and r.system != "random" and "shuffled" not in r.system
    ]
    return max(planted, key=value, default=None)


def save_best(common: dict, epochs: int, records: Path, target: Path) -> Path | None:
    """Leave the job's best planted model, chosen on dev, as a folder that
    `PlantModel.from_pretrained` and notebook A2 read.

    A run keeps its record alone, so the best one is run again, to the same numbers; a model that is
    there already stays. Records of an earlier job with other options do not count.
    """

    prepared, config = None, RunConfig(train=TrainConfig(epochs=epochs))
    if records.is_dir() and any(records.glob("*.json")):
        prepared = pipeline.prepare(
            common["dataset"], **{k: v for k, v in common.items() if k != "dataset"}
        )
    found = load_all(records) if prepared else []
    best = best_run([r for r in found if runs.made_with(r, prepared, config, r.seed)])
    if best is None:
        print("no planted run, so no model was saved")
        return None
    kept = read_json(target / "run.json") if (target / "run.json").is_file() else {"id": None}
    told = ("inputs", "train", "start", "teacher", "gain_chosen", "linear_weights")
    if kept["id"] != best.id or any(kept["params"].get(k) != best.params.get(k) for k in told):
        print(f"model: {best.id}, the best planted run on dev, once more ...", flush=True)
        _, model = runs.run_start(prepared, best.system, best.seed, config=config)
        with atomic_path(target) as temporary:
            model.attach_backbone(prepared.load_backbone()).save_pretrained(temporary)
    print(
        "model for notebook A2 (model_folder) and PlantModel.from_pretrained:"
        f" {os.path.relpath(target)}"
    )
    return target


def _parse(arguments: list[str] | None) -> argparse.Namespace:

    parser = argparse.ArgumentParser(
        prog="python -m companion.reproduce", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--dataset",
        default=os.environ.get("DATASET"),
        help="a known name, a saved corpus folder, or a table",
    )
    parser.add_argument(
        "--text", default="text", help="text column of a .csv, .tsv or .parquet named as data set"
    )
    parser.add_argument("--labels", default="labels", help="its labels column")
    parser.add_argument("--sep", default=";", help="what separates labels in one cell")
    parser.add_argument(
        "--split", help="its column with train, dev and test; without it test is drawn by hash"
    )
    parser.add_argument("--id", help="its column of document ids")
    parser.add_argument("--encoding", default="utf-8", help="its encoding")
    parser.add_argument("--delimiter", help="what separates its columns; a comma, in .tsv a tab")
    parser.add_argument("--backbone", default="minilm", help="minilm, a local folder or a hub id")
    parser.add_argument("--tokens", type=int, default=256, help="tokens read of each document")
    parser.add_argument(
        "--train",
        type=int,
        help=(
            "training documents at most (nested subsets); without it known corpora "
            "are capped where they are large, and your own are not"
        ),
    )
    parser.add_argument("--dev", type=int, help="dev documents at most")
    parser.add_argument("--test", type=int, help="test documents at most")
    parser.add_argument("--starts", default=",".join(STARTS), help="starts, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=4, help="most epochs a run trains")
    return parser.parse_args(arguments)


def promote(local: Path, results: Path) -> list[Path]:
    """Copy the records of a local job to `results` (results/runs), which the committed tables are
    made from, and write the digests of their numbers beside that folder.
    """
    paths = [record.save(results) for record in load_all(local)]
    digests.write(results.parent)
    return paths


if __name__ == "__main__":
    sys.exit(main())
