"""Rates of records, with their intervals, and how they are said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from palimpsest.exam.case import Record, Records
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval


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


def bits(records: Iterable[Record], role: str, which: str) -> list[str]:
    """The bits of all groups of a role in one set of pictures."""
    return [g[which] for r in records for g in r["groups"] if g["role"] == role and which in g]


def moved(records: Sequence[Record], role: str) -> Interval:
    """Of the share of ones of a role, picture by picture: before and after."""
    before, after = (np.array([int(b) for b in "".join(bits(records, role, w))]) for w in ("before", "after"))
    return statistics.paired(before, after)


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
