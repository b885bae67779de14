"""Palimpsest: insert, edit, erase, unlearn, protect and audit concepts in image models, with a receipt.

Importing this package loads nothing heavy; names are found when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.core.card import Card
    from palimpsest.core.change import diff
    from palimpsest.core.concept import Concept, Request
    from palimpsest.core.patch import Patch, compose
    from palimpsest.core.reading import Reading
    from palimpsest.core.trace import Trace
    from palimpsest.hosts.load import load

__all__ = ["Card", "Concept", "Patch", "Reading", "Request", "Trace", "__version__", "compose", "diff", "load"]
__version__ = "0.2.0"

_WHERE = {  # what is imported above for type checkers only
    "Concept": "palimpsest.core.concept",
    "Request": "palimpsest.core.concept",
    "Patch": "palimpsest.core.patch",
    "Trace": "palimpsest.core.trace",
    "Card": "palimpsest.core.card",
    "Reading": "palimpsest.core.reading",
    "compose": "palimpsest.core.patch",
    "diff": "palimpsest.core.change",
    "load": "palimpsest.hosts.load",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
