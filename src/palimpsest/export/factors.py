"""The change of a weight as a product of two thin matrices, without loss."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.core.delta import Delta, LowRank, Rows

RESIDUAL = 1e-6  # of the change's Frobenius norm: what a float32 product of two factors rounds away anyway


def factors(delta: Delta, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """`up @ down` = the change of a weight of this shape; up (out, r), down (r, in x kernel), float32.

    - LowRank: its own factors. A product whose rank is above what its shape allows is factored anew.
    - Rows: a column of the unit matrix for each row.
    - Dense and Sparse: the smallest rank whose residual is at most 1e-6 of the change, from the singular values in
      float64; a change of full rank gets the unit matrix as its other factor, and so loses nothing at all.

    Cost: one singular value decomposition of (out, in x kernel) for Dense and Sparse, none for the others.
    """
    out, inner = shape[0], shape[1:].numel()
    if isinstance(delta, LowRank) and delta.rank() <= min(out, inner):
        return delta.up.float(), delta.down.float()
    if isinstance(delta, Rows) and len(delta.index) <= min(out, inner):
        up = torch.zeros(out, len(delta.index))
        up[delta.index, torch.arange(len(delta.index))] = 1.0
        return up, delta.value.flatten(1).float()
    change = delta.dense(shape).detach().cpu().reshape(out, inner).double()
    u, s, vt = torch.linalg.svd(change, full_matrices=False)
    left = s.square().flip(0).cumsum(0).flip(0).sqrt()  # what remains if the values from here on are dropped
    rank = int((left > RESIDUAL * left[0]).sum()) if float(s[0]) > 0 else 0
    if rank == len(s):
        unit = torch.eye(rank)
        return (unit, change.float()) if out <= inner else (change.float(), unit)
    root = s[:rank].sqrt()  # shared out, so that neither factor is much larger than the other
    return (u[:, :rank] * root).float(), (root[:, None] * vt[:rank]).float()


def padded(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product with factors of this rank: zeros are appended."""
    more = rank - up.shape[1]
    if more == 0:
        return up, down
    return torch.cat([up, up.new_zeros(len(up), more)], 1), torch.cat([down, down.new_zeros(more, down.shape[1])], 0)
