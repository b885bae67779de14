"""Readings of a receipt against the same computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.core.reading import Reading
from palimpsest.receipt.document import plain
from palimpsest.receipt.finding import Finding, brief, differs, same


def compared(stated: Sequence[Mapping[str, Any]], computed: Sequence[Reading], source: str) -> list[Finding]:
    """One finding for each reading that differs, is missing or is one too many, and one for all that are the same."""
    told = {_key(r): r for r in stated}
    kinds, keys = {r.name for r in computed}, {_key(plain(r)) for r in computed}
    found = [
        differs(f"{r['name']} of {r['concept'] or r['role']}", f"{source} do not give it", "readings")
        for r in stated
        if r["name"] in kinds and _key(r) not in keys
    ]
    if len(told) < len(stated):
        found.append(differs("readings", "one of them is stated twice", "readings"))
    held = 0
    for r in map(plain, computed):
        mine = told.get(_key(r))
        name = " ".join(filter(None, [r["name"], "of", r["concept"] or r["role"]]))
        if mine is None:
            found.append(differs(name, f"the receipt lacks it; {source} give {r['value']}", "readings"))
        elif (field := _difference(mine, r)) is not None:
            text = f"{field} is {brief(mine[field])} in the receipt, {brief(r[field])} by {source}"
            found.append(differs(name, text, "readings"))
        else:
            held += 1
    return [*found, same(f"{held} readings", f"computed again from {source}", "readings")] if held else found


def equal(a: Any, b: Any) -> bool:
    """Whether two values of JSON are the same; numbers are equal up to one part in a million."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b))
    return a == b


def _key(r: Mapping[str, Any]) -> tuple[Any, ...]:
    return r["name"], r["concept"], r["role"], r["evaluator"]


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first field that differs; the verdict last, since it follows from the others."""
    order = [k for k in b if k not in ("detail", "verdict")] + ["detail", "verdict"]
    return next((k for k in order if not equal(a.get(k), b[k])), None)
