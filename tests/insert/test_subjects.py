"""Systems that learn a newcomer from pictures, against their papers' formulas, written once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, mse_loss

from erase_fixtures import pictures, small_sd
from hosts_fixtures import host_of
from naive import Naive, learnt, of, old, own, recorded
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.words import Word
from palimpsest.hosts.sd import SDHost
from palimpsest.insert.cat import CAT
from palimpsest.insert.class_diffusion import ClassDiffusion
from palimpsest.insert.cross_initialization import CrossInitialization
from palimpsest.insert.dreambooth import DreamBooth
from palimpsest.insert.sude import SuDe
from palimpsest.insert.textual_inversion import TextualInversion
from palimpsest.ops.parts import parameters
from palimpsest.ops.word_vectors import outputs_of, starting, vectors_of
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
    assert DreamBooth(batch=2).total(Material({"references": references()})) == 150
    assert DreamBooth(batch=2, epochs=1).planned(Material({"references": references()})).samples == 8


def test_words_start_at_the_mean_of_the_class() -> None:
    for family in ("sd", "sdxl", "sd3", "flux"):
        host = host_of(family)
        found = vectors_of(host, "a red star")
        tokenizer = host.pipeline.tokenizer
        ids = torch.tensor(tokenizer("a red star", add_special_tokens=False).input_ids)
        for name, rows in found.items():
            table = host.root.get_parameter(f"{name}.weight")
            torch.testing.assert_close(rows, table[ids].detach().float())
        assert set(found) == set(host.parts("clip_token_embedding"))
        word = starting(found, 2, reads_as="star")
        for name, vectors in word.vectors.items():
            torch.testing.assert_close(vectors, found[name].mean(0).repeat(2, 1))
    assert len(host_of("sd3").parts("clip_token_embedding")) == 2
    assert len(host_of("flux").parts("clip_token_embedding")) == 1


def words_of(method: Any, host: SDHost, **data: Any) -> Any:
    return method(host, SKS, data={"references": references(**data)})


def test_textual_inversion_trains_the_word_alone(host: SDHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, subject, "noised")
    patch = words_of(TextualInversion(steps=3, batch=2, vectors=2, word_lr=0.01), host)
    assert not patch.deltas
    assert set(patch.words) == {"sks"}
    start = starting(vectors_of(host, "dog"), 2, reads_as="dog")
    leaves = {name: v.clone().requires_grad_(True) for name, v in start.vectors.items()}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for _, at in calls:
        with host.speaking({"sks": Word(vectors=leaves, reads_as="dog")}):
            says = own(host, host.pipeline.unet, at.x, at.t, of(CAPTIONS, at))
        grads = torch.autograd.grad((says - learnt(host, at)).square().mean(), list(leaves.values()))
        for leaf, grad in zip(leaves.values(), grads, strict=True):
            leaf.grad = grad
        adam.step()
    for name, vectors in patch.words["sks"].vectors.items():
        torch.testing.assert_close(vectors, leaves[name].detach(), atol=2e-4, rtol=1e-3)
        assert float((vectors - start.vectors[name]).abs().max()) > 0.02


def test_class_diffusion_keeps_the_word_near_its_class(host: SDHost) -> None:
    near = []
    for weight in (0.0, 3.0):
        settings = {**FAST, "lr": 0.0, "steps": 6, "word_lr": 0.05}
        patch = words_of(ClassDiffusion(**settings, prior=0.0, weight=weight), host)
        with torch.no_grad(), patch.applied(host):
            new, known = host.tokens(["sks dog"]), host.tokens(["dog"])
        ends = [c.states[0, c.lengths[0] - 1] for c in (new, known)]
        near.append(float(cosine_similarity(*ends, dim=0)))
    assert near[0] < near[1]


def test_cross_initialization_starts_at_what_the_encoder_makes_of_the_class(host: SDHost) -> None:
    text = host.tokens(["dog"])
    made = text.states[0, 1 : int(text.lengths[0]) - 1]
    (start,) = starting(outputs_of(host, "dog"), 1, reads_as="dog").vectors.values()
    torch.testing.assert_close(start[0], made.mean(0))
    still = {"steps": 1, "batch": 1, "word_lr": 0.0}
    (vectors,) = words_of(CrossInitialization(**still), host).words["sks"].vectors.values()
    torch.testing.assert_close(vectors, start)
    moved = []
    for stay in (0.0, 100.0):
        patch = words_of(CrossInitialization(steps=4, batch=2, word_lr=0.05, stay=stay), host)
        (vectors,) = patch.words["sks"].vectors.values()
        moved.append(float((vectors - start).norm()))
    assert 0 < moved[1] < moved[0]
