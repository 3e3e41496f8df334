"""Tables of word weights: how they score documents, are summed into one, and lie in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.linear.stacking import Stack
from plantlib.utils.tensors import check_tensors, save_tensors


@dataclass(frozen=True, eq=False)
class Table:
    """Scores weights (b, V) @ cells.T + intercept.

    cells: (L, V) csr float32. intercept: (L,) float32.
    """

    cells: sparse.csr_matrix
    intercept: np.ndarray

    @cached_property
    def by_word(self) -> sparse.csr_matrix:
        """The cells as csr (V, L), kept: `weights @ cells.T` would transpose them per batch."""
        return self.cells.T.tocsr()

    def scores(self, weights: sparse.csr_matrix) -> np.ndarray:
        """(b, L) float32 of documents with tf-idf rows `weights` (b, V)."""
        return (weights @ self.by_word).toarray().astype(np.float32) + self.intercept


def raised(table: Table, stack: Stack, counts: np.ndarray) -> Table:
    """A folded table whose labels of few documents stand on the scale of the others, by the stack's
    line; counts as in `fold_up`.
    """
    scale, shift = stack.line_of(counts)
    intercept = np.asarray(shift + scale * table.intercept, np.float32)
    return Table(float32(sparse.diags(scale) @ table.cells), intercept)


def fold_up(part: dict[str, Table], stack: Stack, counts: np.ndarray) -> Table:
    """The weighted sum of a part's terms as one table; counts (L,): training documents per label of
    that part.
    """
    weights, shift = stack.of_labels(counts)
    cells = sum(sparse.diags(w) @ part[term].cells for term, w in weights.items()).tocsr()
    cells.eliminate_zeros()
    cells.sort_indices()
    shift = shift + sum(w * part[term].intercept for term, w in weights.items())
    return Table(float32(cells), np.asarray(shift, np.float32))


def save_tables(tables: dict[str, Table], path: str | Path) -> None:
    """Write tables as one safetensors file."""
    arrays = {}
    for name, table in tables.items():
        arrays |= {
            f"{name}.indptr": table.cells.indptr.astype(np.int64),
            f"{name}.indices": table.cells.indices.astype(np.int32),
            f"{name}.data": table.cells.data,
            f"{name}.intercept": table.intercept,
        }
    arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    width = {name: table.cells.shape[1] for name, table in tables.items()}
    save_tensors(path, arrays, {"widths": json.dumps(width)})


def load_tables(path: str | Path) -> dict[str, Table]:
    """Read what `save_tables` wrote; Damaged for a file that changed since."""
    from safetensors import safe_open

    tables = {}
    with safe_open(check_tensors(path), "numpy") as file:
        for name, width in json.loads(file.metadata()["widths"]).items():
            data, indices, indptr, intercept = (
                file.get_tensor(f"{name}.{part}")
                for part in ("data", "indices", "indptr", "intercept")
            )
            shape = (len(intercept), width)
            tables[name] = Table(sparse.csr_matrix((data, indices, indptr), shape=shape), intercept)
    return tables


def float32(cells) -> sparse.csr_matrix:
    return sparse.csr_matrix(cells, dtype=np.float32)
