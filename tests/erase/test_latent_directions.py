"""Latent directions against its paper's formula, written once more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erase_fixtures import (
    first_step,
)
from hosts_fixtures import sd3_pipeline, sd_pipeline
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import Unsupported
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase.latent_directions import LatentDirections, added
from palimpsest.hosts.sd import SDHost

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def test_directions_are_added_to_the_prompts_half_and_kept_in_the_patch(host: SDHost, tmp_path: Path) -> None:
    method = LatentDirections(steps=3, pictures=2, walk_steps=2, batch=2, strength=1.5)
    patch = method(host, Request(target=(STAR, MOON)))
    loaded = Patch.load(patch.save(tmp_path / "p.safetensors"))
    tensors = loaded.hooks[0].tensors
    assert sorted(tensors) == ["direction 0", "direction 1"]
    v = 1.5 * (tensors["direction 0"] + tensors["direction 1"])
    assert bool(v.any())
    step = first_step(host)
    with torch.no_grad():
        found = method.guide(host, Request(target=(STAR,)), tensors)(step)
        (null,) = step.x0(step.null)
        handle = host.denoiser.mid_block.register_forward_hook(lambda m, a, out: out + v)
        (cond,) = step.x0(step.cond)
        handle.remove()
    torch.testing.assert_close(found, null + 3.0 * (cond - null), atol=1e-3, rtol=1e-3)


def test_a_direction_lowers_the_loss_it_is_trained_on(host: SDHost) -> None:
    trace = Trace()
    LatentDirections(steps=30, pictures=2, walk_steps=2, batch=16, lr=0.05)(host, Request(target=(STAR,)), trace=trace)
    losses = [v for _, name, v in trace.log if name == "loss"]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_directions_fit_other_picture_sizes(host: SDHost) -> None:
    v = torch.ones(16, 4, 4)
    with added(host, v, slice(None)), torch.no_grad():
        assert host.sample(["star"], [0], Sampling(steps=1, size=32)).isfinite().all()


def test_models_without_a_bottleneck_are_refused(tmp_path: Path) -> None:
    from palimpsest.hosts.sd3 import SD3Host

    torch.manual_seed(0)
    joint = SD3Host(sd3_pipeline(tmp_path, t5=False), name="small sd3")
    with pytest.raises(Unsupported, match="middle block; small sd3 has none"):
        LatentDirections()(joint, Request(target=(STAR,)))
