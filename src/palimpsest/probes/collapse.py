"""The over-erasure alarm: pictures that are one colour, noise, or nearly the same as another prompt's."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.core.reading import Change, Reading
from palimpsest.ops import statistics
from palimpsest.probes.broken import KINDS
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evidence import Probe


class Collapse(Probe):
    """The share of pictures that are no longer pictures, in percent, before and after.

    One colour: root mean square deviation from the mean colour under 4 grey levels. Noise: neighbouring pixels
    correlate less than 0.25. Same as another: the picture of another prompt is within 5 grey levels at 16 x 16.
    Interval: Wilson; p: McNemar's exact test, corrected by Holm over the roles and files of prompts.
    """

    name = "collapse"
    makes = ("collapse",)
    subjects = ("generator",)
    needs = ("collapse",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each role and file of prompts."""
        found = []
        for role, name, rows, _ in evidence.plan.scopes():
            before, after = (evidence(which, "collapse")[rows] for which in ("before", "after"))
            n = len(rows)
            level = 1 - (1 - statistics.LEVEL) / evidence.plan.looks
            rate = statistics.wilson(int((after > 0).sum()), n, level)
            change = statistics.paired((before > 0).numpy(), (after > 0).numpy(), level)
            found.append(
                Reading(
                    name="collapse",
                    concept=name,
                    role=role,
                    value=round(100 * rate.value, 3),
                    low=round(100 * rate.low, 3),
                    high=round(100 * rate.high, 3),
                    n=n,
                    unit="%",
                    before=round(100 * float((before > 0).float().mean()), 3),
                    floor=round(100 * statistics.rate_floor(int((before > 0).sum()), n, n, level), 3),
                    p=min(1.0, evidence.plan.looks * statistics.mcnemar((before > 0).numpy(), (after > 0).numpy())),
                    change=Change(**{k: round(100 * v, 3) for k, v in change._asdict().items()}),
                    detail={kind: int((after == i).sum()) for i, kind in enumerate(KINDS) if i},
                )
            )
        ps = statistics.holm([r.p if r.p is not None else 1.0 for r in found])
        return [replace(r, p=float(f"{p:.4g}")) for r, p in zip(found, ps, strict=True)]
