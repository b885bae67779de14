"""The committed table of what runs where; docs/support.md is made of it."""

from __future__ import annotations

import json
from pathlib import Path


def supported(prefix: str) -> dict[str, dict[str, str]]:
    """System -> kind of model -> "runs", or the words of the refusal with {host} for the model's name."""
    table = json.loads(Path(__file__).with_name("support.json").read_text(encoding="utf-8"))
    return {system: row for system, row in table.items() if system.startswith(prefix)}
