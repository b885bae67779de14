"""ANT: guidance towards the concept is reversed in mid and late denoising only; the early steps are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.declared import Within
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Part
from palimpsest.core.host import Cond, Denoiser, Step
from palimpsest.core.pictures import Material
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.ops.guidance import output_error
from palimpsest.ops.prompts import answered
from palimpsest.ops.saliency import marked, masked, packed, salient, shared
from palimpsest.ops.trajectories import Visited
from palimpsest.train.finetune import FineTune
from palimpsest.train.gradients import gradients_of
from palimpsest.train.loop import Gradients, TrainStep
from palimpsest.train.randomness import generator

Train = Literal["full", "xattn", "noxattn", "selfattn"]
MIXED = 8  # walks whose states are shuffled together, so that steps in a row do not learn from one picture


@dataclass(kw_only=True)
class Prepared:
    """The encoded prompts, the empty prompt, the masks; and the walk that steps now draw from, early and late."""

    prompts: list[str]
    cond: Cond
    null: Cond
    masks: dict[str, Tensor] = field(default_factory=dict)
    walk: int = -1
    early: Visited | None = None
    late: Visited | None = None


@dataclass(frozen=True, kw_only=True)
class ANT(FineTune):
    """Leaves the start of every walk towards the concept as it is, and turns it away from the concept afterwards.

    At x_t from a walk towards the concept c, t' of its first steps and t of the others, with eps* the
    untouched model and eps the one in training:

        late  = mean (eps(x_t, c, t) - [eps*(x_t, t) - eta (eps*(x_t, c, t) - eps*(x_t, t))])^2
        early = mean (eps(x_t', c, t') - [eps*(x_t', t') + eta (eps*(x_t', c, t') - eps*(x_t', t'))])^2
        drift = mean (eps(x, t) - eps*(x, t))^2, at both
        loss  = late + keep_weight drift(t) + early_weight (early + keep_weight drift(t'))

    eps is what the network itself predicts: velocity, where it was trained on that. Only weights that matter for the
    concept however it is asked for are trained: for each prompt and each of `groups` seeds, the `share` of each tensor
    with the largest |gradient of the loss| is marked; what all of them mark changes.

    Args:
        eta: strength of guidance, reversed or not.
        early: sigma / alpha from which on a walk's steps are kept; the authors' 7 first of 50 in SD's noise.
        early_weight, keep_weight: as above ("alpha1", "alpha2"); the authors' defaults.
        share: of each tensor in a single mask; 1 trains all weights, as for several concepts in the paper.
        groups, mask_prompts: of seeds and of prompts that masks are taken over; the authors' 5 and 4.
        mask_points: whose gradients make one mask; the authors' 10.
        train: "full" (the authors'), "xattn", "noxattn" or "selfattn".
        guidance, walk_steps: of the walks and their sampler.
        steps, lr, batch: as in every fine-tuning; the authors' defaults. rank: with low rank, share must be 1.

    Request.toward and Request.keep are not used: the point of the paper is to do without.

    Cost per step: 4 with gradients (the drift's among them), and 2 forwards a row of a walk of the untouched model
        that serves its number of training steps (up to eight walks are mixed); once, for each prompt and group a walk
        and 4 with gradients a point.
    Differs from the paper: its code walks with the model in training. Here half of the walks go where the untouched
        model goes, half where the trained one is to go (turned away after the early steps), so that what the walks
        predict serves as the goal. Its code takes no gradient through the drift, marks the smaller half of the
        gradients, sums a few steps of training at a large rate for a mask, and for a single concept keeps the last
        7 steps instead of the first (its sampler counts steps from the clean end); here the drift is trained, the
        larger share is marked, masks are gradients of the untouched model, and the first steps are kept.
    Fails when: the concept is settled in the early steps (layout, shape), which are kept on purpose; masks of many
        prompts have little in common, and little is left to train.
    Source: Li et al., "Set You Straight", ACM MM 2025, arXiv 2504.12782.

    Example:
        >>> patch = ANT()(host, Request(target=(Concept(name="Van Gogh", kind="style"),)))   # doctest: +SKIP
    """

    steps: int = 250
    lr: float = 5e-4
    batch: int = 1
    rank: int = 0
    eta: float = 1.0
    early: Annotated[float, Within(least=1)] = 6.5
    early_weight: NonNegative = 1.0
    keep_weight: NonNegative = 0.5
    share: Part = 0.5
    groups: Count = 5
    mask_prompts: Count = 4
    mask_points: Count = 10
    train: Train = "full"
    guidance: float = 3.0
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "groups": 2, "mask_prompts": 1, "mask_points": 2, "walk_steps": 3}

    card = Card(
        name="ANT",
        title="Set You Straight: Auto-Steering Denoising Trajectories to Sidestep Unwanted Concepts",
        year=2025,
        paper="https://arxiv.org/abs/2504.12782",
        family="fine-tuning",
        needs="Denoiser",
        claim="State of the art in erasing single and multiple concepts without harm to the quality of pictures.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank and self.share < 1:
            raise BadRequest("ANT masks single weights, and a low-rank change moves them all: with rank, set share=1.")

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        prompts = [p for p, _ in answered(request)]
        context = Prepared(prompts=prompts, cond=host.encode(prompts), null=host.encode([""]))
        masks: list[dict[str, Tensor]] = []
        for group in range(self.groups if self.share < 1 else 0):
            for i in range(min(self.mask_prompts, len(prompts))):
                late, early = self._walk(host, context, torch.tensor([i]), generator(seed, "mask", group, i))
                m = self.mask_points
                pairs = [(late[k : k + 1], early[k % max(1, len(early)) :][:1]) for k in range(min(m, len(late)))]
                losses = [partial(self._objective, host, context, *pair) for pair in pairs]
                one = salient(gradients_of(host.root, self.trains(host), losses), self.share, among="tensor")
                masks = [shared([*masks, one])]
        if masks:
            context.masks = packed(masks[0])
            trace.log.append((0, "masked share", marked(masks[0].values())))
        return context

    def _walk(self, host: Denoiser, context: Prepared, rows: Tensor, draws: torch.Generator) -> tuple[Visited, Visited]:
        """Late and early states of one walk for each of the rows of prompts, in random order; every second walk is
        turned away from the concept after its early steps."""
        turned = torch.where(torch.arange(len(rows)) % 2 == 0, 1.0, -self.eta).view(-1, 1, 1, 1)
        found: list[Visited] = []

        def rule(step: Step) -> Tensor:
            cond, null = step.x0(step.cond, step.null)
            found.append(Visited(row=rows, x=step.x, t=step.t, x0_cond=cond, x0_null=null))
            strength = torch.where(self._early(host, step.t), 1.0, turned.to(cond.device))
            return null + step.guidance * strength * (cond - null)

        seeds = torch.randint(2**31, (len(rows),), generator=draws).tolist()
        prompts = [context.prompts[int(i)] for i in rows]
        how = Sampling(steps=self.walk_steps, guidance=self.guidance)
        for _ in host.walk(prompts, seeds, how, guide=lambda: rule):
            pass
        points = Visited.cat(found)
        points = points[torch.randperm(len(points), generator=draws)]
        early = self._early(host, points.t).flatten().cpu()
        if bool(early.all()):
            raise BadRequest(f"early is {self.early}, and no step of a walk of {self.walk_steps} has less noise.")
        return points[~early], points[early]

    def _early(self, host: Denoiser, t: Tensor) -> Tensor:
        """(n, 1, 1, 1) bool."""
        alpha, sigma = host.noise(t)
        return sigma >= self.early * alpha

    def _objective(self, host: Denoiser, context: Prepared, late: Visited, early: Visited) -> Tensor:
        at = Visited.cat([late, early])
        eta = torch.full((len(at), 1, 1, 1), self.eta, device=at.x.device)
        eta[: len(late)] *= -1
        both = Cond.cat([context.cond[at.row], context.null.repeat(len(at))])
        with_c, without = host.denoise(at.x.repeat(2, 1, 1, 1), at.t.repeat(2), both).chunk(2)
        goal = at.x0_null + eta * (at.x0_cond - at.x0_null)
        steered = output_error(host, at.t, with_c, goal).square().mean((1, 2, 3))
        drift = output_error(host, at.t, without, at.x0_null).square().mean((1, 2, 3))
        loss = steered + self.keep_weight * drift
        return loss[: len(late)].mean() + (self.early_weight * loss[len(late) :].mean() if len(early) else 0.0)

    def loss(self, step: TrainStep) -> Tensor:
        context: Prepared = step.context
        mixed = min(MIXED, ceil(step.total / self.walk_steps))
        number, turn = divmod(step.index, self.walk_steps * mixed)
        if context.walk != number:
            context.late = context.early = None  # their memory serves the next walk
            with step.teacher():
                draws = generator(step.seed, "walk", number)
                rows = torch.randint(len(context.prompts), (step.batch * mixed,), generator=draws)
                context.late, context.early = self._walk(step.host, context, rows, draws)
            context.walk = number
        assert context.late is not None
        assert context.early is not None
        at = torch.arange(turn * step.batch, (turn + 1) * step.batch)
        early = context.early[at % len(context.early)] if len(context.early) else context.early
        return self._objective(step.host, context, context.late[at % len(context.late)], early)

    def gradient(self, step: TrainStep, parts: Sequence[Gradients]) -> Gradients:
        return masked(parts[0], step.context.masks) if step.context.masks else parts[0]
