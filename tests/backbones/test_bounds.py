"""A document of any length is read some windows at a time."""

from __future__ import annotations

import torch

from plantlib.backbones import windows
from plantlib.backbones.windows import MOST_WINDOWS
from tests.conftest import OPERATIONS, WINDOW
from tests.tolerances import assert_within_rounding


def test_a_long_document_is_read_some_windows_at_a_time(backbone, monkeypatch):
    sizes = []
    forward = type(backbone.model).forward

    def spy(self, *arguments, **options):
        sizes.append(len(options["input_ids"]))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(backbone.model), "forward", spy)
    length = WINDOW * (3 * MOST_WINDOWS + 1)
    ids = torch.randint(5, 40, (length + 3,), generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, length, length, length + 3])
    with torch.no_grad():
        hidden = windows.encode(backbone, ids, offsets)
    assert max(sizes) <= MOST_WINDOWS and sum(sizes) == 3 * MOST_WINDOWS + 2
    with torch.no_grad():
        cut = [window for document in windows._cut(backbone, offsets) for window in document]
        at_once = windows.encode_windows(backbone, ids, cut)
    assert_within_rounding(hidden, at_once, OPERATIONS)
    # documents that fit a window are read together, as many as there are
    sizes.clear()
    many = 2 * MOST_WINDOWS
    with torch.no_grad():
        windows.encode(backbone, ids[: 2 * many], torch.arange(0, 2 * many + 1, 2))
    assert sizes == [many]


def test_nothing_is_read_of_no_document(backbone):
    assert windows.encode(backbone, torch.zeros(0).long(), torch.zeros(1).long()).shape[0] == 0
