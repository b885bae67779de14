"""Every scheduler is stepped as the pipelines step it, with and without a guide."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from hosts_fixtures import PROMPTS, SEEDS, SIZE, STEPS, TOLERANCE, as_usual, by_diffusers, largest, pipeline_of
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.sd import SDHost

# diffusers' Euler-type schedulers hand tensors to numpy in a way that new numpy versions complain about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS: list[tuple[type, dict[str, Any]]] = [
    (DDIMScheduler, {}),
    (DDIMScheduler, {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    (DDPMScheduler, {}),
    (PNDMScheduler, {"skip_prk_steps": True}),
    (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    (EulerAncestralDiscreteScheduler, {}),
    (LMSDiscreteScheduler, {}),
    (HeunDiscreteScheduler, {}),
    (DPMSolverMultistepScheduler, {}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (UniPCMultistepScheduler, {}),
]


@pytest.mark.parametrize(("scheduler", "settings"), SCHEDULERS)
@pytest.mark.parametrize("family", ["sd", "sd_v"])
def test_every_scheduler_is_stepped_as_the_pipeline_does(
    family: str, scheduler: type, settings: dict[str, Any]
) -> None:
    if family == "sd" and settings.get("rescale_betas_zero_snr"):
        pytest.skip("noise prediction is undefined where no signal is left")
    pipeline = pipeline_of(family, scheduler, **settings)
    host = SDHost(pipeline, name=family)
    images = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE))
    assert largest(images, by_diffusers(pipeline)) <= TOLERANCE
    assert images.std() > 0.05


@pytest.mark.parametrize(("scheduler", "settings"), SCHEDULERS)
def test_a_guide_works_under_every_scheduler(scheduler: type, settings: dict[str, Any]) -> None:
    host = SDHost(pipeline_of("sd_v", scheduler, **settings), name="sd_v")
    native = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=2.0))
    guided = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=2.0), guide=as_usual)
    assert largest(native, guided) <= 10 * TOLERANCE
