"""What a user asks for: concepts, and a request about them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from palimpsest.core.declared import fitted
from palimpsest.core.errors import BadRequest
from palimpsest.core.printable import is_control, printable

Kind = Literal["identity", "object", "class", "attribute", "style", "domain"]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something that an image model knows.

    Args:
        name: the words that users type for it ("star", "Van Gogh").
        kind: what sort of thing it is; it chooses prompt templates and the evaluator's head.
        prompts: sentences that ask for it. Empty: templates are filled with the name.
        labels: class names or indices that mean it, for classifiers and evaluators. Empty: the name.
        images: paths of example pictures, for methods that learn from pictures.
    """

    name: str
    kind: Kind = "object"
    prompts: tuple[str, ...] = ()
    labels: tuple[str | int, ...] = ()
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise BadRequest("A concept needs a name that is not empty: the words that users type for it.")
        if any(map(is_control, self.name)):
            raise BadRequest(
                f"The name {printable(self.name)} of a concept has control characters (a line break, an escape); "
                "names are words that users type on one line."
            )
        if self.kind not in get_args(Kind):
            raise BadRequest(
                f"Unknown kind {self.kind!r} of concept {self.name!r}; use one of {', '.join(get_args(Kind))}."
            )

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Concept:
        """From what `dataclasses.asdict` and JSON made of a concept; Damaged where it is not that."""
        return fitted(dict(plain), Concept, "The concept")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which concepts must change, which must stay, and what the changed ones turn into.

    Args:
        target: the concepts to act on; at least one.
        keep: concepts that must not change. Empty: the method works without a retain set, or the caller
            fills it with neighbours (`palimpsest.neighbours`).
        toward: what each target becomes: none (the empty prompt), one for all, or one for each target.

    Raises:
        BadRequest: no target, a name twice, a target that is also kept or its own replacement.
    """

    target: tuple[Concept, ...]
    keep: tuple[Concept, ...] = ()
    toward: tuple[Concept, ...] = ()

    def __post_init__(self) -> None:
        if not self.target:
            raise BadRequest("The request has no target; name at least one concept to act on.")
        names = [_key(c) for c in self.target]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise BadRequest(f"Target {twice!r} is named twice; name each target once.")
        both = set(names) & {_key(c) for c in self.keep}
        if both:
            raise BadRequest(f"{sorted(both)[0]!r} is both a target and kept; remove it from one of the two lists.")
        if len(self.toward) not in (0, 1, len(self.target)):
            raise BadRequest(
                f"{len(self.toward)} replacements for {len(self.target)} targets; "
                "give none, one for all, or one for each target."
            )
        for target, toward in zip(self.target, self.replacements(), strict=True):
            if toward is not None and _key(target) == _key(toward):
                raise BadRequest(f"{target.name!r} would be replaced by itself; choose another replacement.")

    def replacements(self) -> tuple[Concept | None, ...]:
        """One entry for each target; None stands for the empty prompt."""
        if not self.toward:
            return (None,) * len(self.target)
        return self.toward * len(self.target) if len(self.toward) == 1 else self.toward

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; `from_plain` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Request:
        """From what `plain` and JSON made of a request; Damaged where it is not that."""
        return fitted(dict(plain), Request, "The request")

    def keeping(self, concepts: Iterable[Concept]) -> Request:
        """The same request with this retain set."""
        return replace(self, keep=tuple(concepts))


def _key(concept: Concept) -> str:
    return concept.name.strip().casefold()
