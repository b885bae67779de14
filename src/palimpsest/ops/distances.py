"""Distances between sets of pictures, in whatever features describe them; and how sure one to a third set is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from palimpsest.ops.statistics import LEVEL, Interval

FLIPS = 999
BLOCKS = 20  # that are left out in turn, at most
_SMALL = 1_000  # rows up to which all pairs cost nothing
_WIDTH = 10.0  # of CMMD's kernel
_SCALE = 1_000.0  # by which CMMD is multiplied

Kernel = Callable[[Tensor, Tensor], Tensor]


class Gaussian(NamedTuple):
    """A mean (d,) and a root (k, d) whose rows' products are the covariance: root^T root."""

    mean: Tensor
    root: Tensor


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Distances of two paired sets, before and after, to a third one.

    Args:
        before, after: the distances. change: after less before, each with its interval.
        floor: how far the distances of two sets like `before` lie apart, in 95 of 100 cases.
        p: of the null that the change is 0.
    """

    before: Interval
    after: Interval
    change: Interval
    floor: float
    p: float


def kernel(a: Tensor, b: Tensor) -> tuple[float, np.ndarray]:
    """Unbiased MMD^2 of paired sets (n, d) with `cubic`, and its values under random swaps within pairs.

    With h_ij = k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(b_i, a_j) it is the mean of h over i != j; swapping pair i
    only changes the sign of row and column i, so each swap costs one quadratic form.
    """
    a, b = a.double(), b.double()
    n = len(a)
    cross = cubic(a, b)
    h = (cubic(a, a) + cubic(b, b) - cross - cross.T).fill_diagonal_(0)
    signs = torch.randint(0, 2, (FLIPS, n), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    null = ((signs @ h) * signs).sum(1) / (n * (n - 1))
    return float(h.sum()) / (n * (n - 1)), null.numpy()


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) of KID's kernel (Binkowski et al. 2018): `(x.y / d + 1)^3`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def radial(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) of CMMD's kernel (Jayasumana et al. 2024) on rows of unit norm: `exp(-|x - y|^2 / (2 10^2))`."""
    return torch.exp(-torch.cdist(x, y).square() / (2 * _WIDTH**2))


def cmmd(a: Tensor, b: Tensor) -> float:
    """CMMD of (n, d) and (m, d) of unit norm: 1,000 times the MMD^2 with `radial`, each row's pair with itself counted,
    as its authors do."""
    return float(_sums(a, b, radial, unbiased=False).whole())


def gaussian(rows: Tensor) -> Gaussian:
    """The Gaussian with the mean and the covariance of (n, d)."""
    rows = rows.double()
    mean = rows.mean(0)
    root = (rows - mean) / (len(rows) - 1) ** 0.5
    # The same covariance, from matrices as wide as features.
    return Gaussian(mean, torch.linalg.qr(root, mode="r").R if len(root) > max(_SMALL, root.shape[1]) else root)


def frechet(a: Tensor | Gaussian, b: Tensor | Gaussian) -> float:
    """Frechet distance (Heusel et al. 2017) of two Gaussians, or of those fitted to (n, d) and (m, d).

    |mean difference|^2 + tr A + tr B - 2 tr (A B)^(1/2); the last trace is the nuclear norm of the products of the
    roots' rows, so that no d x d root is taken and fewer rows than features are no trouble.
    """
    a, b = (s if isinstance(s, Gaussian) else gaussian(s) for s in (a, b))
    cross = torch.linalg.svdvals(a.root @ b.root.T).sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * cross))


def frechet_to(before: Tensor, after: Tensor, reference: Tensor, level: float = LEVEL) -> Compared:
    """Frechet distances of (n, d), paired, to (m, d).

    Cost: 4 x (blocks + 1) singular value decompositions as large as the sets or as features are wide.
    """
    blocks = _blocks(len(before)), _blocks(len(reference))
    whole = gaussian(reference)
    lesser = [gaussian(reference[blocks[1] != j]) for j in range(int(blocks[1].max()) + 1)]
    found = []
    for rows in (before, after):
        mine = gaussian(rows)
        out = [frechet(gaussian(rows[blocks[0] != j]), whole) for j in range(int(blocks[0].max()) + 1)]
        found.append((frechet(mine, whole), torch.tensor(out), torch.tensor([frechet(mine, r) for r in lesser])))
    return _compared(found, level)


def mmd_to(
    before: Tensor, after: Tensor, reference: Tensor, k: Kernel, *, unbiased: bool, level: float = LEVEL
) -> Compared:
    """MMD^2 of (n, d), paired, to (m, d): with `cubic` unbiased KID, with `radial` and not unbiased CMMD."""
    found = []
    for rows in (before, after):
        sums = _sums(rows, reference, k, unbiased=unbiased)
        found.append((float(sums.whole()), *sums.without()))
    return _compared(found, level)


def _compared(found: list[tuple[float, Tensor, Tensor]], level: float) -> Compared:
    """From (distance, those without a block of pictures, those without a block of the reference), before and after.

    Intervals are Student's of the delete-a-group jackknife, the variances of pictures and reference added: what other
    pictures and another reference would give, as many of each.
    """
    groups = min(len(part) for _, *parts in found for part in parts)
    t = float(stats.t.ppf((1 + level) / 2, groups - 1))

    def of(value: float, mine: Tensor, theirs: Tensor) -> tuple[Interval, float, float]:
        alone = _variance(mine)
        half = t * math.sqrt(alone + _variance(theirs))
        return Interval(value, value - half, value + half), half / t, t * math.sqrt(2 * alone)

    (before, _, floor), (after, *_) = (of(*one) for one in found)
    change, error, _ = of(*(b - a for a, b in zip(*found, strict=True)))  # type: ignore[arg-type]
    away = abs(change.value) / error if error > 0 else 0.0 if change.value == 0 else math.inf
    return Compared(before=before, after=after, change=change, floor=floor, p=float(2 * stats.t.sf(away, groups - 1)))


def _variance(without: Tensor) -> float:
    """Of a number, by its values without each of g groups: (g - 1) / g times the sum of squares around their mean."""
    g = len(without)
    return float((g - 1) / g * (without.double() - without.double().mean()).square().sum())


def _blocks(n: int) -> Tensor:
    """(n,) which of at most `BLOCKS` a row is in; neighbours are in different ones."""
    return torch.arange(n) % min(BLOCKS, n)


class _Sums(NamedTuple):
    """Sums of a kernel over blocks of x and y, those of each row with itself apart; and the blocks' sizes."""

    xx: Tensor
    yy: Tensor
    xy: Tensor
    x_self: Tensor
    y_self: Tensor
    x_sizes: Tensor
    y_sizes: Tensor
    unbiased: bool

    def whole(self) -> Tensor:
        parts = self.xx.sum(), self.x_self.sum(), self.yy.sum(), self.y_self.sum(), self.xy.sum()
        return self._of(*parts, self.x_sizes.sum(), self.y_sizes.sum())

    def without(self) -> tuple[Tensor, Tensor]:
        """MMD^2 without each block of x, and without each of y."""
        x, y = (_left(all_, self_) for all_, self_ in ((self.xx, self.x_self), (self.yy, self.y_self)))
        n, m = self.x_sizes.sum(), self.y_sizes.sum()
        whole = self.xy.sum()
        mine = self._of(*x, self.yy.sum(), self.y_self.sum(), whole - self.xy.sum(1), n - self.x_sizes, m)
        other = self._of(self.xx.sum(), self.x_self.sum(), *y, whole - self.xy.sum(0), n, m - self.y_sizes)
        return mine, other

    def _of(self, xx: Tensor, x: Tensor, yy: Tensor, y: Tensor, xy: Tensor, n: Tensor, m: Tensor) -> Tensor:
        if self.unbiased:
            return (xx - x) / (n * (n - 1)) + (yy - y) / (m * (m - 1)) - 2 * xy / (n * m)
        return _SCALE * (xx / n**2 + yy / m**2 - 2 * xy / (n * m))


def _left(pairs: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over all pairs, and over those of a row with itself, without each block."""
    return pairs.sum() - pairs.sum(0) - pairs.sum(1) + pairs.diagonal(), own.sum() - own


def _sums(x: Tensor, y: Tensor, k: Kernel, *, unbiased: bool) -> _Sums:
    x, y = x.double(), y.double()
    bx, by = _blocks(len(x)), _blocks(len(y))
    gx, gy = int(bx.max()) + 1, int(by.max()) + 1

    def over(values: Tensor, rows: Tensor, g: int) -> Tensor:
        return torch.zeros(g, *values.shape[1:], dtype=values.dtype).index_add_(0, rows, values)

    xx, yy, xy = k(x, x), k(y, y), k(x, y)
    one = torch.ones(1, dtype=torch.float64)
    return _Sums(
        over(over(xx, bx, gx).T, bx, gx), over(over(yy, by, gy).T, by, gy), over(over(xy, bx, gx).T, by, gy).T,
        over(xx.diagonal(), bx, gx), over(yy.diagonal(), by, gy),
        over(one.expand(len(x)), bx, gx), over(one.expand(len(y)), by, gy), unbiased,
    )  # fmt: skip
