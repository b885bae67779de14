"""NegGrad+: descent on what is kept and ascent on what is forgotten, weighed against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Part, Positive, Size
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropy
from palimpsest.train.loop import TrainStep


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(ClassifierTune):
    """The strong baseline of the unlearning literature.

        loss = beta CE(f(x_r), y_r) - (1 - beta) CE(f(x_f), y_f)

    Args:
        beta: in (0, 1]; the weight of what is kept (the paper tunes it between 0.95 and 0.9999).
        epochs: over the retained data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost per step: 2 `batch` forwards, with gradients.
    Differs from the paper: gradients are clipped at norm 1, since the ascent has no end.
    Fails when: beta is too small for the number of steps: the ascent wins.
    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv 2302.09880.
    """

    epochs: Positive = 5.0
    lr: NonNegative = 2e-3
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"
    beta: Part = 0.95

    clip: ClassVar[float | None] = 1.0

    card = Card(
        name="NegGrad+",
        title="Towards Unbounded Machine Unlearning",
        year=2023,
        paper="https://arxiv.org/abs/2302.09880",
        family="baseline",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Baseline: close to retraining where beta is tuned for the request.",
    )

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget")
        retain = self.drawn(step, step.data["retain"], "retain")
        logits = self.logits(step, torch.cat([forget.images, retain.images]))
        ascent = cross_entropy(logits[: len(forget.rows)], forget.targets)
        descent = cross_entropy(logits[len(forget.rows) :], retain.targets)
        return self.beta * descent - (1 - self.beta) * ascent
