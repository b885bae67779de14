"""Parts that rest away from the device give the same pictures, patches and gradients, and lie where they lay."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hosts_fixtures import BUILDERS, PROMPTS, SEEDS, SIZE, STEPS, fresh_host, host_of, largest, pipeline_of
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import quick_state, tensors_of
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.diffusion import DiffusionHost
from palimpsest.hosts.load import load
from palimpsest.hosts.offload import Visitors

HOW = Sampling(steps=STEPS, size=SIZE)


class Elsewhere:
    """A second CPU: what visits it is a copy, and every copy that still lives is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.living: weakref.WeakSet[Any] = weakref.WeakSet()
        self.copied = 0
        to = Tensor.to

        def copying(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args and args[0] is self:
                copy = tensor.clone()
                self.living.add(copy)
                self.copied += 1
                return copy
            return to(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, "to", copying)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    return Elsewhere(monkeypatch)


def offloaded(family: str, device: Any) -> DiffusionHost:
    """A host whose text encoders and autoencoder visit another CPU."""
    host = fresh_host(family)
    around = {name: getattr(host.pipeline, name) for name in (*host.encoders, "vae")}
    host._visitors = Visitors({name: m for name, m in around.items() if m is not None}, device)
    return host


@pytest.mark.parametrize("family", BUILDERS)
def test_pictures_are_the_same_and_nothing_stays_on_the_device(family: str, elsewhere: Elsewhere) -> None:
    host = offloaded(family, elsewhere)
    before = quick_state(host.root)
    images = host.sample(PROMPTS, SEEDS, HOW)
    assert torch.equal(images, host_of(family).sample(PROMPTS, SEEDS, HOW))
    assert elsewhere.copied > 0
    assert not elsewhere.living
    assert quick_state(host.root) == before  # addresses, too


def test_while_the_network_works_the_others_are_away(elsewhere: Elsewhere) -> None:
    host = offloaded("sd", elsewhere)
    away = [len(elsewhere.living) for _ in host.walk(PROMPTS, SEEDS, HOW)]
    assert away == [0] * STEPS
    with host._visitors.visit("text_encoder"):
        here, copied = len(elsewhere.living), elsewhere.copied
        host.encode(PROMPTS)  # they are there already: not copied again
        assert len(elsewhere.living) == here > 0
        assert elsewhere.copied == copied
    assert not elsewhere.living


def test_tensors_that_are_one_are_copied_once(elsewhere: Elsewhere) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    with Visitors({"it": module}, elsewhere).visit("it"):  # type: ignore[arg-type]
        assert module[1].weight is module[0].weight
        assert elsewhere.copied == 3


def test_they_go_home_after_an_error(elsewhere: Elsewhere) -> None:
    host = offloaded("sd", elsewhere)
    home = {name: id(t) for name, t in tensors_of(host.root).items()}
    with pytest.raises(ZeroDivisionError), host._visitors.visit("vae", "text_encoder"):
        raise ZeroDivisionError
    assert {name: id(t) for name, t in tensors_of(host.root).items()} == home
    assert not elsewhere.living


def test_gradients_reach_tensors_at_home(elsewhere: Elsewhere) -> None:
    def gradient(host: DiffusionHost) -> Tensor:
        weight = next(iter(host.parts("text_block").values())).get_parameter("mlp.fc1.weight")
        weight.requires_grad_(True)
        host.encode(PROMPTS).states.square().sum().backward()
        assert weight.grad is not None
        return weight.grad

    assert torch.equal(gradient(offloaded("sd", elsewhere)), gradient(fresh_host("sd")))


def test_a_patch_of_a_text_encoder_acts_where_it_visits(elsewhere: Elsewhere) -> None:
    host = offloaded("sd", elsewhere)
    name, weight = next((n, t) for n, t in tensors_of(host.root).items() if "fc1.weight" in n)
    patch = Patch(base=host.fingerprint(), deltas={name: Dense(value=torch.randn(weight.shape))})
    plain = host.encode(PROMPTS).states
    with patch.applied(host):
        changed = host.encode(PROMPTS).states
    assert largest(plain, changed) > 1e-3
    assert torch.equal(host.encode(PROMPTS).states, plain)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "sd3_without_t5", "flux"])
def test_every_part_meets_its_inputs_on_the_device(family: str) -> None:
    """On the device without content ("meta"), which refuses to be mixed with others as every device does."""
    device, kind = torch.device("meta"), type(host_of(family))
    pipeline = pipeline_of(family)
    getattr(pipeline, kind.network).to(device)
    host = kind(pipeline, name="away")
    assert (host.device.type, host.pipeline.vae.device.type) == ("meta", "cpu")
    x = torch.zeros(2, host.channels, 8, 8, device=device)
    cond = host.encode(["a", "b"])
    assert cond.states.device == device
    assert host.predict(x, torch.full((2,), 500.0, device=device), cond).device == device
    assert host.pixels(x).device == device
    assert host.latents(torch.zeros(1, 3, 16, 16)).device == device
    with pytest.raises((RuntimeError, NotImplementedError)):
        host.pipeline.vae.decode(x)
    assert host.pipeline.vae.device.type == "cpu"


def test_nothing_is_moved_where_nothing_would_be_won() -> None:
    with pytest.raises(BadRequest, match="on the CPU that is where they lie"):
        load("tiny/sd", offload=True)
    with pytest.raises(BadRequest, match="text-to-image pipelines; tiny/cifar is none"):
        load("tiny/cifar", device="meta", offload=True)
