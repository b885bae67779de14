"""Pictures as data, with whatever is known of each: what systems learn from and what edits take in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest

if TYPE_CHECKING:
    from palimpsest.core.host import Host
    from palimpsest.core.patch import Patch


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """n pictures of one size. What nobody knows is left out.

    Args:
        images: (n, 3, H, W) uint8; may be memory-mapped, since only chosen rows become floats.
        names: what the data set calls each: a path, or its row as text.
        labels: (n,) int64 classes, or float32 values for a regressor; empty: unknown.
        captions: what each shows, in words.
        masks: (n, 1, H, W) float32 in [0, 1]; 1 marks what a picture is about, or what may change.
        columns: further facts by name, one text a picture: identity, camera, background, domain, ...

    Raises:
        BadRequest: another type or shape of images, or facts of another number than there are pictures.
    """

    images: Tensor
    names: tuple[str, ...]
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    captions: tuple[str, ...] = ()
    masks: Tensor | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.images)
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
            raise BadRequest(
                f"Pictures are {self.images.dtype} {shape}; expected uint8 of shape (n, 3, H, W), no side 0."
            )
        if len(self.names) != n:
            raise BadRequest(f"{n} pictures come with {len(self.names)} names; give one for every picture.")
        facts = {"labels": self.labels, "captions": self.captions, "masks": self.masks, **self.columns}
        for name, values in facts.items():
            if values is not None and len(values) not in (0, n):
                raise BadRequest(f"{n} pictures come with {len(values)} {name}; give one for every picture.")
        if self.masks is not None and self.masks.shape[1:] != (1, *self.images.shape[2:]):
            shape = tuple(self.masks.shape)
            raise BadRequest(f"Masks are {shape}; expected {(n, 1, *self.images.shape[2:])}, as large as the pictures.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> Pictures:
        """The chosen rows (indices or a mask), as Pictures."""
        chosen = torch.arange(len(self))[rows if isinstance(rows, slice) else torch.as_tensor(rows)]
        index = chosen.tolist()
        return replace(
            self,
            images=self.images[chosen],
            names=_chosen(self.names, index),
            labels=self.labels[chosen] if len(self.labels) else self.labels,
            captions=_chosen(self.captions, index) if self.captions else (),
            masks=None if self.masks is None else self.masks[chosen],
            columns={name: _chosen(values, index) if values else () for name, values in self.columns.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Pictures]) -> Pictures:
        """Pictures of one size one after the other; facts that some parts lack are left out."""
        first = parts[0]
        sizes = {tuple(p.images.shape[1:]) for p in parts}
        if len(sizes) > 1:
            raise BadRequest(f"Pictures of different sizes ({sorted(sizes)}) cannot stand in one batch; resize them.")
        masks = [p.masks for p in parts if p.masks is not None]
        return Pictures(
            images=torch.cat([p.images for p in parts]),
            names=tuple(n for p in parts for n in p.names),
            labels=torch.cat([p.labels for p in parts]) if all(len(p.labels) for p in parts) else first.labels[:0],
            captions=tuple(c for p in parts for c in p.captions) if all(p.captions for p in parts) else (),
            masks=torch.cat(masks) if len(masks) == len(parts) else None,
            columns={
                name: tuple(v for p in parts for v in p.columns[name])
                for name in first.columns
                if all(name in p.columns for p in parts)
            },
        )

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(m, 3, H, W) float32 in [0, 1] of the chosen rows: what a host's functions take."""
        return self.images[rows].float() / 255


@dataclass(frozen=True, eq=False)
class Material(Mapping[str, Pictures]):
    """What a system works with beside its host: pictures by the names that its card reads, models by their roles.

    `data["references"]` are Pictures, `data.models["judge"]` is a Host, `data.patch` is a change of the host under
    which an ImageEdit draws its edits.
    """

    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    models: Mapping[str, Host] = field(default_factory=dict)
    patch: Patch | None = None

    def __getitem__(self, name: str) -> Pictures:
        return self.pictures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)


def _chosen(values: Sequence[str], index: Sequence[int]) -> tuple[str, ...]:
    return tuple(values[i] for i in index)
