"""What is said of a claim: verdicts from rates with their intervals, never from a point alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from palimpsest.core import catalog
from palimpsest.exam import budgets
from palimpsest.exam.case import Records, exams, rule_of
from palimpsest.exam.rates import refused, worked
from palimpsest.ops.statistics import Interval

Verdict = Literal["holds", "holds in part", "does not hold here", "not measured", "baseline"]
Studied = Mapping[str, Records]  # the records of every study that is complete, by its name

GONE = 0.20  # at most this share of pictures still shows an erased concept
SPARED = -0.05  # others lose at most five points


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim's measure, the number that was found, and the verdict with its reason."""

    measured: str
    found: str
    verdict: Verdict
    why: str = ""


def verdict_of(system: str, main: Mapping[str, Any], studied: Studied, family: Any) -> Judged:
    """The verdict on a system's claim: by the study that measures it, by its own rule, or by its verb's.

    A study that measures claims has MEASURED, in words, BESIDE, the systems and stand-ins that a claim is held against,
    and `judge(system, records) -> Judged`.

    Args:
        main: what the verb's exam amounts to, by system. family: the verb's `judge`.
    """
    study = budgets.said(system, "study")
    by = studied.get(study, {}) if study else main
    if system not in by:
        return not_measured(budgets.said(system, "elsewhere"), "")
    if not study:
        judged = getattr(rule_of(system), "judge", family)(system, main, studied)
    elif worked(by, system, *(module := exams()[study].module()).BESIDE):
        judged = module.judge(system, by)
    else:
        judged = not_measured(module.MEASURED, refused(by[system]) or "the study was not run")
    return replace(judged, verdict="baseline") if catalog.find(system).card.family == "baseline" else judged


def not_measured(measured: str, why: str = "the study was not run") -> Judged:
    """The verdict on a claim without records."""
    return Judged(measured=measured, found="", verdict="not measured", why=why)


def lower(a: Interval, b: Interval) -> Verdict:
    """Whether a rate is below another: intervals apart, points apart only, or not."""
    return "holds" if a.high < b.low else "holds in part" if a.value < b.value else "does not hold here"


def higher(a: Interval, b: Interval) -> Verdict:
    """Whether a rate is above another."""
    return "holds" if a.low > b.high else "holds in part" if a.value > b.value else "does not hold here"


def over(measured: str, held: Mapping[str, bool], words: Mapping[str, str]) -> Judged:
    """A claim about each of several cases: it holds in all of them, in some, or in none."""
    if not held:
        return Judged(measured=measured, found="no case that it fits was run", verdict="not measured")
    verdict: Verdict = (
        "holds" if all(held.values()) else "holds in part" if any(held.values()) else "does not hold here"
    )
    found = "; ".join(f"{case}: {words[case]}{'' if held[case] else ' (no)'}" for case in held)
    return Judged(measured=measured, found=found, verdict=verdict)
