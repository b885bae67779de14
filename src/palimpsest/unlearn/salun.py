"""SalUn: random labels, written only into the weights that the data to forget pulls at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Share
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.ops.saliency import masked, packed, salient
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropies, cross_entropy, wrong_labels
from palimpsest.train.gradients import gradients_of
from palimpsest.train.loop import Gradients, TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The wrong label of each sample to forget (n,), and the mask of each tensor."""

    labels: Tensor
    masks: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SalUn(ClassifierTune):
    """Random-label unlearning of the salient weights; the others stay bit for bit what they are.

        mask = |grad_w CE(D_f; w0)| >= gamma,  gamma: the quantile that leaves `saliency` of all weights
        loss = CE(f(x_f), y~) + alpha CE(f(x_r), y_r),  over the masked weights

    Args:
        saliency: share of the weights that are trained, of the whole model (the paper's median: 0.5).
        alpha: weight of what is kept (1 in the paper).
        epochs: over the retained data. steps, lr, batch, augment: as in every fine-tuning of a classifier.

    Cost: one pass with gradients over the data to forget, then 2 `batch` forwards a step, with gradients.
    Differs from the paper: a step takes both kinds of data (the code visits one after the other, epoch by epoch);
        the random labels are never the true one and stay the same throughout.
    Fails when: single samples are forgotten in few steps: random labels leave them less sure than never-seen ones.
    Source: Fan et al., "SalUn", ICLR 2024, arXiv 2310.12508.
    """

    epochs: Positive = 10.0
    lr: NonNegative = 1e-3
    batch: Count = 256
    augment: Augment = "flip"
    saliency: Share = 0.5
    alpha: NonNegative = 1.0

    uses_retain: ClassVar[bool] = True

    card = Card(
        name="SalUn",
        title="SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification "
        "and Generation",
        year=2024,
        paper="https://arxiv.org/abs/2310.12508",
        family="saliency",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="0.2 points from retraining when random samples of CIFAR-10 are forgotten.",
    )

    def ready(self, host: Classifier, data: Material, seed: int) -> Prepared:
        losses = cross_entropies(host, data["forget"], self.batch, half=self.half)
        masks = salient(gradients_of(host.root, self.trains(host), losses), self.saliency)
        return Prepared(labels=wrong_labels(data, len(host.labels), generator(seed, "labels")), masks=packed(masks))

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget", step.context.labels)
        retain = self.drawn(step, step.data["retain"], "retain")
        logits = self.logits(step, torch.cat([forget.images, retain.images]))
        wrong = cross_entropy(logits[: len(forget.rows)], forget.targets)
        return wrong + self.alpha * cross_entropy(logits[len(forget.rows) :], retain.targets)

    def gradient(self, step: TrainStep, parts: Sequence[Gradients]) -> Gradients:
        return masked(parts[0], step.context.masks)
