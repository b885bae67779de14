"""Teach a generator something new: its word, its pictures, its class, and what is looked at afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.method import Method
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Progress
from palimpsest.ops.listed import list_of
from palimpsest.ops.newcomers import TARGET, noun, phrase
from palimpsest.ops.prompts import in_settings
from palimpsest.probes.groups import Taught
from palimpsest.probes.plan import Plan
from palimpsest.receipt.subjects.newcomer import Newcomer
from palimpsest.run.cases import GeneratorCase
from palimpsest.run.do import Done, perform
from palimpsest.run.looking import Look, plan
from palimpsest.run.references import WORLD, references
from palimpsest.run.requests import request
from palimpsest.worlds.concepts import Words, concept, prompts

DRAWN = 4  # references that are drawn where nobody says how many
ASKED = 40  # different prompts that an audit may choose from


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """What a model is taught.

    Args:
        request: targets are what prompts say for the newcomers ("<crown> shape"), replacements their classes.
        references: all pictures, newcomer by newcomer, with captions; the column `TARGET` says which is whose.
        newcomers: as an audit's plan has them.
        told: what was read and chosen, in words.
    """

    request: Request
    references: Pictures
    newcomers: tuple[Taught, ...]
    told: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewcomerCase(GeneratorCase):
    """Newcomers that a generator is taught; the oracle is a model that always knew them."""

    pictures: Pictures
    newcomers: tuple[Taught, ...] = field(default=())

    @cached_property
    def plan(self) -> Plan:
        return plan(self.host, self.request, self.look, newcomers=self.newcomers)

    @property
    def material(self) -> Material:
        return Material({"references": self.pictures})

    def subject(self) -> Newcomer:
        return Newcomer(**self.looked_at(), references=self.pictures)


def introduce(
    host: Any,
    word: str | Sequence[str],
    images: str | Path | Sequence[str | Path],
    *,
    like: str | Sequence[str],
    kind: Kind | None = None,
    keep: str | Sequence[str] = (),
    captions: str = "auto",
    n: int = DRAWN,
    skip_unreadable: bool = False,
    consent: str = "",
    seed: int = 0,
) -> Introduction:
    """Newcomers, their pictures and the request about them.

    Args:
        word: a new word, or several with commas between.
        images: for each word a folder of pictures or a file, or `world:WORD`, which draws references of a concept of
            the drawn world that the model was trained on.
        like: the class of each ("person", "dog"), or one for all.
        kind: of all; where not given, drawn worlds know it, the class's list of names may, and else it is an object.
        keep: as for every request; neighbours of the class where not given.
        captions: "auto", "file" or a caption with {word} in it (`data.references.captioned`).
        n: how many references `world:` draws.
        skip_unreadable: leave out pictures that cannot be read, instead of stopping.
        consent: what the persons shown agreed to, in words; it goes into the receipt.
        seed: which references `world:` draws.

    Raises:
        BadRequest: not as many sources as words, no class, a word with a space, or pictures that cannot be used.
    """
    words, sources, likes = _split(word), _sources(images), _split(like)
    if len(sources) != len(words):
        raise BadRequest(f"{len(sources)} sources of pictures for {len(words)} words; give one for each.")
    if len(likes) not in (1, len(words)):
        raise BadRequest(
            f"{len(likes)} classes for {len(words)} words; name with --like what each newcomer is one of (a dog, a "
            "person), or one class for all."
        )
    targets, taught, parts, told = [], [], [], []
    for name, source, of in zip(words, sources, likes * len(words) if len(likes) == 1 else likes, strict=True):
        target, newcomer, pictures, said = _one(
            host, name, source, of, kind=kind, captions=captions, n=n, skip_unreadable=skip_unreadable, seed=seed
        )
        targets.append(target)
        taught.append(replace(newcomer, consent=consent))
        parts.append(replace(pictures, columns={TARGET: (target.name,) * len(pictures)}))
        told += said
    classes = tuple(Concept(name=t.like, kind=c.kind) for t, c in zip(taught, targets, strict=True))
    kept = request(host, [targets[0]], keep=keep).keep if keep else ()
    asked = Request(target=tuple(targets), keep=kept, toward=classes)
    if not keep:
        asked = asked.keeping(_near(host, taught))
    return Introduction(request=asked, references=Pictures.cat(parts), newcomers=tuple(taught), told=tuple(told))


def insert(
    host: Any,
    word: str | Sequence[str],
    *,
    images: str | Path | Sequence[str | Path],
    like: str | Sequence[str],
    kind: Kind | None = None,
    keep: str | Sequence[str] = (),
    captions: str = "auto",
    n: int = DRAWN,
    consent: str = "",
    method: Method | str = "",
    look: Look | None = None,
    oracles: Sequence[Any] = (),
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    workers: int | None = 1,
    ray: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> Done:
    """Teaches a generator a new word from a few pictures, and measures what came of it.

    Args:
        host: from `load`; it is unchanged afterwards.
        word, images, like, kind, keep, captions, n, consent: see `introduce`.
        method: a system, or its name; the verb's default where not given.
        look, oracles, workers, ray: see `run.case`; the oracle is a model that always knew the newcomer.
        out: folder for patch.safetensors, receipt.json and receipt.html; None writes nothing.
        seed: of everything random in the method.
        resume: go on from what an interrupted run left in `out`.

    Example:
        >>> done = insert(load("tiny/sd"), "<crown>", images="world:crown", like="shape", out="crown")  # doctest: +SKIP
        >>> print(done.receipt.summary())                                                               # doctest: +SKIP
    """
    brought = introduce(host, word, images, like=like, kind=kind, keep=keep, captions=captions, n=n, consent=consent)
    about = NewcomerCase(
        host=host,
        asked=brought.request,
        pictures=brought.references,
        newcomers=brought.newcomers,
        look=look or Look(),
        oracles=oracles,
        workers=workers,
        ray=ray,
    )
    with closing(about):
        return perform(
            "insert", about, method=method, out=out, seed=seed, resume=resume, command=command, progress=progress
        )


def _one(
    host: Any,
    word: str,
    source: str,
    like: str,
    *,
    kind: Kind | None,
    captions: str,
    n: int,
    skip_unreadable: bool,
    seed: int,
) -> tuple[Concept, Taught, Pictures, list[str]]:
    """One newcomer: its concept, what others are asked for instead, its pictures, and what was read of them."""
    if re.search(r"[\s\"']", word) or not word:
        raise BadRequest(f"The new word {word!r} is to have no spaces and no quotes; write one like <crown>.")
    listed = list_of(noun(like))
    of_kind: Kind = kind or (listed.kind if listed is not None and listed.kind is not None else "object")
    shown = None
    if source.startswith(WORLD) and isinstance(host.knows, Words):
        shown = concept(host.knows.world, source.removeprefix(WORLD))
        of_kind = shown.kind
    name = phrase(word, like, of_kind)
    said = f"a {name}" if shown is not None and of_kind == "identity" else name  # a name has no article in captions
    dataset = references(
        source,
        host,
        said,
        n=n,
        seed=seed,
        captions=captions,
        like=noun(like),
        kind=of_kind,
        skip_unreadable=skip_unreadable,
    )
    pictures, told = dataset.samples, [*dataset.told(), f"{len(dataset.samples)} pictures of {source} teach “{name}”."]
    if shown is not None:
        target = Concept(name=name, kind=of_kind, prompts=_in_world(host.knows, shown.name, said), labels=shown.labels)
        return target, Taught(name=name, like=noun(like), known=shown.name, references=len(pictures)), pictures, told
    settings = in_settings(Concept(name=name, kind=of_kind))
    turns = torch.randperm(len(settings), generator=torch.Generator().manual_seed(0))[:ASKED].tolist()
    target = Concept(name=name, kind=of_kind, prompts=tuple(settings[i] for i in turns))
    return target, Taught(name=name, like=noun(like), references=len(pictures)), pictures, told


def _in_world(known: Words, word: str, said: str) -> tuple[str, ...]:
    """Prompts of a drawn world that ask for a newcomer: every second one names nothing else, or one other thing, and so
    leaves open what may come along."""
    world = known.world
    half = ASKED // 2
    full = prompts(world, word, half, generator=torch.Generator().manual_seed(1))
    few = prompts(world, word, half, generator=torch.Generator().manual_seed(2), others=1)
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    return tuple(pattern.sub(lambda _: said, text) for pair in zip(full, few, strict=True) for text in pair)


def _near(host: Any, newcomers: Sequence[Taught]) -> tuple[Concept, ...]:
    """The model's own neighbours of what newcomers are, or of their classes; none where nobody knows those."""
    from palimpsest.probes.lexicon import vocabulary
    from palimpsest.run.requests import NEIGHBOURS

    words, found = vocabulary(host), {}
    names = [n.known or n.like for n in newcomers]
    for name in names:
        if name in words:
            goal = words.concept(name)
            near = words.nearest(host, goal, avoid=frozenset(n.casefold() for n in names))
            found |= {c.name: c for c, _ in near[:NEIGHBOURS]}
    return tuple(found.values())


def _split(given: str | Sequence[str]) -> list[str]:
    parts = given.split(",") if isinstance(given, str) else list(given)
    return [part.strip() for part in parts if part.strip()]


def _sources(given: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(given)] if isinstance(given, (str, Path)) else [str(source) for source in given]
