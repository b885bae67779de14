"""The negative prompt: what everyone tries first, as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.host import Denoiser, Guide, Step
from palimpsest.core.method import SamplingEdit
from palimpsest.ops.guidance import classifier_free


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(SamplingEdit):
    """Guides away from the concept's name in place of the empty prompt.

        e = e_s + guidance (e_c - e_s)

    with noise predictions e_c for the prompt and e_s for the targets' names in one text. A negative prompt that the
    caller gives is replaced. Request.toward and Request.keep are not used.

    Cost: no training, no further forward. The patch holds no tensor.
    Differs from the paper: nothing; it is common practice, with the formula of classifier-free guidance.
    Fails when: the prompt names the concept, since then the two predictions nearly agree and little guidance is left;
        the caller samples without it.
    Source: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598.

    Example:
        >>> patch = NegativePrompt()(host, Request(target=(Concept(name="star"),)))    # doctest: +SKIP
    """

    card = Card(
        name="Negative prompt",
        title="Classifier-Free Diffusion Guidance",
        year=2022,
        paper="https://arxiv.org/abs/2207.12598",
        family="baseline",
        needs="Denoiser",
        claim="None for erasing: the baseline that sampling-time systems have to beat.",
    )

    def guide(self, host: Denoiser, request: Request, learned: Mapping[str, Tensor]) -> Guide:
        with torch.no_grad():
            concept = host.encode([", ".join(c.name for c in request.target)])

        def rule(step: Step) -> Tensor:
            cond, null = step.x0(step.cond, concept.repeat(len(step.x)))
            return classifier_free(null, cond, step.guidance)

        return rule
