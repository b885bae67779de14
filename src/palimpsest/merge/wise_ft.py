"""WiSE-FT: between a model and its fine-tuned copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Share
from palimpsest.core.stored import Stored


@dataclass(frozen=True, kw_only=True)
class WiseFT(Combine):
    """Goes a part of the way from a model to its fine-tuned copy.

        W' = (1 - alpha) W + alpha W_fine-tuned

    Args:
        alpha: 0 is the untouched model, 1 the fine-tuned one.

    Cost: one pass over what is changed.
    Source: Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022, arXiv 2109.01903.

    Example:
        >>> half = WiseFT(alpha=0.5)([patch], host)    # doctest: +SKIP
    """

    alpha: Share = 0.5

    card = Card(
        name="WiSE-FT",
        title="Robust Fine-Tuning of Zero-Shot Models",
        year=2022,
        paper="https://arxiv.org/abs/2109.01903",
        family="mean",
        needs="Host",
        claim="Half way, accuracy under distribution shift rises by 4 to 6 points and hardly falls where it was tuned.",
    )

    def survey(self, parts: Sequence[Part], base: Stored, host: Any, **rest: Any) -> Sequence[float]:
        if len(parts) != 1:
            raise BadRequest(
                f"{self.card.name} lies between a model and one copy of it; {len(parts)} were given. For several take "
                "task_arithmetic or diffusion_soup."
            )
        return (self.alpha,)

    def factors(self, name: str, surveyed: Sequence[float]) -> Sequence[float]:
        return surveyed
