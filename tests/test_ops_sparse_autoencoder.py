"""Sparse autoencoders and their median."""

from __future__ import annotations

import pytest
import torch

from palimpsest.core.errors import BadRequest
from palimpsest.train.sparse_autoencoder import fit, largest, median


def test_autoencoders_learn_sparse_sums() -> None:
    draws = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(12, 8, generator=draws), dim=1)
    codes = largest(torch.randn(2000, 12, generator=draws), 2)
    x = codes @ atoms + 3.0
    sae = fit(x, width=24, k=2, steps=600, lr=1e-2, batch=256, generator=torch.Generator().manual_seed(1))
    assert sae.explained(x) > 0.8
    assert int((sae.encode(x) > 0).sum(1).max()) == 2
    torch.testing.assert_close(sae.decoder.norm(dim=0), torch.ones(24))
    z = sae.encode(x[:3])
    torch.testing.assert_close(sae.decode(z), sae.bias + z @ sae.decoder.T)
    assert int((sae.encode(x, 24) > 0).sum(1).max()) > 2
    with pytest.raises(BadRequest, match="k in"):
        fit(x, width=4, k=5, steps=1, lr=1.0, batch=2, generator=draws)


def test_the_geometric_median_ignores_one_far_point() -> None:
    points = torch.cat([torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 0.1, torch.full((1, 3), 1e3)])
    assert float(median(points).norm()) < 0.2 < float(points.mean(0).norm())
