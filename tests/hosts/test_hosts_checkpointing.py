"""Checkpointing changes what a gradient costs and nothing else: for every system, rule and network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import PROMPTS, folder_of, fresh_host, host_of
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.hosts.checkpointing import checkpoint_blocks
from palimpsest.hosts.diffusion import DiffusionHost
from palimpsest.hosts.load import load
from palimpsest.ops.memory import peak_bytes
from palimpsest.ops.parts import parameters
from palimpsest.train.trained import Trained

FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def checkpointed(family: str) -> DiffusionHost:
    return load(folder_of(family), checkpointing=True)


def noisy(host: DiffusionHost, rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, host.channels, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full(
        (rows,), 500.0
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 2])
def test_gradients_are_the_same_to_the_bit(family: str, rank: int) -> None:
    def gradients(host: DiffusionHost) -> dict[str, Tensor]:
        trained = Trained(host.root, parameters(host, "full", "it"), rank=rank)
        cond = host.encode(PROMPTS[:2])
        with trained.frozen(), trained.student():
            host.denoise(*noisy(host), cond).square().mean().backward(inputs=list(trained.leaves.values()))
        return {name: leaf.grad for name, leaf in trained.leaves.items() if leaf.grad is not None}

    plain, again = gradients(fresh_host(family)), gradients(checkpointed(family))
    assert plain.keys() == again.keys()
    assert plain
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_less_is_held_for_the_gradient(family: str) -> None:
    def held(host: DiffusionHost) -> int:
        trained = Trained(host.root, parameters(host, "full", "it"), rank=1)
        cond = host.encode(PROMPTS[:2])
        cond = type(cond)(states=cond.states, lengths=cond.lengths, pooled=cond.pooled, extra=cond.extra)

        def step() -> None:
            with trained.frozen(), trained.student():
                loss = host.denoise(*noisy(host), cond).square().mean()
                loss.backward(inputs=list(trained.leaves.values()))
            for leaf in trained.leaves.values():
                leaf.grad = None

        return peak_bytes(step)

    assert held(checkpointed(family)) < 0.8 * held(fresh_host(family))


def test_a_third_network_is_itself_when_the_gradient_passes() -> None:
    """Score forgetting differentiates through networks that are no longer there when their blocks compute again."""

    def gradient(host: DiffusionHost) -> Tensor:
        names = parameters(host, "kv", "it")
        trained, cond, (x, t) = Trained(host.root, names), host.encode(PROMPTS[:2]), noisy(host)
        x.requires_grad_(True)
        other = {name: 2 * trained.old[name].detach() for name in names}
        with trained.frozen(), trained.student():
            with trained.holding(other):
                doubled = host.denoise(x, t, cond).square().mean()
            (doubled + host.denoise(x, t, cond).square().mean()).backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(gradient(checkpointed("sd")), gradient(fresh_host("sd")))


def test_a_rule_that_is_gone_when_the_gradient_passes_counts_all_the_same() -> None:
    def gradient(host: DiffusionHost) -> Tensor:
        cond, (x, t) = host.encode(PROMPTS[:2]), noisy(host)
        x.requires_grad_(True)
        with host.attending(lambda name, maps: maps.flip(-1), "cross_attention"):
            loss = host.denoise(x, t, cond).square().mean()
        (module,) = list(host.parts("cross_key").values())[:1]
        handle = module.register_forward_hook(lambda m, args, out: 3 * out)
        loss = loss + host.denoise(x, t, cond).square().mean()
        handle.remove()
        loss.backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(gradient(checkpointed("sd")), gradient(fresh_host("sd")))


def test_the_guard_finds_the_host_as_it_was() -> None:
    host = checkpointed("sd")
    assert host.fingerprint() == host_of("sd").fingerprint()
    with torch.no_grad():
        assert torch.equal(
            host.denoise(*noisy(host), host.encode(PROMPTS[:2])),
            host_of("sd").denoise(*noisy(host), host.encode(PROMPTS[:2])),
        )


def test_what_cannot_is_refused() -> None:
    class Old:
        def enable_gradient_checkpointing(self) -> None: ...

    network: Any = Old()
    with pytest.raises(Unsupported, match=r"takes no --checkpointing.*upgrade diffusers"):
        checkpoint_blocks(network, "it")
    with pytest.raises(BadRequest, match="--checkpointing is for text-to-image pipelines"):
        load("tiny/cifar", checkpointing=True)
