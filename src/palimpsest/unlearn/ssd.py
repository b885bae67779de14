"""Selective Synaptic Dampening: weights that matter mostly to the bad data are turned down, without training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.delta import of_change
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Classifier
from palimpsest.core.method import ModelEdit, Work
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace
from palimpsest.train.classify import checked, cross_entropies, joined, picked
from palimpsest.train.gradients import gradients_of


@dataclass(frozen=True, kw_only=True)
class SSD(ModelEdit):
    """Dampens each weight by how much more it matters to the forget set than to the data as a whole.

        I(D)_i = mean over batches of D of (d CE / d w_i)^2
        w_i <- min(strength I(D)_i / I(D_f)_i, 1) w_i   where I(D_f)_i > select I(D)_i

    What ratio is large differs from model to model. Unless it is given, `select` is the quantile of all ratios that
    leaves log(1 + 100 |D_f| / |D|) percent of the weights above it: 2.4 % where a tenth of the data is forgotten.

    For corrective unlearning the forget set is the part of the bad data that is known; the rest of it hides in
    `retain`, and is forgotten as far as it leans on the same weights.

    Args:
        select: alpha; how many times larger the importance must be (10 in the paper for CIFAR); 0: by the rule above.
        strength: lambda (1 in the paper); smaller dampens more.
        batch: samples behind each squared gradient, drawn from all data mixed; 1 is the diagonal Fisher information.
        reference: how many samples I(D) is measured on; 0: all.
        half: compute in bfloat16.

    Cost: one forward and backward for each sample to forget and each of the reference.
    Differs from the paper: `reference` may be a random part of the data.
    Fails when: the known part does not represent the rest; the bad data leans on weights that all else leans on too.
    Source: Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024,
        arXiv 2308.07707; the rule for `select`: Schoepf et al., arXiv 2402.10098; as a corrective: Goel et al.,
        "Corrective Machine Unlearning", TMLR 2024, arXiv 2402.14015.

    Example:
        >>> patch = SSD(select=10.0)(host, request, data=split)   # doctest: +SKIP
    """

    select: NonNegative = 0.0
    strength: NonNegative = 1.0
    batch: Count = 64
    reference: Size = 0
    half: bool = False

    quick: ClassVar[Mapping[str, Any]] = {"select": 2.0, "batch": 32, "reference": 200}

    card = Card(
        name="Selective Synaptic Dampening",
        title="Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
        year=2024,
        paper="https://arxiv.org/abs/2308.07707",
        family="importance",
        needs="Classifier",
        reads=("forget", "retain"),
        as_used_in="https://arxiv.org/abs/2402.14015",
        claim="Removes poison when only a small part of it is identified, where retraining without that part does not.",
    )

    def planned(self, data: Material) -> Work:
        every = sum(map(len, data.values()))
        return Work(steps=0, samples=len(data["forget"]) + min(self.reference or every, every))

    def run(self, host: Classifier, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        split = checked(host, data)
        forget = self._importance(host, split["forget"], trace, "importance to the forget set")
        known = picked(joined(split["forget"], split["retain"]), self.reference, rng)
        overall = self._importance(host, known, trace, "importance to all data")
        share = math.log1p(100 * len(split["forget"]) / (len(split["forget"]) + len(split["retain"]))) / 100
        select = self.select or _quantile({n: forget[n] / overall[n].clamp_min(1e-30) for n in forget}, share)
        deltas = {}
        for name, weight in host.root.named_parameters():
            factor = (self.strength * overall[name] / forget[name].clamp_min(1e-30)).clamp(max=1.0)
            factor = torch.where(forget[name] > select * overall[name], factor, 1.0)
            if bool((factor < 1).any()):
                deltas[name] = of_change(weight, weight.detach().float() * factor)
        return Patch(base="", deltas=deltas)

    def _importance(self, host: Classifier, samples: Pictures, trace: Trace, what: str) -> dict[str, Tensor]:
        """Mean squared gradient of batches, by parameter, float32."""
        names = [name for name, _ in host.root.named_parameters()]
        losses = cross_entropies(host, samples, self.batch, half=self.half)
        mean: dict[str, Tensor] = {}
        for k, loss in enumerate(losses):
            for name, g in gradients_of(host.root, names, [loss]).items():
                square = g.float().square_() / len(losses)
                mean[name] = mean[name].add_(square) if name in mean else square
            trace.tell(what, k + 1, len(losses))
        return mean


def _quantile(ratios: Mapping[str, Tensor], share: float) -> float:
    """What this share of all ratios is above."""
    every = torch.cat([r.flatten() for r in ratios.values()])
    return float(every.kthvalue(max(1, len(every) - round(share * len(every)))).values)
