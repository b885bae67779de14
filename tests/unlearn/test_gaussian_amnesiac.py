"""Gaussian-Amnesiac: a regressor is taught random values for what it forgets, drawn like the values it knows."""

from __future__ import annotations

import copy

import torch

from digits_fixture import REQUEST, regressor
from palimpsest.unlearn.gaussian_amnesiac import GaussianAmnesiac
from unlearn.steps import ONE, assert_step


def test_gaussian_amnesiac_draws_from_the_values_it_knows() -> None:
    host, split = regressor()
    values = torch.cat([split["forget"].labels, split["retain"].labels])
    drawn = GaussianAmnesiac().ready(host, split, 0)
    assert len(drawn) == len(split["forget"])
    assert abs(float(drawn.mean() - values.mean())) < 4 * float(values.std()) / len(drawn) ** 0.5
    assert 0.7 < float(drawn.std() / values.std()) < 1.3
    net = copy.deepcopy(host.root).requires_grad_(True)
    f, r = split["forget"], split["retain"]
    loss = 0.5 * (net(r.pixels())[:, 0] - r.labels).square().mean() + (net(f.pixels())[:, 0] - drawn).square().mean()
    loss.backward()
    patch = GaussianAmnesiac(**{**ONE, "lr": 1e-3}, keep_weight=0.5)(host, REQUEST, data=split)
    assert_step(patch, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, lr=1e-3)
