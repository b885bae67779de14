"""Every scheduler is stepped as the pipelines step it, with and without a guide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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
from palimpsest.core.sampling import Sampling, Start
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


@pytest.mark.parametrize(("scheduler", "settings"), SCHEDULERS)
def test_a_walk_starts_from_given_latents_under_every_scheduler(scheduler: type, settings: dict[str, Any]) -> None:
    """From noise it is plain sampling; from the middle the rest of the schedule is walked, at the right noise."""
    host = SDHost(pipeline_of("sd_v", scheduler, **settings), name="sd_v")
    how = Sampling(steps=STEPS, size=SIZE, guidance=1.0)
    plain = host.walk(PROMPTS, SEEDS, how)
    x0 = torch.zeros_like(plain.x)
    whole = host.walk(PROMPTS, SEEDS, how, start=Start(x0=x0, share=1.0))
    half = host.walk(PROMPTS, SEEDS, how, start=Start(x0=x0, share=0.5))
    assert len(whole) == len(plain)
    assert 0 < len(half) < len(plain)
    step = next(half)
    sigma = host.noise(step.t)[1]
    noise = torch.cat([torch.randn(x0[:1].shape, generator=torch.Generator().manual_seed(s)) for s in SEEDS])
    torch.testing.assert_close(step.x, sigma * noise, atol=1e-4, rtol=1e-3)  # what the network reads: x0 is zero
    for _ in half:
        pass
    assert half.x.isfinite().all()
    again = host.walk(PROMPTS, SEEDS, how, start=Start(x=sigma * noise, share=0.5))
    torch.testing.assert_close(next(again).x, step.x, atol=1e-4, rtol=1e-3)
