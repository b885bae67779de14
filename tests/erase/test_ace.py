"""ACE against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from erase_fixtures import (
    _prompts_of,
    eps,
    first_loss,
    watch,
)
from hosts_fixtures import host_of
from naive import Naive, losses, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.erase.ace import ACE
from palimpsest.ops.parts import transformers
from palimpsest.train.randomness import generator
from palimpsest.train.walks import KeptWalk

STAR, MOON, RING = Concept(name="star", prompts=("a red star on blue",)), Concept(name="moon"), Concept(name="ring")


@pytest.fixture(scope="module")
def host() -> Any:
    return host_of("sd")


QUICK: dict[str, Any] = {"steps": 1, "batch": 2, "walk_steps": 3, "guidance": 2.0}


def test_aces_first_loss_is_the_papers(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, trace = watch(monkeypatch), Trace()
    request = Request(target=(STAR,), keep=(RING,))
    ACE(**QUICK, eta=2.0, correction=1.5, null_weight=0.7, prior_weight=0.4, priors=3)(host, request, trace=trace)
    x, t, row = seen[0]
    asked = [_prompts_of(host, STAR)[int(i)] for i in row]
    ring, cond = host.encode(["ring"]), host.encode(asked)
    c, n = eps(host, x, t, cond.states), eps(host, x, t, host.encode(["", ""]).states)
    p = eps(host, x, t, ring.states.expand(2, -1, -1))
    own = cond.states[torch.arange(2), cond.lengths - 2]
    w = torch.cosine_similarity(own, ring.states[0, ring.lengths - 2]).clamp(min=0)[:, None, None, None]
    null = n + 2.0 * (c - n) - 1.5 * 3 * w * (p - n)
    goal = n - 2.0 * (c - n)
    expected = 0.7 * (n - null).square().mean() + 0.3 * (c - goal).square().mean()
    assert first_loss(trace) == pytest.approx(0.6 * float(expected), rel=1e-3)


def test_ace_trains_as_the_paper_does(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of an independent trainer: from the second on, the prior concepts cost something."""
    walked, trace = recorded(monkeypatch, KeptWalk, "points"), Trace()
    weights: dict[str, Any] = {"eta": 2.0, "correction": 1.5, "null_weight": 0.7, "prior_weight": 0.4, "priors": 3}
    method = ACE(**{**QUICK, "steps": 3, "lr": 0.02}, rank=2, **weights)
    patch = method(host, Request(target=(STAR,), keep=(RING, MOON)), trace=trace, seed=4)
    student, priced = Naive(host, transformers(host, ""), lr=0.02, rank=2, seed=4), []
    others = host.encode(["ring", "moon"])
    far = others.states[torch.arange(2), others.lengths - 2]
    for k, (_, at) in enumerate(walked):
        prompts = of(_prompts_of(host, STAR), at)
        n, c = old(host, at.x, at.t, ["", ""]), old(host, at.x, at.t, prompts)
        rows = torch.randint(2, (2, 3), generator=generator(4, "step", k, "priors"))
        cond, correction, prior = host.encode(prompts), torch.zeros_like(n), torch.zeros(())
        for i in range(2):
            mine = cond.states[i, cond.lengths[i] - 2]
            for j in rows[i].tolist():
                x, t, states = at.x[i : i + 1], at.t[i : i + 1], others.states[j : j + 1]
                was = eps(host, x, t, states)
                correction[i] += torch.cosine_similarity(mine, far[j], dim=0).clamp(min=0) * (was[0] - n[i])
                prior = prior + mse_loss(student.net(x, t, encoder_hidden_states=states).sample, was) / 6
        null, goal = n + 2.0 * (c - n) - 1.5 * correction, n - 2.0 * (c - n)
        loss = 0.6 * 0.7 * mse_loss(own(host, student.net, at.x, at.t, ["", ""]), null)
        loss = loss + 0.6 * 0.3 * mse_loss(own(host, student.net, at.x, at.t, prompts), goal) + 0.4 * prior
        priced.append(0.4 * float(prior.detach()))
        assert losses(trace)[k] == pytest.approx(float(loss.detach()), rel=2e-3)
        student.step(loss)
    assert priced[0] < 1e-6 < 0.03 * losses(trace)[-1] < priced[-1]  # it weighs enough to be missed
    student.agrees(patch.deltas)
