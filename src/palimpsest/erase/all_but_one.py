"""All but One: only the guidance term of the target is rewritten; the unconditional score is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import Count, NonNegative
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.guidance import output_error
from palimpsest.train.asked import Asked
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep

Train = Literal["xattn", "noxattn", "selfattn", "full"]


@dataclass(frozen=True, kw_only=True)
class AllButOne(FineTune):
    """Rewrites eps(x_t, c, t) - eps(x_t, t), what classifier-free guidance adds for the target c, and nothing else.

    At x_t from a walk towards c, with eps* the untouched model and eps the one in training:

        loss = mean ([eps(x_t, c, t) - eps(x_t, t)] - g)^2 + keep_weight mean (eps(x_t, t) - eps*(x_t, t))^2
        g    = eps*(x_t, c', t) - eps*(x_t, t) with a replacement c',  else  -eta (eps*(x_t, c, t) - eps*(x_t, t))

    Args:
        eta: how strongly guidance is reversed where there is no replacement; 0 makes the target mean nothing.
        keep_weight: of the unconditional score's drift.
        train: "xattn", "noxattn", "selfattn" or "full", as in ESD.
        guidance, walk_steps: of the walks and their sampler.
        steps, lr, batch, rank: as in every fine-tuning.

    Request.toward is the alternative that the paper lets the user choose. Request.keep is not used: the unconditional
    score stands for everything else.

    Cost per step: 2 forwards of the walk (every state of it trains one step, with the predictions made there), 1 more
        with a replacement, and 2 with gradients.
    Differs from the paper: its authors publish no code; the defaults of eta, keep_weight, lr and steps are ours. All
        states of the untouched model's walk are trained on, once each, in random order. Besides the name, sentences
        of the concept's kind are drawn.
    Fails when: guidance is not used while sampling, or weakly; other concepts share the target's words: only the
        empty prompt is held.
    Source: Hong, Lee & Woo, "All but One", AAAI 2024, arXiv 2312.12807.

    Example:
        >>> request = Request(target=(Concept(name="pig"),), toward=(Concept(name="cow"),))   # doctest: +SKIP
        >>> patch = AllButOne()(host, request)    # doctest: +SKIP
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1
    rank: int = 0
    eta: NonNegative = 1.0
    keep_weight: NonNegative = 1.0
    train: Train = "xattn"
    guidance: float = 7.5
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "walk_steps": 3}

    card = Card(
        name="All but One",
        title="All but One: Surgical Concept Erasing with Model Preservation in Text-to-Image Diffusion Models",
        year=2023,
        paper="https://arxiv.org/abs/2312.12807",
        family="fine-tuning",
        needs="Denoiser",
        claim="Erases the target effectively and preserves the model's generation; an alternative may take its place.",
    )

    def prepare(
        self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace
    ) -> tuple[Asked, Cond]:
        return Asked.prepare(host, request, self.walk_steps, self.guidance), host.encode([""])

    def loss(self, step: TrainStep) -> Tensor:
        asked, null = step.context
        at = asked.points(step)
        goal = -self.eta * (at.x0_cond - at.x0_null)
        if asked.answer is not None:
            goal = asked.start(step, at) - at.x0_null
        both = Cond.cat([asked.cond[at.row], null.repeat(len(at))])
        with_c, without = step.host.denoise(at.x.repeat(2, 1, 1, 1), at.t.repeat(2), both).chunk(2)
        steered = output_error(step.host, at.t, with_c - without, goal).square().mean()
        drift = output_error(step.host, at.t, without, at.x0_null).square().mean()
        return steered + self.keep_weight * drift
