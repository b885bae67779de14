"""Where a change leaks to: what is seen, before and after, in the pictures that ask for each concept."""

from __future__ import annotations

import torch

from palimpsest.core.concept import Concept
from palimpsest.core.reading import MatrixRow, Reading
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import classes_of, word_of
from palimpsest.probes.evidence import Probe


class Leakage(Probe):
    """The leakage matrix: a row for each concept asked for, a column for each concept that a judge can see.

    An entry is the change, in points, of the rate at which the column's concept is seen in the row's pictures. The
    value of a row is its largest change off the diagonal, with its sign. Classes outside the plan get a column where
    they moved by 10 points or more. A description without a test: presence tests
    the diagonal.
    """

    name = "leakage"
    makes = ("leakage",)
    subjects = ("generator",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each group of pictures and judge; `row` holds it."""
        found = []
        for judge, evaluator in evidence.evaluators.items():
            columns = _columns(evidence, judge) if evaluator.classes else {}
            if not columns:
                continue
            for g, group in enumerate(evidence.plan.groups):
                rows = evidence.plan.rows(group=g)
                rates = {
                    which: [
                        round(100 * float(evidence.present(judge, which, classes)[rows].float().mean()), 3)
                        for classes in columns.values()
                    ]
                    for which in ("before", "after")
                }
                change = [round(a - b, 3) for b, a in zip(rates["before"], rates["after"], strict=True)]
                off = [c for name, c in zip(columns, change, strict=True) if name != group.name]
                found.append(
                    Reading(
                        name="leakage",
                        concept=group.name,
                        role=group.role,
                        value=max(off, key=abs, default=0.0),
                        n=len(rows),
                        unit="points",
                        evaluator=evaluator,
                        row=MatrixRow(
                            columns=tuple(columns),
                            before=tuple(rates["before"]),
                            after=tuple(rates["after"]),
                            change=tuple(change),
                        ),
                    )
                )
        return found


def _columns(evidence: Drawn, judge: str) -> dict[str, list[int]]:
    """Concept -> classes, of every concept of the plan and every replacement that the judge knows."""
    plan = evidence.plan
    concepts: list[Concept] = [g.concept for g in plan.groups if g.concept is not None]
    concepts[len(plan.request.target) : len(plan.request.target)] = plan.request.toward
    found = {c.name: classes_of(evidence.evaluators[judge], c) for c in concepts}
    known = {i for classes in found.values() for i in classes}
    return {**{name: classes for name, classes in found.items() if classes}, **_gained(evidence, judge, known)}


def _gained(evidence: Drawn, judge: str, known: set[int]) -> dict[str, list[int]]:
    """Further classes, at most 4, that some group's pictures show at least 10 points more or less often."""
    before, after = (evidence(which, judge, "present").float() for which in ("before", "after"))
    moved = torch.stack(
        [
            (after[rows].mean(0) - before[rows].mean(0)).abs()
            for rows in (evidence.plan.rows(group=g) for g in range(len(evidence.plan.groups)))
        ]
    ).amax(0)  # (classes,)
    names = evidence.evaluators[judge].classes
    order = sorted((i for i in range(len(names)) if i not in known and moved[i] >= 0.1), key=lambda i: -float(moved[i]))
    return {word_of(names[i]): [i] for i in order[:4]}
