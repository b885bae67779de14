"""Concept inference: finds the concepts that a class rests on, then poisons the samples that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Part, Positive, Several, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.train.classify import (
    Augment,
    ClassifierTune,
    all_seen,
    cross_entropy,
    gone,
    joined,
    picked,
    wrong_labels,
)
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator

Poison = Literal["random", "targeted"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Rows of the forget set that are poisoned, and their labels (both (m,))."""

    rows: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class ConceptInference(ClassifierTune):
    """A concept bottleneck put behind the model says which concepts make the class; they choose what is poisoned.

        s(x) = C' norm(h(x)),  C: `concepts` centroids of unit features of all classes (k-means)
        W = argmin |f0(x) - W s(x) - b|^2 + ridge |W|^2                    (post-hoc concept bottleneck)
        a_c = mean over forget samples of |W_yc (s_c(x) - mean s_c)|_+    (integrated gradients of a linear map)
        poisoned = the `share` of forget samples with the largest sum of s_c(x) over the `top` concepts by a_c
        loss = CE(f(x_p), y~) + keep_weight CE(f(x_r), y_r)

    y~: a random wrong label, or for "targeted" the class whose weights W are most like the forgotten one's.

    Args:
        concepts: how many directions; top: how many of them count as the class's own.
        share: of the forget samples that are poisoned, in (0, 1]; the others are not trained on.
        poison: "random" or "targeted".
        look: how many samples the concepts are found on; 0: all.
        epochs: over the retained data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: one forward for each forget sample and each that concepts are found on, then 2 `batch` forwards a step.
    Differs from the paper: concepts are clusters of the model's own features; the paper names them by example
        pictures or a text encoder, which a bare classifier lacks.
    Fails when: the class shares its concepts with others; then the wrong samples lead.
    Source: Chang et al., "Class Machine Unlearning for Complex Data via Concepts Inference and Data Poisoning", 2024,
        arXiv 2405.15662.
    """

    epochs: Positive = 2.0
    lr: NonNegative = 1e-3
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"
    concepts: Several = 32
    top: Count = 4
    share: Part = 0.5
    poison: Poison = "random"
    keep_weight: NonNegative = 1.0
    look: Size = 5000

    quick: ClassVar[Mapping[str, Any]] = {**ClassifierTune.quick, "look": 100}

    card = Card(
        name="Concept inference",
        title="Class Machine Unlearning for Complex Data via Concepts Inference and Data Poisoning",
        year=2024,
        paper="https://arxiv.org/abs/2405.15662",
        family="data poisoning",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Erases the targeted class accurately and largely keeps the model's performance.",
    )

    def ready(self, host: Classifier, data: Material, seed: int) -> Prepared:
        draws = generator(seed, "concepts")
        features, logits = all_seen(host, picked(joined(data["forget"], data["retain"]), self.look, draws))
        own = functional.normalize(all_seen(host, data["forget"], half=self.half)[0], dim=1)
        found = clusters(functional.normalize(features, dim=1), self.concepts, draws)
        scores, carried = functional.normalize(features, dim=1) @ found.T, own @ found.T
        weights = bottleneck(scores, logits)
        given = weights[data["forget"].labels] * (carried - scores.mean(0))
        top = given.clamp_min(0).mean(0).topk(min(self.top, len(found))).indices
        order = carried[:, top].sum(1).argsort(descending=True, stable=True)
        rows = order[: max(1, round(self.share * len(order)))]
        if self.poison == "random":
            labels = wrong_labels(data, len(host.labels), generator(seed, "labels"))[rows]
        else:
            like = functional.normalize(weights, dim=1) @ functional.normalize(weights, dim=1).T
            like[:, gone(data, len(host.labels))] -= 2
            labels = like.fill_diagonal_(-torch.inf).argmax(1)[data["forget"].labels[rows]]
        return Prepared(rows=rows, labels=labels)

    def loss(self, step: TrainStep) -> Tensor:
        at: Prepared = step.context
        forget = self.drawn(step, step.data["forget"][at.rows], "forget", at.labels)
        retain = self.drawn(step, step.data["retain"], "retain")
        logits, n = self.logits(step, torch.cat([forget.images, retain.images])), len(forget.rows)
        wrong = cross_entropy(logits[:n], forget.targets)
        return wrong + self.keep_weight * cross_entropy(logits[n:], retain.targets)


def clusters(points: Tensor, count: int, draws: torch.Generator, rounds: int = 20) -> Tensor:
    """(count, d) unit centroids of unit points (n, d): spherical k-means; a cluster that empties keeps its centroid."""
    centres = points[torch.randperm(len(points), generator=draws)[:count]]
    for _ in range(rounds):
        nearest = (points @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        held = torch.bincount(nearest, minlength=len(centres))[:, None] > 0
        centres = torch.where(held, functional.normalize(sums, dim=1), centres)
    return centres


def bottleneck(scores: Tensor, logits: Tensor, ridge: float = 1e-3) -> Tensor:
    """(classes, concepts) weights of the linear map from concept scores to the model's logits, with intercept."""
    x, y = scores - scores.mean(0), logits - logits.mean(0)
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1])
    return torch.linalg.solve(gram, x.T @ y).T
