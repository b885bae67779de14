"""Retrain: a fresh model of what is kept. The gold standard, and what all others save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import NonNegative, Several
from palimpsest.core.host import Classifier
from palimpsest.core.method import ModelEdit, Work
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.train.classify import Augment, checked
from palimpsest.train.loop import identity
from palimpsest.train.scratch import Fit, changes, copied, reset


@dataclass(frozen=True, kw_only=True)
class Retrain(ModelEdit):
    """Draws all weights afresh and trains them on the retained data; classes and regressors alike.

        w = argmin CE(f(x_r), y_r) from random w, SGD with Nesterov momentum, one cycle of lr, decay 5e-4

    Args:
        epochs: passes over the retained data.
        lr: the peak; batch: pictures a step; augment: what they go through.
        half: compute in bfloat16; weights stay in float32.

    Cost: `epochs` forwards and backwards of every retained picture.
    Differs from an oracle: the recipe is this one, whatever the model itself was trained with.
    Fails when: the recipe does not suit the model; look at its accuracy on what is kept first.
    Source: Cao & Yang, "Towards Making Systems Forget with Machine Unlearning", S&P 2015, doi 10.1109/SP.2015.35.

    Example:
        >>> patch = Retrain(epochs=10)(host, request, data=split)   # doctest: +SKIP
    """

    epochs: NonNegative = 30.0
    lr: NonNegative = 0.1
    batch: Several = 128
    augment: Augment = "flip"
    half: bool = False

    quick: ClassVar[Mapping[str, Any]] = {"epochs": 1, "batch": 32}

    card = Card(
        name="Retrain",
        title="Towards Making Systems Forget with Machine Unlearning",
        year=2015,
        paper="https://doi.org/10.1109/SP.2015.35",
        family="baseline",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="The gold standard: it never saw what is forgotten.",
    )

    def planned(self, data: Material) -> Work:
        return self._fit().planned(len(data["retain"]))

    def _fit(self) -> Fit:
        return Fit(epochs=self.epochs, lr=self.lr, batch=self.batch, augment=self.augment, half=self.half)

    def run(self, host: Classifier, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        split = checked(host, data, values=data["forget"].labels.is_floating_point())
        student, seed = copied(host), rng.initial_seed()
        reset(student, seed)
        self._fit()(student, split["retain"], seed=seed, trace=trace, run=identity(self, host, request, seed))
        return Patch(base="", deltas=changes(host, student))
