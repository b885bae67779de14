"""Task arithmetic: the sum of what several fine-tunings changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.stored import Stored
from palimpsest.ops.merging import weighed


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Combine):
    """Adds up the changes of all patches, each times its weight.

        W' = W + sum_i  w_i (W_i - W)

    Args:
        weights: one for each patch; 1 for all where none is given. A negative one takes its change away.

    Cost: one pass over what is changed. Changes of low rank stay so, at the sum of their ranks.
    Differs from the paper: one weight for each patch instead of one for all.
    Fails when: patches change the same layers in different ways; then each loses, and the receipt says how much.
    Source: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089.

    Example:
        >>> both = TaskArithmetic()([star, crown], host)    # doctest: +SKIP
    """

    weights: tuple[float, ...] = ()

    card = Card(
        name="Task arithmetic",
        title="Editing Models with Task Arithmetic",
        year=2023,
        paper="https://arxiv.org/abs/2212.04089",
        family="sum",
        needs="Host",
        claim="Adding what fine-tunings changed makes one model that does several tasks; taking it away forgets one.",
    )

    def survey(self, parts: Sequence[Part], base: Stored, host: Any, **rest: Any) -> Sequence[float]:
        return weighed(self.weights, parts)

    def factors(self, name: str, surveyed: Sequence[float]) -> Sequence[float]:
        return surveyed
