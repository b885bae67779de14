"""Domain correction against its paper's formula, written once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import mse_loss

from hosts_fixtures import sd_pipeline
from naive import Naive, learnt, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.erase import domain_correction
from palimpsest.erase.domain_correction import BESIDE, DomainCorrection
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


def patches(weights: Mapping[str, Tensor]) -> nn.Module:
    """The discriminator for latents of 4 x 8 x 8: two halvings."""
    net = nn.Sequential(
        nn.Conv2d(4, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128, track_running_stats=False), nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 4, 1, 1),
    )  # fmt: skip
    net.load_state_dict({n.removeprefix(BESIDE): w for n, w in weights.items()})
    return net


def test_domain_correction(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, domain_correction, "noised")
    starts = recorded(monkeypatch, DomainCorrection, "free")
    settings = {**FAST, "prompts": 0, "steps": 4, "warmup": 0.25, "discriminator_lr": 2e-3, "surgery": 0.8}
    patch = DomainCorrection(**settings)(host, Request(target=(STAR,), toward=(MOON,), keep=(RING,)))
    judge = patches(starts[0][1])
    adam = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.999))
    naive = Naive(host, parameters(host, "xattn", ""), lr=1e-3, clip=1.0)
    keeping = [*moons(PROMPTS), *(p.replace("star", "ring") for p in PROMPTS)]
    points, conflicts = [at for _, at in calls], 0

    def clean(at: Any, out: Tensor) -> Tensor:
        alpha, sigma = host.noise(at.t)
        return (at.x - sigma * out) / alpha if host.prediction == "epsilon" else alpha * at.x - sigma * out

    def score(latents: Tensor, label: float) -> Tensor:
        return bce(latents, torch.full_like(latents, label))

    for k in range(4):
        at = points.pop(0)
        anchor = clean(at, old(host, at.x, at.t, moons(of(PROMPTS, at))))
        target = clean(at, own(host, naive.net, at.x, at.t, of(PROMPTS, at)))
        if k >= 1:
            real_fake = judge(torch.cat([anchor, target]))  # batch statistics are those of both
            stays = points.pop(0)
            keep = mse_loss(own(host, naive.net, stays.x, stays.t, of(keeping, stays)), learnt(host, stays))
            g, h = naive.gradients(score(judge(target), 0.0)), naive.gradients(keep)
            for n in g:
                dot = (g[n] * h[n]).sum()
                if dot < 0:
                    g[n], conflicts = g[n] - 0.8 * dot / h[n].square().sum() * h[n], conflicts + 1
        adam.zero_grad()
        real_fake = judge(torch.cat([anchor, target.detach()]))
        (score(real_fake[:2], 0.0) + score(real_fake[2:], 1.0)).backward()
        adam.step()
        if k >= 1:
            naive.step(g)
    assert conflicts > 0
    assert not points
    naive.agrees(patch.deltas)


@pytest.mark.parametrize(("side", "levels"), [(2, 1), (4, 2), (8, 3), (16, 4), (64, 4), (128, 4)])
def test_the_discriminator_fits_all_latents(side: int, levels: int) -> None:
    net = domain_correction.discriminator(16, side).to_empty(device="cpu")
    assert net(torch.zeros(2, 16, side, side)).shape[:2] == (2, 1)
    assert sum(isinstance(m, nn.Conv2d) for m in net) <= 1 + levels
