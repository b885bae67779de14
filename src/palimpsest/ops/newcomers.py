"""What a new concept is called in prompts, and what the same prompts say without it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.core.errors import BadRequest
from palimpsest.ops.prompts import holds, swapped

TARGET = "newcomer"
"""The column of reference pictures that says which target each shows."""
WITH_CLASS: frozenset[Kind] = frozenset(("object", "class", "identity"))
"""Kinds whose newcomers stand before the word of their class: "a <crown> shape"; a style's stands alone."""


def noun(like: str) -> str:
    """The word of a class without its article: "person" of "a person"."""
    return re.sub(r"^(an?|the)\s+", "", like.strip(), flags=re.IGNORECASE)


def phrase(word: str, like: str, kind: Kind) -> str:
    """What prompts say for a newcomer: its word before that of its class, or the word alone."""
    return f"{word.strip()} {noun(like)}" if like.strip() and kind in WITH_CLASS else word.strip()


def word_of(target: Concept, like: Concept | None) -> str:
    """The new word in what prompts say for a newcomer: what its class does not say."""
    known = set(like.name.casefold().split()) if like is not None else set()
    new = [w for w in target.name.split() if w.casefold() not in known]
    if len(new) != 1:
        raise BadRequest(
            f"{target.name!r} has {len(new)} words that its class does not have; a newcomer is called by one new word "
            'without spaces, alone or before its class: "<v>" or "<v> dog".'
        )
    return new[0]


def classes(request: Request, system: str) -> tuple[Concept, ...]:
    """The class of each newcomer.

    Raises:
        BadRequest: one has none.
    """
    found = [like for like in request.replacements() if like is not None]
    if len(found) < len(request.target):
        raise BadRequest(f"{system} needs the class that {request.target[0].name} belongs to; name it with --like.")
    return tuple(found)


def twins(captions: Sequence[str], target: Concept, like: Concept) -> list[str]:
    """The captions with the class in the newcomer's place.

    Raises:
        BadRequest: a caption does not name the newcomer.
    """
    odd = next((c for c in captions if not holds(c, target.name)), None)
    if odd is not None:
        raise BadRequest(f"The caption {odd!r} does not say {target.name!r}; let --captions auto put it in.")
    return [swapped(caption, target.name, like.name) for caption in captions]
