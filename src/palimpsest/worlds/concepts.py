"""The words of the worlds as concepts: what kind they are, and varied prompts that ask for them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor

from palimpsest.core.concept import Concept, Kind
from palimpsest.core.declared import OPEN, read
from palimpsest.core.errors import BadRequest
from palimpsest.ops.neighbours import nearest
from palimpsest.worlds.faces import FACES
from palimpsest.worlds.glyphs import GLYPHS
from palimpsest.worlds.picture import Pictures

_NONE = {"glasses": "without glasses", "hat": "bareheaded", "expression": "neutral"}
_KINDS: dict[str, Kind] = {"subject": "object", "style": "style", "background": "domain", "identity": "identity"}
# What else a prompt says, by the key of the concept: enough to vary the picture, not so much that it is a list.
_CONTEXT = {
    "glyphs": ("subject", "colour", "style", "background"),
    "faces": ("identity", "expression", "glasses", "style"),
}


class World(Protocol):
    """What Glyphs and Faces have in common."""

    @property
    def name(self) -> str: ...
    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]: ...
    @property
    def held_out(self) -> dict[str, frozenset[str]]: ...
    def sample(
        self, n: int, *, generator: torch.Generator, without: frozenset[str] = frozenset(), held_out: bool = False
    ) -> dict[str, Tensor]: ...
    def draw(
        self, labels: dict[str, Tensor], *, generator: torch.Generator, captions: list[str] | None = None
    ) -> Pictures: ...
    def caption(self, labels: dict[str, Tensor], *, generator: torch.Generator) -> list[str]: ...
    def prompt(self, **words: str) -> str: ...
    def wordings(self, **words: str) -> tuple[str, ...]: ...
    def read(self, prompt: str) -> dict[str, str]: ...


WORLDS: Mapping[str, World] = {"glyphs": GLYPHS, "faces": FACES}


class Drawn(TypedDict):
    """What world.json says of the pictures; how they are sampled is the host's."""

    world: Literal["glyphs", "faces"]


def world_of(folder: Path | None) -> World | None:
    """The world that a model folder was trained on, as its `world.json` says; None for models of other pictures.

    Raises:
        Damaged: the file names no world.
    """
    if folder is None or not (folder / "world.json").is_file():
        return None
    return WORLDS[read(folder / "world.json", Annotated[Drawn, OPEN], "a drawn world")["world"]]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Words:
    """A world's words as the vocabulary of a model that was trained on it (`core.host.Vocabulary`)."""

    world: World

    @property
    def name(self) -> str:
        return self.world.name

    @property
    def judge(self) -> str:
        return f"tiny/{self.world.name}"

    def concept(self, word: str, kind: Kind | None = None) -> Concept:
        return concept(self.world, word)  # which knows the kind

    def __contains__(self, word: str) -> bool:
        return key_of(self.world, word) is not None

    def others(self, concepts: Sequence[Concept], *, avoid: frozenset[str]) -> list[tuple[Concept, str]]:
        keys = {key_of(self.world, c.name) for c in concepts}
        kinds = [k for k in self.world.vocabulary if k not in keys and not k.endswith("2") and k != "relation"]
        out = self.world.held_out
        columns = [
            [w for w in self.world.vocabulary[k] if w not in out.get(k, ()) and w.casefold() not in avoid]
            for k in kinds
        ]
        turns = range(max(map(len, columns), default=0))
        return [
            (self.concept(c[i]), f"a {k}") for i in turns for k, c in zip(kinds, columns, strict=True) if i < len(c)
        ]

    def nearest(self, host: Any, concept: Concept, *, avoid: frozenset[str]) -> list[tuple[Concept, float]]:
        others = [self.concept(w) for w in siblings(self.world, concept.name) if w.casefold() not in avoid]
        return nearest(host, concept, others, len(others))

    def prompts(
        self, concept: Concept, n: int, *, generator: torch.Generator, avoid: frozenset[str] = frozenset()
    ) -> list[str]:
        return prompts(self.world, concept.name, n, generator=generator, avoid=avoid)


def vocabulary_of(folder: Path) -> Words | None:
    """The vocabulary of a model's folder; None where no drawn world is named in it."""
    world = world_of(folder)
    return None if world is None else Words(world)


def key_of(world: World, word: str) -> str | None:
    """The label key under which a world has a word (case does not matter); None where it has no such word."""
    for key, words in world.vocabulary.items():
        if any(word.casefold() == w.casefold() for w in words):
            return key
    return None


def none_of(world: World, word: str) -> tuple[str, str] | None:
    """The key under which a world has a word, or whose name it is, and its word for none of it ("hat" -> bareheaded).

    None where a picture always has one (a style, a pose).
    """
    key = word.casefold() if word.casefold() in _NONE else key_of(world, word)
    none = _NONE.get(key or "")
    return None if key is None or none not in world.vocabulary.get(key, ()) else (key, none)  # type: ignore[return-value]


def concept(world: World, word: str) -> Concept:
    """A world's word as a Concept, with every wording in which captions name it alone, the canonical one first.

    Raises:
        BadRequest: the world has no such word; the message names those that come close.
    """
    key = key_of(world, word)
    if key is None:
        every = [w for k, words in world.vocabulary.items() if not k.endswith("2") for w in words]
        close = difflib.get_close_matches(word, every, n=4, cutoff=0.5)
        some = ", ".join(close or every[:8])
        raise BadRequest(f"This model's world, {world.name}, has no {word!r}. Did you mean {some}?")
    name = next(w for w in world.vocabulary[key] if w.casefold() == word.casefold())
    return Concept(
        name=name,
        kind=_KINDS.get(key, "attribute"),
        prompts=world.wordings(**{key: name}),
        labels=(f"{key}:{name}",),
    )


def siblings(world: World, word: str) -> list[str]:
    """The other trained words under the same key: the candidates for neighbours."""
    key = key_of(world, word)
    if key is None:
        raise BadRequest(f"{world.name} has no {word!r}.")
    out = world.held_out.get(key, frozenset())
    return [w for w in world.vocabulary[key] if w.casefold() != word.casefold() and w not in out]


def prompts(
    world: World,
    word: str,
    n: int,
    *,
    generator: torch.Generator,
    avoid: frozenset[str] = frozenset(),
    others: int | None = None,
) -> list[str]:
    """n different prompts that ask for a word, each in another context of the world's other words.

    Args:
        others: how many other things a prompt names, of which kinds in turn; None: all that a context has.
        avoid: words that no prompt may mention, such as the target in prompts about something else.

    Raises:
        BadRequest: the world has no such word, or not n different contexts.
    """
    key = key_of(world, word)
    if key is None:
        raise BadRequest(f"{world.name} has no {word!r}.")
    keys = [k for k in _CONTEXT[world.name] if k != key]
    found: dict[str, None] = {}
    for _ in range(50):
        labels = world.sample(4 * n, generator=generator, without=avoid - {word})
        # Drawing completes the labels around the fixed word, so that no impossible pair is ever asked for.
        labels = {k: v.clone() for k, v in labels.items() if k in (*keys, key)}
        labels[key].fill_(world.vocabulary[key].index(word))
        if world.name == "glyphs" and key in ("colour", "background"):
            labels.pop("background" if key == "colour" else "colour")
        for row in range(4 * n):
            words = {k: world.vocabulary[k][int(v[row])] for k, v in labels.items() if int(v[row]) >= 0}
            if others is not None:
                said = [k for k in (*keys[row % len(keys) :], *keys[: row % len(keys)]) if k in words][:others]
                words = {k: w for k, w in words.items() if k == key or k in said}
            found.setdefault(world.prompt(**words))
            if len(found) == n:
                return list(found)
    raise BadRequest(f"{world.name} has only {len(found)} different contexts for {word!r}; ask for fewer than {n}.")
