"""Prompts that name a concept among other things."""

from __future__ import annotations

import pytest

from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.ops.contexts import CONTEXTS, in_context, varied
from palimpsest.ops.prompts import holds, swapped
from palimpsest.train.randomness import generator

STAR = Concept(name="star", kind="object", prompts=("a {red} star", "a star"))


@pytest.mark.parametrize("kind", sorted(CONTEXTS))
def test_every_prompt_names_the_concept_once_and_no_two_are_the_same(kind: Kind) -> None:
    concept = Concept(name="glass", kind=kind)  # "stained glass" is a style, "glass" an attribute: neither is drawn
    found = varied(concept, 80, generator(0, "test"))
    assert 60 < len(found) <= 80
    assert len(set(found)) == len(found)
    for prompt in found:
        assert prompt.count("glass") == 1, prompt


def test_own_prompts_come_with_a_thing_after_them_and_keep_their_braces() -> None:
    found = varied(STAR, 8, generator(0, "test"))
    assert [p.startswith(("a {red} star, a ", "a star, a ")) for p in found] == [False, True] * 4


def test_the_same_seed_says_the_same() -> None:
    assert varied(STAR, 20, generator(3, "test")) == varied(STAR, 20, generator(3, "test"))
    assert varied(STAR, 20, generator(3, "test")) != varied(STAR, 20, generator(4, "test"))


def test_anchors_say_the_rest_or_the_replacement() -> None:
    moon = Concept(name="moon", kind="object")
    alone = in_context(Request(target=(STAR,)), 20, generator(0, "test"), most=99)
    assert alone[:2] == [("a {red} star", "a {red}"), ("a star", "a")]
    assert 20 < len(alone) < 30
    for prompt, anchor in alone:
        assert not holds(anchor, "star")
        assert anchor == " ".join(swapped(prompt, "star", "").split())
    both = Request(target=(STAR, Concept(name="sun", kind="object")), toward=(moon, moon))
    for prompt, anchor in in_context(both, 40, generator(0, "test"), most=99):
        assert holds(prompt, "star") == (not holds(prompt, "sun"))  # neither target is said of the other
        assert anchor == swapped(prompt, "star" if holds(prompt, "star") else "sun", "moon")


def test_targets_take_turns_where_there_is_no_room_for_all() -> None:
    names = ("star", "sun", "heart", "ring")
    many = Request(target=tuple(Concept(name=n, kind="object") for n in names))
    pairs = in_context(many, 200, generator(0, "test"), most=100)
    assert [sum(holds(prompt, n) for prompt, _ in pairs) for n in names] == [25] * 4
    assert in_context(many, 0, generator(0, "test"), most=4) == [(n, "") for n in names]
