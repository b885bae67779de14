"""Every scheduler is stepped as the pipelines step it, with and without a guide."""

from __future__ import annotations

import inspect
import json
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from hosts_fixtures import PROMPTS, SEEDS, SIZE, STEPS, TOLERANCE, as_usual, by_diffusers, largest, pipeline_of
from palimpsest.core.errors import Unsupported
from palimpsest.core.sampling import Sampling, Start
from palimpsest.hosts.pipelines import NOISE_SCHEDULER
from palimpsest.hosts.sd import SDHost

# diffusers' Euler-type schedulers hand tensors to numpy in a way that new numpy versions complain about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

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
    (DEISMultistepScheduler, {}),
    (DPMSolverSinglestepScheduler, {}),
    (KDPM2DiscreteScheduler, {}),
    (KDPM2AncestralDiscreteScheduler, {}),
    (LCMScheduler, {}),
    (SASolverScheduler, {}),
    (TCDScheduler, {}),  # its own eta is .3, the pipeline's 0
    (DDIMParallelScheduler, {}),
    (DDPMParallelScheduler, {}),
]


@cache
def plain(family: str) -> tuple[Any, Any]:
    """One pipeline for all tests of this file that change nothing but its scheduler, and the scheduler it came with."""
    pipeline = pipeline_of(family)
    return pipeline, pipeline.scheduler


def stepped_by(family: str, scheduler: type, settings: dict[str, Any]) -> Any:
    pipeline, own = plain(family)
    pipeline.scheduler = scheduler.from_config(own.config, **settings)  # type: ignore[attr-defined]
    return pipeline


@pytest.mark.parametrize(("scheduler", "settings"), SCHEDULERS)
@pytest.mark.parametrize("family", ["sd", "sd_v"])
def test_every_scheduler_is_stepped_as_the_pipeline_does(
    family: str, scheduler: type, settings: dict[str, Any]
) -> None:
    if family == "sd" and settings.get("rescale_betas_zero_snr"):
        pytest.skip("noise prediction is undefined where no signal is left")
    pipeline = stepped_by(family, scheduler, settings)
    host = SDHost(pipeline, name=family)
    images = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE))
    assert largest(images, by_diffusers(pipeline)) <= TOLERANCE
    assert images.std() > 0.05


@pytest.mark.parametrize(("scheduler", "settings"), SCHEDULERS)
def test_a_guide_works_under_every_scheduler(scheduler: type, settings: dict[str, Any]) -> None:
    host = SDHost(stepped_by("sd_v", scheduler, settings), name="sd_v")
    native = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=2.0))
    guided = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=2.0), guide=as_usual)
    assert largest(native, guided) <= 10 * TOLERANCE


@pytest.mark.parametrize(("scheduler", "settings"), SCHEDULERS)
def test_a_walk_starts_from_given_latents_under_every_scheduler(scheduler: type, settings: dict[str, Any]) -> None:
    """From noise it is plain sampling; from the middle the rest of the schedule is walked, at the right noise."""
    host = SDHost(stepped_by("sd_v", scheduler, settings), name="sd_v")
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


def test_every_other_scheduler_is_refused_by_name() -> None:
    pipeline = pipeline_of("sd")
    compared = {scheduler.__name__ for scheduler, _ in SCHEDULERS}
    assert compared == set(NOISE_SCHEDULER)
    refused = 0
    for name in dir(diffusers):
        cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        if inspect.isclass(cls) and name not in compared:
            try:
                pipeline.scheduler = cls()
            except (TypeError, ImportError, ValueError):  # needs settings or a package of its own
                continue
            with pytest.raises(Unsupported, match=r"sd (comes with|predicts)"):
                SDHost(pipeline, name="sd")
            refused += 1
    assert refused > 10


def test_noise_prediction_without_any_signal_is_refused_before_drawing() -> None:
    with pytest.raises(Unsupported, match="every picture would be black"):
        SDHost(pipeline_of("sd", DDIMScheduler, rescale_betas_zero_snr=True), name="sd")


def test_steps_that_a_scheduler_cannot_take_get_words() -> None:
    host = SDHost(pipeline_of("sd", PNDMScheduler, skip_prk_steps=False), name="sd")
    with pytest.raises(Unsupported, match="PNDMScheduler of sd cannot take 3 steps"):
        host.sample(["moon"], [0], Sampling(steps=3, size=SIZE))


@pytest.mark.parametrize("size", [None, (8, 16)])
def test_a_model_without_a_size_of_its_own_asks_for_one(size: object) -> None:
    pipeline = pipeline_of("sd")
    pipeline.unet.register_to_config(sample_size=size)
    host = SDHost(pipeline, name="sd")
    with pytest.raises(Unsupported, match="give a size"):
        host.sample(["moon"], [0], Sampling(steps=1))
    assert host.sample(["moon"], [0], Sampling(steps=1, size=SIZE)).shape[-1] == SIZE


def test_words_of_several_vectors_are_read_as_the_pipeline_reads_them() -> None:
    pipeline = pipeline_of("sd")
    vectors = torch.randn(3, pipeline.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    pipeline.load_textual_inversion({"<cat>": vectors * 3})
    host = SDHost(pipeline, name="sd")
    how = Sampling(steps=STEPS, size=SIZE)
    drawn = host.sample(["a <cat> moon"], [3], how)
    wanted = pipeline(
        "a <cat> moon", generator=torch.Generator().manual_seed(3), num_inference_steps=STEPS, height=SIZE, width=SIZE,
        output_type="pt",
    ).images  # fmt: skip
    assert largest(drawn, wanted) <= TOLERANCE
    assert int(host.tokens(["<cat>"]).lengths[0]) == 5


def test_adapters_in_memory_are_refused() -> None:
    from peft import LoraConfig

    pipeline = pipeline_of("sd")
    host = SDHost(pipeline, name="sd")
    before = host.fingerprint()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
    for one in (host.fingerprint, lambda: SDHost(pipeline, name="sd")):
        with pytest.raises(Unsupported, match=r"has an adapter \(LoRA\) loaded.*Fuse or unload"):
            one()
    pipeline.unet.delete_adapters("default")
    pipeline.unload_lora_weights()
    assert host.fingerprint() == before


def test_what_decides_pictures_beside_tensors_is_told() -> None:
    plain = SDHost(pipeline_of("sd"), name="sd")
    assert (
        json.loads(json.dumps(plain.settings())) == plain.settings() == SDHost(pipeline_of("sd"), name="b").settings()
    )
    others = {
        "scheduler": SDHost(pipeline_of("sd", EulerDiscreteScheduler), name="sd"),
        "prediction": SDHost(pipeline_of("sd", DDIMScheduler, prediction_type="v_prediction"), name="sd"),
    }
    rescaled = pipeline_of("sd")
    rescaled.vae.register_to_config(scaling_factor=1.0)
    others["networks"] = SDHost(rescaled, name="sd")
    for what, other in others.items():
        assert other.fingerprint() == plain.fingerprint()
        assert other.settings()[what] != plain.settings()[what]
