"""Where files go that belong to the user and to no checkout: the cache folder of the platform."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """$PLANT_CACHE, or plantlib/ in the user's cache folder (~/.cache on Linux)."""
    given = os.environ.get("PLANT_CACHE")
    return Path(given) if given else user_cache_path("plantlib", appauthor=False)
