"""Metrics as tables and axes name them: nDCG@5, not ndcg@5."""

from __future__ import annotations

NAMES = {
    "p@1": "P@1",
    "p@3": "P@3",
    "p@5": "P@5",
    "ndcg@5": "nDCG@5",
    "psp@5": "PSP@5",
    "macro_f1": "macro-F1",
    "few/overall_r@15": "R@15 few of all",
    "few/rp@5": "RP@5 few",
    "medium/rp@5": "RP@5 medium",
    "head/rp@5": "RP@5 head",
}
MEASURES = {"p": "P", "r": "R", "rp": "RP", "ndcg": "nDCG", "psp": "PSP", "map": "MAP"}


def metric_name(metric: str) -> str:
    """The name of a metric by its key in a record, also of one that no table shows."""
    if metric in NAMES:
        return NAMES[metric]
    bucket, _, measure = metric.rpartition("/")
    name, at, k = measure.partition("@")
    name = MEASURES.get(name, name.replace("_f1", "-F1").replace("_auc", "-AUC"))
    return f"{name}{at}{k} {bucket}".rstrip()
