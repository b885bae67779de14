"""SPM: one-rank membranes that let every prompt pass except those near the concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, TypedDict

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.declared import Within
from palimpsest.core.fields import Count
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Hook, Patch, compose
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.gated import gated
from palimpsest.ops.guidance import away_from, output_error
from palimpsest.ops.parts import transformers
from palimpsest.ops.prompts import kept
from palimpsest.train.asked import Asked
from palimpsest.train.each import each_target
from palimpsest.train.loop import TrainStep
from palimpsest.train.training import Training


class Params(TypedDict):
    """Of the hook."""

    names: Annotated[list[str], Within(least=1)]


@dataclass(frozen=True, kw_only=True)
class SPM(ModelEdit, Training):
    """One membrane a concept: rank-1 changes of every matrix of the denoiser's transformers, gated by the prompt.

    Training, with eps* the untouched model, n the neutral prompt and a the anchors, at x_t of a walk towards c:

        loss = |eps(x_t, c) - [eps*(x_t, n) - eta (eps*(x_t, c) - eps*(x_t, n))]|^2
               + anchoring * mean over a |eps(x_t, a) - eps*(x_t, a)|^2

    Sampling (facilitated transport): a membrane's change of a layer, for a row with prompt p, is multiplied by

        gate(p) = max(cos(states of p, states of the concept's name), share of the name's words that are in p)

    Args:
        eta: strength of the negative guidance. anchoring: weight of the anchors, `anchors` of them a step.
        transport: True gives a patch that acts while the model runs: membranes, each with its gate, for each row of a
            batch its own. False gives the same membranes as plain low-rank deltas, gates open: a LoRA to export.
        guidance, walk_steps: of the walks. steps, lr, batch, rank: as in every fine-tuning, for each concept.

    Request.keep gives the anchors, drawn with a probability that grows with their distance from the concept; without
    it, anchors are random directions as published. Request.toward replaces the neutral prompt.

    A patch with transport goes onto other models with the same text encoder and layers: `applied(other, force=True)`.

    Cost per step: 2 forwards of the walk, `anchors` of the untouched model, 1 + `anchors` with gradients; sampling
        adds two thin products a layer.
    Differs from the paper: states come from walks of the untouched model, each used once; the public code pairs half
        of its anchors with the empty prompt by mistake, here all are anchors; the unconditional rows of guidance are
        gated by their own prompt; words, not tokens, are matched; no learning-rate restarts.
    Fails when: a prompt names the concept in other words and its states lie far from the name's (the gate stays
        half closed); neighbours share the name's words.
    Source: Lyu et al., "One-dimensional Adapter to Rule Them All", CVPR 2024, arXiv 2312.16145.

    Example:
        >>> patch = SPM(steps=300)(host, Request(target=(Concept(name="Snoopy"),)))    # doctest: +SKIP
        >>> lora = SPM(steps=300, transport=False)(host, request)                      # doctest: +SKIP
    """

    steps: int = 3000
    lr: float = 1e-4
    batch: int = 1
    rank: Count = 1
    eta: float = 1.0
    anchoring: float = 1000.0
    anchors: Count = 4
    transport: bool = True
    guidance: float = 3.0
    walk_steps: Count = 30

    clip = 1.0

    quick: ClassVar = {"steps": 2, "batch": 2, "walk_steps": 3}

    card = Card(
        name="SPM",
        title="One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications",
        year=2024,
        paper="https://arxiv.org/abs/2312.16145",
        family="fine-tuning",
        needs="Denoiser",
        claim="Erases with less harm to other concepts than full fine-tuning, and transfers to other models untuned.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Training.__post_init__(self)

    def trains(self, host: Denoiser) -> Sequence[str]:
        return transformers(host, "SPM")

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Any:
        others = kept(request)
        asked = Asked.prepare(host, request, self.walk_steps, self.guidance)
        return asked, host.encode(others) if others else None

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        (asked, stays), host = step.context, step.host
        at = asked.points(step)
        n, m = len(at), self.anchors
        some = torch.arange(m) % n
        target, anchors = asked.cond[at.row], self._anchors(asked.cond, stays, step.generator("anchors"))
        x, t = torch.cat([at.x, at.x[some]]), torch.cat([at.t, at.t[some]])
        with step.teacher():
            if asked.answer is None:
                null, was = at.x0_null, host.denoise(x[n:], t[n:], anchors)
            else:
                null, was = host.denoise(x, t, Cond.cat([asked.answer[at.row], anchors])).split([n, m])
        goal = away_from(null, at.x0_cond, self.eta)
        yield output_error(host, at.t, host.denoise(at.x, at.t, target), goal).square().mean()
        for i in range(0, m, n):  # no graph holds more than a batch
            part = slice(i, min(i + n, m))
            x0 = host.denoise(x[n:][part], t[n:][part], anchors[part])
            off = output_error(host, t[n:][part], x0, was[part])
            yield self.anchoring * off.square().flatten(1).mean(1).sum() / m

    def _anchors(self, cond: Cond, stays: Cond | None, draws: torch.Generator) -> Cond:
        """`anchors` rows: kept prompts, the farther from the concept the likelier; without any, directions at random.

        As published, a random direction has the norm of the concept's states times 0.8 to 1.2, and is taken with
        probability 1 - cosine.
        """
        m, one = self.anchors, cond[torch.randint(len(cond), (1,), generator=draws)]
        flat = one.states.flatten()
        if stays is not None:
            away = 1 - torch.cosine_similarity(stays.states.flatten(1), flat[None])
            return stays[away.clamp(min=1e-6).cpu().multinomial(m, replacement=True, generator=draws)]
        rows: list[Tensor] = []
        while len(rows) < m:
            noise = torch.randn(flat.shape, generator=draws).to(flat)
            cosine = torch.cosine_similarity(noise, flat, 0)
            if float(torch.rand((), generator=draws)) < 1 - float(cosine):
                size = 0.8 + 0.4 * float(torch.rand((), generator=draws))
                rows.append(noise * (size * flat.norm() / noise.norm()))
        return replace(one.repeat(m), states=torch.stack(rows).view(m, *one.states.shape[1:]))

    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        """One membrane for each target, trained alone."""
        membranes = [
            self.fit(host, alone, data=data, seed=draws.initial_seed(), trace=own).deltas
            for _, alone, draws, own in each_target(request, trace, rng.initial_seed(), "membrane", steps=self.steps)
        ]
        if not self.transport:
            return Patch(base="", deltas=compose(*(Patch(base="", deltas=m) for m in membranes), overlap="sum").deltas)
        tensors = {
            f"{k}|{name}|{part}": t
            for k, membrane in enumerate(membranes)
            for name, d in membrane.items()
            for part, t in d.tensors().items()
        }
        names = [c.name for c in request.target]
        return Patch(base="", hooks=(Hook(id=self.id, params=Params(names=names), tensors=tensors),))

    @classmethod
    @contextmanager
    def attach(cls, host: Any, hook: Hook) -> Iterator[None]:
        """Lets the membranes act, each row through its own gates, until the context ends."""
        with gated(host, hook.read(Params)["names"], hook.tensors):
            yield
