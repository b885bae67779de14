"""Copies of a classifier that may be changed at will: reset, trained from scratch, compared with the original."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.core.delta import Delta, of_change
from palimpsest.core.errors import Unsupported
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.host import Classifier
from palimpsest.core.method import Work
from palimpsest.core.pictures import Pictures
from palimpsest.core.trace import Trace
from palimpsest.train.classify import Augment, augmented, cross_entropy, halved, stream
from palimpsest.train.loop import clipped, minimise, summed
from palimpsest.train.randomness import generator

CLIP = 5.0
"""Largest norm of all gradients in training from scratch: squared errors of raw values start far out."""


def copied(host: Any) -> Any:
    """The host with tensors of its own, in float32. Cost: the model's memory once more (twice in half precision).

    Counters that watch the host watch the copy too, so its forwards are in the same account.
    """
    student = copy.deepcopy(host)
    student.root.float()
    return student


def changes(host: Classifier, student: Classifier) -> dict[str, Delta]:
    """What turns the host into the student: every tensor that differs, buffers included."""
    old, new = tensors_of(host.root), tensors_of(student.root)
    return {n: of_change(old[n], new[n]) for n in old if not torch.equal(old[n], new[n].to(old[n].dtype))}


@torch.no_grad()
def reset(student: Classifier, seed: int) -> None:
    """Fresh weights: layers as torch draws them, norms at one and zero with empty statistics.

    Parameters of other modules (class tokens, positions, scales) are drawn as the model's own library draws them.

    Raises:
        Unsupported: there are such parameters, and the model was made by hand, so that nobody can build it anew.
    """
    anew: nn.Module | None = None
    for name, module in student.root.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
            for key, p in own.items():
                p.fill_(float(key == "weight"))
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.reset_running_stats()
        elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            bound = module.weight[0].numel() ** -0.5
            for key, p in own.items():
                draw = torch.rand(p.shape, generator=generator(seed, "reset", name, key))
                p.copy_(draw * 2 * bound - bound)
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator(seed, "reset", name)))
        elif own:
            anew = anew or _anew(student, f"a {type(module).__name__} ({name!r})", seed)
            for key, p in own.items():
                p.copy_(anew.get_submodule(name).get_parameter(key))


def _anew(student: Any, part: str, seed: int) -> nn.Module:
    """The same network, built again; the global generator stays as it was."""
    build = getattr(student, "anew", None)
    if build is None:
        raise Unsupported(
            f"{student.name} has {part} that cannot be drawn afresh from here, and nothing builds such a model anew; "
            "load it from a file or folder, or train a new model in your own code and compare with it."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a student is trained: SGD with Nesterov momentum 0.9; lr rises over a fifth of the steps, then falls to zero.

    Args:
        epochs: passes over the data; may be a fraction.
        lr: the peak. batch: pictures a step. augment: what they go through. decay: of weights with two axes or more.
        half: compute in bfloat16.
    """

    epochs: float
    lr: float
    batch: int
    augment: Augment
    decay: float = 5e-4
    half: bool = False

    def planned(self, n: int) -> Work:
        """How much a training on n samples is."""
        batch = min(self.batch, n)
        steps = max(1, round(self.epochs * n / batch))
        return Work(steps=steps, samples=steps * batch)

    def __call__(
        self,
        student: Classifier,
        samples: Pictures,
        *,
        seed: int,
        trace: Trace | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> None:
        """Trains all parameters with batch statistics: cross-entropy for classes, squared error for float labels.

        Args:
            trace, run: as in `train.loop.minimise`.
        """
        student.root.train().requires_grad_(True)
        leaves = dict(student.root.named_parameters())
        parameters = list(leaves.values())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.SGD([g for g in groups if g["params"]], lr=self.lr, momentum=0.9, nesterov=True)
        batch, total = min(self.batch, len(samples)), self.planned(len(samples)).steps

        def loss(k: int) -> Tensor:
            rows = stream(len(samples), batch, seed, k, "fit")
            images = augmented(samples.pixels(rows), self.augment, generator(seed, "augment", k))
            images = images.contiguous(memory_format=torch.channels_last)
            with halved(images, self.half):
                logits = student.logits(images)
            return _loss(logits, samples.labels[rows])

        def triangle(k: int, total: int) -> float:
            t = (k + 1) / (total + 1)
            return min(t / 0.2, (1 - t) / 0.8)

        minimise(
            leaves,
            loss,
            steps=total,
            optimiser=optimiser,
            trace=trace,
            run=run,
            kept=dict(student.root.named_buffers()),  # running statistics
            gradient=lambda k, parts: clipped(summed(k, parts), CLIP),
            schedule=triangle,
        )
        student.root.eval().requires_grad_(False)


@torch.no_grad()
def recalibrate(student: Classifier, samples: Pictures, *, seed: int, batches: int = 10, batch: int = 256) -> None:
    """Measures the batch norms' running statistics afresh, for weights that were changed from outside."""
    norms = [m for m in student.root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the mean over all batches
        m.train()
    for k in range(batches):
        student.logits(samples.pixels(stream(len(samples), min(batch, len(samples)), seed, k, "statistics")))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        m.eval()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return functional.mse_loss(logits[:, 0], labels.to(logits.device))
    return cross_entropy(logits, labels)
