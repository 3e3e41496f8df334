"""Checks of what users hand over: whole numbers, finite numbers, seeds, names that become paths.

Options of the wrong kind are refused when they are made, before any work. Ranges that belong to one
option are checked beside it.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

LARGEST_SEED = 2**32 - 1  # of numpy
LONGEST_NAME = 80


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or numpy; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number other than NaN and the infinities."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """ValueError unless a value is a whole number of at least `least`.

    name: as the interface that it came by writes it: "k", "-k", "--epochs".
    """
    if not is_whole(value) or value < least:
        equals = " " if name.startswith("-") else "="
        raise ValueError(f"{name}{equals}{value}: give a whole number of at least {least}")


def check_seed(seed: Any, name: str = "seed") -> None:
    """ValueError unless `seed` is one that Python, numpy and PyTorch take."""
    check_whole(name, seed, 0)
    if seed > LARGEST_SEED:
        raise ValueError(f"{name} {seed}: give at most {LARGEST_SEED}")


def check_fields(options: Any) -> None:
    """ValueError if a field of a dataclass of options holds a value of another kind.

    Read from the annotations: int is a whole number, float a finite number, bool True or False, str
    a text, tuple[X, ...] several X, and X | None also None. Others are not checked.
    """
    for item in fields(options):
        value, kind = getattr(options, item.name), str(item.type)
        allowed = [part.strip() for part in re.split(r"\|(?![^\[]*\])", kind)]
        if not any(_is_of(value, part) for part in allowed):
            raise ValueError(f"{item.name}={value!r}; give {_words(allowed)}")


_KINDS = {
    "int": (is_whole, "a whole number"),
    "float": (is_finite, "a finite number"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "None": (lambda value: value is None, "None"),
}


def _is_of(value: Any, kind: str) -> bool:
    if several := re.fullmatch(r"tuple\[(.+), \.\.\.\]", kind):
        inner = several[1].split(" | ")
        return isinstance(value, (tuple, list)) and all(
            any(_is_of(item, part) for part in inner) for item in value
        )
    return kind not in _KINDS or _KINDS[kind][0](value)


def _words(kinds: list[str]) -> str:
    words = []
    for kind in kinds:
        several = re.fullmatch(r"tuple\[(.+), \.\.\.\]", kind)
        inner = several[1].split(" | ")[0] if several else kind
        word = _KINDS.get(inner, (None, inner))[1]
        words.append(f"a tuple, each item {word}" if several else word)
    return " or ".join(words)


def safe_name(name: str) -> str:
    """A name of the user's (of a corpus, a label, a model, a run) as one part of a path.

    Letters, digits and . _ @ + - stay. A name that has anything else, begins with a dot or is too
    long gets a digest, so that two names never meet. The result is never empty, . or .., and holds
    no separator.
    """
    plain = re.sub(r"[^\w.@+-]+", "_", name).lstrip(".")[:LONGEST_NAME]
    while len(plain.encode("utf-8", "replace")) > LONGEST_NAME:
        plain = plain[:-1]
    if plain and plain == name:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest
