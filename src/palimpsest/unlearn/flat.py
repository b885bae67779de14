"""FLAT: forget data alone, with how not to answer and how to answer weighed by an f-divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.train.classify import Augment, ClassifierTune, all_seen
from palimpsest.train.loop import TrainStep

Divergence = Literal["kl", "js", "pearson", "tv"]


@dataclass(frozen=True, kw_only=True)
class FLAT(ClassifierTune):
    """Loss adjustment with only forget data, ported from language models to classifiers.

        loss = -g(p(e | x_f)) + f*(g(p(y | x_f)))

        kl:      g(v) = v                       f*(u) = exp(u - 1)
        js:      g(v) = log 2 / (1 + exp(-v))   f*(u) = -log(2 - exp(u))
        pearson: g(v) = v                       f*(u) = u^2 / 4 + u
        tv:      g(v) = tanh(v) / 2             f*(u) = u

    y: the sample's label; e: the template answer, here the class that the untouched model finds most likely but y.

    Args:
        divergence: "kl", "js", "pearson" or "tv".
        epochs: over the forgotten data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: one forward for each sample to forget, then `batch` forwards a step, with gradients. The retained data is
        not read.
    Differs from the paper: a classifier answers with one class instead of a sentence, so p is one probability and the
        template ("I do not know") is the runner-up.
    Fails when: training goes on: as p(y) nears zero so do the gradients, but nothing holds the rest in place.
    Source: Wang et al., "LLM Unlearning via Loss Adjustment with Only Forget Data", ICLR 2025, arXiv 2410.11143.
    """

    epochs: Positive = 10.0
    lr: NonNegative = 1e-4
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "none"
    divergence: Divergence = "kl"

    uses_retain: ClassVar[bool] = False
    over: ClassVar[str] = "forget"
    each: ClassVar[tuple[str, ...]] = ("forget",)

    card = Card(
        name="FLAT",
        title="LLM Unlearning via Loss Adjustment with Only Forget Data",
        year=2025,
        paper="https://arxiv.org/abs/2410.11143",
        family="forget data only",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Forgets better than other methods without retained data, at minimal loss of ability.",
    )

    def ready(self, host: Classifier, data: Material, seed: int) -> Tensor:
        """(n, 2) the label and the template answer of each sample to forget."""
        logits = all_seen(host, data["forget"], half=self.half)[1].scatter(
            1, data["forget"].labels[:, None], -torch.inf
        )
        return torch.stack([data["forget"].labels, logits.argmax(1)], 1)

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget", step.context)
        p = self.logits(step, forget.images).softmax(1)
        bad, good = p.gather(1, forget.targets.to(p.device)).unbind(1)
        return (
            conjugate(variational(bad, self.divergence), self.divergence) - variational(good, self.divergence)
        ).mean()


def variational(v: Tensor, divergence: Divergence) -> Tensor:
    """g: the best variational function, of probabilities."""
    if divergence == "js":
        return (2 / (1 + (-v).exp())).log()
    return v.tanh() / 2 if divergence == "tv" else v


def conjugate(u: Tensor, divergence: Divergence) -> Tensor:
    """f*: the convex conjugate of the divergence's generator."""
    if divergence == "kl":
        return (u - 1).exp()
    if divergence == "js":
        return -(2 - u.exp()).log()
    return u.square() / 4 + u if divergence == "pearson" else u
