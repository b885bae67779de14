"""Random label: the data to forget is taught anew with labels drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.train.classify import Augment, ClassifierTune, cross_entropy, wrong_labels
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class RandomLabel(ClassifierTune):
    """Amnesiac unlearning without its log of updates: confuse what is forgotten, repeat what is kept.

        loss = CE(f(x_f), y~) + keep_weight CE(f(x_r), y_r)

    with one label y~ for each sample, drawn among those that are neither its own nor forgotten altogether.

    Args:
        keep_weight: of the retained data; 0 does not read it, and none need be given.
        epochs: over the retained data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost per step: 2 `batch` forwards, with gradients.
    Fails when: samples are forgotten: a wrong label that a retrained model would not give shows who was deleted.
    Source: Graves et al., "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981.
    """

    epochs: Positive = 10.0
    lr: NonNegative = 1e-3
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "flip"
    keep_weight: NonNegative = 1.0

    uses_retain: ClassVar[bool] = False

    card = Card(
        name="Random label",
        title="Amnesiac Machine Learning",
        year=2021,
        paper="https://arxiv.org/abs/2010.10981",
        family="baseline",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Baseline: forgets, and leaves wrong answers that a retrained model would not give.",
    )

    def ready(self, host: Classifier, data: Material, seed: int) -> Tensor:
        return wrong_labels(data, len(host.labels), generator(seed, "labels"))

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget", step.context)
        if self.keep_weight == 0 or not len(step.data["retain"]):
            return cross_entropy(self.logits(step, forget.images), forget.targets)
        retain = self.drawn(step, step.data["retain"], "retain")
        logits = self.logits(step, torch.cat([forget.images, retain.images]))
        wrong = cross_entropy(logits[: len(forget.rows)], forget.targets)
        return wrong + self.keep_weight * cross_entropy(logits[len(forget.rows) :], retain.targets)
