"""`make reproduce`: the main job on one corpus, notebook by notebook, through papermill.

It chooses the corpus and says why, runs notebooks 02 (MI gain), 03 (pretraining), 05 (fine-tuning:
starts x seeds, and the peers) and 07 (tables and figures) with the parameters below, saves the best
planted model and prints what planting was worth. Finished runs are not repeated, so a second call,
or a call after a kill, costs little. Everything it writes lies in results/local and artefacts/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from companion.report import digests, job_summary, report
from companion.runner import run_notebook
from plantlib.cli.inputs import READING, SHELL, in_shell, is_table
from plantlib.data import files, privacy, sources
from plantlib.data.corpus import Corpus
from plantlib.data.credentials import MARK
from plantlib.data.label_forms import FORMS
from plantlib.planting.starts import parts_of
from plantlib.training import artefacts, runs
from plantlib.training.options import CHOSEN_BY, RunConfig, TrainConfig
from plantlib.training.prepare import check_labels, prepare
from plantlib.training.records import load_all
from plantlib.training.runs import STARTS
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json
from plantlib.utils.terminal import printable

# parts of a start that plant nothing, or a permuted teacher
CONTROLS = {"random", "shuffled", "linear"}
# Documents per split that keep the job under 20 minutes on two cores. A split that is not named is
# read whole; a known corpus without an entry is LARGE; a user's own corpus is never capped.
CAPS: dict[str, dict] = {
    "codiesp": {},
    "eurlex57k": {"train_documents": 1000, "dev_documents": 300, "test_documents": 1000},
    "debtags": {"train_documents": 2000, "dev_documents": 500, "test_documents": 1000},
    "cooking": {"train_documents": 4000, "dev_documents": 500, "test_documents": 1000},
    "synthetic-icd": {},
}
# this command's words for names that messages of the library use
WORDS = SHELL | {"start": "--starts", "seed": "--seeds"}
WORDS |= {f"{split}_documents": f"--{split}" for split in ("train", "dev", "test")}
LARGE = {"train_documents": 1000, "dev_documents": 300, "test_documents": 1000}


def caps_of(dataset: str) -> dict:
    """The caps of a known corpus, given by its name or the folder it was built in; else none."""
    name = Path(dataset).name
    built = Path(dataset).resolve().parent in [home.resolve() for home in sources.homes()]
    return CAPS.get(name, LARGE) if name in sources.KNOWN and (dataset == name or built) else {}


def job(dataset: str, options: argparse.Namespace) -> dict:
    """Parameters that every notebook of the job receives."""
    caps = dict.fromkeys(["train_documents", "dev_documents", "test_documents"]) | caps_of(dataset)
    for split in ("train", "dev", "test"):
        if (cap := getattr(options, split)) is not None:
            caps[f"{split}_documents"] = cap
    return {"dataset": dataset, "backbone": options.backbone, "max_tokens": options.tokens, **caps}


def main(arguments: list[str] | None = None) -> int:
    """Run the job; exit status 1 with one line when something is wrong."""
    options = _parse(arguments)
    began = time.perf_counter()
    try:
        _check(options)
        dataset, reason = _table(options) or sources.choose(options.dataset or None)
        print(job_summary.wrapped(reason), flush=True)
        if (Path(dataset) / "manifest.json").is_file():
            dataset = str(Path(dataset).resolve())
        common = job(dataset, options)
        corpus = _describe(common)
        local = _run(common, options)
        print(f"done in {(time.perf_counter() - began) / 60:.1f} minutes\n")
        print(summary(corpus.fingerprint(), options.tokens, options.backbone, local))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"reproduce: {printable(in_shell(str(error), WORDS))}", file=sys.stderr)
        return 1
    return 0


def summary(fingerprint: str, tokens: int | None, backbone: str, local: Path) -> str:
    """What planting was worth, a short table, and where the whole table lies.

    Args:
        fingerprint: of the corpus the job read, with the labels that have a training document.
        tokens: most tokens read per document, None for whole documents.
        backbone: its name or folder.
        local: the job's folder, results/local/<name>; its records lie in runs/, and the whole table
            is written beside them.
    """
    groups = report.groups(report.load(local / "runs"))
    group = job_summary.group_of(groups, fingerprint, tokens, backbone)
    if group is None:
        return f"no planted run of this job\nrecords: {os.path.relpath(local)}/runs"
    path = report.write_table(group, local)
    return f"{job_summary.text(group)}\n\nwhole table: {os.path.relpath(path)}"


def _describe(common: dict) -> Corpus:
    """Print the corpus after its caps, and how many dev and test documents also stand in train.

    Returns the corpus as its runs read it: with the labels that have a training document.

    Raises:
        DataError: a split is empty, or there is nothing to learn.
    """
    caps = {s: common[f"{s}_documents"] for s in ("train", "dev", "test")}
    whole = Corpus.load(common["dataset"]).labelled().with_dev()
    corpus = whole.subset(**caps)
    cut = [
        f"{cap:,} of {whole.rows(s).size:,} {s}"
        for s, cap in caps.items()
        if cap and cap < whole.rows(s).size
    ]
    if cut:
        print(f"capped: {', '.join(cut)} documents; change it with --train, --dev and --test")
        print('(make: TRAIN=n ARGS="--dev n --test n")')
    print(f"{corpus}\n{corpus.summary().to_string()}", flush=True)
    for split, copies in corpus.near_duplicates().items():
        print(
            f"near-duplicates: {copies['exact']} exact and {copies['near']} near copies of training"
            f" documents in {split}"
        )
    corpus.rows("test")
    seen = corpus.seen_in_train()
    check_labels(seen)
    return seen


def _table(options: argparse.Namespace) -> tuple[str, str] | None:
    """Save the table named as data set as a corpus with the file's name."""
    path = Path(options.dataset or "")
    if not is_table(str(path)):
        return None
    name = files.stem(path)
    target = sources.homes()[0] / name
    if name in {*sources.KNOWN, *sources.ALIASES} or (
        target.exists() and not (target / "manifest.json").is_file()
    ):
        raise DataError(
            f"{path.name} would become the corpus {name!r}, a name in use: rename the file"
        )
    corpus = Corpus.from_file(path, **{name: getattr(options, name) for name in (*READING, MARK)})
    print(corpus.overview(), flush=True)
    corpus.save(target)
    return corpus.name, f"data set {corpus.name}: your table {path.name}"


def _check(options: argparse.Namespace) -> None:
    """Refuse what would fail only after the hidden states are computed; make paths absolute, as the
    notebooks run in their own folder.
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


def _run(common: dict, options: argparse.Namespace) -> Path:
    """Run the notebooks and save the best model; returns the job's folder, results/local/<name>."""
    root = sources.checkout()
    local = root / "results" / "local" / Path(common["dataset"]).name
    records = str(local / "runs")
    pretraining = common | {"seeds": list(range(options.seeds))}
    finetuning = pretraining | {
        "starts": options.starts.split(","),
        "epochs": options.epochs,
        "results": records,
    }
    steps = [
        ("02_mutual_information", common),
        ("03_attention_pretraining", pretraining),
        ("05_finetune", finetuning),
        ("07_paper_vs_ours", {"runs": records, "out": str(local)}),
    ]
    for name, parameters in steps:
        print(f"{name} ...", flush=True)
        run_notebook(
            root / "notebooks" / f"{name}.ipynb", parameters, local / "executed" / f"{name}.ipynb"
        )
    # a model holds something of the texts it learned from, so a credentialed one
    # stays in the data folder
    private = privacy.is_credentialed(common["dataset"])
    model = sources.homes()[0] / "models" / local.name if private else local / "model"
    save_best(common, options.epochs, local / "runs", model)
    print(f"records, tables and figures: {os.path.relpath(local)}")
    return local


def best_run(records: list):
    """The planted run with the best dev value of the metric that chose its epoch (nDCG@5).

    None where nothing was planted. `random`, `linear` alone and starts with a shuffled teacher are
    controls: they plant nothing that the teacher knows, and do not count.
    """

    def best_on_dev(record) -> float:
        return max(epoch[CHOSEN_BY] for epoch in record.history)

    planted = [
        r for r in records if r.kind == "planted" and not set(parts_of(r.system)) <= CONTROLS
    ]
    return max(planted, key=best_on_dev, default=None)


def save_best(common: dict, epochs: int, records: Path, target: Path) -> Path | None:
    """Save the job's best planted model, chosen on dev, for `PlantModel.from_pretrained`.

    A run saves its record but no model, so the best run is made once more, with the same numbers.
    Records of an earlier job with other options do not count.

    Args:
        common: parameters of every notebook, as `job` returns them.
        epochs: most epochs a run trains.
        records: folder of the job's records.
        target: folder of the model; a model of the same run that lies there is left as it is.

    Returns:
        `target`, or None where nothing was planted.
    """
    # the job's own records
    prepared = None
    config = RunConfig(train=TrainConfig(epochs=epochs))
    if records.is_dir() and any(records.glob("*.json")):
        prepared = prepare(common["dataset"], **{k: v for k, v in common.items() if k != "dataset"})
    finished = load_all(records) if prepared else []
    best = best_run([r for r in finished if runs.made_with(r, prepared, config, r.seed)])
    if best is None:
        print("no planted run, so no model was saved")
        return None
    # train it, unless the model of this run lies there already
    saved = read_json(target / "run.json") if (target / "run.json").is_file() else None
    if not isinstance(saved, dict) or not isinstance(saved.get("params"), dict):
        saved = {"id": None}
    names = ("inputs", "train", "start", "teacher", "gain_chosen", "linear_weights")
    if saved.get("id") != best.id or any(
        saved["params"].get(name) != best.params.get(name) for name in names
    ):
        print(f"training the best planted run on dev once more:\n  {best.id}", flush=True)
        _, model = runs.run_start(
            prepared, best.system, best.seed, config=config, keep_checkpoints=True
        )
        model.attach_backbone(artefacts.load_backbone(prepared)).save_pretrained(target)
    print("model for PlantModel.from_pretrained and for notebook A2 (its parameter model_folder):")
    print(f"  {os.path.relpath(target)}")
    return target


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m companion.reproduce", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--dataset",
        default=os.environ.get("DATASET"),
        help="a known name, the folder of a saved corpus, or a table (.csv, .tsv, .jsonl, .parquet"
        ", .xlsx)",
    )
    parser.add_argument("--text", default="text", help="the table's column of texts")
    parser.add_argument("--labels", default="labels", help="the table's column of labels")
    parser.add_argument("--sep", default=";", help="what separates labels in one cell")
    parser.add_argument(
        "--labels-format", choices=FORMS, help="the form of the labels, as in plant fit"
    )
    parser.add_argument(
        "--split",
        help="the table's column of train, dev and test; without it test is drawn by hash",
    )
    parser.add_argument("--id", help="the table's column of document ids")
    parser.add_argument("--encoding", default="utf-8", help="encoding of the table")
    parser.add_argument("--delimiter", help="what separates columns: a comma, in .tsv a tab")
    about = "the table's texts are under a data use agreement: they stay in the data folder"
    parser.add_argument("--credentialed", action="store_true", help=about)
    parser.add_argument("--backbone", default="minilm", help="minilm, a local folder or a hub id")
    parser.add_argument("--tokens", type=int, default=256, help="tokens read of each document")
    parser.add_argument(
        "--train",
        type=int,
        help="most training documents (nested subsets); without it large known corpora are capped"
        " and your own are read whole",
    )
    parser.add_argument("--dev", type=int, help="most dev documents")
    parser.add_argument("--test", type=int, help="most test documents")
    parser.add_argument("--starts", default=",".join(STARTS), help="starts, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=4, help="most epochs a run trains")
    return parser.parse_args(arguments)


def promote(local: Path, results: Path) -> list[Path]:
    """Copy the records of a local job to `results` (results/runs), from which the committed tables
    are made, and write the digests of their numbers beside that folder.
    """
    paths = [record.save(results) for record in load_all(local)]
    digests.write(results.parent)
    return paths


if __name__ == "__main__":
    sys.exit(main())
