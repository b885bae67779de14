"""Who made a change and what it cost, as a receipt states it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import COSTS, Patch

CARD = ("name", "title", "year", "paper", "family", "claim")


def method_plain(patch: Patch | None) -> dict[str, Any] | None:
    """Who made the change, from the patch's provenance and the system's card; what it cost is told apart."""
    if patch is None or not patch.provenance:
        return None
    made = {k: v for k, v in patch.provenance.items() if k not in COSTS}
    card = card_of(str(made.get("method", "")))
    return made if card is None else {**made, "card": card}


def card_of(method: str) -> dict[str, Any] | None:
    """The card of an installed system as a receipt tells it; None where it is not installed."""
    try:
        card = asdict(catalog.find(method).card)
    except BadRequest:
        return None
    return {k: card[k] for k in CARD}


def cost_of(patch: Patch | None) -> dict[str, Any]:
    """What making the patch took, where that is known."""
    told = {} if patch is None else {**patch.provenance, **patch.cost}
    return {k: told[k] for k in COSTS if k in told}
