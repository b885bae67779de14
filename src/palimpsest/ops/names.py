"""Which of the labels that a model or a data set has a name means."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from palimpsest.core.errors import BadRequest

SHOWN = 20  # labels that an error lists


def meant(name: str, labels: Sequence[str]) -> tuple[int, ...]:
    """The places of the labels that a name means, by the first of four rules that any label meets; () if none does.

    1. exact: the label is the name, to the letter;
    2. normalised: both are equal in Unicode's compatibility form (NFKC), without case, with `_` and runs of blanks as
       one blank;
    3. synonyms: "church, church building" is called "church" and "church building"; name and label share one,
       normalised;
    4. numbers by value: "03" is 3, and LABEL_3, as transformers calls the fourth class without a name, is 3.

    More than one place: labels that this rule cannot tell apart. `only` refuses them.

    Cost: O(labels).
    """
    rules: tuple[Callable[[str], object], ...] = (str, normal, _synonyms, number)
    for rule in rules:
        wanted = rule(name)
        if isinstance(wanted, frozenset):
            places = [i for i, label in enumerate(labels) if wanted & _synonyms(label)]
        else:
            places = [i for i, label in enumerate(labels) if wanted is not None and rule(label) == wanted]
        if places:
            return tuple(places)
    return ()


def only(name: str, labels: Sequence[str], what: str, where: str) -> int:
    """The place of the one label that a name means.

    Args:
        what: what the labels are called in messages ("class"). where: whose they are ("The data").

    Raises:
        BadRequest: none is meant, or more than one.
    """
    places = meant(name, labels)
    if len(places) == 1:
        return places[0]
    if places:
        both = " or ".join(f"{labels[i]!r} (number {i})" for i in places)
        raise BadRequest(
            f"The {what} {name!r} of {where} may be {both}. Write the label in full; equal ones must differ."
        )
    close = difflib.get_close_matches(name, labels, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    raise BadRequest(f"{where} has no {what} {name!r}.{guess} Known: {listed(labels)}.")


def listed(names: Sequence[str]) -> str:
    """The first names, with commas between, as errors show them."""
    return ", ".join(names[:SHOWN]) + (f" ... ({len(names)} in all)" if len(names) > SHOWN else "")


@lru_cache(maxsize=1 << 16)
def normal(name: str) -> str:
    """A name in Unicode's compatibility form, without case, with `_` and runs of blanks as one blank, ", " as comma."""
    plain = unicodedata.normalize("NFKC", name).casefold().replace("_", " ")
    return ", ".join(" ".join(part.split()) for part in plain.split(","))


def number(name: str) -> int | None:
    """The number that a name is ("3", "03", "LABEL_3"); None for a word."""
    digits = re.fullmatch(r"(?:LABEL_)?(\d{1,18})", name.strip())
    return int(digits[1]) if digits else None


@lru_cache(maxsize=1 << 16)
def _synonyms(label: str) -> frozenset[str]:
    return frozenset(filter(None, map(normal, label.split(","))))
