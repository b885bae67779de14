"""Projections onto and away from the subspace that a few vectors span."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest

RANK = 1e-6  # singular values below this share of the largest count as zero


def basis(vectors: Tensor) -> Tensor:
    """(r, d) orthonormal rows that span what `vectors` (n, d) span, float32 or wider; r <= min(n, d).

    Cost: one singular value decomposition of (n, d) in float64.

    Raises:
        BadRequest: there is no vector, or all are zero.
    """
    if vectors.ndim != 2 or not vectors.any():
        raise BadRequest(f"Vectors of shape {tuple(vectors.shape)} span nothing; give at least one that is not zero.")
    _, size, rows = torch.linalg.svd(vectors.detach().double(), full_matrices=False)
    return rows[size > RANK * size[0]].to(torch.promote_types(vectors.dtype, torch.float32))


def onto(states: Tensor, rows: Tensor) -> Tensor:
    """The part of states (..., d) inside the subspace with orthonormal rows (r, d); 2 r d a state. In the rows' type,
    where that of the states is narrower."""
    states = states.to(torch.promote_types(states.dtype, rows.dtype))
    return (states @ rows.T) @ rows


def away(states: Tensor, rows: Tensor) -> Tensor:
    """The part of states (..., d) outside the subspace with orthonormal rows (r, d)."""
    return states - onto(states, rows)
