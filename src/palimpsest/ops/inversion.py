"""From a picture's latents to noise and back, by one rule for models of noise, velocity and flow.

A level of noise is `x = alpha x0 + sigma noise`. Going down from (alpha, sigma) to (alpha', sigma') is

    x' = alpha' x0 + sigma' (x - alpha x0) / sigma

with x0 the model's prediction: DDIM for models of noise and velocity, Euler's method for flows. Going up is the same
with the network's own output read at the level that x is at (`up`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.sampling import Sampling, Start
from palimpsest.ops.guidance import classifier_free

Predict = Callable[[Tensor, "Level"], Tensor]
"""(x (n, c, h, w), the level that it is at) -> x0."""


@dataclass(frozen=True, eq=False)
class Level:
    """A level of noise.

    Args:
        t: (), the model's own time; of the clean level, that of the last noisy one.
        alpha, sigma: (1, 1, 1, 1). The clean level has 1 and 0.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor


def levels(host: Denoiser, steps: int, *, depth: float = 1.0, size: int | None = None) -> list[Level]:
    """The levels that the model's own scheduler visits in so many steps, noisiest first, the clean one last.

    Args:
        depth: share of the steps that is walked, in (0, 1]: the last `int(depth * steps)` of them, at least one.
        size: side of the pictures, which some schedules depend on.
    """
    walk = host.walk([""], [0], Sampling(steps=steps, size=size), guide=lambda: lambda step: torch.zeros_like(step.x))
    times = list(dict.fromkeys(float(step.t[0]) for step in walk))  # schedulers of two halves name a time twice
    kept = times[Start(x0=walk.x, share=depth).skipped(len(times)) :]
    ts = torch.tensor(kept, device=host.device)
    noisy = [Level(t, *host.noise(t[None])) for t in (ts.long() if ts.eq(ts.round()).all() else ts)]
    one = torch.ones_like(noisy[-1].alpha)
    return [*noisy, Level(noisy[-1].t, one, torch.zeros_like(one))]


def denoised(host: Denoiser, x: Tensor, at: Level, cond: Cond) -> Tensor:
    """x0 that the model predicts of x at a level; one forward."""
    return host.denoise(x, at.t.expand(len(x)), cond)


def guided(host: Denoiser, x: Tensor, at: Level, cond: Cond, null: Cond, scale: float) -> Tensor:
    """x0 by classifier-free guidance; models that take their scale as an input have no unconditional branch."""
    if not host.guided(scale):
        return denoised(host, x, at, cond)
    of_null, of_cond = denoised(host, x.repeat(2, 1, 1, 1), at, Cond.cat([null, cond])).chunk(2)
    return classifier_free(of_null, of_cond, scale)


def down(x: Tensor, x0: Tensor, here: Level, there: Level, noise: Tensor | None = None) -> Tensor:
    """x at a level that is less noisy, given the x0 predicted at this one.

    Args:
        noise: (n, c, h, w) drawn anew and taken in place of a part of the noise that x has: the model's own reverse
            process (DDPM, `spread`). None: none is, and the way is deterministic.
    """
    left = (x - here.alpha * x0) / here.sigma
    if noise is None:
        return there.alpha * x0 + there.sigma * left
    new = spread(here, there)
    return there.alpha * x0 + (there.sigma**2 - new**2).clamp(min=0).sqrt() * left + new * noise


def spread(here: Level, there: Level) -> Tensor:
    """The standard deviation of the reverse process from one level to the next:

    sigma' / sigma sqrt(sigma^2 - (alpha / alpha')^2 sigma'^2).
    """
    kept = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2
    return there.sigma / here.sigma * kept.clamp(min=0).sqrt()


def up(host: Denoiser, x: Tensor, here: Level, there: Level, cond: Cond) -> Tensor:
    """x at the next noisier level; one forward, at the noisier level's time (DDIM inversion).

    The network's output (noise, velocity or flow) is held while the level changes, as samplers do.
    """
    x0 = denoised(host, x, there, cond)
    noise = (x - there.alpha * x0) / there.sigma
    if host.prediction == "epsilon":
        x0 = (x - here.sigma * noise) / here.alpha
    elif host.prediction == "v_prediction":
        velocity = there.alpha * noise - there.sigma * x0
        x0, noise = here.alpha * x - here.sigma * velocity, here.alpha * velocity + here.sigma * x
    else:
        flow = noise - x0
        x0, noise = x - here.sigma * flow, x + here.alpha * flow
    return there.alpha * x0 + there.sigma * noise


def inverted(host: Denoiser, x0: Tensor, cond: Cond, to: Sequence[Level]) -> list[Tensor]:
    """DDIM inversion: x at each of the levels, in their order; the last is x0 itself.

    Cost: a forward for each noisy level.
    Source: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, arXiv 2010.02502, section 4.3.
    """
    path = [x0]
    for here, there in pairwise(reversed(to)):
        path.append(up(host, path[-1], here, there, cond))
    return path[::-1]


def drawn(like: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
    """(n, c, h, w) standard normal, row i from the i-th generator alone."""
    rows = [torch.randn(like.shape[1:], generator=rng) for rng in rngs]
    return torch.stack(rows).to(like)


def noised(x0: Tensor, to: Sequence[Level], noise: Tensor) -> list[Tensor]:
    """x0 with one and the same noise at each of the levels; at the last one it is clean."""
    return [level.alpha * x0 + level.sigma * noise for level in to]


def edit_friendly(
    x0: Tensor, to: Sequence[Level], predict: Predict, rngs: Sequence[torch.Generator]
) -> tuple[list[Tensor], list[Tensor]]:
    """x at each level with noise of its own, and the noises z that lead `down` from each to the next:

        z = (x' - mu(x)) / spread,   mu the mean of the reverse process under `predict`.

    Their last one, into the clean level, has no spread and is zero.

    Cost: a call of `predict` for each noisy level but the last.
    Source: Huberman-Spiegelglas et al., "An Edit Friendly DDPM Noise Space", CVPR 2024, arXiv 2304.06140.
    """
    path = [level.alpha * x0 + level.sigma * drawn(x0, rngs) for level in to[:-1]] + [x0]
    noises = []
    for i, (here, there) in enumerate(pairwise(to)):
        width = spread(here, there)
        if float(width) == 0:
            noises.append(torch.zeros_like(x0))
            continue
        mean = down(path[i], predict(path[i], here), here, there, torch.zeros_like(x0))
        noises.append((path[i + 1] - mean) / width)
    return path, noises
