"""Names by kind that ship with the package: what models of everyday pictures know, and whether two names are one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from palimpsest.core.concept import Concept, Kind

ENDINGS = ("ings", "ists", "ing", "ers", "ies", "ied", "ism", "ist", "ish", "er", "ed", "es", "ie", "s", "y", "e")
SURNAME = 4  # letters of a last name that stands for the whole one


@dataclass(frozen=True)
class WordList:
    """One list: its file's name, the kind of its names ("" for words that no picture shows), and one of them in words.

    Lists of one `field` tell of the same sort of thing: what erases an artist touches styles, not animals.
    """

    name: str
    kind: Kind | None
    field: str
    one: str

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names, the commonest first."""
        return tuple(line for part in _paragraphs(self.name) for line in part)

    @property
    def common(self) -> tuple[str, ...]:
        """Its first paragraph: names that every model of everyday pictures knows."""
        return _paragraphs(self.name)[0]


LISTS = (
    WordList("animals", "object", "animal", "an animal"),
    WordList("objects", "object", "thing", "an object"),
    WordList("scenes", "domain", "scene", "a scene"),
    WordList("artists", "style", "style", "an artist"),
    WordList("styles", "style", "style", "a style or medium"),
    WordList("colours", "attribute", "quality", "a colour"),
    WordList("materials", "attribute", "quality", "a material"),
    WordList("traits", "attribute", "quality", "a trait"),
    WordList("people", "identity", "person", "a person"),
)
"""Of persons and artists nobody who lives is listed; no name stands in two lists."""
OTHER = WordList("other", None, "", "no picture's word")
"""Words that say nothing about a picture, and ends of words: what a vote over kinds must be able to say no with."""
PERSONS = ("artists", "people")


def common(kind: Kind) -> tuple[str, ...]:
    """The commonest names of a kind, of its lists in turn; a class is an object."""
    return tuple(name for found in of_kind(kind) for name in found.common)


def of_kind(kind: Kind) -> tuple[WordList, ...]:
    """The lists of a kind; a class is an object."""
    return tuple(found for found in LISTS if found.kind == ("object" if kind == "class" else kind))


def everyday(concept: Concept) -> tuple[Concept, ...]:
    """The commonest names of a concept's kind, without its own; no model's own neighbours."""
    mine = concept.name.strip().casefold()
    return tuple(Concept(name=n, kind=concept.kind) for n in common(concept.kind) if n.casefold() != mine)


def list_of(name: str) -> WordList | None:
    """The list that a name stands in, as itself, in another form ("dogs"), or with something around it; else None.

    "Vincent van Gogh" is listed, so "van Gogh" and "Gogh" are; "red car" ends in a listed name and is one, while
    "James Brown", a name, is no colour.
    """
    words = split(name)
    whole = _entries().get(stem(words))
    if whole is not None or not words:
        return whole
    if len(words[-1]) >= SURNAME:
        for found in LISTS:
            if found.name in PERSONS and any(_ends(split(n), words) or _ends(words, split(n)) for n in found.names):
                return found
    if name != name.lower():
        return None
    tails = (_entries().get(stem(words[i:])) for i in range(1, len(words)))
    return next((found for found in tails if found is not None), None)


def same(a: str, b: str) -> bool:
    """Whether two names are forms of one: equal but for endings, or one stands in the other ("Gogh", "van Gogh").

    Case, accents, hyphens and blanks do not count ("vangogh"). A compound that ends in the other, as "sheepdog", is
    another name.
    """
    return stem(split(a)) in parts(b) or stem(split(b)) in parts(a)


def forms(names: Sequence[str]) -> Callable[[str], bool]:
    """Tells of a name whether it is a form of one of these, as `same` says, without comparing it with each."""
    wholes = {stem(split(name)) for name in names}
    runs = frozenset().union(*map(parts, names))
    return lambda name: stem(split(name)) in runs or not wholes.isdisjoint(parts(name))


@lru_cache(maxsize=1 << 16)
def parts(name: str) -> frozenset[str]:
    """Every run of a name's words, as stems without blanks: what another name is looked up in."""
    words = split(name)
    return frozenset(stem(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))


def split(name: str) -> tuple[str, ...]:
    """A name's words in lower case, without accents and apostrophes."""
    plain = unicodedata.normalize("NFKD", name).casefold().replace("'s", "").replace("'", "")
    return tuple(re.findall(r"\w+", "".join(c for c in plain if not unicodedata.combining(c)).replace("_", " ")))


def stem(words: Sequence[str]) -> str:
    """Words as one, the last without its ending: "paintings" and "painter" are "paint". A rule of thumb."""
    if not words:
        return ""
    last = words[-1]
    ending = next((e for e in ENDINGS if last.endswith(e) and len(last) - len(e) >= 3), "")
    last = last[: len(last) - len(ending)]
    return "".join(words[:-1]) + (last[:-1] if len(last) > 3 and last[-1] == last[-2] else last)


def _ends(name: Sequence[str], tail: Sequence[str]) -> bool:
    return len(tail) <= len(name) and tuple(name[len(name) - len(tail) :]) == tuple(tail)


@cache
def _entries() -> dict[str, WordList]:
    """The list of each name, by the name's stem."""
    return {stem(split(name)): found for found in reversed(LISTS) for name in found.names}


@cache
def _paragraphs(name: str) -> tuple[tuple[str, ...], ...]:
    text = (files("palimpsest.ops") / "lists" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(tuple(part.split("\n")) for part in text.strip().split("\n\n"))
