"""What the hosts draw is what the pipelines of diffusers draw, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hosts_fixtures import (
    CLASSES,
    PROMPTS,
    SEEDS,
    SIZE,
    STEPS,
    TOLERANCE,
    as_usual,
    by_diffusers,
    fresh_host,
    host_of,
    largest,
    pipeline_of,
)
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Guide
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.flux import FluxHost
from palimpsest.hosts.sd import SDHost

# diffusers' Euler-type schedulers hand tensors to numpy in a way that new numpy versions complain about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("family", CLASSES)
def test_every_family_draws_what_its_pipeline_draws(family: str) -> None:
    host = host_of(family)
    images = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert largest(images, by_diffusers(pipeline_of(family))) <= TOLERANCE
    other = host.sample(["something else"] * 3, SEEDS, Sampling(steps=STEPS, size=SIZE))
    assert largest(images, other) > 100 * TOLERANCE  # the comparison can fail: prompts do matter


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_negative_prompt_guidance_and_default_size(family: str) -> None:
    host = host_of(family)
    side = host.default_size
    images = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, negative="blue", guidance=3.0))
    wanted = by_diffusers(pipeline_of(family), negative_prompt="blue", guidance_scale=3.0, height=side, width=side)
    assert images.shape[-2:] == (side, side)
    assert largest(images, wanted) <= TOLERANCE
    assert largest(images, host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, guidance=3.0))) > 100 * TOLERANCE


def test_default_number_of_steps() -> None:
    pipeline = pipeline_of("sd")
    host = SDHost(pipeline, name="sd")
    wanted = pipeline("moon", generator=torch.Generator().manual_seed(5), output_type="pt").images
    assert largest(host.sample(["moon"], [5]), wanted) <= TOLERANCE


def test_flux_with_true_guidance_and_a_negative_prompt() -> None:
    host = host_of("flux_undistilled")
    images = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, negative="blue", guidance=3.0))
    wanted = by_diffusers(pipeline_of("flux_undistilled"), negative_prompt="blue", true_cfg_scale=3.0)
    assert largest(images, wanted) <= TOLERANCE


def test_distilled_flux_reads_the_guidance_as_an_input() -> None:
    pipeline = pipeline_of("flux")
    host = FluxHost(pipeline, name="flux")
    images = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=9.0))
    assert largest(images, by_diffusers(pipeline, guidance_scale=9.0)) <= TOLERANCE
    assert largest(images, host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE))) > 0


@pytest.mark.parametrize("family", CLASSES)
def test_guidance_on_x0_is_guidance_on_the_models_own_output(family: str) -> None:
    host = host_of(family)
    native = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=2.0))
    guided = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=2.0), guide=as_usual)
    assert largest(native, guided) <= TOLERANCE


def test_a_guide_decides_what_is_drawn_and_is_made_fresh_for_each_batch() -> None:
    host, made = fresh_host("sd"), []

    def make() -> Guide:
        made.append(1)
        return lambda step: step.x0(step.null)[0]

    images = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE), batch=2, guide=make)
    assert len(made) == 2
    empty = host.sample([""] * 3, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=1.0))
    assert largest(images, empty) <= TOLERANCE
    host.guide = make  # as an applied patch sets it
    assert torch.equal(host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE), batch=2), images)
    assert host.walk(PROMPTS, SEEDS, Sampling(steps=STEPS)).__next__().x0_cond is None


@pytest.mark.parametrize("family", CLASSES)
def test_a_row_depends_on_its_own_prompt_and_seed_only(family: str) -> None:
    host = host_of(family)
    together = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE))
    one_by_one = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE), batch=1)
    backwards = host.sample(PROMPTS[::-1], SEEDS[::-1], Sampling(steps=STEPS, size=SIZE), batch=2).flip(0)
    assert largest(together, one_by_one) <= TOLERANCE
    assert largest(together, backwards) <= TOLERANCE


def rows_of(module: torch.nn.Module, run: Callable[[], object]) -> list[int]:
    """How many rows went through a module in each call."""
    seen: list[int] = []

    def note(module: object, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
        first = args[0] if args else next(iter(settings.values()))
        seen.append(len(first))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    run()
    handle.remove()
    return seen


def test_no_forward_more_than_needed() -> None:
    host = host_of("sd")
    unet = host.parts("denoiser")["unet"]
    text = host.parts("text_encoder")["text_encoder"]
    prompts, seeds = ["a star"] * 3 + ["moon"], [0, 1, 2, 3]
    assert rows_of(unet, lambda: host.sample(prompts, seeds, Sampling(steps=3))) == [8] * 3
    assert rows_of(unet, lambda: host.sample(prompts, seeds, Sampling(steps=3, guidance=1.0))) == [4] * 3
    assert rows_of(unet, lambda: host.sample(prompts, seeds, Sampling(steps=3), batch=3)) == [6] * 3 + [2] * 3
    encoded = rows_of(text, lambda: host.sample(prompts, seeds, Sampling(steps=3)))
    assert sum(encoded) == 3  # two different prompts and the empty one
    flux = host_of("flux")
    rows = rows_of(flux.parts("denoiser")["transformer"], lambda: flux.sample(["a"], [0], Sampling(steps=2, size=SIZE)))
    assert rows == [1, 1]


def test_guidance_of_one_equals_the_pipelines() -> None:
    images = host_of("sd").sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=1.0))
    assert largest(images, by_diffusers(pipeline_of("sd"), guidance_scale=1.0)) <= TOLERANCE


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux_undistilled"])
def test_walk_shows_the_run_as_it_goes(family: str) -> None:
    host = host_of(family)
    walk = host.walk(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=3.0))
    seen = 0
    for step in walk:
        assert torch.is_grad_enabled()  # the walk's own no_grad does not reach its caller
        assert (step.index, step.total) == (seen, len(walk))
        cond, null = step.x0(step.cond, step.null)
        assert step.x0_cond is not None
        assert step.x0_null is not None
        assert largest(cond, step.x0_cond) <= 1e-3
        assert largest(null, step.x0_null) <= 1e-3
        assert largest(cond, null) > 1e-3
        seen += 1
    assert seen == len(walk)
    sampled = host.sample(PROMPTS, SEEDS, Sampling(steps=STEPS, size=SIZE, guidance=3.0))
    assert torch.equal(host.decode(walk.x), sampled)


def test_sampling_leaves_tensors_that_can_be_trained_on() -> None:
    host = fresh_host("sd")
    weight = next(iter(host.parts("cross_value").values())).get_parameter("weight")
    weight.requires_grad_(True)
    step = next(iter(host.walk(PROMPTS, SEEDS, Sampling(steps=STEPS))))
    assert step.x0_cond is not None
    assert not step.x0_cond.requires_grad  # the walk itself keeps no graph
    host.denoise(step.x, step.t, step.cond).square().mean().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_progress_counts_all_denoising_steps() -> None:
    told: list[tuple[int, int]] = []
    host_of("sd").sample(
        PROMPTS, SEEDS, Sampling(steps=2), batch=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [0]}, "3 prompts but 1 seeds"),
        ({"how": Sampling(steps=0)}, "steps is 0"),
        ({"how": Sampling(size=33)}, "multiple of 2"),
        ({"how": Sampling(size=0)}, "size is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"prompts": [], "seeds": []}, "no prompt"),
        ({"prompts": "a star"}, "list of strings"),
    ],
)
def test_requests_that_make_no_sense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        host_of("sd").sample(**{"prompts": PROMPTS, "seeds": SEEDS, "how": Sampling(steps=STEPS), **change})
