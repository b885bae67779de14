"""Times of the tiny models' training."""

from __future__ import annotations

import torch

from palimpsest_models.train import TIMESTEPS, spread_times


def test_times_are_one_in_each_slice_and_focused_ones_lie_around_their_centre() -> None:
    n = 1000
    focused = torch.arange(n) < n // 2
    times = spread_times(n, torch.Generator().manual_seed(0)).double()
    assert torch.equal(times.sort().values.long(), torch.arange(TIMESTEPS))
    some = spread_times(n, torch.Generator().manual_seed(0), focused=focused).double()
    assert torch.equal(some[~focused], times[~focused])
    assert abs(float(some[focused].mean()) / TIMESTEPS - 0.6) < 0.03
    assert abs(float(some[focused].std()) / TIMESTEPS - 0.18) < 0.03
