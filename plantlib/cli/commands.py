"""What the commands of `plant` do, each a few calls of the library; see `cli.py` for how they are
asked for.

A command takes the parsed options, prints its result on stdout and raises OSError, ValueError or
RuntimeError for what cannot be used, before any long work where that can be known. Texts are read
from the files named and never printed, words of an explanation aside. No method lives here.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from plantlib.data.corpus import Corpus, corpus_of_table
from plantlib.utils.base import DataError
from plantlib.utils.io import atomic_path, read_json, write_json
from plantlib.utils.progress import tqdm

TABLES = {".csv": ",", ".tsv": "\t", ".parquet": None}
SHOWN = (
    "p@1",
    "p@3",
    "p@5",
    "r@5",
    "rp@5",
    "ndcg@5",
    "map",
    "micro_f1",
    "macro_f1",
    "micro_auc",
    "macro_auc",
)


def run(options: Namespace) -> None:
    """`plant run`: one YAML through papermill; prints the path of its record or records."""
    import yaml

    from companion.runner import run_yaml

    changes = {}
    for item in options.changes:
        name, equals, value = item.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(
                f"{item!r} is no key=value; write epochs=1 or 'starts=[random, lookup]'"
            )
        changes[name] = yaml.safe_load(value)
    print(run_yaml(options.yaml, options.force, changes=changes))


def data(options: Namespace) -> None:
    """`plant data`: build a corpus where it is missing and describe it, or list the known ones."""
    from plantlib.data import sources

    if options.list or not options.name:
        for name in sources.KNOWN:
            missing = (
                "not built, from $PLANT_DATA"
                if sources.local_source(name)
                else "not built, from its origin"
            )
            print(f"{name}\t{sources.find(name) or missing}")
        return
    if options.source:
        name = sources.ALIASES.get(options.name, options.name)
        if name not in sources.KNOWN:
            raise DataError(
                f"unknown corpus {name!r}: --source goes with one of {', '.join(sources.KNOWN)}"
            )
        known = sources.KNOWN[name]
        folder = sources.script(known.script).build(
            sources.homes()[0] / name, Path(options.source), **known.options
        )
    else:
        folder = options.name
    corpus = Corpus.load(folder)
    print(f"{corpus!r}\n{corpus.summary().to_string()}")


def corpus_of(options: Namespace, **reading) -> Corpus:
    """The corpus an option names: a table by its columns, else a known name or a saved folder.

    reading: options of `tables.corpus`, for a table that is not read as `plant fit` reads it.
    """

    path = Path(options.corpus)
    if path.suffix.lower() not in TABLES:
        return Corpus.load(options.corpus)
    columns = {name: getattr(options, name) for name in ("text", "labels", "sep", "split", "id")}
    return corpus_of_table(frame_of(path, options), **columns, name=path.stem, path=path, **reading)


def frame_of(path: Path, options: Namespace):
    """The rows of a table as they stand."""
    from plantlib.data import tables

    kind = path.suffix.lower()
    if kind == ".parquet":
        return tables.read_parquet(path)
    return tables.read_csv(path, options.encoding, options.delimiter or TABLES[kind])


def fit(options: Namespace) -> None:
    """`plant fit`: train, save the model's folder, print what it reached on test."""
    out = Path(options.out)
    check_out(out, options.force)
    corpus = corpus_of(options)
    check_private(corpus, out)
    from plantlib import RunConfig
    from plantlib.training import runs
    from plantlib.training.options import TrainConfig

    config = RunConfig(train=TrainConfig(epochs=options.epochs))
    # what the library prints on its way is progress here
    with contextlib.redirect_stdout(sys.stderr):
        model = runs.fit(
            corpus,
            backbone=options.backbone,
            start=options.start,
            seed=options.seed,
            config=config,
            max_tokens=options.tokens,
            root=options.artefacts,
        )
    with atomic_path(out) as temporary:
        model.save_pretrained(temporary)
    record = model.record
    print(f"model: {out}\n{dataset_line(record.dataset)}")
    print(
        f"start {record.system}, backbone {record.backbone}, seed {record.seed}, epoch"
        f" {record.chosen_epoch}; on test:"
    )
    print_metrics(record.metrics)


def check_out(out: Path, force: bool) -> None:
    """ValueError, before the long work, when `out` exists and may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_model(out):
        raise ValueError(f"{out} exists and is no model: name another folder with --out")
    if not force:
        raise ValueError(
            f"{out} holds a model already: name another folder with --out, or replace it with"
            " --force"
        )


def check_private(corpus: Corpus, out: Path) -> None:
    """PrivacyError, before the long work, when the model of a credentialed corpus would be saved
    outside the data folder.
    """
    from plantlib.data import privacy, sources

    if privacy.is_credentialed(corpus) and not privacy.inside_data(out):
        raise privacy.PrivacyError(
            f"the model would be trained on {corpus.name}, a credentialed corpus, and {out.name}"
            f" lies outside the data folder: give --out a folder below {sources.homes()[0].name}/"
            " ($PLANT_HOME)"
        )


def is_model(folder: Path) -> bool:
    """Does the folder hold what PlantModel.save_pretrained writes?"""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "plant"


def model_of(options: Namespace):
    """The saved model, on the GPU where there is one. ValueError for a folder that holds none."""
    if not is_model(Path(options.model)):
        raise ValueError(
            f"{options.model} is no folder of a model: make one with plant fit TABLE --out"
            f" {options.model}"
        )
    import torch

    from plantlib import PlantModel

    model = PlantModel.from_pretrained(options.model)
    return model.to("cuda") if torch.cuda.is_available() else model


def dataset_line(about: dict) -> str:
    """What numbers are stated with: data, documents, label space."""
    made = " (synthetic)" if about["synthetic"] else ""
    sizes = ", ".join(f"{about[split]:,} {split}" for split in ("train", "dev", "test"))
    return f"{about['name']}{made}: {sizes} documents; {about['labels']:,} {about['label_space']}"


def print_metrics(metrics: dict[str, float | None]) -> None:
    """One `name<TAB>value` a line; what is undefined is left out."""
    for name in (*SHOWN, *(f"all/{name}" for name in SHOWN)):
        value = metrics.get(name)
        if value is not None and value == value:
            print(f"{name}\t{value:.4f}")


def documents_of(options: Namespace) -> tuple[list[str], list[str]]:
    """(ids, texts) of what `plant predict` is given; blank documents and empty cells are left out,
    counted on stderr.

    A line's id is its number from 1, a file's its name; a table's rows are numbered from 0 unless
    `--id` names a column.
    """
    path = Path(options.documents)
    if path.suffix.lower() in TABLES and path.is_file():
        found = _rows(path, options)
    elif options.documents == "-":
        found = _lines(sys.stdin.read())
    elif path.is_dir():
        found = [(file.name, _read(file)) for file in sorted(path.glob("*.txt"))]
    else:
        found = _lines(_read(path))
    kept = [(name, text) for name, text in found if text.strip()]
    if not kept:
        raise ValueError(
            f"{options.documents} holds no document: give one a line, a folder of .txt files or a"
            " table"
        )
    if len(kept) < len(found):
        print(
            f"plant: note: {len(found) - len(kept)} of {len(found)} documents are blank and were"
            " left out",
            file=sys.stderr,
        )
    return [name for name, _ in kept], [text for _, text in kept]


def _lines(text: str) -> list[tuple[str, str]]:
    lines = text.removesuffix("\n").split("\n")
    return [(str(number), line.rstrip("\r")) for number, line in enumerate(lines, 1)]


def _rows(path: Path, options: Namespace) -> list[tuple[str, str]]:
    from plantlib.data import tables

    frame = frame_of(path, options)
    for name, column in (("text", options.text), ("id", options.id)):
        if (name == "text" or column) and column not in frame.columns:
            columns = [str(c) for c in frame.columns]
            raise DataError(
                f"--{name} {column}: {path.name} has the columns {columns}; name one of them with"
                f" --{name}"
            )
    ids = frame[options.id] if options.id else range(len(frame))
    return [
        (str(i), "" if tables.missing(text) else str(text))
        for i, text in zip(ids, frame[options.text], strict=True)
    ]


def _read(path: Path) -> str:
    """A file as UTF-8. ValueError names the byte that is not."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None


def predict(options: Namespace) -> None:
    """`plant predict`: tab-separated document, label and score, or a .csv or .jsonl file."""
    for name in ("k", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)}: give at least 1")
    out = Path(options.out) if options.out else None
    if out and out.suffix not in {".csv", ".jsonl"}:
        raise ValueError(f"--out {out}: scores are written as .csv or .jsonl")
    ids, texts = documents_of(options)
    model = model_of(options)
    found = _predictions(model, ids, texts, options)
    if out is None:
        writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
        writer.writerows(
            [name, label, f"{score:.4f}"] for name, best in found for label, score in best
        )
        return
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        _write(file, out.suffix, found)
    print(f"{len(ids)} documents: {out}", file=sys.stderr)


def _predictions(
    model, ids: list[str], texts: list[str], options: Namespace
) -> Iterable[tuple[str, list[tuple[str, float]]]]:
    """(id, [(label, score), ...]) of each document, in order, as they are computed."""
    with tqdm(total=len(texts), desc="documents", unit="doc") as bar:
        for begin in range(0, len(texts), options.batch):
            part = slice(begin, begin + options.batch)
            yield from zip(
                ids[part], model.predict(texts[part], options.k, options.batch), strict=True
            )
            bar.update(len(texts[part]))


def _write(file, kind: str, found: Iterable) -> None:
    if kind == ".jsonl":
        for name, best in found:
            labels = [{"label": label, "score": round(score, 6)} for label, score in best]
            file.write(json.dumps({"document": name, "labels": labels}, ensure_ascii=False) + "\n")
        return
    writer = csv.writer(file)
    writer.writerow(["document", "rank", "label", "score"])
    for name, best in found:
        writer.writerows(
            [name, rank, label, f"{score:.6f}"] for rank, (label, score) in enumerate(best, 1)
        )


def evaluate(options: Namespace) -> None:
    """`plant evaluate`: document-level metrics in the model's label space, and with the labels
    outside it (all/...).
    """
    import numpy as np

    table = Path(options.corpus).suffix.lower() in TABLES
    on = options.on or ("all" if table and not options.split else "test")
    # a split is drawn, as plant fit drew it, where a part is asked for that no column marks
    whole = {"test_fraction": None} if on == "all" else {}
    corpus = corpus_of(options, to_train=False, **whole).labelled()
    if on in ("train", "dev"):
        corpus = corpus.with_dev()
    rows = np.arange(corpus.N) if on == "all" else corpus.rows(on)
    metrics, about = measure(model_of(options), corpus, rows)
    print(f"{corpus.name}, {on}: {about}")
    print_metrics(metrics)
    if options.out:
        kept = {name: value for name, value in metrics.items() if value == value}
        write_json(
            options.out,
            {"corpus": corpus.name, "fingerprint": corpus.fingerprint(), "on": on, "metrics": kept},
        )


def measure(model, corpus: Corpus, rows) -> tuple[dict[str, float], str]:
    """(metrics, what they were measured on) of a saved model on rows of any corpus, its labels
    matched by name.

    Frequency buckets and propensities need the counts of the training rows, which a saved model
    does not carry: left out.
    """
    import numpy as np

    from plantlib.metrics import documents as metrics
    from plantlib.training import evaluation
    from plantlib.training.inputs import Documents

    labels, extra = in_label_space(
        corpus, rows, [model.config.id2label[i] for i in range(model.config.num_labels)]
    )
    if not labels.nnz:
        raise DataError(
            f"no document of {corpus.name} has a label that the model knows; check the labels"
            " column and --sep"
        )
    texts, counts = [corpus.texts[i] for i in rows], np.ones(labels.shape[1], np.int64)
    documents = Documents(
        model.tokenise(texts), labels, np.arange(len(rows)), linear=model.linear_of(texts)
    )
    scores, gold = evaluation.score(model, documents, counts, progress=True)
    found = metrics.evaluate(scores, gold, counts, len(rows), model.config.threshold, extra)
    named = {
        n: v
        for n, v in found.items()
        if not n.startswith(("psp@", *(f"{bucket}/" for bucket in scores.masks)))
    }
    about = (
        f"{len(rows):,} documents; label space: the {labels.shape[1]:,} labels of the model;"
        f" {int(extra.sum()):,} of {int(extra.sum()) + labels.nnz:,} gold labels lie outside it"
    )
    return named, about


def in_label_space(corpus: Corpus, rows, names: list[str]):
    """Y (len(rows), L) of a corpus in the columns `names`, and (len(rows),) gold labels that are
    not among them.
    """
    import numpy as np
    from scipy import sparse

    column = {name: i for i, name in enumerate(names)}
    new = np.array([column.get(name, -1) for name in corpus.label_names], np.int64)
    own = corpus.labels[rows].tocoo()
    known = new[own.col] >= 0
    shape = (len(rows), len(names))
    inside = sparse.csr_matrix(
        (own.data[known], (own.row[known], new[own.col[known]])), shape=shape
    )
    return inside, np.bincount(own.row[~known], minlength=len(rows))


def explain(options: Namespace) -> None:
    """`plant explain`: words with most attention, then those that raise the linear score,
    tab-separated; or a page.
    """
    if options.out and Path(options.out).suffix not in {".html", ".htm"}:
        raise ValueError(f"--out {options.out}: the page is written as .html")
    text = sys.stdin.read() if options.document == "-" else _read(Path(options.document))
    if not text.strip():
        raise ValueError(f"{options.document} is blank: give a file that holds one document")
    model = model_of(options)
    label = options.label or model.predict([text], k=1)[0][0][0]
    found = model.explain(text, label)
    # attention is a part of the reason alone: bias and document scores, the linear one over all
    # words, are the rest
    print(
        f"{found.label}\tlogit {found.logit:.4f}\tattention {found.logit - found.rest:+.4f}\trest"
        f" {found.rest:+.4f}"
    )
    for word, weight in found.top_words(options.k):
        print(f"{word}\t{weight:.4f}")
    for word, added in found.scored[: options.k]:
        print(f"{word}\t{added:+.4f}\tlinear score")
    if options.out:
        found.save_html(Path(options.out))
