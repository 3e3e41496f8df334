"""What reviewers asked, answered from committed results: question, answer, and what it rests on.

One row per question, with effects and their 95 % intervals over seeds and test documents, and the
files or runs that hold them. A question whose study has not run says which command runs it. Nothing
here trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from companion.report import costs
from companion.report.report import Group, markdown_table
from companion.studies import bigger_backbone, frequency, label_tails, languages, steps, transplants
from plantlib.data.sources import checkout
from plantlib.metrics.statistics import paired_bootstrap
from plantlib.training.records import RunRecord

QUESTIONS = {
    "transplants": "Do rare labels gain because attention changes, and it because of the start?",
    "bigger": "Or would a bigger language model do as well?",
    "frequency": "Does planted attention just follow rare words?",
    "costs": "What does it cost?",
    "labels": "Does it hold for 131,000 labels and more?",
    "languages": "And in another language?",
}
NAMES = {"ndcg@5": "nDCG@5", "few/rp@5": "RP@5 few"}
# two backbones that were trained alike: name -> millions of parameters
SIZES = {"minilm": 23, "smollm2": 135}
NOT_RUN = "Not run yet: `make run RUN=runs/questions-{}.yaml`."


def table(
    records: Iterable[RunRecord], groups: list[Group], results: str | Path | None = None
) -> str:
    """Markdown: question, answer, and the runs or files below results/ that it rests on.

    Args:
        records: of results/runs.
        groups: `report.groups` of them.
        results: the folder of the studies; results/ of the checkout when None.
    """
    results = Path(results or checkout() / "results")
    answers = {
        "transplants": causal(results),
        "bigger": bigger(records, results),
        "frequency": words(results),
        "costs": price(groups),
        "labels": label_sets(results),
        "languages": two_languages(results),
    }
    rows = [[text, *answers[name]] for name, text in QUESTIONS.items()]
    head = ["question", "answer", "runs"]
    note = (
        "Points (percent) with 95 % intervals over seeds and test documents. Seeds stand in"
        " parentheses."
    )
    return f"{markdown_table(head, rows, text=len(head))}\n\n{note}"


def points(found: dict, name: str = "value") -> str:
    """+2.1 [+0.3, +3.9]: a fraction with its interval, in points."""
    value, low, high = (100 * found[key] for key in (name, "low", "high"))
    return f"{value:+z.1f} [{low:+z.1f}, {high:+z.1f}]"


def in_words(groups: list[Group], results: str | Path | None = None) -> str:
    """One Markdown paragraph: the answers by nDCG@5, for each study and start that has run.

    Args:
        groups: `report.groups` of the records of results/runs.
        results: the folder of the studies; results/ of the checkout when None.
    """
    results = Path(results or checkout() / "results")
    sentences = [
        _shares_in_words(results),
        _sizes_in_words(results),
        _marks_in_words(results),
        _languages_in_words(results),
    ]
    if shares := costs.shares(groups):
        sentences.append(f"Counting and planting take {shares}.")
    return " ".join(filter(None, sentences))


def _shares_in_words(results: Path) -> str:
    parts = []
    for corpus, named in by_corpus(steps.load(results, transplants.STUDY)).items():
        files = [file for _, file in named if transplants.is_whole(file)]
        of = transplants.effects(files, "ndcg@5").set_index("effect") if files else None
        if of is not None and "mediated share" in of.index:
            share, low, high = (
                100 * of.loc["mediated share", name] for name in ("value", "low", "high")
            )
            parts.append(f"{share:.0f} % [{low:.0f}, {high:.0f}] on {corpus}")
    if not parts:
        return ""
    share = " and ".join(parts)
    return f"Attention alone, put into the unplanted model, brings {share} of what planting gains."


def _sizes_in_words(results: Path) -> str:
    sentences = []
    for tuning, how in (("frozen", "frozen"), ("lora", "with LoRA")):
        found = bigger_backbone.effects(bigger_backbone.load(results, tuning))
        for start, rows in found.groupby("start", sort=False) if len(found) else ():
            of = rows[rows["metric"] == "ndcg@5"].set_index("effect").to_dict("index")
            small, instead, both = (
                points(of[name], "difference")
                for name in ("planting in the small one", "the bigger one instead", "both")
            )
            sentences.append(
                f"Planting {start} in the small backbone, {how}, gains {small} points of nDCG@5, a"
                f" backbone of five times the size in its place {instead}, both {both}."
            )
    return " ".join(sentences)


def _marks_in_words(results: Path) -> str:
    sentences = []
    for file in steps.load(results, frequency.STUDY).values():
        of = frequency.table(file).set_index(["system", "measure"]).to_dict("index")
        pair = [of.get(("planted, after training", m)) for m in (frequency.GOLD, frequency.PARTIAL)]
        if None not in pair:
            plain, fixed = map(_correlation, pair)
            sentences.append(
                "Trained planted attention goes with the marked words of"
                f" {file['about']['dataset']['name']} by a rank correlation of {plain}, with word"
                f" frequency held fixed of {fixed}."
            )
    return " ".join(sentences)


def _languages_in_words(results: Path) -> str:
    found = languages.effects(languages.load(results))
    sentences = []
    for start, rows in found.groupby("start", sort=False) if len(found) else ():
        of = rows[rows["metric"] == "ndcg@5"].to_dict("records")
        texts = [f"{r['language']} {points(r, 'difference')}" for r in of]
        sentences.append(f"In points of nDCG@5 planting {start} gains: {', '.join(texts)}.")
    return " ".join(sentences)


def by_corpus(files: dict[str, dict]) -> dict[str, list[tuple[str, dict]]]:
    """Files of a study by the corpus that they name, as (file name, contents)."""
    found: dict[str, list[tuple[str, dict]]] = {}
    for name, file in files.items():
        found.setdefault(file["about"]["dataset"]["name"], []).append((name, file))
    return found


def causal(results: Path) -> tuple[str, str]:
    """What the transplants say."""
    parts, runs = [], []
    for corpus, named in by_corpus(steps.load(results, transplants.STUDY)).items():
        whole = [(name, f) for name, f in named if transplants.is_whole(f)]
        if not whole:
            continue
        files = [file for _, file in whole]
        runs += [name for name, _ in whole]
        for metric in transplants.METRICS:
            of = transplants.effects(files, metric).set_index("effect").to_dict("index")
            texts = [f"{name} {points(of[name])}" for name in transplants.EFFECTS]
            if "mediated share" in of:
                share = of["mediated share"]
                bounds = f"[{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
                texts.append(f"share by attention {100 * share['value']:.0f} % {bounds}")
            else:
                texts.append("no share, since the whole cannot be told from zero")
            seeds = f"({len(files)})"
            parts.append(f"**{corpus}, {NAMES[metric]}** {seeds}: {'; '.join(texts)}.")
        if (found := transplants.by_label(files)) is not None:
            bounds = f"[{found['low']:+.2f}, {found['high']:+.2f}]"
            parts.append(
                f"Over {found['labels']:,} labels, better attention goes with better average"
                f" precision: rank correlation {found['correlation']:+.2f} {bounds}."
            )
    if not parts:
        return NOT_RUN.format("transplants-es"), "-"
    return " ".join(parts), ", ".join(runs)


def bigger(records: Iterable[RunRecord], results: Path) -> tuple[str, str]:
    """What a bigger backbone adds to the small one: frozen, and trained with LoRA."""
    answers = [two_sizes(results, "frozen"), two_sizes(results, "lora"), tuned(records)]
    known = [answer for answer in answers if answer[1] != "-"]
    texts, runs = zip(*(known or answers[:1]), strict=True)
    return " ".join(texts), ", ".join(runs)


def two_sizes(results: Path, tuning: str) -> tuple[str, str]:
    """What the study of a bigger backbone says; tuning: of both, "frozen" or "lora"."""
    records = bigger_backbone.load(results, tuning)
    found = bigger_backbone.effects(records)
    if found.empty:
        return NOT_RUN.format("bigger-backbone"), "-"
    parts = [
        f"{name}{_price_of(about)}"
        for name, about in bigger_backbone.costs(results, records).items()
        if "training" in about
    ]
    tokens = records[0].params["max_tokens"]
    how = {"frozen": "frozen", "lora": "with LoRA"}[tuning]
    begin = f"Both {how}, {tokens} tokens of {records[0].dataset['name']}. "
    parts = [begin + "; ".join(parts) + "." if parts else begin.strip()]
    for (start, metric), rows in found.groupby(["start", "metric"], sort=False):
        texts = [f"{r['effect']} {points(r, 'difference')}" for r in rows.to_dict("records")]
        seeds = rows["seeds"].iloc[0]
        about = f"{start} against {languages.PAIRS[start]}, {NAMES[metric]}"
        parts.append(f"**{about}** ({seeds}): {'; '.join(texts)}.")
    folder = f"{steps.FOLDER}/{bigger_backbone.folder_of(tuning)}"
    return " ".join(parts), f"{folder}, {len(records)} records"


def _price_of(about: dict[str, float]) -> str:
    """The size of a backbone and what it costs; about: an entry of `bigger_backbone.costs`."""
    text = ": "
    if "parameters" in about:
        text = f", {about['parameters'] / 1e6:.0f} M parameters: "
    if "reading" in about:
        text += f"{1000 * about['reading']:,.0f} CPU ms to read a document, once, and "
    return f"{text}{about['training']:,.0f} CPU s of training"


def tuned(records: Iterable[RunRecord], dataset: str = "codiesp") -> tuple[str, str]:
    """What LoRA on a bigger backbone adds to the small one, beside what planting adds to it."""
    of = {
        (r.backbone, r.system, r.seed): r
        for r in records
        if (r.notebook or "").startswith("08")
        and r.dataset["name"] == dataset
        and r.backbone in SIZES
        and r.params.get("tuning") == "lora"
    }
    small, big = SIZES
    wanted = [(small, "random"), (small, "lookup"), (big, "random"), (big, "lookup")]
    seeds = [s for s in sorted({k[2] for k in of}) if all((*key, s) in of for key in wanted)]
    if not seeds:
        return "Not run yet: `make run RUN=runs/smollm2-codiesp.yaml`.", "-"
    parts = []
    for metric, name in NAMES.items():
        values = {
            key: np.array([of[*key, seed].per_document[metric] for seed in seeds], float)
            for key in wanted
        }
        gains = {
            f"planting in {SIZES[small]} M parameters": (small, "lookup"),
            f"{SIZES[big]} M parameters instead": (big, "random"),
            "both": (big, "lookup"),
        }
        texts = []
        for what, key in gains.items():
            found = paired_bootstrap(values[key], values[small, "random"])
            texts.append(f"{what} {points(found, 'mean_difference')}")
        parts.append(f"**{name}** ({len(seeds)}): {'; '.join(texts)}.")
    seconds = {
        key: np.mean([of[*key, seed].times["fine_tune"] for seed in seeds]) for key in wanted
    }
    tokens = of[*wanted[0], seeds[0]].params["max_tokens"]
    parts.append(
        f"Both with LoRA on {tokens} tokens of {dataset}; training took"
        f" {seconds[small, 'random']:,.0f} s and {seconds[big, 'random']:,.0f} s on shared cores."
        " Other sizes were not tuned."
    )
    runs = [of[*key, seed].id for key in wanted for seed in seeds]
    return " ".join(parts), ", ".join(runs)


def price(groups: list[Group]) -> tuple[str, str]:
    """What counting and planting cost of a run; the table of costs has the rest."""
    if not (found := costs.shares(groups)):
        return "Not run yet: `make reproduce`.", "-"
    text = (
        f"Counting and planting: {found}. The other stages, memory and peers are in the next table."
    )
    return text, "runs of the next table"


def words(results: Path) -> tuple[str, str]:
    """What the study of word frequency says."""
    parts, runs = [], []
    for corpus, named in by_corpus(steps.load(results, frequency.STUDY)).items():
        for name, file in named:
            rows = frequency.table(file)
            if rows.empty:
                continue
            runs.append(name)
            of = rows.set_index(["system", "measure"]).to_dict("index")
            seeds = len(file["steps"])
            for measure in frequency.MEASURES:
                texts = [
                    f"{system} {_correlation(of[system, measure])}"
                    for system in frequency.SYSTEMS
                    if (system, measure) in of
                ]
                if texts:
                    parts.append(f"**{measure}, {corpus}** ({seeds}): {'; '.join(texts)}.")
            if not file["about"]["training"]:
                parts.append("Trained attention was not measured.")
    if not parts:
        return NOT_RUN.format("frequency"), "-"
    return " ".join(["Rank correlation of a word's attention with", *parts]), ", ".join(runs)


def _correlation(found: dict) -> str:
    return f"{found['value']:+z.2f} [{found['low']:+z.2f}, {found['high']:+z.2f}]"


def label_sets(results: Path) -> tuple[str, str]:
    """What generated label sets of published sizes cost on candidates, and what lists reach."""
    rows = label_tails.load(results)
    if not rows:
        return NOT_RUN.format("labels"), "-"
    parts = ["Label sets generated to published sizes, since their texts cannot be had here."]
    for row in rows:
        width, recall = row["width"], row["recall"]
        reached = (100 * recall[of][str(width)] for of in ("all", "few"))
        whole, few = (f"{value:.1f} %" for value in reached)
        counting = row["seconds"]["count"] + row["seconds"]["lists of words"]
        parts.append(
            f"**{row['name']}** ({row['train_documents']:,} documents, {row['labels']:,} labels):"
            f" counting takes {counting:.0f} CPU s, a document {row['rank_ms']:.1f} ms to rank"
            f" and {row['step_ms']:.1f} ms of training on {width} candidates, with"
            f" {row['tables_mib']:,} MiB of tables and a peak of {row['peak_mib'] / 1024:.1f} GiB;"
            f" {width} candidates hold {whole} of the gold labels, {few} of those of few documents."
        )
    parts.append(
        "Recall is that of generated words, not of the real texts. A table of one's own needs"
        " `plant fit` alone; `runs/minilm-amazon-670k.yaml` runs the real Amazon-670K."
    )
    if missing := [name for name in label_tails.SIZES if name not in {r["name"] for r in rows}]:
        parts.append(f"Not run: {', '.join(missing)}.")
    return " ".join(parts), ", ".join(row["file"] for row in rows)


def two_languages(results: Path) -> tuple[str, str]:
    """What planting is worth in both languages."""
    records = languages.load(results)
    found = languages.effects(records)
    if found.empty:
        return NOT_RUN.format("languages"), "-"
    parts = []
    for (start, metric), rows in found.groupby(["start", "metric"], sort=False):
        texts = [f"{r['language']} {points(r, 'difference')}" for r in rows.to_dict("records")]
        seeds = rows["seeds"].iloc[0]
        without = languages.PAIRS[start]
        parts.append(f"**{start} minus {without}, {NAMES[metric]}** ({seeds}): {'; '.join(texts)}.")
    folder = f"{steps.FOLDER}/{languages.STUDY}"
    return " ".join(["The same documents:", *parts]), f"{folder}, {len(records)} records"
