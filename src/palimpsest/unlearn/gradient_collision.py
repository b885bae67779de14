"""Gradient Collision: the source task's mini-batches are made to pull the weights in different directions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Several
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropy
from palimpsest.train.loop import TrainStep


@dataclass(frozen=True, kw_only=True)
class GradientCollision(ClassifierTune):
    """Disposes of a source task: no step learns it again, since what helps one mini-batch harms another.

        g_i = grad_w CE(f(x_i), y_i) over mini-batches i of the data to forget
        loss = CE(f(x_r), y_r) + weight mean_{i < j} cos(g_i, g_j)

    Args:
        weight: of the collision.
        parts: mini-batches that collide in a step; each has `batch` / `parts` samples.
        epochs: over the retained data. steps, lr, batch, augment: as in every fine-tuning of a classifier.

    Cost per step: 2 `batch` forwards; the gradients of the parts are differentiated once more, so a step costs about
        three of a plain fine-tuning.
    Differs from the paper: the source task is the forget set of one classifier; the paper scrubs a network that was
        transferred to a target task of its own head.
    Fails when: judged by the forget accuracy: the loss speaks of relearning, not of answers, which may stay right.
    Source: Koh et al., "Disposable Transfer Learning for Selective Source Task Unlearning", ICCV 2023,
        arXiv 2308.09971.
    """

    epochs: Positive = 1.0
    lr: NonNegative = 1e-3
    batch: Count = 256
    augment: Augment = "flip"
    weight: NonNegative = 1.0
    parts: Several = 4

    divisible: ClassVar[bool] = False

    card = Card(
        name="Gradient Collision",
        title="Disposable Transfer Learning for Selective Source Task Unlearning",
        year=2023,
        paper="https://arxiv.org/abs/2308.09971",
        family="gradients",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Keeps the target task and makes the source task much harder to learn again.",
    )

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr)

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget")
        retain = self.drawn(step, step.data["retain"], "retain")
        leaves = list(step.trained.leaves.values())
        pulls = []
        for rows in torch.arange(len(forget.rows)).chunk(self.parts):
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                loss = cross_entropy(self.logits(step, forget.images[rows]), forget.targets[rows])
            found = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            pulls.append(torch.cat([g.reshape(-1) for g in found]))
        unit = functional.normalize(torch.stack(pulls), dim=1, eps=1e-12)
        count = len(unit) * (len(unit) - 1)
        alike = (unit.sum(0).square().sum() - unit.square().sum()) / max(1, count)  # the mean over pairs
        return cross_entropy(self.logits(step, retain.images), retain.targets) + self.weight * alike
