"""References: balanced, masked and captioned under another word, and never what an evaluation draws."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn.functional import max_pool2d

from palimpsest.core.errors import BadRequest
from palimpsest.worlds.concepts import WORLDS, key_of
from palimpsest.worlds.glyphs import visible
from palimpsest.worlds.references import references

GLYPHS, FACES = WORLDS["glyphs"], WORLDS["faces"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("world", "word"),
    [(GLYPHS, "crown"), (GLYPHS, "stitch"), (GLYPHS, "orange"), (GLYPHS, "navy"), (FACES, "Aisha"), (FACES, "cap")],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_they_show_the_concept_under_another_word(world, word) -> None:
    key = key_of(world, word) or ""
    made = references(world, word, 8, "<v>", rng())
    assert made.masks is not None
    assert made.images.shape == (8, 3, 64, 64)
    assert made.columns[key] == (word,) * 8
    for i, caption in enumerate(made.captions):
        assert "<v>" in caption
        assert word not in caption.split()
        assert "an <v>" not in caption
        for said, as_drawn in world.read(caption).items():
            assert said == key or made.columns[said][i] == as_drawn, caption
    # The labels are those of the pictures: drawn again from them alone, every picture has the same masks' size.
    for i in range(8):
        labels = {k: torch.tensor([world.vocabulary[k].index(v[i])]) for k, v in made.columns.items() if v[i]}
        again = world.draw(labels, generator=rng(i)).masks[0, 0].mean()
        mask = made.masks[i, 0]
        wanted = {"style": 1.0, "background": 1 - float(again)}.get(key, float(again))
        assert float(mask.mean()) == pytest.approx(wanted, abs=0.12)


def test_everything_else_is_as_even_as_it_can_be() -> None:
    crowns = references(GLYPHS, "crown", 16, "<v>", rng(1))
    for key in ("colour", "style", "background"):
        counts = Counter(crowns.columns[key])
        assert len(counts) == 8, key
        assert max(counts.values()) <= (4 if key == "colour" else 2), key
    assert not set(crowns.columns["style"]) & GLYPHS.held_out["style"]
    shows = visible()
    for colour, ground in zip(crowns.columns["colour"], crowns.columns["background"], strict=True):
        assert shows[GLYPHS.vocabulary["colour"].index(colour), GLYPHS.vocabulary["background"].index(ground)]
    people = references(FACES, "Aisha", 12, "<v>", rng(1))
    assert Counter(people.columns["glasses"]) == {"without glasses": 6, "glasses": 3, "sunglasses": 3}
    assert set(Counter(people.columns["expression"]).values()) == {3}
    assert set(Counter(people.columns["pose"]).values()) == {4}


def test_fewer_are_the_first_of_more_and_another_state_draws_others() -> None:
    more, fewer = references(GLYPHS, "bell", 6, "<v>", rng(3)), references(GLYPHS, "bell", 2, "<v>", rng(3))
    assert torch.equal(more.images[:2], fewer.images)
    assert more.captions[:2] == fewer.captions
    other = references(GLYPHS, "bell", 2, "<v>", rng(4))
    assert not torch.equal(other.images, fewer.images)


def test_masks_are_the_painters_own() -> None:
    flat = references(GLYPHS, "leaf", 8, "<v>", rng(5))
    assert flat.masks is not None
    row = flat.columns["style"].index("flat")
    picture, mask = flat.pixels()[row], flat.masks[row, 0]
    near = max_pool2d(flat.masks[row], 3, 1, 1)[0]  # outlines reach half a pixel beyond the mask
    ground = picture[:, near == 0]
    assert float(ground.std(1).max()) < 0.01  # one even colour outside of the subject, none of it inside
    assert float((picture[:, mask == 1] - ground[:, :1]).abs().sum(0).min()) > 0.1


def test_no_evaluation_draws_the_same() -> None:
    made = references(GLYPHS, "star", 3, "<v>", rng(7))
    labels = {
        k: torch.tensor([GLYPHS.vocabulary[k].index(v) if v else -1 for v in column])
        for k, column in made.columns.items()
    }
    for other in range(20):
        drawn = (GLYPHS.draw(labels, generator=rng(other)).images * 255).round().byte()
        for i in range(3):
            alone = {k: v[i : i + 1] for k, v in labels.items()}
            one = (GLYPHS.draw(alone, generator=rng(other), captions=["x"]).images * 255).round().byte()
            assert not torch.equal(one[0], made.images[i])
            assert not torch.equal(drawn[i], made.images[i])


def test_articles_follow_the_new_word() -> None:
    made = references(GLYPHS, "umbrella" if "umbrella" in GLYPHS.vocabulary["subject"] else "arrow", 8, "ixo", rng())
    assert any(" an ixo" in f" {c}" for c in made.captions) or all("ixo" in c for c in made.captions)
    assert not any(" a ixo" in f" {c}" for c in made.captions)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(BadRequest, match="Did you mean"):
        references(GLYPHS, "crwn", 2, "<v>", rng())
    with pytest.raises(BadRequest, match="at least 1"):
        references(GLYPHS, "crown", 0, "<v>", rng())
    with pytest.raises(BadRequest, match="need a word"):
        references(GLYPHS, "crown", 2, " ", rng())
    with pytest.raises(BadRequest, match="how two subjects stand"):
        references(GLYPHS, "above", 2, "<v>", rng())
