"""How far changes of one model stand in each other's way, by their weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch

from palimpsest.core.change import Part
from palimpsest.core.stored import Stored, blocks
from palimpsest.ops.merging import changed, thresholds


class Interference(NamedTuple):
    """Of two changes.

    Args:
        cosine: of all their entries: 1 the same direction, 0 none in common, -1 opposite.
        opposed: of the entries that are among the largest of both, the share with opposite signs; 0 where there are
            none. shared: those entries, as a share of what either change has of them.
    """

    cosine: float
    opposed: float
    shared: float


def pairs(n: int) -> list[tuple[int, int]]:
    """Every two of n, in order."""
    return list(combinations(range(n), 2))


def interference(parts: Sequence[Part], base: Stored, *, density: float = 0.2) -> list[Interference]:
    """Of every two changes, in the order of `pairs`.

    Args:
        density: the largest entries of a change are this share of all entries that any of them touches.

    Cost: three passes over all blocks, two of them for the largest entries.
    """
    names, n = changed(parts), len(parts)
    least = thresholds(parts, base, names, density)
    dots, both, against = (torch.zeros(n, n, dtype=torch.float64) for _ in range(3))
    for name in names:
        shape = base.shape(name)
        for start, stop in blocks(shape):
            rows = torch.stack([p.rows(name, shape, start, stop).reshape(-1) for p in parts])
            dots += (rows @ rows.T).double()
            large = rows.sign() * ((rows.abs() >= least[:, None]) & (rows != 0))
            agree = large @ large.T
            common = large.abs() @ large.abs().T
            both += common.double()
            against += ((common - agree) / 2).double()
    lengths, counts = dots.diagonal().sqrt(), both.diagonal()
    found = []
    for i, j in pairs(n):
        scale, either = float(lengths[i] * lengths[j]), float(counts[i] + counts[j] - both[i, j])
        found.append(
            Interference(
                cosine=float(dots[i, j]) / scale if scale else 0.0,
                opposed=float(against[i, j] / both[i, j]) if both[i, j] else 0.0,
                shared=float(both[i, j]) / either if either else 0.0,
            )
        )
    return found
