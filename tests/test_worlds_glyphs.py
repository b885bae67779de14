"""Glyphs: what is labelled is what is drawn, what is said is true, and what is held out stays out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.worlds import drawing, subjects
from palimpsest.worlds.drawing import BACKGROUNDS, COLOURS, SIZE, STYLES
from palimpsest.worlds.glyphs import GLYPHS, visible
from palimpsest.worlds.picture import Pictures

KEYS = {"subject", "colour", "style", "background", "position", "relation", "subject2", "colour2"}
ONE_OF_EACH = {key: words for key, words in GLYPHS.vocabulary.items() if not key.endswith("2")}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(n: int = 64, seed: int = 0, **labels: str) -> Pictures:
    """`n` pictures that all show the given words."""
    index = {key: torch.full((n,), GLYPHS.vocabulary[key].index(word)) for key, word in labels.items()}
    return GLYPHS.draw(index, generator=seeded(seed))


def test_vocabulary_is_as_promised() -> None:
    assert set(GLYPHS.vocabulary) == KEYS
    assert len(GLYPHS.vocabulary["subject"]) == 26
    assert len(GLYPHS.held_out["subject"]) == 6
    assert len(GLYPHS.vocabulary["style"]) == 10
    assert len(GLYPHS.held_out["style"]) == 2
    words = [word for group in ONE_OF_EACH.values() for word in group]
    assert len(words) == len(set(words))
    for key, words in GLYPHS.held_out.items():
        assert words < set(GLYPHS.vocabulary[key])


def test_a_seed_draws_the_same_pictures() -> None:
    first, again, other = (GLYPHS.draw(GLYPHS.sample(40, generator=g), generator=g) for g in map(seeded, (3, 3, 4)))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert first.captions == again.captions
    assert not torch.equal(first.images, other.images)


def test_pictures_have_their_shapes_and_ranges() -> None:
    pictures = GLYPHS.draw(GLYPHS.sample(200, generator=seeded()), generator=seeded(1))
    assert len(pictures) == 200
    assert pictures.images.shape == (200, 3, SIZE, SIZE)
    assert pictures.masks.shape == (200, 2, SIZE, SIZE)
    assert pictures.images.dtype == pictures.masks.dtype == torch.float32
    assert pictures.images.min() >= 0
    assert pictures.images.max() <= 1
    assert pictures.masks.min() >= 0
    assert pictures.masks.max() <= 1
    two = pictures.labels["relation"] >= 0
    area = pictures.masks.mean((2, 3))
    assert (area[:, 0] > 0.02).all()
    assert torch.equal(area[:, 1] > 0.02, two)
    assert ((area[:, 1] == 0) == ~two).all()


def test_empty_batch() -> None:
    pictures = GLYPHS.draw(GLYPHS.sample(0, generator=seeded()), generator=seeded())
    assert pictures.images.shape == (0, 3, SIZE, SIZE)
    assert pictures.captions == []


def test_sample_is_even_and_complete() -> None:
    n = 20_000
    labels = GLYPHS.sample(n, generator=seeded())
    two = labels["relation"] >= 0
    assert two.float().mean().item() == pytest.approx(0.15, abs=0.01)
    for key in ("subject2", "colour2"):
        assert torch.equal(labels[key] >= 0, two)
    assert torch.equal(labels["position"] >= 0, ~two)
    for key in ("subject", "colour", "style", "background"):
        trained = len(GLYPHS.vocabulary[key]) - len(GLYPHS.held_out.get(key, ()))
        share = torch.bincount(labels[key], minlength=len(GLYPHS.vocabulary[key])) / n * trained
        held = torch.tensor([word in GLYPHS.held_out.get(key, ()) for word in GLYPHS.vocabulary[key]])
        assert (share[held] == 0).all()
        assert share[~held].min() > 0.88, key
        assert share[~held].max() < 1.12, key
    assert visible()[labels["colour"], labels["background"]].all()
    assert visible()[labels["colour2"][two], labels["background"][two]].all()
    assert (labels["subject"] != labels["subject2"]).all()
    assert (labels["colour"] != labels["colour2"]).all()


def test_held_out_words_come_when_asked_for() -> None:
    labels = GLYPHS.sample(4000, generator=seeded(), held_out=True)
    for key in ("subject", "style"):
        assert set(labels[key].tolist()) == set(range(len(GLYPHS.vocabulary[key])))


@pytest.mark.parametrize("word", ["star", "red", "sketch", "navy", "left", "above"])
def test_without_never_draws_the_word(word: str) -> None:
    labels = GLYPHS.sample(3000, generator=seeded(), without=frozenset({word, "somebody"}))
    usual = GLYPHS.sample(3000, generator=seeded())
    keys = [key for key, words in GLYPHS.vocabulary.items() if word in words]
    assert keys
    for key in keys:
        index = GLYPHS.vocabulary[key].index(word)
        assert (labels[key] != index).all()
        assert (usual[key] == index).any()


def test_without_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no style"):
        GLYPHS.sample(1, generator=seeded(), without=frozenset(STYLES))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"subject": torch.tensor([26])}, "from -1 to 25"),
        ({"hat": torch.tensor([0])}, "unknown labels"),
        ({"subject": torch.tensor([0]), "colour": torch.tensor([0, 1])}, r"must be \(1,\)"),
        ({}, "give some of"),
    ],
)
def test_bad_labels_are_refused(labels: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GLYPHS.draw(labels, generator=seeded())


def test_draw_keeps_given_labels_and_fills_the_rest() -> None:
    pictures = drawn(200, subject="crown", background="cream")
    vocabulary = GLYPHS.vocabulary
    assert (pictures.labels["subject"] == vocabulary["subject"].index("crown")).all()
    assert (pictures.labels["background"] == vocabulary["background"].index("cream")).all()
    assert (pictures.labels["style"] >= 0).all()
    assert visible()[pictures.labels["colour"], pictures.labels["background"]].all()
    assert len(set(pictures.labels["colour"].tolist())) >= 4


def test_position_and_relation_are_where_they_say() -> None:
    x, y = drawing.grid()

    def middle(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = mask.sum((1, 2))
        return (mask * x).sum((1, 2)) / weight, (mask * y).sum((1, 2)) / weight

    for word, (dx, dy) in {
        "centre": (0, 0),
        "left": (-1, 0),
        "right": (1, 0),
        "top": (0, -1),
        "bottom": (0, 1),
    }.items():
        mx, my = middle(drawn(100, position=word).masks[:, 0])
        for got, sign in ((mx, dx), (my, dy)):
            # Some silhouettes (the moon) have their weight beside their middle.
            assert (got.abs() < 0.3).all() if sign == 0 else (got * sign > 0.1).all(), word
    for word, axis in (("left of", 0), ("above", 1)):
        masks = drawn(100, relation=word).masks
        assert (middle(masks[:, 0])[axis] + 0.5 < middle(masks[:, 1])[axis]).all(), word
        assert (masks[:, 0] * masks[:, 1]).mean() < 2e-3


@pytest.mark.parametrize("style", STYLES)
def test_colours_and_backgrounds_are_readable_in_every_style(style: str) -> None:
    """Far from the subject the background's word is the nearest; inside it, the subject's."""
    labels = GLYPHS.sample(300, generator=seeded(), held_out=True)
    labels["style"] = torch.full((300,), STYLES.index(style))
    pictures = GLYPHS.draw(labels, generator=seeded(1))
    away = (torch.nn.functional.max_pool2d(pictures.masks.amax(1, keepdim=True), 13, 1, 6) == 0).float()
    shown = (pictures.images * away).sum((2, 3)) / away.sum((2, 3)).clamp(min=1)
    seen = away.sum((1, 2, 3)) > 60
    grounds = torch.tensor(list(BACKGROUNDS.values()))
    if style == "neon":  # a dim wall: as the style says it darkens
        luma = grounds @ torch.tensor([0.30, 0.59, 0.11])
        grounds = grounds * (0.64 - 0.24 * luma)[:, None]
    nearest = torch.cdist(shown, grounds).argmin(1)
    assert (nearest == pictures.labels["background"])[seen].float().mean() > 0.97
    # Mixed with its background by whatever share, a paint lies in its own colour's direction from it.
    single = (pictures.labels["relation"] < 0) & seen
    mask = (pictures.masks[:, :1] > 0.5).float()
    paint = (pictures.images * mask).sum((2, 3)) / mask.sum((2, 3)) - shown
    toward = torch.tensor(list(COLOURS.values()))[None] - shown[:, None]
    likeness = torch.nn.functional.cosine_similarity(paint[:, None], toward, dim=2)
    likeness = likeness.masked_fill(~visible().T[pictures.labels["background"]], -2)
    right = (likeness.argmax(1) == pictures.labels["colour"])[single]
    if style == "neon":  # a black tube is told by its pale halo
        right = right[pictures.labels["colour"][single] != list(COLOURS).index("black")]
    assert right.float().mean() > 0.95


def test_silhouettes_are_distinct() -> None:
    """Over all pairs the upright silhouettes overlap by less than 85 % (intersection over union)."""
    body = (subjects.atlas()[:, 0] < 0).flatten(1).float()
    both = body @ body.T
    area = body.sum(1)
    overlap = both / (area[:, None] + area[None] - both)
    overlap.fill_diagonal_(0)
    assert overlap.max() < 0.85
    assert ((area / body.shape[1]) > 0.06).all()


def test_subjects_fill_the_frame() -> None:
    one = drawn(100, position="centre", subject="circle").masks[:, 0].mean((1, 2))
    radius = (one / math.pi).sqrt()  # as a share of the frame's width
    assert radius.min() > 0.27
    assert radius.max() < 0.42


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_captions_are_true_and_short(seed: int) -> None:
    labels = GLYPHS.sample(8, generator=seeded(seed), held_out=True)
    for row, caption in enumerate(GLYPHS.caption(labels, generator=seeded(seed + 1))):
        found = GLYPHS.read(caption)
        assert found or caption == "a shape"
        assert len(caption.split()) <= 20
        assert caption == caption.lower()
        for key, word in found.items():
            assert labels[key][row] == GLYPHS.vocabulary[key].index(word), caption
        for article, following in zip(caption.split(), caption.split()[1:], strict=False):
            if article in ("a", "an"):
                assert (article == "an") == (following[0] in "aeiou"), caption


def test_captions_say_every_attribute_sometimes_and_leave_it_out_sometimes() -> None:
    labels = GLYPHS.sample(500, generator=seeded())
    read = [GLYPHS.read(caption) for caption in GLYPHS.caption(labels, generator=seeded(1))]
    for key in ("subject", "colour", "style", "background", "position"):
        share = sum(key in found for found in read) / 500
        assert 0.2 < share < 0.995, key


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_read_undoes_prompt(data: st.DataObject) -> None:
    keys = data.draw(st.sets(st.sampled_from(["subject", "colour", "style", "background"])))
    if data.draw(st.booleans()):
        keys |= {"relation", "subject2"} | data.draw(st.sets(st.just("colour2")))
    elif data.draw(st.booleans()):
        keys |= {"position"}
    words = {key: data.draw(st.sampled_from(GLYPHS.vocabulary[key]), label=key) for key in sorted(keys)}
    assert GLYPHS.read(GLYPHS.prompt(**words)) == words


def test_prompt_is_canonical() -> None:
    assert GLYPHS.prompt(subject="star", colour="red", style="sketch") == "a red star in sketch style"
    assert (
        GLYPHS.prompt(subject="star", colour="red", subject2="house", colour2="blue", relation="left of", style="flat")
        == "a red star left of a blue house in flat style"
    )
    assert GLYPHS.prompt(subject="anchor", position="left") == "an anchor, on the left"
    assert GLYPHS.read("a neon blue house, on the left") == {
        "style": "neon", "colour": "blue", "subject": "house", "position": "left",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"subject": "dragon"}, "no subject of Glyphs"),
        ({"hat": "cap"}, "no label 'hat'"),
        ({"relation": "above"}, "come together"),
        ({"subject2": "star"}, "come together"),
    ],
)
def test_bad_prompts_are_refused(words: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GLYPHS.prompt(**words)


class TestDrawing:
    """The primitives against plain geometry."""

    def test_distances_are_true(self) -> None:
        x, y = drawing.grid(32)
        assert torch.allclose(drawing.disc(x, y, 0.1, -0.2, 0.4), torch.hypot(x - 0.1, y + 0.2) - 0.4, atol=1e-5)
        square = drawing.polygon(x, y, [(-0.5, -0.3), (0.5, -0.3), (0.5, 0.3), (-0.5, 0.3)])
        assert torch.allclose(square, drawing.box(x, y, 0, 0, 0.5, 0.3), atol=1e-5)
        backwards = drawing.polygon(x, y, [(-0.5, 0.3), (0.5, 0.3), (0.5, -0.3), (-0.5, -0.3)])
        assert torch.allclose(square, backwards, atol=1e-5)
        full = drawing.arc(x, y, 0, 0, 0.5, 0.3, math.pi, 0.1)
        assert torch.allclose(full, (torch.hypot(x, y) - 0.5).abs() - 0.1, atol=1e-5)

    def test_coverage_is_the_area(self) -> None:
        x, y = drawing.grid()
        area = drawing.coverage(drawing.disc(x, y, 0, 0, 0.6)).mean() * 4
        assert area.item() == pytest.approx(math.pi * 0.36, rel=2e-3)

    def test_place_turns_clockwise(self) -> None:
        x, y = drawing.grid()
        u, v = drawing.place(
            x, y, centre=torch.tensor([[0.2, 0.0]]), scale=torch.tensor([0.5]), angle=torch.tensor([math.pi / 2])
        )
        # A shape's own +u axis points down on the picture after a quarter turn clockwise.
        down = ((x - 0.2) ** 2 + (y - 0.5) ** 2).argmin()
        assert u.flatten()[down].item() == pytest.approx(1.0, abs=0.1)
        assert v.flatten()[down].item() == pytest.approx(0.0, abs=0.1)

    def test_distances_are_differentiable(self) -> None:
        x, y = drawing.grid(16)
        radius = torch.tensor(0.4, requires_grad=True)
        drawing.coverage(drawing.disc(x, y, 0, 0, radius), 2 / 16).sum().backward()
        assert radius.grad is not None
        assert radius.grad > 0

    @pytest.mark.parametrize("style", STYLES)
    def test_render_is_finite_seeded_and_differentiable(self, style: str) -> None:
        x, y = drawing.grid()
        alpha = drawing.coverage(drawing.disc(x, y, 0, 0, 0.6)).expand(2, 1, -1, -1)
        ink = drawing.coverage(drawing.contour(drawing.disc(x, y, 0, 0, 0.6), 0.03)).expand(2, 1, -1, -1)
        albedo = torch.full((2, 3, SIZE, SIZE), 0.4, requires_grad=True)
        ground = torch.full((2, 3), 0.8)
        index = torch.full((2,), STYLES.index(style))
        first, again = (
            drawing.render(index, albedo=albedo, alpha=alpha, ink=ink, background=ground, generator=seeded(5))
            for _ in range(2)
        )
        assert torch.equal(first, again)
        (gradient,) = torch.autograd.grad(first.sum(), albedo)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0

    def test_unknown_style_is_refused(self) -> None:
        blank = torch.zeros(1, 1, SIZE, SIZE)
        with pytest.raises(ValueError, match="outside 0"):
            drawing.render(
                torch.tensor([10]), albedo=blank.expand(-1, 3, -1, -1), alpha=blank, ink=blank,
                background=torch.zeros(1, 3), generator=seeded(),
            )  # fmt: skip
