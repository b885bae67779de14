"""Sums of several patches' changes, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from palimpsest.core.delta import Delta, Dense, add
from palimpsest.core.patch import Form, Patch
from palimpsest.core.streams import Stream


@dataclass(frozen=True)
class Sums:
    """What patches change together, in their order.

    Args:
        parts: patches, each with how many times it counts.
        shapes: of the tensors that they change in different forms.
    """

    parts: Sequence[tuple[Patch, float]]
    shapes: Mapping[str, torch.Size]

    def of(self, name: str) -> Delta:
        """The whole change of a tensor, which one of them changes at least."""
        live = [(patch.deltas[name], scale) for patch, scale in self.parts if name in patch.deltas]
        scaled = [delta if scale == 1 else delta.scaled(scale) for delta, scale in live]
        return reduce(lambda a, b: add(a, b, self._shape(name, a, b)), scaled)

    def form(self, name: str) -> Form:
        """The same as it is about to be written: computed now for its form and again when it is written, never kept."""
        found = self.of(name)
        return type(found), {
            key: Stream(t.dtype, t.shape, lambda key=key: iter((self.of(name).tensors()[key],)))
            for key, t in found.tensors().items()
        }

    def _shape(self, name: str, a: Delta, b: Delta) -> torch.Size:
        known = next((d.value.shape for d in (a, b) if isinstance(d, Dense)), torch.Size(()))
        return self.shapes.get(name, known)  # sums of one form need none
