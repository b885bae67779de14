"""Words of patches in the prompts of a pipeline: what its tokenizers and text encoders make of them.

A word never gets an id that reaches an encoder: CLIP models whose `eos_token_id` is 2 (Stable Diffusion 1, both of
SDXL) find the pooled state at the *largest* id, which a new one would be. In the rows of ids that stand between
tokenizer and encoder a word's vectors are numbers below zero; on the way in they give place to an ordinary id, and what
the table looks up there to the vectors. Nothing of the model or its tokenizers changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.core.declared import shown
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.words import Word


class Speech:
    """The words that a host speaks just now."""

    def __init__(self) -> None:
        self._said: list[Mapping[str, Word]] = []

    @property
    def words(self) -> dict[str, Word]:
        return {word: meant for words in self._said for word, meant in words.items()}

    @contextmanager
    def speaking(self, words: Mapping[str, Word]) -> Iterator[None]:
        """The host speaks these words too, until the context ends; contexts may end in any order."""
        known = {word.casefold(): meant for word, meant in self.words.items()}
        for word, meant in words.items():
            if not known.get(word.casefold(), meant).same(meant):
                raise BadRequest(f"The word {shown(word)} is spoken with another meaning already; rename one of them.")
        said = dict(words)
        self._said.append(said)
        try:
            yield
        finally:
            self._said[:] = [other for other in self._said if other is not said]

    def read_by(self, table: str) -> Spoken:
        """What the encoder with the token table of this name reads."""
        return Spoken(words=self.words, table=table)


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What one text encoder reads where words stand: vectors, or a plain text where a word has none for its table."""

    words: Mapping[str, Word]
    table: str

    def vectors(self, device: torch.device) -> Tensor | None:
        """(m, d) of all words one after the other; None where there are none."""
        found = [meant.vectors[self.table].to(device) for meant in self.words.values() if self.table in meant.vectors]
        return torch.cat(found) if found else None

    def pieces(self, prompt: str) -> list[str | range]:
        """The prompt as plain texts, one at least, and between them words as their rows of `vectors`."""
        if not self.words:
            return [prompt]
        rows, taken = {}, 0
        for word, meant in self.words.items():
            if self.table in meant.vectors:
                rows[word] = range(taken, taken := taken + len(meant.vectors[self.table]))
        words = sorted(self.words, key=len, reverse=True)
        each = "|".join(f"({re.escape(word)})" for word in words)
        found, text, at = list[str | range](), "", 0
        for match in re.finditer(rf"(?<!\w)(?:{each})(?!\w)", prompt, re.IGNORECASE):
            assert match.lastindex is not None
            word = words[match.lastindex - 1]
            text, at = text + prompt[at : match.start()], match.end()
            if word in rows:
                found += [text, rows[word]]
                text = ""
            else:
                text += self.words[word].reads_as
        return [*found, text + prompt[at:]]


NOTHING = Spoken(words={}, table="")
"""Where no word is spoken."""


def digest(words: Mapping[str, Word]) -> str:
    """sha256 of words and all that they mean."""
    whole = hashlib.sha256()
    for word, meant in sorted(words.items()):
        whole.update(repr((word, meant.reads_as)).encode())
        for table, vectors in sorted(meant.vectors.items()):
            whole.update(repr((table, tuple(vectors.shape), str(vectors.dtype))).encode())
            whole.update(raw_bytes(vectors.detach().cpu().contiguous()))
    return whole.hexdigest()
