"""Where shipped models lie: folders of installed packages, found by the entry point `palimpsest.models`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from palimpsest.core.errors import Unsupported

INSTALL = "pip install 'palimpsest-concepts[models]'"
CHECKOUT = Path(__file__).parents[3] / "models" / "src" / "palimpsest_models" / "weights"


@cache
def shelves() -> dict[str, Path]:
    """The folders of models by the first part of their names: {"tiny": .../weights}.

    A package declares one as the entry point `palimpsest.models`: the name, and a Path within the package. Beside a
    source checkout of palimpsest, whose `models/` need not be installed, that folder is "tiny".
    """
    declared = {point.name: point for point in entry_points(group="palimpsest.models")}
    if CHECKOUT.is_dir():
        declared.pop("tiny", None)
    folders = {name: Path(point.load()) for name, point in sorted(declared.items())}
    return {**folders, "tiny": CHECKOUT} if CHECKOUT.is_dir() else folders


def maker(name: str) -> ModuleType:
    """A module of the package that ships the small models, which also holds how they were trained.

    Raises:
        Unsupported: the package is not installed.
    """
    for point in entry_points(group="palimpsest.models", name="tiny"):
        return import_module(f"{point.module}.{name}")
    raise Unsupported(f"How the small models are trained comes with them; get both by: {INSTALL}")
