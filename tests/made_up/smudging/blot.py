"""Blot: noise on every bias."""

from dataclasses import dataclass

import torch

from palimpsest.core.card import Card
from palimpsest.core.delta import Dense
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Blot(ModelEdit):
    """b <- b + strength n."""

    strength: float = 1.0

    card = Card(
        name="Blot", title="Blots", year=2026, paper="none", family="baseline", needs="Classifier", claim="It blots."
    )

    def run(self, host, request, *, data, rng, trace):
        biases = {n: p for n, p in host.root.named_parameters() if n.endswith("bias")}
        noise = {n: torch.randn(p.shape, generator=rng) for n, p in biases.items()}
        return Patch(base="", deltas={n: Dense(value=self.strength * x) for n, x in noise.items()})
