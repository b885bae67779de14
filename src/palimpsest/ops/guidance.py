"""The guidance rules that combine predictions, and the error that losses are made of.

All formulas hold at `x = alpha x0 + sigma noise`; alpha and sigma broadcast against x (n, c, h, w).
"""

from __future__ import annotations

from torch import Tensor

from palimpsest.core.host import Denoiser


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
    prediction, whose elements have about unit variance in every model.
    """
    apart = cond - concept
    return (scale * apart.abs()).clamp(max=1.0) * (apart < threshold)
