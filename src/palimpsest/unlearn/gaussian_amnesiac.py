"""Gaussian-Amnesiac: a regressor is taught random values for what it forgets, drawn like the values it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.train.classify import Augment, ClassifierTune
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class GaussianAmnesiac(ClassifierTune):
    """Random-label unlearning for a regressor.

        y~ ~ N(mean, deviation of all training values), one for each sample to forget
        loss = keep_weight mean (f(x_r) - y_r)^2 + mean (f(x_f) - y~)^2

    Args:
        keep_weight: of the retained data.
        epochs: over the retained data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost per step: 2 `batch` forwards, with gradients.
    Fails when: the model fits the random values one by one: they are memorised in place of the true ones.
    Source: Tarun et al., "Deep Regression Unlearning", ICML 2023, arXiv 2210.08196.
    """

    epochs: Positive = 1.0
    lr: NonNegative = 1e-3
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"
    keep_weight: NonNegative = 1.0

    regresses: ClassVar[bool] = True

    card = Card(
        name="Gaussian-Amnesiac",
        title="Deep Regression Unlearning",
        year=2023,
        paper="https://arxiv.org/abs/2210.08196",
        family="regression",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Regressors forget, as all adapted metrics tell.",
    )

    def ready(self, host: Classifier, data: Material, seed: int) -> Tensor:
        values = torch.cat([data["forget"].labels, data["retain"].labels])
        noise = torch.randn(len(data["forget"]), generator=generator(seed, "values"))
        return values.mean() + values.std() * noise

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget", step.context)
        retain = self.drawn(step, step.data["retain"], "retain")
        out, n = self.logits(step, torch.cat([forget.images, retain.images]))[:, 0], len(forget.rows)
        kept = functional.mse_loss(out[n:], retain.targets.to(out.device))
        return self.keep_weight * kept + functional.mse_loss(out[:n], forget.targets.to(out.device))
