"""SuDe: a newcomer whose pictures the untouched model still takes for pictures of its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import NonNegative
from palimpsest.core.host import Cond
from palimpsest.ops.drawn import Noised
from palimpsest.ops.guidance import output_error
from palimpsest.train.loop import TrainStep
from palimpsest.train.subject import SubjectTune


@dataclass(frozen=True, kw_only=True)
class SuDe(SubjectTune):
    """Learns a newcomer as a derived class, which inherits what the model knows of its base class.

    The untouched model eps* says how much a predicted step belongs to the class c' of the caption c, by
    -log p(x | c') + log p(x), which is a difference of squared distances:

        sude(e) = mean |e - eps*(x_t, c', t)|^2 - mean |e - eps*(x_t, t)|^2
        loss = mean |eps(x_t, c, t) - noise|^2 + weight max(0, sude(eps(x_t, c, t)) - sude(eps*(x_t, c', t)))

    so that a picture is pulled towards its class only as far as the class's own prediction lies in it.

    Args:
        weight: of the second term (the paper's; its code's text says .8).
        epochs, steps, lr, batch, rank, train, prior, class_pictures, class_steps, class_guidance, masked: as in every
            learning of a newcomer (`train.subject.SubjectTune`); it is a term to be added to any of them.

    Cost: per step 1 forward with gradients and 2 without, a reference; and those of the class pictures.
    Differs from the paper: distances are of the network's outputs, like the loss that they are added to, where the
        paper has means of the next step, which weigh times otherwise; they are those of each picture by itself, where
        its code takes the mean over a batch before it compares.
    Fails when: the untouched model draws the class badly from the references' captions; the newcomer is no member of
        the class that is named.
    Source: Qiao et al., "FaceChain-SuDe: Building Derived Class to Inherit Category Attributes for One-shot
        Subject-Driven Generation", CVPR 2024, arXiv 2403.06775.

    Example:
        >>> patch = SuDe(prior=0)(host, request, data={"references": pictures})    # doctest: +SKIP
    """

    weight: NonNegative = 0.4

    needs_class: ClassVar[bool] = True

    card = Card(
        name="SuDe",
        title="FaceChain-SuDe: Building Derived Class to Inherit Category Attributes for One-shot Subject-Driven "
        "Generation",
        year=2024,
        paper="https://arxiv.org/abs/2403.06775",
        family="fine-tuning",
        needs="Denoiser",
        reads=("references",),
        claim="A subject of one picture takes on attributes of its class as asked, and stays itself.",
    )

    @property
    def rows(self) -> int:
        return 3 + bool(self.prior)

    def beside(self, step: TrainStep, at: Noised, x0: Tensor) -> Tensor:
        n, host = len(at), step.host
        with step.teacher():
            both = Cond.cat([step.context.class_cond(at.row), host.null(n)])
            of_class, of_any = host.denoise(at.x.repeat(2, 1, 1, 1), at.t.repeat(2), both).split(n)

        def apart(a: Tensor, b: Tensor) -> Tensor:
            return output_error(host, at.t, a, b).square().flatten(1).mean(1)

        belongs = apart(x0, of_class) - apart(x0, of_any)
        return self.weight * torch.relu(belongs + apart(of_class, of_any)).mean()
