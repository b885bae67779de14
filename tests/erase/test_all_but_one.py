"""All but One against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from hosts_fixtures import sd_pipeline
from naive import Naive, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.erase.all_but_one import AllButOne
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.parts import parameters
from palimpsest.train.walks import KeptWalk

STAR, MOON, RING = (Concept(name=n, prompts=(f"a red {n}",)) for n in ("star", "moon", "ring"))


TO_MOON = Request(target=(STAR,), toward=(MOON,))


PROMPTS = ["a red star", "an image of star", "a photo of star", "a picture of star", "a painting of star",
           "a drawing of star"]  # fmt: skip


FAST: dict[str, Any] = {"steps": 3, "batch": 2, "walk_steps": 4, "lr": 1e-3, "guidance": 2.0}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd"), request.param), name="small sd")


def moons(prompts: list[str]) -> list[str]:
    return [p.replace("star", "moon") for p in prompts]


@pytest.mark.parametrize("toward", [False, True])
def test_all_but_one(host: SDHost, monkeypatch: pytest.MonkeyPatch, toward: bool) -> None:
    calls = recorded(monkeypatch, KeptWalk, "points")
    method = AllButOne(**FAST, eta=0.7, keep_weight=0.4)
    patch = method(host, TO_MOON if toward else Request(target=(STAR,)))
    naive = Naive(host, parameters(host, "xattn", ""), lr=1e-3)
    assert len(calls) == method.steps
    for _, at in calls:
        prompts, none = of(PROMPTS, at), [""] * 2
        null = old(host, at.x, at.t, none)
        if toward:
            guidance = old(host, at.x, at.t, moons(prompts)) - null
        else:
            guidance = -0.7 * (old(host, at.x, at.t, prompts) - null)
        mine = own(host, naive.net, at.x, at.t, none)
        loss = mse_loss(own(host, naive.net, at.x, at.t, prompts) - mine, guidance) + 0.4 * mse_loss(mine, null)
        naive.step(naive.gradients(loss))
    naive.agrees(patch.deltas)


def test_all_but_one_costs_what_its_formula_needs(host: SDHost) -> None:
    trace = Trace()
    AllButOne(**{**FAST, "steps": 8})(host, TO_MOON, trace=trace)
    assert trace.forwards["denoiser"] == 8 * 2 * (2 + 1 + 2)
