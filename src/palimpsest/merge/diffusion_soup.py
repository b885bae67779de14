"""Diffusion Soup: the mean of models that were fine-tuned on different data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.errors import BadRequest
from palimpsest.core.stored import Stored
from palimpsest.ops.merging import weighed


@dataclass(frozen=True, kw_only=True)
class DiffusionSoup(Combine):
    """Averages models of one base, so that data can be added and taken out by adding and leaving out a model.

        W' = sum_i  w_i / (sum_j w_j)  W_i

    Args:
        weights: one for each model, such as the sizes of their data; equal where none is given.

    Cost: one pass over what is changed.
    Fails when: models were trained far apart, so that no mean of them lies low; a concept that one of n models knows
        is there at about 1 / n of its change.
    Source: Biggs et al., "Diffusion Soup: Model Merging for Text-to-Image Diffusion Models", ECCV 2024, arXiv
        2406.08431; no code of the authors was found.

    Example:
        >>> soup = DiffusionSoup()([of_cats, of_dogs], host)    # doctest: +SKIP
    """

    weights: tuple[float, ...] = ()

    card = Card(
        name="Diffusion Soup",
        title="Diffusion Soup: Model Merging for Text-to-Image Diffusion Models",
        year=2024,
        paper="https://arxiv.org/abs/2406.08431",
        family="mean",
        needs="Host",
        claim="The mean of models trained on shards is better than one trained on all, and copies less.",
    )

    def survey(self, parts: Sequence[Part], base: Stored, host: Any, **rest: Any) -> Sequence[float]:
        weights = weighed(self.weights, parts)
        if min(weights) < 0 or sum(weights) <= 0:
            raise BadRequest(f"{self.card.name} takes weights of at least 0 that are not all 0, not {weights}.")
        return [w / sum(weights) for w in weights]

    def factors(self, name: str, surveyed: Sequence[float]) -> Sequence[float]:
        return surveyed
