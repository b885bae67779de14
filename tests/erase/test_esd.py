"""ESD against its paper's formula, written once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hosts_fixtures import sd_pipeline
from naive import own
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import LowRank
from palimpsest.core.errors import BadRequest
from palimpsest.core.trace import Trace
from palimpsest.erase.esd import ESD
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.trajectories import visit
from palimpsest.testing import check_method

STAR = Concept(name="star", prompts=("a red star",))


FAST: dict[str, Any] = {"steps": 3, "batch": 2, "walk_steps": 4, "lr": 1e-3}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd"), request.param), name="small sd")


@pytest.mark.parametrize("walks", ["kept", "fresh", "student"])
def test_the_first_loss_is_the_papers(host: SDHost, walks: Any) -> None:
    seen = []

    class Watched(ESD):
        def _points(self, step: Any) -> Any:
            points = super()._points(step)
            seen.append((points.x, points.t, [step.context.walk.prompts[int(i)] for i in points.row]))
            return points

    trace = Trace()
    Watched(**{**FAST, "steps": 1}, eta=1.5, walks=walks)(host, Request(target=(STAR,)), trace=trace)
    x, t, prompts = seen[0]
    with torch.no_grad():
        null, cond = own(host, host.pipeline.unet, x, t, ["", ""]), own(host, host.pipeline.unet, x, t, prompts)
        expected = (cond - (null - 1.5 * (cond - null))).square().mean()  # the student still is the teacher
    assert trace.log[0][1] == "loss"
    assert trace.log[0][2] == pytest.approx(float(expected), rel=1e-3)


def test_towards_a_replacement_the_anchor_changes(host: SDHost) -> None:
    seen = []

    class Watched(ESD):
        def _points(self, step: Any) -> Any:
            points = super()._points(step)
            seen.append((points.x, points.t, [step.context.walk.prompts[int(i)] for i in points.row]))
            return points

    trace = Trace()
    request = Request(target=(STAR,), toward=(Concept(name="moon"),))
    Watched(**{**FAST, "steps": 1}, eta=0.5)(host, request, trace=trace)
    x, t, prompts = seen[0]
    moons = [p.replace("star", "moon") for p in prompts]
    with torch.no_grad():
        null, cond, moon = (own(host, host.pipeline.unet, x, t, p) for p in (["", ""], prompts, moons))
        expected = (cond - (moon - 0.5 * (cond - null))).square().mean()
    assert trace.log[0][2] == pytest.approx(float(expected), rel=1e-3)


def test_training_lowers_the_loss(host: SDHost) -> None:
    trace = Trace()
    ESD(steps=40, batch=4, walk_steps=5, lr=1e-2)(host, Request(target=(STAR,)), trace=trace)
    losses = [v for _, name, v in trace.log if name == "loss"]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("train", ["xattn", "noxattn", "selfattn", "full"])
def test_it_trains_what_it_says(host: SDHost, train: Any) -> None:
    patch = ESD(**FAST, train=train)(host, Request(target=(STAR,)))
    changed = set(patch.deltas)
    cross = {n for n in changed if ".attn2." in n}
    assert changed
    assert all(n.startswith("unet.") for n in changed)
    if train == "xattn":
        assert changed == cross
    if train == "noxattn":
        assert not cross
        assert not any(n.startswith(("unet.time_embedding", "unet.conv_out", "unet.conv_norm_out")) for n in changed)
        assert any("resnets" in n for n in changed)
    if train == "selfattn":
        assert all(".attn1." in n for n in changed)
    if train == "full":
        assert cross < changed


def test_it_obeys_the_laws(host: SDHost) -> None:
    check_method(ESD(**FAST), host, Request(target=(STAR, Concept(name="moon", kind="style"))))


def test_low_rank_patches_are_low_rank(host: SDHost) -> None:
    patch = ESD(**FAST, rank=2)(host, Request(target=(STAR,)))
    assert all(isinstance(d, LowRank) and d.rank() <= 2 for d in patch.deltas.values())


def test_kept_walks_cost_two_forwards_a_step(host: SDHost) -> None:
    trace = Trace()
    ESD(**{**FAST, "steps": 8})(host, Request(target=(STAR,)), trace=trace)
    rows = 8 * 2  # steps x batch
    assert trace.forwards["denoiser"] == rows * (2 + 1)
    assert trace.calls["text_encoder"] <= 1 + 2 * 2  # once for the method, at most twice for each of two walks


def test_kept_states_are_each_used_once_and_stopped_ones_are_their_rows(host: SDHost) -> None:
    generator = torch.Generator().manual_seed(5)
    every = visit(host, ["a red star", "moon"], 3, generator, steps=4, guidance=3.0)
    assert len(every) == 12
    stops = torch.tensor([2, 0, 3])
    some = visit(host, ["a red star", "moon"], 3, torch.Generator().manual_seed(5), steps=4, guidance=3.0, stops=stops)
    for i, stop in enumerate(stops.tolist()):
        full = every[slice(stop * 3 + i, stop * 3 + i + 1)]
        for name in ("row", "x", "t", "x0_cond", "x0_null"):
            assert torch.allclose(getattr(some, name)[i : i + 1], getattr(full, name), atol=1e-5)


def test_the_student_walks_with_its_own_weights(host: SDHost) -> None:
    losses = {}
    for walks in ("fresh", "student"):
        trace = Trace()
        method = ESD(**{**FAST, "steps": 4, "lr": 0.05}, walks=walks)  # type: ignore[arg-type]
        method(host, Request(target=(STAR,)), trace=trace)
        losses[walks] = [v for _, name, v in trace.log if name == "loss"]
    assert losses["fresh"][0] == pytest.approx(losses["student"][0], rel=1e-4)
    assert losses["fresh"][-1] != pytest.approx(losses["student"][-1], rel=1e-6)


def test_parameters_are_checked() -> None:
    for bad, words in (({"steps": 0}, "steps"), ({"train": "x"}, "xattn"), ({"walks": "x"}, "kept"),
                       ({"walk_steps": 0}, "walk_steps"), ({"batch": 0}, "batch")):  # fmt: skip
        with pytest.raises(BadRequest, match=words):
            replace(ESD(), **bad)
