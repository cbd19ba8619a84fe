"""Caches: the folder for what a machine has computed once: encoded scenes, results, models."""
import os
from pathlib import Path


def cache_folder() -> Path:
    """$SPATIAL_CIRCUITS_CACHE, else spatial-circuits in the user's cache folder (XDG)."""
    if given := os.environ.get("SPATIAL_CIRCUITS_CACHE"):
        return Path(given)
    user = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(user) / "spatial-circuits"
