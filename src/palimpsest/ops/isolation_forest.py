"""Isolation forest: how few random cuts set a point apart from the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def isolation(points: Tensor, *, trees: int, generator: torch.Generator, sample: int = 256) -> Tensor:
    """(n,) scores of points (n, d), in (0, 1): near 1 for outliers, below 0.5 for the crowd.

        s(x) = 2^(-mean depth of x / c(m)),  c(m) = 2 H(m - 1) - 2 (m - 1) / m

    Each tree cuts a random `sample` of m points along random axes at random places between its extremes, down to
    depth log2 m; where m points are left uncut, c(m) is added to the depth.

    Source: Liu et al., "Isolation Forest", ICDM 2008. Cost: trees x n x log2 m comparisons.
    """
    n, m = len(points), min(sample, len(points))
    if n < 2:
        return torch.full((n,), 0.5)
    limit, depth = math.ceil(math.log2(m)), torch.zeros(n)
    for _ in range(trees):
        chosen = torch.randperm(n, generator=generator)[:m]
        depth += _depths(points, torch.arange(n), chosen, limit, generator)
    return 2 ** (-depth / trees / _expected(m))


def _depths(points: Tensor, rows: Tensor, grown: Tensor, left: int, generator: torch.Generator) -> Tensor:
    """(len(rows),) how deep each row ends in a tree grown from the rows `grown`."""
    if left == 0 or len(grown) < 2 or not len(rows):
        return torch.full((len(rows),), _expected(len(grown)))
    low, high = points[grown].amin(0), points[grown].amax(0)
    axes = (high > low).nonzero()[:, 0]
    if not len(axes):
        return torch.full((len(rows),), _expected(len(grown)))
    axis = axes[torch.randint(len(axes), (), generator=generator)]
    cut = low[axis] + torch.rand((), generator=generator) * (high[axis] - low[axis])
    below, grown_below = points[rows, axis] < cut, points[grown, axis] < cut
    depth = torch.ones(len(rows))
    depth[below] += _depths(points, rows[below], grown[grown_below], left - 1, generator)
    depth[~below] += _depths(points, rows[~below], grown[~grown_below], left - 1, generator)
    return depth


def _expected(m: int) -> float:
    """Mean depth of an unsuccessful search among m points."""
    if m < 2:
        return 0.0
    harmonic = math.log(m - 1) + 0.5772156649 if m > 2 else 1.0
    return 2 * harmonic - 2 * (m - 1) / m if m > 2 else 1.0
