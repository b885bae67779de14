"""SCAR: forget towards the nearest wrong class in Mahalanobis distance, keep by distilling on foreign pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.card import Card
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material, Pictures
from palimpsest.ops.surrogates import dead_leaves
from palimpsest.train.classify import Augment, ClassifierTune, all_seen, gone, picked
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Samples to forget and the class that each goes to; foreign pictures and what the untouched model says of them.

    nearest: the statistics of every class that something goes to.
    """

    forget: Pictures
    goals: Tensor
    foreign: Pictures
    answers: Tensor
    nearest: dict[int, Statistics]


@dataclass(frozen=True, kw_only=True)
class SCAR(ClassifierTune):
    """Selective distillation for unlearning; no retained picture is trained on.

        t(h) = sqrt(h)                                                       (Tukey's transform, signed)
        m_k = unit(mean of t(h) over class k),  S_k = their covariance, shrunk twice by 3 and scaled to correlations
        d_k(h) = (unit(t(h)) - m_k)' S_k^-1 (unit(t(h)) - m_k)
        loss = forget_weight d_k(h(x_f)) + keep_weight KL(softmax(f0(o)) | softmax(f(o))),  o: foreign pictures

    k: the nearest class but the own one, on the untouched model. Where a class is forgotten altogether, foreign
    pictures that the untouched model takes for it are left out and its logit is the smallest in f0(o).

    Args:
        forget_set: False: the samples to forget are not read either; foreign pictures that the untouched model takes
            for the forgotten classes stand in for them ("self-forget", shrunk once). For whole classes only.
        foreign: how many foreign pictures are drawn. look: how many retained samples the statistics are measured on;
            0: all.
        forget_weight, keep_weight: lambda_1 and lambda_2 (1 and 5 in the code).
        epochs: over the forgotten data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: one forward for each foreign picture and `look` retained ones (without retained data the foreign pictures
        give the statistics) and one pseudo-inverse (d, d) a class, then 2 `batch` forwards a step, with gradients.
    Differs from the paper: foreign pictures are drawn (dead leaves) instead of read from another data set; a fixed
        number of steps instead of stopping at a forget accuracy; when samples are forgotten, the code weighs each
        class's distance by its accuracy so far, here all weigh the same. A small constant under the root keeps its
        slope finite at zero. The code's temperature (1 by default) divides the teacher's logits only; here none does.
    Fails when: foreign pictures excite too little of the model: the retained classes drift where they never look.
    Source: Bonato et al., "Is Retain Set All You Need in Machine Unlearning?", ECCV 2024, arXiv 2404.12922; what the
        text leaves open follows the authors' code as last published.
    """

    epochs: Positive = 20.0
    lr: NonNegative = 5e-4
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "none"
    forget_set: bool = True
    foreign: Count = 2000
    look: Size = 5000
    forget_weight: NonNegative = 1.0
    keep_weight: NonNegative = 5.0

    uses_retain: ClassVar[bool] = False
    over: ClassVar[str] = "forget"
    quick: ClassVar[Mapping[str, Any]] = {**ClassifierTune.quick, "foreign": 40, "look": 100}

    card = Card(
        name="SCAR",
        title="Is Retain Set All You Need in Machine Unlearning? Restoring Performance of Unlearned Models with "
        "Out-Of-Distribution Images",
        year=2024,
        paper="https://arxiv.org/abs/2404.12922",
        family="feature space",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Without retained data, comparable to the best methods that have it.",
    )

    def passed(self, data: Material) -> int:
        return len(data["forget"]) if self.forget_set else self.foreign

    def taken(self, data: Material) -> int:
        return min(self.batch, self.passed(data)) + min(self.batch, self.foreign)

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr)

    def ready(self, host: Classifier, data: Material, seed: int) -> Prepared:
        lost = gone(data, len(host.labels))
        foreign = self._foreign(data, seed)
        features, answers = all_seen(host, foreign, half=self.half)
        said = answers.argmax(1)
        kept = picked(data["retain"], self.look, generator(seed, "look"))
        known, classes = (all_seen(host, kept, half=self.half)[0], kept.labels) if len(kept) else (features, said)
        taken = torch.isin(said, lost)
        if self.forget_set:
            forget, found = data["forget"], all_seen(host, data["forget"], half=self.half)[0]
        elif len(lost) and bool(taken.any()):
            forget, found = replace(foreign[taken], labels=said[taken]), features[taken]
        else:
            raise BadRequest(
                "Without the forget set, SCAR forgets whole classes that some foreign picture is taken for; here "
                "there is none. Give the forget set, or draw more foreign pictures."
            )
        of = partial(statistics, known, classes, shrinkings=2 if self.forget_set else 1)
        goals = nearest(found, forget.labels, of, [k for k in range(len(host.labels)) if k not in lost.tolist()])
        answers[:, lost] = answers.amin()
        rest = ~taken if bool((~taken).any()) else torch.ones_like(taken)
        return Prepared(
            forget=forget,
            goals=goals,
            foreign=foreign[rest],
            answers=answers[rest],
            nearest={k: s for k in goals.unique().tolist() if (s := of(k)) is not None},  # the others are not held
        )

    def _foreign(self, data: Material, seed: int) -> Pictures:
        h, w = data["forget"].images.shape[-2:]
        images = dead_leaves(self.foreign, (h, w), generator=generator(seed, "foreign"))
        names = tuple(f"drawn {i}" for i in range(len(images)))
        return Pictures(images=images, labels=torch.zeros(len(images), dtype=torch.int64), names=names)

    def loss(self, step: TrainStep) -> Tensor:
        at: Prepared = step.context
        forget = self.drawn(step, at.forget, "forget", at.goals)
        kept = self.drawn(step, at.foreign, "foreign", at.answers)
        features, logits = self.seen(step, torch.cat([forget.images, kept.images]))
        n = len(forget.rows)
        far = [distance(features[:n][forget.targets == k], s) for k, s in at.nearest.items()]
        new = functional.log_softmax(logits[n:], dim=1)
        old = functional.log_softmax(kept.targets.to(logits.device), dim=1)
        stays = functional.kl_div(new, old, reduction="batchmean", log_target=True)
        return self.forget_weight * torch.cat(far).mean() + self.keep_weight * stays


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """A class's unit mean (d,) and the inverse of its correlation matrix (d, d)."""

    mean: Tensor
    inverse: Tensor


def roots(features: Tensor) -> Tensor:
    """(n, d) signed square roots; the small constant keeps the slope at zero finite."""
    return features.sign() * (features.abs() + 1e-4).sqrt()


def statistics(features: Tensor, labels: Tensor, k: int, *, shrinkings: int, shrink: float = 3.0) -> Statistics | None:
    """Of class k among features (n, d); None where fewer than two rows are its own.

    Each shrinking makes the covariance C + shrink v1 I + shrink v2 (1 - I), v1, v2: mean of its diagonal and of what
    is not 0 beside it; then it is scaled to a unit diagonal.
    """
    own = roots(features[labels == k]).double()
    if len(own) < 2:
        return None
    covariance = own.T.cov().reshape(own.shape[1], -1)
    eye = torch.eye(len(covariance)).double()
    for _ in range(shrinkings):
        beside = covariance * (1 - eye)
        v1, v2 = covariance.diagonal().mean(), beside.sum() / max(1, int((beside != 0).sum()))
        covariance = covariance + shrink * (v1 * eye + v2 * (1 - eye))
    deviation = covariance.diagonal().clamp_min(1e-12).sqrt()
    inverse = torch.linalg.pinv(covariance / torch.outer(deviation, deviation), hermitian=True)
    return Statistics(mean=functional.normalize(own.mean(0), dim=0).float(), inverse=inverse.float())


def distance(features: Tensor, of: Statistics) -> Tensor:
    """(n,) squared Mahalanobis distance to a class."""
    away = functional.normalize(roots(features), dim=1) - of.mean.to(features.device)
    return ((away @ of.inverse.to(features.device)) * away).sum(1)


def nearest(features: Tensor, labels: Tensor, of: Callable[[int], Statistics | None], classes: Sequence[int]) -> Tensor:
    """(n,) the nearest of the classes but each row's own; one class's statistics are held at a time.

    Raises:
        BadRequest: for some row no class is left.
    """
    least, goals = torch.full((len(features),), torch.inf), torch.zeros(len(features), dtype=torch.int64)
    for k in classes:
        if (found := of(k)) is not None:
            reached = distance(features, found).masked_fill(labels == k, torch.inf)
            goals, least = goals.masked_fill(reached < least, k), torch.minimum(reached, least)
    if bool(least.isinf().any()):
        raise BadRequest("SCAR finds no class that what is forgotten could go to; retain samples of other classes.")
    return goals
