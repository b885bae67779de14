"""SCAR: forget towards the nearest wrong class in Mahalanobis distance, keep by distilling on foreign pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.card import Card
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Classifier
from palimpsest.core.samples import Samples, Split
from palimpsest.ops.surrogates import dead_leaves
from palimpsest.train.classify import Augment, ClassifierTune, all_seen, gone, picked
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Samples to forget and the class that each goes to; foreign pictures and what the untouched model says of them.

    means (classes, d) and inverses (classes, d, d) of the classes' transformed features.
    """

    forget: Samples
    goals: Tensor
    foreign: Samples
    answers: Tensor
    means: Tensor
    inverses: Tensor


@dataclass(frozen=True, kw_only=True)
class SCAR(ClassifierTune):
    """Selective distillation for unlearning; no retained picture is trained on.

        t(h) = sqrt(h) / |sqrt(h)|                                     (Tukey's transform, signed, then unit norm)
        d_k(h) = (t(h) - m_k)' S_k^-1 (t(h) - m_k),  S_k: covariance of class k, shrunk by 3 and scaled to correlations
        loss = forget_weight d_k(h(x_f)) + keep_weight KL(softmax(f0(o) / T) | softmax(f(o) / T)),  o: foreign pictures

    k: the nearest class but the own one, on the untouched model. Where a class is forgotten altogether, foreign
    pictures that the untouched model takes for it are left out and its logit is the smallest in f0(o).

    Args:
        forget_set: False: the samples to forget are not read either; foreign pictures that the untouched model takes
            for the forgotten classes stand in for them ("self-forget"). For whole classes only.
        foreign: how many foreign pictures are drawn. look: how many retained samples the statistics are measured on;
            0: all.
        forget_weight, keep_weight: lambda_1 and lambda_2 (1 and 5 in the code).
        temperature: T.
        steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: one forward for each foreign picture and `look` retained ones (without retained data the foreign pictures
        give the statistics), then 2 `batch` forwards a step, with gradients.
    Differs from the paper: foreign pictures are drawn (dead leaves) instead of read from another data set; a fixed
        number of steps instead of stopping at a forget accuracy.
    Fails when: foreign pictures excite too little of the model: the retained classes drift where they never look.
    Source: Bonato et al., "Is Retain Set All You Need in Machine Unlearning?", ECCV 2024, arXiv 2404.12922.
    """

    steps: int = 400
    lr: float = 5e-4
    batch: int = 256
    rank: int = 0
    augment: Augment = "none"
    forget_set: bool = True
    foreign: int = 2000
    look: int = 5000
    forget_weight: float = 1.0
    keep_weight: float = 5.0
    temperature: float = 2.0

    uses_retain: ClassVar[bool] = False

    card = Card(
        name="SCAR",
        title="Is Retain Set All You Need in Machine Unlearning? Restoring Performance of Unlearned Models with "
        "Out-Of-Distribution Images",
        year=2024,
        paper="https://arxiv.org/abs/2404.12922",
        family="feature space",
        needs="Classifier",
        claim="Without retained data, comparable to the best methods that have it.",
        systems=(245,),
    )

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr)

    def ready(self, host: Classifier, data: Split, seed: int) -> Prepared:
        lost = gone(data, len(host.labels))
        foreign = self._foreign(data, seed)
        features, answers = all_seen(host, foreign, half=self.half)
        said = answers.argmax(1)
        kept = picked(data.retain, self.look, generator(seed, "look"))
        known, classes = (all_seen(host, kept, half=self.half)[0], kept.labels) if len(kept) else (features, said)
        means, inverses = statistics(known, classes.masked_fill(torch.isin(classes, lost), -1), len(host.labels))
        taken = torch.isin(said, lost)
        forget, found = data.forget, None
        if not self.forget_set:
            if not len(lost) or not bool(taken.any()):
                raise BadRequest(
                    "Without the forget set, SCAR forgets whole classes that some foreign picture is taken for; here "
                    "there is none. Give the forget set, or draw more foreign pictures."
                )
            forget, found = replace(foreign[taken], labels=said[taken]), features[taken]
        reached = distances(all_seen(host, forget, half=self.half)[0] if found is None else found, means, inverses)
        reached = reached.scatter(1, forget.labels[:, None], torch.inf)
        answers[:, lost] = answers.amin()
        rest = ~taken if bool((~taken).any()) else torch.ones_like(taken)
        return Prepared(
            forget=forget,
            goals=reached.argmin(1),
            foreign=foreign[rest],
            answers=answers[rest],
            means=means,
            inverses=inverses,
        )

    def _foreign(self, data: Split, seed: int) -> Samples:
        h, w = data.forget.images.shape[-2:]
        images = dead_leaves(self.foreign, (h, w), generator=generator(seed, "foreign"))
        names = tuple(f"drawn {i}" for i in range(len(images)))
        return Samples(images=images, labels=torch.zeros(len(images), dtype=torch.int64), names=names)

    def loss(self, step: TrainStep) -> Tensor:
        at: Prepared = step.context
        forget = self.drawn(step, at.forget, "forget", at.goals)
        kept = self.drawn(step, at.foreign, "foreign", at.answers)
        features, logits = self.seen(step, torch.cat([forget.images, kept.images]))
        n = len(forget.rows)
        far = distances(features[:n], at.means, at.inverses).gather(1, forget.targets[:, None]).mean()
        new = functional.log_softmax(logits[n:] / self.temperature, dim=1)
        old = functional.log_softmax(kept.targets.to(logits.device) / self.temperature, dim=1)
        stays = functional.kl_div(new, old, reduction="batchmean", log_target=True)
        return self.forget_weight * far + self.keep_weight * stays


def transformed(features: Tensor) -> Tensor:
    """(n, d) signed square roots, of unit norm; the small constant keeps the slope at zero finite."""
    roots = features.sign() * (features.abs() + 1e-4).sqrt()
    return functional.normalize(roots, dim=1)


def statistics(features: Tensor, labels: Tensor, classes: int, shrink: float = 3.0) -> tuple[Tensor, Tensor]:
    """Means (classes, d) and inverse correlation matrices (classes, d, d); infinite means where a class has none.

    Covariance S + shrink v1 I + shrink v2 (1 - I), v1, v2: mean of its diagonal and of the rest; then scaled to a
    unit diagonal.
    """
    d = features.shape[1]
    means, inverses = torch.full((classes, d), torch.inf), torch.eye(d).repeat(classes, 1, 1)
    points = transformed(features).double()
    for k in range(classes):
        own = points[labels == k]
        if len(own) < 2:
            continue
        covariance = own.T.cov()
        diagonal = covariance.diagonal().mean()
        rest = (covariance.sum() - covariance.diagonal().sum()) / max(1, d * (d - 1))
        covariance += shrink * rest + torch.eye(d).double() * shrink * (diagonal - rest)
        deviation = covariance.diagonal().clamp_min(1e-12).sqrt()
        means[k] = own.mean(0).float()
        inverses[k] = torch.linalg.pinv(covariance / torch.outer(deviation, deviation), hermitian=True).float()
    return means, inverses


def distances(features: Tensor, means: Tensor, inverses: Tensor) -> Tensor:
    """(n, classes) squared Mahalanobis distances; infinite to classes without statistics."""
    known = means.isfinite().all(1)
    away = transformed(features)[:, None] - means.to(features.device).where(known[:, None].to(features.device), 0.0)
    reached = torch.einsum("nkd,kde,nke->nk", away, inverses.to(features.device), away)
    return reached.where(known.to(features.device), torch.inf)
