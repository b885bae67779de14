"""ANT against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from hosts_fixtures import sd_pipeline
from naive import Naive, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.sampling import Sampling
from palimpsest.core.trace import Trace
from palimpsest.erase import ant
from palimpsest.erase.ant import ANT
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


def objective(host: SDHost, net: Any, late: Any, early: Any, **w: float) -> Tensor:
    """In the network's own output, whatever it predicts."""

    def of_part(at: Any, sign: float) -> Tensor:
        prompts, none = of(PROMPTS, at), [""] * len(at)
        null, cond = old(host, at.x, at.t, none), old(host, at.x, at.t, prompts)
        goal = null + sign * w["eta"] * (cond - null)
        mine = own(host, net, at.x, at.t, prompts)
        return mse_loss(mine, goal) + w["keep"] * mse_loss(own(host, net, at.x, at.t, none), null)

    return of_part(late, -1) + w["first"] * of_part(early, 1)


def ratio(host: SDHost, t: Tensor) -> Tensor:
    alpha, sigma = host.noise(t)
    return (sigma / alpha).flatten()


def middle(host: SDHost) -> float:
    """sigma / alpha between the second and the third of four steps."""
    return float(torch.cat([ratio(host, s.t) for s in host.walk(["star"], [0], Sampling(steps=4))])[1:3].mean())


def test_ant(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, ANT, "_objective")
    weights = {"eta": 0.9, "keep": 0.5, "first": 0.7}
    method = ANT(**FAST, eta=0.9, keep_weight=0.5, early_weight=0.7, early=middle(host), groups=2, mask_prompts=2,
                 mask_points=2)  # fmt: skip
    patch = method(host, Request(target=(STAR,)))
    names, points = parameters(host, "full", ""), [args[3:5] for args, _ in calls]

    scout, masks = Naive(host, names, lr=0.0), dict.fromkeys(names, True)
    for _ in range(4):
        sums = {n: torch.zeros_like(p) for n, p in scout.trained.items()}
        for late, early in (points.pop(0), points.pop(0)):
            for n, g in scout.gradients(objective(host, scout.net, late, early, **weights)).items():
                sums[n] = sums[n] + g
        for n, g in sums.items():
            sizes = g.abs().flatten().sort(descending=True).values
            masks[n] = masks[n] & (g.abs() >= sizes[round(0.5 * len(sizes)) - 1])
    naive = Naive(host, names, lr=1e-3)
    for late, early in points:
        loss = objective(host, naive.net, late, early, **weights)
        naive.step({n: g * masks[n] for n, g in naive.gradients(loss).items()})
    naive.agrees(patch.deltas, ties=6)  # of 64,796
    assert all(bool((ratio(host, early.t) > method.early).all()) for _, early in points)
    assert all(bool((ratio(host, late.t) < method.early).all()) for late, _ in points)
    shared = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert 0 < shared < 0.5


def test_every_second_walk_of_ant_turns_away_after_its_early_steps(host: SDHost) -> None:
    method = ANT(**FAST, eta=0.9, early=middle(host))
    context = ant.Prepared(prompts=PROMPTS, cond=host.encode(PROMPTS), null=host.encode([""]))
    late, early = method._walk(host, context, torch.tensor([0, 1]), torch.Generator().manual_seed(3))
    assert len(late) == len(early) == 4
    both = ant.Visited.cat([early, late])
    for row, strength in ((0, 1.0), (1, -0.9)):
        at = both[both.row == row]
        at = at[at.t.argsort(descending=True)]
        alpha, sigma = host.noise(at.t)
        sign = torch.where(ratio(host, at.t) > method.early, 1.0, strength).view(-1, 1, 1, 1)
        x0 = at.x0_null + 2.0 * sign * (at.x0_cond - at.x0_null)
        noise = (at.x - alpha * x0) / sigma
        assert torch.allclose(at.x[1:], (alpha[1:] * x0[:-1] + sigma[1:] * noise[:-1]), atol=1e-3)
    assert host.guide is None


def test_ant_without_masks_trains_all_and_in_low_rank(host: SDHost) -> None:
    trace = Trace()
    method = ANT(**FAST, share=1.0, rank=1, early=middle(host))
    patch = method(host, Request(target=(STAR, MOON)), trace=trace)
    assert any(".resnets." in n for n in patch.deltas)
    assert trace.forwards["denoiser"] == 4 * 2 * 2 + 3 * 2 * 4  # one walk, three steps


def test_ant_says_so_where_no_step_is_late(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ANT, "_early", lambda self, host, t: torch.ones(len(t), 1, 1, 1, dtype=torch.bool))
    with pytest.raises(BadRequest, match="walk of 4"):
        ANT(**FAST)(host, Request(target=(STAR,)))
