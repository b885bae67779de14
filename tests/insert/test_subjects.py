"""Systems that learn a newcomer from pictures, against their papers' formulas, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss

from erase_fixtures import pictures, small_sd
from naive import Naive, learnt, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Pictures
from palimpsest.hosts.sd import SDHost
from palimpsest.insert.cat import CAT
from palimpsest.insert.dreambooth import DreamBooth
from palimpsest.insert.sude import SuDe
from palimpsest.ops.parts import parameters
from palimpsest.train import subject

SKS = Request(target=(Concept(name="sks dog"),), toward=(Concept(name="dog"),))
CAPTIONS = ("a red sks dog", "sks dog in a garden", "a sketch of a sks dog")
TWINS = ["a red dog", "dog in a garden", "a sketch of a dog"]
FAST: dict[str, Any] = {"steps": 3, "batch": 2, "lr": 1e-3, "class_pictures": 3, "class_steps": 2, "train": "kv"}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SDHost:
    return small_sd(tmp_path_factory.mktemp("sd"), request.param)


def references(**facts: Any) -> Pictures:
    return pictures(3, captions=CAPTIONS, **facts)


def masks() -> Tensor:
    marks = torch.zeros(3, 1, 16, 16)
    marks[0, :, :8], marks[1, :, :, 4:] = 1.0, 0.5  # the third marks nothing
    return marks


def squared(host: SDHost, net: Any, at: Any, prompts: Any) -> Tensor:
    return (own(host, net, at.x, at.t, of(prompts, at)) - learnt(host, at)).square()


def over(errors: Tensor, marks: Tensor) -> Tensor:
    """The mean of each picture under its mask, divided by the mask's area, picture by picture."""
    total = torch.zeros(())
    for error, mark in zip(errors, marks, strict=True):
        weights = interpolate(mark[None], size=error.shape[-2:], mode="area")[0].expand_as(error)
        total = total + ((error * weights).sum() / weights.sum() if weights.sum() else error.mean())
    return total / len(errors)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prior", [0.0, 0.7])
@pytest.mark.parametrize("rank", [0, 2])
def test_dreambooth(host: SDHost, monkeypatch: pytest.MonkeyPatch, masked: bool, prior: float, rank: int) -> None:
    calls = recorded(monkeypatch, subject, "noised")
    drawn = recorded(monkeypatch, subject, "draw")
    method = DreamBooth(**FAST, prior=prior, rank=rank, masked=masked)
    patch = method(host, SKS, data={"references": references(masks=masks())})
    assert [call[0][1:3] for call in drawn] == ([(TWINS, 3)] if prior else [])
    naive = Naive(host, parameters(host, "kv", ""), lr=1e-3, rank=rank)
    points = [at for _, at in calls]
    for _ in range(3):
        at = points.pop(0)
        errors = squared(host, naive.net, at, CAPTIONS)
        loss = over(errors, masks()[at.row]) if masked else errors.mean()
        if prior:
            loss = loss + prior * squared(host, naive.net, points.pop(0), TWINS).mean()
        naive.step(loss)
    assert not points
    naive.agrees(patch.deltas)


def test_cat(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, subject, "noised")
    patch = CAT(**FAST, rank=0, keep=0.6)(host, SKS, data={"references": references()})
    naive = Naive(host, parameters(host, "kv", ""), lr=1e-3)
    for _, at in calls:
        loss = squared(host, naive.net, at, CAPTIONS).mean()
        twins = of(TWINS, at)
        stays = mse_loss(own(host, naive.net, at.x, at.t, twins), old(host, at.x, at.t, twins))
        naive.step(loss + 0.6 * stays)
    assert len(calls) == 3
    naive.agrees(patch.deltas)


def test_sude(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, subject, "noised")
    patch = SuDe(**FAST, rank=0, prior=0.0, weight=5.0)(host, SKS, data={"references": references()})
    naive, active = Naive(host, parameters(host, "kv", ""), lr=1e-3), 0
    for _, at in calls:
        says = own(host, naive.net, at.x, at.t, of(CAPTIONS, at))
        of_class = old(host, at.x, at.t, of(TWINS, at))
        of_any = old(host, at.x, at.t, [""] * len(at))
        terms = torch.zeros(())
        for one, cls, nothing in zip(says, of_class, of_any, strict=True):
            ratio = mse_loss(one, cls) - mse_loss(one, nothing)
            least = -mse_loss(cls, nothing)
            if ratio > least:
                active, terms = active + 1, terms + ratio - least
        naive.step((says - learnt(host, at)).square().mean() + 5.0 * terms / len(at))
    assert active
    naive.agrees(patch.deltas)


def test_newcomers_are_learned_each_from_its_own_pictures(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Request(
        target=(Concept(name="sks dog"), Concept(name="zwx cat")), toward=(Concept(name="dog"), Concept(name="cat"))
    )
    said = ("a sks dog", "a red zwx cat")
    both = pictures(2, captions=said, columns={"newcomer": ("sks dog", "zwx cat")})
    drawn = recorded(monkeypatch, subject, "draw")
    DreamBooth(**{**FAST, "steps": 1})(host, two, data={"references": both})
    assert drawn[0][0][1] == ["a dog", "a red cat"]
    with pytest.raises(BadRequest, match="nothing says which"):
        DreamBooth(**FAST)(host, two, data={"references": pictures(2, captions=said)})
    one = pictures(2, captions=said, columns={"newcomer": ("sks dog", "sks dog")})
    with pytest.raises(BadRequest, match="'zwx cat'"):
        DreamBooth(**FAST)(host, two, data={"references": one})


@pytest.mark.parametrize(
    ("request_", "data", "why"),
    [
        (Request(target=SKS.target), {}, "--like"),
        (SKS, {"captions": ()}, "captions"),
        (SKS, {"captions": ("a dog",) * 3}, "does not say 'sks dog'"),
    ],
)
def test_what_cannot_be_learned_is_said(host: SDHost, request_: Request, data: Any, why: str) -> None:
    facts = {"captions": CAPTIONS, **data}
    with pytest.raises(BadRequest, match=why):
        DreamBooth(**FAST)(host, request_, data={"references": pictures(3, **facts)})


def test_a_class_is_not_needed_where_nothing_takes_it(host: SDHost) -> None:
    patch = DreamBooth(**FAST, prior=0.0)(host, Request(target=SKS.target), data={"references": references()})
    assert patch.deltas


def test_steps_follow_from_the_references() -> None:
    from palimpsest.core.pictures import Material

    assert DreamBooth(batch=2).total(Material({"references": references()})) == 150
    assert DreamBooth(batch=2, epochs=1).planned(Material({"references": references()})).samples == 8
