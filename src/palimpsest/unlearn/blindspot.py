"""Blindspot: what a regressor forgets, it answers as a model would that has hardly seen anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.train.classify import Augment, ClassifierTune, picked
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.scratch import Fit, copied, reset


@dataclass(frozen=True, kw_only=True)
class Blindspot(ClassifierTune):
    """A fresh model b, shown a part of the retained data for a moment, leads the model where it must forget.

        loss = mean (f(x_r) - y_r)^2 + mean (f(x_f) - b(x_f))^2 + weight mean |h(x_f) - h_b(x_f)|

    Args:
        weight: of the features that the head reads (50 in the paper, for the activations of its last layers).
        share: of the retained data that b sees. blind_epochs, blind_lr: how long, and the peak rate.
        epochs: over the retained data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: `blind_epochs` passes over the share, with gradients; then 2 `batch` forwards a step with gradients and
        `batch` of b without.
    Differs from the paper: one layer of activations, the features that the head reads.
    Fails when: b knows too much (it predicts what must be forgotten) or too little (what is forgotten stands out).
    Source: Tarun et al., "Deep Regression Unlearning", ICML 2023, arXiv 2210.08196.
    """

    epochs: Positive = 1.0
    lr: NonNegative = 1e-3
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"
    weight: NonNegative = 50.0
    share: Positive = 0.3
    blind_epochs: NonNegative = 6.0
    blind_lr: NonNegative = 0.01

    regresses: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {**ClassifierTune.quick, "blind_epochs": 0.1}

    divisible: ClassVar[bool] = False

    card = Card(
        name="Blindspot",
        title="Deep Regression Unlearning",
        year=2023,
        paper="https://arxiv.org/abs/2210.08196",
        family="regression",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Regressors forget, as all adapted metrics tell, and withstand privacy attacks.",
    )

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr)

    def ready(self, host: Classifier, data: Material, seed: int) -> Classifier:
        blind = copied(host)
        reset(blind, seed)
        part = picked(data["retain"], max(2, round(self.share * len(data["retain"]))), generator(seed, "part"))
        fit = Fit(epochs=self.blind_epochs, lr=self.blind_lr, batch=self.batch, augment=self.augment, half=self.half)
        fit(blind, part, seed=seed)
        return blind

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget")
        retain = self.drawn(step, step.data["retain"], "retain")
        with torch.no_grad():
            led, answers = step.context.read(forget.images)
        features, out = self.seen(step, torch.cat([forget.images, retain.images]))
        n = len(forget.rows)
        kept = functional.mse_loss(out[n:, 0], retain.targets.to(out.device))
        lost = functional.mse_loss(out[:n], answers)
        return kept + lost + self.weight * functional.l1_loss(features[:n], led)
