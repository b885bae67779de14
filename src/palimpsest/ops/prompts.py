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


def filled(concept: Concept) -> tuple[str, ...]:
    """The templates of the concept's kind, filled with its name."""
    return tuple(template.format(concept.name) for template in TEMPLATES[concept.kind])


def asking(concept: Concept) -> tuple[str, ...]:
    """The concept's own prompts; where it has none, its name, alone and in the templates."""
    return concept.prompts or (concept.name, *filled(concept))


def prompts_for(concept: Concept) -> list[str]:
    """Everything that asks for the concept, each once: its own prompts (else its name) and its kind's templates."""
    return list(dict.fromkeys((*asking(concept), *filled(concept))))


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
