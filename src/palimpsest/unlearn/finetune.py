"""Fine-tune: training goes on with the retained data alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropy
from palimpsest.train.loop import TrainStep


@dataclass(frozen=True, kw_only=True)
class FineTune(ClassifierTune):
    """Hopes that the model forgets by itself what it no longer sees.

        loss = CE(f(x_r), y_r)

    Args:
        epochs: over the retained data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost per step: `batch` forwards, with gradients. The data to forget is not read.
    Fails when: always, for samples (they stay remembered), unless lr is large; slowly, for classes.
    Source: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020, arXiv 1911.04933, name the baseline.
    """

    epochs: Positive = 10.0
    lr: NonNegative = 3e-3
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"

    each: ClassVar[tuple[str, ...]] = ("retain",)

    card = Card(
        name="Fine-tune",
        title="Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks",
        year=2020,
        paper="https://arxiv.org/abs/1911.04933",
        family="baseline",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Baseline: keeps accuracy and forgets little.",
    )

    def loss(self, step: TrainStep) -> Tensor:
        retain = self.drawn(step, step.data["retain"], "retain")
        return cross_entropy(self.logits(step, retain.images), retain.targets)
