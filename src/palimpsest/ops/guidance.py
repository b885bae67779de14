"""The parametrisations of diffusion and flow models, and the guidance rules that combine predictions.

All formulas hold at `x = alpha x0 + sigma noise`; alpha and sigma broadcast against x (n, c, h, w).
"""

from __future__ import annotations

from torch import Tensor

from palimpsest.core.host import Denoiser


def noise_of(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that x holds if its clean part is x0: (x - alpha x0) / sigma. Needs sigma > 0."""
    return (x - alpha * x0) / sigma


def clean_of(noise: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean part if x holds this noise: (x - sigma noise) / alpha. Needs alpha > 0."""
    return (x - sigma * noise) / alpha


def velocity_of(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha noise - sigma x0, what v-prediction models are trained on. Needs sigma > 0."""
    return alpha * noise_of(x0, x, alpha, sigma) - sigma * x0


def clean_of_velocity(v: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 = (alpha x - sigma v) / (alpha^2 + sigma^2); the denominator is 1 on variance-preserving schedules."""
    return (alpha * x - sigma * v) / (alpha**2 + sigma**2)


def flow_of(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """noise - x0, the velocity of a straight path from x0 to noise. Needs sigma > 0."""
    return noise_of(x0, x, alpha, sigma) - x0


def clean_of_flow(u: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 = (x - sigma u) / (alpha + sigma); the denominator is 1 on straight paths."""
    return (x - sigma * u) / (alpha + sigma)


def output_error(host: Denoiser, t: Tensor, x0: Tensor, goal: Tensor) -> Tensor:
    """How far the network's own output is off at times t (n,) where it says x0 and should say the goal: (n, c, h, w).

    At the same x, an error of x0 is one of the noise times alpha / sigma, and one of a velocity times 1 / sigma (signs
    aside). Losses that papers write for networks that predict noise are losses of the output. Read as errors of the
    noise, they would weigh alpha^2 as much in a network that predicts velocity, and hardly train its noisiest steps.
    """
    alpha, sigma = host.noise(t)
    return (alpha if host.prediction == "epsilon" else 1.0) / sigma * (x0 - goal)


def classifier_free(null: Tensor, cond: Tensor, scale: float) -> Tensor:
    """null + scale (cond - null): affine, so it reads the same for x0, noise and velocity (Ho & Salimans 2022)."""
    return null + scale * (cond - null)


def away_from(null: Tensor, concept: Tensor, scale: float) -> Tensor:
    """null - scale (concept - null): the prediction that is guided away from a concept."""
    return null - scale * (concept - null)


def safety_scale(cond: Tensor, concept: Tensor, *, scale: float, threshold: float) -> Tensor:
    """How strongly each element is pushed away from a concept, in [0, 1] (Schramowski et al. 2023).

    min(1, scale |cond - concept|) where cond - concept < threshold, else 0. The threshold is in units of the noise
    prediction, whose elements have about unit variance in every model; convert other predictions with `noise_of`.
    """
    apart = cond - concept
    return (scale * apart.abs()).clamp(max=1.0) * (apart < threshold)
