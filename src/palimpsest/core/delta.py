"""How one named tensor changes. Each delta knows its dense form and how to be scaled and added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from palimpsest.core.errors import Damaged

D = TypeVar("D", bound="Delta")


@dataclass(frozen=True, kw_only=True)
class Delta:
    """An additive change of one tensor: `new = old + dense(old.shape)`, computed in float32 or wider."""

    kind: ClassVar[str]
    scales: ClassVar[str] = "value"  # the tensor that is multiplied where the whole is

    def fits(self, shape: torch.Size | None = None) -> None:
        """Takes no memory of the tensor's size.

        Raises:
            Damaged: the delta is not one of a tensor of this shape; None: of any tensor.
        """
        why = self._odd() or (self._misfit(shape) if shape is not None else None)
        if why is not None:
            form = ", ".join(f"{k} {tuple(t.shape)}" for k, t in self.tensors().items())
            target = "any tensor" if shape is None else f"a tensor of shape {tuple(shape)}"
            raise Damaged(
                f"A {self.kind} delta of {form} does not fit {target}: {why}. The patch is damaged or of another "
                "architecture."
            )

    def dense(self, shape: torch.Size) -> Tensor:
        """The change as a full tensor of the target's shape.

        Raises:
            Damaged: it does not fit.
        """
        self.fits(shape)
        return self._dense(shape)

    def rows(self, shape: torch.Size, start: int, stop: int) -> Tensor:
        """(stop - start, ...) of the change, without the rest of it; of a tensor without axes its one number.

        Args:
            shape: of the target, which the delta fits (`fits`).
        """
        return self._rows(shape if len(shape) else torch.Size((1,)), start, stop)

    def scaled(self: D, factor: float) -> D:
        return replace(self, **{self.scales: getattr(self, self.scales) * factor})

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def rank(self) -> int | None:
        """An upper bound that the form itself gives; None for forms that give none."""
        return None

    def outline(self) -> tuple[int, ...]:
        """What the form alone tells of the target's shape."""
        raise NotImplementedError(f"{type(self).__name__} has no outline")

    def _odd(self) -> str | None:
        raise NotImplementedError(f"{type(self).__name__} cannot say whether it is whole")

    def _misfit(self, shape: torch.Size) -> str | None:
        raise NotImplementedError(f"{type(self).__name__} cannot say what it fits")

    def _dense(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no dense form")

    def _rows(self, shape: torch.Size, start: int, stop: int) -> Tensor:
        return self._dense(shape)[start:stop]


@dataclass(frozen=True, kw_only=True)
class Dense(Delta):
    """Every entry: value (the tensor's own shape)."""

    kind: ClassVar[str] = "dense"
    value: Tensor

    def outline(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def _odd(self) -> str | None:
        return _not_real(self.value)

    def _misfit(self, shape: torch.Size) -> str | None:
        return None if self.value.shape == shape else "it has another shape"

    def _dense(self, shape: torch.Size) -> Tensor:
        return self.value.reshape(shape)  # the same but for a tensor without axes, seen as one row


@dataclass(frozen=True, kw_only=True)
class LowRank(Delta):
    """`up @ down`: up (out, r), down (r, in); in = the product of all axes but the first, so it serves convolutions."""

    kind: ClassVar[str] = "low_rank"
    scales: ClassVar[str] = "up"
    up: Tensor
    down: Tensor

    def outline(self) -> tuple[int, ...]:
        return (*self.up.shape[:1], *self.down.shape[1:])

    def _odd(self) -> str | None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            return "its two factors have no product"
        return _not_real(self.up) or ("its factors are of two types" if self.up.dtype != self.down.dtype else None)

    def _misfit(self, shape: torch.Size) -> str | None:
        if len(shape) and self.outline() == (shape[0], shape[1:].numel()):
            return None
        return f"its product is {self.up.shape[0]} x {self.down.shape[1]}"

    def _dense(self, shape: torch.Size) -> Tensor:
        return (self.up @ self.down).reshape(shape)

    def _rows(self, shape: torch.Size, start: int, stop: int) -> Tensor:
        return (self.up[start:stop] @ self.down).reshape(stop - start, *shape[1:])

    def rank(self) -> int:
        return self.up.shape[1]


@dataclass(frozen=True, kw_only=True)
class Rows(Delta):
    """Some rows of a table: index (k,) int64, value (k, ...)."""

    kind: ClassVar[str] = "rows"
    index: Tensor
    value: Tensor

    def outline(self) -> tuple[int, ...]:
        return tuple(self.value.shape[1:])

    def _odd(self) -> str | None:
        return _not_real(self.value) or _not_an_index(self.index, self.value)

    def _misfit(self, shape: torch.Size) -> str | None:
        if not len(shape) or self.outline() != tuple(shape[1:]):
            return "its rows have another shape"
        return _beyond(self.index, shape[0])

    def _dense(self, shape: torch.Size) -> Tensor:
        return torch.zeros(shape, dtype=self.value.dtype).index_add_(0, self.index, self.value)

    def _rows(self, shape: torch.Size, start: int, stop: int) -> Tensor:
        here = (self.index >= start) & (self.index < stop)
        part = Rows(index=self.index[here] - start, value=self.value[here])
        return part._dense(torch.Size((stop - start, *shape[1:])))


@dataclass(frozen=True, kw_only=True)
class Sparse(Delta):
    """Some entries: index (k,) int64 into the flattened tensor, value (k,)."""

    kind: ClassVar[str] = "sparse"
    index: Tensor
    value: Tensor

    def outline(self) -> tuple[int, ...]:
        return ()

    def _odd(self) -> str | None:
        if self.value.ndim != 1:
            return "its values are no list"
        return _not_real(self.value) or _not_an_index(self.index, self.value)

    def _misfit(self, shape: torch.Size) -> str | None:
        return _beyond(self.index, shape.numel())

    def _dense(self, shape: torch.Size) -> Tensor:
        n = shape.numel()
        return torch.zeros(n, dtype=self.value.dtype).index_add_(0, self.index, self.value).reshape(shape)

    def _rows(self, shape: torch.Size, start: int, stop: int) -> Tensor:
        size = shape[1:].numel()
        here = (self.index >= start * size) & (self.index < stop * size)
        part = Sparse(index=self.index[here] - start * size, value=self.value[here])
        return part._dense(torch.Size((stop - start, *shape[1:])))


REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS: Mapping[str, type[Delta]] = {d.kind: d for d in (Dense, LowRank, Rows, Sparse)}


def add(a: Delta, b: Delta, shape: torch.Size) -> Delta:
    """a + b, in the smallest form that holds it; `shape` is not looked at where both are LowRank, Rows or Sparse.

    Raises:
        Damaged: they are not deltas of one tensor.
    """
    if type(a) is type(b) and a.outline() != b.outline():
        raise Damaged(f"Two {a.kind} deltas of one tensor are of {a.outline()} and {b.outline()}; one is damaged.")
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


def _not_real(value: Tensor) -> str | None:
    return None if value.dtype in REAL else f"its values are {value.dtype}"


def _not_an_index(index: Tensor, value: Tensor) -> str | None:
    if index.dtype != torch.int64 or index.ndim != 1:
        return f"its index is {index.dtype} with {index.ndim} axes"
    if not value.ndim or len(index) != len(value):
        return "it has not one value for each index"
    return "its index is negative" if index.numel() and int(index.min()) < 0 else None


def _beyond(index: Tensor, rows: int) -> str | None:
    return f"its index goes to {int(index.max())}, of {rows}" if index.numel() and int(index.max()) >= rows else None
