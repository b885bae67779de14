"""What every fine-tuning of a classifier shares: its data, its batches, its augmentation and its optimiser."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, Positive
from palimpsest.core.host import Classifier
from palimpsest.core.method import Work
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator

Augment = Literal["none", "shift", "flip"]
"""none: pictures as they are. shift: moved by up to an eighth of their side. flip: shift, and half of them mirrored."""


@dataclass(frozen=True, kw_only=True)
class ClassifierTune(FineTune, ABC):
    """A fine-tuning of a classifier on what it must forget and keep. All parameters are trained, by SGD with momentum
    unless a system says otherwise.

    The network stays in evaluation mode: batch norms keep their running statistics and train their scale and shift.
    So a row does not depend on its batch, the patch holds parameters only, and forgetting cannot hide in statistics
    that the next batch would undo. The published codes train with batch statistics, which bear learning rates ten
    times as high; where a system's default is lower than its paper's, this is why.

    Args:
        epochs: how long; one passes over all samples of one part of the data, which the system names.
        steps: how long, in steps of the optimiser; None: as many as the epochs take on the data.
        lr, batch, rank: as in every fine-tuning; a batch is that many samples to forget and as many to retain.
        augment: what training pictures go through: "none", "shift" or "flip".
        half: compute in bfloat16; weights, gradients and optimiser stay as they are. A third of the time on processors
            with bfloat16 units.
    """

    epochs: Positive
    steps: Count | None = None
    augment: Augment = "flip"
    half: bool = False

    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "batch": 32}
    over: ClassVar[str] = "retain"
    """What an epoch passes over; the samples to forget where it is empty."""
    each: ClassVar[tuple[str, ...]] = ("forget", "retain")
    """What each step takes a batch of."""
    uses_retain: ClassVar[bool] = True
    regresses: ClassVar[bool] = False

    def passed(self, data: Material) -> int:
        """How many samples an epoch passes over."""
        return len(data[self.over]) or len(data["forget"])

    def total(self, data: Material) -> int:
        if self.steps is not None:
            return self.steps
        n = self.passed(data)
        return max(1, round(self.epochs * n / min(self.batch, n)))

    def planned(self, data: Material) -> Work:
        steps = self.total(data)
        return Work(steps=steps, samples=steps * self.taken(data))

    def taken(self, data: Material) -> int:
        """How many samples a step takes."""
        return sum(min(self.batch, len(data[part])) for part in self.each)

    def trains(self, host: Classifier) -> Sequence[str]:
        return [name for name, _ in host.root.named_parameters()]

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(leaves), lr=self.lr, momentum=0.9)

    @final
    def prepare(self, host: Classifier, request: Request, *, data: Material, seed: int, trace: Trace) -> Any:
        return self.ready(host, checked(host, data, retain=self.uses_retain, values=self.regresses), seed)

    def ready(self, host: Classifier, data: Material, seed: int) -> Any:
        """What all steps need, computed once on the untouched model, without gradients; it becomes `step.context`."""
        return None

    def drawn(self, step: TrainStep, samples: Pictures, what: str, targets: Tensor | None = None) -> Drawn:
        """This step's batch of some samples; `what` names the stream, so that two streams do not run in step.

        Args:
            targets: (n, ...) what each sample should become; None: its label.
        """
        rows = stream(len(samples), min(step.batch, len(samples)), step.seed, step.index, what)
        images = augmented(samples.pixels(rows), self.augment, step.generator("augment", what))
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions on CPUs are faster so
        return Drawn(rows=rows, images=images, targets=(samples.labels if targets is None else targets)[rows])

    def logits(self, step: TrainStep, images: Tensor) -> Tensor:
        """(n, classes) float32 of the student."""
        with halved(images, self.half):
            return step.host.logits(images)

    def seen(self, step: TrainStep, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, d) and logits (n, classes), float32, of the student."""
        with halved(images, self.half):
            return step.host.read(images)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A batch: row numbers (b,), images (b, 3, H, W) in [0, 1], targets (b, ...)."""

    rows: Tensor
    images: Tensor
    targets: Tensor


def checked(host: Classifier, data: Material, *, retain: bool = True, values: bool = False) -> Material:
    """What is to be forgotten and what is kept, as this host can learn from.

    Args:
        retain: whether kept samples are needed.
        values: whether labels are a regressor's values.

    Raises:
        BadRequest: there is nothing to forget, nothing is kept, or its labels are not the model's.
    """
    if not len(data["forget"]):
        raise BadRequest("There is nothing to forget: no sample of the data meets the forget request.")
    if retain and not len(data["retain"]):
        raise BadRequest("Every sample is to be forgotten; this system needs samples that are kept. Forget fewer.")
    labels = torch.cat([data["forget"].labels, data["retain"].labels])
    if values != labels.is_floating_point() or (values and len(host.labels) != 1):
        wants = "a regressor: one output, float values as labels" if values else "a classifier: integer labels"
        has = f"{len(host.labels)} outputs and labels of {labels.dtype}"
        raise BadRequest(f"This system is for {wants}; {host.name} and its data have {has}.")
    bad = labels[(labels < 0) | (labels >= len(host.labels))] if not values else labels[:0]
    if len(bad):
        raise BadRequest(f"Label {int(bad[0])} is out of range; {host.name} has classes 0 to {len(host.labels) - 1}.")
    return data


def stream(n: int, batch: int, seed: int, step: int, what: str) -> Tensor:
    """(batch,) rows of a step: one random order of all n after another, cut in batches; a function of its arguments."""
    rows, at = [], step * batch
    while (missing := batch - sum(map(len, rows))) > 0:
        order = torch.randperm(n, generator=generator(seed, "order", what, at // n))
        rows.append(order[at % n : at % n + missing])
        at += len(rows[-1])
    return torch.cat(rows)


def augmented(images: Tensor, how: Augment, draws: torch.Generator) -> Tensor:
    """(n, 3, H, W) images, shifted by up to an eighth of the side on mirrored borders, and half of them flipped."""
    if how == "none":
        return images
    n, _, h, w = images.shape
    reach = max(1, min(h, w) // 8)
    grown = functional.pad(images, [reach] * 4, mode="reflect")
    by = torch.randint(2 * reach + 1, (2, n, 1), generator=draws)
    ys, xs = by[0] + torch.arange(h), by[1] + torch.arange(w)
    if how == "flip":
        xs = torch.where(torch.rand(n, 1, generator=draws) < 0.5, xs.flip(1), xs)
    return grown[torch.arange(n)[:, None, None], :, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)


def halved(images: Tensor, half: bool) -> torch.autocast:
    """Inside, layers compute in bfloat16, if so wanted."""
    return torch.autocast(images.device.type, torch.bfloat16, enabled=half)


@torch.no_grad()
def all_seen(host: Classifier, samples: Pictures, *, half: bool = False, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Features (n, d) and logits (n, classes) of all samples, without augmentation. Cost: one forward for each."""
    parts = []
    for rows in torch.arange(len(samples)).split(batch):
        images = samples.pixels(rows).contiguous(memory_format=torch.channels_last)
        with halved(images, half):
            parts.append(host.read(images))
    return torch.cat([f for f, _ in parts]).cpu(), torch.cat([s for _, s in parts]).cpu()


def picked(samples: Pictures, n: int, draws: torch.Generator) -> Pictures:
    """At most n of the samples, drawn at random; all of them where n is 0."""
    return samples[torch.randperm(len(samples), generator=draws)[: n or len(samples)]]


def joined(first: Pictures, second: Pictures) -> Pictures:
    """Both, one after the other."""
    return Pictures.cat([part for part in (first, second) if len(part)] or [first])


def cross_entropies(
    host: Classifier, samples: Pictures, batch: int, *, half: bool = False
) -> list[Callable[[], Tensor]]:
    """The mean cross-entropy of each batch of samples in their order, as functions of the host as it stands."""

    def one(rows: Tensor) -> Tensor:
        images = samples.pixels(rows).contiguous(memory_format=torch.channels_last)
        with halved(images, half):
            return cross_entropy(host.logits(images), samples.labels[rows])

    return [partial(one, rows) for rows in torch.arange(len(samples)).split(batch)]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows; targets are classes (n,) or distributions (n, classes)."""
    return functional.cross_entropy(logits, targets.to(logits.device))


def gone(data: Material, classes: int) -> Tensor:
    """(g,) classes that are forgotten altogether: no retained sample has them. Empty when samples are forgotten.

    Where no data is retained, those of the forget set, unless they are all of the `classes`.
    """
    lost = data["forget"].labels[~torch.isin(data["forget"].labels, data["retain"].labels)].unique()
    return lost if len(lost) < classes else lost[:0]


def wrong_labels(data: Material, classes: int, draws: torch.Generator) -> Tensor:
    """(n,) a random label for each sample to forget: neither its own nor, if another is left, one that is forgotten."""
    labels = data["forget"].labels
    score = torch.rand(len(labels), classes, generator=draws)
    score[:, gone(data, classes)] -= 1
    return score.scatter(1, labels[:, None], -2.0).argmax(1)
