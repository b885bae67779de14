"""The over-erasure alarm: pictures that are one colour, noise, or nearly the same as another prompt's."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.broken import KINDS
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evidence import Probe
from palimpsest.probes.rates import rate


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
            reading = rate("collapse", before > 0, after > 0, looks=evidence.plan.looks, again=before[:0] > 0)
            detail = {kind: int((after == i).sum()) for i, kind in enumerate(KINDS) if i}
            found.append(replace(reading, concept=name, role=role, detail=detail))
        ps = statistics.holm([r.p if r.p is not None else 1.0 for r in found])
        return [replace(r, p=float(f"{p:.4g}")) for r, p in zip(found, ps, strict=True)]
