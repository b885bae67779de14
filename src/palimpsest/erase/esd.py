"""ESD: fine-tunes the denoiser so that the concept's prediction becomes its own negative guidance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import Count
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.guidance import output_error
from palimpsest.ops.trajectories import Visited, visit
from palimpsest.train.asked import Asked
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep

Train = Literal["xattn", "noxattn", "selfattn", "full"]
Walks = Literal["kept", "fresh", "student"]


@dataclass(frozen=True, kw_only=True)
class ESD(FineTune):
    """Teaches the denoiser to predict, when asked for the concept, what negative guidance would give.

    At x_t from a walk towards the concept c, with eps* the untouched model and eps the one in training:

        loss = mean (eps(x_t, c, t) - [eps*(x_t, t) - eta (eps*(x_t, c, t) - eps*(x_t, t))])^2

    Args:
        eta: strength of the negative guidance (the paper's default).
        train: "xattn" trains cross-attention (ESD-x: for what a prompt names, as styles), "noxattn" all else but time
            embedding and output layers (ESD-u: for what appears unnamed), "selfattn" self-attention, "full" all.
        walks: "student": each step walks the model in training to a random time, as the paper has it. "fresh": the
            untouched model, as the authors' later code. "kept": one walk of the untouched model serves as many steps
            as it has; all its states are used once, in random order, with the predictions made on the way.
        guidance: of the walks. walk_steps: of their sampler.
        steps, lr, batch, rank: as in every fine-tuning; defaults from the paper's code.

    Request.toward replaces the unconditional prediction by the replacement's, outside the brackets of eta.
    Request.keep is not used.

    Cost per step: "kept" 2 forwards, "fresh" about `walk_steps` on average, "student" 2 more; and 1 with gradients.
    Differs from the paper: the default "kept" (fewer forwards; states of one walk are close in content); besides the
        name, sentences of the concept's kind and its own prompts are drawn at random, since a small model takes the
        name alone for a prompt of its own; times are the sampler's own.
    Fails when: a prompt of the concept names other things, which are erased with it; the concept is asked for in ways
        that the prompts do not cover (xattn), or is entangled with its surroundings (noxattn changes unrelated
        pictures); long training drifts on everything near the concept.
    Source: Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv 2303.07345.

    Example:
        >>> patch = ESD(steps=200)(host, Request(target=(Concept(name="Van Gogh", kind="style"),)))   # doctest: +SKIP
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1
    rank: int = 0
    eta: float = 1.0
    train: Train = "xattn"
    walks: Walks = "kept"
    guidance: float = 3.0
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "walk_steps": 3}

    card = Card(
        name="ESD",
        title="Erasing Concepts from Diffusion Models",
        year=2023,
        paper="https://arxiv.org/abs/2303.07345",
        family="fine-tuning",
        needs="Denoiser",
        claim="Removes a concept from the weights for good, on par with Safe Latent Diffusion, given only its name.",
    )

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Asked:
        return Asked.prepare(host, request, self.walk_steps, self.guidance)

    def loss(self, step: TrainStep) -> Tensor:
        asked, at = step.context, self._points(step)
        goal = asked.start(step, at) - self.eta * (at.x0_cond - at.x0_null)
        x0 = step.host.denoise(at.x, at.t, asked.cond[at.row])
        return output_error(step.host, at.t, x0, goal).square().mean()

    def _points(self, step: TrainStep) -> Visited:
        asked, n = step.context, step.batch
        if self.walks == "kept":
            return asked.points(step)
        walk = partial(visit, step.host, asked.walk.prompts, n, steps=self.walk_steps, guidance=self.guidance)
        draws = step.generator()
        stops = torch.randint(self.walk_steps, (n,), generator=draws)
        if self.walks == "fresh":
            with step.teacher():
                return walk(draws, stops=stops)
        points = walk(draws, stops=stops)
        with step.teacher():
            both = Cond.cat([asked.cond[points.row], step.host.encode([""]).repeat(n)])
            x0 = step.host.denoise(points.x.repeat(2, 1, 1, 1), points.t.repeat(2), both)
        return replace(points, x0_cond=x0[:n], x0_null=x0[n:])
