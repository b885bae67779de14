"""RealEra against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from erase_fixtures import (
    eps,
    layers,
)
from hosts_fixtures import host_of
from naive import Naive, losses, old, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.trace import Trace
from palimpsest.erase import realera
from palimpsest.erase.realera import RealEra, perturbed
from palimpsest.ops.prompts import kept
from palimpsest.train.randomness import generator
from palimpsest.train.walks import KeptWalk

STAR, MOON, RING = Concept(name="star", prompts=("a red star on blue",)), Concept(name="moon"), Concept(name="ring")


TEMPLATES = ("an image of {}", "a photo of {}", "a picture of {}", "a painting of {}", "a drawing of {}")


@pytest.fixture(scope="module")
def host() -> Any:
    return host_of("sd")


def test_perturbed_states_keep_their_norm_and_their_cosine() -> None:
    g = torch.Generator().manual_seed(0)
    e = torch.randn(500, 32, generator=g)
    moved = perturbed(e, 0.7, 0.9, g)
    cosine = torch.cosine_similarity(e, moved)
    assert 0.7 <= float(cosine.min()) < 0.72 < 0.88 < float(cosine.max()) <= 0.9 + 1e-5
    torch.testing.assert_close(moved.norm(dim=1), e.norm(dim=1))


def test_realera_without_neighbours_and_lora_is_the_closed_form(host: Any) -> None:
    request = Request(target=(MOON,), keep=(RING,))
    patch = RealEra(steps=1, lr=0.0, walk_steps=2, neighbours=0, keep_weight=0.6, ridge=0.3)(host, request)
    texts, d = ["{}", *TEMPLATES], next(iter(layers(host).values())).shape[1]

    def tail(text: str) -> Tensor:
        cond = host.encode([text])
        return cond.states[0, int(cond.lengths[0]) - 2 :].double()

    empty = host.encode([""]).states[0].double()
    e = [tail(t.format("moon")) for t in texts]
    a = torch.cat([empty[: len(part)] for part in e])
    k, e = torch.cat([tail(t.format("ring")) for t in texts]), torch.cat(e)
    right = torch.linalg.inv(e.T @ e + 0.6 * k.T @ k + 0.3 * torch.eye(d).double())
    for name, w in layers(host).items():
        expected = (w @ a.T @ e + 0.6 * w @ k.T @ k + 0.3 * w) @ right - w
        assert (patch.deltas[name].dense(w.shape).double() - expected).norm() < 1e-3 * expected.norm()


def test_realera_moves_neighbours_with_the_concept(host: Any) -> None:
    """A layer's answer to states near the concept's comes closer to the anchor's; far ones stay where they were."""
    request = Request(target=(MOON,))
    patch = RealEra(steps=1, lr=0.0, walk_steps=2, neighbours=40, near=0.9, far=0.3)(host, request)
    g = torch.Generator().manual_seed(7)
    cond, empty = host.encode(["moon"]), host.encode([""]).states[0, 0].double()
    e = cond.states[0, int(cond.lengths[0]) - 2].double()
    near, far = (perturbed(e.repeat(200, 1), low, high, g) for low, high in ((0.9, 1.0), (0.0, 0.3)))
    for name, w in layers(host).items():
        change = patch.deltas[name].dense(w.shape).double()
        gap = lambda z, c=change, w=w: (z @ (w + c).T - empty @ w.T).norm()  # noqa: E731
        assert gap(near) < 0.9 * ((near - empty) @ w.T).norm()
        moved = lambda z, c=change, w=w: (z @ c.T).norm() / (z @ w.T).norm()  # noqa: E731
        assert moved(far) < 0.8 * moved(near)


def test_realera_refuses_neighbourhoods_that_meet() -> None:
    with pytest.raises(BadRequest, match="far < near"):
        RealEra(near=0.4, far=0.5)


def test_realeras_lora_trains_as_the_paper_does(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of an independent trainer: from the second on, what lies beyond the concept costs something."""
    walked, moved = recorded(monkeypatch, KeptWalk, "points"), recorded(monkeypatch, realera, "_moved")
    method = RealEra(steps=3, lr=0.02, rank=2, batch=3, walk_steps=3, neighbours=0, beyond=20.0, near=0.9, far=0.5)
    request, trace, lora = Request(target=(MOON,), keep=(RING,)), Trace(), generator(8, "lora").initial_seed()
    deltas = method.fit(host, request, data={}, seed=lora, trace=trace).deltas  # type: ignore[arg-type]
    student, held = Naive(host, sorted(layers(host)), lr=0.02, rank=2, seed=lora), []
    stays = host.encode(kept(request)).states
    for k, (_, at) in enumerate(walked):
        (_, near), (_, far) = moved[2 * k], moved[2 * k + 1]
        beyond = far.states.clone()
        same = [[torch.equal(s, b) for s in stays] for b in (host.encode(kept(request)).states)]
        assert all(any(row) for row in same)
        draws = generator(lora, "step", k, "neighbours")
        for cond in (near, far):  # what the two perturbations drew comes first
            torch.randn(cond.states.flatten(0, 1).shape, generator=draws)
            torch.rand(cond.states.shape[0] * cond.states.shape[1], 1, generator=draws)
        rows = torch.randint(len(stays), (2,), generator=draws)  # half of three, rounded up
        beyond[:2] = stays[rows]
        goal, was = old(host, at.x, at.t, [""] * 3), eps(host, at.x, at.t, beyond)
        off = mse_loss(student.net(at.x, at.t, encoder_hidden_states=beyond).sample, was)
        loss = mse_loss(student.net(at.x, at.t, encoder_hidden_states=near.states).sample, goal) + 20.0 * off
        held.append(20.0 * float(off.detach()))
        assert losses(trace)[k] == pytest.approx(float(loss.detach()), rel=2e-3)
        student.step(loss)
    assert held[0] < 1e-6 < 0.03 * losses(trace)[-1] < held[-1]  # it weighs enough to be missed
    student.agrees(deltas)
