"""k-sparse autoencoders: states as sums of few directions out of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest
from palimpsest.core.trace import Trace
from palimpsest.train.loop import Gradients, minimise


@dataclass(frozen=True, kw_only=True)
class SparseAutoencoder:
    """x is about `bias + decoder z` with z = the k largest of relu(encoder (x - bias) + shift), the others 0.

    Args:
        encoder: (m, d). decoder: (d, m), columns of norm 1. bias: (d,). shift: (m,).
        k: how many latents are active at once.
    """

    encoder: Tensor
    decoder: Tensor
    bias: Tensor
    shift: Tensor
    k: int

    def scores(self, states: Tensor) -> Tensor:
        """(n, m) of states (n, d), before any latent is chosen."""
        return (states - self.bias) @ self.encoder.T + self.shift

    def encode(self, states: Tensor, k: int | None = None) -> Tensor:
        """(n, m) latents, at most k of them above 0 in a row; None takes the autoencoder's own k."""
        return largest(self.scores(states), self.k if k is None else k)

    def directions(self, latents: Tensor) -> Tensor:
        """(n, d): what latents (n, m) add to the bias."""
        return latents @ self.decoder.T

    def decode(self, latents: Tensor) -> Tensor:
        """(n, d) states of latents (n, m)."""
        return self.directions(latents) + self.bias

    def explained(self, states: Tensor) -> float:
        """The share of the states' variance that the reconstruction keeps; at most 1."""
        left = (self.decode(self.encode(states)) - states).square().sum()
        return 1 - float(left / (states - states.mean(0)).square().sum())


def largest(scores: Tensor, k: int) -> Tensor:
    """The k largest of each row, cut at 0; all others are 0."""
    values, index = scores.topk(min(k, scores.shape[1]), dim=1)
    return torch.zeros_like(scores).scatter(1, index, values.clamp(min=0))


def fit(
    states: Tensor,
    *,
    width: int,
    k: int,
    steps: int,
    lr: float,
    batch: int,
    generator: torch.Generator,
    revive: float = 1 / 32,
    dead: int = 10_000_000,
    trace: Trace | None = None,
    called: str = "loss",
) -> SparseAutoencoder:
    """Trains a k-sparse autoencoder with Adam on

        |x - decode(encode(x))|^2 / variance + revive |rest - decoder z_dead|^2 / variance of the rest

    with z_dead the k best of those latents that were inactive for `dead` states, and rest = x - decode(encode(x)).

    Args:
        states: (n, d). width: m. batch: states a step, drawn with replacement.
        revive: weight of the second term. dead: after how many states a latent counts as dead.
        trace: takes the log, in which the loss is `called` so.

    Cost: 6 batch d m a step.
    Source: Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093.

    Raises:
        BadRequest: no states, or k larger than the width. Diverged: the loss is no longer finite.
    """
    if len(states) < 2 or not 1 <= k <= width:
        raise BadRequest(f"{len(states)} states, width {width} and k {k}: give at least 2 states and k in 1..width.")
    x = states.detach().float().cpu()
    encoder = torch.randn(width, x.shape[1], generator=generator) / x.shape[1] ** 0.5
    sae = SparseAutoencoder(
        encoder=encoder.requires_grad_(True),
        decoder=_unit(encoder.detach().T.clone()).requires_grad_(True),
        bias=median(x).requires_grad_(True),
        shift=torch.zeros(width, requires_grad=True),
        k=k,
    )
    leaves = {"encoder": sae.encoder, "decoder": sae.decoder, "bias": sae.bias, "shift": sae.shift}
    variance = (x - x.mean(0)).square().mean().clamp(min=1e-12)
    idle = torch.zeros(width, dtype=torch.long)

    def loss(step: int) -> Tensor:
        part = x[torch.randint(len(x), (batch,), generator=generator)]
        scores = sae.scores(part)
        latents = largest(scores, k)
        rest = part - sae.decode(latents)
        error = rest.square().mean() / variance
        idle.copy_(torch.where((latents > 1e-3).any(0), 0, idle + batch))
        if not bool((idle > dead).any()):
            return error
        asleep = largest(scores.masked_fill(idle <= dead, -1.0), k)
        again = rest.detach() - sae.directions(asleep)
        spread = (rest.detach() - rest.detach().mean(0)).square().mean().clamp(min=1e-12)
        return error + revive * again.square().mean() / spread

    def along(step: int, parts: Sequence[Gradients]) -> Gradients:
        """A step along a unit column, not of its length."""
        (found,) = parts
        found["decoder"].sub_((found["decoder"] * sae.decoder.detach()).sum(0) * sae.decoder.detach())
        return found

    minimise(
        leaves,
        loss,
        steps=steps,
        optimiser=torch.optim.Adam(leaves.values(), lr=lr, eps=6.25e-10),
        trace=trace,
        run={"states": float(x.double().sum()), "width": width, "k": k, "steps": steps, "lr": lr, "batch": batch},
        kept={"idle": idle},
        draws=generator,
        gradient=along,
        after=lambda step: sae.decoder.copy_(_unit(sae.decoder)),
        called=called,
    )
    return SparseAutoencoder(**{name: t.detach() for name, t in leaves.items()}, k=k)


def median(points: Tensor, rounds: int = 100) -> Tensor:
    """(d,) geometric median of points (n, d), by Weiszfeld's iteration."""
    centre = points.mean(0)
    for _ in range(rounds):
        weight = 1 / (points - centre).norm(dim=1, keepdim=True).clamp(min=1e-6)
        moved = (points * weight).sum(0) / weight.sum()
        if bool((moved - centre).norm() <= 1e-6 * centre.norm()):
            break
        centre = moved
    return centre.clone()


def _unit(columns: Tensor) -> Tensor:
    return columns / columns.norm(dim=0).clamp(min=1e-12)
