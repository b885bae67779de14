"""The architectures that a model's folder may name: a closed list, since whoever writes a folder is not trusted.

A folder names one of these entries and nothing else; its arguments are whole numbers inside the bounds below. No other
callable of this package or of any other can be reached from a file. Code of one's own enters by `--factory` alone,
which the user types.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from palimpsest.core.errors import Damaged


class Architecture(NamedTuple):
    """A function that builds a module, and the whole numbers that it takes: (least, most) by name."""

    module: str
    function: str
    numbers: Mapping[str, tuple[int, int]]
    optional: frozenset[str] = frozenset()


ARCHITECTURES: Mapping[str, Architecture] = {
    "palimpsest.tiny.resnet:resnet": Architecture(
        "palimpsest.tiny.resnet",
        "resnet",
        {"classes": (1, 100_000), "width": (1, 1_024)},
        frozenset({"width"}),
    ),
}


def built(name: str, arguments: Mapping[str, Any], folder: Path) -> nn.Module:
    """A fresh module of a listed architecture.

    Raises:
        Damaged: the name is not listed, or an argument is unknown, absent, no whole number or out of bounds.
    """
    if name not in ARCHITECTURES:
        raise Damaged(
            f"{folder} asks to run {name!r}, which is not one of the architectures that a model's folder may name "
            f"({', '.join(ARCHITECTURES)}). Nothing was run."
        )
    known = ARCHITECTURES[name]
    odd = sorted(set(arguments) - set(known.numbers)) + sorted(set(known.numbers) - known.optional - set(arguments))
    if odd:
        expected = ", ".join(known.numbers)
        raise Damaged(f"{folder} builds {name} with {sorted(arguments)}; expected {expected} (odd: {odd[0]!r}).")
    for key, value in arguments.items():
        least, most = known.numbers[key]
        if type(value) is not int or not least <= value <= most:
            raise Damaged(f"{folder} builds {name} with {key} = {value!r}; expected a whole number {least} to {most}.")
    return getattr(import_module(known.module), known.function)(**arguments)
