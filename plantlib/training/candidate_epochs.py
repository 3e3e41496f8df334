"""The best epoch of a decoder on candidates, and its history, on disk."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file

from plantlib.candidates.decoder import CandidateDecoder
from plantlib.utils.io import Damaged, fingerprint_of, read_json, write_json
from plantlib.utils.tensors import check_tensors, save_tensors


class Kept:
    """The best epoch of a decoder by dev nDCG@5, the earliest if tied, kept on disk with the
    history.

    decoder: the one that is trained. folder: receives the files; the history of an earlier, killed
    run is read from it.
    """

    def __init__(self, decoder: CandidateDecoder, folder: Path):
        self.decoder = decoder
        self.folder = folder
        self.best = folder / "best.safetensors"
        self.log = folder / "history.json"
        self.history: list[dict] = self._stored()

    def _stored(self) -> list[dict]:
        """The history of a killed run; empty, and its files removed, where one of them is
        damaged.
        """
        epoch = self.folder / "epoch.safetensors"
        if not (self.log.exists() and epoch.exists()):
            return []
        try:
            check_tensors(epoch)
            check_tensors(self.best)
            stored = read_json(self.log)
            if stored["fingerprint"] != fingerprint_of(stored["epochs"]):
                raise Damaged(f"{self.log} is damaged: it is not what was written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{error}; the run begins again", file=sys.stderr, flush=True)
            for path in (epoch, self.best, self.log):
                path.unlink(missing_ok=True)
            return []
        return stored["epochs"]

    def offer(self, row: dict) -> None:
        """Add an epoch's row to the history, and keep the decoder if no earlier epoch was as
        good.
        """
        # an epoch that was killed after this point is trained again
        before = [r for r in self.history if r["epoch"] < row["epoch"]]
        if all(row["ndcg@5"] > r["ndcg@5"] for r in before):
            tensors = {n: p.detach().contiguous() for n, p in self.decoder.named_parameters()}
            save_tensors(self.best, tensors)
        self.history = [*before, row]
        about = {"epochs": self.history, "fingerprint": fingerprint_of(self.history)}
        write_json(self.log, about)

    def restore(self) -> None:
        """Load the best epoch into the decoder."""
        self.decoder.load_state_dict(load_file(check_tensors(self.best)), strict=False)
