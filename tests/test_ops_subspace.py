"""Projections onto and away from a span."""

from __future__ import annotations

import pytest
import torch

from erase_fixtures import (
    projector,
)
from palimpsest.core.errors import BadRequest
from palimpsest.ops.subspace import away, basis, onto


def test_projections_are_those_of_the_pseudo_inverse() -> None:
    draws = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 7, generator=draws)
    vectors = torch.cat([vectors, vectors.sum(0, keepdim=True)])  # rank 3
    x, p = torch.randn(5, 7, generator=draws), projector(vectors).float()
    rows = basis(vectors)
    assert rows.shape == (3, 7)
    torch.testing.assert_close(onto(x, rows), x @ p.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(away(x, rows), x - x @ p.T, atol=1e-5, rtol=0)
    with pytest.raises(BadRequest, match="span nothing"):
        basis(torch.zeros(2, 3))
