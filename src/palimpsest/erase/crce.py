"""CRCE: what else means the concept is erased with it, what only looks like it is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.fields import Count, NonNegative
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.guidance import away_from, output_error
from palimpsest.ops.listed import everyday
from palimpsest.ops.neighbours import nearest
from palimpsest.ops.prompts import answered, holds, prompts_for
from palimpsest.train.asked import Asked
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep

Texts = list[tuple[str, float]]
"""Prompts, each with its weight."""
MINED = 8
"""Nearest everyday words that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What asks for the target by name; coreferences and retained concepts, encoded, with the weight of each."""

    asked: Asked
    coref: tuple[Cond, Tensor] | None
    retain: tuple[Cond, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class CRCE(FineTune):
    """Fine-tunes keys, queries, values and outputs of cross-attention on the target, its coreferences and retains.

    At x_t of a walk towards the target c, with the goal g = eps*(0) - eta (eps*(c) - eps*(0)) of negative guidance,
    corefs a and retains r of closeness w to the target:

        loss = |eps(c) - g|^2 + coref_weight mean over a  w_a |eps(a) - g|^2
               + retain_weight mean over r  w_r |eps(r) - eps*(r)|^2

    Coreferences are the prompts of the target that do not hold its name, the words in `corefs`, and everyday words of
    its kind whose text states have a cosine of at least `mined` with the target's. Retains are Request.keep; without
    it, the nearest everyday words that are no coreference.

    Args:
        corefs: words that mean the target, with commas between; for requests with one target.
        mined: smallest cosine of a mined coreference; 1 mines none.
        draws: coreferences, and as many retains, for each row of a step.
        eta, guidance, walk_steps: as in ESD. steps, lr, batch, rank: as in every fine-tuning.

    Request.toward replaces nothing: the goal is negative guidance.

    Cost per step: 2 forwards of the walk and `draws` of the untouched model; 1 + 2 `draws` with gradients.
    Differs from the paper: no language model; coreferences are the user's or the model's own neighbours, and their
        weight is the cosine of text states in place of a rating; states come from walks of the untouched model.
    Fails when: a coreference is neither given nor near in text (a nickname, a role); a retained concept is nearer to
        the target than a coreference is.
    Source: Xue et al., "CRCE: Coreference-Retention Concept Erasure in Text-to-Image Diffusion Models", 2025,
        arXiv 2503.14232.

    Example:
        >>> patch = CRCE(corefs="feline, kitten")(host, Request(target=(Concept(name="cat"),)))    # doctest: +SKIP
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1
    rank: int = 0
    corefs: str = ""
    mined: float = 0.9
    draws: Count = 3
    eta: float = 1.0
    coref_weight: NonNegative = 1.0
    retain_weight: NonNegative = 1.0
    guidance: float = 3.0
    walk_steps: Count = 50

    train: ClassVar = "xattn"
    quick: ClassVar = {"steps": 2, "batch": 2, "draws": 1, "walk_steps": 3}

    card = Card(
        name="CRCE",
        title="CRCE: Coreference-Retention Concept Erasure in Text-to-Image Diffusion Models",
        year=2025,
        paper="https://arxiv.org/abs/2503.14232",
        family="fine-tuning",
        needs="Denoiser",
        claim="Erases a concept with what else means it, and keeps what only looks like it.",
    )

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        corefs, retains = [], []
        for target in request.target:
            meant, alike = self._apart(host, target, request)
            corefs += meant
            retains += alike
        # What a target's prompts ask for without its name is a coreference, not the target.
        named = [p for p, _ in answered(request) if p not in dict(corefs)]
        return Prepared(
            asked=Asked.of(host, named, steps=self.walk_steps, guidance=self.guidance),
            coref=_encoded(host, corefs),
            retain=_encoded(host, retains),
        )

    def _apart(self, host: Denoiser, target: Concept, request: Request) -> tuple[Texts, Texts]:
        """Texts that mean the target and texts that must stay, each with its closeness to the target."""
        spoken = [p for p in target.prompts if not holds(p, target.name)]
        given = [Concept(name=w.strip(), kind=target.kind) for w in self.corefs.split(",") if w.strip()]
        taken = {c.name.casefold() for c in (*request.target, *request.keep, *given)}
        near = nearest(host, target, [c for c in everyday(target) if c.name.casefold() not in taken], MINED)
        meant = nearest(host, target, given, len(given)) + [(c, w) for c, w in near if w >= self.mined]
        others = [(c, w) for c, w in near if w < self.mined]
        alike = nearest(host, target, request.keep, len(request.keep)) or others
        return [(p, 1.0) for p in spoken] + _texts(meant), _texts(alike)

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        prepared, host, draws = step.context, step.host, step.generator("draws")
        at = prepared.asked.points(step)
        n = len(at)
        goal = away_from(at.x0_null, at.x0_cond, self.eta)

        def off(cond: Cond, goal: Tensor) -> Tensor:
            return output_error(host, at.t, host.denoise(at.x, at.t, cond), goal).square().flatten(1).mean(1)

        yield off(prepared.asked.cond[at.row], goal).mean()
        for part, share in ((prepared.coref, self.coref_weight), (prepared.retain, self.retain_weight)):
            if part is None:
                continue
            cond, closeness = part
            for _ in range(self.draws):  # no graph holds more than a batch
                rows = torch.randint(len(cond), (n,), generator=draws)
                to = goal
                if part is prepared.retain:
                    with step.teacher():
                        to = host.denoise(at.x, at.t, cond[rows])
                yield share / self.draws * (closeness[rows].to(to) * off(cond[rows], to)).mean()


def _texts(concepts: Sequence[tuple[Concept, float]]) -> Texts:
    return [(p, w) for c, w in concepts for p in prompts_for(c)]


def _encoded(host: Denoiser, texts: Texts) -> tuple[Cond, Tensor] | None:
    if not texts:
        return None
    return host.encode([p for p, _ in texts]), torch.tensor([w for _, w in texts]).clamp(min=0)
