"""CodiEsp by its official protocol: every gold code counts, whether it has a training document or
not, MAP over the whole ranking, and micro-F1 with a threshold that dev chose.

Supervisions stand beside the published rows of results/official_published.csv: the codes of the
training documents alone, their marked spans as well, and with the spans the English text of the
same documents (docs/method.md, "Phrases and evidence"). For diagnoses the names of codes can join
(`official_names`), which alone reach a code without a training document. No network is trained:
boosted trees (`official_sum`) weigh terms that are counted or fitted on training documents, and are
fitted to training documents scored by terms made without them. The threshold is chosen on dev with
the training documents alone, and is reused where dev joins the training documents. `python -m
companion.studies.official D` measures dev; with --test it reads test once and writes the table.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from companion.report.report import markdown_table
from companion.studies import official_names
from companion.studies.official_sum import ABSENT, boosted
from plantlib.data.corpus import Corpus
from plantlib.data.sources import checkout
from plantlib.data.tokens import tfidf, words
from plantlib.kernels.counts import presence
from plantlib.linear import ridge
from plantlib.linear.score import PENALTIES
from plantlib.linear.terms import centroids
from plantlib.teacher import mig, phrases
from plantlib.teacher.phrases import Marks
from plantlib.training.records import environment
from plantlib.utils.io import read_json, write_json

TASKS = {"D": "codiesp", "P": "codiesp-p"}
NAMES = "+names"  # end of the supervisions with names of codes
BARE = ("codes", "spans", "spans+english")
SUPERVISIONS = {"P": BARE, "D": (*BARE, "codes" + NAMES, "spans+english" + NAMES)}
FOLDS = 5
FLOOR = 1e-3  # added to a chance before its logarithm is taken
NGRAMS = 64  # n-grams that are mined per label
PUBLISHED = "official_published.csv"
MEASURES = ("map", "micro_f1")
OURS = "counted phrases and words, in boosted trees"


@dataclass(frozen=True, eq=False)
class Data:
    """The documents of a task in both languages, N of them.

    spanish, english: N texts. labels: (N, L) csr. split: (N,). spans: rows of the evidence. names:
    L codes.
    """

    spanish: list[str]
    english: list[str]
    labels: sparse.csr_matrix
    split: np.ndarray
    spans: dict[str, np.ndarray]
    names: list[str]


def load(task: str) -> Data:
    """The data of a task, D or P."""
    english = Corpus.load(TASKS[task]).labelled()
    spanish = Corpus.load(f"{TASKS[task]}-es").labelled()
    row = {name: i for i, name in enumerate(spanish.ids)}
    column = {name: i for i, name in enumerate(spanish.label_names)}
    frame = spanish.evidence
    text_of = dict(zip(english.ids, english.texts, strict=True))
    return Data(
        spanish.texts,
        [text_of[name] for name in spanish.ids],
        spanish.labels,
        spanish.split,
        {
            "document": frame["id"].map(row).to_numpy(),
            "label": frame["label"].map(column).to_numpy(),
            **{name: frame[name].to_numpy() for name in ("start", "end", "mention")},
        },
        spanish.label_names,
    )


def marks_of(data: Data, train: np.ndarray, form: str = "words") -> tuple[Marks, np.ndarray]:
    """Marks of the training documents, and the mention of each; train: ascending rows."""
    own = np.isin(data.spans["document"], train)
    spans = {name: values[own] for name, values in data.spans.items()}
    document = np.searchsorted(train, spans["document"])
    texts = [data.spanish[i] for i in train]
    numbers = np.arange(len(document))
    # the number of a span stands in the place of its label, to find its mention again
    marks = Marks.of_spans(texts, document, numbers, spans["start"], spans["end"], form)
    mention = spans["mention"][marks.label]
    return Marks(marks.document, spans["label"][marks.label], marks.phrases), mention


def joined(marks: Marks, mention: np.ndarray) -> Marks:
    """The mentions as one phrase each, their pieces one after the other."""
    numbers, first, of = np.unique(mention, return_index=True, return_inverse=True)
    whole: list[phrases.Phrase] = [()] * len(numbers)
    for piece, number in zip(marks.phrases, of.tolist(), strict=True):
        whole[number] += piece
    return Marks(marks.document[first], marks.label[first], whole)


def phrase_term(texts: list[str], data: Data, train: np.ndarray, **options) -> np.ndarray:
    """(N, L) logarithms of a phrase teacher's scores, 0 where no phrase stands.

    options: of `phrases.teach`.
    """
    teacher = phrases.teach([texts[i] for i in train], data.labels[train], **options)
    scores = teacher.scores(texts).toarray()
    scores[train] = teacher.held_out_scores().toarray()
    return np.log1p(scores / FLOOR).astype(np.float32)


def span_terms(data: Data, train: np.ndarray) -> dict[str, np.ndarray]:
    """Terms of marked evidence: pieces, whole mentions, pieces by stems, and parts of mentions."""
    pieces, mention = marks_of(data, train)
    stems, _ = marks_of(data, train, "stems")
    whole = joined(pieces, mention)
    return {
        "pieces": phrase_term(data.spanish, data, train, marks=pieces),
        "mentions": phrase_term(data.spanish, data, train, marks=whole),
        "stems": phrase_term(data.spanish, data, train, marks=stems, form="stems"),
        "parts": phrase_term(data.spanish, data, train, marks=phrases.parts(whole)),
    }


def held_out(
    labels: sparse.csr_matrix,
    train: np.ndarray,
    fold: np.ndarray,
    make: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]],
) -> np.ndarray:
    """(N, L) scores, of training documents by what was made without their fold.

    make: training rows -> function from rows to scores.
    """
    scores = make(train)(np.arange(labels.shape[0])).astype(np.float32)
    for k in range(FOLDS):
        scores[train[fold == k]] = make(train[fold != k])(train[fold == k])
    return scores


def word_terms(
    texts: list[str], data: Data, train: np.ndarray, fold: np.ndarray
) -> dict[str, np.ndarray]:
    """Terms of single words: mutual information, its normalised form, label centroids, and ridge
    regressions.
    """
    weights = tfidf(counts := words(texts, train).counts, train)
    present = presence(counts)
    makers = {
        "MI": lambda rows: mig.teach(present[rows], data.labels[rows]).scores,
        "J": lambda rows: mig.teach(present[rows], data.labels[rows], variant="jaccard").scores,
        "centroids": lambda rows: centroids(weights[rows], data.labels[rows]).scores,
    }

    def scorer(make, rows):
        table = make(rows).T.tocsr()
        return lambda of: (weights[of] @ table).toarray()

    def fitted(penalty, rows):
        (table,) = ridge.fit(weights[rows], data.labels[rows], {penalty: PENALTIES[penalty]})
        return lambda of: table.scores(weights[of])

    counted = {name: partial(scorer, make) for name, make in makers.items()}
    ridges = {f"ridge {penalty:g}": partial(fitted, penalty) for penalty in PENALTIES}
    return {
        name: held_out(data.labels, train, fold, make) for name, make in (counted | ridges).items()
    }


def ngram_term(
    texts: list[str], data: Data, train: np.ndarray, fold: np.ndarray
) -> dict[str, np.ndarray]:
    """The term of mined n-grams. They are chosen by the labels of their documents, so that held-out
    scores need n-grams that were mined without the fold.
    """

    def make(rows):
        teacher = phrases.teach([texts[i] for i in rows], data.labels[rows], ngrams=NGRAMS)
        return lambda of: np.log1p(teacher.scores([texts[i] for i in of]).toarray() / FLOOR)

    return {"n-grams": held_out(data.labels, train, fold, make)}


def other_terms(
    supervision: str, data: Data, train: np.ndarray, fold: np.ndarray
) -> dict[str, np.ndarray]:
    """The terms of a supervision beside those of spans, name -> (N, L)."""
    both = [f"{es}\n{en}" for es, en in zip(data.spanish, data.english, strict=True)]
    if supervision.removesuffix(NAMES) == "codes":
        return word_terms(both, data, train, fold) | ngram_term(both, data, train, fold)
    return word_terms(data.spanish if supervision == "spans" else both, data, train, fold)


def with_names(data: Data, train: np.ndarray) -> tuple[Data, dict[str, np.ndarray], np.ndarray]:
    """The data with a label for every code that stands among the best of a document by its name,
    the terms of names (N, L), and (L,) which labels have one.

    train: rows whose labels have a training document; they are named too.
    """
    texts = official_names.terminology()
    seen = {data.names[label] for label in np.unique(data.labels[train].indices)}
    terms = official_names.matches(data.english, train, list(texts.values()))
    unseen = np.array([code not in seen for code in texts])
    picked = ~unseen
    picked[official_names.best_of(terms[1], unseen)] = True
    place = {code: i for i, code in enumerate(texts) if picked[i]}
    listed = set(data.names)
    names = data.names + [code for code in place if code not in listed]
    of = np.array([place.get(name, -1) for name in names])
    more = sparse.csr_matrix((data.labels.shape[0], len(names) - len(data.names)))
    labels = sparse.hstack([data.labels, more], "csr")
    values = {
        name: np.where(of >= 0, own[:, of], nothing).astype(np.float32)
        for name, own, nothing in zip(
            ("coverage", "mass"), terms, (0, official_names.NOTHING), strict=True
        )
    }
    return replace(data, labels=labels, names=names), values, of >= 0


def average_precisions(scores: np.ndarray, labels: sparse.csr_matrix) -> np.ndarray:
    """(b,) average precision over the whole ranking; nan for a document without gold codes.

    A gold code that is not ranked (ABSENT) counts as never found. scores: (b, L).
    """
    precisions = np.full(len(scores), np.nan)
    for row, own in enumerate(scores):
        gold = labels[row].indices
        if not len(gold):
            continue
        place = np.empty(len(own), np.int64)
        place[np.argsort(-own, kind="stable")] = np.arange(1, len(own) + 1)
        places = np.sort(place[gold[own[gold] > ABSENT]])
        precisions[row] = (np.arange(1, len(places) + 1) / places).sum() / len(gold)
    return precisions


def micro_f1(scores: np.ndarray, labels: sparse.csr_matrix, threshold: float) -> float:
    """Micro-F1 of the labels whose score is above the threshold, over all gold codes."""
    chosen = scores > threshold
    right = np.asarray(chosen[labels.nonzero()]).sum()
    return float(2 * right / max(chosen.sum() + labels.nnz, 1))


def best_threshold(scores: np.ndarray, labels: sparse.csr_matrix) -> float:
    """The score that, as a threshold, has the highest micro-F1."""
    order = np.argsort(-scores, axis=None, kind="stable")
    right = labels.toarray().ravel()[order].cumsum()
    f1 = 2 * right / (np.arange(1, len(order) + 1) + labels.nnz)
    best = int(f1.argmax())
    ranked = scores.ravel()[order]
    return float((ranked[best] + ranked[best + 1]) / 2)


def measure(task: str, supervision: str, seeds: Iterable[int], test: bool) -> dict:
    """What is written to a file of RESULTS: one row per seed and number of training documents.

    Args:
        task: D or P.
        supervision: one of SUPERVISIONS of the task.
        seeds: of folds and drawn cells.
        test: read test, with the training documents and with dev joined to them; else dev.
    """
    began = time.process_time()
    data = load(task)
    rows = {split: np.flatnonzero(data.split == split) for split in ("train", "dev", "test")}
    read = rows["test" if test else "dev"]
    sizes = [rows["train"]]
    if test:
        sizes.append(np.sort(np.concatenate([rows["train"], rows["dev"]])))
    given = [_given(supervision, data, train) for train in sizes]
    found = []
    for seed in seeds:
        threshold = None
        for train, (own, drawn_once, named) in zip(sizes, given, strict=True):
            fold = np.random.default_rng(seed).integers(0, FOLDS, len(train))
            terms = drawn_once | other_terms(supervision, own, train, fold)
            asked = read if threshold is not None else np.union1d(rows["dev"], read)
            scores = np.full(own.labels.shape, ABSENT, np.float32)
            scores[asked] = boosted(terms, own.labels, train, fold, asked, seed, named)
            gold = own.labels[read]
            if threshold is None:
                threshold = best_threshold(scores[rows["dev"]], own.labels[rows["dev"]])
            found.append(
                {
                    "documents": len(train),
                    "seed": seed,
                    "map": float(np.nanmean(average_precisions(scores[read], gold))),
                    "micro_f1": micro_f1(scores[read], gold, threshold),
                    "threshold": threshold,
                }
            )
            print(task, supervision, found[-1], file=sys.stderr, flush=True)
    return {
        "task": task,
        "split": "test" if test else "dev",
        "supervision": supervision,
        "terms": list(terms),
        "rows": found,
        "cpu_seconds": round(time.process_time() - began, 1),
        "environment": environment(),
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _given(
    supervision: str, data: Data, train: np.ndarray
) -> tuple[Data, dict[str, np.ndarray], np.ndarray | None]:
    """The data, the terms that no seed changes, and which labels have a name."""
    terms, named = {}, None
    if supervision.endswith(NAMES):
        data, terms, named = with_names(data, train)
    if not supervision.startswith("codes"):
        terms = span_terms(data, train) | terms
    return data, terms, named


def file_of(results: Path, task: str, supervision: str) -> Path:
    """The file of a task and a supervision below results/."""
    return results / f"official-codiesp-{task.lower()}-{supervision.replace('+', '-')}.json"


def rows_of(results: str | Path | None = None) -> list[tuple]:
    """Published rows and ours, by task and MAP: task, documents, system, supervision, MAP,
    micro-F1 (fractions or None), source; results: the folder, results/ of the checkout when None.
    """
    results = Path(results or checkout() / "results")
    with (results / PUBLISHED).open(newline="", encoding="utf-8") as file:
        rows = [
            (row["task"], int(row["documents"]), row["system"], row["supervision"])
            + tuple(float(row[name]) if row[name] else None for name in MEASURES)
            + (row["source"],)
            for row in csv.DictReader(file)
        ]
    for path in sorted(results.glob("official-codiesp-*.json")):
        ours = read_json(path)
        for documents in sorted({row["documents"] for row in ours["rows"]}):
            own = [row for row in ours["rows"] if row["documents"] == documents]
            means = tuple(float(np.mean([row[name] for row in own])) for name in MEASURES)
            seeds = f"ours, {len(own)} seed{'s' * (len(own) > 1)}, {', '.join(ours['terms'])}"
            rows.append((ours["task"], documents, OURS, ours["supervision"], *means, seeds))
    return sorted(rows, key=lambda row: (row[0], -row[4]))


def in_words(results: str | Path | None = None) -> str:
    """A Markdown line per task: ours by supervision beside the best published MAP and its own."""
    rows, lines = rows_of(results), []
    for task in sorted({row[0] for row in rows}):
        ours = [row for row in rows if row[0] == task and row[2] == OURS]
        best = max((row for row in rows if row[0] == task and row[2] != OURS), key=lambda r: r[4])
        parts = [
            f"{_cell(ap)} from `{supervision}` of {documents} documents"
            f" ({100 * (ap - best[4]):+z.1f})"
            for _, documents, _, supervision, ap, *_ in ours
        ]
        lines.append(
            f"* CodiEsp-{task}: the best published MAP is {_cell(best[4])}, from {best[3]} of"
            f" {best[1]} documents. Ours: {'; '.join(parts) or 'not run'}."
        )
    return "\n".join(lines)


def table(results: str | Path | None = None) -> str:
    """Markdown: published rows and ours, by task and MAP; "" without a file of ours."""
    cells = [
        [f"CodiEsp-{task}", f"{documents}", system, supervision, _cell(ap), _cell(f1), source]
        for task, documents, system, supervision, ap, f1, source in rows_of(results)
    ]
    head = ["task", "documents", "system", "supervision", "MAP", "micro-F1", "source"]
    note = (
        "Test, all gold codes, in percent. `codes`: the codes of the training documents alone;"
        " `spans`: their marked words as well; `spans+english`: and the English text of the same"
        " documents; `names`: descriptions and inclusion terms of all of ICD-10-CM, found in the"
        " English text; 500 documents are train, 750 train and dev."
    )
    return f"{markdown_table(head, cells, text=4)}\n\n{note}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def chosen(task: str, supervision: Sequence[str] | None) -> Sequence[str]:
    """`supervision`, or all of a task where it is None; ValueError for an unknown one."""
    known = SUPERVISIONS.get(task, ())
    wanted = known if supervision is None else supervision
    if not known or set(wanted) - set(known):
        raise ValueError(
            f"task={task!r}, supervision={supervision}: wanted {' or '.join(TASKS)}, and some of"
            f" {', '.join(known or SUPERVISIONS['D'])}"
        )
    return wanted


def run(
    task: str,
    seeds: Sequence[int] = (0, 1, 2),
    supervision: Sequence[str] | None = None,
    results: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Measure test and write one file per supervision, unless it is there with these seeds.

    Args:
        task: D or P.
        seeds: of folds and drawn cells.
        supervision: some of SUPERVISIONS of the task; None for all.
        results: the folder to write to; results/ of the checkout when None.
        force: measure again what is there.

    Returns:
        `results`.

    Raises:
        ValueError: an unknown task or supervision.
    """
    supervision = chosen(task, supervision)
    results = Path(results or checkout() / "results")
    for name in supervision:
        path = file_of(results, task, name)
        known = {row["seed"] for row in read_json(path)["rows"]} if path.is_file() else set()
        if force or known != set(seeds):
            write_json(path, measure(task, name, seeds, True))
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure one task; exit status 1 and one line of error where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.studies.official", description=__doc__.split("\n")[0]
    )
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument("--supervision", nargs="+", choices=SUPERVISIONS["D"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", action="store_true", help="read test and write results/")
    options = parser.parse_args(arguments)
    try:
        if options.test:
            run(options.task, options.seeds, options.supervision)
        else:
            for name in chosen(options.task, options.supervision):
                measure(options.task, name, options.seeds, False)
    except (OSError, ValueError) as error:
        print(f"official: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
