"""ACE: erasure guidance in the unconditional prediction, too, so that editing cannot bring the concept back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import Count, Share
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.guidance import away_from, output_error
from palimpsest.ops.listed import everyday
from palimpsest.ops.parts import transformers
from palimpsest.ops.prompts import answered
from palimpsest.ops.text_states import last, texts
from palimpsest.train.asked import Asked
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What asks for the target, the prior concepts, and how close each prompt (row) is to each of them."""

    asked: Asked
    prior: Cond
    close: Tensor
    null: Cond


@dataclass(frozen=True, kw_only=True)
class ACE(FineTune):
    """Trains a LoRA so that classifier-free guidance moves away from the concept whatever prompt is being edited.

    At x_t of a walk towards the concept c, with eps* the untouched model, 0 the empty prompt, p prior concepts drawn
    at random for each step, and w their closeness to c:

        null = eps*(0) + eta (eps*(c) - eps*(0)) - correction sum_p w_p (eps*(p) - eps*(0))
        cond = eps*(0) - eta (eps*(c) - eps*(0))
        loss = (1 - prior_weight) [null_weight |eps(0) - null|^2 + (1 - null_weight) |eps(c) - cond|^2]
               + prior_weight mean over p |eps(p) - eps*(p)|^2

    The empty prompt now predicts the concept, and guidance subtracts it; the correction keeps it from predicting (and
    guidance from subtracting) what is close to the concept.

    Args:
        eta: strength of the erasure guidance. correction: of the stochastic correction guidance.
        null_weight: share of the unconditional loss. prior_weight: share of the prior loss.
        priors: prior concepts in each step.
        guidance, walk_steps: of the walks. steps, lr, batch, rank: as in every fine-tuning; the paper's code.

    Request.keep gives the prior concepts; without it, everyday words of the target's kind. Request.toward is not used.

    Cost per step: 2 forwards of the walk, `priors` of the untouched model, 2 + `priors` with gradients.
    Differs from the paper: closeness is the cosine of text states in place of CLIP's scores of drawn pictures; states
        come from walks of the untouched model, each used once; prompts are the concept's own and its kind's templates.
    Fails when: pictures are sampled without guidance or with a negative prompt, which the unconditional part does not
        reach; guidance is far from what eta was chosen for: the push grows with it.
    Source: Wang et al., "ACE: Anti-Editing Concept Erasure in Text-to-Image Models", CVPR 2025, arXiv 2501.01633.

    Example:
        >>> patch = ACE(steps=300)(host, Request(target=(Concept(name="Elsa"),)))    # doctest: +SKIP
    """

    steps: int = 1500
    lr: float = 1e-3
    batch: int = 1
    rank: int = 4
    eta: float = 3.0
    correction: float = 3.0
    null_weight: Share = 0.99
    prior_weight: Share = 0.8
    priors: Count = 2
    guidance: float = 3.0
    walk_steps: Count = 30

    quick: ClassVar = {"steps": 2, "batch": 2, "walk_steps": 3}

    card = Card(
        name="ACE",
        title="ACE: Anti-Editing Concept Erasure in Text-to-Image Models",
        year=2025,
        paper="https://arxiv.org/abs/2501.01633",
        family="fine-tuning",
        needs="Denoiser",
        claim="Filters a concept out of generation and of editing, with little erosion of unrelated concepts.",
    )

    def trains(self, host: Denoiser) -> Sequence[str]:
        return transformers(host, "ACE")

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        prompts = [p for p, _ in answered(request)]
        others = request.keep or tuple(w for c in request.target for w in everyday(c))
        names = {c.name.casefold() for c in request.target}
        prior = [texts(c, expand=False)[0] for c in others if c.name.casefold() not in names]
        asked, other = Asked.of(host, prompts, steps=self.walk_steps, guidance=self.guidance), host.encode(prior)
        close = torch.nn.functional.cosine_similarity(last(asked.cond)[:, None], last(other)[None], dim=-1)
        null = host.null(1)  # as sampling has it: some models take zeros, not a prompt
        return Prepared(asked=asked, prior=other, close=close.clamp(min=0), null=null)

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        prepared, host, k = step.context, step.host, self.priors
        at = prepared.asked.points(step)
        n = len(at)
        chosen = torch.randint(len(prepared.prior), (n, k), generator=step.generator("priors"))
        prior = prepared.prior[chosen.flatten()]
        x, t = at.x.repeat_interleave(k, 0), at.t.repeat_interleave(k)
        with step.teacher():
            was = host.denoise(x, t, prior)
        close = prepared.close[at.row.to(chosen.device)[:, None], chosen].to(x.device)  # (n, k)
        apart = was.unflatten(0, (n, k)) - at.x0_null[:, None]
        toward_prior = (close[..., None, None, None] * apart).sum(1)
        null = away_from(at.x0_null, at.x0_cond, -self.eta) - self.correction * toward_prior
        cond = away_from(at.x0_null, at.x0_cond, self.eta)
        erasing = 1 - self.prior_weight

        def off(x: Tensor, t: Tensor, cond: Cond, goal: Tensor) -> Tensor:
            return output_error(host, t, host.denoise(x, t, cond), goal).square().mean()

        yield erasing * self.null_weight * off(at.x, at.t, prepared.null.repeat(n), null)
        yield erasing * (1 - self.null_weight) * off(at.x, at.t, prepared.asked.cond[at.row], cond)
        for i in range(0, n * k, n):  # no graph holds more than a batch
            part = slice(i, i + n)
            yield self.prior_weight / k * off(x[part], t[part], prior[part], was[part])
