"""Words that a patch brings: vectors that a text encoder reads where the word stands in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.declared import shown
from palimpsest.core.delta import REAL
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.core.host import Denoiser

LONGEST = 64  # letters of a word
MOST = 64  # vectors of a word; a prompt of CLIP's has room for 75
QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"


@dataclass(frozen=True, kw_only=True, eq=False)
class Word:
    """What text encoders read where a word stands.

    Args:
        vectors: (k, d) by the name of the token table that they stand in for (`host.parts("token_embedding")`).
        reads_as: the plain text that encoders without vectors of it read in its place, such as the class that it
            belongs to: T5, beside the CLIP encoders of SD3 and Flux. "" where every encoder has vectors.
    """

    vectors: Mapping[str, Tensor]
    reads_as: str = ""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Word:
        """The same word with changed vectors."""
        return replace(self, vectors={table: change(vectors) for table, vectors in self.vectors.items()})

    def same(self, other: Word) -> bool:
        """Whether both mean the same to the bit."""
        a, b = self.vectors, other.vectors
        return self.reads_as == other.reads_as and set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)

    def fits(self, word: str, host: Any) -> None:
        """Holds the word against a model.

        Raises:
            Unsupported: the model reads no prompts.
            WrongBase: it lacks a token table that the word has vectors for.
            Damaged: vectors are not as wide as the table's.
            BadRequest: an encoder has neither vectors nor a text for the word.
        """
        if not isinstance(host, Denoiser):
            raise Unsupported(f"The patch brings the word {shown(word)}; {host.name} reads no prompts.")
        tables: dict[str, Any] = {name: table.weight for name, table in host.parts("token_embedding").items()}
        for name, vectors in self.vectors.items():
            if name not in tables:
                known = ", ".join(tables) or "none"
                raise WrongBase(
                    f"{shown(word)} has vectors for {shown(name, 120)}; the tables of {host.name}: {known}."
                )
            if vectors.shape[1] != tables[name].shape[1]:
                raise Damaged(f"{shown(word)} has vectors of {vectors.shape[1]}; {name} has {tables[name].shape[1]}.")
        lacking = sorted(set(tables) - set(self.vectors))
        if lacking and not self.reads_as:
            raise BadRequest(
                f"{shown(word)} has no vectors for {lacking[0]} of {host.name}; give them, or a text that this "
                "encoder reads in its place (reads_as), such as the class that the word belongs to."
            )


def sound(words: Mapping[str, Word]) -> Mapping[str, Word]:
    """The words, if each can be told in a prompt and has vectors of a sound form.

    Raises:
        BadRequest: one cannot, or two differ in capitals alone.
    """
    told: dict[str, str] = {}
    for word, meant in words.items():
        if why := _why_not(word) or _form(meant):
            raise BadRequest(f"{shown(word)} cannot be a word of a patch: {why}.")
        if (other := told.setdefault(word.casefold(), word)) != word:
            raise BadRequest(f"{shown(word)} and {shown(other)} are one word to a text encoder; rename one of them.")
    return words


def united(several: list[Mapping[str, Word]]) -> dict[str, Word]:
    """All words of several patches.

    Raises:
        BadRequest: two patches bring one word with different meanings.
    """
    found: dict[str, Word] = {}
    for words in several:
        for word, meant in words.items():
            if not found.setdefault(word, meant).same(meant):
                raise BadRequest(
                    f"Two patches bring the word {shown(word)} with different vectors; rename one of them."
                )
    sound(found)
    return found


def _why_not(word: str) -> str:
    if not 0 < len(word) <= LONGEST:
        return f"a word has 1 to {LONGEST} letters"
    if not word.isprintable() or any(letter.isspace() or letter in QUOTES for letter in word):
        return "a word has no spaces, quotes or letters that cannot be seen"
    return "" if any(map(str.isalnum, word)) else "a word has at least one letter or digit"


def _form(meant: Any) -> str:
    if not isinstance(meant, Word):
        return "it is no Word; vectors that stand before every prompt are given to `host.prefixed`"
    if not meant.vectors:
        return "it has no vectors"
    if not meant.reads_as.isprintable():
        return "the text that is read in its place has letters that cannot be seen"
    for name, vectors in meant.vectors.items():
        if vectors.dim() != 2 or not 0 < len(vectors) <= MOST or vectors.dtype not in REAL:
            form = f"{tuple(vectors.shape)}, {vectors.dtype}"
            return f"for {shown(name, 120)} it has {form} where (1 to {MOST}, d) of real numbers is expected"
        if not bool(torch.isfinite(vectors).all()):
            return f"its vectors for {shown(name, 120)} are not finite"
    return ""
