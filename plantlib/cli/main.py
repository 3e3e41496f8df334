"""The command line of `plant`; what the commands do is in `commands.py`.

Results go to stdout, progress and notes to stderr. Exit status: 0 done, 1 an input cannot be used
(one line says why), 2 wrong usage. `commands.py` is imported once a command is chosen, so that
`plant --help` answers without loading torch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
import warnings
from importlib import import_module

from plantlib import __version__

ABOUT = """Multi-label text classification with planted label attention.

  your table                a model                    labels, numbers, reasons
  notes and codes  --fit->  a folder  --predict, evaluate, explain->  stdout or a file
"""
EXAMPLES = """a first session, with a table that has the columns note and codes ("I10;E11.9"):
  plant fit mine.csv --text note --labels codes --sep ";" --out model/
  plant predict model/ notes.txt -k 8       one document per line; or a folder of .txt files
  plant evaluate model/ held_out.csv --text note --labels codes
  plant explain model/ --label I10 note.txt --out page.html

and the committed experiments:
  plant data --list
  plant run runs/minilm-codiesp.yaml epochs=1

Your documents stay on this machine. Backbones are read from disk unless HF_HUB_OFFLINE=0 is set;
plant data may download a corpus.
Exit status: 0 done, 1 an input cannot be used (one line says why), 2 wrong usage."""
# the modules of commands that are not in commands.py
HOMES = {name: "plantlib.cli.corrections" for name in ("review", "learn")}
FORMS = ("separated", "list", "long", "onehot", "columns")
STARTS = (
    "random, l2r, closed_form, lookup, shuffled, score, lookup+score, linear, lookup+linear,"
    " evidence+linear, phrases+linear"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; `--debug` prints an error's traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] == ["memory"]:
            from plantlib.training import memory

            return memory.main(arguments[1:])
        options = parser().parse_args(arguments)
        options.typed = shlex.join(["plant", *arguments])
    except SystemExit as stop:
        return stop.code or 0
    # transformers reads this when it is imported: nothing is downloaded by default
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # read when torch is imported: threads that wait for each other sleep; where other processes
    # use the cores, spinning ones take several times the CPU time and the time on the clock
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(options)


def check_numbers(options: argparse.Namespace) -> None:
    """ValueError for a number that no command can use, in the words of the command line."""
    from plantlib.utils import checks

    for name, flag in (("k", "-k"), ("n", "-n"), ("batch", "--batch"), ("epochs", "--epochs")):
        if getattr(options, name, None) is not None:
            checks.check_whole(flag, getattr(options, name))
    if hasattr(options, "tokens"):
        checks.check_whole("--tokens", options.tokens)
    if hasattr(options, "seed"):
        checks.check_seed(options.seed, "--seed")


def _show_warning(message, kind, *_) -> None:
    """The library's own warnings are notes for the user; those of other packages are left out."""
    if kind is UserWarning:
        say(f"note: {message}")


def _run(options: argparse.Namespace) -> int:
    home = import_module(HOMES.get(options.command, "plantlib.cli.commands"))
    try:
        check_numbers(options)
        getattr(home, options.command)(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader (head, less) closed the pipe; python must not complain when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say("stopped; the same command resumes from the last finished step")
        return 130
    except Exception as error:  # any error is one line here
        if options.debug:
            traceback.print_exc()
        message, name = " ".join(str(error).split()), type(error).__name__
        if isinstance(error, (OSError, ValueError, RuntimeError)):
            say(f"error: {message or name}")
        else:
            say(f"error: {name}: {message or name} (run again with --debug)")
        return 1
    return 0


def say(line: str) -> None:
    """One line on stderr, in the words of the shell and without control characters."""
    from plantlib.cli.inputs import in_shell
    from plantlib.utils.terminal import printable

    print(f"plant: {printable(in_shell(line))}", file=sys.stderr)


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
    answers = (_fit, _predict, _evaluate, _tune, _review, _learn, _explain, _export)
    for command in (*answers, _data, _run_options):
        command(commands)
    about = "estimate the memory of a run: plant memory --help"
    commands.add_parser("memory", help=about, add_help=False)
    return top


def _command(commands, name: str, about: str, example: str) -> argparse.ArgumentParser:
    """A command with its examples and the option --debug."""
    command = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog="example:\n" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return command


def _columns(command: argparse.ArgumentParser, labels: bool = True) -> None:
    """Options that say how a table is read."""
    about = "if the input is a table (.csv, .tsv, .jsonl, each also .gz; .parquet, .xlsx)"
    add = command.add_argument_group(about).add_argument
    add("--text", default="text", help="column of texts (default: text)")
    if labels:
        add("--labels", default="labels", help="column of labels (default: labels)")
        add("--sep", default=";", help='separator of the labels in a cell (default: ";")')
        about = (
            "separated: a cell cut by --sep; list: a printed list; long: one row per document and"
            " label; onehot: columns of 0 and 1; columns: several columns of labels, as in --labels"
            " 'code*' (default: separated or list, as the cells show; refused if in doubt)"
        )
        add("--labels-format", choices=FORMS, help=about)
        about = "column with train, dev and test (default: test is drawn by a hash of the text)"
        add("--split", help=about)
    add("--id", help="column of document ids (default: the row number)")
    add("--encoding", default="utf-8", help="encoding of the input (default: utf-8)")
    about = "one character between the columns, \\t for a tab (default: a comma; in .tsv a tab)"
    add("--delimiter", help=about)
    _mark(add)


def _mark(add) -> None:
    """The option that marks texts as credentialed."""
    about = "the texts are under a data use agreement: write in the data folder ($PLANT_HOME) alone"
    add("--credentialed", action="store_true", help=about)


def _fit(commands) -> None:
    command = _command(
        commands,
        "fit",
        "train a classifier with planted attention and save it",
        """\
  plant fit mine.csv --text note --labels codes --sep ";" --out model/
  plant fit codiesp --out model/ --epochs 4 --seed 1
The epoch is chosen on dev documents; test documents are read once, at the end. The same command
resumes a fit that was interrupted.""",
    )
    add = command.add_argument
    add(
        "corpus", help="a table, a known corpus (plant data --list) or the folder of a saved corpus"
    )
    add("--out", required=True, metavar="DIR", help="folder for the model")
    add("--force", action="store_true", help="replace a model that is in this folder")
    _columns(command)
    about = (
        "spans that justify labels, for the start evidence: a table of id, label and start, end or"
        " text, or a folder of brat's .ann files; ids are those of --id"
    )
    command.add_argument("--evidence", metavar="FILE", help=about)
    add = command.add_argument_group("training").add_argument
    add("--start", default="lookup+linear", help=f"one of {STARTS} (default: lookup+linear)")
    about = (
        "minilm, smollm2, mpnet, a folder or a hub id; words: no language model, quick tier"
        " (default: minilm)"
    )
    add("--backbone", default="minilm", help=about)
    about = "maximum number of passes over the training documents (default: 4)"
    add("--epochs", type=int, default=4, help=about)
    about = "number of tokens read from each document (default: 256)"
    add("--tokens", type=int, default=256, help=about)
    add("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    about = "a tracker that follows the training; its package is not installed with plantlib"
    add("--report-to", choices=("tensorboard", "mlflow", "trackio"), default=(), help=about)
    about = "folder for intermediate files (default: artefacts/ of the checkout)"
    add("--artefacts", metavar="DIR", help=about)


def _predict(commands) -> None:
    command = _command(
        commands,
        "predict",
        "print the best labels of documents",
        """\
  plant predict model/ notes.txt -k 8
  plant predict model/ notes/ --out scores.csv
  plant predict model/ mine.csv --text note --id case --out scores.jsonl
  cat note.txt | tr '\\n' ' ' | plant predict model/ -
A score is an estimate, made on dev, of the chance that the label is right. In .csv an apostrophe
stands before a label or id that a spreadsheet would run (= + - @), and control characters are
shown as escapes; .jsonl has all names as they are.""",
    )
    add = command.add_argument
    add("model", help="folder that plant fit wrote")
    about = "a file with one document per line, a folder of .txt files, a table, or - for stdin"
    add("documents", help=about)
    add("-k", type=int, help="labels per document (default: 8)")
    about = "print the labels that the model accepts (plant tune), none or several per document"
    add("--accepted", action="store_true", help=about)
    about = "write a .csv or .jsonl file instead of tab-separated lines on stdout"
    add("--out", metavar="FILE", help=about)
    add("--batch", type=int, default=16, help="documents read at a time (default: 16)")
    _columns(command, labels=False)


def _evaluate(commands) -> None:
    command = _command(
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
    add = command.add_argument
    add("model", help="folder that plant fit wrote")
    add("corpus", help="a table, a known corpus or the folder of a saved corpus")
    about = "documents to read (default: all of a table without --split, else test)"
    add("--on", choices=("all", "train", "dev", "test"), help=about)
    add("--out", metavar="FILE", help="also write the numbers as .json")
    _columns(command)


def _tune(commands) -> None:
    command = _command(
        commands,
        "tune",
        "choose on labelled documents which labels a model accepts",
        """\
  plant tune model/ mine.csv --text note --labels codes --on dev --rule labels --by macro_f1
  plant tune model/ more.csv --text note --labels codes --recall 0.9
  plant predict model/ notes.txt --accepted
The rule is kept in the model's folder. Its documents must not have trained the model; a recall is
promised only by documents that dev did not hold either.""",
    )
    add = command.add_argument
    add("model", help="folder that plant fit wrote")
    add("corpus", help="a table, a known corpus or the folder of a saved corpus")
    about = "documents to read (default: all of a table without --split, else dev)"
    add("--on", choices=("all", "dev", "test"), help=about)
    about = (
        "threshold: one for all labels; labels: one per label, shrunk to it; places: one that"
        " depends on a label's place and on how many labels are expected in the document; budget:"
        " the same number of labels for every document (default: threshold)"
    )
    add("--rule", choices=("threshold", "labels", "places", "budget"), help=about)
    about = "the measure that chooses (default: micro_f1)"
    add("--by", choices=("micro_f1", "macro_f1", "sample_f1"), help=about)
    about = "promise that a document keeps this share of its labels on average, such as 0.9"
    add("--recall", type=float, help=about)
    add("--batch", type=int, default=16, help="documents read at a time (default: 16)")
    _columns(command)


def _review(commands) -> None:
    command = _command(
        commands,
        "review",
        "list the documents that a person should look at first",
        """\
  plant review model/ notes/
  plant review model/ mine.csv --text note --id case -n 20
One line per document, those with most expected errors first: document, expected number of wrong
decisions among its best 100 labels, and the decisions that are least sure, with the chance that
the label is right. + stands before a label that the model accepts (plant tune), - before
others.""",
    )
    add = command.add_argument
    add("model", help="folder that plant fit wrote")
    about = "a file with one document per line, a folder of .txt files, a table, or - for stdin"
    add("documents", help=about)
    add("-n", type=int, metavar="N", help="documents listed, at most (default: all)")
    add("--batch", type=int, default=16, help="documents read at a time (default: 16)")
    _columns(command, labels=False)


def _learn(commands) -> None:
    from plantlib.cli import corrections

    command = _command(
        commands,
        "learn",
        "let a model learn on from corrected documents",
        """\
  plant learn model/ corrected.csv --text note --labels codes --sep ";" --out model2/
A document of the table that the model was trained on gets the labels of the table; others are new
training documents. Labels that the model does not have become new ones.""",
    )
    corrections.add_options(command)
    _columns(command)


def _explain(commands) -> None:
    command = _command(
        commands,
        "explain",
        "show what each word adds to the logit of a label",
        """\
  plant explain model/ note.txt
  plant explain model/ --label i50.9 note.txt --out page.html""",
    )
    add = command.add_argument
    add("model", help="folder that plant fit wrote")
    add("document", help="a file that is one document, or - for stdin")
    add("--encoding", default="utf-8", help="encoding of the document (default: utf-8)")
    add("--label", help="the label to explain (default: the best one)")
    add("-k", type=int, default=10, help="number of words printed (default: 10)")
    about = "what is shown of a word: what it adds to the logit, or its attention"
    add("--kind", choices=("contribution", "attention"), default="contribution", help=about)
    about = "write an HTML page with the text and its highlighted words"
    add("--out", metavar="FILE", help=about)
    _mark(add)


def _export(commands) -> None:
    command = _command(
        commands,
        "export",
        "write a model as a graph that other programs run",
        """\
  plant export model/ --to onnx --out graph/
The folder holds the graph, two tokenizers and export.json; docs/guide.md has a short script
that predicts with the packages onnxruntime and tokenizers alone.""",
    )
    add = command.add_argument
    add("model", help="folder that plant fit wrote")
    add("--to", choices=("onnx",), default="onnx", help="the form of the graph (default: onnx)")
    add("--out", required=True, metavar="DIR", help="folder for the graph")
    about = "store the weights of matrix products in 8 bits; scores change by a few hundredths"
    add("--int8", action="store_true", help=about)


def _data(commands) -> None:
    command = _command(
        commands,
        "data",
        "build a known corpus, or list all of them",
        """\
  plant data --list
  plant data codiesp
  plant data codiesp --source ~/downloads/codiesp.zip""",
    )
    add = command.add_argument
    add("name", nargs="?", help="a known corpus or the folder of a saved corpus")
    about = "list the known corpora, and where each is or would come from"
    add("--list", action="store_true", help=about)
    about = "local folder or archive to build from, instead of $PLANT_DATA or a download"
    add("--source", metavar="PATH", help=about)


def _run_options(commands) -> None:
    command = _command(
        commands,
        "run",
        "run an experiment of runs/ through papermill",
        """\
  plant run runs/minilm-codiesp.yaml
  plant run runs/minilm-codiesp.yaml epochs=1 "starts=[random, lookup]"
A finished run is not repeated. A run with changed parameters writes its records to results/local/,
under a different name.""",
    )
    add = command.add_argument
    add("yaml", help="a file of runs/ with the keys notebook and parameters")
    about = "parameters that replace those of the file; values are YAML"
    add("changes", nargs="*", metavar="key=value", help=about)
    add("--force", action="store_true", help="repeat a finished run")


if __name__ == "__main__":
    sys.exit(main())
