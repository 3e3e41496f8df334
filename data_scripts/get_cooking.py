"""cooking.stackexchange: 15,404 question titles with 736 tags, the data of fastText's tutorial.

Origin: https://dl.fbaipublicfiles.com/fasttext/data/cooking.stackexchange.tar.gz, CC BY-SA 3.0. The
split is that of the tutorial: the first 12,404 lines are train, the last 3,000 (its "valid") test.
There is no dev split (use Corpus.with_dev). --from takes the archive, or a folder with
cooking.stackexchange.txt (and .id). Titles are not cleaned.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError

try:
    from data_scripts import common
except ModuleNotFoundError:
    import common

URL = "https://dl.fbaipublicfiles.com/fasttext/data/cooking.stackexchange.tar.gz"
TEXT = "cooking.stackexchange.txt"
TEXT_SHA256 = "336008afdcdd26569f0558dbf41982238ed1ea59db066860c6b56f8a335d6da0"
TEST_LINES = 3000
PREFIX = "__label__"


def parse(text: str) -> tuple[list[str], list[list[str]]]:
    """Titles and their tags from lines such as `__label__a __label__b How much ...?`."""
    titles, tags = [], []
    for line in text.splitlines():
        words = line.split()
        titles.append(" ".join(w for w in words if not w.startswith(PREFIX)))
        tags.append([w.removeprefix(PREFIX) for w in words if w.startswith(PREFIX)])
    return titles, tags


def build(out: Path, source: Path | None = None, *, test_lines: int = TEST_LINES) -> Path:
    """Write the corpus folder `out` from the public archive or from `source`."""
    with tempfile.TemporaryDirectory() as temporary:
        public = source is None
        files = common.Files(
            common.download(URL, Path(temporary), "the archive") if public else source
        )
        name = files.need(TEXT)
        ids_name = files.find("cooking.stackexchange.id")
        digest = hashlib.sha256(files.read(name)).hexdigest()
        if public and digest != TEXT_SHA256:
            raise DataError(
                f"{TEXT} of {URL} has sha256 {digest}, wanted {TEXT_SHA256}: the public file"
                " changed; pass --from a known copy"
            )
        titles, tags = parse(files.text(name))
        ids = (
            files.text(ids_name).split() if ids_name else [f"line-{i}" for i in range(len(titles))]
        )
        sources = {**files.sums(name, ids_name), TEXT: digest}
    if len(titles) <= test_lines:
        raise DataError(
            f"{TEXT} has {len(titles)} lines, wanted more than the {test_lines} of the test split"
        )
    split = ["train"] * (len(titles) - test_lines) + ["test"] * test_lines
    manifest = common.manifest(
        URL,
        "CC BY-SA 3.0",
        sources,
        f"test: the last {test_lines} lines; no dev split",
        language="en",
    )
    return Corpus.from_lists("cooking", ids, titles, tags, split, manifest=manifest).save(out)


if __name__ == "__main__":
    sys.exit(common.cli(__doc__, "cooking", build))
