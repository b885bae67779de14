"""Domain correction: an adversary makes the target's predictions those of an anchor; surgery keeps the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Share, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.anchors import staying
from palimpsest.ops.contexts import in_context
from palimpsest.ops.drawn import Drawn, draw, noised
from palimpsest.ops.guidance import output_error
from palimpsest.ops.surgery import without_conflict
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import Gradients, TrainStep
from palimpsest.train.randomness import generator

Train = Literal["xattn", "kv", "full"]
BESIDE = "discriminator|"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The anchor's pictures and kept ones; by row, what asks for the target, for the anchor, for the kept."""

    pictures: Drawn
    target: Cond
    anchor: Cond
    kept: Drawn
    kept_cond: Cond
    discriminator: nn.Module


@dataclass(frozen=True, kw_only=True)
class DomainCorrection(FineTune):
    """Moves the clean pictures predicted for the target into the anchor's domain, as a discriminator sees it (DoCo).

    x_t is a picture of the anchor c', noised to a random time; c the same prompt with the target in its place; D a
    discriminator of patches of predicted clean latents, x0* the untouched model's and x0 the one's in training:

        D learns  BCE(D(x0*(x_t, c', t)), 0) + BCE(D(x0(x_t, c, t)), 1)
        forget =  BCE(D(x0(x_t, c, t)), 0)
        keep   =  mean (eps(x_k, k, t) - noise)^2   on pictures x_k of the anchor and of the kept concepts k

    The model takes the gradient of `forget` without its part against that of `keep`, tensor by tensor:

        g - surgery <g, h> h / |h|^2 where <g, h> < 0,   g of forget, h of keep

    Args:
        warmup: the share of the steps in which only the discriminator learns; the authors' 1000 of 2000.
        discriminator_lr: its learning rate (the authors use 1e-4 for things, 5e-4 for styles).
        surgery: how much of the conflicting part is removed ("lambda"; the authors' 1).
        train: "xattn" (the authors'), "kv" or "full".
        prompts: how many that name the target among everyday words are added to its own.
        pictures: that are drawn of each; never more than the steps use. guidance, walk_steps: of their sampler.
        steps, lr, batch, rank: as in every fine-tuning. The authors' learning rate is 6e-6 for each picture of a batch
            of 8.

    Request.toward names the anchor; without one, the rest of each prompt stands for it. Request.keep adds to what
    `keep` is measured on.

    Cost per step: 1 forward and 2 with gradients (during warm-up 2 forwards), and the discriminator; once, 2 forwards
        for each picture and step of the sampler.
    Differs from the paper: the surgery is the exact projection, where its code mixes normalised and plain gradients;
        everyday words are put around the name where a language model writes its prompts. The discriminator has fewer
        levels where latents are too small for its four.
    Fails when: the discriminator wins or loses early (watch "discriminator" in the log); the anchor is drawn like the
        target, and there is nothing to tell apart.
    Source: Wu et al., "Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept Preserving
        Gradient", AAAI 2025, arXiv 2405.15304.

    Example:
        >>> request = Request(target=(Concept(name="parachute"),), toward=(Concept(name="airplane"),))  # doctest: +SKIP
        >>> patch = DomainCorrection()(host, request)    # doctest: +SKIP
    """

    steps: int = 2000
    lr: float = 4.8e-5
    batch: int = 8
    rank: int = 0
    warmup: Share = 0.5
    discriminator_lr: NonNegative = 1e-4
    surgery: NonNegative = 1.0
    train: Train = "xattn"
    prompts: Size = 200
    pictures: Count = 1000
    guidance: float = 6.0
    walk_steps: Count = 50

    clip: ClassVar[float | None] = 1.0
    apart: ClassVar[bool] = True

    quick: ClassVar = {"steps": 2, "batch": 2, "pictures": 4, "walk_steps": 3}

    card = Card(
        name="DoCo",
        title="Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept Preserving Gradient",
        year=2024,
        paper="https://arxiv.org/abs/2405.15304",
        family="fine-tuning",
        needs="Denoiser",
        claim="Unlearns a concept also for prompts outside the training set, with little harm to related concepts.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup >= 1:
            raise BadRequest(f"warmup is {self.warmup}; it is a share of the steps, below 1.")

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        n = min(self.pictures, self.steps * self.batch)

        def drawn(what: str, prompts: list[str]) -> Drawn:
            return draw(host, prompts, n, generator(seed, what), steps=self.walk_steps, guidance=self.guidance)

        pairs = in_context(request, self.prompts, generator(seed, "contexts"), most=n)
        anchors = [anchor for _, anchor in pairs]
        keeping = staying(request)
        pictures = drawn("anchor", anchors)
        return Prepared(
            pictures=pictures,
            target=host.encode([prompt for prompt, _ in pairs]),
            anchor=host.encode(anchors),
            kept=drawn("kept", keeping),
            kept_cond=host.encode(keeping),
            discriminator=discriminator(pictures.x0.shape[1], min(pictures.x0.shape[2:])),
        )

    def free(self, context: Prepared, seed: int) -> Mapping[str, Tensor]:
        draws = generator(seed, "discriminator")
        found = {}
        for name, p in context.discriminator.named_parameters():
            bound = p[0].numel() ** -0.5 if p.ndim > 1 else 0.0
            start = torch.empty(p.shape).uniform_(-bound, bound, generator=draws)
            scale = name.endswith("weight") and p.ndim == 1  # of a normalisation
            found[BESIDE + name] = (torch.ones(p.shape) if scale else start).to(context.pictures.x0.device)
        return found

    def free_options(self) -> Mapping[str, Any]:
        return {"lr": self.discriminator_lr, "betas": (0.5, 0.999)}

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        context: Prepared = step.context
        warming = step.index < round(self.warmup * step.total)
        weights = {name.removeprefix(BESIDE): t for name, t in step.free.items()}
        frozen = {name: t.detach() for name, t in weights.items()}
        at = noised(step.host, context.pictures, step.batch, step.generator())
        with step.teacher():
            anchor = step.host.denoise(at.x, at.t, context.anchor[at.row])
        with torch.set_grad_enabled(not warming):
            target = step.host.denoise(at.x, at.t, context.target[at.row])
        both = functional_call(context.discriminator, weights, (torch.cat([anchor, target.detach()]),))
        real, fake = both.chunk(2)
        learns = towards(real, 0.0) + towards(fake, 1.0)
        step.log("discriminator", float(learns.detach()))
        yield learns
        if not warming:
            yield towards(functional_call(context.discriminator, frozen, (target,)), 0.0)
            k = noised(step.host, context.kept, step.batch, step.generator("kept"))
            x0 = step.host.denoise(k.x, k.t, context.kept_cond[k.row])
            yield output_error(step.host, k.t, x0, k.x0).square().mean()

    def gradient(self, step: TrainStep, parts: Sequence[Gradients]) -> Gradients:
        learns, *forget_keep = parts
        beside = {name: g for name, g in learns.items() if name.startswith(BESIDE)}
        return {**beside, **(without_conflict(*forget_keep, strength=self.surgery) if forget_keep else {})}


def towards(scores: Tensor, label: float) -> Tensor:
    return binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))


def discriminator(channels: int, side: int) -> nn.Module:
    """Scores of patches of latents (n, channels, side, side): up to four levels of halving; holds no tensors."""
    with torch.device("meta"):
        layers: list[nn.Module] = []
        width = 64
        for level in range(4):
            if level and side < 4:
                break
            layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            if level:
                layers.append(nn.BatchNorm2d(width, track_running_stats=False))
            layers.append(nn.LeakyReLU(0.2))
            channels, width, side = width, 2 * width, side // 2
        return nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, padding=1 if side > 1 else 2))
