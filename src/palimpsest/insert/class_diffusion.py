"""ClassDiffusion: a new word that stays near its class in the text encoder's own space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from palimpsest.core.card import Card
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Cond
from palimpsest.ops.drawn import Noised
from palimpsest.ops.parts import Which
from palimpsest.train.loop import TrainStep
from palimpsest.train.subject import SubjectTune


@dataclass(frozen=True, kw_only=True)
class ClassDiffusion(SubjectTune):
    """Custom Diffusion, and a semantic loss that keeps "<v> dog" where "dog" is for the text encoder.

        loss = that of Custom Diffusion + weight (1 - cos(pooled("<v> dog"), pooled("dog")))

    Args:
        weight: of the semantic loss.
        vectors, word_lr, start, lr, rank, epochs, steps, batch, train, prior, class_pictures, class_steps,
            class_guidance, masked: as in `insert.custom_diffusion` and every learning of a newcomer.

    Cost: that of Custom Diffusion; per step a text forward of the phrase more.
    Differs from the paper: where a family has no pooled state (Stable Diffusion 1 and 2), it is the state of the end
        token, which is what its pooled state is made of.
    Fails when: the class is far from what the newcomer looks like, so that staying near it and learning exclude each
        other.
    Source: Huang et al., "ClassDiffusion: More Aligned Personalization Tuning with Explicit Class Guidance", 2024,
        arXiv 2405.17532.

    Example:
        >>> patch = ClassDiffusion()(host, request, data={"references": pictures})    # doctest: +SKIP
    """

    epochs: Positive = 250.0
    lr: NonNegative = 1e-5
    batch: Count = 2
    rank: Size = 0
    train: Which = "kv"
    class_pictures: Count = 200
    vectors: Size = 1
    word_lr: NonNegative = 1e-3
    weight: NonNegative = 1.0

    needs_class: ClassVar[bool] = True

    card = Card(
        name="ClassDiffusion",
        title="ClassDiffusion: More Aligned Personalization Tuning with Explicit Class Guidance",
        year=2024,
        paper="https://arxiv.org/abs/2405.17532",
        family="fine-tuning",
        needs="Denoiser",
        reads=("references",),
        claim="Keeping a concept near its class in text space restores what the class could be combined with.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.vectors:
            raise BadRequest("ClassDiffusion moves a word of its own; vectors must be at least 1.")

    def terms(self, step: TrainStep, at: Noised) -> Iterator[Tensor]:
        new = step.host.tokens([target.name for target in step.request.target])
        with torch.no_grad():
            known = step.host.tokens([like.name for like in step.request.replacements() if like is not None])
        yield self.weight * (1 - cosine_similarity(_pooled(new), _pooled(known))).mean()


def _pooled(cond: Cond) -> Tensor:
    """(n, d) one state for each text."""
    if cond.pooled is not None:
        return cond.pooled.float()
    return cond.states[torch.arange(len(cond)), cond.lengths - 1].float()
