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

from palimpsest.core import declared
from palimpsest.core.concept import Request
from palimpsest.core.fingerprint import digest, raw_bytes
from palimpsest.core.method import versions
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Evaluator, Reading
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.verdict import verdict
from palimpsest.receipt import settings
from palimpsest.receipt.schema import SCHEMA, Stated
from palimpsest.receipt.subject import Subject

VECTORS_FILE = "evidence.safetensors"
_LOOK = 2  # grey levels of a 4 x 4 copy


def build(
    subject: Subject,
    evidence: Evidence,
    readings: Sequence[Reading],
    request: Request,
    *,
    base: Any,
    edited: Any,
    sources: Mapping[str, str] | None = None,
    command: str = "",
    patch_file: str = "",
) -> dict[str, Any]:
    """The receipt as plain JSON, sealed. Equal runs give equal receipts but for `run` and `seal`.

    Args:
        base, edited: the untouched host, and the patch or the edited host.
        sources: judge's name -> what loads it again.
        command: what the user typed.
        patch_file: name of the patch beside the receipt.
    """
    headline, summary = subject.words(readings, request, evidence)
    method, spent = subject.made(evidence)
    of_base, of_edited = model_plain(base), edited_plain(edited, patch_file)
    vectors = evidence.vectors()
    size = next((list(p.shape[2:]) for p in evidence.gallery.values()), None)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "subject": subject.name,
        "command": command,
        "headline": headline,
        "summary": [*summary, *settings.sentences(of_base, of_edited)],
        "request": request.plain(),
        "base": of_base,
        "edited": of_edited,
        "method": method,
        "plan": {k: v for k, v in asdict(evidence.plan).items() if k != "request"},
        "evaluators": {n: {**asdict(e), "source": (sources or {}).get(n, "")} for n, e in evidence.evaluators.items()},
        "size": size,
        "pictures": {which: [picture_plain(p) for p in rows] for which, rows in evidence.gallery.items()},
        "measures": evidence.kept(),
        "vectors": {"file": VECTORS_FILE, "sha256": digest(vectors)} if vectors else None,
        "readings": [plain(r) for r in readings],
        "versions": versions(),
        "shown": [],
        "run": {
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "audit": dict(evidence.cost),
            "edit": spent,
        },
    }
    return sealed(json.loads(json.dumps(finite(data))))


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same content with its seal."""
    content = {k: v for k, v in data.items() if k != "seal"}
    return {**content, "seal": seal(content)}


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
    """The inverse of `plain`.

    Raises:
        Damaged: a field of another type. KeyError: a judge that the receipt does not name.
    """
    stated = declared.fitted(dict(row), Stated, "the reading")
    fields: dict[str, Any] = {k: v for k, v in stated.items() if k != "verdict"}
    for limit in ("value", "low", "high"):
        fields[limit] = math.nan if fields[limit] is None else fields[limit]
    fields["evaluator"] = None if stated["evaluator"] is None else evaluators[stated["evaluator"]]
    return Reading(**fields)


def evaluators_of(data: Mapping[str, Any]) -> dict[str, Evaluator]:
    """The judges that a receipt names."""
    known = {n: {k: v for k, v in e.items() if k != "source"} for n, e in data["evaluators"].items()}
    return {n: declared.fitted(e, Evaluator, f"the judge {n}") for n, e in known.items()}


def picture_plain(picture: Tensor) -> dict[str, str]:
    """What a receipt keeps of a picture (3, H, W) uint8."""
    return {"sha256": picture_hash(picture), "look": look(picture)}


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


def model_plain(host: Any) -> dict[str, Any]:
    name = str(getattr(host, "name", type(host).__name__))
    fingerprint = host.fingerprint() if hasattr(host, "fingerprint") else ""
    return {"name": name, "fingerprint": fingerprint, "settings": settings.settings_of(host)}


def edited_plain(edited: Any, file: str) -> dict[str, Any]:
    """A patch, which lies in a file of this name beside the receipt, a model, or pictures."""
    if not isinstance(edited, Patch):
        return {"kind": getattr(edited, "kind", "model"), **model_plain(edited)}
    held = {"sha256": edited.sha256(), "base": edited.base, "file": file, "bytes": edited.nbytes()}
    return {"kind": "patch", **held}


def finite(value: Any) -> Any:
    """NaN and infinity as null: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
