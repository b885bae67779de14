"""l1-sparse: fine-tuning on what is kept, under a pull towards few weights that fades out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropy
from palimpsest.train.loop import TrainStep


@dataclass(frozen=True, kw_only=True)
class L1Sparse(ClassifierTune):
    """Sparsity-aware unlearning: weights that only the forgotten data needs find nobody who defends them.

        loss = CE(f(x_r), y_r) + gamma_t |w|_1,  gamma_t = gamma (1 - t / steps)

    Args:
        gamma: the pull at the start (5e-4 in the paper's code), for the sum over all weights.
        epochs: over the retained data. steps, lr, batch, augment: as in every fine-tuning of a classifier.

    Cost per step: `batch` forwards, with gradients. The data to forget is not read.
    Fails when: gamma is large for the number of weights: accuracy goes first; small: it is a fine-tuning.
    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv 2304.04934.
    """

    epochs: Positive = 10.0
    lr: NonNegative = 3e-3
    batch: Count = 256
    augment: Augment = "flip"
    gamma: NonNegative = 5e-4

    each: ClassVar[tuple[str, ...]] = ("retain",)

    card = Card(
        name="l1-sparse",
        title="Model Sparsity Can Simplify Machine Unlearning",
        year=2023,
        paper="https://arxiv.org/abs/2304.04934",
        family="sparsity",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Unlearning efficacy of fine-tuning up by 77 points.",
    )

    def loss(self, step: TrainStep) -> Tensor:
        retain = self.drawn(step, step.data["retain"], "retain")
        pull = self.gamma * (1 - step.index / step.total)
        size = torch.stack([w.abs().sum() for w in step.trained.leaves.values()]).sum()
        return cross_entropy(self.logits(step, retain.images), retain.targets) + pull * size
