"""The kinds of systems beside model edits: what their final call checks, guards and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.concept import Concept, Request
from palimpsest.core.declared import Within
from palimpsest.core.delta import Dense, LowRank
from palimpsest.core.errors import BadRequest, Diverged, Touched, Unsupported, WrongBase
from palimpsest.core.fields import Count, Positive, Share, checked
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.images import Edited, ImageEdit
from palimpsest.core.method import Method, ModelEdit
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.sampling import Sampling, Start
from palimpsest.core.stored import Stored

STAR = Request(target=(Concept(name="star"),))


def card(**more: Any) -> Card:
    return Card(name="T", title="T", year=2024, paper="p", family="f", needs="Host", claim="c", **more)


class Bare:
    """A host that can do nothing in particular."""

    name = "bare"
    knows = None
    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.root = nn.ModuleDict({"net": nn.Linear(3, 2)})

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        return fingerprint(self.root)


def pictures(n: int = 3, **more: Any) -> Pictures:
    images = torch.randint(0, 256, (n, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Pictures(images=images, names=tuple(f"p{i}" for i in range(n)), **more)


# -- pictures --------------------------------------------------------------------------------------------


def test_pictures_are_chosen_with_all_that_is_known_of_them() -> None:
    every = pictures(
        labels=torch.tensor([4, 5, 6]),
        captions=("a", "b", "c"),
        masks=torch.rand(3, 1, 4, 5),
        columns={"identity": ("x", "y", "z")},
    )
    some = every[torch.tensor([True, False, True])]
    assert (some.names, some.captions, some.columns["identity"]) == (("p0", "p2"), ("a", "c"), ("x", "z"))
    assert some.labels.tolist() == [4, 6]
    assert every.masks is not None
    assert some.masks is not None
    assert torch.equal(some.masks, every.masks[[0, 2]])
    both = Pictures.cat([some, every[[1]]])
    assert (both.names, both.labels.tolist(), both.columns["identity"]) == (
        ("p0", "p2", "p1"),
        [4, 6, 5],
        ("x", "z", "y"),
    )
    assert Pictures.cat([some, pictures(1)]).captions == ()
    assert float(every.pixels().max()) <= 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"names": ("a",)}, "3 pictures come with 1 names"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, "3 pictures come with 2 labels"),
        ({"captions": ("a", "b")}, "3 pictures come with 2 captions"),
        ({"columns": {"camera": ("a",)}}, "3 pictures come with 1 camera"),
        ({"masks": torch.zeros(3, 1, 8, 8)}, "as large as the pictures"),
        ({"images": torch.zeros(3, 3, 4, 5)}, "expected uint8"),
    ],
)
def test_facts_that_do_not_fit_their_pictures(more: dict[str, Any], words: str) -> None:
    plain = {"images": pictures().images, "names": pictures().names}
    with pytest.raises(BadRequest, match=words):
        Pictures(**{**plain, **more})


# -- sampling --------------------------------------------------------------------------------------------


def test_settings_fall_back_to_the_models_own() -> None:
    assert Sampling(steps=3).over(Sampling(steps=50, guidance=7.5)) == Sampling(steps=3, guidance=7.5)
    assert Sampling(guidance=0.0).over(Sampling(guidance=7.5)).guidance == 0.0


def test_a_start_is_clean_or_noisy_latents_and_a_share() -> None:
    x = torch.zeros(2, 4, 8, 8)
    assert [Start(x0=x, share=s).skipped(10) for s in (1.0, 0.5, 0.01)] == [0, 5, 9]
    assert len(Start(x=x)[0:1].latents) == 1
    for wrong in ({}, {"x0": x, "x": x}, {"x0": x, "share": 0.0}, {"x0": x, "share": 1.5}):
        with pytest.raises(BadRequest):
            Start(**wrong)


# -- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "good", "bad", "words"),
    [
        (Count, 1, 0, "k is 0; it must be at least 1"),
        (Share, 0.5, 1.1, "at least 0 and at most 1"),
        (Positive, 1e-9, 0.0, "above 0"),
        (Count | None, None, 0, "at least 1"),
        (tuple[Count, ...], (1, 2), (1, 0), "at least 1"),
        (Positive, 1.0, float("nan"), "above 0"),
    ],
)
def test_a_fields_type_is_its_check(hint: Any, good: Any, bad: Any, words: str) -> None:
    checked("k", good, hint)
    with pytest.raises(BadRequest, match=words):
        checked("k", bad, hint)


def test_a_bound_says_itself() -> None:
    assert str(Within(least=2)) == "at least 2"
    assert str(Within(least=0, most=1, open=True)) == "above 0 and at most 1"


# -- what a card declares --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Learner(ModelEdit):
    """Needs references, may take masks, and a judge beside the host."""

    card = card(reads=("references", "extra?"), beside={"judge": "Classifier"})

    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Any) -> Patch:
        return Patch(base="", deltas={"net.bias": Dense(value=torch.full((2,), float(len(data["references"]))))})


class Judge(Bare):
    labels = ("a",)

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def logits(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1]

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(images), self.logits(images)


def test_data_and_models_are_what_the_card_declares() -> None:
    host, some, judge = Bare(), {"references": pictures()}, {"judge": Judge()}
    assert Learner()(host, STAR, data=some, beside=judge).deltas["net.bias"].tensors()["value"].tolist() == [3.0, 3.0]
    with pytest.raises(BadRequest, match="needs data called 'references'; it was given none"):
        Learner()(host, STAR, beside=judge)
    with pytest.raises(BadRequest, match="takes no data called 'photos'; it knows 'references', 'extra'"):
        Learner()(host, STAR, data={**some, "photos": pictures()}, beside=judge)
    with pytest.raises(BadRequest, match="needs a model called 'judge'"):
        Learner()(host, STAR, data=some)
    with pytest.raises(Unsupported, match="as its judge, needs a Classifier; bare is a Host"):
        Learner()(host, STAR, data=some, beside={"judge": Bare()})


@dataclass(frozen=True, kw_only=True)
class Meddler(Learner):
    """Writes into the model beside the host."""

    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Any) -> Patch:
        data.models["judge"].root.get_parameter("net.bias").data.add_(1)
        return Patch(base="")


def test_models_beside_the_host_are_guarded_too() -> None:
    with pytest.raises(Touched, match="changed the tensors"):
        Meddler()(Bare(), STAR, data={"references": pictures()}, beside={"judge": Judge()})


# -- pictures in, pictures out ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Speckle(ImageEdit):
    """Draws noise over each picture, and misbehaves on request."""

    sin: str = ""
    card = card()

    def run(
        self,
        host: Any,
        sources: Pictures,
        request: Request,
        *,
        data: Material,
        rngs: Sequence[torch.Generator],
        trace: Any,
    ) -> Edited:
        noise = torch.stack([torch.rand(sources.images.shape[1:], generator=rng) for rng in rngs])
        if self.sin == "nan":
            noise[0] = float("nan")
        if self.sin == "touch":
            host.root.get_parameter("net.bias").data.add_(1)
        return Edited(images=noise * 2 if self.sin == "bright" else noise[:1] if self.sin == "fewer" else noise)


def test_a_pictures_edit_depends_on_itself_alone() -> None:
    sources = pictures()
    whole = Speckle()(Bare(), sources, STAR).images
    assert torch.equal(Speckle()(Bare(), sources[[2, 0]], STAR).images, whole[[2, 0]])
    assert not torch.equal(Speckle()(Bare(), sources, STAR, seed=1).images, whole)


def test_outside_the_mask_a_picture_stays_bit_for_bit() -> None:
    masks = torch.zeros(3, 1, 4, 5)
    masks[:, :, :2] = 1
    edited = Speckle(sin="bright")(Bare(), pictures(masks=masks), STAR)
    assert torch.equal(edited.images[:, :, 2:], pictures().pixels()[:, :, 2:])
    assert not torch.equal(edited.images[:, :, :2], pictures().pixels()[:, :, :2])
    assert 0 <= float(edited.images.min()) <= float(edited.images.max()) <= 1
    assert edited.provenance["seed"] == 0


@pytest.mark.parametrize(("sin", "error"), [("nan", Diverged), ("touch", Touched), ("fewer", Touched)])
def test_edits_that_break_a_law(sin: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Speckle(sin=sin)(Bare(), pictures(), STAR)


# -- several patches -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Largest(Combine):
    """Of each entry the largest change."""

    card = card()

    def block(self, name: str, start: int, deltas: Tensor, surveyed: Any) -> Tensor:
        return deltas.amax(0)


@dataclass(frozen=True, kw_only=True)
class Average(Largest):
    """The mean of the changes."""

    def survey(self, parts: Sequence[Part], base: Stored, host: Any, **rest: Any) -> int:
        return len(parts)

    def factors(self, name: str, surveyed: int) -> Sequence[float]:
        return [1 / surveyed] * surveyed


def test_patches_become_one() -> None:
    host = Bare()
    base, up, down = host.fingerprint(), torch.rand(2, 1), torch.rand(1, 3)
    a = Patch(base=base, deltas={"net.weight": LowRank(up=up, down=down)})
    b = Patch(base=base, deltas={"net.weight": Dense(value=torch.ones(2, 3)), "net.bias": Dense(value=torch.ones(2))})
    largest, mean = Largest()([a, b], host), Average()([a, a], host)
    assert torch.equal(
        largest.deltas["net.weight"].dense(torch.Size((2, 3))), torch.maximum(up @ down, torch.ones(2, 3))
    )
    assert torch.equal(largest.deltas["net.bias"].dense(torch.Size((2,))), torch.ones(2))
    assert isinstance(mean.deltas["net.weight"], LowRank)
    torch.testing.assert_close(mean.deltas["net.weight"].dense(torch.Size((2, 3))), up @ down)
    assert [part["sha256"] for part in largest.provenance["combined"]] == [a.sha256(), b.sha256()]
    with pytest.raises(BadRequest, match="no patch"):
        Largest()([], host)
    with pytest.raises(WrongBase):
        Largest()([Patch(base="ab" * 32)], host)
    with pytest.raises(Unsupported, match="acts while the model runs"):
        Largest()([Patch(base=base, hooks=(Hook(id="erase/sld"),))], host)


@dataclass(frozen=True, kw_only=True)
class Outer(Method):
    """A system with another one as a parameter."""

    inner: Method
    times: Count = 2
    card = card()


def test_a_parameter_may_be_a_system() -> None:
    from palimpsest.erase.uce import UCE

    outer = Outer(inner=UCE(), times=3)
    plain = outer.parameters()
    assert plain["inner"] == {"method": "erase/uce", "parameters": UCE().parameters()}
    assert Outer.from_plain(plain) == outer
