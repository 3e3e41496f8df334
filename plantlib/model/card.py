"""The model card of a saved PlantModel: its documents, its use, its numbers and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plantlib.data import privacy
from plantlib.utils.folders import list_again
from plantlib.utils.io import atomic_path, write_json

CARD = """---
library_name: plantlib
pipeline_tag: text-classification
tags: [plant, multi-label, label-attention, planted-attention]
---

# {id}

A PLANT model: start `{system}`, backbone `{backbone}`, tuning `{tuning}`, seed {seed}.

Trained on **{name}**{synthetic}: {train:,} training, {dev:,} dev and \
{test:,} test documents; label space: {labels:,} {label_space}. \
Licence of these documents: {licence}.

```python
from plantlib import PlantModel
PlantModel.from_pretrained("this folder, or owner/name").predict(["..."], k=8)
```

## Intended use

To rank the labels of a text for a person who checks them, on texts like those it was trained on. \
Not for clinical decisions: a ranking of codes for a person to check.

## Numbers

{numbers}

Run of {created} on {cores} cores of {cpu}; parameters trained: {sizes}. All options and metrics: \
`run.json`.

## Limits

- It knows the {labels:,} labels of its label space and no other; one of few training documents \
is found less often.
- Scores are chances of being right on documents like dev; on other texts they may be wrong.
- It repeats what its documents say, errors and habits of those who labelled them included.
- The network reads {read} of a document.
"""
TESTED = """Scores are calibrated on dev; the epoch was chosen on dev and test was read once.

| test metric | value |
| --- | ---: |
{rows}"""
LEARNED = (
    "The model learned on from {count} documents after its first run; no number of test holds."
)
UNTESTED = "There was no test split, so that there are no numbers."


def write_card(record: Any, folder: str | Path) -> Path:
    """Write README.md and run.json of a model folder from its RunRecord; the path of the card.

    PrivacyError if the card would hold text of a credentialed corpus.
    """
    data, path = record.dataset, Path(folder) / "README.md"
    most = record.params.get("max_tokens")
    card = CARD.format(
        id=record.id,
        system=record.system,
        backbone=record.backbone,
        tuning=record.params.get("tuning", "frozen"),
        seed=record.seed,
        synthetic=" (synthetic)" if data["synthetic"] else "",
        licence=data.get("licence", "not stated"),
        **{key: data[key] for key in ("name", "train", "dev", "test", "labels", "label_space")},
        numbers=_numbers(record),
        created=record.created,
        cores=record.environment["cores"],
        cpu=record.environment["cpu"],
        sizes=_sizes(record.model_size),
        read=f"the first {most:,} tokens" if most else "all tokens",
    )
    # a model that learned on has the words of its first record, which was checked by its texts
    if "learned" not in record.params:
        privacy.check_record(record, path)
    if data.get("credentialed"):
        privacy.check(card.splitlines(), path)
    with atomic_path(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    names = ("id", "system", "backbone", "seed", "chosen_epoch", "params", "metrics", "dataset")
    names += ("history", "times", "peak_memory_mb", "environment")
    run = {name: getattr(record, name) for name in names}
    write_json(Path(folder) / "run.json", run)
    list_again(folder, "run.json")
    return path


def _numbers(record: Any) -> str:
    """The metrics on test, or why there are none."""
    rows = [
        f"| {name} | {value:.4f} |"
        for name, value in sorted(record.metrics.items())
        if value is not None
    ]
    if rows:
        return TESTED.format(rows="\n".join(rows))
    if learned := record.params.get("learned"):
        return LEARNED.format(count=sum(learned))
    return UNTESTED


def _sizes(sizes: Any) -> str:
    """A record's number of trained parameters, or its numbers by name, as text."""
    if not isinstance(sizes, dict):
        return f"{sizes or 0:,}"
    return (
        f"{sizes['trained_parameters']:,} ({sizes.get('trained_in_backbone', 0):,} of them in the"
        " backbone)"
    )
