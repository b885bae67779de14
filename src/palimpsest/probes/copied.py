"""Whether a newcomer's pictures are copies of its references."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import normalize

from palimpsest.core.reading import Reading
from palimpsest.probes.drawn import REFERENCES, Drawn
from palimpsest.probes.evidence import Probe
from palimpsest.probes.rates import rate

COPIED = "nearer to a reference than references are to each other"


class Copied(Probe):
    """The share of a newcomer's pictures whose nearest reference is nearer than any two references are to each other,
    in percent, by the cosine of a judge's features.

    Wilson's interval. `before`: the untouched model's pictures of the class. A description without a test: references
    that are all alike make nothing a copy. Nothing is read where there is one reference only.
    """

    name = "copied"
    makes = (COPIED,)
    subjects = ("newcomer",)
    needs = ("features",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each newcomer of several references and judge with features."""
        found = []
        for judge in evidence.featured():
            for newcomer, group, rows in evidence.shown(judge, "features"):
                references = normalize(evidence(REFERENCES, judge, "features")[list(rows)], dim=1)
                if len(references) < 2:
                    continue
                apart = references @ references.T - 2 * torch.eye(len(references))
                nearest = {
                    which: (normalize(evidence(which, judge, "features"), dim=1) @ references.T).amax(1)
                    for which in ("before", "after")
                }
                copies = {which: (c > apart.max())[evidence.plan.rows(group=group)] for which, c in nearest.items()}
                reading = rate(COPIED, copies["before"], copies["after"])
                reading = replace(reading, concept=newcomer.name, role="target", evaluator=evidence.evaluators[judge])
                found.append(replace(reading, p=None, change=None))
        return found
