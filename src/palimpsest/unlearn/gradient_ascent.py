"""Gradient ascent: the loss on the data to forget goes up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropy
from palimpsest.train.loop import TrainStep


@dataclass(frozen=True, kw_only=True)
class GradientAscent(ClassifierTune):
    """Undoes learning by walking it backwards, on the data to forget alone.

        loss = -CE(f(x_f), y_f)

    Args:
        epochs: over the forgotten data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost per step: `batch` forwards, with gradients. The retained data is not read.
    Fails when: it goes on a little too long: the loss has no lower bound and takes everything else with it.
    Source: Thudi et al., "Unrolling SGD", EuroS&P 2022, arXiv 2109.13398; Golatkar et al. 2020.
    """

    epochs: Positive = 5.0
    lr: NonNegative = 5e-4
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"

    uses_retain: ClassVar[bool] = False
    clip: ClassVar[float | None] = 1.0
    over: ClassVar[str] = "forget"
    each: ClassVar[tuple[str, ...]] = ("forget",)

    card = Card(
        name="Gradient ascent",
        title="Unrolling SGD: Understanding Factors Influencing Machine Unlearning",
        year=2022,
        paper="https://arxiv.org/abs/2109.13398",
        family="baseline",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Baseline: forgets quickly, and damages the rest.",
    )

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget")
        return -cross_entropy(self.logits(step, forget.images), forget.targets)
