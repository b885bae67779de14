"""The world of drawn people: labels, captions and pictures agree, and identities are apart."""

from __future__ import annotations

import pytest
import torch

from palimpsest.worlds.drawing import BACKGROUNDS, STYLES
from palimpsest.worlds.face_identity import (
    GENES,
    HELD_OUT_NAMES,
    NAMES,
    TRAINED_NAMES,
    named_vectors,
    random_vectors,
    visible_features,
)
from palimpsest.worlds.faces import FACES, identities
from palimpsest.worlds.glyphs import GLYPHS


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row(n: int = 1, **words: str) -> dict[str, torch.Tensor]:
    """Labels that hold the given words, n times, front pose and plain look otherwise."""
    plain = {
        "expression": "neutral", "glasses": "without glasses", "hat": "bareheaded", "pose": "facing front",
        "light": "lit from right", "style": "flat", "background": "sky",
    }  # fmt: skip
    return {key: torch.full((n,), FACES.vocabulary[key].index(w)) for key, w in (plain | words).items()}


def test_words_are_unique_over_both_worlds() -> None:
    shared = {"style", "background"}
    assert all(FACES.vocabulary[key] == GLYPHS.vocabulary[key] for key in shared)
    ours = [w.lower() for key, words in FACES.vocabulary.items() for w in words]
    theirs = {w.lower() for key, words in GLYPHS.vocabulary.items() if key not in shared for w in words}
    assert len(set(ours)) == len(ours)
    assert not set(ours) & theirs
    assert FACES.vocabulary["style"] == STYLES
    assert set(FACES.vocabulary["background"]) == set(BACKGROUNDS)


def test_names_are_64_trained_and_64_held_out_single_words() -> None:
    assert len(TRAINED_NAMES) == len(HELD_OUT_NAMES) == 64
    assert len({name.lower() for name in NAMES}) == 128
    assert all(name.isalpha() and name[0].isupper() and name[1:].islower() for name in NAMES)


def test_named_people_differ_in_several_visible_ways() -> None:
    vectors = named_vectors()
    assert vectors.shape == (128, len(GENES))
    assert vectors.min() >= 0
    assert vectors.max() <= 1
    named = torch.pdist(visible_features(vectors))
    random = torch.pdist(visible_features(random_vectors(128, generator=rng(5))))
    assert named.min() > 1.5 > random.min()


def test_named_vectors_are_the_ones_that_shipped_models_were_trained_on() -> None:
    # Checked by value: a changed seed, pool or gene order would silently rename everyone.
    weights = torch.arange(1, len(GENES) + 1, dtype=torch.float32)
    assert (named_vectors() @ weights)[[0, 1, 63, 64, 127]].tolist() == pytest.approx(FINGERPRINT, abs=1e-3)


FINGERPRINT = [120.92758, 74.52077, 126.70401, 124.96883, 103.89027]


def test_identity_groups_have_stable_prefixes_and_limits() -> None:
    assert torch.equal(identities("unnamed", 300)[:17], identities("unnamed", 17))
    assert torch.equal(identities("held_out", 3), FACES.identity_vectors(torch.tensor([64, 65, 66])))
    with pytest.raises(ValueError, match="64 identities, 65"):
        identities("trained", 65)
    with pytest.raises(ValueError, match=r"0\.\.127"):
        FACES.identity_vectors(torch.tensor([-1]))


def test_sample_is_balanced_and_leaves_out_what_is_held_out() -> None:
    labels = FACES.sample(8000, generator=rng())
    assert set(labels) == set(FACES.vocabulary)
    assert 0.27 < (labels["identity"] == -1).float().mean() < 0.33
    counts = torch.bincount(labels["identity"][labels["identity"] >= 0], minlength=128)
    assert (counts[64:] == 0).all()
    assert counts[:64].min() > 40
    assert counts[:64].max() < 150
    for key in ("hat", "glasses"):
        assert 0.46 < (labels[key] == 0).float().mean() < 0.54
    for key, words in FACES.held_out.items():
        drawn = {FACES.vocabulary[key][i] for i in labels[key].unique().tolist() if i >= 0}
        assert not drawn & words
        both = FACES.sample(4000, generator=rng(1), held_out=True)[key].unique()
        assert len(both[both >= 0]) == len(FACES.vocabulary[key])


def test_without_never_draws_a_word_and_refuses_to_exclude_all() -> None:
    labels = FACES.sample(3000, generator=rng(), without=frozenset({"Ada", "sunglasses", "neon", "star"}))
    for key, word in (("identity", "Ada"), ("glasses", "sunglasses"), ("style", "neon")):
        assert not (labels[key] == FACES.vocabulary[key].index(word)).any()
    with pytest.raises(ValueError, match="'light'"):
        FACES.sample(3, generator=rng(), without=frozenset(FACES.vocabulary["light"]))


def test_captions_are_true_short_varied_and_read_back() -> None:
    labels = FACES.sample(3000, generator=rng(), held_out=True)
    captions = FACES.caption(labels, generator=rng(1))
    assert max(len(caption.split()) for caption in captions) <= 20
    assert len(set(captions)) > 2500
    mentioned: dict[str, int] = dict.fromkeys(FACES.vocabulary, 0)
    for i, caption in enumerate(captions):
        for key, word in FACES.read(caption).items():
            assert FACES.vocabulary[key][int(labels[key][i])] == word, caption
            mentioned[key] += 1
        lowered = [w for w in caption.replace(",", "").split() if w not in NAMES]
        assert all(w == w.lower() for w in lowered), caption
    assert all(300 < count < 2900 for count in mentioned.values()), mentioned


def test_prompt_and_read_are_inverse() -> None:
    everything = FACES.sample(400, generator=rng(), held_out=True)
    for i in range(400):
        words = {k: FACES.vocabulary[k][int(v[i])] for k, v in everything.items() if int(v[i]) >= 0}
        assert FACES.read(FACES.prompt(**words)) == words
    asked = FACES.prompt(identity="Ada", expression="smiling", glasses="glasses", style="sketch", background="mint")
    assert asked == "a portrait of Ada smiling, wearing glasses, in sketch style on a mint background"
    assert FACES.prompt() == "a portrait of a person"
    assert FACES.read("a portrait of a person") == {}
    with pytest.raises(ValueError, match="is no hat"):
        FACES.prompt(hat="helmet")
    with pytest.raises(ValueError, match="'colour'"):
        FACES.prompt(colour="red")


def test_draw_is_seeded_complete_and_in_range() -> None:
    labels = FACES.sample(70, generator=rng(), held_out=True)
    first, again = (FACES.draw(labels, generator=rng(2)) for _ in range(2))
    other = FACES.draw(labels, generator=rng(3))
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (70, 3, 64, 64)
    assert first.masks.shape == (70, 1, 64, 64)
    assert first.images.dtype == torch.float32
    covered = first.masks.mean((1, 2, 3))
    for values, low, high in ((first.images, 0, 1), (first.masks, 0, 1), (covered, 0.25, 0.8)):
        assert values.min() >= low
        assert values.max() <= high
    named = labels["identity"] >= 0
    assert first.identity is not None
    assert torch.equal(first.identity[named], FACES.identity_vectors(labels["identity"][named]))


def test_what_labels_leave_open_is_drawn_and_told() -> None:
    pictures = FACES.draw({"hat": torch.tensor([1, -1, 2])}, generator=rng())
    assert set(pictures.labels) == set(FACES.vocabulary)
    assert pictures.labels["hat"][[0, 2]].tolist() == [1, 2]
    assert pictures.labels["hat"][1] >= 0
    assert pictures.labels["identity"].tolist() == [-1, -1, -1]
    assert len(FACES.draw({"hat": torch.zeros(0, dtype=torch.int64)}, generator=rng())) == 0


def test_vectors_decide_the_person_and_bad_calls_say_why() -> None:
    vectors = identities("unnamed", 2)
    pictures = FACES.draw(row(2), generator=rng(), vectors=vectors)
    assert pictures.identity is vectors
    swapped = FACES.draw(row(2), generator=rng(), vectors=vectors.flip(0))
    assert (pictures.images - swapped.images).abs().mean() > 0.03
    with pytest.raises(ValueError, match=r"vectors must be \(2, 20\)"):
        FACES.draw(row(2), generator=rng(), vectors=vectors[:1])
    with pytest.raises(ValueError, match="differ in length"):
        FACES.draw({"hat": torch.zeros(2), "pose": torch.zeros(3)}, generator=rng())
    with pytest.raises(ValueError, match=r"hat has \[9\]"):
        FACES.draw({"hat": torch.tensor([9])}, generator=rng())
    with pytest.raises(ValueError, match="captions"):
        FACES.draw(row(2), generator=rng(), captions=["one"])


@pytest.mark.parametrize("key", ["expression", "glasses", "hat", "pose", "light"])
@pytest.mark.parametrize("style", [s for s in STYLES if s not in FACES.held_out["style"]])
def test_every_attribute_changes_the_picture_in_every_style(key: str, style: str) -> None:
    people = identities("trained", 8)
    pictures = [
        FACES.draw(row(8, **{key: word, "style": style}), generator=rng(4), vectors=people).images
        for word in FACES.vocabulary[key]
    ]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert (one - other).abs().mean((1, 2, 3)).min() > 0.001


def test_people_are_told_apart_by_their_pictures_in_every_style() -> None:
    people = identities("trained", 64)
    for style in STYLES:
        one, two = (FACES.draw(row(64, style=style), generator=rng(s), vectors=people).images for s in (7, 8))
        small = [torch.nn.functional.avg_pool2d(x, 8).flatten(1) for x in (one, two)]
        found = torch.cdist(*small).argmin(1)
        assert (found == torch.arange(64)).float().mean() > 0.7, style


def test_gradients_reach_the_proportions_and_do_not_change_the_picture() -> None:
    vectors = identities("unnamed", 4)
    labels = row(4, glasses="glasses", hat="cap")
    plain = FACES.draw(labels, generator=rng(), vectors=vectors)
    free = vectors.clone().requires_grad_()
    tracked = FACES.draw(labels, generator=rng(), vectors=free)
    assert torch.allclose(tracked.images, plain.images, atol=1e-6)
    tracked.images.square().sum().backward()
    assert free.grad is not None
    for gene in ("skin", "face_width", "eye_size", "mouth_width"):
        assert (free.grad[:, GENES.index(gene)] != 0).all(), gene
    assert (free.grad[:, GENES.index("hair_style")] == 0).all()
