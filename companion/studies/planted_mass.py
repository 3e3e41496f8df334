"""How much attention planting gives the words of a document's own labels, by training documents of
the label: what a training document reads, and what an unseen one finds.

    python -m companion.studies.planted_mass codiesp

docs/method.md, "The cross-fitted teacher". Only the lookup is planted: attention is the softmax of
gamma G over the tokens of a document. Its mass on the tokens of the label's list is what training
can learn to trust. A teacher that has counted the training documents gives them far more of it than
it gives to others, the more so the fewer documents a label has. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.studies.command import parser_of, reading
from plantlib.planting.starts import StartConfig
from plantlib.teacher.crossfit import Withheld, withhold
from plantlib.teacher.mig import Teacher
from plantlib.training.ingredients import teacher_of
from plantlib.training.inputs import Inputs
from plantlib.training.prepare import prepare
from plantlib.utils.io import atomic_path

if TYPE_CHECKING:
    import pandas

TABLE = "planted_mass.csv"
COUNTED, WITHHELD, UNSEEN = "training, as counted", "training, cross-fitted", "test"
# most training documents of a label in each group
GROUPS = (1, 2, 5, 10, 20, 50, 100, None)


def measure(prepared: Inputs, gain: float = StartConfig.lookup_gain) -> pandas.DataFrame:
    """The planted mass of every document and gold label with a training document.

    Args:
        prepared: a corpus made ready; hidden states are not read.
        gain: gamma.

    Returns:
        columns read (COUNTED, WITHHELD or UNSEEN), documents (of the label in training) and mass,
        the attention on tokens with a planted value above 0, from 0 to 1.
    """
    import pandas as pd

    teacher = teacher_of(prepared)
    withheld = withhold(prepared.train_tokens, prepared.train_labels, teacher)
    rows = [
        {"read": read, "documents": int(prepared.train_counts[label]), "mass": mass}
        for read, split, changes in (
            (COUNTED, "train", None),
            (WITHHELD, "train", withheld),
            (UNSEEN, "test", None),
        )
        for label, mass in _masses(prepared, prepared.rows[split], teacher, changes, gain)
        if prepared.train_counts[label]
    ]
    return pd.DataFrame(rows, columns=["read", "documents", "mass"])


def _masses(
    prepared: Inputs, rows: np.ndarray, teacher: Teacher, changes: Withheld | None, gain: float
) -> Iterator[tuple[int, float]]:
    """Each gold label of the documents `rows` with its planted mass.

    changes: what is withheld from each of `rows`.
    """
    for i, row in enumerate(rows):
        ids, labels = prepared.tokens[row], prepared.corpus.labels[row].indices
        if not len(ids):
            continue
        planted = teacher.relevance[labels][:, ids].toarray().astype(np.float32)  # of one document
        if changes is not None:
            cells = changes.cells_of(i, ids)
            place = np.searchsorted(labels, cells["cell_labels"])
            np.add.at(planted, (place, cells["cell_positions"]), cells["cell_values"])
        weights = np.exp(gain * planted)
        mass = (weights * (planted > 0)).sum(1) / weights.sum(1)
        yield from zip(labels.tolist(), mass.tolist(), strict=True)


def by_documents(frame: pandas.DataFrame) -> pandas.DataFrame:
    """`measure` in groups of labels: columns read, least, most (documents of a label; most is empty
    in the last group), pairs and mass, the mean in percent.
    """
    import pandas as pd

    rows = []
    least = 1
    for most in GROUPS:
        inside = frame["documents"].between(least, most or np.inf)
        for read, part in frame[inside].groupby("read", sort=False):
            about = {"read": read, "least": least, "most": most, "pairs": len(part)}
            rows.append(about | {"mass": round(100 * part["mass"].mean(), 2)})
        least = (most or 0) + 1
    return pd.DataFrame(rows).astype({"most": "Int64"})


def keep(table: pandas.DataFrame, corpus: str, folder: str | Path) -> Path:
    """Write the rows of a corpus into TABLE in `folder`, in the place of those it had."""
    import pandas as pd

    path = Path(folder) / TABLE
    kept = load(folder)
    kept = kept[kept["corpus"] != corpus]
    whole = pd.concat([kept, table.assign(corpus=corpus)], ignore_index=True)
    with atomic_path(path) as temporary:
        whole.to_csv(temporary, index=False)
    return path


def load(folder: str | Path) -> pandas.DataFrame:
    """What `keep` wrote; empty where there is no file."""
    import pandas as pd

    path = Path(folder) / TABLE
    if not path.exists():
        return pd.DataFrame(columns=["read", "least", "most", "pairs", "mass", "corpus"])
    return pd.read_csv(path).astype({"most": "Int64"})


def main(arguments: list[str] | None = None) -> None:
    """Measure a data set, write its rows and print them."""
    parser = parser_of("planted_mass", __doc__, tokens=256, starts=(), seeds=())
    parser.set_defaults(results="results")
    options = parser.parse_args(arguments)
    prepared = prepare(options.dataset, frozen=False, **reading(options))
    table = by_documents(measure(prepared))
    name = f"{prepared.corpus.name}, {len(prepared.rows['train']):,} documents"
    print(table.to_string(index=False))
    print(keep(table, name, options.results))


if __name__ == "__main__":
    main()
