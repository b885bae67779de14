"""Audits that stop as soon as the answer is clear, without raising more false alarms for having looked early.

The level is spent in equal parts (Lan and DeMets 1983, the linear spending function): with K looks every look tests at
a K-th of it, so p is multiplied by K and intervals are those of the level `1 - 0.05 / K`. By Bonferroni's inequality
the chance of any false alarm at any look stays below 5 %, and the interval at the look where the audit stopped covers
the truth at least 95 times of 100, whatever made it stop. Every reading with a level takes part, whether or not it
decides when to stop.

Presence of each concept decides, because it is what the receipt answers, and collapse of each role, because it is what
the receipt alarms about. Drift does not: one moved pixel is a change, so it is clear from the first picture. Distances
do not either: their test has no interval that could lie within a margin. The empty prompt's collapse does not: its few
pictures would never be enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.probes.collapse import Collapse
from palimpsest.probes.crew import Crew
from palimpsest.probes.drawn import Drawn, collect
from palimpsest.probes.evaluators import Judge
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.plan import Plan
from palimpsest.probes.presence import Presence
from palimpsest.probes.verdict import verdict

LOOKS = 4
MARGIN = 10.0  # points: a change whose whole interval lies within is no question any more


def unclear(readings: Sequence[Reading], margin: float = MARGIN) -> list[Reading]:
    """Presence of single concepts and collapse of roles that neither changed nor lie within the margin with the whole
    interval of their change."""
    return [
        r
        for r in readings
        if ((r.name == "presence" and r.concept) or (r.name == "collapse" and r.role != "empty"))
        and verdict(r) != "changed"
        and r.change is not None
        and max(abs(r.change.low), abs(r.change.high)) > margin
    ]


def collect_until_clear(
    host: Any,
    edited: Any,
    plan: Plan,
    judges: Sequence[Judge],
    *,
    oracle: Any = None,
    looks: int = LOOKS,
    margin: float = MARGIN,
    batch: int | None = None,
    gallery: Gallery | None = None,
    trace: Trace | None = None,
    crew: Crew | None = None,
) -> Drawn:
    """`collect` in parts: after each, stops where no question is left; the returned plan tells at which look.

    Args:
        looks: how often to look, the end included; the parts are of equal size.
        margin: in points, of `unclear`.
        others: as for `collect`.

    Cost: between 1 / looks of the plan's pictures and all of them; judges read the pictures of earlier looks again.
    """
    trace = trace or Trace()
    kept = Gallery() if gallery is None else gallery
    seconds = 0.0
    for look in range(1, looks + 1):
        now = replace(plan, look=look, looks=looks)
        evidence = collect(host, edited, now, judges, oracle=oracle, batch=batch, gallery=kept, trace=trace, crew=crew)
        seconds += evidence.cost["seconds"]
        found = Presence().run(evidence)
        if look == looks or (found and not unclear([*found, *Collapse().run(evidence)], margin)):
            break
    return replace(evidence, cost={**evidence.cost, "seconds": round(seconds, 3)})
