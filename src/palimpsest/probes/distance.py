"""How far the edited model's pictures are from the untouched model's as distributions, in a judge's features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.ops.distances import FLIPS, cmmd, frechet, kernel
from palimpsest.probes.drawn import MATCH, Drawn
from palimpsest.probes.evidence import Probe

FEWEST = 8  # pictures below which a distance between distributions says nothing
_MOST = 4_000  # pictures above which the matrix of all pairs takes gigabytes


class Distance(Probe):
    """Kernel and Frechet distance between the pictures before and after, for each role and judge.

    Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with `k(x, y) = (x.y / d + 1)^3`. Rows i and j that share
    a prompt and seed never meet, so the same seeds on both sides do not pull it down. p: swapping before and after
    within pairs (999 random swaps). Floor: the 95 % quantile of swaps between two seeds of the untouched model,
    scaled to the number of pictures. Frechet distance (Heusel et al. 2017): on the first seed of each prompt, with
    the untouched model's other seed as its floor, because its bias depends on the number of pictures. CMMD (Jayasumana
    et al. 2024), likewise, in features of evaluators that match pictures with texts (CLIP).
    """

    name = "distance"
    makes = ("kernel distance", "Frechet distance", "CMMD")
    subjects = ("generator",)
    needs = ("features",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """Up to three readings for each role, or file of prompts, and judge; those with fewer than 8 pictures are left
        out, and of more than 4,000 so many, evenly spread."""
        found = []
        for judge in evidence.featured():
            features = {which: evidence(which, judge, "features") for which in ("before", "after", "other")}
            for role, name, rows, twins in evidence.plan.scopes():
                if len(rows) < FEWEST:
                    continue
                rows, twins = spread(rows), spread(twins)
                before, after = features["before"][rows], features["after"][rows]
                firsts = torch.tensor(evidence.plan.twins)[twins]
                one, other, edited = features["before"][firsts], features["other"][twins], features["after"][firsts]
                value, null = kernel(before, after)
                floor = float(np.quantile(kernel(one, other)[1], 0.95)) * len(twins) / len(rows)
                common = {"concept": name, "role": role, "evaluator": evidence.evaluators[judge]}
                found.append(
                    Reading(
                        name="kernel distance",
                        value=short(value),
                        n=len(rows),
                        floor=short(max(0.0, floor)),
                        p=min(1.0, evidence.plan.looks * (1 + int((null >= value - 1e-12).sum())) / (1 + FLIPS)),
                        **common,
                    )
                )
                ways = {"Frechet distance": frechet, "CMMD": cmmd if evidence.has("before", judge, MATCH) else None}
                found += [
                    Reading(
                        name=called, value=short(of(one, edited)), n=len(firsts), floor=short(of(one, other)), **common
                    )
                    for called, of in ways.items()
                    if of is not None and len(firsts) >= FEWEST
                ]
        return found


def spread(rows: Tensor) -> Tensor:
    """At most `_MOST` rows, evenly spread."""
    return rows if len(rows) <= _MOST else rows[torch.linspace(0, len(rows) - 1, _MOST).long()]


def short(x: float) -> float:
    """To the digits that a receipt keeps of a distance."""
    return float(f"{round(x, 9):.5g}")
