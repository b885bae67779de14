"""The receipt's schema: its number, what each number changed, and reading a receipt.json of this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from palimpsest.core.errors import Damaged

_FAMILY = "palimpsest/receipt/"
NUMBER = 2
SCHEMA = f"{_FAMILY}{NUMBER}"
CHANGES: Mapping[int, str] = MappingProxyType(
    {
        2: "intervals of paired changes are Tango's, those of means are widened for few numbers, the noise floor pools "
        "all pictures of the untouched model, every interval and p allows for the looks of an audit that stops early, "
        "and the plan says whether resurfacing was asked for",
    }
)
"""What each number changed in the meaning of fields that the one before had as well."""
_NEEDED = frozenset({"seal", "base", "edited", "plan", "evaluators", "reads", "measures", "readings"})


def load(path: Path) -> dict[str, Any]:
    """The content of a receipt.json.

    Raises:
        Damaged: not a receipt, or one of another schema: its numbers follow from other formulas, so that nothing
            could be said about them. Reading an older one as if it were unchecked would let a forger choose its number.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise Damaged(f"There is no receipt at {path} ({e.strerror}).") from e
    except ValueError as e:
        raise Damaged(f"{path} is no receipt: it is not JSON ({e}). It is truncated or of another kind.") from e
    schema = str(data.get("schema", "")) if isinstance(data, dict) else ""
    if not schema.startswith(_FAMILY):
        raise Damaged(f"{path} is JSON, but no receipt: its schema is {schema!r}, expected {SCHEMA!r}.")
    if schema != SCHEMA:
        raise Damaged(_another(path, schema, data))
    missing = sorted(_NEEDED - set(data))
    if missing:
        raise Damaged(f"{path} lacks {', '.join(missing)}; it was cut.")
    return data


def _another(path: Path, schema: str, data: Mapping[str, Any]) -> str:
    number = schema.removeprefix(_FAMILY)
    if not number.isdecimal() or int(number) > NUMBER:
        return f"{path} has schema {schema!r}; this version reads {SCHEMA!r}: use the version that wrote it."
    since = "; ".join(f"since {n}, {what}" for n, what in CHANGES.items() if n > int(number))
    stated = data.get("versions")
    wrote = stated.get("palimpsest", "") if isinstance(stated, Mapping) else ""
    return (
        f"{path} has the older schema {schema!r}; this version reads {SCHEMA!r} and would compute other numbers: "
        f"{since}. Check it with the version that wrote it{f' (palimpsest {wrote})' if wrote else ''}, or audit "
        "again: the patch and the models are as good as before."
    )
