"""Whether everything else in edited pictures is read as before."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.edits import Edits
from palimpsest.probes.evidence import Probe
from palimpsest.probes.rates import percent, rate

KEPT = "kept"


class Kept(Probe):
    """The share of pictures in which an attribute that was not to change is read as before the edit, in percent.

    `before` is the same share of the rebuilt pictures, in which nothing was asked: what the way through the model
    costs (100 where there are none). Wilson's interval, Tango's for the paired difference, McNemar's p, corrected by
    Benjamini and Hochberg over the attributes. Floor: of two sets of so many pictures at the rebuilt pictures' rate.
    """

    name = "kept"
    makes = (KEPT,)
    subjects = ("edited",)
    needs = ("present",)

    def run(self, evidence: Edits) -> list[Reading]:
        """One reading for each attribute that a judge's classes name ("kind:word")."""
        found = []
        for judge in evidence.knowing():
            readings = []
            for kind, classes in evidence.kinds(judge).items():
                after = _same(evidence, judge, "after", classes)
                whole = evidence.has("rebuilt", judge, "present")
                rebuilt = _same(evidence, judge, "rebuilt", classes) if whole else torch.ones_like(after)
                n = len(after)
                floor = percent(statistics.rate_floor(int(rebuilt.sum()), n, n))
                reading = replace(rate(KEPT, rebuilt, after), floor=floor, concept=kind, role="kept")
                readings.append(replace(reading, evaluator=evidence.evaluators[judge]))
            ps = statistics.benjamini_hochberg([r.p or 0.0 for r in readings])
            found += [replace(r, p=float(f"{p:.4g}")) for r, p in zip(readings, ps, strict=True)]
        return found


def _same(evidence: Edits, judge: str, side: str, classes: list[int]) -> Tensor:
    was, now = (evidence(which, judge, "present").bool()[:, classes] for which in ("before", side))
    return (was == now).all(1)
