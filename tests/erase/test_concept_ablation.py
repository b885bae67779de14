"""Concept Ablation against its paper's formula, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from hosts_fixtures import sd_pipeline
from naive import Naive, learnt, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.erase import concept_ablation, domain_correction
from palimpsest.erase.concept_ablation import ConceptAblation
from palimpsest.erase.domain_correction import DomainCorrection
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.parts import parameters

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


@pytest.mark.parametrize("objective", ["model", "noise"])
@pytest.mark.parametrize("keep_weight", [0.0, 0.5])
def test_concept_ablation(host: SDHost, monkeypatch: pytest.MonkeyPatch, objective: Any, keep_weight: float) -> None:
    calls = recorded(monkeypatch, concept_ablation, "noised")
    request = Request(target=(STAR,), toward=(MOON,), keep=(RING,))
    method = ConceptAblation(**FAST, prompts=0, objective=objective, keep_weight=keep_weight)
    patch = method(host, request)
    naive = Naive(host, parameters(host, "kv", ""), lr=1e-3, clip=1.0)
    keeping = [*moons(PROMPTS), *(p.replace("star", "ring") for p in PROMPTS)]
    points = [at for _, at in calls]
    for k in range(3):
        at = points.pop(0)
        goal = learnt(host, at) if objective == "noise" else old(host, at.x, at.t, moons(of(PROMPTS, at)))
        loss = mse_loss(own(host, naive.net, at.x, at.t, of(PROMPTS, at)), goal)
        if keep_weight:
            stays = points.pop(0)
            out = own(host, naive.net, stays.x, stays.t, of(keeping, stays))
            loss = loss + keep_weight * mse_loss(out, learnt(host, stays))
        naive.step(naive.gradients(loss))
        assert len(at) == 2, k
    naive.agrees(patch.deltas)


def test_concept_ablation_draws_no_more_than_it_uses_and_trains_at_one_forward_and_one_with_gradients(
    host: SDHost,
) -> None:
    trace = Trace()
    ConceptAblation(**FAST)(host, TO_MOON, trace=trace)
    assert trace.forwards["denoiser"] == 6 * 4 * 2 + 3 * 2 * (1 + 1)  # six pictures, then three steps
    assert trace.forwards["text_encoder"] <= 6 + 6 + 6 + 1
    assert "autoencoder" not in trace.forwards


@pytest.mark.parametrize(
    ("owner", "system"), [(concept_ablation, ConceptAblation), (domain_correction, DomainCorrection)]
)
def test_anchors_are_drawn_in_many_contexts(
    host: SDHost, monkeypatch: pytest.MonkeyPatch, owner: Any, system: Any
) -> None:
    calls = recorded(monkeypatch, owner, "draw")
    system(**{**FAST, "pictures": 60, "batch": 20})(host, TO_MOON)
    said = calls[0][0][1]
    assert len(said) == 60  # one for each picture, of the 200 that are drawn up
    assert list(said[: len(PROMPTS)]) == moons(PROMPTS)
    assert len(set(said)) >= 55
    assert all("moon" in prompt and "star" not in prompt for prompt in said)


def objective(host: SDHost, net: Any, late: Any, early: Any, **w: float) -> Tensor:
    """In the network's own output, whatever it predicts."""

    def of_part(at: Any, sign: float) -> Tensor:
        prompts, none = of(PROMPTS, at), [""] * len(at)
        null, cond = old(host, at.x, at.t, none), old(host, at.x, at.t, prompts)
        goal = null + sign * w["eta"] * (cond - null)
        mine = own(host, net, at.x, at.t, prompts)
        return mse_loss(mine, goal) + w["keep"] * mse_loss(own(host, net, at.x, at.t, none), null)

    return of_part(late, -1) + w["first"] * of_part(early, 1)
