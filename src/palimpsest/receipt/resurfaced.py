"""What can be said again of a receipt's readings of resurfacing, whose tuned models are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palimpsest.probes.resurfacing import NAMES, reading_of
from palimpsest.receipt.build import evaluator


def check(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Findings, as the fields of `verify.Finding`: numbers against the bits that are kept, and what stays unchecked.

    The bits themselves come from models that were tuned or attacked for the reading. They follow from no picture of
    the receipt, so they are never called the same.
    """
    from palimpsest.receipt.verify import compare

    rows = [r for r in data["readings"] if r["name"] in NAMES]
    if not rows:
        return []
    judges = {name: evaluator(e) for name, e in data["evaluators"].items()}
    again = [reading_of(r["name"], r["concept"], judges[r["evaluator"]], r["detail"]) for r in rows]
    found = [vars(f) for f in compare(rows, again, "the bits kept of resurfacing")]
    why = "fine-tuned and attacked models and their pictures are not kept; audit again with --resurfacing"
    return [
        *found,
        {"status": "not checked", "what": f"the bits of {len(rows)} readings of resurfacing", "detail": why},
    ]
