"""What a system says of its own work, and what a model is known to know already."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import torch

from palimpsest.core.method import Method, ModelEdit
from palimpsest.core.pictures import Material, Pictures

CHECKED = 1000  # samples whose reading tells chance from knowledge


def work(method: Method | None, data: Material, speed: str) -> list[str]:
    """What a system says of its own work on the data: steps, the samples that they read, and the words of its cost."""
    if method is None:
        return []
    due = method.planned(data) if isinstance(method, ModelEdit) else None
    steps = getattr(method, "steps", None)
    words = f"{steps} steps of {getattr(method, 'batch', 1)} rows" if steps else "no steps of training"
    if due is not None:
        words = f"{due.steps} steps that read {due.samples} samples"
    told = f"{method.card.name}: {words}; {speed}."
    cost = re.search(r"^Cost.*(?:\n +.*)*", inspect.getdoc(type(method)) or "", re.MULTILINE)
    return [told, *([" ".join(cost[0].split())] if cost else [])]


def stated(host: Any) -> float:
    """The share of held-out samples that a model's own folder says it gets right; 0 where it says nothing."""
    try:
        config = json.loads((host.folder / "config.json").read_text(encoding="utf-8"))
        return float(config["about"]["accuracy"]["test"]) / 100
    except (AttributeError, OSError, KeyError, TypeError, ValueError):
        return 0.0


def right(host: Any, samples: Pictures) -> tuple[int, int]:
    """How many of up to CHECKED samples, evenly picked, get their label."""
    rows = torch.linspace(0, len(samples) - 1, min(CHECKED, len(samples))).long()
    hits = 0
    with torch.no_grad():
        for part in rows.split(100):
            answers = host.logits(samples.pixels(part)).argmax(1).cpu()
            hits += int((answers == samples.labels[part]).sum())
    return hits, len(rows)
