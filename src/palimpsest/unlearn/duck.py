"""DUCK: in feature space, each sample to forget swims to the nearest centroid that is not its own."""

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
from palimpsest.train.classify import Augment, ClassifierTune, all_seen, cross_entropy, picked
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class DUCK(ClassifierTune):
    """Distance-based unlearning.

        c_k = mean of h0(x) over retained x of class k
        k(x) = argmin_{k != y} d(h0(x), c_k),  d(a, b) = 1 - cos(a, b)
        loss = forget_weight d(h(x_f), c_k(x_f)) + keep_weight CE(f(x_r) / temperature, y_r)

    Args:
        forget_weight, keep_weight: lambda_fgt and lambda_ret (1.5 each in the paper).
        temperature: softens the retained answers (2 in the paper's code).
        centroids: how many retained samples the centroids are measured on; 0: all.
        epochs: over the forgotten data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: one forward for each sample to forget and each that centroids are measured on, then 2 `batch` forwards a
        step, with gradients.
    Differs from the paper: a fixed number of steps (the code stops at a chosen forget accuracy); the nearest centroid
        is chosen once, from the untouched features.
    Fails when: a class is so near another that moving there changes no answer of a joint neighbour.
    Source: Cotogni et al., "DUCK", arXiv 2312.02052. Its score is `palimpsest.ops.unlearning_scores`.
    """

    epochs: Positive = 20.0
    lr: NonNegative = 5e-4
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"
    forget_weight: NonNegative = 1.5
    keep_weight: NonNegative = 1.5
    temperature: Positive = 2.0
    centroids: Size = 0

    over: ClassVar[str] = "forget"
    quick: ClassVar[Mapping[str, Any]] = {**ClassifierTune.quick, "centroids": 200}

    card = Card(
        name="DUCK",
        title="DUCK: Distance-based Unlearning via Centroid Kinematics",
        year=2023,
        paper="https://arxiv.org/abs/2312.02052",
        family="feature space",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Best of its field in removing classes and samples, by its own adaptive unlearning score.",
    )

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr)

    def ready(self, host: Classifier, data: Material, seed: int) -> Tensor:
        """(n, d) the centroid that each sample to forget moves to."""
        known = picked(data["retain"], self.centroids, generator(seed, "centroids"))
        kept = all_seen(host, known, half=self.half)[0]
        classes = known.labels.unique()
        means = torch.stack([kept[known.labels == k].mean(0) for k in classes])
        near = (
            functional.normalize(all_seen(host, data["forget"], half=self.half)[0], dim=1)
            @ functional.normalize(means, dim=1).T
        )
        near = near.masked_fill(data["forget"].labels[:, None] == classes, -torch.inf)
        return means[near.argmax(1)]

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget", step.context)
        retain = self.drawn(step, step.data["retain"], "retain")
        features, logits = self.seen(step, torch.cat([forget.images, retain.images]))
        n = len(forget.rows)
        away = 1 - functional.cosine_similarity(features[:n], forget.targets.to(features.device)).mean()
        kept = cross_entropy(logits[n:] / self.temperature, retain.targets)
        return self.forget_weight * away + self.keep_weight * kept
