"""Gradient surgery: what to do where one loss's gradient works against another's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def without_conflict(
    gradients: Mapping[str, Tensor], against: Mapping[str, Tensor], *, strength: float = 1.0
) -> dict[str, Tensor]:
    """Gradients without their part that points against others: g - strength <g, h> h / |h|^2 where <g, h> < 0.

    With strength 1 a step along the result does not raise the other loss, to first order (Yu et al. 2020, one
    direction of PCGrad). Each tensor is a vector of its own.

    Args:
        gradients: g by name; written in place.
        against: h by name; a tensor that is missing here meets no conflict.
        strength: 0 leaves all as it is, 1 removes the conflicting part.

    Returns:
        By name.
    """
    found = {}
    for name, g in gradients.items():
        h = against.get(name)
        if h is not None:
            dot, size = torch.sum(g * h), h.square().sum()
            if dot < 0 and size > 0:
                g = g.sub_(h, alpha=float(strength * dot / size))
        found[name] = g
    return found
