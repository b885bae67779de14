"""The change of a weight as a product of two thin matrices, without loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from palimpsest.core.delta import Delta, LowRank, Rows

RESIDUAL = 1e-6  # of the change's Frobenius norm: what a float32 product of two factors rounds away anyway


def factors(delta: Delta, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """`up @ down` = the change of a weight of this shape; up (out, r), down (r, in x kernel), float32.

    - LowRank: its own factors. A product whose rank is above what its shape allows is factored anew.
    - Rows: a column of the unit matrix for each row.
    - Dense and Sparse: the smallest rank whose residual is at most 1e-6 of the change, from its singular values; a
      change of full rank gets the unit matrix as its other factor, and so loses nothing at all.

    Cost: for Dense and Sparse one symmetric eigendecomposition in float64 of the shorter side, none for the others.
    """
    out, inner = shape[0], shape[1:].numel()
    if isinstance(delta, LowRank) and delta.rank() <= min(out, inner):
        return delta.up.float(), delta.down.float()
    if isinstance(delta, Rows) and len(delta.index) <= min(out, inner):
        up = torch.zeros(out, len(delta.index))
        up[delta.index, torch.arange(len(delta.index))] = 1.0
        return up, delta.value.flatten(1).float()
    change = delta.dense(shape).detach().cpu().reshape(out, inner).double()
    return _thin(change) if inner <= out else tuple(f.T.contiguous() for f in reversed(_thin(change.T)))  # type: ignore


def _thin(change: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a tall (m, n) float64 matrix."""
    values, vectors = torch.linalg.eigh(change.T @ change)  # ascending; the squares of the singular values
    values = values.clamp(min=0)
    lost = values.cumsum(0).sqrt()  # what goes if the values up to here are dropped
    rank = int((lost > RESIDUAL * lost[-1]).sum())
    if rank == change.shape[1]:
        return change.float(), torch.eye(rank)
    basis, root = vectors[:, change.shape[1] - rank :], values[change.shape[1] - rank :] ** 0.25
    # The singular values are shared out, so that neither factor is much larger than the other.
    return (change @ basis / root).float(), (root * basis).T.float()


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
