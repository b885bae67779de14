"""What is said of a claim: verdicts from rates with their intervals, never from a point alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from palimpsest.core import catalog
from palimpsest.exam.case import Record, Records, elsewhere, rule_of
from palimpsest.ops import statistics
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
    """The verdict on a system's claim, by its own rule or by its verb's.

    Args:
        main: what the verb's exam amounts to, by system. family: the verb's `judge`.
    """
    rule = rule_of(system)
    study = getattr(rule, "STUDY", "")
    if system not in (studied.get(study, {}) if study else main):
        return not_measured(elsewhere(system), "")
    judged = getattr(rule, "judge", family)(system, main, studied)
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


def worked(by: Records, *systems: str) -> bool:
    """Whether all of these have records and none of them refused."""
    return all(by.get(s) and not refused(by[s]) for s in systems)


def refused(records: Sequence[Record]) -> str:
    """In which words a system refused; "" where it did not."""
    return next((r["refused"] for r in records if isinstance(r.get("refused"), str)), "")


def share(bits: Sequence[str]) -> Interval:
    """The rate of ones, with Wilson's interval."""
    every = "".join(bits)
    return statistics.wilson(every.count("1"), len(every))


def rate(records: Sequence[Record], name: str) -> Interval:
    """The rate of ones among all bits that records hold under a name, over all seeds."""
    return share([r[name] for r in records])


def change(before: Sequence[Record], after: Sequence[Record], name: str) -> Interval:
    """Of the share of ones, picture by picture: the same prompts and seeds in both."""
    a, b = (np.array([int(x) for r in rs for x in r[name]], dtype=np.float64) for rs in (before, after))
    return statistics.paired(a, b)


def percent(x: tuple[float, float, float]) -> str:
    """A rate with its interval."""
    return f"{100 * x[0]:.1f} % ({100 * x[1]:.1f} to {100 * x[2]:.1f})"


def points(x: tuple[float, float, float], unit: str = " points") -> str:
    """A change of a rate with its interval."""
    return f"{100 * x[0]:+.1f}{unit} ({100 * x[1]:+.1f} to {100 * x[2]:+.1f})"


def interval(x: Interval, form: Any = "{:.1f}".format) -> str:
    """A number with its interval where it has one; "" where it was not measured."""
    if np.isnan(x.value):
        return ""
    return form(x.value) + (f" ({form(x.low)} to {form(x.high)})" if np.isfinite(x.low) else "")
