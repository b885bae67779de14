"""Types of systems' parameters: what a value may be, checked where a system is made."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from palimpsest.core.declared import Within
from palimpsest.core.errors import BadRequest

Count = Annotated[int, Within(least=1)]
"""A whole number of things, at least 1."""
Several = Annotated[int, Within(least=2)]
"""A whole number of things of which there must be more than one."""
Size = Annotated[int, Within(least=0)]
"""A whole number that may be 0."""
Share = Annotated[float, Within(least=0, most=1)]
"""A part of a whole."""
Part = Annotated[float, Within(least=0, most=1, open=True)]
"""A part of a whole that is not empty."""
Positive = Annotated[float, Within(least=0, open=True)]
"""A number above 0."""
NonNegative = Annotated[float, Within(least=0)]
"""A number that may be 0."""


@cache
def types_of(cls: type) -> Mapping[str, Any]:
    """The type of each dataclass field, bounds included."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


def checked(name: str, value: Any, hint: Any) -> None:
    """Refuses a value that its field's type does not hold: Literal values and bounds, inside unions and tuples too.

    Raises:
        BadRequest: in words that name the field.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in parts:
            raise BadRequest(f"{name} is {value!r}; use one of {', '.join(map(str, parts))}.")
    elif origin is Annotated:
        checked(name, value, parts[0])
        for bound in parts[1:]:
            if isinstance(bound, Within) and not bound.holds(value):
                raise BadRequest(f"{name} is {value}; it must be {bound}.")
    elif origin in (Union, types.UnionType):
        if value is not None:
            checked(name, value, next(p for p in parts if p is not type(None)))
    elif origin is tuple and parts:
        for item in value:
            checked(name, item, parts[0])
