"""A planted model over the tiny backbone, and the tiny corpus with gold evidence."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from tests.model.test_model import planted_model


@pytest.fixture
def model(prepared, backbone):
    model = planted_model(prepared, backbone)
    with torch.no_grad():
        model.decoder.planted_gain.fill_(2.0)
    return model


@pytest.fixture
def marked(corpus):
    """The tiny corpus with the theme words of 'heart' marked in every heart document of dev."""
    rows = []
    heart = corpus.label_names.index("heart")
    for i in corpus.rows("dev"):
        if heart in corpus.labels[i].indices:
            matches = re.finditer("pulse|valve|beat", corpus.texts[i])
            rows += [(corpus.ids[i], "heart", m.start(), m.end(), m[0]) for m in matches]
    return replace(
        corpus, evidence=pd.DataFrame(rows, columns=["id", "label", "start", "end", "text"])
    )
