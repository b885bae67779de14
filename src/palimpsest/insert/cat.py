"""CAT: an adapter that answers the class as the untouched model does, on the references themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import NonNegative
from palimpsest.ops.drawn import Noised
from palimpsest.ops.guidance import output_error
from palimpsest.train.loop import TrainStep
from palimpsest.train.subject import SubjectTune


@dataclass(frozen=True, kw_only=True)
class CAT(SubjectTune):
    """Learns a newcomer, and stays the untouched model wherever the newcomer's word is not said.

    At x_t of a reference with caption c, with c' its class twin and eps* the untouched model:

        loss = mean |eps(x_t, c, t) - noise|^2 + keep mean |eps(x_t, c', t) - eps*(x_t, c', t)|^2

    Args:
        keep: weight of the second mean.
        epochs, steps, lr, batch, rank, train, prior, class_pictures, class_steps, class_guidance, masked: as in every
            learning of a newcomer (`train.subject.SubjectTune`); no class pictures are drawn by default.

    Cost: per step 2 forwards with gradients and 1 without, a reference; no picture is drawn.
    Differs from the paper: what is said without the word is the same caption with the class in its place.
    Fails when: what the newcomer disturbs lies far from its references' captions and noises, where nothing is held.
    Source: Park et al., "CAT: Contrastive Adapter Training for Personalized Image Generation", 2024, arXiv 2404.07554.

    Example:
        >>> patch = CAT()(host, request, data={"references": pictures})    # doctest: +SKIP
    """

    prior: NonNegative = 0.0
    keep: NonNegative = 1.0

    needs_class: ClassVar[bool] = True

    card = Card(
        name="CAT",
        title="CAT: Contrastive Adapter Training for Personalized Image Generation",
        year=2024,
        paper="https://arxiv.org/abs/2404.07554",
        family="fine-tuning",
        needs="Denoiser",
        reads=("references",),
        claim="Preserves the base model's knowledge and the diversity of the class better than plain adapter training.",
    )

    @property
    def rows(self) -> int:
        return 3 + bool(self.prior)

    def terms(self, step: TrainStep, at: Noised) -> Iterator[Tensor]:
        said = step.context.class_cond(at.row)
        with step.teacher():
            was = step.host.denoise(at.x, at.t, said)
        yield self.keep * output_error(step.host, at.t, step.host.denoise(at.x, at.t, said), was).square().mean()
