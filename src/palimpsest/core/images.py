"""Systems that change pictures: pictures in, pictures out, the model untouched, nothing moved that was masked out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.errors import Diverged, Touched, Unsupported
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.host import Host
from palimpsest.core.method import Method
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """What an ImageEdit returns.

    Args:
        images: (n, 3, H, W) float32 in [0, 1].
        rebuilt: the same work with nothing asked: what the way through the model alone does to a picture. None for
            systems that do not go through a model (cloaks, marks).
        region: (n, 1, H, W) in [0, 1], where the system meant to act.
        measures: (n,) each, the system's own numbers by name.
        patches: by picture's name, where a system tuned a model for one picture.
        provenance: who made it: method, parameters, request, seed, versions; plain JSON.
        cost: what the work took: seconds, forwards by part, peak bytes.
    """

    images: Tensor
    rebuilt: Tensor | None = None
    region: Tensor | None = None
    measures: Mapping[str, Tensor] = field(default_factory=dict)
    patches: Mapping[str, Patch] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageEdit(Method, ABC):
    """A system that changes pictures. It sees a model and pictures, writes into neither, and returns new ones."""

    patchable: ClassVar[bool] = False
    """Whether it can work with a patched model, as `Material.patch` says."""

    @abstractmethod
    def run(
        self,
        host: Any,
        sources: Pictures,
        request: Request,
        *,
        data: Material,
        rngs: Sequence[torch.Generator],
        trace: Trace,
    ) -> Edited:
        """The algorithm. Draws for picture i come from `rngs[i]` alone, so that none depends on its neighbours."""

    @final
    def __call__(
        self,
        host: Any,
        sources: Pictures,
        request: Request,
        *,
        data: Mapping[str, Pictures] | None = None,
        beside: Mapping[str, Host] | None = None,
        patch: Patch | None = None,
        seed: int = 0,
        trace: Trace | None = None,
    ) -> Edited:
        """Edits pictures.

        Args:
            host: the model; it is unchanged afterwards, also after an error.
            sources: the pictures. `captions` say what each shows, the column "asked" what it shall show, `masks` where
                it may change (1 = may).
            request: `target` is what the pictures shall show, `keep` what must not move.
            data, beside, trace: as for a ModelEdit.
            patch: of the host; the edit is drawn by the model with it, everything else by the model as it is.
            seed: of every draw; picture i draws from (seed, sha256 of its pixels), whatever stands beside it.

        Returns:
            Pictures of the sources' size in [0, 1]; outside the masks they are the sources, bit for bit.

        Raises:
            Unsupported: the host lacks a capability, or the system cannot work with a patch.
            BadRequest: the request, the data or a parameter makes no sense for this system.
            Diverged: a picture is no longer finite.
            Touched: the system changed a model, left a hook, or returned another number or size of pictures.
        """
        if patch is not None and not self.patchable:
            raise Unsupported(f"{self.card.name} works with the model as it is; leave out the patch.")
        material, trace = Material(data or {}, beside or {}, patch), trace or Trace()
        rngs = [torch.Generator().manual_seed(_seed_of(seed, image)) for image in sources.images]
        with self.guarded(host, material, seed=seed, trace=trace):
            edited = self.run(host, sources, request, data=material, rngs=rngs, trace=trace)
        return replace(
            edited,
            images=self._lawful(edited.images, sources),
            provenance=self.provenance(request, seed),
            cost={"seconds": trace.seconds, "forwards": dict(trace.forwards), "peak_bytes": trace.peak_bytes},
        )

    def _lawful(self, images: Tensor, sources: Pictures) -> Tensor:
        if images.shape != sources.images.shape:
            shapes = f"{tuple(images.shape)} of {tuple(sources.images.shape)}"
            raise Touched(f"{self.id} made pictures of another number or size ({shapes}).")
        if not bool(images.isfinite().all()):
            raise Diverged(f"{self.id} made a picture with numbers that are not finite; try fewer steps or float32.")
        images = images.float().cpu().clamp(0, 1)
        return images if sources.masks is None else torch.where(sources.masks > 0, images, sources.pixels())


def _seed_of(seed: int, image: Tensor) -> int:
    """63 bits of (seed, the picture's bytes)."""
    return int.from_bytes(hashlib.sha256(f"{seed}|".encode() + bytes(raw_bytes(image))).digest()[:8], "big") >> 1
