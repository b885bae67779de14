"""Twins differ in one attribute alone, and nowhere else; parts of faces are where the painter put them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.core.errors import BadRequest
from palimpsest.worlds.concepts import WORLDS, World
from palimpsest.worlds.face_parts import PARTS
from palimpsest.worlds.faces import FACES
from palimpsest.worlds.glyphs import GLYPHS, visible
from palimpsest.worlds.twins import twins

WASHES = ("watercolour", "crayon")
KEYS = [(w, k) for w in WORLDS.values() for k in w.vocabulary if k != "relation" and not k.endswith("2")]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KEYS), st.integers(0, 10_000))
def test_twins_differ_in_one_attribute_alone(which: tuple[World, str], seed: int) -> None:
    world, key = which
    pair = twins(world, key, 2, generator=rng(seed))
    for other in world.vocabulary:
        same = pair.source.columns[other] == pair.truth.columns[other]
        assert same == (other != key), other
    differ = (pair.source.images.int() - pair.truth.images.int()).abs().amax(1, keepdim=True)
    assert (differ.amax((1, 2, 3)) > 0).all()
    outside = differ.masked_fill(pair.region > 0, 0).amax((1, 2, 3))
    for style, worst in zip(pair.source.columns["style"], outside.tolist(), strict=True):
        assert worst <= (5 if style in WASHES else 0), style
    for said, asked in zip(pair.source.captions, pair.truth.captions, strict=True):
        was, becomes = world.read(said), world.read(asked)
        assert was.pop(key) != becomes.pop(key)
        assert was == becomes


@pytest.mark.parametrize("key", ["colour", "background"])
def test_colour_and_ground_leave_the_shape_where_it_is(key: str) -> None:
    pair = twins(GLYPHS, key, 6, generator=rng(1))
    assert pair.source.masks is not None
    assert pair.truth.masks is not None
    assert torch.equal(pair.source.masks, pair.truth.masks)
    shows = visible()
    for side in (pair.source, pair.truth):
        for colour, ground in zip(side.columns["colour"], side.columns["background"], strict=True):
            assert shows[GLYPHS.vocabulary["colour"].index(colour), GLYPHS.vocabulary["background"].index(ground)]


def test_a_pair_is_drawn_alone() -> None:
    more, fewer = twins(FACES, "hat", 3, generator=rng(4)), twins(FACES, "hat", 1, generator=rng(4))
    assert torch.equal(more.source.images[:1], fewer.source.images)
    assert torch.equal(more.truth.images[:1], fewer.truth.images)


def test_words_and_styles_can_be_chosen() -> None:
    flat = frozenset(FACES.vocabulary["style"]) - {"flat"}
    pair = twins(FACES, "glasses", 4, generator=rng(2), to="sunglasses", without=flat)
    assert pair.truth.columns["glasses"] == ("sunglasses",) * 4
    assert set(pair.source.columns["style"]) == {"flat"}
    # Where nothing is worn before and after, the glasses' part is empty; sunglasses hide the eyes.
    for worn, part in zip(pair.source.columns["glasses"], pair.parts["glasses"], strict=True):
        assert bool(part.any()) == (worn != "without glasses")
    assert all(pair.truth.columns["identity"][i] == pair.source.columns["identity"][i] for i in range(4))


def test_parts_of_faces_are_the_person_and_change_no_picture() -> None:
    labels = FACES.sample(24, generator=rng(3), held_out=True)
    plain, parted = FACES.draw(labels, generator=rng(5)), FACES.draw(labels, generator=rng(5), parts=True)
    assert torch.equal(plain.images, parted.images)
    assert plain.parts == {}
    assert tuple(parted.parts) == PARTS
    assert torch.allclose(sum(parted.parts.values(), torch.zeros(1)), parted.masks, atol=1e-5)
    # Brows over eyes, eyes over nose, nose over mouth; the mouth is red where it is drawn.
    rows = torch.arange(64, dtype=torch.float32)[None, :, None]
    seen = [parted.parts[name][:, 0] for name in ("brows", "eyes", "nose", "mouth")]
    bare = (labels["glasses"] == 0) & (labels["hat"] == 0)
    heights = [
        ((p * rows).sum((1, 2)) / p.sum((1, 2)).clamp(min=1e-6))[bare & (p.sum((1, 2)) > 2)].mean() for p in seen
    ]
    assert heights == sorted(heights)
    hats = parted.parts["hat"].sum((1, 2, 3)) > 0
    assert torch.equal(hats, labels["hat"] > 0)


def test_parts_hold_their_colour() -> None:
    """In flat style a part's inside has its own colour: lips are redder than the skin beside them."""
    flat = FACES.vocabulary["style"].index("flat")
    drawn = FACES.draw(
        {"style": torch.full((8,), flat), "expression": torch.full((8,), 2)}, generator=rng(6), parts=True
    )
    mouth, skin = (drawn.parts[name][:, 0] > 0.99 for name in ("mouth", "skin"))
    for i in range(8):
        lips, cheek = (drawn.images[i][:, m[i]].median(1).values for m in (mouth, skin))
        assert lips[0] - lips[1] > cheek[0] - cheek[1]


def test_what_has_no_twin_is_refused() -> None:
    with pytest.raises(BadRequest, match="no twins that differ in 'subject2'; choose one of subject, colour"):
        twins(GLYPHS, "subject2", 1, generator=rng())
    with pytest.raises(BadRequest, match="is no colour of glyphs"):
        twins(GLYPHS, "colour", 1, generator=rng(), to="mauve")
    with pytest.raises(BadRequest, match="at least 1"):
        twins(GLYPHS, "colour", 0, generator=rng())
    only = frozenset(FACES.vocabulary["hat"]) - {"cap"}
    with pytest.raises(BadRequest, match="no picture whose hat can become"):
        twins(FACES, "hat", 1, generator=rng(), without=only)
