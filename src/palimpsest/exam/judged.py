"""What is said of a claim: verdicts, and numbers with their intervals in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from palimpsest.exam.summary import Summary
from palimpsest.ops.statistics import Interval

Verdict = Literal["holds", "holds in part", "does not hold here", "not measured", "baseline"]
Summaries = Mapping[str, Mapping[str, Summary]]  # system -> concept ("" for all) -> summary

GONE = 0.20  # at most this share of pictures still shows an erased concept
SPARED = -0.05  # neighbours lose at most five points


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim's measure, the number that was found, and the verdict with its reason."""

    measured: str
    found: str
    verdict: Verdict
    why: str


def lower(a: Interval, b: Interval) -> Verdict:
    """Whether a rate is below another: intervals apart, points apart only, or not."""
    return "holds" if a.high < b.low else "holds in part" if a.value < b.value else "does not hold here"


def percent(x: tuple[float, float, float]) -> str:
    """A rate with its interval."""
    return f"{100 * x[0]:.1f} % ({100 * x[1]:.1f} to {100 * x[2]:.1f})"


def points(x: tuple[float, float, float]) -> str:
    """A change of a rate with its interval."""
    return f"{100 * x[0]:+.1f} points ({100 * x[1]:+.1f} to {100 * x[2]:+.1f})"
