"""Systems that prepare the ground for another one, which they run by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.method import ModelEdit


def system(name: str, settings: str, *, verb: str, but: str) -> ModelEdit:
    """The system of this name with some parameters set.

    Args:
        name: as in `palimpsest ls` ("neg_grad_plus").
        settings: "steps=100 lr=0.01": its parameters, by name; the others keep their defaults.
        but: id of the system that asks; it cannot run itself.

    Raises:
        BadRequest: no such system or parameter, or a value that does not read as the parameter's type.
    """
    id_ = catalog.find(name, verb).id
    if id_ == but:
        raise BadRequest(f"{but} cannot prepare the ground for itself; name another system.")
    cls = catalog.load(id_)
    known: dict[str, Any] = {f.name: f.default for f in fields(cls)}
    chosen = {}
    for part in settings.split():
        key, equals, text = part.partition("=")
        if not equals or key not in known:
            names = ", ".join(known)
            raise BadRequest(f"{part!r} sets no parameter of {id_}; write name=value with one of {names}.")
        try:
            chosen[key] = _read(text, type(known[key]))
        except ValueError as e:
            kind = type(known[key]).__name__
            raise BadRequest(f"{part!r}: {id_} takes a {kind} for {key}, such as {known[key]}.") from e
    return cls(**chosen)


def _read(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else kind(float(text))
    return kind(text)
