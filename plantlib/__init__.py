"""plantlib: pretrained and leveraged attention (PLANT) for extreme multi-label text classification.

The public names are loaded when first used, so that `import plantlib` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Corpus": "plantlib.data.corpus",
    "PlantModel": "plantlib.model.plant_model",
    "PlantConfig": "plantlib.model.plant_model",
    "LabelDecoder": "plantlib.planting.decoder",
    "RunRecord": "plantlib.training.records",
    "RunConfig": "plantlib.training.options",
    "fit": "plantlib.training.runs",
    "prepare": "plantlib.training.prepare",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(
        f"module 'plantlib' has no attribute {name!r}; it has {', '.join(__all__)}"
    )
