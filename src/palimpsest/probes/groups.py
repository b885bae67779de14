"""What an audit's plan is made of: groups of pictures that ask for one concept, single pictures, and newcomers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import torch

from palimpsest.core import declared
from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest
from palimpsest.ops.prompts import holds, swapped

Role = Literal["target", "class", "neighbour", "unrelated", "empty", "listed", "paraphrase"]
ROLES: tuple[Role, ...] = (
    "target",
    "class",
    "neighbour",
    "unrelated",
    "empty",
)  # of an audit; paraphrases are the exam's
LISTED: Role = "listed"  # prompts that users bring
Seed = Annotated[int, declared.Within(0, 2**64 - 1)]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The pictures that ask for one concept.

    Args:
        role: target, class (of a newcomer), neighbour (close to a target), unrelated, empty (the empty prompt), listed
            (prompts of a file that the user brought), or paraphrase (a target in other words).
        concept: what is asked for; None for the empty prompt and for prompts of a file.
        prompts: sentences that ask for it.
        seeds: pictures a prompt; one that brings its own seed has one picture.
        reason: why this concept is here, in words for the reader.
        file: what the file of prompts is called; "" where the audit chose them.
        row_seeds, row_guidance: of each prompt of a file, None where its row gives none; () where no row does.

    Raises:
        BadRequest: not one seed or scale for each prompt.
    """

    role: Role
    concept: Concept | None
    prompts: tuple[str, ...]
    seeds: int
    reason: str = ""
    file: str = ""
    row_seeds: tuple[Seed | None, ...] = ()
    row_guidance: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        for what, values in (("seeds", self.row_seeds), ("guidance", self.row_guidance)):
            if values and len(values) != len(self.prompts):
                raise BadRequest(f"{len(values)} {what} for {len(self.prompts)} prompts; give one for each.")

    @property
    def name(self) -> str:
        return self.file if self.concept is None else self.concept.name

    @cached_property
    def pictures(self) -> tuple[tuple[str, int | None, float | None, int], ...]:
        """Of each picture, prompt by prompt: the prompt, its own seed and guidance, and when its turn comes: those of
        every prompt's first seed before any second one, those of a file in any order."""
        n = len(self.prompts)
        seeds, scales = self.row_seeds or (None,) * n, self.row_guidance or (None,) * n
        rows = [
            (s * n + i, prompt, seed, scale)
            for i, (prompt, seed, scale) in enumerate(zip(self.prompts, seeds, scales, strict=True))
            for s in range(self.seeds if seed is None else 1)
        ]
        keys = sorted(row[0] for row in rows)
        # Files are often sorted: an audit that stops early must not have seen their beginning alone.
        order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0)).tolist()
        turns = dict(zip(keys, order if self.role == LISTED else range(len(keys)), strict=True))
        return tuple((prompt, seed, scale, turns[key]) for key, prompt, seed, scale in rows)


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A newcomer that the edited model was taught, and what other models are asked for in its place.

    Args:
        name: what prompts say for it, the name of its target.
        like: what the untouched model is asked for in its place: the word of its class.
        known: what a model that always knew it calls it; "": as it is taught.
        references: how many pictures of it were given.
        consent: what the person shown agreed to, in the user's words; "": nothing was said.
    """

    name: str
    like: str
    known: str = ""
    references: int = 0
    consent: str = ""

    def said(self, prompt: str, which: str) -> str:
        """A prompt as the models of a set are asked."""
        other = {"before": self.like, "other": self.like, "oracle": self.known}.get(which, "")
        if not other or not holds(prompt, self.name):
            return prompt
        if other[:1].isupper():  # a name of its own has no article: "a <v> person" is Ada
            prompt = re.sub(rf"\ban? (?={re.escape(self.name)})", "", prompt)
        return swapped(prompt, self.name, other)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """One of several changes that were merged.

    Args:
        name: what it is called, such as its folder. sha256: of the patch, or of the whole edited model.
        about: names of the targets that it is about; () where nobody said.
    """

    name: str
    sha256: str = ""
    about: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture to draw: group is an index into the plan's groups; guidance is its own, None: the plan's."""

    group: int
    prompt: str
    seed: int
    guidance: float | None = None


class Scope(NamedTuple):
    """Pictures that are read together: those of a role, or of one file of prompts, whose name is `name`.

    `rows` are of the plan's shots, `twins` of its twins.
    """

    role: Role
    name: str
    rows: torch.Tensor
    twins: torch.Tensor
