"""Systems that make one patch of several: averages, votes, learnt weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from palimpsest.core.delta import Delta, Dense
from palimpsest.core.errors import BadRequest, Unsupported, WrongBase
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.host import Host
from palimpsest.core.method import Method
from palimpsest.core.patch import Patch, merge
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.core.words import united


@dataclass(frozen=True, kw_only=True)
class Combine(Method, ABC):
    """A system that makes one patch of several patches of one base. A tensor that a patch leaves out counts as zero;
    words are brought along."""

    def survey(self, patches: Sequence[Patch], host: Any, *, data: Material, rng: torch.Generator, trace: Trace) -> Any:
        """What is needed over all tensors before the first is combined (a threshold, coefficients); here, nothing."""
        return None

    def weights(self, name: str, surveyed: Any) -> Sequence[float] | None:
        """One factor for each patch, where the rule is a weighted sum of this tensor: low-rank changes then stay so.

        None, as here: the rule needs all entries, and `block` decides.
        """
        return None

    @abstractmethod
    def block(self, name: str, deltas: Tensor, surveyed: Any) -> Tensor:
        """(...) float32 of the patches' changes (n, ...) of one tensor."""

    @final
    def __call__(
        self,
        patches: Sequence[Patch],
        host: Any,
        *,
        data: Mapping[str, Pictures] | None = None,
        beside: Mapping[str, Host] | None = None,
        seed: int = 0,
        trace: Trace | None = None,
    ) -> Patch:
        """Combines patches.

        Args:
            patches: of the host's own weights; at least one.
            host: the model that they were made for; it is unchanged afterwards.

        Raises:
            WrongBase: a patch was made for another model.
            Unsupported: a patch acts while the model runs.
            BadRequest: there is no patch, or two bring one word with different meanings.

        Cost: one tensor of all patches at a time, in float32.
        """
        material, trace = Material(data or {}, beside or {}), trace or Trace()
        if not patches:
            raise BadRequest("There is no patch to combine; give at least one.")
        base, hooked = host.fingerprint(), [h.id for p in patches for h in p.hooks]
        if odd := [p.base for p in patches if p.base != base]:
            raise WrongBase(f"A patch was made for the model {odd[0][:12]}, but {host.name} is {base[:12]}.")
        if hooked:
            raise Unsupported(f"{hooked[0]} acts while the model runs; only changes of weights can be combined.")
        words = united([p.words for p in patches])
        with self.guarded(host, material, seed=seed, trace=trace) as rng:
            surveyed = self.survey(patches, host, data=material, rng=rng, trace=trace)
            deltas = {
                name: delta
                for name in sorted({n for p in patches for n in p.deltas})
                if (delta := self._combined(name, patches, host, surveyed)) is not None
            }
        provenance = {
            "method": self.id,
            "name": self.card.name,
            "parameters": self.parameters(),
            "seed": seed,
            "combined": [{"sha256": p.sha256(), "provenance": dict(p.provenance)} for p in patches],
        }
        return Patch(base=base, deltas=deltas, words=words, provenance=provenance)

    def _combined(self, name: str, patches: Sequence[Patch], host: Any, surveyed: Any) -> Delta | None:
        factors = self.weights(name, surveyed)
        if factors is not None:
            parts = [
                Patch(base="", deltas={name: p.deltas[name].scaled(f)})
                for p, f in zip(patches, factors, strict=True)
                if name in p.deltas and f != 0
            ]
            shape = {name: tensors_of(host.root)[name].shape}
            return merge(*parts, overlap="sum", shapes=shape).deltas[name] if parts else None
        shape = tensors_of(host.root)[name].shape
        dense = [p.deltas[name].dense(shape).float() if name in p.deltas else torch.zeros(shape) for p in patches]
        return Dense(value=self.block(name, torch.stack(dense), surveyed))
