"""What a model learned from, split into what it must forget and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Pictures with their labels.

    Args:
        images: (n, 3, H, W) uint8.
        labels: (n,) int64 classes, or float32 values for a regressor.
        names: what the data set calls each: a path, or its row as text.
        groups: whom or what each belongs to across classes (an identity); empty: unknown.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            shape = tuple(self.images.shape)
            raise BadRequest(f"Pictures are {self.images.dtype} {shape}; expected uint8 of shape (n, 3, H, W).")
        if len(self.labels) != n or len(self.names) != n or len(self.groups) not in (0, n):
            counts = f"{len(self.labels)} labels, {len(self.names)} names and {len(self.groups)} groups"
            raise BadRequest(f"{n} pictures come with {counts}; give one of each for every picture.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> Samples:
        """The chosen rows (indices or a mask), as Samples."""
        chosen = torch.arange(len(self))[rows if isinstance(rows, slice) else torch.as_tensor(rows)]
        index = chosen.tolist()
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            names=tuple(self.names[i] for i in index),
            groups=tuple(self.groups[i] for i in index) if self.groups else (),
        )

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(m, 3, H, W) float32 in [0, 1] of the chosen rows: what a host's `logits` takes."""
        return self.images[rows].float() / 255


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Training data, split by a forget request. Methods read it as `data`.

    Args:
        forget: what must be forgotten; not empty. Where only part of it is known, the known part.
        retain: the rest of the training data; empty where a method must work without.
    """

    forget: Samples
    retain: Samples

    def __post_init__(self) -> None:
        if not len(self.forget):
            raise BadRequest("There is nothing to forget: no sample of the data meets the forget request.")
