"""What a prompt asks for beside the target, for requests that name nothing to put in the target's place."""

from __future__ import annotations

from palimpsest.core.concept import Request
from palimpsest.ops.prompts import answered, kept, swapped


def without(prompt: str, name: str) -> str:
    """The prompt without the concept's name; empty where nothing else is left."""
    found = swapped(prompt, name, "")
    return "" if found == prompt else " ".join(found.split())


def anchored(request: Request) -> list[tuple[str, str]]:
    """(prompt, anchor) for everything that asks for a target, as `answered`; without a replacement, the rest of it.

    "a red star on a sheet" then stands against "a red on a sheet": whatever else the prompt asked for stays as it was.
    """
    names = [concept.name for concept in request.target]
    if request.toward:
        return answered(request)
    return [(prompt, _rest(prompt, names)) for prompt, _ in answered(request)]


def staying(request: Request) -> list[str]:
    """What must stay: the anchors' prompts and those of the kept concepts, each once."""
    return list(dict.fromkeys((*(anchor for _, anchor in anchored(request)), *kept(request))))


def _rest(prompt: str, names: list[str]) -> str:
    for name in names:
        if rest := without(prompt, name):
            return rest
    return ""
