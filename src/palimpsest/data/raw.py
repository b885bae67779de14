"""A picture as it lies in a data set, before it is decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """Its name, its label as stored, its group ("" where unknown), and how to get its encoded bytes."""

    name: str
    label: int | float
    group: str
    open: Callable[[], bytes]
