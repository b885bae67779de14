"""The negative prompt against its paper's formula, written once more."""

from __future__ import annotations

import pytest
import torch

from hosts_fixtures import SEEDS, sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.sampling import Sampling
from palimpsest.erase.negative_prompt import NegativePrompt
from palimpsest.hosts.sd import SDHost

REQUEST = Request(target=(Concept(name="star"), Concept(name="moon")))


PROMPTS = ["a red star", "house"]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd"), request.param), name="small sd")


def test_the_negative_prompt_is_the_pipelines_own(host: SDHost) -> None:
    with NegativePrompt()(host, REQUEST).applied(host):
        found = host.sample(PROMPTS, SEEDS[:2], Sampling(steps=4))
    assert torch.allclose(found, host.sample(PROMPTS, SEEDS[:2], Sampling(steps=4, negative="star, moon")), atol=2e-3)
