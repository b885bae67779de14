"""TRCE against its paper's formula, written once more."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

from hosts_fixtures import sd_pipeline
from naive import Naive, losses, old, own
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.erase.trce import TRCE
from palimpsest.hosts.sd import SDHost
from palimpsest.ops.anchors import without
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.trained import Trained

STAR, MOON, HOUSE = Concept(name="star"), Concept(name="moon"), Concept(name="house")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    torch.manual_seed(0)
    return SDHost(sd_pipeline(tmp_path_factory.mktemp("sd")), name="small sd")


def test_trce_first_stage_is_the_papers_solve(host: SDHost) -> None:
    method = TRCE(steps=0, ridge=0.1, keep_weight=0.3, weights=(0.0, 1.0, 0.0, 0.5))
    concept = Concept(name="star", prompts=("a red star", "star on blue"))
    found = method.closed_form(
        host, [("a red star", "a red"), ("star on blue", "on blue")], Request(target=(concept,), keep=(HOUSE,))
    )
    layers = {**host.parts("cross_key"), **host.parts("cross_value")}
    kept = host.encode(["", "house", *(t.format("house") for t in _templates())]).states.flatten(0, 1).double()
    for name, layer in layers.items():
        w = layer.get_parameter("weight").detach().double()
        left, right = 0.1 * w, 0.1 * torch.eye(w.shape[1], dtype=torch.float64)
        for before, after in (("a red star", "a red"), ("star on blue", "on blue")):
            a, b = host.encode([before]), host.encode([after])
            for back, weight in ((1, 1.0), (2, 0.5)):
                e = a.states[0, int(a.lengths[0]) - back].double()
                v = b.states[0, int(b.lengths[0]) - back].double()
                left = left + weight / 2 * torch.outer(w @ v, e)
                right = right + weight / 2 * torch.outer(e, e)
        gram = kept.T @ kept / len(kept)
        expected = (left + 0.3 * w @ gram) @ torch.linalg.inv(right + 0.3 * gram) - w
        change = found[f"{name}.weight"].dense(w.shape).double()
        assert (change - expected).norm() <= 1e-4 * expected.norm()


def _templates() -> tuple[str, ...]:
    from palimpsest.ops.prompts import TEMPLATES

    return TEMPLATES["object"]


def test_trce_second_stage_is_the_papers_loss(host: SDHost) -> None:
    steering = TRCE(steps=1, batch=3, walks=2, walk_steps=4, eta=2.0, margin=0.5, preserve=7.0)
    pairs = [("a red star", "a red"), ("star", "")]
    poles = steering._poles(host, pairs, torch.Generator().manual_seed(3))
    assert len(poles.at) == 2 * 2  # the first half of four steps
    trained = Trained(host.root, steering.trains(host))
    request = Request(target=(STAR,))
    with torch.no_grad():
        poles = steering.prepare(host, request, data=poles, seed=0, trace=Trace())
        step = TrainStep(
            host=host, request=request, index=0, total=1, batch=3, seed=5, data=None, context=poles, trace=Trace(),
            trained=trained,
        )  # fmt: skip
        found = steering.loss(step)
        draws = step.generator()
        rows = torch.randint(len(poles.at), (3,), generator=draws).tolist()
        stays = torch.randint(len(poles.stay or ()), (3,), generator=draws).tolist()
        null, turned = host.encode([""]), 0.0
        for r in rows:
            at = poles.at[torch.tensor([r])]
            before, after = (host.encode([p]) for p in pairs[int(at.row)])
            alpha, sigma = host.noise(at.t)
            noise = {}
            for key, cond in (("old", before), ("new", after), ("null", null)):
                noise[key] = (at.x - alpha * host.denoise(at.x, at.t, cond)) / sigma
            good = noise["new"] + 2.0 * (noise["new"] - noise["null"])
            bad = noise["old"] + 2.0 * (noise["old"] - noise["null"])
            for key in ("old", "null"):
                gap = (noise[key] - good).square().mean() - (noise[key] - bad).square().mean() + 0.5
                turned += max(0.0, float(gap)) / 2 / 3
    assert stays
    assert float(found) == pytest.approx(turned, rel=1e-3, abs=1e-5)  # nothing has moved yet, so nothing is to stay


def test_trce_leaves_the_name_out() -> None:
    assert without("a red star on blue", "star") == "a red on blue"
    assert without("star", "star") == ""
    assert without("something else", "star") == ""


def test_trce_steers_as_the_paper_does(host: SDHost) -> None:
    """Three steps of an independent trainer: from the second on, what unconditional walks say costs something."""
    method = TRCE(steps=3, lr=3e-3, batch=2, walks=2, walk_steps=4, eta=2.0, margin=0.5, preserve=3000.0)
    pairs, request, trace = [("a red star", "a red"), ("star", "")], Request(target=(STAR,)), Trace()
    poles = method._poles(host, pairs, torch.Generator().manual_seed(3))
    deltas = method.fit(host, request, data=poles, seed=5, trace=trace).deltas  # type: ignore[arg-type]
    student, stayed = Naive(host, method.trains(host), lr=3e-3), []
    assert poles.stay is not None
    for k in range(3):
        draws = generator(5, "step", k)
        rows = torch.randint(len(poles.at), (2,), generator=draws)
        at, turned = poles.at[rows], torch.zeros(())
        stays = poles.stay[torch.randint(len(poles.stay), (2,), generator=draws)]
        names, safe = ([pair[i] for pair in (pairs[int(r)] for r in at.row)] for i in (0, 1))
        null, named, neutral = (old(host, at.x, at.t, texts) for texts in (["", ""], names, safe))
        good, bad = neutral + 2.0 * (neutral - null), named + 2.0 * (named - null)
        for texts in (names, ["", ""]):
            now = own(host, student.net, at.x, at.t, texts)
            for i in range(2):
                gap = mse_loss(now[i], good[i]) - mse_loss(now[i], bad[i]) + 0.5
                turned = turned + gap.clamp(min=0) / 2 / 2
        still = own(host, student.net, stays.x, stays.t, ["", ""])
        keep = mse_loss(still, old(host, stays.x, stays.t, ["", ""]))
        loss = turned + 3000.0 * keep
        stayed.append(3000.0 * float(keep.detach()))
        assert losses(trace)[k] == pytest.approx(float(loss.detach()), rel=2e-3)
        student.step(loss)
    assert stayed[0] < 1e-6 < 0.03 * losses(trace)[-1] < stayed[-1]  # it weighs enough to be missed
    student.agrees(deltas)
