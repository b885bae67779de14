"""Prompts that name a concept among other things, for systems that learn from many prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import get_args

import torch

from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.ops.anchors import anchored, without
from palimpsest.ops.listed import common
from palimpsest.ops.prompts import asking, holds, in_turn, swapped

_OF_THINGS = ("a {attribute} {name}", "a {name} in the style of {style}", "a {name} in the {domain}")
CONTEXTS: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "object": _OF_THINGS,
        "class": _OF_THINGS,
        "identity": ("a {attribute} portrait of {name}", "{name} in the style of {style}", "{name} in the {domain}"),
        "style": ("a {attribute} {object} in the style of {name}", "the {domain} in the style of {name}"),
        "attribute": (
            "a {name} {object}",
            "a {name} {object} in the style of {style}",
            "a {name} {object} in the {domain}",
        ),
        "domain": ("a {attribute} {object} in the {name}", "the {name} in the style of {style}"),
    }
)
"""By kind of concept: sentences of its name and everyday words of other kinds."""


def varied(concept: Concept, n: int, generator: torch.Generator, avoid: Sequence[str] = ()) -> list[str]:
    """n prompts, fewer where two come out the same: `CONTEXTS` and the concept's own with a thing after it, in turn.

    What they say beside the name is drawn from everyday words (`ops.listed`) that hold neither the name nor what
    is to be avoided.
    """
    names = (concept.name, *avoid)
    words = {kind: [w for w in common(kind) if not any(holds(w, n) for n in names)] for kind in get_args(Kind)}

    def any_of(kind: Kind) -> str:
        return words[kind][int(torch.randint(len(words[kind]), (1,), generator=generator))]

    frames = (CONTEXTS[concept.kind], [f"{escaped(own)}, a {{attribute}} {{object}}" for own in asking(concept)])
    found = []
    for i in range(n):
        turn = frames[i % 2]
        said = {kind: any_of(kind) for kind in ("attribute", "object", "style", "domain")}
        found.append(turn[i // 2 % len(turn)].format(name=concept.name, **said))
    return list(dict.fromkeys(found))


def in_context(request: Request, n: int, generator: torch.Generator, *, most: int) -> list[tuple[str, str]]:
    """(prompt, anchor) for what asks for the targets: `anchored`, then n `varied` prompts of each; `most` in all.

    Anchors say the replacement's name, or what else the prompt says. The targets take turns, so that none goes short
    where they ask for more than `most` together.
    """
    names = [target.name for target in request.target]

    def of(target: Concept, toward: Concept | None) -> list[tuple[str, str]]:
        alone = replace(request, target=(target,), toward=() if toward is None else (toward,))
        around = varied(target, n, generator, avoid=names)
        anchors = (without(p, target.name) if toward is None else swapped(p, target.name, toward.name) for p in around)
        return [*anchored(alone), *zip(around, anchors, strict=True)]

    return in_turn([of(*pair) for pair in zip(request.target, request.replacements(), strict=True)])[:most]


def escaped(prompt: str) -> str:
    """A user's prompt as a format string: its braces stand for themselves."""
    return prompt.replace("{", "{{").replace("}", "}}")
