"""synthetic-icd: invented clinical notes with ICD-10-CM codes, for the lessons and the tests.

They are NOT real notes. They are made from the public terminology in the package simple-icd-10-cm
(U.S. public domain): about 300 codes in families of siblings, with Zipf frequencies, so many codes
have one to five training notes. A note has 3 to 8 codes; each is mentioned by its name, an
inclusion term, a shortened or reordered form, an abbreviation or sometimes the name of its family.
Negated findings and diseases of relatives name codes that do NOT apply; further sentences name
none. The evidence spans of true mentions are kept. All random choices use Random.random(), so a
seed and a version of the package give the same bytes on every platform.
"""

from __future__ import annotations

import random
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError

try:
    from data_scripts import common
except ModuleNotFoundError:
    import common

NAME = "synthetic-icd"
PACKAGE = "simple-icd-10-cm"
OPENINGS = (
    "{age}-year-old {sex} seen in the clinic.",
    "{sex}, {age} years, admitted through the emergency room.",
    "Patient is a {age}-year-old {sex}.",
    "Review of a {sex} aged {age}.",
    "{age}-year-old {sex}, day {day} of stay.",
)
TRUE = (
    "History of {}.",
    "Known {}, on treatment.",
    "Examination and imaging are consistent with {}.",
    "Admitted with {}.",
    "Findings confirm {}.",
    "The course was complicated by {}.",
    "Assessment: {}.",
    "Continues follow-up for {}.",
    "Plan: treat {} and review in {day} days.",
    "Presents with {}, now day {day}.",
    "Past records show {}.",
    "Working diagnosis is {}.",
    "Symptoms due to {}.",
    "Discharged with {}, stable.",
)
FALSE = (
    "No evidence of {}.",
    "Denies {}.",
    "{} was ruled out.",
    "Mother had {}.",
    "Father died of {}.",
    "Workup negative for {}.",
    "{} considered and excluded.",
    "Brother is treated for {}.",
    "Differential included {}, not confirmed.",
    "Screening for {} was negative.",
    "Never had {}.",
)
IDLE = (
    "Vital signs stable, pulse {pulse}.",
    "Tolerating diet.",
    "Medication list reviewed with the patient.",
    "Blood pressure {sys} over {dia}.",
    "Family present at the bedside.",
    "Laboratory results pending.",
    "Ambulating without assistance.",
    "Return precautions were given.",
    "Sleep and appetite are fair.",
    "Lives at home with spouse.",
    "Quit smoking {day} years ago.",
    "Allergies reviewed, none new.",
    "Pain {day} of 10 on arrival.",
    "Follow up in {day} weeks.",
    "Immunisations are up to date.",
)
FILLERS = re.compile(
    r"\(.*?\)|\[.*?\]|,? (?:unspecified|NOS|NEC)\b|,? not elsewhere classified|,? other specified"
)
SMALL = frozenset(
    {"of", "the", "and", "with", "in", "to", "due", "or", "by", "for", "a", "without", "other"}
)


class Code(NamedTuple):
    """A code, its family's name, and the phrases that may name it."""

    code: str
    family: str
    phrases: list[str]


class Draw:
    """Random choices made of `random()`, whose sequence for a seed Python guarantees."""

    def __init__(self, key: str) -> None:
        self.random = random.Random(key).random

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return int(self.random() * n)

    def pick(self, values: Sequence[Any]) -> Any:
        """One of the values."""
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[Any]) -> list[Any]:
        """The values in a random order."""
        keys = [(self.random(), i) for i in range(len(values))]
        return [values[i] for _, i in sorted(keys)]

    def weighted(self, cumulative: Sequence[float]) -> int:
        """An index, drawn by cumulative weights."""
        at = self.random() * cumulative[-1]
        return min(sum(c <= at for c in cumulative), len(cumulative) - 1)


def plain(term: str) -> str:
    """A phrase of the terminology as a note writes it: without brackets, 'unspecified' or 'NOS'."""
    return " ".join(FILLERS.sub("", term).split()).strip(" ,;").lower()


def families(terminology: Any) -> dict[str, list[Code]]:
    """Category -> billable codes of chapters A-N with at least one inclusion term.

    The order is that of the terminology.
    """
    by_category: dict[str, list[Code]] = defaultdict(list)
    for code in terminology.get_all_codes():
        if code[0] > "N" or "-" in code or len(code) < 5 or not terminology.is_leaf(code):
            continue
        terms = [terminology.get_description(code), *terminology.get_inclusion_term(code)]
        phrases = [
            p for p in dict.fromkeys(map(plain, terms)) if 1 <= len(p.split()) <= 7 and len(p) > 4
        ]
        if len(phrases) > 1:
            family = plain(terminology.get_description(code[:3]))
            by_category[code[:3]].append(Code(code, family, phrases))
    return by_category


def choose_codes(count: int, seed: int) -> list[Code]:
    """`count` codes, most frequent first: families of 2 to 5 siblings in a random order.

    DataError where the package is missing or has too few codes.
    """
    try:
        import simple_icd_10_cm as terminology
    except ImportError:
        raise DataError(f"the package {PACKAGE} is missing: pip install {PACKAGE}") from None
    groups = [group for group in families(terminology).values() if len(group) > 1]
    most = sum(min(len(group), 5) for group in groups)
    if not 2 <= count <= most:
        raise DataError(f"labels={count}: wanted 2 to {most}")
    draw = Draw(f"{seed}|codes")
    chosen = []
    for group in draw.shuffled(groups):
        chosen += draw.shuffled(group)[:5]
    return draw.shuffled(chosen[:count])


def mention(code: Code, draw: Draw) -> str:
    """One way to name a code: its family, an abbreviation, or a phrase, shortened or reordered."""
    words = draw.pick(code.phrases).split()
    way = draw.random()
    if way < 0.08:
        return code.family
    content = [w for w in words if w not in SMALL]
    if way < 0.15 and len(content) >= 3:
        return "".join(w[0] for w in content).upper()
    if way < 0.40 and len(words) >= 3:
        words.pop(1 + draw.below(len(words) - 1))
    elif way < 0.60 and "of" in words[1:-1]:
        at = words.index("of")
        words = words[at + 1 :] + words[:at]
    # sometimes with two letters swapped
    if draw.random() < 0.08:
        at = draw.below(len(words))
        words[at] = words[at][:-2] + words[at][-1:] + words[at][-2:-1]
    return " ".join(words)


def draw_codes(codes: list[Code], cumulative: Sequence[float], draw: Draw) -> list[int]:
    """3 to 8 distinct code indices; codes of another chapter than the first are half as likely.

    codes: most frequent first; cumulative: their cumulative weights.
    """
    count = min(3 + draw.below(6), len(codes))
    indices = [draw.weighted(cumulative)]
    for _ in range(200):
        if len(indices) >= count:
            break
        index = draw.weighted(cumulative)
        other_chapter = codes[index].code[0] != codes[indices[0]].code[0]
        if index not in indices and not (other_chapter and draw.random() < 0.5):
            indices.append(index)
    return indices


def note(
    codes: list[Code], cumulative: Sequence[float], draw: Draw
) -> tuple[str, list[int], list[tuple]]:
    """A note: text, indices of its codes, (code index, start, end) of every true mention.

    codes: most frequent first; cumulative: their cumulative weights.
    """
    # which sentences: true mentions (some twice), mentions of codes that do not apply, others
    indices = draw_codes(codes, cumulative, draw)
    others = [draw.weighted(cumulative) for _ in range(1 + draw.below(4))]
    categories = {codes[i].code[:3] for i in indices}
    sentences = [(i, TRUE) for i in indices] + [(i, TRUE) for i in indices if draw.random() < 0.2]
    sentences += [(i, FALSE) for i in others if codes[i].code[:3] not in categories]
    sentences += [(None, IDLE)] * (3 + draw.below(5))
    values = {
        "age": 20 + draw.below(70),
        "sex": draw.pick(("man", "woman")),
        "day": 2 + draw.below(8),
        "pulse": 60 + draw.below(40),
        "sys": 100 + draw.below(60),
        "dia": 60 + draw.below(30),
    }
    # the text
    text = draw.pick(OPENINGS).format(**values)
    spans = []
    for index, templates in draw.shuffled(sentences):
        before, _, after = draw.pick(templates).partition("{}")
        text += " " + before.format(**values)
        if index is not None:
            name = mention(codes[index], draw)
            if templates is TRUE:
                spans.append((index, len(text), len(text) + len(name)))
            text += name
        text += after.format(**values)
    return text, indices, spans


def make(documents: Sequence[int] = (400, 100, 150), labels: int = 300, seed: int = 0) -> Corpus:
    """The corpus. A note depends on the seed, the number of labels, its split and its number.

    documents: number of train, dev and test documents; labels: number of codes.
    """
    import pandas as pd

    # generate the notes
    codes = choose_codes(labels, seed)
    cumulative = list(accumulate(1.0 / (rank + 3.0) for rank in range(labels)))
    ids, texts, labels_of, split, spans = [], [], [], [], []
    for part, count in zip(("train", "dev", "test"), documents, strict=True):
        for number in range(count):
            text, indices, mentions = note(codes, cumulative, Draw(f"{seed}|{part}|{number}"))
            ids.append(f"synthetic-{part}-{number:05d}")
            texts.append(text)
            labels_of.append([codes[i].code for i in indices])
            split.append(part)
            spans += [
                (ids[-1], codes[i].code, start, end, text[start:end])
                for i, start, end in sorted(mentions)
            ]
    # describe the codes that occur
    import simple_icd_10_cm as terminology

    used = {code for codes_of_note in labels_of for code in codes_of_note}
    manifest = common.manifest(
        f"generated from the ICD-10-CM terminology of {PACKAGE} {version(PACKAGE)}",
        "U.S. public domain terminology",
        {},
        "synthetic notes: no patient, no hospital, no clinical truth",
        synthetic=True,
        language="en",
        seed=seed,
        labels_asked=labels,
        package=f"{PACKAGE}=={version(PACKAGE)}",
    )
    return Corpus.from_lists(
        NAME,
        ids,
        texts,
        labels_of,
        split,
        manifest=manifest,
        label_texts={code: terminology.get_description(code) for code in sorted(used)},
        evidence=pd.DataFrame(spans, columns=["id", "label", "start", "end", "text"]),
    )


def build(
    out: Path,
    source: Path | None = None,
    *,
    documents: Sequence[int] = (400, 100, 150),
    labels: int = 300,
    seed: int = 0,
) -> Path:
    """Generate the corpus folder `out`, in a few seconds; `source` is not used.

    documents: number of train, dev and test documents; labels: number of codes.
    """
    return make(documents, labels, seed).save(out)


OPTIONS = {
    "--documents": {
        "type": int,
        "nargs": 3,
        "default": (400, 100, 150),
        "metavar": ("TRAIN", "DEV", "TEST"),
    },
    "--labels": {"type": int, "default": 300},
    "--seed": {"type": int, "default": 0},
}

if __name__ == "__main__":
    sys.exit(common.cli(__doc__, NAME, build, OPTIONS))
