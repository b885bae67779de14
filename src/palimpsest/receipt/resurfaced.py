"""What can be said again of a receipt's readings of resurfacing, whose tuned models are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from palimpsest.probes.attempt import Budget
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import classes_of
from palimpsest.probes.resurfacing import INVERTED, NAMES, reading_of
from palimpsest.receipt.finding import Finding, differs
from palimpsest.receipt.readings import compared

OPTION = "--resurfacing"


def check(data: Mapping[str, Any], evidence: Drawn) -> list[Finding]:
    """That all is there that the plan asked for, numbers against the bits that are kept, and what stays unchecked.

    The bits themselves come from models that were tuned or attacked for the reading. They follow from no picture of
    the receipt, so they are never called the same.
    """
    rows = [r for r in data["readings"] if r["name"] in NAMES]
    found = _as_asked(data, evidence, rows)
    if not rows:
        return found
    again = [reading_of(r["name"], r["concept"], evidence.evaluators[r["evaluator"]], r["detail"]) for r in rows]
    found += compared(rows, again, "the bits kept of resurfacing")
    why = "fine-tuned and attacked models and their pictures are not kept; audit again with --resurfacing"
    what = f"the bits of {len(rows)} readings of resurfacing"
    return [*found, Finding(status="vouched", what=what, detail=why, of=("readings",))]


def _as_asked(data: Mapping[str, Any], evidence: Drawn, rows: list[Mapping[str, Any]]) -> list[Finding]:
    """Readings that were asked for and are missing, or were not and are there, or had another budget."""
    asked = evidence.plan.resurfacing
    if asked is None:
        if OPTION in str(data["command"]).split():
            return [_differs("its command asks for it, its plan does not: the block was taken out")]
        return [_differs("there are readings of it that the plan does not ask for")] if rows else []
    there = {(r["name"], r["concept"], r["evaluator"]): r for r in rows}
    due = [
        (name, target.name, judge)
        for name in NAMES
        for target in evidence.plan.request.target
        for judge, stated in evidence.evaluators.items()
        if classes_of(stated, target)
    ]
    lacking = [f"{name} of {target} by {judge}" for name, target, judge in due if (name, target, judge) not in there]
    found = [_differs(f"the plan asks for it; the receipt lacks {text}") for text in lacking]
    for name, target, judge in due:
        row = there.get((name, target, judge))
        if row is not None and (wrong := _spent_otherwise(asked, row)):
            found.append(_differs(f"{name} of {target} by {judge} had another budget than the plan's: {wrong}"))
    return found


def _spent_otherwise(asked: Budget, row: Mapping[str, Any]) -> str:
    """The first field of a reading's budget that is not the plan's, in words; "" where all agree."""
    points = list(asked.steps)
    due = {**asdict(asked), "steps": points}
    if row["name"] == INVERTED:
        points = [0, asked.attack_steps]
        due |= {"steps": asked.attack_steps, "batch": asked.attack_batch}
    spent = row["detail"]["budget"]
    for key, value in due.items():
        if spent.get(key) != value:
            return f"{key} is {spent.get(key)}, asked for {value}"
    if row["detail"]["steps"] != points:
        return f"measured after {row['detail']['steps']} steps, asked for {points}"
    short = [who for who, bits in row["detail"]["shown"].items() if any(len(b) != asked.shown for b in bits)]
    return f"not {asked.shown} pictures of the {short[0]}" if short else ""


def _differs(text: str) -> Finding:
    return differs("resurfacing", text, "plan", "readings")
