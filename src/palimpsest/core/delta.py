"""How one named tensor changes. Each delta knows its dense form and how to be scaled and added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.errors import Damaged


@dataclass(frozen=True, kw_only=True)
class Delta:
    """An additive change of one tensor: `new = old + dense(old.shape)`, computed in float32 or wider."""

    kind: ClassVar[str]

    def dense(self, shape: torch.Size) -> Tensor:
        """The change as a full tensor of the target's shape."""
        raise NotImplementedError(f"{type(self).__name__} has no dense form")

    def scaled(self, factor: float) -> Delta:
        raise NotImplementedError(f"{type(self).__name__} cannot be scaled")

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def rank(self) -> int | None:
        """An upper bound that the form itself gives; None for forms that give none."""
        return None


@dataclass(frozen=True, kw_only=True)
class Dense(Delta):
    """Every entry: value (the tensor's own shape)."""

    kind: ClassVar[str] = "dense"
    value: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        return _fit(self.value, shape, self)

    def scaled(self, factor: float) -> Dense:
        return Dense(value=self.value * factor)


@dataclass(frozen=True, kw_only=True)
class LowRank(Delta):
    """`up @ down`: up (out, r), down (r, in); in = the product of all axes but the first, so it serves convolutions."""

    kind: ClassVar[str] = "low_rank"
    up: Tensor
    down: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        return _fit(self.up @ self.down, shape, self)

    def scaled(self, factor: float) -> LowRank:
        return LowRank(up=self.up * factor, down=self.down)

    def rank(self) -> int:
        return self.up.shape[1]


@dataclass(frozen=True, kw_only=True)
class Rows(Delta):
    """Some rows of a table: index (k,) int64, value (k, ...)."""

    kind: ClassVar[str] = "rows"
    index: Tensor
    value: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        if self.index.numel() and (int(self.index.max()) >= shape[0] or self.value.shape[1:] != shape[1:]):
            raise Damaged(f"Rows of shape {tuple(self.value.shape)} do not fit a table of shape {tuple(shape)}.")
        return torch.zeros(shape, dtype=self.value.dtype).index_add_(0, self.index, self.value)

    def scaled(self, factor: float) -> Rows:
        return Rows(index=self.index, value=self.value * factor)


@dataclass(frozen=True, kw_only=True)
class Sparse(Delta):
    """Some entries: index (k,) int64 into the flattened tensor, value (k,)."""

    kind: ClassVar[str] = "sparse"
    index: Tensor
    value: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        n = shape.numel()
        if self.index.numel() and int(self.index.max()) >= n:
            raise Damaged(f"A sparse delta names entry {int(self.index.max())} of a tensor with {n} entries.")
        return torch.zeros(n, dtype=self.value.dtype).index_add_(0, self.index, self.value).reshape(shape)

    def scaled(self, factor: float) -> Sparse:
        return Sparse(index=self.index, value=self.value * factor)


KINDS: Mapping[str, type[Delta]] = {d.kind: d for d in (Dense, LowRank, Rows, Sparse)}


def add(a: Delta, b: Delta, shape: torch.Size) -> Delta:
    """a + b, in the smallest form that holds it."""
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return LowRank(up=torch.cat([a.up, b.up], 1), down=torch.cat([a.down, b.down], 0))
    if isinstance(a, (Rows, Sparse)) and type(a) is type(b):
        index, value = torch.cat([a.index, b.index]), torch.cat([a.value, b.value])  # type: ignore[attr-defined]
        return type(a)(index=index, value=value)
    return Dense(value=a.dense(shape) + b.dense(shape))


def of_change(old: Tensor, new: Tensor) -> Delta:
    """The change between two tensors: sparse where less than a third of the entries moved, else dense."""
    change = (new.detach().float() - old.detach().float()).cpu()
    moved = change.reshape(-1).nonzero().squeeze(1)
    if len(moved) * 3 < change.numel():
        return Sparse(index=moved, value=change.reshape(-1)[moved])
    return Dense(value=change)


def _fit(value: Tensor, shape: torch.Size, delta: Delta) -> Tensor:
    if value.numel() != shape.numel():
        raise Damaged(
            f"A {delta.kind} delta of {tuple(value.shape)} does not fit a tensor of shape {tuple(shape)}; "
            "the patch was made for another architecture."
        )
    return value.reshape(shape)
