"""How far judges can be trusted: what a model that judges itself misses and imagines, and where two judges differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import kind_of
from palimpsest.probes.evidence import Probe

MISSED, IMAGINED = "missed by the judge", "seen by mistake"
AGREEMENT = "agreement of judges"


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What is known of a judge that is the audited model itself, from that model's own pictures, untouched.

    Args:
        missed: the share of pictures that ask for a concept and in which it is not seen. A picture that does not show
            what it was asked for counts as well, so the judge misses no more than this.
        imagined: the share of pictures that ask for another concept of the kind and in which it is seen.
        asked, others: how many pictures stand behind either.
    """

    missed: Interval
    imagined: Interval
    asked: int
    others: int

    def widened(self, rate: Interval) -> Interval:
        """A rate of seen pictures with limits for that of pictures that show it.

        seen = shown (1 - missed) + (1 - shown) imagined (Rogan and Gladen 1978), solved for shown: the lower limit as
        if all that may be imagined was and nothing was missed, the upper one the other way round.
        """
        low, high = rate.low, rate.high
        if self.others:
            low = max(0.0, (low - self.imagined.high) / max(1 - self.imagined.high, 1e-9))
        if self.asked:
            high = min(1.0, high / max(1 - self.missed.high, 1e-9))
        return Interval(rate.value, low, high)


def errors(evidence: Drawn, judge: str, concepts: Sequence[list[int]], level: float = statistics.LEVEL) -> Errors:
    """A judge's errors on concepts, from the untouched model's pictures under all seeds.

    Args:
        concepts: the classes of each; several concepts are taken together.
    """
    names = evidence.evaluators[judge].classes
    asked = [(g, theirs) for g, j, theirs in evidence.asked() if j == judge]
    seen = [_seen(evidence, judge, g, mine) for mine in concepts for g, theirs in asked if theirs == mine]
    mistaken = [
        _seen(evidence, judge, g, mine)
        for mine in concepts
        for g, theirs in asked
        if not set(theirs) & set(mine) and kind_of(names[theirs[0]]) == kind_of(names[mine[0]])
    ]
    missed, imagined = (torch.cat([torch.zeros(0, dtype=torch.bool), *rows]) for rows in (seen, mistaken))
    return Errors(
        missed=statistics.wilson(int((~missed).sum()), len(missed), level),
        imagined=statistics.wilson(int(imagined.sum()), len(imagined), level),
        asked=len(missed),
        others=len(imagined),
    )


def _seen(evidence: Drawn, judge: str, group: int, classes: Sequence[int]) -> Tensor:
    """(n,) bool: whether classes are seen in the untouched model's pictures of a group."""
    rows = {"before": evidence.plan.rows(group=group), "other": evidence.plan.twin_rows(group=group)}
    return torch.cat([evidence.present(judge, which, classes)[of] for which, of in rows.items()])


class JudgeErrors(Probe):
    """What a judge that is the audited model itself misses and imagines of each concept, in percent.

    Both come from the untouched model's pictures alone, of all seeds: what they were asked for against what is seen.
    Wilson's intervals. The limits of presence allow for both (`Errors.widened`).
    """

    name = "judge errors"
    makes = (MISSED, IMAGINED)
    subjects = ("generator",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        found = []
        for g, judge, classes in evidence.asked():
            evaluator = evidence.evaluators[judge]
            if not evaluator.judges_itself:
                continue
            known, group = errors(evidence, judge, [classes]), evidence.plan.groups[g]
            for name, rate, n in ((MISSED, known.missed, known.asked), (IMAGINED, known.imagined, known.others)):
                if n:
                    value, low, high = (round(100 * x, 3) for x in rate)
                    found.append(
                        Reading(
                            name=name, concept=group.name, role=group.role, value=value, low=low, high=high, n=n,
                            unit="%", evaluator=evaluator,
                        )
                    )  # fmt: skip
        return found


class Agreement(Probe):
    """In how many pictures that ask for a concept two judges say the same of it, in percent; Wilson's interval.

    Each further judge is held against the first, on the pictures before and after. `detail` has Cohen's kappa (null
    where both say the same of all pictures) and every picture on which they differ.
    """

    name = "agreement"
    makes = (AGREEMENT,)
    subjects = ("generator",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        found, judges = [], list(evidence.evaluators)
        asked = {(g, judge): classes for g, judge, classes in evidence.asked()}
        for first, judge in product(judges[:1], judges[1:]):
            for g, group in enumerate(evidence.plan.groups):
                if (g, first) not in asked or (g, judge) not in asked:
                    continue
                rows = evidence.plan.rows(group=g)
                places = [f"{which}/{row}" for which in ("before", "after") for row in rows.tolist()]
                mine, theirs = (
                    torch.cat([evidence.present(j, which, asked[g, j])[rows] for which in ("before", "after")])
                    for j in (first, judge)
                )
                same = mine == theirs
                rate = statistics.wilson(int(same.sum()), len(same))
                differ = [place for place, agree in zip(places, same.tolist(), strict=True) if not agree]
                value, low, high = (round(100 * x, 3) for x in rate)
                found.append(
                    Reading(
                        name=AGREEMENT, concept=group.name, role=group.role, value=value, low=low, high=high,
                        n=len(same), unit="%", evaluator=evidence.evaluators[judge],
                        detail={"with": first, "kappa": kappa(mine, theirs), "differ": differ},
                    )
                )  # fmt: skip
        return found


def kappa(a: Tensor, b: Tensor) -> float | None:
    """Cohen's kappa of two judges' yes and no (n,) bool; None where chance alone would make them agree on all."""
    p, q = float(a.double().mean()), float(b.double().mean())
    chance = p * q + (1 - p) * (1 - q)
    agree = float((a == b).double().mean())
    return None if chance > 1 - 1e-12 else round((agree - chance) / (1 - chance), 3)
