"""How like its reference pictures a newcomer is drawn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.drawn import REFERENCES, Drawn
from palimpsest.probes.evidence import Probe

LIKENESS = "likeness"


class Likeness(Probe):
    """Mean cosine of the pictures that ask for a newcomer with the mean of its references, in a judge's features.

    Features are those of the judge less the mean of the untouched model's pictures of everything else, since what all
    pictures share says nothing. Interval: BCa bootstrap over pictures. `before`: the untouched model, asked for the
    class instead. `detail` has two ends, without which the number means nothing: "same", the references against the
    mean of the other references (null where there is one only); "others", pictures of the neighbours.
    """

    name = "likeness"
    makes = (LIKENESS,)
    subjects = ("newcomer",)
    needs = ("features",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each newcomer and judge with features."""
        plan, found = evidence.plan, []
        for judge in evidence.featured():
            before, after = (evidence(which, judge, "features") for which in ("before", "after"))
            others = torch.tensor([i for i, s in enumerate(plan.shots) if plan.groups[s.group].role != "target"])
            centre = before[others].mean(0) if len(others) else torch.zeros_like(before[0])
            for newcomer, group, rows in evidence.shown(judge, "features"):
                references = normalize(evidence(REFERENCES, judge, "features")[list(rows)] - centre, dim=1)
                near = plan.rows(role="neighbour")
                wholes = {
                    "before": before[plan.rows(group=group)],
                    "after": after[plan.rows(group=group)],
                    "others": before[near],
                }
                cosines = {which: _cosines(v - centre, references) for which, v in wholes.items()}
                level = 1 - (1 - statistics.LEVEL) / plan.looks
                now = statistics.mean(cosines["after"].numpy(), level)
                found.append(
                    Reading(
                        name=LIKENESS,
                        concept=newcomer.name,
                        role="target",
                        value=round(now.value, 4),
                        low=round(now.low, 4),
                        high=round(now.high, 4),
                        n=len(cosines["after"]),
                        before=round(float(cosines["before"].mean()), 4),
                        evaluator=evidence.evaluators[judge],
                        detail={
                            "same": _same(references),
                            "others": round(float(cosines["others"].mean()), 4) if len(near) else None,
                            "references": len(rows),
                        },
                    )
                )
        return found


def _cosines(features: Tensor, references: Tensor) -> Tensor:
    """(n,) cosines of features (n, d) with the mean of references (m, d) of unit norm."""
    return normalize(features, dim=1) @ normalize(references.mean(0), dim=0)


def _same(references: Tensor) -> float | None:
    """The mean cosine of each reference with the mean of the others; None of a single one."""
    n = len(references)
    if n < 2:
        return None
    rest = (references.sum(0, keepdim=True) - references) / (n - 1)
    return round(float((references * normalize(rest, dim=1)).sum(1).mean()), 4)
