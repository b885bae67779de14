"""Concepts and prompts of the worlds."""

from __future__ import annotations

import pytest
import torch

from palimpsest.core.errors import BadRequest
from palimpsest.worlds.concepts import WORLDS, concept, key_of, prompts, siblings


@pytest.mark.parametrize(
    ("world", "word", "kind"),
    [
        ("glyphs", "star", "object"),
        ("glyphs", "Sketch", "style"),
        ("glyphs", "red", "attribute"),
        ("faces", "sketch", "style"),
    ],
)
def test_words_become_concepts(world: str, word: str, kind: str) -> None:
    found = concept(WORLDS[world], word)
    assert found.kind == kind
    assert found.name == word.lower()
    assert WORLDS[world].read(found.prompts[0])[key_of(WORLDS[world], word) or ""] == found.name


def test_a_word_comes_with_every_wording_of_the_captions() -> None:
    assert concept(WORLDS["glyphs"], "star").prompts == ("a star",)
    styles = concept(WORLDS["glyphs"], "sketch").prompts
    assert styles[0] == "a shape in sketch style"
    assert {"a sketch shape", "a sketch picture of a shape", "sketch, a shape"} == set(styles[1:])
    assert concept(WORLDS["faces"], "Ada").prompts == ("a portrait of Ada", "Ada")
    for world in WORLDS.values():
        for word in (w for k, words in world.vocabulary.items() if not k.endswith("2") for w in words):
            key = key_of(world, word) or ""
            if key != "relation":
                assert all(world.read(p) == {key: word} for p in concept(world, word).prompts), word


def test_unknown_words_are_refused_with_neighbours() -> None:
    with pytest.raises(BadRequest, match="star"):
        concept(WORLDS["glyphs"], "starr")


@pytest.mark.parametrize(("world", "word"), [("glyphs", "star"), ("glyphs", "blue"), ("glyphs", "neon"), ("faces", "")])
def test_prompts_ask_for_the_word_in_varied_contexts(world: str, word: str) -> None:
    w = WORLDS[world]
    word = word or w.vocabulary["identity"][0]
    g = torch.Generator().manual_seed(0)
    found = prompts(w, word, 25, generator=g, avoid=frozenset({"moon"}))
    key = key_of(w, word) or ""
    assert len(set(found)) == 25
    assert all(w.read(p)[key] == word for p in found)
    assert not any("moon" in p for p in found)
    assert prompts(w, word, 25, generator=torch.Generator().manual_seed(0), avoid=frozenset({"moon"})) == found


def test_siblings_are_trained_words_of_the_same_key() -> None:
    w = WORLDS["glyphs"]
    found = siblings(w, "star")
    assert "star" not in found
    assert "moon" in found
    assert not set(found) & w.held_out["subject"]
