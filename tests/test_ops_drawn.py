"""Pictures that a model draws for training."""

from __future__ import annotations

import pytest
import torch

from hosts_fixtures import sd_pipeline
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.drawn import draw, noised


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd"), request.param), name="small sd")


def test_drawn_pictures_are_what_sampling_draws(host: SDHost) -> None:
    pictures = draw(host, ["star", "moon"], 3, torch.Generator().manual_seed(1), steps=4, guidance=2.0, batch=2)
    assert pictures.row.tolist() == [0, 1, 0]
    seeds = torch.randint(2**31, (3,), generator=torch.Generator().manual_seed(1)).tolist()
    images = host.sample(["star", "moon", "star"], seeds, Sampling(steps=4, guidance=2.0))
    assert torch.allclose(host.pixels(pictures.x0), images, atol=1e-3)
    at = noised(host, pictures, 5, torch.Generator().manual_seed(2))
    assert sorted(at.row.tolist()) in ([0, 0, 0, 1, 1], [0, 0, 0, 0, 1])
    alpha, sigma = host.noise(at.t)
    assert float(((at.x - alpha * at.x0) / sigma).std()) == pytest.approx(1.0, abs=0.1)
