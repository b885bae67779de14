"""SalUn against its paper's formula, written once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from hosts_fixtures import sd_pipeline
from naive import Naive, learnt, of, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.erase import salun
from palimpsest.erase.salun import SalUn
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.parts import parameters

STAR, MOON, RING = (Concept(name=n, prompts=(f"a red {n}",)) for n in ("star", "moon", "ring"))


PROMPTS = ["a red star", "an image of star", "a photo of star", "a picture of star", "a painting of star",
           "a drawing of star"]  # fmt: skip


FAST: dict[str, Any] = {"steps": 3, "batch": 2, "walk_steps": 4, "lr": 1e-3, "guidance": 2.0}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd"), request.param), name="small sd")


def moons(prompts: list[str]) -> list[str]:
    return [p.replace("star", "moon") for p in prompts]


def test_salun(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, salun, "noised")
    method = SalUn(**FAST, share=0.3, keep_weight=0.5, mask_guidance=2.0)
    patch = method(host, Request(target=(STAR,), keep=(MOON,)))
    every, *points = [at for _, at in calls]
    names = parameters(host, "full", "")

    scout = Naive(host, names, lr=0.0)
    sums = {n: torch.zeros_like(p) for n, p in scout.trained.items()}
    for i in range(0, 6, 2):
        at = every[i : i + 2]
        cond, null = own(host, scout.net, at.x, at.t, of(PROMPTS, at)), own(host, scout.net, at.x, at.t, [""] * 2)
        loss = -mse_loss((1 + 2.0) * cond - 2.0 * null, learnt(host, at))
        sums = {n: sums[n] + g for n, g in scout.gradients(loss).items()}
    sizes = torch.cat([g.abs().flatten() for g in sums.values()])
    least = sizes.sort(descending=True).values[round(0.3 * len(sizes)) - 1]

    naive = Naive(host, names, lr=1e-3)
    for _ in range(3):
        f, r = points.pop(0), points.pop(0)
        with torch.no_grad():
            goal = own(host, naive.net, f.x, f.t, moons(of(PROMPTS, f)))
        loss = mse_loss(own(host, naive.net, f.x, f.t, of(PROMPTS, f)), goal)
        out = own(host, naive.net, r.x, r.t, of(moons(PROMPTS), r))
        loss = loss + 0.5 * mse_loss(out, learnt(host, r))
        naive.step({n: g * (sums[n].abs() >= least) for n, g in naive.gradients(loss).items()})
    naive.agrees(patch.deltas)
    moved = sum(int((d.dense(scout.trained[n].shape) != 0).sum()) for n, d in patch.deltas.items())
    assert moved <= 0.301 * len(sizes)


def test_salun_labels() -> None:
    two = Request(target=(STAR, Concept(name="key")), keep=(MOON, RING))
    asked, answers, texts = SalUn()._labels(two)
    assert asked[0] == "a red star"
    assert [texts[i] for i in answers[0]] == ["a red moon", "a red ring"]
    assert [texts[i] for i in answers[asked.index("a photo of key")]] == ["a photo of moon", "a photo of ring"]
    _, answers, texts = SalUn()._labels(replace(two, toward=(Concept(name="cup"),)))
    assert [texts[i] for i in answers[0]] == ["a red cup"]
    _, answers, texts = SalUn()._labels(replace(two, keep=()))
    assert [texts[i] for i in answers[0]] == [""]
