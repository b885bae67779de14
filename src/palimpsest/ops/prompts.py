"""Sentences that ask for a concept, where the user gave only its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from palimpsest.core.concept import Concept, Kind, Request

T = TypeVar("T")

TEMPLATES: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "object": ("an image of {}", "a photo of {}", "a picture of {}", "a painting of {}", "a drawing of {}"),
        "class": ("an image of {}", "a photo of {}", "a picture of {}", "a close-up photo of {}", "a drawing of {}"),
        "identity": ("a portrait of {}", "a photo of {}", "a picture of {}", "the face of {}", "a painting of {}"),
        "style": ("a picture in the style of {}", "art by {}", "a painting by {}", "a drawing in the style of {}"),
        "attribute": ("an image that is {}", "a photo that is {}", "something {}", "a picture that shows {}"),
        "domain": ("a scene with {}", "a photo of {}", "a picture of {}", "a landscape with {}"),
    }
)
"""By kind of concept. Each ends with the name, so that the last token is the concept's own."""

_AROUND_THINGS = (
    *("in a garden", "on a table", "in front of a house", "by a window", "on a beach", "in the snow", "at night"),
    *("in the rain", "at sunset", "in a forest", "in a field", "on a street", "under a blue sky", "in a museum"),
    *("on a white background", "seen from above", "seen from the side", "in bright sunlight", "in the fog"),
    *("beside a tree", "in a small room", "on a wooden floor", "far away", "close up"),
)
_MANNERS = ("", "a photo of ", "a painting of ", "a drawing of ", "a picture of ")
_NOUNS = (
    *("car", "house", "dress", "chair", "ball", "cup", "door", "flower", "bird", "cat", "boat", "hat", "lamp", "table"),
    *("shoe", "bottle", "bicycle", "box", "man", "woman", "child", "room", "kite", "statue"),
)
_PAINTED = (
    *("a house by a river", "a portrait of a woman", "a bowl of fruit", "the night sky over a town", "a ship at sea"),
    *("a forest in autumn", "a crowded street", "a horse in a field", "a vase of flowers", "an old man reading"),
    *("a bridge", "a mountain lake", "a dancer", "a cat on a chair", "a garden", "a castle on a hill"),
    *("a table with bread and wine", "a village in winter", "a wheat field", "a storm at sea", "a child with a dog"),
    *("a cafe at night", "a church", "a train at a station"),
)
_POSED = (
    *("smiling", "reading a book", "at a desk", "on a stage", "in a garden", "wearing a hat", "in profile", "outdoors"),
    *("in a library", "by a window", "on a horse", "walking down a street", "in black and white", "in a crowd"),
    *("drinking tea", "looking into the distance", "on the cover of a magazine", "at night", "in front of a mountain"),
    *("giving a speech", "sitting in an armchair", "in bright sunlight", "on a stamp", "as a statue"),
)
_SEEN = (
    *("at night", "in the early morning", "in the rain", "in winter", "with one person walking", "with birds"),
    *("under a cloudy sky", "seen from above", "with a small house", "with a red car", "with a dog", "on a sunny day"),
    *("in thick fog", "in black and white", "with many people", "with nobody there", "with a bridge", "in summer"),
    *("with old trees", "with a bicycle", "after a storm", "in the evening light", "from far away", "with a bench"),
)
SETTINGS: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "object": tuple(f"{how}{{a}} {where}" for where in _AROUND_THINGS for how in _MANNERS),
        "class": tuple(f"{how}{{a}} {where}" for where in _AROUND_THINGS for how in _MANNERS),
        "identity": tuple(f"{how}{{}} {where}" for where in _POSED for how in ("", "a portrait of ", *_MANNERS[1:])),
        "style": tuple(f"{what}{by}" for what in _PAINTED for by in (" in the style of {}", ", {}", ", art by {}")),
        "attribute": tuple(f"{how}{{a}} {noun}" for noun in _NOUNS for how in _MANNERS),
        "domain": tuple(f"{how}{{a}} {when}" for when in _SEEN for how in _MANNERS),
    }
)
"""By kind of concept: the name ({}; {a}: with its article) in another place, pose or light each, a hundred and more."""


def filled(concept: Concept) -> tuple[str, ...]:
    """The templates of the concept's kind, filled with its name."""
    return tuple(template.format(concept.name) for template in TEMPLATES[concept.kind])


def asking(concept: Concept) -> tuple[str, ...]:
    """The concept's own prompts; where it has none, its name, alone and in the templates."""
    return concept.prompts or (concept.name, *filled(concept))


def prompts_for(concept: Concept) -> list[str]:
    """Everything that asks for the concept, each once: its own prompts (else its name) and its kind's templates."""
    return list(dict.fromkeys((*asking(concept), *filled(concept))))


def in_settings(concept: Concept) -> tuple[str, ...]:
    """The settings of the concept's kind, filled with its name; names in small letters get an article."""
    name = concept.name
    several = name.endswith("s") and not name.endswith(("ss", "us", "is"))
    article = "" if name != name.lower() or (several and concept.kind != "attribute") else "a "
    article = "an " if article and name[:1] in "aeiou" else article
    return tuple(setting.format(name, a=article + name) for setting in SETTINGS[concept.kind])


def answered(request: Request) -> list[tuple[str, str]]:
    """(prompt, what it is answered as) for everything that asks for a target: its own prompts, its name, templates.

    The answer is the same prompt with the replacement's name; the empty prompt where the request names none.
    """
    return [
        (prompt, "" if toward is None else swapped(prompt, target.name, toward.name))
        for target, toward in zip(request.target, request.replacements(), strict=True)
        for prompt in prompts_for(target)
    ]


def kept(request: Request) -> list[str]:
    """What asks for the kept concepts, in turn: each one's own prompt (else its name) first, then the next of each."""
    return in_turn([prompts_for(c) for c in request.keep])


def in_turn(rows: Sequence[Sequence[T]]) -> list[T]:
    """The first of each row, then the second of each, until all are through."""
    return [row[i] for i in range(max(map(len, rows), default=0)) for row in rows if i < len(row)]


def up_to(prompt: str, name: str) -> str:
    """The prompt up to and including the concept's name; the whole prompt where the name does not occur.

    For a causal text encoder the last state of this text is the state of the name's last token in the full prompt.
    """
    found = _word(name).search(prompt)
    return prompt if found is None else prompt[: found.end()]


def holds(prompt: str, name: str) -> bool:
    """Whether the name occurs in the prompt."""
    return _word(name).search(prompt) is not None


def swapped(prompt: str, name: str, other: str) -> str:
    """The prompt with the concept's name replaced; just the other name where the concept's does not occur."""
    text, count = _word(name).subn(lambda _: other, prompt)
    return text if count else other


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of at most `size` items, in order."""
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name.strip())}(?!\w)", re.IGNORECASE)
