"""plantlib: pretrained and leveraged attention (PLANT) for extreme multi-label text classification.

The public names are loaded when first used, so that `import plantlib` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Corpus": "plantlib.data",
    "PlantModel": "plantlib.model",
    "PlantConfig": "plantlib.model",
    "LabelDecoder": "plantlib.decoder",
    "RunRecord": "plantlib.results",
    "RunConfig": "plantlib.runs",
    "fit": "plantlib.runs",
    "prepare": "plantlib.pipeline",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'plantlib' has no attribute {name!r}; it has {', '.join(__all__)}")
