"""Score forgetting against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hosts_fixtures import fresh_host, host_of
from naive import losses
from palimpsest.core.concept import Concept, Request
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase.score_forgetting import ScoreForgetting, generated, last_time

STAR, MOON = Concept(name="star", prompts=("a red star",)), Concept(name="moon", prompts=("a moon",))


ERASE = Request(target=(STAR,), keep=(MOON,))


def test_score_forgetting_draws_in_one_prediction_whatever_is_asked_for() -> None:
    host = fresh_host("sd")
    settings = {"set_alpha_to_one": True, "timestep_spacing": "trailing"}  # a scheduler that ends without noise
    host.pipeline.scheduler = type(host.pipeline.scheduler).from_config(host.pipeline.scheduler.config, **settings)
    patch = ScoreForgetting(steps=2, batch=4, lr=1e-3)(host, ERASE)
    assert all(n.startswith("unet.") for n in patch.deltas)
    with patch.applied(host):
        z = next(iter(host.walk(["a red star"], [3], Sampling(steps=1)))).x
        with torch.no_grad():
            once = host.decode(generated(host, z, host.encode(["a red star"]), 0.625))
        for steps, guidance in ((1, 1.0), (4, 7.5)):
            found = host.sample(["a red star"], [3], Sampling(steps=steps, guidance=guidance))
            torch.testing.assert_close(found, once, atol=1e-3, rtol=0)
        again = host.sample(["a red star", "a moon"], [4, 3], Sampling(steps=2))
    assert not torch.allclose(again[0], again[1], atol=1e-3)
    assert host.guide is None


def test_score_forgettings_losses_are_the_papers() -> None:
    """At the start generator, fake score and model are one, so that every score is the model's own."""
    from palimpsest.erase import score_forgetting

    host, trace, seen = host_of("sd"), Trace(), []
    inner = host.denoise

    def watch(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.append((x.detach(), t, cond))
        return inner(x, t, cond)

    drew: list[Tensor] = []

    def draw(*args: Any) -> Tensor:
        drew.append(generated(*args))
        return drew[-1]

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(host, "denoise", watch)
        patching.setattr(score_forgetting, "generated", draw)
        method = ScoreForgetting(steps=1, batch=4, guidance=2.0, forget_weight=3.0, forget_share=0.25)
        method(host, ERASE, trace=trace)
    _, (x_f, t, asked), (x_g, t2, asked2), (x_r, t3, both) = seen  # the first is the generator's
    torch.testing.assert_close(x_f, x_g)
    assert torch.equal(t, t2)
    assert torch.equal(t3, t.repeat(2))
    assert torch.equal(x_r, x_f.repeat(2, 1, 1, 1))
    assert torch.equal(asked.states, asked2.states)
    assert torch.allclose(both.states[0], host.encode([""]).states[0], atol=1e-5)  # the target's score answers as ""
    assert torch.equal(both.states[1:4], asked.states[1:])
    assert float(t.max()) <= 0.98 * last_time(host)
    (x0,) = drew
    with torch.no_grad():
        alpha, sigma = host.noise(t)
        fake = host.denoise(x_f, t, asked)
        real, null = host.denoise(x_f, t, both[slice(0, 4)]), host.denoise(x_f, t, host.encode([""]).repeat(4))
        real = null + 2.0 * (real - null)
        learns = ((x_f - alpha * fake) / sigma - (x_f - alpha * x0) / sigma).square().mean()
        size = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
        weight = torch.tensor([3.0, 1.0, 1.0, 1.0]).view(-1, 1, 1, 1)
        generates = (weight * (real - fake) * (fake - x0) / size).mean()
    assert losses(trace)[0] == pytest.approx(float(learns + generates), rel=1e-3)


def test_score_forgettings_networks_learn_from_their_own_losses_only() -> None:
    from palimpsest.erase.score_forgetting import FAKE

    one, two = torch.ones(1), torch.full((1,), 2.0)
    method = ScoreForgetting(steps=1)
    found = method.gradient(None, [{FAKE + "w": one}, {FAKE + "w": two, "w": two}])  # type: ignore[arg-type]
    assert found == {FAKE + "w": one, "w": two}
