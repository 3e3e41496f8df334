"""The colours of systems: one each, with the same meaning in all figures and notebooks.

Starts are told apart by colour-blind readers too (a test simulates how they see them). Nothing here
draws.
"""

from __future__ import annotations

from collections.abc import Iterable

# Grey: nothing planted. Browns: planted under the wrong labels. Oranges: a lookup planted. Blue,
# green, pink: learnt queries, closed form, the first version. Black: the linear score alone. Olive:
# the teacher's score of a document.
COLOURS = {
    "random": "#777777",
    "shuffled": "#b9a48f",
    "l2r": "#0173b2",
    "closed_form": "#005f49",
    "lookup": "#de8f05",
    "v1": "#d98bc9",
    "linear": "#000000",
    "score": "#4f4a00",
    "lookup+score": "#e9ad55",
    "shuffled+linear": "#6b4a2b",
    "lookup+linear": "#c44601",
}
# Peers: violets and light blues for one-vs-rest models, slates for label trees, pinks for neural
# heads, yellows for bare teachers.
PEERS = {
    "linear score": "#444444",
    "SVM": "#5b3a8e",
    "SVM, tuned": "#8f6fc4",
    "SVM + J": "#56b4e9",
    "SVM + MI": "#1f4e79",
    "logistic": "#a88fd0",
    "Bonsai": "#4f7a94",
    "Parabel": "#7f9fb0",
    "PLT": "#a8c0cc",
    "XR-Linear": "#2f4f5f",
    "CAML head": "#f4a6d7",
    "PLM-ICD head": "#a34b8f",
    "bare MI": "#b8a400",
    "bare J": "#8c2d04",
    "bare centroid": "#d9b3c9",
    "bare PPMI": "#d8ca3c",
}
# what is no system: measures, corpora
OTHERS = ("#440154", "#31688e", "#35b779", "#b8b000", "#f1605d", "#8d8dd6")
# ways to compute the same numbers
IMPLEMENTATIONS = dict(
    zip(("eager", "ours", "sdpa", "published", "reference", "pairwise"), OTHERS, strict=True)
)


def colours(systems: Iterable[str]) -> dict[str, str]:
    """System -> colour: fixed for known systems, one of OTHERS in turn for each other one."""
    names = list(dict.fromkeys(systems))
    known = COLOURS | PEERS
    spare = [name for name in names if name not in known]
    return {name: known.get(name) or OTHERS[spare.index(name) % len(OTHERS)] for name in names}
