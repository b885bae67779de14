"""Boundary Expanding: the data to forget moves into a class that is taken away afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropy
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class BoundaryExpanding(ClassifierTune):
    """Adds a shadow class K to the head, teaches the data to forget into it, and drops it.

        loss = CE([f(x_f), w h(x_f) + b], K),  h: features that the head reads; w, b: trained beside, then dropped

    Args:
        epochs: over the forgotten data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost per step: `batch` forwards, with gradients. The retained data is not read.
    Fails when: the shadow takes all: features move little and, without it, the old class is on top again; or training
        goes on and nothing holds the rest in place.
    Source: Chen et al., "Boundary Unlearning", CVPR 2023, arXiv 2303.11570.
    """

    epochs: Positive = 10.0
    lr: NonNegative = 1e-5
    batch: Count = 64
    rank: Size = 0
    augment: Augment = "none"

    uses_retain: ClassVar[bool] = False
    over: ClassVar[str] = "forget"
    each: ClassVar[tuple[str, ...]] = ("forget",)

    card = Card(
        name="Boundary Expanding",
        title="Boundary Unlearning",
        year=2023,
        paper="https://arxiv.org/abs/2303.11570",
        family="boundary",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Forgets a class of CIFAR-10 19 times faster than retraining.",
    )

    def ready(self, host: Classifier, data: Material, seed: int) -> int:
        return host.read(data["forget"].pixels(slice(0, 1)))[0].shape[1]

    def free(self, context: Any, seed: int) -> Mapping[str, Tensor]:
        bound = context**-0.5  # as a linear layer starts
        drawn = torch.rand(context + 1, generator=generator(seed, "shadow")) * 2 * bound - bound
        return {"shadow.weight": drawn[:-1], "shadow.bias": drawn[-1:]}

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget")
        features, logits = self.seen(step, forget.images)
        shadow = features @ step.free["shadow.weight"][:, None] + step.free["shadow.bias"]
        return cross_entropy(torch.cat([logits, shadow], 1), torch.full_like(forget.targets, logits.shape[1]))
