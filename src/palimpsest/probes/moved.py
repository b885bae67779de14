"""Whether edited pictures show what was asked."""

from __future__ import annotations

from dataclasses import replace

import torch

from palimpsest.core.reading import Reading
from palimpsest.probes.edits import Edits
from palimpsest.probes.evidence import Probe
from palimpsest.probes.rates import rate

MOVED = "moved"


class Moved(Probe):
    """The share of pictures that are as asked after the edit, in percent; before: in the pictures as they were.

    Wilson's interval, Tango's for the paired change, McNemar's exact p. Floor: of the rates before and of the rebuilt
    pictures, in which nothing was asked, together.
    """

    name = "moved"
    makes = (MOVED,)
    subjects = ("edited",)
    needs = ("present",)

    def run(self, evidence: Edits) -> list[Reading]:
        """One reading for each judge that knows what was asked."""
        found = []
        for judge in evidence.knowing():
            was, now = (evidence.shows(judge, side) for side in ("before", "after"))
            rebuilt = evidence.has("rebuilt", judge, "present")
            again = evidence.shows(judge, "rebuilt") if rebuilt else torch.zeros(0, dtype=torch.bool)
            reading = rate(MOVED, was, now, again=again)
            about = {"concept": evidence.plan.wanted, "role": "target", "evaluator": evidence.evaluators[judge]}
            found.append(replace(reading, **about, p=float(f"{reading.p or 0.0:.4g}")))
        return found
