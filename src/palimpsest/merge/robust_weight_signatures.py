"""Robust weight signatures: what training on corrupted pictures changes in the first layers, added to a clean model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fields import Count, NonNegative
from palimpsest.core.stored import Stored
from palimpsest.ops.merging import shares_of


@dataclass(frozen=True, kw_only=True)
class RobustWeightSignatures(Combine):
    """Gives a model that was trained on clean pictures what models that were trained on corrupted ones know of them.

    All start from one model W. The first change leads to the clean model, each further one to a robust model; within
    each tensor of the first convolutions

        s_i = (W_i - W) - <W_i - W, W_clean - W> / |W_clean - W|^2  (W_clean - W)       the signature
        W'  = W_clean + strength / n  sum_i s_i

    Batch norms go to the mean of the robust models' by `strength`, at most all the way; all else stays as it is in the
    clean model.

    Args:
        layers: how many convolutions, from the picture on, carry a signature.
        strength: of the signatures together; 0 is the clean model.
        alone: leave the clean model out: the patch is what is to be added to another clean model of this architecture.

    Cost: two passes over the first convolutions, one over what else changes.
    Differs from the authors' code: there each weight counts twice, once before the projection and once after it, which
        is the same for one signature at strength 1. Signatures are not quantised.
    Fails when: the robust models were trained long enough to leave the neighbourhood of the common start.
    Source: Cai et al., "Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?", ICML 2023, arXiv
        2302.12480, and its code, github.com/VITA-Group/Robust_Weight_Signatures.

    Example:
        >>> robust = RobustWeightSignatures()([clean, noise, blur], start)    # doctest: +SKIP
    """

    layers: Count = 5
    strength: NonNegative = 1.0
    alone: bool = False

    card = Card(
        name="Robust Weight Signatures",
        title="Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?",
        year=2023,
        paper="https://arxiv.org/abs/2302.12480",
        family="projection",
        needs="Host",
        claim="First layers' signatures bring another clean model robustness, 13 times smaller than a model.",
    )

    def survey(self, parts: Sequence[Part], base: Stored, host: Any, **rest: Any) -> Mapping[str, Sequence[float]]:
        if len(parts) < 2:
            raise BadRequest(
                f"{self.card.name} takes the clean model's change first, then one robust model's or more; {len(parts)} "
                "was given."
            )
        if host is None:
            raise Unsupported(f"{self.card.name} asks which convolutions come first; load the model (no --stream).")
        first = _tensors_of(host.root, nn.Conv2d)[: self.layers]
        if not first:
            raise Unsupported(f"{self.card.name} is about convolutions, and {host.name} has none.")
        clean, *robust = parts
        each, kept = self.strength / len(robust), 0.0 if self.alone else 1.0
        factors = {}
        for name in (n for names in first for n in names):
            shares = shares_of(clean, robust, base, name)
            factors[name] = [kept - each * sum(shares), *[each] * len(robust)]
        norms = min(self.strength, 1.0)
        for name in (n for names in _tensors_of(host.root, nn.modules.batchnorm._BatchNorm) for n in names):
            factors[name] = [kept - norms, *[norms / len(robust)] * len(robust)]
        return factors | {"": [kept, *[0.0] * len(robust)]}

    def factors(self, name: str, surveyed: Mapping[str, Sequence[float]]) -> Sequence[float]:
        return surveyed.get(name, surveyed[""])


def _tensors_of(root: nn.Module, kind: type[nn.Module]) -> list[list[str]]:
    """The names of the tensors of each module of a kind, in the order in which the modules were put together."""
    found = [(name, m) for name, m in root.named_modules() if isinstance(m, kind)]
    return [[f"{name}.{key}" if name else key for key in m.state_dict()] for name, m in found]
