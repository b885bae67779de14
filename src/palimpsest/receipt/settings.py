"""A model's settings in a receipt: what decides its answers beside its tensors, and how two models differ in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from palimpsest.core.declared import shown
from palimpsest.core.fingerprint import PRECISIONS, precision, precision_with
from palimpsest.core.method import versions
from palimpsest.receipt.finding import Finding, differs, lacking, same

ABSENT = object()
NAMED = 5  # differences that are named
LIBRARIES = ("diffusers", "transformers")  # whose versions may add a setting or drop one


def settings_of(host: Any) -> dict[str, Any] | None:
    """The settings as a receipt states them: plain JSON and its sha256; None for a host that states none."""
    if not hasattr(host, "settings"):
        return None
    values = json.loads(json.dumps(host.settings()))
    return {"sha256": _sha256(values), "values": values}


def sentences(base: Mapping[str, Any], edited: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a summary says of two models that differ in more than their tensors; nothing where they do not.

    Args:
        base, edited: as a receipt states them.
    """
    one, other = base.get("settings"), edited.get("settings")
    both, single = _compared(one["values"], other["values"]) if one and other else ([], [])
    if not both and not single:
        return []
    text = (
        f"The two models also differ in settings, by which they answer otherwise whatever their weights are: "
        f"{_named([*both, *single])}. What is told here is the effect of both."
    )
    return [{"tone": "bad", "text": text}]


def held(stated: Mapping[str, Any], host: Any, data: Mapping[str, Any], what: str, of: str) -> Finding | None:
    """The settings that a receipt states of a model against those of the model itself; None where neither has any."""
    mine, now, what = stated.get("settings"), settings_of(host), f"settings of the {what}"
    if mine is None:
        text = "the receipt does not state them, and models of equal tensors may answer otherwise"
        return None if now is None else lacking(what, text, of)
    if _sha256(mine["values"]) != mine["sha256"]:
        return differs(what, "they do not have the sha256 that is stated", of)
    if now is None:
        return lacking(what, "the model does not say its own", of)
    both, single = _compared(mine["values"], now["values"])
    if not both and not single:
        return same(what, now["sha256"][:12], of)
    other = [f"{n} {data['versions'].get(n)}" for n in LIBRARIES if data["versions"].get(n) != versions().get(n)]
    if not both and other:
        text = f"{_named(single)}; the receipt was made with {' and '.join(other)}, which know other settings"
        return lacking(what, text, of)
    return differs(what, _named([*both, *single]), of)


def other_precision(stated: Mapping[str, Any], host: Any) -> str:
    """Why a model does not have the fingerprint that is stated, where precision is the reason; "" where it is not."""
    if not hasattr(host, "root"):
        return ""
    now = precision(host.root)
    if then := precision_with(host.root, stated["fingerprint"]):
        return f"is the receipt's model, and precision is the difference: {now} here, {then} there; give --dtype {then}"
    then = (stated.get("settings") or {}).get("values", {}).get("dtype", now)
    if then == now or then not in PRECISIONS:
        return ""
    return f"is loaded in {now}, the receipt is about it in {then}: to compare them give --dtype {then}"


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """In words: the settings that differ, "scheduler.beta_end was 0.012, is 0.02", and those that only one has."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    both, single = [], []
    for key in {**old, **new}:
        was, now = old.get(key, ABSENT), new.get(key, ABSENT)
        if was != now or isinstance(was, bool) != isinstance(now, bool):
            said = ["absent" if value is ABSENT else shown(value) for value in (was, now)]
            (single if ABSENT in (was, now) else both).append(f"{shown(key, 80)[1:-1]} was {said[0]}, is {said[1]}")
    return both, single


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value by its dotted path; empty tables and lists are values."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list) and value:
        for i, part in enumerate(value):
            yield from _leaves(part, f"{at}[{i}]")
    else:
        yield at, value


def _named(told: Sequence[str]) -> str:
    return "; ".join(told[:NAMED]) + (f"; and {len(told) - NAMED} more" if len(told) > NAMED else "")


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
