"""Whether what was asked for is there: the rate of pictures in which a judge sees the concept of their prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import kind_of, word_of
from palimpsest.probes.evidence import Probe
from palimpsest.probes.judging import errors
from palimpsest.probes.rates import percent, rate


class Presence(Probe):
    """Presence of each concept in the pictures that ask for it, in percent, before and after; and of each target in
    the pictures of a user's own prompts, whatever they ask for.

    Interval: Wilson's for the rate, Tango's score interval for the paired change (`change`). Floor: how far
    two seed sets of the untouched model lie apart; `detail["seeds apart"]` is the p of Fisher's test that they do so by
    chance. p: McNemar's exact test of the same-seed pairs, corrected by Benjamini and Hochberg over the concepts of a
    role (targets, neighbours, unrelated ones and prompts of files answer different questions). An audit that may stop
    early spends its level over its looks (`probes.stopping`). Where the audited model itself judges, the limits of the
    rate allow for its errors (`probes.judging`); the change is one of what is seen.
    """

    name = "presence"
    makes = ("presence",)
    subjects = ("generator",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """For each judge one reading of each concept, one of all neighbours, one of all unrelated concepts, and one of
        each target in each file of prompts."""
        found = []
        for judge in evidence.evaluators:
            asked = [(g, classes) for g, j, classes in evidence.asked() if j == judge]
            readings = [_of(evidence, judge, [entry]) for entry in asked]
            for role in ("neighbour", "unrelated"):
                several = [(g, c) for g, c in asked if evidence.plan.groups[g].role == role]
                if len(several) > 1:
                    readings.append(_of(evidence, judge, several))
            readings += [
                _of(evidence, judge, [(g, c)], target.name) for g, j, c, target in evidence.listed() if j == judge
            ]
            found += _corrected(readings)
        return found


def _corrected(readings: Sequence[Reading]) -> list[Reading]:
    """The same readings, p corrected within (role, single concepts or taken together)."""
    found = list(readings)
    for family in {(r.role, bool(r.concept)) for r in readings}:
        rows = [i for i, r in enumerate(found) if (r.role, bool(r.concept)) == family]
        ps = statistics.benjamini_hochberg([found[i].p or 0.0 for i in rows])
        for i, p in zip(rows, ps, strict=True):
            found[i] = replace(found[i], p=float(f"{p:.4g}"))
    return found


def _of(evidence: Drawn, judge: str, asked: Sequence[tuple[int, list[int]]], target: str = "") -> Reading:
    """The reading of one concept, of several of one role together, or of a target in the prompts of one file."""
    plan = evidence.plan
    before, after, other = [
        torch.cat([_hits(evidence, judge, which, g, classes) for g, classes in asked])
        for which in ("before", "after", "other")
    ]
    reading = rate("presence", before, after, looks=plan.looks, again=other)
    if evidence.evaluators[judge].judges_itself:
        level = 1 - (1 - statistics.LEVEL) / plan.looks
        known = errors(evidence, judge, [classes for _, classes in asked], level)
        wide = known.widened(statistics.wilson(int(after.sum()), len(after), level))
        reading = replace(reading, low=percent(wide.low), high=percent(wide.high))
    group = plan.groups[asked[0][0]]
    one = f"{target} in {group.name}" if target else group.name
    apart = statistics.unlike(int(before.sum()), len(before), int(other.sum()), len(other))
    detail: dict[str, object] = {"seeds apart": float(f"{apart:.4g}")}
    if len(asked) > 1:
        detail["concepts"] = [plan.groups[g].name for g, _ in asked]
    else:
        detail["instead"] = _instead(evidence, judge, asked[0][0], asked[0][1])
    return replace(
        reading,
        concept=one if len(asked) == 1 else "",
        role=group.role,
        evaluator=evidence.evaluators[judge],
        detail=detail,
    )


def _hits(evidence: Drawn, judge: str, which: str, group: int, classes: Sequence[int]) -> Tensor:
    rows = evidence.plan.twin_rows(group=group) if which == "other" else evidence.plan.rows(group=group)
    return evidence.present(judge, which, classes)[rows]


def _instead(evidence: Drawn, judge: str, group: int, classes: Sequence[int]) -> list[list[object]]:
    """What is seen more often than before in the pictures that ask for the concept: up to 3 (class, points)."""
    rows = evidence.plan.rows(group=group)
    names = evidence.evaluators[judge].classes
    kind = kind_of(names[classes[0]])
    gain = [
        (
            float(evidence.present(judge, "after", [i])[rows].float().mean())
            - float(evidence.present(judge, "before", [i])[rows].float().mean()),
            c,
        )
        for i, c in enumerate(names)
        if i not in classes and kind_of(c) == kind
    ]
    top = sorted(gain, key=lambda entry: (-entry[0], entry[1]))[:3]
    return [[word_of(c), percent(points)] for points, c in top if points >= 0.05]
