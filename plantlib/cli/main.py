"""`plant`: the library for people who work in a shell, thin over papermill (`runner`) and the
functions that notebooks call.

Results go to stdout, progress and notes to stderr. Exit status: 0 done; 1 something you gave cannot
be used, said in one line; 2 wrong usage. Here is only how a command line is read; what the commands
do is in `commands.py`, which is imported once a command is chosen, so that `plant --help` answers
without loading torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings

from plantlib import __version__

ABOUT = """Multi-label text classification with planted label attention.

  your table                a model                    labels, numbers, reasons
  notes and codes  --fit->  a folder  --predict, evaluate, explain->  stdout or a file
"""
EXAMPLES = """a first session, on a table of your own with the columns note and codes ("I10;E11.9"):
  plant fit mine.csv --text note --labels codes --sep ";" --out model/
  plant predict model/ notes.txt -k 8       one document per line; or a folder of .txt files
  plant evaluate model/ held_out.csv --text note --labels codes
  plant explain model/ --label I10 note.txt --out page.html

and the committed experiments:
  plant data --list
  plant run runs/minilm-codiesp.yaml epochs=1

Your documents stay on this machine. Backbones are read from disk unless HF_HUB_OFFLINE=0 is set;
plant data may download a corpus.
Exit status: 0 done, 1 something given cannot be used (one line says what), 2 wrong usage."""
STARTS = "random, l2r, closed_form, lookup, shuffled, score, lookup+score, linear, lookup+linear"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status. `--debug` shows where an error came from."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] == ["memory"]:
            from plantlib.training import memory

            return memory.main(arguments[1:])
        options = parser().parse_args(arguments)
    except SystemExit as stop:
        return stop.code or 0
    # nothing is fetched unless asked for; read when transformers is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, kind, *_: (
            say(f"note: {message}") if kind is UserWarning else None
        )
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from plantlib.cli import commands

    try:
        getattr(commands, options.command)(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader (head, less) has seen enough; python must not complain again when it closes
        # stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say("stopped; the same command goes on from the last finished step")
        return 130
    except Exception as error:  # the shell gets one line, whatever went wrong; --debug has the rest
        if options.debug:
            traceback.print_exc()
        expected = isinstance(error, (OSError, ValueError, RuntimeError))
        told = " ".join(str(error).split()) or type(error).__name__
        say(
            f"error: {told}"
            if expected
            else f"error: {type(error).__name__}: {told} (run again with --debug)"
        )
        return 1
    return 0


def say(line: str) -> None:
    """One line on stderr."""
    print(f"plant: {line}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="plant",
        description=ABOUT,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"plantlib {__version__}")
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    for add in (_fit, _predict, _evaluate, _explain, _data, _run_options):
        add(commands)
    commands.add_parser(
        "memory", help="estimate the memory of a run: plant memory --help", add_help=False
    )
    return top


def _command(commands, name: str, help: str, example: str) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--debug", action="store_true", help="show where an error came from")
    return made


def _columns(made: argparse.ArgumentParser, labels: bool = True) -> None:
    """How a table is read; what is no table needs none of these. Without `labels` its texts are all
    that is wanted of it.
    """
    table = made.add_argument_group("a table (.csv, .tsv, .parquet)")
    table.add_argument("--text", default="text", help="its text column (default: text)")
    if labels:
        _labels(table)
    table.add_argument("--id", help="its column of document ids (default: the row number)")
    table.add_argument("--encoding", default="utf-8", help="its encoding (default: utf-8)")
    table.add_argument(
        "--delimiter", help="what separates its columns (default: a comma; a tab in .tsv)"
    )


def _labels(table) -> None:
    table.add_argument("--labels", default="labels", help="its labels column (default: labels)")
    table.add_argument(
        "--sep", default=";", help='what separates the labels of one cell (default: ";")'
    )
    table.add_argument(
        "--split",
        help="its column with train, dev and test; without it test is drawn by a hash of the text",
    )


def _fit(commands) -> None:
    made = _command(
        commands,
        "fit",
        "train a planted classifier and save it",
        """\
  plant fit mine.csv --text note --labels codes --sep ";" --out model/
  plant fit codiesp --out model/ --epochs 4 --seed 1
Dev chooses the epoch; test is read once, at the end. The same command resumes a fit that was
interrupted.""",
    )
    made.add_argument(
        "corpus", help="a table, a known corpus (plant data --list) or a saved corpus folder"
    )
    made.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the model's folder; it appears whole or not at all",
    )
    made.add_argument("--force", action="store_true", help="replace the model that stands there")
    _columns(made)
    train = made.add_argument_group("training")
    train.add_argument(
        "--start",
        default="lookup+linear",
        help=f"what is planted: {STARTS} (default: lookup+linear)",
    )
    train.add_argument(
        "--backbone",
        default="minilm",
        help="minilm, smollm2, a folder or a hub id (default: minilm)",
    )
    train.add_argument(
        "--epochs", type=int, default=4, help="most passes over the training documents (default: 4)"
    )
    train.add_argument(
        "--tokens", type=int, default=256, help="tokens read of each document (default: 256)"
    )
    train.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    train.add_argument(
        "--artefacts",
        metavar="DIR",
        help="where intermediate files go (default: artefacts/ of the checkout)",
    )


def _documents(made: argparse.ArgumentParser) -> None:
    made.add_argument("model", help="folder that plant fit wrote")


def _predict(commands) -> None:
    made = _command(
        commands,
        "predict",
        "name the best labels of documents",
        """\
  plant predict model/ notes.txt -k 8
  plant predict model/ notes/ --out scores.csv
  plant predict model/ mine.csv --text note --id case --out scores.jsonl
  cat note.txt | tr '\\n' ' ' | plant predict model/ -
Scores are calibrated on dev: read them as chances of being right, not as certainty.""",
    )
    _documents(made)
    made.add_argument(
        "documents",
        help="a file with one document a line, a folder of .txt files, a table, or - for stdin",
    )
    made.add_argument("-k", type=int, default=8, help="labels a document (default: 8)")
    made.add_argument(
        "--out",
        metavar="FILE",
        help="write .csv or .jsonl instead of tab-separated lines on stdout",
    )
    made.add_argument("--batch", type=int, default=16, help="documents at a time (default: 16)")
    _columns(made, labels=False)


def _evaluate(commands) -> None:
    made = _command(
        commands,
        "evaluate",
        "measure a model on documents with known labels",
        """\
  plant evaluate model/ held_out.csv --text note --labels codes --sep ";"
  plant evaluate model/ codiesp
  plant evaluate model/ mine.csv --text note --labels codes --on test
Without --split the whole table is read; --on train, dev or test selects the documents that
plant fit used as that split of the same table.""",
    )
    _documents(made)
    made.add_argument("corpus", help="a table, a known corpus or a saved corpus folder")
    made.add_argument(
        "--on",
        choices=("all", "train", "dev", "test"),
        help="documents read (default: all of a table without --split, else test)",
    )
    made.add_argument("--out", metavar="FILE", help="write the numbers as .json too")
    _columns(made)


def _explain(commands) -> None:
    made = _command(
        commands,
        "explain",
        "show the words behind a label, by attention and by the linear score",
        """\
  plant explain model/ note.txt
  plant explain model/ --label i50.9 note.txt --out page.html""",
    )
    _documents(made)
    made.add_argument("document", help="a file that is one document, or - for stdin")
    made.add_argument("--label", help="the label to explain (default: the best one)")
    made.add_argument("-k", type=int, default=10, help="words printed (default: 10)")
    made.add_argument(
        "--out", metavar="FILE", help="write an HTML page with the text and its highlighted words"
    )


def _data(commands) -> None:
    made = _command(
        commands,
        "data",
        "build a known corpus, or list them",
        """\
  plant data --list
  plant data codiesp
  plant data codiesp --source ~/downloads/codiesp.zip""",
    )
    made.add_argument("name", nargs="?", help="a known corpus or a saved corpus folder")
    made.add_argument(
        "--list", action="store_true", help="the known corpora and where each would come from"
    )
    made.add_argument(
        "--source",
        metavar="PATH",
        help="local folder or archive instead of $PLANT_DATA or the public origin",
    )


def _run_options(commands) -> None:
    made = _command(
        commands,
        "run",
        "run an experiment of runs/ through papermill",
        """\
  plant run runs/minilm-codiesp.yaml
  plant run runs/minilm-codiesp.yaml epochs=1 "starts=[random, lookup]"
A finished run is not repeated. A run with changed parameters writes its records to results/local/,
under a different name.""",
    )
    made.add_argument("yaml", help="a file of runs/: keys notebook and parameters")
    made.add_argument(
        "changes",
        nargs="*",
        metavar="key=value",
        help="parameters that differ from the file, values as YAML",
    )
    made.add_argument("--force", action="store_true", help="run again what is finished")


if __name__ == "__main__":
    sys.exit(main())
