"""plantlib: pretrained and leveraged attention (PLANT) for extreme multi-label text classification.

The public names are loaded when first used, so `import plantlib` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as in _HOMES, for type checkers and editors
    from plantlib.data.corpus import Corpus as Corpus
    from plantlib.model.plant_model import PlantConfig as PlantConfig
    from plantlib.model.plant_model import PlantModel as PlantModel
    from plantlib.planting.decoder import LabelDecoder as LabelDecoder
    from plantlib.sklearn import PlantClassifier as PlantClassifier
    from plantlib.training.options import RunConfig as RunConfig
    from plantlib.training.prepare import prepare as prepare
    from plantlib.training.records import RunRecord as RunRecord
    from plantlib.training.runs import fit as fit

__version__ = "0.2.0"

_HOMES = {
    "Corpus": "plantlib.data.corpus",
    "PlantModel": "plantlib.model.plant_model",
    "PlantConfig": "plantlib.model.plant_model",
    "PlantClassifier": "plantlib.sklearn",
    "LabelDecoder": "plantlib.planting.decoder",
    "RunRecord": "plantlib.training.records",
    "RunConfig": "plantlib.training.options",
    "fit": "plantlib.training.runs",
    "prepare": "plantlib.training.prepare",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(
        f"module 'plantlib' has no attribute {name!r}; it has {', '.join(__all__)}"
    )
