"""Attention over distinct tokens against attention over all of them, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib import kernels
from plantlib.kernels import Cells, distinct

DOCUMENTS = {
    "shared tokens": [[0, 1, 2], [2, 3], [3, 0, 1]],
    "repeated tokens": [[4, 4, 1], [1, 1, 1, 1]],
    "an empty document": [[0, 1], [], [2]],
    "all empty": [[], []],
}


@pytest.mark.parametrize("gain", [0.0, 4.0])
@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize("labels", [1, distinct.BLOCK + 3])
@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS)
def test_it_equals_attention_over_all_tokens(documents, labels, planted, gain):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    queries = torch.randn(labels, 7, generator=generator, dtype=torch.float64)
    outputs = torch.randn(labels, 7, generator=generator, dtype=torch.float64)
    relevance = torch.rand(5, labels, generator=generator, dtype=torch.float64)
    relevance *= torch.rand(5, labels, generator=generator) < 0.4
    gain = torch.tensor(gain, dtype=torch.float64)
    ids = torch.tensor([i for document in documents for i in document], dtype=torch.long)
    offsets = torch.tensor([0, *map(len, documents)]).cumsum(0)

    def cells_of(tokens):
        labels_first = relevance[tokens].T
        column, position = labels_first.nonzero(as_tuple=True)
        return Cells(position, column, labels_first[column, position]) if planted else None

    expected, _ = kernels.attend(table[ids], offsets, queries, outputs, cells_of(ids), gain)
    words, places = ids.unique(return_inverse=True)
    size = (len(documents), len(words))
    held = sparse.csr_matrix((np.ones(len(ids)), places.numpy(), offsets.numpy()), shape=size)
    value = kernels.attend_distinct(table[words], held, queries, outputs, cells_of(words), gain)
    # sums of at most four products of float64 in another order
    torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-12, atol=1e-12)


def test_a_document_far_below_the_best_token_keeps_its_value():
    table = torch.tensor([[100.0], [0.0]])
    documents = sparse.eye(2, format="csr", dtype=np.float32)
    value = kernels.attend_distinct(
        table, documents, torch.ones(1, 1), torch.ones(1, 1), None, torch.zeros(())
    )
    assert value.flatten().tolist() == pytest.approx([100.0, 0.0])
