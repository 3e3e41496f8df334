"""Rewrite the committed records from schema 1 to schema 2: `python -m companion.rewrite_records`.

Run once. Options that became constants leave a record's params, and so do the seeds inside it; an
option that a record did not know gets what was done then. Where a constant had another value and it
mattered to the run, params["constants_then"] keeps it. Only the lines of schema, params and teacher
change: no other byte does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from plantlib.candidates.decoder import CandidateConfig
from plantlib.data.sources import checkout
from plantlib.training.ensemble import made_of
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.records import RunRecord, plain

DEFAULTS = plain(asdict(RunConfig()))
# options that are no more, by dotted name, with the value that became the constant
CONSTANTS: dict[str, Any] = {
    "teacher.min_documents": 1,
    "l2r.learning_rate": 1e-2,
    "l2r.documents_a_batch": 16,
    "l2r.labels_a_document": 32,
    "l2r.list_size": 128,
    "l2r.ridge": 1e-3,
    "l2r.spread": 0.7,
    "start.l2r_gain": 2.0,
    "start.score_gain": 1.0,
    "start.linear_gain": 1.0,
    "start.init_std": 0.02,
    "linear.terms": ["svm", "jaccard", "raw", "ppmi", "centroid"],
    "linear.c": [0.3, 3.0],
    "linear.large_c": [1.0],
    "linear.large_folds": 3,
    "linear.prune": 0.03,
    "linear.top_k": 64,
    "linear.min_documents": 2,
    "linear.dense_cells": 1.5e7,
    "linear.knots": [1, 3, 10, 30, 100],
    "linear.ridge": 1e-3,
    "linear_rate": 0.3,
    "linear_epsilon": 1e-4,
    "outputs.shrinkage": 0.5,
    "outputs.few": 1.0,
    "outputs.scale": 0.25,
    "outputs.background": 64,
    "outputs.seed": 0,
    "train.lr_outputs": 1e-2,
    "train.lr_gains": 1e-2,
    "train.epsilon": 1e-8,
    "train.weight_decay": 0.0,
    "train.warmup": 0.1,
    "train.metric": "ndcg@5",
    "v1.top_n": 8,
    "static.space": "grades",
    "static.loss": "lambdarank",
    "static.epochs": 3,
    "static.learning_rate": 0.3,
    "static.labels_a_batch": 64,
    "static.graded": 64,
    "static.mined": 64,
    "static.negatives": 64,
    "static.teacher_tokens": 512,
    "static.top_grade": 5.0,
    "static.sigma": 0.5,
    "static.cut": 15,
    "static.ridge": 1e-2,
    "static.spread": 4.0,
    "static.held_out": 0.2,
    "static.planted_tokens": 64,
}
CANDIDATE_CONSTANTS: dict[str, Any] = {
    "per_token": 512,
    "choice": 2,
    "hard": 0.5,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "lookup_gain": 4.0,
    "score_gain": 1.0,
    "linear_gain": 1.0,
    "linear_rate": 0.1,
    "init_std": 0.02,
    "rare_loss": 0.002,
    "rare_still": True,
}
# these studies make one gain for all their runs, whatever the start
ONE_GAIN = ("06_ablations", "learning_curves")
# done before there were these options, in runs that begin from the linear score
BEFORE = {"linear_epsilon": 1e-8, "other_gains": [], "linear_weights": []}


def planted(record: dict) -> dict:
    """The params of a run of RunConfig."""
    old, parts = record["params"], record["params"].get("start_name", record["system"]).split("+")
    from_linear = bool(record["teacher"].get("linear"))
    if from_linear:
        old = BEFORE | old
    new = {}
    for name, default in DEFAULTS.items():
        recorded = old.get(name)
        if isinstance(default, dict) and isinstance(recorded, dict):
            recorded = {key: recorded.get(key, value) for key, value in default.items()}
        new[name] = default if recorded is None else recorded
    if "static" in old:
        new["static_dim"] = old["static"]["dim"]
    config, asked = RunConfig(tuning=new["tuning"]), [] if record["notebook"] in ONE_GAIN else None
    if not (from_linear and config.has_gains(parts)):
        new["other_gains"] = DEFAULTS["other_gains"] if asked is None else asked
    if not (from_linear and new["tuning"] == "frozen"):
        new["linear_weights"] = DEFAULTS["linear_weights"] if asked is None else asked
    if not from_linear:
        new["linear"] = DEFAULTS["linear"]
    known = {*DEFAULTS, "linear_rate", "linear_epsilon", "outputs", "static"}
    rest = {name: value for name, value in old.items() if name not in known}
    return new | rest | constants_then(record, old, CONSTANTS, from_linear)


def constants_then(record: dict, old: dict, constants: dict, from_linear: bool) -> dict:
    """{"constants_then": {dotted name: value}} of what differed and mattered, {} where nothing
    did.
    """
    data, found = record["dataset"], {}
    cells = data["train"] * data["labels"]
    for name, value in dotted(old).items():
        outer, last = name.split(".")[0], name.split(".")[-1]
        dropped = name in constants or (outer == "linear" and last in ("easy", "hard"))
        if last == "seed" and name not in constants:
            assert value == record["seed"] or (record["params"].get("width") and value == 0), name
            continue
        if not dropped or value == constants.get(name, "?"):
            continue
        if outer.startswith("linear") and not from_linear:
            continue
        large = cells > (old.get("linear") or {}).get("dense_cells", 0)
        if last == "dense_cells" and large == (cells > constants[name]):
            continue
        if (last in ("easy", "hard", "large_c", "large_folds") and not large) or (
            last == "c" and large
        ):
            continue
        found[name] = value
    return {"constants_then": found} if found else {}


def dotted(params: dict, before: str = "") -> dict:
    """Options by their dotted names."""
    found = {}
    for name, value in params.items():
        inner = dotted(value, f"{before}{name}.") if isinstance(value, dict) else {}
        found |= inner or {before + name: value}
    return found


def candidates(record: dict) -> dict:
    """The params of a run of CandidateConfig."""
    old = record["params"]
    names = [item.name for item in fields(CandidateConfig)]
    new = {name: old.get(name, plain(asdict(CandidateConfig()))[name]) for name in names}
    assert new["rare"] == old.get("rare", 0.0)
    rest = {k: v for k, v in old.items() if k not in {*names, *CANDIDATE_CONSTANTS, "seed"}}
    if rest["linear"] is not None:
        rest["linear"] = {"folds": rest["linear"]["folds"]}
    linear = {k: v for k, v in CONSTANTS.items() if k.startswith("linear.")}
    then = constants_then(record, old, CANDIDATE_CONSTANTS | linear, old["linear"] is not None)
    return new | rest | then


def linear_score(record: dict) -> dict:
    """The params of the untrained linear score."""
    old = record["params"]
    new = old | {"linear": {"folds": old["linear"]["folds"]}}
    return new | constants_then(record, old, CONSTANTS, True)


def neural(record: dict) -> dict:
    """The params of a published head."""
    old, default = record["params"], plain(asdict(TrainConfig()))
    new = old | {"train": {name: old["train"].get(name, v) for name, v in default.items()}}
    return new | constants_then(record, old, CONSTANTS, False)


def rewritten(record: dict) -> dict:
    """The new params of a record; ensembles wait for their members."""
    params = record["params"]
    if "members" in params:
        return params
    if record["kind"] == "planted":
        return candidates(record) if "width" in params else planted(record)
    if record["kind"] == "neural":
        return neural(record)
    return linear_score(record) if "linear" in params else params


def save(path: Path, record: dict) -> None:
    """Replace the lines of schema, params and teacher."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for name in ("schema", "params", "teacher"):
        (place,) = [i for i, line in enumerate(lines) if line.startswith(f'"{name}": ')]
        end = "," if lines[place].endswith(",") else ""
        value = json.dumps(record[name], ensure_ascii=False, allow_nan=False)
        lines[place] = f'"{name}": {value}{end}'
    path.write_text("\n".join(lines), encoding="utf-8")


def load_old(record: dict) -> RunRecord:
    """A record of schema 1, for `made_of`."""
    return RunRecord(**{k: v for k, v in record.items() if k != "schema"})


def main(folder: Path) -> None:
    """Rewrite every record of `folder`."""
    old = {p: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}
    assert {record["schema"] for record in old.values()} == {1}
    new = {}
    for path, record in old.items():
        teacher = {k: v for k, v in record["teacher"].items() if k != "min_documents"}
        assert record["teacher"].get("min_documents", 1) == 1
        new[path] = record | {"schema": 2, "params": rewritten(record), "teacher": teacher}
    for path, record in new.items():
        if "members" in record["params"]:
            members = [folder / f"{name}.json" for name in record["params"]["members"]]
            before, after = (made_of([load_old(r[p]) for p in members]) for r in (old, new))
            # a sum that does not say what it was made of was taken to be of these members
            if record["params"].get("made_of", before) == before:
                tuning = new[members[0]]["params"]["tuning"]
                record["params"] = record["params"] | {"made_of": after, "tuning": tuning}
            else:
                print(f"{path.stem}: made of other members")
    for path, record in new.items():
        save(path, record)
    then = {
        p.stem: r["params"]["constants_then"]
        for p, r in new.items()
        if "constants_then" in r["params"]
    }
    print(f"{len(new)} records, {len(then)} with constants_then: {then}")


if __name__ == "__main__":
    main(checkout() / "results" / "runs")
