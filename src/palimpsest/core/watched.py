"""Models and changes that tell how much of them was read, for those who wait."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.core.delta import Delta
from palimpsest.core.stored import Stored
from palimpsest.core.words import Word

if TYPE_CHECKING:
    from palimpsest.core.change import Part


class Watched:
    """A model of which it is told how many bytes were read, block by block."""

    def __init__(self, stored: Stored, read: Callable[[int], None]) -> None:
        self._stored, self._read = stored, read

    def names(self) -> Sequence[str]:
        return self._stored.names()

    def shape(self, name: str) -> torch.Size:
        return self._stored.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._stored.dtype(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        found = self._stored.rows(name, start, stop)
        self._read(found.numel() * found.element_size())
        return found


@dataclass(frozen=True)
class Told:
    """A change of which it is told how many bytes of numbers were computed, block by block.

    Args:
        part: the change. read: called with them.
    """

    part: Part
    read: Callable[[int], None]

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.part.names())

    @property
    def words(self) -> Mapping[str, Word]:
        return self.part.words

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.part.provenance

    def sha256(self) -> str:
        return self.part.sha256()

    def names(self) -> Collection[str]:
        return self._names

    def delta(self, name: str) -> Delta | None:
        return self.part.delta(name)

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        found = self.part.rows(name, shape, start, stop)
        if name in self._names:
            self.read(found.numel() * found.element_size())
        return found
