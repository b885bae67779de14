"""TRCE: a closed form at the end token, then contrastive steering of early denoising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.delta import Delta
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops import closed_form
from palimpsest.ops.anchors import without
from palimpsest.ops.guidance import output_error
from palimpsest.ops.prompts import prompts_for, swapped
from palimpsest.ops.text_states import kept_texts, states_of, text_layers
from palimpsest.ops.trajectories import Visited, visit
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.training import Training

TOGETHER = 16  # walks that go at once


@dataclass(kw_only=True)
class Poles:
    """Points of walks towards the concept with what is good there, and points that stay."""

    cond: Cond
    null: Cond
    at: Visited
    good: Tensor
    stay: Visited | None = None


@dataclass(frozen=True, kw_only=True)
class TRCE(ModelEdit, Training):
    """Maps the concept's sentences to safe ones where the text ends, then turns early denoising away from the concept.

    Stage 1, one linear solve for all cross-attention key and value layers W, over sentences p of the concept and the
    same sentences with its replacement p*, with o(p) the state where the text ends and k all states of kept texts:

        minimise  mean over p |W' o(p) - W o(p*)|^2 + keep_weight mean over k |W' k - W k|^2 + ridge |W' - W|^2

    Stage 2 trains self-attention and cross-attention queries of that model at early x_t of walks towards p, with e*
    the noise predicted by the untouched model, e by the one in training, e1 by that of stage 1:

        good = e*(p*) + eta (e*(p*) - e*());    bad = e*(p) + eta (e*(p) - e*())
        loss = 1/2 sum over c in {p, empty} of max(0, |e(c) - good|^2 - |e(c) - bad|^2 + margin)
               + preserve |e() - e1()|^2 at any x_t of unconditional walks of e1

    Args:
        keep_weight, ridge: of stage 1. The authors have no ridge but thousands of captions to keep.
        weights: of the start token, the end token, the padding and the subject's last token in stage 1.
        eta: guidance of both poles. margin, preserve: as above.
        early: share of a walk's steps, from the first, that are steered (25 of 50).
        steps, lr, batch: of stage 2; 0 steps leave stage 1 alone. guidance, walk_steps: of the walks.
        walks: how many walks towards the concept, and how many unconditional ones, are kept for all steps.

    Request.toward makes p*; without it the name is left out of the sentence. Request.keep is kept in stage 1.

    Cost: stage 1 as UCE; once walks x walk_steps x 2 forwards each way, and one of p* for each early point; then 2 + 1
        with gradients a step. The references are read on the kept walks, so no second model is held.
    Differs from the paper: sentences are the concept's own and its kind's templates, where an LLM wrote them;
        kept texts replace the COCO captions; unconditional walks are those of stage 1; noise is weighted as in ESD.
    Fails when: the concept is drawn from other states than the last (raise their weights); it is decided later than
        `early`; the margin is met at once, so that stage 2 has no gradient.
    Source: Chen et al., "TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models",
        ICCV 2025, arXiv 2503.07389.

    Example:
        >>> patch = TRCE()(host, Request(target=(Concept(name="star"),)))    # doctest: +SKIP
    """

    keep_weight: NonNegative = 0.02
    ridge: float = 1e-3
    weights: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 0.0)
    eta: float = 15.0
    margin: NonNegative = 0.01
    preserve: NonNegative = 100.0
    early: float = 0.5
    steps: Size = 900
    lr: float = 1e-6
    batch: int = 1
    guidance: float = 3.0
    walk_steps: int = 50
    walks: Count = 100

    quick: ClassVar = {"steps": 2, "batch": 2, "walk_steps": 3}

    card = Card(
        name="TRCE",
        title="TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models",
        year=2025,
        paper="https://arxiv.org/abs/2503.07389",
        family="closed form and fine-tuning",
        needs="Denoiser",
        claim="Erases concepts hidden in prompts and adversarial prompts, with better preservation than earlier work.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weights) != 4 or not any(self.weights) or min(self.weights) < 0:
            raise BadRequest(
                f"weights is {self.weights}; give four of at least 0, not all 0: start, end, padding, name."
            )

    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        pairs = [
            (p, swapped(p, c.name, toward.name) if toward else without(p, c.name))
            for c, toward in zip(request.target, request.replacements(), strict=True)
            for p in prompts_for(c)
        ]
        first = Patch(base=host.fingerprint(), deltas=self.closed_form(host, pairs, request))
        if not self.steps:
            return first
        poles = self._poles(host, pairs, rng)
        with first.applied(host):
            second = self.fit(host, request, data=poles, seed=rng.initial_seed(), trace=trace)
        return Patch(base="", deltas={**first.deltas, **second.deltas})

    def closed_form(self, host: Denoiser, pairs: Sequence[tuple[str, str]], request: Request) -> dict[str, Delta]:
        """Stage 1."""
        layers = text_layers(host, "TRCE")
        old, new = (self._read(host, texts) for texts in zip(*pairs, strict=True))
        scale = torch.cat([w for _, w in old]).sqrt().unsqueeze(1)  # weights enter the sum as squares of the rows
        states, into = (torch.cat([s for s, _ in side]) * scale for side in (old, new))
        kept = torch.cat(states_of(host, ["", *kept_texts(request, expand=True)], "all"))
        edit = closed_form.erase(
            states,
            into,
            keep=closed_form.gram(kept) / len(kept),
            erase_weight=1 / len(pairs),
            keep_weight=self.keep_weight,
            ridge=self.ridge,
        )
        return closed_form.edit_layers(layers, edit)

    @torch.no_grad()
    def _read(self, host: Denoiser, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """States (4, d) where each text starts, ends, is padded last and where its subject ends; weights (4,)."""
        cond = host.encode(texts)
        length = cond.states.shape[1]
        found = []
        for states, n in zip(cond.states, cond.lengths.tolist(), strict=True):
            # The padding is one state with the weight of all of it, as in the authors' code.
            weights = torch.tensor(self.weights) * torch.tensor([1.0, 1.0, max(length - n, 0), 1.0])
            found.append((states[[0, n - 1, length - 1, max(n - 2, 0)]], weights.to(states.device)))
        return found

    def trains(self, host: Denoiser) -> Sequence[str]:
        return sorted(
            f"{name}.{p}"
            for role in ("self_attention", "cross_query")
            for name, module in host.parts(role).items()
            for p, _ in module.named_parameters()
        )

    @torch.no_grad()
    def _poles(self, host: Denoiser, pairs: Sequence[tuple[str, str]], rng: torch.Generator) -> Poles:
        """On the untouched model: walks towards the concept, and the safe prediction at their early points."""
        prompts, safe = [p for p, _ in pairs], host.encode([s for _, s in pairs])
        early = max(1, round(self.early * self.walk_steps))
        at = self._walks(host, prompts, self.guidance, rng, first=early)
        parts = (at[i : i + 4 * TOGETHER] for i in range(0, len(at), 4 * TOGETHER))
        good = torch.cat([host.denoise(p.x, p.t, safe[p.row]) for p in parts])
        return Poles(cond=host.encode(prompts), null=host.encode([""]), at=at, good=good)

    def prepare(self, host: Denoiser, request: Request, *, data: Poles, seed: int, trace: Trace) -> Poles:
        data.stay = self._walks(host, [""], 1.5, generator(seed, "stay"))  # no prompt: any guidance is none
        return data

    def _walks(
        self, host: Denoiser, prompts: Sequence[str], guidance: float, draws: torch.Generator, first: int | None = None
    ) -> Visited:
        sizes = [min(TOGETHER, self.walks - i) for i in range(0, self.walks, TOGETHER)]
        parts = [visit(host, prompts, n, draws, steps=self.walk_steps, guidance=guidance, first=first) for n in sizes]
        return Visited.cat(parts)

    def loss(self, step: TrainStep) -> Tensor:
        poles, n = step.context, step.batch
        draws = step.generator()
        rows = torch.randint(len(poles.at), (n,), generator=draws)
        stays = poles.stay[torch.randint(len(poles.stay), (n,), generator=draws)]
        at, safe = poles.at[rows], poles.good[rows]
        good = safe + self.eta * (safe - at.x0_null)
        bad = at.x0_cond + self.eta * (at.x0_cond - at.x0_null)
        null = poles.null.repeat(2 * n)
        cond = Cond.cat([poles.cond[at.row], null])
        x, t = torch.cat([at.x, at.x, stays.x]), torch.cat([at.t, at.t, stays.t])
        named, empty, still = step.host.denoise(x, t, cond).split(n)

        def apart(a: Tensor, b: Tensor, times: Tensor) -> Tensor:
            return output_error(step.host, times, a, b).square().mean((1, 2, 3))

        sides = [apart(e, good, at.t) - apart(e, bad, at.t) + self.margin for e in (named, empty)]
        turned = torch.stack(sides).clamp(min=0).mean(1).sum()
        stayed = apart(still, stays.x0_null, stays.t).mean()
        step.log("turned", float(turned.detach()))
        return turned / 2 + self.preserve * stayed
