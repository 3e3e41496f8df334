"""Names of labels: how they are cut out of a cell, written plainly, and told apart.

What is certain is mended (invisible characters, unusual blanks, split accents); what is doubtful is
found here (another separator, names that differ by case alone) and refused or noted by
`label_forms.py`.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

# zero-width blanks, joiners and byte order marks, soft hyphens, direction marks
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)
# these two join letters inside words of Persian or Hindi and some emoji
JOINERS = "\u200c\u200d"
DASHES = re.compile("[\u2010-\u2015\u2212]")
# characters that stand in codes and words, and so are no separators
OF_NAMES = set(".-_'’()[]{}<>\"")
OF_LISTS = ",;|\t\n；，、"
# line ends and separators of records; a blank that holds words together, but codes apart
ENDS = "\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029"
KEPT_BLANKS = "\t\n\r\xa0" + ENDS
IN_NO_NAME = (*ENDS, "\n", "\t", "；", "|", "||", "<br>", "<br/>", "<br />", "\\n", "\\t")
IN_CODES = ":-_"
ENOUGH = 20_000  # cells that are looked at for a separator
LONGER_MARKS = (
    *("<br>", "<br/>", "<br />", "\\n", "\\t", "||", "__", "--", "->", "=>"),
    *(" - ", " – ", " — ", " and ", " und ", " et ", " y ", " or "),
)
AS_MISSING = {"nan", "none", "null", "n/a", "na", "<na>", "nat", "-", "?", "\\n"}
AS_MISSING |= {"#n/a", "#name?", "#value!", "#ref!", "#div/0!"}


def plain(name: str) -> str:
    """A name in composed characters (NFC), without invisible ones, its blanks single spaces."""
    name = unicodedata.normalize("NFC", INVISIBLE.sub("", name))
    return " ".join(name.split()).strip(JOINERS)


def key_of(name: str) -> str:
    """What two spellings of one name share: case, width, joiners and kinds of dashes aside."""
    folded = DASHES.sub("-", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in folded if c not in JOINERS)


def spellings(names: Iterable[str]) -> list[list[str]]:
    """Groups of distinct names that differ by case, width or joiners alone, in sorted order."""
    groups = defaultdict(set)
    for name in names:
        groups[key_of(name)].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def cut(cell: str, sep: str | None) -> list[str]:
    """The parts of a cell, not yet plain.

    A part in double quotes may hold the separator.
    """
    if not sep:
        return [_unquoted(cell.strip())]
    if len(sep) == 1 and '"' in cell and sep not in '"\r\n':
        try:
            reader = csv.reader([cell.strip()], delimiter=sep, skipinitialspace=True, strict=True)
            rows = list(reader)
        except csv.Error:
            rows = []
        if len(rows) == 1:
            return rows[0]
    return [_unquoted(part.strip()) for part in cell.split(sep)]


def _unquoted(part: str) -> str:
    inner = part[1:-1]
    quoted = len(part) > 2 and part[0] == part[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else part


def evident_separator(cells: Iterable[str], words: bool = True) -> str | None:
    """What evidently separates several names in distinct `cells`, or None.

    words: whether a blank may separate words; if not, it separates codes alone.

    Names in a list change their places: a part that stands at two places, or alone in a cell and
    later in another one, speaks for a list. Parts of one name ("heart failure", "ICD9:401") keep
    theirs. Line ends, tabs and bars stand in no name. Several whole codes in a cell are a list.
    """
    distinct = sorted({cell.strip() for cell in cells if cell.strip()})
    distinct = distinct[:: len(distinct) // ENOUGH + 1]
    # a blank separates no words where another mark may separate names of several words
    others = [m for m in _marks(distinct) if m != " " and sum(m in c for c in distinct) > 1]
    words = words and not others
    found = (mark for mark in _candidates(distinct) if _separates(mark, distinct, words))
    return next(found, None)


def _separates(mark: str, distinct: Sequence[str], words: bool) -> bool:
    """Whether `mark` separates names in the distinct cells."""
    rows = [[part.strip() for part in cell.split(mark)] for cell in distinct]
    rows = [[part for part in row if part] for row in rows]
    places: dict[str, set[int]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(set(row))
        for place, part in enumerate(row):
            places[part].add(place)
    parts = [part for row in rows if len(row) > 1 for part in row]
    cut_cells = sum(len(row) > 1 for row in rows)
    if not all(any(c.isalnum() for c in part) for part in parts):
        return False
    if mark in IN_NO_NAME and parts:
        return True
    if sum(len(set(row)) < len(row) for row in rows) > cut_cells / 4:
        # a list names nothing twice; the label of __label__I10 comes again
        return False
    codes = all(_is_code(part) for part in parts)
    whole = all(_is_whole_code(part) for row in rows for part in row)
    if whole and mark not in IN_CODES and cut_cells >= max(1, len(distinct) / 20):
        return True
    if cut_cells < max(2, len(distinct) / 20):
        return False
    moving = sum(len(places[part]) > 1 for part in parts) / len(parts)
    recurring = sum(counts[part] > 1 for part in parts) / len(parts)
    if mark in OF_LISTS and codes and recurring >= 0.5:
        return True
    # blanks and hyphens stand inside names, so they need more evidence; hyphens need codes as well
    if mark == " " and not words:
        return codes and moving >= 0.3
    if mark in "-_":
        return codes and moving >= 0.8
    return moving >= (0.8 if " " in mark and not codes else 0.3)


def _is_whole_code(name: str) -> bool:
    """Whether a name is a code by its look alone: digits, no blanks, three characters or more."""
    return 3 <= len(name) <= 20 and any(c.isdigit() for c in name) and len(name.split()) == 1


def _candidates(cells: Sequence[str]) -> list[str]:
    """What may separate: longer marks first, then those in most cells, then blanks and hyphens."""
    longer = [mark for mark in LONGER_MARKS if any(mark in cell for cell in cells)]
    last = [mark for mark in " -_" if any(mark in cell for cell in cells)]
    return longer + [mark for mark in _marks(cells) if mark != " "] + last


def _marks(cells: Sequence[str]) -> list[str]:
    """The characters in cells that may separate, those in most cells first."""
    counts: Counter[str] = Counter()
    for cell in cells:
        counts.update({" " if c.isspace() and c not in KEPT_BLANKS else c for c in cell})
    found = [c for c, _ in counts.most_common() if not (c.isalnum() or c in OF_NAMES)]
    return [c for c in found if not unicodedata.category(c).startswith("M")]


def _is_code(name: str) -> bool:
    """Whether a part looks like a code and not like a word of a name."""
    return any(c.isdigit() for c in name) or name.isupper() or len(name) < 3


def joined_names(names: Iterable[str]) -> list[str]:
    """Names whose parts are all names themselves, so that a separator was probably missed."""
    names = set(names)
    joined = []
    for name in sorted(names):
        for mark in _marks([name]):
            parts = [plain(part) for part in name.split(mark)]
            if mark != " " and len(parts) > 1 and all(part in names for part in parts):
                joined.append(name)
                break
    return joined


def odd(names: Iterable[str]) -> dict[str, list[str]]:
    """What is odd about label names: the reason, and the names in sorted order."""
    names = sorted(set(names))
    reasons = {
        "look like missing values": [n for n in names if n.lower() in AS_MISSING],
        "hold brackets or quotes around them": [n for n in names if _is_wrapped(n)],
        "look like several names": joined_names(names),
        "differ by case or width alone": [n for group in spellings(names) for n in group],
        "hold control characters": [n for n in names if any(_is_control(c) for c in n)],
        "are longer than 100 characters": [n for n in names if len(n) > 100],
    }
    for mark in _marks(names):
        holding = [name for name in names if mark in name.strip(mark)]
        if mark != " " and len(holding) >= max(2, len(names) / 5):
            reasons[f"hold {mark!r}"] = holding
    return {reason: found for reason, found in reasons.items() if found}


def _is_wrapped(name: str) -> bool:
    return name[:1] in "[{\"'" or (name[-1:] in ']}"' and not {"[", "{"} & set(name))


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc"
