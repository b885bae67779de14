"""DARE: most of each change is dropped at random and the rest made larger, before changes are added."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Share
from palimpsest.core.pictures import Material
from palimpsest.core.stored import Stored
from palimpsest.core.trace import Trace
from palimpsest.ops.merging import weighed


class _Drawn(NamedTuple):
    weights: tuple[float, ...]
    keys: list[str]  # one for each change: of its draws


@dataclass(frozen=True, kw_only=True)
class DARE(Combine):
    """Drops most entries of each change at random, enlarges the rest, and adds the changes up.

        W' = W + sum_i  w_i  m_i (W_i - W) / (1 - drop),    each entry of m_i is 0 with probability `drop`, else 1

    Args:
        drop: the share of a change's entries that is dropped.
        weights: one for each patch; where none is given, 1 / n each, the mean.

    Cost: one pass over what is changed, and a random number for each entry of each change.
    Differs from the paper: draws follow from the seed, the tensor, the change and the place, so that neither the size
        of the blocks nor the order of the changes matters. The merging that follows is a weighted sum, never TIES.
    Fails when: changes are large, as after a long training; then enlarging them tenfold leaves where the model works.
    Source: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        ICML 2024, arXiv 2311.03099.

    Example:
        >>> merged = DARE(drop=0.9)([a, b, c], host, seed=0)    # doctest: +SKIP
    """

    drop: Share = 0.9
    weights: tuple[float, ...] = ()

    card = Card(
        name="DARE",
        title="Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        year=2024,
        paper="https://arxiv.org/abs/2311.03099",
        family="random",
        needs="Host",
        claim="Nine tenths of a change can be dropped without loss, and changes thinned so merge better.",
    )

    def survey(
        self, parts: Sequence[Part], base: Stored, host: Any, *, data: Material, rng: torch.Generator, trace: Trace
    ) -> _Drawn:
        if self.drop == 1:
            raise BadRequest("drop is 1.0, which leaves nothing of any change; give less.")
        weights = weighed(self.weights, parts) if self.weights else (1 / len(parts),) * len(parts)
        return _Drawn(weights, [f"{rng.initial_seed()}|{part.sha256()}" for part in parts])

    def block(self, name: str, start: int, deltas: Tensor, surveyed: _Drawn) -> Tensor:
        total = torch.zeros_like(deltas[0])
        for delta, weight, key in zip(deltas, surveyed.weights, surveyed.keys, strict=True):
            kept = _uniform(f"{key}|{name}", start * delta[0].numel(), delta.shape) >= self.drop
            total += delta.where(kept, 0.0) * (weight / (1 - self.drop))
        return total


def _uniform(key: str, at: int, shape: torch.Size) -> Tensor:
    """Even draws from [0, 1), those at `at` and after it in an endless row that the key names."""
    bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))
    bits.advance(at // 4)  # it draws four numbers at a time
    drawn = np.random.Generator(bits).random(at % 4 + shape.numel())
    return torch.from_numpy(drawn[at % 4 :]).reshape(shape)
