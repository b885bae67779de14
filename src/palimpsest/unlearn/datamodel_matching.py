"""Datamodel matching: predict what a model without the forget set would say, then fine-tune to say it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.card import Card
from palimpsest.core.declared import Within
from palimpsest.core.errors import Diverged
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material, Pictures
from palimpsest.train.classify import Augment, ClassifierTune, all_seen, picked
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The retained samples that are matched, and the predicted logits of a model without the forget set.

    forget (n, classes), retain (m, classes).
    """

    kept: Pictures
    forget: Tensor
    retain: Tensor


@dataclass(frozen=True, kw_only=True)
class DatamodelMatching(ClassifierTune):
    """Attribute, then delete.

        z_S(x) = h0(x) W_S + b_S,  (W_S, b_S) = argmin mean CE over S + ridge |W|^2   (a proxy model of the data S)
        p(x) = f0(x) + z_retain(x) - z_all(x)               (predicted without the forget set)
        loss = mean (f(x) - p(x))^2 over forget samples + the same over retained ones

    Args:
        ridge: weight decay of the proxies.
        clip: largest change of a logit that is asked for; a class without samples has no finite answer of its own.
        look: how many retained samples are read at all; 0: all.
        epochs: over the retained data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: one forward for every sample that is read and two logistic regressions on the features, then 2 `batch`
        forwards a step.
    Differs from the paper: its datamodels are linear regressions over thousands of models trained on random subsets;
        here the effect of the forget set is read from two proxies on the model's own features, one forward a sample.
    Fails when: features themselves remember: proxies on them see no effect of single samples, only of classes.
    Source: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", ICLR 2025,
        arXiv 2410.23232.
    """

    epochs: Positive = 2.0
    lr: NonNegative = 1e-3
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "none"
    ridge: Annotated[float, Within(least=1e-8)] = 1e-4
    clip: NonNegative = 20.0
    look: Size = 0

    quick: ClassVar[Mapping[str, Any]] = {**ClassifierTune.quick, "look": 100}

    card = Card(
        name="Datamodel Matching",
        title="Attribute-to-Delete: Machine Unlearning via Datamodel Matching",
        year=2025,
        paper="https://arxiv.org/abs/2410.23232",
        family="attribution",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Closer to retraining's outputs than existing algorithms, also where training is not convex.",
    )

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr)

    def ready(self, host: Classifier, data: Material, seed: int) -> Prepared:
        known = picked(data["retain"], self.look, generator(seed, "look"))
        (lost, said), (kept, kept_said) = (all_seen(host, part, half=self.half) for part in (data["forget"], known))
        classes = len(host.labels)
        without = proxy(kept, known.labels, classes, self.ridge)
        whole = proxy(torch.cat([lost, kept]), torch.cat([data["forget"].labels, known.labels]), classes, self.ridge)
        change = [(_ahead(h, *without) - _ahead(h, *whole)).clamp(-self.clip, self.clip) for h in (lost, kept)]
        return Prepared(kept=known, forget=said + change[0], retain=kept_said + change[1])

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget", step.context.forget)
        retain = self.drawn(step, step.context.kept, "retain", step.context.retain)
        logits, n = self.logits(step, torch.cat([forget.images, retain.images])), len(forget.rows)
        parts = ((logits[:n], forget.targets), (logits[n:], retain.targets))
        return torch.stack([functional.mse_loss(out, goal.to(out.device)) for out, goal in parts]).sum()


def proxy(features: Tensor, labels: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (d, classes) and biases (classes,) of the logistic regression with this weight decay, by L-BFGS.

    Biases are decayed with the weights, or a class without samples would have none that is finite.
    """
    spread = features.std(0).mean().clamp_min(1e-6)  # one scale for all: conditioning, not standardisation
    x = functional.pad(features / spread, (0, 1), value=1.0)
    w = torch.zeros(x.shape[1], classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(x @ w, labels) + ridge * w.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        value = float(optimiser.step(closure).detach())  # of torch's own loop: no step of ours
    if not math.isfinite(value):
        raise Diverged(f"A proxy's loss became {value}; the features of {len(features)} samples may not be finite.")
    w = w.detach()
    return w[:-1] / spread, w[-1]


def _ahead(features: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    return features @ weights + biases
