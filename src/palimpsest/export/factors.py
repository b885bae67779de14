"""The change of a weight as a product of two thin matrices, without loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from palimpsest.core.delta import Delta, LowRank, Rows

RESIDUAL = 1e-6  # of the change's Frobenius norm: what a float32 product of two factors rounds away anyway


def factors(delta: Delta, shape: torch.Size, most: int | None = None) -> tuple[Tensor, Tensor]:
    """`up @ down` = the change of a weight of this shape; up (out, r), down (r, in x kernel), float32.

    - LowRank: its own factors. A product whose rank is above what its shape allows is factored anew.
    - Rows: a column of the unit matrix for each row.
    - Dense and Sparse: the smallest rank whose residual is at most 1e-6 of the change, from its singular values; a
      change of full rank gets the unit matrix as its other factor, and so loses nothing at all.

    Args:
        most: a change of a higher rank is cut to this one, and to what is nearest to it in Frobenius norm: its largest
            singular values.

    Cost: for Dense and Sparse one symmetric eigendecomposition in float64 of the shorter side, none for the others
    unless they are cut; for LowRank then of its rank.
    """
    out, inner = shape[0], shape[1:].numel()
    if isinstance(delta, LowRank) and delta.rank() <= min(out, inner):
        up, down = delta.up.float(), delta.down.float()
        return (up, down) if most is None or delta.rank() <= most else _cut(up.cpu(), down.cpu(), most)
    if isinstance(delta, Rows) and len(delta.index) <= min(out, inner, most or out):
        up = torch.zeros(out, len(delta.index))
        up[delta.index, torch.arange(len(delta.index))] = 1.0
        return up, delta.value.flatten(1).float()
    change = delta.dense(shape).detach().cpu().reshape(out, inner).double()
    if inner <= out:
        return _thin(change, most)
    up, down = _thin(change.T, most)
    return down.T.contiguous(), up.T.contiguous()


def residual(delta: Delta, shape: torch.Size, up: Tensor, down: Tensor) -> tuple[float, float]:
    """The Frobenius norm of what factors leave of a change, and of the change."""
    change = delta.dense(shape).detach().cpu().flatten(1).double()
    return float((change - up.double() @ down.double()).norm()), float(change.norm())


def _thin(change: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """The same for a tall (m, n) float64 matrix."""
    values, vectors = torch.linalg.eigh(change.T @ change)  # ascending; the squares of the singular values
    values = values.clamp(min=0)
    lost = values.cumsum(0).sqrt()  # what goes if the values up to here are dropped
    rank = int((lost > RESIDUAL * lost[-1]).sum())
    if rank == change.shape[1] and (most is None or rank <= most):
        return change.float(), torch.eye(rank)
    rank = rank if most is None else min(rank, most)
    basis, root = vectors[:, change.shape[1] - rank :], values[change.shape[1] - rank :] ** 0.25
    # The singular values are shared out, so that neither factor is much larger than the other.
    return (change @ basis / root).float(), (root * basis).T.float()


def _cut(up: Tensor, down: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The nearest product of a lower rank: only the small matrix between two orthogonal ones is decomposed."""
    left, r = torch.linalg.qr(up.double())
    right, s = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(r @ s.T)
    root = values[:most].sqrt()
    return (left @ u[:, :most] * root).float(), (root[:, None] * v[:most] @ right.T).float()


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of like size, so that half precision serves both: a power of two changes hands."""
    sizes = [float(f.abs().max()) if f.numel() else 0.0 for f in (up, down)]
    if min(sizes) == 0:
        return up, down
    shift = 2.0 ** round(math.log2(sizes[1] / sizes[0]) / 2)
    return up * shift, down / shift


def padded(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product with factors of this rank: zeros are appended."""
    more = rank - up.shape[1]
    if more == 0:
        return up, down
    return torch.cat([up, up.new_zeros(len(up), more)], 1), torch.cat([down, down.new_zeros(more, down.shape[1])], 0)
