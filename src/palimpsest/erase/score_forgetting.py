"""Score Forgetting Distillation: a one-step generator that never learns the concept, from the model's scores alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypedDict

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.declared import Within
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import NonNegative, Share
from palimpsest.core.host import Cond, Denoiser, Guide, Step
from palimpsest.core.method import guiding
from palimpsest.core.patch import Hook
from palimpsest.core.pictures import Material
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.ops.guidance import classifier_free, output_error
from palimpsest.ops.listed import everyday
from palimpsest.ops.prompts import answered, filled, kept
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import Gradients, TrainStep
from palimpsest.train.training import Fitted

FAKE = "fake score|"


@dataclass(kw_only=True)
class Prepared:
    """What is asked for and, row by row, whose score answers: the first `forget` are targets. The latents' shape."""

    asked: Cond
    answer: Cond
    null: Cond
    forget: int
    shape: torch.Size
    fake: dict[str, Tensor]


class Params(TypedDict):
    """Of the hook."""

    start: Annotated[float, Within(0, 1)]


@dataclass(frozen=True, kw_only=True)
class ScoreForgetting(FineTune):
    """Distils the model into a generator of one step whose score for the target is the model's for something safe.

    Generator G, from noise z:  x_g = x0 that G predicts at x = sigma(start) z, time `start`.
    Fake score F, which learns what G draws, and the model's own score R, at x_t = alpha x_g + sigma noise:

        loss of F = mean (eps_F(x_t, c) - noise)^2
        loss of G = mean of (R(x_t, s) - F(x_t, c)) (F(x_t, c) - x_g) / mean |x_g - R(x_t, s)|     (all as x0)

    with s = c for what stays, and s the replacement for a target c, weighted by `forget_weight`. G starts as the model.

    The patch holds G's change of the denoiser and a hook that ends sampling after one prediction: the steps and the
    guidance that a caller asks for have no effect, but for the noise that some schedulers leave at their last time.

    Args:
        start: share of the training times at which G begins (625 of 1000 in the public code).
        guidance: of the model's own score (the code's kappa_4); F is not guided.
        forget_weight: of the targets' losses. forget_share: of each batch.
        low, high: shares of the training times between which scores are compared.
        steps, lr, batch: of G; F takes one step of the same size for each.

    Request.toward is s; without it, the empty prompt. What stays is Request.keep and everyday words.

    Cost per step: 5 forwards, all but one with gradients; memory of the denoiser nine times over (G and F, each with
        gradients and two moments, and the model).
    Differs from the paper: no weight average, F without guidance, one batch serves F and G; text states are encoded
        once. Needs no picture, as there.
    Fails when: the budget is small: a generator of one step takes thousands of steps to draw as well as the model, and
        until then what it forgot cannot be told from what it has not learnt.
    Source: Chen et al., "Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in Diffusion
        Models", ICLR 2025, arXiv 2409.11219.

    Example:
        >>> patch = ScoreForgetting(steps=2000)(host, Request(target=(Concept(name="nudity"),)))    # doctest: +SKIP
    """

    steps: int = 5000
    lr: float = 1e-6
    batch: int = 256
    start: float = 0.625
    guidance: float = 1.5
    forget_weight: NonNegative = 1.0
    forget_share: float = 0.25
    low: Share = 0.02
    high: Share = 0.98

    apart: ClassVar[bool] = True

    train: ClassVar = "full"
    quick: ClassVar = {"steps": 2, "batch": 16}

    card = Card(
        name="SFD",
        title="Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in Diffusion Models",
        year=2025,
        paper="https://arxiv.org/abs/2409.11219",
        family="distillation",
        needs="Denoiser",
        claim="Forgets concepts while distilling to one step, without data; other concepts keep their quality.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high or not 0 < self.start <= 1 or not 0 < self.forget_share < 1:
            raise BadRequest("low < high, start and forget_share are shares: between 0 and 1.")

    def hooks(self, request: Request, data: Material, fitted: Fitted) -> tuple[Hook, ...]:
        return (Hook(id=self.id, params=Params(start=self.start)),)

    @classmethod
    @contextmanager
    def attach(cls, host: Any, hook: Hook) -> Iterator[None]:
        """Makes `host.sample` end after one prediction, until the context ends."""
        start = hook.read(Params)["start"]
        with guiding(host, hook, lambda: one_step(start)):
            yield

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        pairs = answered(request)
        stays = list(dict.fromkeys((*kept(request), *(p for k in everyday(request.target[0]) for p in filled(k)[:1]))))
        known = dict(host.root.named_parameters())
        return Prepared(
            asked=host.encode([*(c for c, _ in pairs), *stays]),
            answer=host.encode([*(s for _, s in pairs), *stays]),
            null=host.encode([""]),
            forget=len(pairs),
            shape=next(iter(host.walk([""], [0], Sampling(steps=1, guidance=1.0)))).x.shape[1:],
            fake={n: known[n].detach().float() for n in self.trains(host)},
        )

    def free(self, context: Prepared, seed: int) -> Mapping[str, Tensor]:
        return {FAKE + name: t for name, t in context.fake.items()}

    def loss(self, step: TrainStep) -> Iterator[Tensor]:
        context, host, draws, n = step.context, step.host, step.generator(), step.batch
        targets = max(1, round(n * self.forget_share))
        stays = torch.randint(context.forget, len(context.asked), (n - targets,), generator=draws)
        rows = torch.cat([torch.randint(context.forget, (targets,), generator=draws), stays])
        asked, answer = context.asked[rows], context.answer[rows]
        z = torch.randn(n, *context.shape, generator=draws).to(context.asked.states.device)
        x_g = generated(host, z, asked, self.start)
        last = last_time(host)
        t = (self.low + (self.high - self.low) * torch.rand(n, generator=draws)) * last
        t = t.to(z.device)
        alpha, sigma = host.noise(t)
        noise = torch.randn(z.shape, generator=draws).to(z.device)
        fake = {name.removeprefix(FAKE): p for name, p in step.free.items()}

        with step.holding(fake):
            learnt = host.denoise(alpha * x_g.detach() + sigma * noise, t, asked)
        yield output_error(host, t, learnt, x_g.detach()).square().mean()

        x = alpha * x_g + sigma * noise
        with step.holding({name: p.detach() for name, p in fake.items()}):
            d_fake = host.denoise(x, t, asked)
        with step.holding({}):  # the model itself, through which the generator's gradients pass
            both = host.denoise(x.repeat(2, 1, 1, 1), t.repeat(2), Cond.cat([answer, context.null.repeat(n)]))
        d_real = classifier_free(both[n:], both[:n], self.guidance)
        size = (x_g - d_real).detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-5)
        weight = torch.ones(n, 1, 1, 1, device=z.device)
        weight[:targets] = self.forget_weight
        yield (weight * (d_real - d_fake) * (d_fake - x_g) / size).mean()

    def gradient(self, step: TrainStep, parts: Sequence[Gradients]) -> Gradients:
        """Each network learns from its own loss."""
        learns, generates = parts
        own = {name: g for name, g in generates.items() if not name.startswith(FAKE)}
        return {**own, **{name: g for name, g in learns.items() if name.startswith(FAKE)}}

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr, betas=(0.0, 0.999))


def last_time(host: Denoiser) -> float:
    """The largest training time of a model."""
    return float(host.times(4096, torch.Generator().manual_seed(0)).max())


def generated(host: Denoiser, z: Tensor, cond: Cond, start: float) -> Tensor:
    """What the generator draws from noise in one prediction."""
    t = torch.full((len(z),), start * last_time(host), device=z.device)
    return host.denoise(host.noise(t)[1] * z, t, cond)


def one_step(start: float) -> Guide:
    """Predicts once, from the first noise; every later step repeats it, so that any scheduler ends there."""
    found: list[Tensor] = []

    def rule(step: Step) -> Tensor:
        if not found:
            found.append(generated(step.host, step.x, step.cond, start))
        return found[0]

    return rule
