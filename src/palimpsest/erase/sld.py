"""SLD: safety guidance away from a concept while sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import NonNegative, checked
from palimpsest.core.host import Denoiser, Guide, Step
from palimpsest.core.method import SamplingEdit
from palimpsest.ops.guidance import safety_scale

Strength = Literal["weak", "medium", "strong", "max"]
PUBLISHED: dict[str, tuple[float, float, float, float, float]] = {
    "weak": (20.0, 0.3, 0.0, 0.0, 0.0),
    "medium": (1000.0, 0.2, 0.01, 0.3, 0.4),
    "strong": (2000.0, 0.14, 0.025, 0.5, 0.7),
    "max": (5000.0, 0.0, 1.0, 0.5, 0.7),
}
"""Scale, warm-up, threshold, momentum scale and momentum decay; warm-up as a share of the 50 steps of the paper."""


@dataclass(frozen=True, kw_only=True)
class SLD(SamplingEdit):
    """Pushes each step away from the concept, where the picture is on its way to it.

    With noise predictions e_c (prompt), e_n (unconditional) and e_s (the concept), at each step:

        mu = min(1, scale |e_c - e_s|) where e_c - e_s < threshold, else 0
        g  = mu (e_s - e_n) + momentum_scale v;   v <- momentum_decay v + (1 - momentum_decay) g
        e  = e_n + guidance (e_c - e_n - g)       (without g during warm-up)

    Args:
        strength: one of the paper's four published settings of all that follows.
        scale, warmup, threshold, momentum_scale, momentum_decay: override single ones; None leaves the published
            value. warmup is a share of all steps (0.2 of 50 steps is the paper's delta = 10).

    The concept is the names of all targets in one text, as in the paper. Request.toward and Request.keep are not used.

    Cost: no training; each step's batch grows from 2 to 3 rows a picture. The patch holds no tensor.
    Differs from the paper: works on x0, for hosts of every prediction type; thresholds stay in units of noise, whose
        scale is the same for all models and latents. Warm-up is a share of the steps, not a number of them.
    Fails when: the weights are given away (the rule can be left out); the picture is decided during warm-up; a strong
        setting meets a prompt close to the concept and the picture falls apart.
    Source: Schramowski et al., "Safe Latent Diffusion", CVPR 2023, arXiv 2211.05105.

    Example:
        >>> patch = SLD(strength="strong")(host, Request(target=(Concept(name="star"),)))    # doctest: +SKIP
    """

    strength: Strength = "medium"
    scale: float | None = None
    warmup: float | None = None
    threshold: float | None = None
    momentum_scale: float | None = None
    momentum_decay: float | None = None

    card = Card(
        name="SLD",
        title="Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models",
        year=2023,
        paper="https://arxiv.org/abs/2211.05105",
        family="sampling",
        needs="Denoiser",
        claim="Suppresses a concept while sampling, without training and without harming quality or text alignment.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        scale, warmup, _, momentum_scale, decay = self.settings()
        for name, value in (("scale", scale), ("warmup", warmup), ("momentum_scale", momentum_scale)):
            checked(name, value, NonNegative)
        if not (0 <= decay < 1 and warmup <= 1):
            raise BadRequest(f"momentum_decay is {decay} and warmup {warmup}; both are shares of 1.")

    def settings(self) -> tuple[float, float, float, float, float]:
        """Scale, warm-up, threshold, momentum scale and momentum decay in force."""
        own = (self.scale, self.warmup, self.threshold, self.momentum_scale, self.momentum_decay)
        scale, warmup, threshold, momentum, decay = (
            o if o is not None else p for o, p in zip(own, PUBLISHED[self.strength], strict=True)
        )
        return scale, warmup, threshold, momentum, decay

    def guide(self, host: Denoiser, request: Request, learned: Mapping[str, Tensor]) -> Guide:
        scale, warmup, threshold, momentum_scale, decay = self.settings()
        with torch.no_grad():
            concept = host.encode([", ".join(c.name for c in request.target)])
        velocity: Tensor | float = 0.0

        def rule(step: Step) -> Tensor:
            nonlocal velocity
            c, n, s = step.x0(step.cond, step.null, concept.repeat(len(step.x)))
            alpha, sigma = step.host.noise(step.t)
            # e = (x - alpha x0) / sigma, so differences of noise are those of x0 times -ratio; written this way,
            # nothing is divided by alpha except the momentum, which is zero where alpha is.
            ratio = alpha / sigma
            mu = safety_scale(-ratio * c, -ratio * s, scale=scale, threshold=threshold)
            push = mu * (n - s) * ratio + momentum_scale * velocity
            velocity = decay * velocity + (1 - decay) * push
            guided = n + step.guidance * (c - n)
            if step.index < round(warmup * step.total):
                return guided
            return guided + step.guidance * push * (sigma / alpha.clamp(min=1e-6))

        return rule
