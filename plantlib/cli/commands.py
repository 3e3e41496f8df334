"""What the commands of `plant` do; `main.py` has their options.

A command takes the parsed options and prints its result on stdout. For an input that cannot be used
it raises OSError, ValueError or RuntimeError, before any long work if possible. Texts are never
printed, except the words of an explanation.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from plantlib.cli.inputs import corpus_of, documents_of, in_label_space, is_table, read_document
from plantlib.data import kept
from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError
from plantlib.utils.folders import check_target, kind_of, verify
from plantlib.utils.io import Damaged, atomic_path, check_file, read_json, write_json
from plantlib.utils.progress import load_libraries, tqdm
from plantlib.utils.terminal import json_line, printable, spreadsheet_cell

ORIGINS = {
    "open": "its origin",
    "credentialed": "your own tables of PhysioNet (plant data NAME --source FOLDER)",
    "by browser": "files that you fetch in a browser (plant data NAME --source FOLDER)",
}
CELL = 12  # bytes of a cell of the linear score: label, value and a share of the columns
SHOWN = "p@1 p@3 p@5 r@5 rp@5 ndcg@5 psp@5 few/rp@5 map micro_f1 macro_f1".split()
SHOWN += ["micro_auc", "macro_auc"]
SORTED = 256  # documents of `plant predict` that are sorted by length at a time, at least


def run(options: Namespace) -> None:
    """`plant run`: run one YAML file through papermill and print the path of its records."""
    from companion.options import value_of
    from companion.runner import run_yaml

    changes = {}
    for item in options.changes:
        name, equals, value = item.partition("=")
        if not (equals and name.isidentifier()):
            example = "write epochs=1 or 'starts=[random, lookup]'"
            raise ValueError(f"{item!r} is no key=value; {example}")
        changes[name] = value_of(value, name)
    print(run_yaml(options.yaml, options.force, changes=changes))


def data(options: Namespace) -> None:
    """`plant data`: build a corpus if it is missing and describe it, or list the known ones."""
    from plantlib.data import sources

    if options.list or not options.name:
        for name in sources.KNOWN:
            access = sources.access(name)
            origin = "$PLANT_DATA" if sources.local_source(name) else ORIGINS[access]
            print(f"{name}\t{access}\t{sources.find(name) or f'not built, from {origin}'}")
        return
    if options.source:
        name = sources.ALIASES.get(options.name, options.name)
        if name not in sources.KNOWN:
            names = ", ".join(sources.KNOWN)
            raise DataError(f"unknown corpus {name!r}: --source goes with one of {names}")
        known = sources.KNOWN[name]
        build = sources.script(known.script).build
        folder = build(sources.homes()[0] / name, Path(options.source), **known.options)
    else:
        folder = options.name
    corpus = Corpus.load(folder)
    print(f"{corpus!r}\n{corpus.summary().to_string()}")


def fit(options: Namespace) -> None:
    """`plant fit`: train, save the model's folder, print the metrics on test."""
    out = Path(options.out)
    check_target(out, "model")
    corpus = corpus_of(options)
    check_private(corpus, out)
    load_libraries("torch", "transformers", "plantlib.training.runs")
    from plantlib import RunConfig
    from plantlib.cli import corrections
    from plantlib.data import privacy
    from plantlib.training import artefacts, price, runs
    from plantlib.training.candidate_fit import WIDTH, on_candidates
    from plantlib.training.options import TrainConfig

    config = RunConfig(train=TrainConfig(epochs=options.epochs))
    if not options.force and (run := run_in(out)):
        if not made_by(run, corpus, config, options):
            check_out(out, options.force)
        print(f"plant: note: this command has made {printable(out)} before", file=sys.stderr)
        tell(out, run)
        return
    check_out(out, options.force)
    print(corpus.overview(), file=sys.stderr)
    check_room(out, options.backbone, options.start, corpus)
    large = on_candidates(len(corpus.rows("train")), corpus.L, options.start, config)
    trained = {"gains": 1, "labels": WIDTH} if large else {}
    if note := price.note(corpus, options.backbone, options.tokens, options.epochs, **trained):
        print(f"plant: note: {note}", file=sys.stderr)
    # what the library prints while it trains is progress, not a result
    with contextlib.redirect_stdout(sys.stderr):
        model = runs.fit(
            corpus,
            backbone=options.backbone,
            start=options.start,
            seed=options.seed,
            config=config,
            max_tokens=options.tokens,
            root=options.artefacts,
            report_to=options.report_to,
        )
    save(model, out, options)
    if model.kept is not None:
        corrections.note_documents(out)
    note_kept(artefacts.root_of(privacy.artefacts_root(corpus, options.artefacts)))
    tell(out, run_in(out))


def run_in(folder: Path) -> dict | None:
    """What `run.json` of a saved model says of its run; None without a whole one."""
    if not kind_of(folder) or not (folder / "run.json").is_file():
        return None
    try:
        verify(folder, "model", "name another folder", optional=(kept.FILE,))
    except Damaged:
        return None
    return read_json(folder / "run.json")


def made_by(run: dict, corpus: Corpus, config, options: Namespace) -> bool:
    """Whether a saved model is of this corpus and these options, so that it is not made again."""
    from plantlib.training.phrases import key_of
    from plantlib.training.records import plain

    read = corpus.labelled().with_dev().seen_in_train()  # as `prepare` reads it
    of_phrases = key_of(read, read.rows("train"), options.start)
    wanted = {"system": options.start, "seed": options.seed}
    wanted["backbone"] = Path(options.backbone).name
    params = plain(dataclasses.asdict(config)) | {"max_tokens": options.tokens}
    return (
        all(run[name] == value for name, value in wanted.items())
        and all(run["params"].get(name) == value for name, value in params.items())
        and run["params"].get("phrases", "") == of_phrases
        and run["dataset"]["fingerprint"] == read.fingerprint()
    )


def tell(out: Path, run: dict) -> None:
    """Print where the model is, what it was made of and its metrics on test."""
    about = f"start {run['system']}, backbone {run['backbone']}, seed {run['seed']}"
    print(f"model: {printable(out)}\n{dataset_line(run['dataset'])}")
    print(f"{about}, epoch {run['chosen_epoch']}; on test:")
    print_metrics(run["metrics"])


def note_kept(root: Path) -> None:
    """Say on stderr what a fit leaves in the folder of intermediate files, and what it is for."""
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(
        f"plant: note: {printable(root)} holds {size / 1e6:,.0f} MB of intermediate files, which"
        " later fits on the same data read; the saved model needs none of them, and the folder may"
        " be removed",
        file=sys.stderr,
    )


def save(model, out: Path, options: Namespace) -> None:
    """Save a trained model; after a failure the same command saves it without training again."""
    try:
        check_out(out, options.force)  # another process may have saved its model there since
        model.save_pretrained(out)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{error}. The trained model is kept: with room, or another --out, this command saves"
            f" it without training again: {options.typed}"
        ) from error


def check_out(out: Path, force: bool) -> None:
    """ValueError if no model can be saved to `out`, or if one is there and may not be replaced."""
    check_target(out, "model")
    if kind_of(out) and not force:
        fix = "name another folder with --out, or replace it with --force"
        raise ValueError(f"{out} holds a model already: {fix}")


def check_room(out: Path, backbone: str, start: str, corpus: Corpus) -> None:
    """OSError if the disk has no room for the model: weights, label queries and output rows,
    tokenizer, and the table of the linear score with at least one cell for each word.
    """
    from plantlib.backbones import loading, words

    if backbone == words.NAME:
        needed, hidden = 0, words.DIM
    else:
        needed = loading.float32_bytes(backbone) + loading.tokenizer_bytes(backbone)
        hidden = loading.hidden_size_of(loading.config_of(backbone))
    needed += 2 * 4 * corpus.L * hidden
    if "linear" in start or backbone == words.NAME:
        texts = [corpus.texts[i] for i in corpus.rows("train")]
        vocabulary = {word for text in texts for word in text.lower().split()}
        needed += sum(len(word.encode()) for word in vocabulary) + CELL * len(vocabulary)
    place = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            f"the model needs about {needed / 1e6:,.0f} MB in {place}, and {free / 1e6:,.0f} MB"
            " are free: make room, or name another folder with --out"
        )


def check_file_out(options: Namespace, source: str) -> None:
    """ValueError if the file --out cannot be written, or is what the command reads."""
    if not options.out:
        return
    out = check_file(options.out)
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ValueError(f"--out {options.out} is the file that is read: name another file")


def check_private(corpus: Corpus, out: Path) -> None:
    """PrivacyError if a credentialed corpus's model would be saved outside the data folder."""
    from plantlib.data import credentials

    credentials.check_folder(corpus.name, out, credentials.is_marked(corpus.manifest))


def check_marked(options: Namespace) -> None:
    """PrivacyError if --out lies outside the data folder and the texts or the model may not leave.

    They may not where --credentialed says so, or the model was trained on such texts.
    """
    from plantlib.data import credentials

    if options.out:
        marked = options.credentialed or credentials.folder_is_marked(options.model)
        credentials.check_folder("the model or the text", options.out, marked)


def is_model(folder: Path) -> bool:
    """Whether the folder holds what PlantModel.save_pretrained writes."""
    from plantlib.model import saving

    return saving.is_model(folder)


def model_of(options: Namespace):
    """The saved model, on the GPU if there is one; ValueError for a folder without a model."""
    folder = options.model
    if not is_model(Path(folder)):
        fix = f"make one with plant fit TABLE --out {folder}"
        raise ValueError(f"{folder} is no folder of a model: {fix}")
    load_libraries("torch", "transformers", "plantlib.model.plant_model")
    import torch

    from plantlib import PlantModel

    model = PlantModel.from_pretrained(folder)
    return model.to("cuda") if torch.cuda.is_available() else model


def dataset_line(about: dict) -> str:
    """Data, number of documents and label space, which belong to any metric."""
    synthetic = " (synthetic)" if about["synthetic"] else ""
    sizes = ", ".join(f"{about[split]:,} {split}" for split in ("train", "dev", "test"))
    space = f"{about['labels']:,} {about['label_space']}"
    return f"{printable(about['name'])}{synthetic}: {sizes} documents; {space}"


def print_metrics(metrics: dict[str, float | None]) -> None:
    """One line `name<TAB>value` per metric of `SHOWN` that is defined."""
    for name in (*SHOWN, *(f"all/{name}" for name in SHOWN)):
        value = metrics.get(name)
        if value is not None and value == value:
            print(f"{name}\t{value:.4f}")


def predict(options: Namespace) -> None:
    """`plant predict`: document, label and score, as tab-separated lines, .csv or .jsonl."""
    out = Path(options.out) if options.out else None
    if out and out.suffix not in {".csv", ".jsonl"}:
        raise ValueError(f"--out {out}: scores are written as .csv or .jsonl")
    if options.accepted and options.k is not None:
        raise ValueError("--accepted prints the labels that the model accepts; leave out -k")
    check_marked(options)
    check_file_out(options, options.documents)
    ids, texts = documents_of(options)
    model = model_of(options)
    predictions = _predictions(model, ids, texts, options)
    if out is None:
        writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
        for name, best in predictions:
            for label, score in best:
                writer.writerow([printable(name), printable(label), f"{score:.4f}"])
        return
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        _write(file, out.suffix, predictions)
    print(f"{len(ids)} documents: {out}", file=sys.stderr)


def _predictions(
    model, ids: list[str], texts: list[str], options: Namespace
) -> Iterable[tuple[str, list[tuple[str, float]]]]:
    """(id, [(label, score), ...]) of each document, in order, one stretch of them at a time."""
    note_unread(model, texts)
    # enough documents at a time that those of like length can be read together
    stretch = max(SORTED, 16 * options.batch)
    with tqdm(total=len(texts), desc="documents", unit="doc") as bar:
        for begin in range(0, len(texts), stretch):
            part = slice(begin, begin + stretch)
            if options.accepted:
                best = model.label_sets(texts[part], options.batch)
            else:
                best = model.predict(texts[part], options.k or 8, options.batch)
            yield from zip(ids[part], best, strict=True)
            bar.update(len(texts[part]))


def note_unread(model, texts: list[str]) -> None:
    """Say on stderr how much of long documents the model does not read."""
    beyond = model.unread(texts)
    if not beyond.any():
        return
    which = f"{int((beyond > 0).sum()):,} of {len(texts):,} documents are longer"
    which = "the document is longer" if len(texts) == 1 else which
    most = model.config.max_tokens
    note = f"{which} than the {most:,} tokens that this model reads: {int(beyond.sum()):,} tokens"
    print(f"plant: note: {note} at the end are not read", file=sys.stderr)


def _write(file, kind: str, predictions: Iterable) -> None:
    """Write predictions as ".csv" or ".jsonl"; only the latter holds every name as it is."""
    if kind == ".jsonl":
        for name, best in predictions:
            labels = [{"label": label, "score": round(score, 6)} for label, score in best]
            file.write(json_line({"document": name, "labels": labels}))
        return
    writer = csv.writer(file)
    writer.writerow(["document", "rank", "label", "score"])
    for name, best in predictions:
        for rank, (label, score) in enumerate(best, 1):
            cells = [spreadsheet_cell(name), rank, spreadsheet_cell(label)]
            writer.writerow([*cells, f"{score:.6f}"])


def evaluate(options: Namespace) -> None:
    """`plant evaluate`: metrics in the model's label space, and with all gold labels (all/...)."""
    from plantlib.data import privacy

    check_file_out(options, options.corpus)
    corpus, rows, on = labelled_rows(options, "test")
    metrics, about = measure(model_of(options), corpus, rows)
    print(f"{printable(corpus.name)}, {on}: {about}")
    print_metrics(metrics)
    if options.out:
        defined = {name: value for name, value in metrics.items() if value == value}
        about = {"corpus": corpus.name, "fingerprint": corpus.fingerprint(), "on": on}
        privacy.check(about, Path(options.out))  # numbers may leave, a text may not
        write_json(options.out, about | {"metrics": defined})


def tune(options: Namespace) -> None:
    """`plant tune`: choose on labelled documents which labels a saved model accepts."""
    from plantlib.model import label_sets

    if options.recall is not None and (options.rule or options.by):
        raise ValueError("--recall promises a recall by itself; leave out --rule and --by")
    corpus, rows, _ = labelled_rows(options, "dev")
    model = model_of(options)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    gold, _ = in_label_space(corpus, rows, names)
    texts = [corpus.texts[i] for i in rows]
    note_unread(model, texts)
    rule = label_sets.choose(
        model,
        texts,
        gold,
        options.rule or "threshold",
        options.by or "micro_f1",
        options.recall,
        options.batch,
    )
    label_sets.save_rule(model, options.model)
    print(f"{printable(options.model)} accepts by {rule}")


def labelled_rows(options: Namespace, of_corpus: str):
    """The documents that a command measures on.

    Args:
        options: of the command; --on names a split.
        of_corpus: the split that is read of a corpus, or of a table with --split.

    Returns:
        the corpus, (n,) its rows, and the name of the split or "all".
    """
    import numpy as np

    table = is_table(options.corpus)
    on = options.on or ("all" if table and not options.split else of_corpus)
    # a table without a split column gets the split that plant fit drew, unless all of it is read
    reading = {"test_fraction": None} if on == "all" else {}
    corpus = corpus_of(options, to_train=False, **reading).labelled()
    if on in ("train", "dev"):
        corpus = corpus.with_dev()
    return corpus, np.arange(corpus.N) if on == "all" else corpus.rows(on), on


def measure(model, corpus: Corpus, rows) -> tuple[dict[str, float], str]:
    """Metrics of a saved model on any corpus, whose labels are matched by name.

    Args:
        model: a PlantModel.
        corpus: texts and gold labels.
        rows: the documents to read.

    Returns:
        The metrics by name, and one line about the documents and the label space.

    Raises:
        DataError: no document has a label of the model.
    """
    import numpy as np

    from plantlib.metrics import documents as metrics
    from plantlib.model import label_sets, reading
    from plantlib.training import evaluation
    from plantlib.training.inputs import Documents

    # gold labels in the model's label space
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    labels, outside = in_label_space(corpus, rows, names)
    if not labels.nnz:
        fix = "check the labels column and --sep"
        raise DataError(f"no document of {corpus.name} has a label that the model knows; {fix}")
    config = model.config
    counts = np.array(config.train_counts or np.ones(labels.shape[1]), np.int64)
    texts = [corpus.texts[i] for i in rows]
    note_unread(model, texts)
    tokens, linear = model.tokenise(texts), reading.linear_of(model, texts)
    own = {"linear": linear, "cells": reading.cells_of_texts(model, texts)}
    documents = Documents(tokens, labels, np.arange(len(rows)), **own)
    # the AUC reads a label's score on every document
    auc = not config.candidates
    scores, gold = evaluation.score(model, documents, counts, auc=auc, progress=True)
    n_train = config.train_documents or len(rows)
    rule = label_sets.rule_of(model)
    results = metrics.evaluate(scores, gold, counts, n_train, rule, outside)
    if config.train_counts is None:  # propensities and frequency buckets need the counts
        of_counts = ("psp@", *(f"{bucket}/" for bucket in scores.masks))
        results = {name: x for name, x in results.items() if not name.startswith(of_counts)}
    about = (
        f"{len(rows):,} documents; label space: the {labels.shape[1]:,} labels of the model;"
        f" {int(outside.sum()):,} of {int(outside.sum()) + labels.nnz:,} gold labels lie outside it"
    )
    return results, about


def export(options: Namespace) -> None:
    """`plant export`: write a saved model as an ONNX graph with its tokenizers."""
    from plantlib.model import export as graph

    check_target(options.out, graph.FORMAT)
    print(printable(graph.to_onnx(model_of(options), options.out, options.int8)))


def explain(options: Namespace) -> None:
    """`plant explain`: words and what they add, down to the logit; or their attention."""
    if options.out and Path(options.out).suffix not in {".html", ".htm"}:
        raise ValueError(f"--out {options.out}: the page is written as .html")
    check_marked(options)
    check_file_out(options, options.document)
    text = read_document(options.document, options.encoding)
    if not text.strip():
        raise ValueError(f"{options.document} is blank: give a file that holds one document")
    model = model_of(options)
    note_unread(model, [text])
    label = options.label or model.predict([text], k=1)[0][0][0]
    explanation = model.explain(text, label, kind=options.kind)
    print("\n".join(explanation.lines(options.k)))
    if options.out:
        explanation.save_html(Path(options.out))
