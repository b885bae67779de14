"""Evidence and readings as the receipt's JSON (docs/receipt.md describes every field)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import raw_bytes
from palimpsest.core.method import versions
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Evaluator, Reading
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.suite import measures
from palimpsest.probes.verdict import verdict
from palimpsest.receipt import words
from palimpsest.receipt.schema import SCHEMA

_LOOK = 2  # grey levels of a 4 x 4 copy


def build(
    evidence: Evidence,
    readings: Sequence[Reading],
    *,
    base: Any,
    edited: Any,
    sources: Mapping[str, str],
    command: str = "",
    patch_file: str = "",
    resurfacing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The receipt as plain JSON, sealed.

    Args:
        base, edited: the untouched host, and the patch or the edited host.
        sources: judge's name -> what loads it again.
        command: what the user typed.
        patch_file: name of the patch beside the receipt.
        resurfacing: the budget at which targets were to be brought back; None where that was not asked for.
    """
    request = evidence.plan.request
    targets = [c.name for c in request.target]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "headline": words.headline(readings, targets),
        "summary": words.sentences(readings, targets, dict(evidence.cost)),
        "request": request.plain(),
        "base": model_plain(base),
        "edited": patch_plain(edited, patch_file)
        if isinstance(edited, Patch)
        else {"kind": "model", **model_plain(edited)},
        "method": method_plain(evidence.patch),
        "plan": {k: v for k, v in evidence.plan.plain().items() if k != "request"} | {"resurfacing": resurfacing},
        "evaluators": {n: {**asdict(e), "source": sources.get(n, "")} for n, e in evidence.evaluators.items()},
        "pictures": {k: _pictures(v) for k, v in evidence.pictures.items()},
        "reads": _reads(evidence),
        "measures": {k: v.tolist() for k, v in measures(evidence).items()},
        "readings": [plain(r) for r in readings],
        "cost": dict(evidence.cost),
        "versions": versions(),
        "shown": [],
    }
    return sealed(json.loads(json.dumps(finite(data))))


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same content with its seal."""
    open_ = {k: v for k, v in data.items() if k != "seal"}
    return {**open_, "seal": seal(open_)}


def seal(data: Mapping[str, Any]) -> str:
    """sha256 over the canonical form of everything but the seal: sorted keys, no spaces, UTF-8."""
    content = {k: v for k, v in data.items() if k != "seal"}
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    ).hexdigest()


def plain(reading: Reading) -> dict[str, Any]:
    """A reading as JSON: the evaluator by name, limits that are not finite as null, and the verdict."""
    row = asdict(reading)
    row["evaluator"] = None if reading.evaluator is None else reading.evaluator.name
    return json.loads(json.dumps(finite({**row, "verdict": verdict(reading)})))


def reading(row: Mapping[str, Any], evaluators: Mapping[str, Evaluator]) -> Reading:
    """The inverse of `plain`."""
    fields = {k: v for k, v in row.items() if k != "verdict"}
    for limit in ("low", "high"):
        fields[limit] = math.nan if fields[limit] is None else fields[limit]
    fields["evaluator"] = None if row["evaluator"] is None else evaluators[row["evaluator"]]
    return Reading(**fields)


def evaluator(plain_: Mapping[str, Any]) -> Evaluator:
    """An evaluator as a receipt keeps it."""
    fields = {k: v for k, v in plain_.items() if k != "source"}
    return Evaluator(**{**fields, "classes": tuple(fields["classes"])})


def picture_hash(picture: Tensor) -> str:
    """sha256 of a picture (3, H, W) uint8: its size, then its bytes in that order."""
    h = hashlib.sha256(f"{tuple(picture.shape)}".encode())
    h.update(raw_bytes(picture))
    return h.hexdigest()


def look(picture: Tensor) -> str:
    """A 4 x 4 copy of a picture as hex: tells a rounding difference from another picture."""
    small = F.interpolate(picture[None].float(), (4, 4), mode="area")[0].round().to(torch.uint8)
    return small.permute(1, 2, 0).flatten().numpy().tobytes().hex()


def alike(a: str, b: str) -> bool:
    """Whether two `look`s differ by no more than rounding on another machine may."""
    return all(abs(x - y) <= _LOOK for x, y in zip(bytes.fromhex(a), bytes.fromhex(b), strict=True))


def _pictures(pictures: Tensor) -> list[dict[str, str]]:
    return [{"sha256": picture_hash(p), "look": look(p)} for p in pictures]


def _reads(evidence: Evidence) -> dict[str, dict[str, list[list[int]]]]:
    """judge -> set -> for each picture the classes that it sees."""
    return {
        judge: {k: [row.nonzero().flatten().tolist() for row in seen.present] for k, seen in sets.items()}
        for judge, sets in evidence.seen.items()
    }


def model_plain(host: Any) -> dict[str, str]:
    name = str(getattr(host, "name", type(host).__name__))
    return {"name": name, "fingerprint": host.fingerprint() if hasattr(host, "fingerprint") else ""}


def patch_plain(patch: Patch, file: str) -> dict[str, Any]:
    return {"kind": "patch", "sha256": patch.sha256(), "base": patch.base, "file": file, "bytes": patch.nbytes()}


def method_plain(patch: Patch | None) -> dict[str, Any] | None:
    """Who made the change and what that took, from the patch and the system's card."""
    if patch is None or not patch.provenance:
        return None
    found = {**patch.provenance, **patch.cost}
    try:
        card = asdict(catalog.find(str(found.get("method", ""))).card)
    except BadRequest:
        return found
    return {**found, "card": {k: card[k] for k in ("name", "title", "year", "paper", "family", "claim")}}


def finite(value: Any) -> Any:
    """NaN and infinity as null: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
