"""RealEra: erases a concept's surroundings in the text space with it, and holds what lies beyond them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core import delta
from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops import closed_form
from palimpsest.ops.guidance import output_error
from palimpsest.ops.prompts import kept
from palimpsest.ops.text_states import kept_texts, paired_states, pairs, states_of, text_layers
from palimpsest.train.asked import Asked
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.training import Training


@dataclass(frozen=True, kw_only=True)
class RealEra(ModelEdit, Training):
    """Mines neighbours of the concept by random perturbation, erases them with it, and keeps what is farther away.

    With e the concept's states, a its anchor's, eta and xi random perturbations of e with

        cos(e, e + eta) in [near, 1]  (neighbours)      cos(e, e + xi) in [0, far]  (beyond the concept)

    1. key and value layers:  W' = argmin  sum |W' (e + eta) - W a|^2 + beyond sum |W' (e + xi) - W (e + xi)|^2
                                   + keep_weight sum |W' k - W k|^2 + ridge |W' - W|^2
    2. a LoRA of W', at x_t of a walk towards the concept:
                              loss = |eps(e + eta) - eps*(a)|^2 + beyond |eps(e + xi) - eps*(e + xi)|^2

    eps is what the network itself predicts: velocity, where it was trained on that.

    Args:
        neighbours: perturbations of each state in the closed form, each kind; e itself is always erased.
        near, far: the cosines; perturbed states keep their norm. Choose `near` above the cosine of the target's states
            with those of kept concepts, or what is erased and what is kept overlap.
        beyond: weight of the beyond-concept regularisation. keep_weight, ridge: of the closed form.
        guidance, walk_steps: of the walks. steps, lr, batch, rank: of the LoRA.

    Request.toward gives the anchors (none: the empty prompt); Request.keep is kept in both stages.

    Cost: one solve; per step 2 forwards of the walk, 1 of the refined model, 2 with gradients.
    Differs from the paper: its code is not public; the ranges of the cosines and the weights are ours. The second
        stage's teacher is the refined model, which answers anchors and kept states as the untouched one does.
    Fails when: a kept concept lies nearer to the target than `near`; real neighbours do not lie in random directions,
        since a text encoder uses few of its dimensions.
    Source: Liu et al., "RealEra: Semantic-level Concept Erasure via Neighbor-Concept Mining", 2024, arXiv 2410.09140.

    Example:
        >>> patch = RealEra(steps=100)(host, Request(target=(Concept(name="airplane"),)))    # doctest: +SKIP
    """

    steps: int = 100
    lr: float = 1e-4
    batch: int = 1
    rank: Count = 1
    neighbours: Size = 10
    near: float = 0.9
    far: float = 0.5
    beyond: NonNegative = 0.1
    keep_weight: NonNegative = 1.0
    ridge: float = 0.5
    guidance: float = 3.0
    walk_steps: Count = 50

    quick: ClassVar = {"steps": 2, "batch": 2, "walk_steps": 3}

    card = Card(
        name="RealEra",
        title="RealEra: Semantic-level Concept Erasure via Neighbor-Concept Mining",
        year=2024,
        paper="https://arxiv.org/abs/2410.09140",
        family="closed form",
        needs="Denoiser",
        claim="Erases a concept also where associated words ask for it, and keeps unrelated concepts.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Training.__post_init__(self)
        if not 0 <= self.far < self.near <= 1:
            raise BadRequest(f"far is {self.far} and near {self.near}; cosines must obey 0 <= far < near <= 1.")

    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        weights, seed = text_layers(host, "RealEra"), rng.initial_seed()
        refined = closed_form.edit_layers(weights, self._refine(host, request, generator(seed, "perturbations")))
        with Patch(base="", deltas=refined).applied(host, force=True):
            lora = generator(seed, "lora").initial_seed()
            aligned = self.fit(host, request, data=data, seed=lora, trace=trace).deltas
        both = {n: delta.add(refined[n], d, weights[n].shape) for n, d in aligned.items() if n in refined}
        return Patch(base="", deltas={**aligned, **refined, **both})

    def _refine(self, host: Denoiser, request: Request, draws: torch.Generator) -> closed_form.StateEdit:
        e, a = paired_states(host, pairs(request, expand=True), "tail")
        e, a, k = e.cpu().double(), a.cpu().double(), self.neighbours
        near = perturbed(e.repeat(k, 1), self.near, 1.0, draws)
        far = perturbed(e.repeat(k, 1), 0.0, self.far, draws)
        keep = self.beyond * closed_form.gram(far) if k else torch.zeros(e.shape[1], e.shape[1], dtype=torch.float64)
        if request.keep:
            named = states_of(host, kept_texts(request, expand=True), "tail")
            keep = keep + self.keep_weight * closed_form.gram(torch.cat(named))
        states, into = torch.cat([e, near]), a.repeat(k + 1, 1)
        return closed_form.erase(states, into, keep=keep, keep_weight=1.0, ridge=self.ridge)

    def trains(self, host: Denoiser) -> Sequence[str]:
        return sorted(text_layers(host, "RealEra"))

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Any:
        others = kept(request)
        asked = Asked.prepare(host, request, self.walk_steps, self.guidance)
        return asked, host.encode(others) if others else None

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        (asked, stays), host, draws = step.context, step.host, step.generator("neighbours")
        at = asked.points(step)
        n, cond = len(at), asked.cond[at.row]
        mined = _moved(cond, self.near, 1.0, draws)
        beyond = _moved(cond, 0.0, self.far, draws)
        if stays is not None:  # half of what must stay is what the user named
            rows = torch.randint(len(stays), ((n + 1) // 2,), generator=draws)
            beyond = Cond.cat([stays[rows], beyond[len(rows) :]])
        goal = asked.start(step, at)
        with step.teacher():
            was = host.denoise(at.x, at.t, beyond)
        yield output_error(host, at.t, host.denoise(at.x, at.t, mined), goal).square().mean()
        yield self.beyond * output_error(host, at.t, host.denoise(at.x, at.t, beyond), was).square().mean()


def perturbed(states: Tensor, low: float, high: float, draws: torch.Generator) -> Tensor:
    """(n, d) states turned in a random direction until their cosine with what they were is uniform in [low, high]."""
    norm = states.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    unit = states / norm
    aside = torch.randn(states.shape, generator=draws).to(states)
    aside = aside - (aside * unit).sum(-1, keepdim=True) * unit
    aside = aside / aside.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    cosine = low + (high - low) * torch.rand(len(states), 1, generator=draws).to(states)
    return norm * (cosine * unit + (1 - cosine**2).clamp(min=0).sqrt() * aside)


def _moved(cond: Cond, low: float, high: float, draws: torch.Generator) -> Cond:
    """The same prompts, their states from the last word on perturbed."""
    length = cond.states.shape[1]
    tail = torch.arange(length)[None] >= (cond.lengths.cpu()[:, None] - 2).clamp(min=1)
    moved = perturbed(cond.states.flatten(0, 1), low, high, draws).view_as(cond.states)
    return replace(cond, states=torch.where(tail[..., None].to(moved.device), moved, cond.states))
