"""TIES: trim small changes, elect a sign for each weight, and take the mean of those that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from palimpsest.core import fields
from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.stored import Stored
from palimpsest.ops.merging import changed, thresholds


@dataclass(frozen=True, kw_only=True)
class TIES(Combine):
    """Merges changes entry by entry, so that small and opposed ones do not blur each other.

        trim     d_i = W_i - W where |W_i - W| is among the share `density` of its largest, else 0
        elect    s = sign(sum_i d_i)
        merge    W' = W + scale mean of those d_i that are not 0 and have the sign s

    Args:
        density: the share of a change's entries that is kept.
        scale: of the merged change.
        over: entries are compared over "all" tensors that any of the changes touches, as in the paper, or within each
            "tensor", as programs do that merge tensor by tensor.
        elect: by "mass", as in the paper, or by the "count" of signs.

    Cost: two passes over all blocks for the trimming and one for the rest; with over="tensor" as well.
    Differs from the authors' code: where what is left cancels to exactly 0, nothing is elected and the weight stays;
        there the sign of most other weights is taken. Entries are counted in tensors that a change touches, not in the
        whole model, or a LoRA of a few layers would never be trimmed.
    Source: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv 2306.01708,
        and its code, github.com/prateeky2806/ties-merging.

    Example:
        >>> merged = TIES(density=0.2)([a, b, c], host)    # doctest: +SKIP
    """

    density: fields.Part = 0.2
    scale: fields.NonNegative = 1.0
    over: Literal["all", "tensor"] = "all"
    elect: Literal["mass", "count"] = "mass"

    passes: ClassVar[int] = 3

    card = Card(
        name="TIES",
        title="TIES-Merging: Resolving Interference When Merging Models",
        year=2023,
        paper="https://arxiv.org/abs/2306.01708",
        family="vote",
        needs="Host",
        claim="Merged models keep 2 to 4 points more of each task than by averaging or adding.",
    )

    def survey(self, parts: Sequence[Part], base: Stored, host: Any, **rest: Any) -> Mapping[str, Tensor]:
        names = changed(parts)
        if self.over == "tensor":
            return {name: thresholds(parts, base, [name], self.density) for name in names}
        return dict.fromkeys(names, thresholds(parts, base, names, self.density))

    def block(self, name: str, start: int, deltas: Tensor, surveyed: Mapping[str, Tensor]) -> Tensor:
        # Entries below the threshold, and those only, are not above the number that comes before it.
        below = torch.nextafter(surveyed[name], torch.tensor(-torch.inf)).tolist()
        kept = torch.stack([hardshrink(d, least) for d, least in zip(deltas, below, strict=True)])
        elected = (kept if self.elect == "mass" else kept.sign()).sum(0).sign_()
        kept.mul_(elected).relu_()  # sizes of those that agree, nothing of others
        count = kept.sign().sum(0).clamp_(min=1)
        return kept.sum(0).mul_(elected).mul_(self.scale).div_(count).add_(0.0)  # no negative zeros
