"""What a person corrects: `plant review` lists documents to look at, and `plant learn` learns on
from corrected ones. `main.py` has their options and imports this module: little is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
from argparse import Namespace
from pathlib import Path

SHOWN = 10  # new labels that are printed


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command, beside those of tables."""
    add = command.add_argument
    add("model", help="folder that plant fit or plant learn wrote")
    add("corpus", help="a table of documents with all their right labels")
    add("--out", required=True, metavar="DIR", help="folder for the new model")
    add("--force", action="store_true", help="replace a model that is in this folder")
    about = "maximum number of passes over the corrections (default: 2)"
    add("--epochs", type=int, default=2, help=about)


def review(options: Namespace) -> None:
    """`plant review`: documents with expected errors and doubtful labels, most errors first."""
    from plantlib.cli import commands
    from plantlib.cli.inputs import documents_of
    from plantlib.model import review as reviewing
    from plantlib.utils.terminal import printable

    ids, texts = documents_of(options)
    model = commands.model_of(options)
    commands.note_unread(model, texts)
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    for document in reviewing.review(model, texts, options.batch)[: options.n]:
        doubtful = [
            f"{'+' if accepted else '-'}{printable(label)} {chance:.2f}"
            for label, chance, accepted in document.doubtful
        ]
        writer.writerow([printable(ids[document.row]), f"{document.errors:.2f}", *doubtful])


def note_documents(out: Path) -> None:
    """Say on stderr that the model's folder holds the words of its documents."""
    from plantlib.data import kept
    from plantlib.utils.terminal import printable

    print(
        f"plant: note: {printable(out / kept.FILE)} holds the words of the training documents, from"
        " which plant learn goes on; remove it before you give the model to others",
        file=sys.stderr,
    )


def learn(options: Namespace) -> None:
    """Count the corrections in, train on, save the new model."""
    from plantlib.cli import commands
    from plantlib.cli.inputs import corpus_of
    from plantlib.data import credentials
    from plantlib.utils.base import DataError
    from plantlib.utils.terminal import printable

    out = Path(options.out)
    if Path(options.model).resolve() == out.resolve():
        raise ValueError(f"--out {out} is the model that is read: name another folder")
    commands.check_out(out, options.force)
    corpus = corpus_of(options, to_train=False, test_fraction=None)
    commands.check_private(corpus, out)
    if not corpus.labels.nnz:
        raise DataError("no document has a label: check the labels column and --sep")
    model = commands.model_of(options)
    commands.note_unread(model, corpus.texts)
    from plantlib.training import learning

    names = corpus.label_names
    labels = [[names[j] for j in row.indices] for row in corpus.labels]
    marked = credentials.is_marked(corpus.manifest)
    # what the library prints while it trains is progress, not a result
    with contextlib.redirect_stdout(sys.stderr):
        learned = learning.learn(
            model, corpus.texts, labels, epochs=options.epochs, credentialed=marked
        )
    commands.check_out(out, options.force)
    learned.model.save_pretrained(out)
    print(f"model: {printable(out)}")
    print(f"documents: {learned.new_documents:,} new, {learned.corrected:,} corrected")
    shown = ", ".join(printable(label) for label in learned.new_labels[:SHOWN])
    more = "" if len(learned.new_labels) <= SHOWN else ", ..."
    print(f"new labels: {len(learned.new_labels):,}" + (f" ({shown}{more})" if shown else ""))
    print(f"dev ndcg@5, counted anew\t{learned.untrained:.4f}")
    print(f"dev ndcg@5, trained on\t{learned.trained:.4f}")
    if model.config.label_rule is not None:
        print(
            "plant: note: the rule of plant tune fitted the model as it was; plant predict"
            " --accepted goes by a threshold from dev until plant tune chooses again",
            file=sys.stderr,
        )
