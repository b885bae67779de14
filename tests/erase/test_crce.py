"""CRCE against its paper's formula, written once more."""

from __future__ import annotations

from dataclasses import replace
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
from palimpsest.erase.crce import CRCE
from palimpsest.ops.parts import parameters
from palimpsest.train.randomness import generator
from palimpsest.train.walks import KeptWalk

STAR, MOON, RING = Concept(name="star", prompts=("a red star on blue",)), Concept(name="moon"), Concept(name="ring")


TEMPLATES = ("an image of {}", "a photo of {}", "a picture of {}", "a painting of {}", "a drawing of {}")


@pytest.fixture(scope="module")
def host() -> Any:
    return host_of("sd")


QUICK: dict[str, Any] = {"steps": 1, "batch": 2, "walk_steps": 3, "guidance": 2.0}


def test_crces_first_loss_is_the_papers(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, trace = watch(monkeypatch), Trace()
    spoken = replace(STAR, prompts=("a red star on blue", "sun of the night"))
    CRCE(**QUICK, mined=1.0, coref_weight=0.5)(host, Request(target=(spoken,), keep=(RING,)), trace=trace)
    x, t, row = seen[0]
    named = [p for p in _prompts_of(host, spoken) if p != "sun of the night"]
    c = eps(host, x, t, host.encode([named[int(i)] for i in row]).states)
    n, a = (eps(host, x, t, host.encode([p, p]).states) for p in ("", "sun of the night"))
    goal = n - (c - n)
    expected = (c - goal).square().mean() + 0.5 * (a - goal).square().mean()
    assert first_loss(trace) == pytest.approx(float(expected), rel=1e-3)


def test_crce_sorts_what_means_the_target_from_what_looks_like_it(host: Any) -> None:
    method = CRCE(corefs="sun, blob", mined=1.0)
    meant, alike = method._apart(host, STAR, Request(target=(STAR,), keep=(RING,)))
    assert {"sun", "a photo of blob"} <= {p for p, _ in meant}
    assert {p for p, _ in alike} == {"ring", *(t.format("ring") for t in TEMPLATES)}
    mined, left = CRCE(mined=-1.0)._apart(host, STAR, Request(target=(STAR,)))
    assert len(mined) == 8 * (len(TEMPLATES) + 1)  # every neighbour is near enough for this
    assert not left


def test_crce_trains_as_the_paper_does(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of an independent trainer: from the second on, what must stay costs something."""
    walked, trace = recorded(monkeypatch, KeptWalk, "points"), Trace()
    spoken = replace(STAR, prompts=("a red star on blue", "sun of the night"))
    settings: dict[str, Any] = {**QUICK, "steps": 3, "lr": 3e-3, "mined": 1.0, "draws": 2}
    method = CRCE(**settings, coref_weight=0.5, retain_weight=3.0, eta=1.2)
    patch = method(host, Request(target=(spoken,), keep=(RING,)), trace=trace, seed=6)
    named = [p for p in _prompts_of(host, spoken) if p != "sun of the night"]
    rings = ["ring", *(t.format("ring") for t in TEMPLATES)]
    a, b = (host.encode([w]) for w in ("a red star", "ring"))  # up to the name: what follows it says nothing
    near = torch.cosine_similarity(*(c.states[0, int(c.lengths[0]) - 2] for c in (a, b)), dim=0)
    student, held = Naive(host, parameters(host, "xattn", ""), lr=3e-3), []
    for k, (_, at) in enumerate(walked):
        draws = generator(6, "step", k, "draws")
        n, c = old(host, at.x, at.t, ["", ""]), old(host, at.x, at.t, of(named, at))
        goal = n - 1.2 * (c - n)
        loss = mse_loss(own(host, student.net, at.x, at.t, of(named, at)), goal)
        for _ in range(2):
            torch.randint(1, (2,), generator=draws)  # there is one coreference
            loss = loss + 0.5 / 2 * mse_loss(own(host, student.net, at.x, at.t, ["sun of the night"] * 2), goal)
        retained = torch.zeros(())
        for _ in range(2):
            said = [rings[int(i)] for i in torch.randint(len(rings), (2,), generator=draws)]
            off = mse_loss(own(host, student.net, at.x, at.t, said), old(host, at.x, at.t, said))
            retained = retained + 3.0 / 2 * near * off
        held.append(float(retained.detach()))
        loss = loss + retained
        assert losses(trace)[k] == pytest.approx(float(loss.detach()), rel=2e-3)
        student.step(loss)
    assert held[0] < 1e-6 < 0.03 * losses(trace)[-1] < held[-1]  # it weighs enough to be missed
    student.agrees(patch.deltas)
