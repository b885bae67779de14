"""The words that a model knows, as methods and probes may ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from palimpsest.core.concept import Concept, Kind


class Vocabulary(Protocol):
    """The words that a model knows, and who can tell whether a picture shows one."""

    @property
    def name(self) -> str:
        """As messages call it: "glyphs"."""
        ...

    @property
    def judge(self) -> str:
        """Source of the judge that knows these words, as `--judge` takes it; "" where there is none."""
        ...

    def concept(self, word: str, kind: Kind | None = None) -> Concept:
        """A word as a Concept with its kind, prompts and labels; `kind` serves where the vocabulary leaves it open.

        Raises:
            BadRequest: the word is not known; the message names those that come close.
        """
        ...

    def __contains__(self, word: str) -> bool:
        """Whether the model knows a word; case does not matter."""
        ...

    def nearest(self, host: Any, concept: Concept, *, avoid: frozenset[str]) -> Sequence[tuple[Concept, float]]:
        """All other words of the same kind and their text states' cosine with the concept's, nearest first."""
        ...

    def others(self, concepts: Sequence[Concept], *, avoid: frozenset[str]) -> Sequence[tuple[Concept, str]]:
        """Words of other kinds than these concepts', one of each kind in turn, each with its kind in words; `avoid`:
        names in lower case that are left out."""
        ...

    def prompts(
        self, concept: Concept, n: int, *, generator: torch.Generator, avoid: frozenset[str] = frozenset()
    ) -> list[str]:
        """n different prompts that ask for a concept, each in another context, none naming a word to avoid."""
        ...
