"""Receipts about a generator of which several changes were merged: what did each of them keep?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from palimpsest.core.change import Change, Part, diff, stored
from palimpsest.core.concept import Request
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.ops.interference import interference, pairs
from palimpsest.probes.conflict import CONFLICT, Conflict
from palimpsest.probes.crew import Crew, Model, draw
from palimpsest.probes.drawn import ALONE, DIGITS, PAIRS, Drawn
from palimpsest.probes.evidence import Probe, rounded
from palimpsest.probes.gallery import Gallery, key
from palimpsest.probes.plan import Plan
from palimpsest.probes.read import read
from palimpsest.probes.retention import RETENTION, Retention
from palimpsest.receipt import generator_words, merged_words
from palimpsest.receipt.subject import Again, Section
from palimpsest.receipt.subjects.generator import Generator


@dataclass(frozen=True, kw_only=True)
class Merged(Generator):
    """A model with several changes in one.

    Args:
        parts: the changes, in the order of the plan's `merged`; without them nothing is said of what each kept.
        plan, judges, oracle, reference, stop_early, resurfacing, crew: of `Generator`.
    """

    parts: Sequence[Part] = ()

    name: ClassVar[str] = "merged"
    probes: ClassVar[tuple[Probe, ...]] = (Retention(), Conflict(), *Generator.probes)
    roles: ClassVar[Mapping[str, tuple[str, str]]] = {
        **Generator.roles,
        "target": ("Targets", "What the merged changes are about. Above, the untouched model, below the merged one."),
    }
    sections: ClassVar[tuple[Section, ...]] = (
        Generator.sections[0],
        Section(
            title="Kept and lost",
            readings=(RETENTION,),
            note="In how many pictures a judge sees what a change is about. The ring is the model with that change "
            "alone, the dot the merged one with its 95 % interval, the band how far two sets of so many pictures lie "
            "apart by chance.",
        ),
        *Generator.sections[1:],
        Section(
            title="Between the changes",
            readings=(CONFLICT,),
            note="By the weights alone: how far two changes point the same way (1), have nothing in common (0), or "
            "point against each other (-1).",
        ),
    )
    compared: ClassVar[Mapping[str, str]] = {
        **Generator.compared,
        "target": "targets shown",
        "y": "pictures that show what was asked for",
        "said": "targets shown",
    }

    def collect(
        self, before: Any, after: Any, request: Request, *, folder: Path | None, resume: bool, trace: Trace
    ) -> Drawn:
        about = self.settled(before, request)
        found = super().collect(before, after, request, folder=folder, resume=resume, trace=trace)
        gallery = Gallery(folder, key(before, after, found.plan, self.oracle), resume=True)
        return replace(self, judges=about.judges).beside(found, before, gallery, trace)

    def again(self, kept: Drawn, before: Any, after: Any, how: str, trace: Trace) -> Again:
        found = super().again(kept, before, after, how, trace)
        if how != "all":
            return found
        if not self.parts:
            left = "; ".join(filter(None, [found.left, "what each change does alone: give the changes"]))
            return replace(found, readings=False, left=left)
        return replace(found, evidence=self.beside(found.evidence, before, Gallery(), trace))

    def beside(self, found: Any, before: Any, gallery: Gallery, trace: Trace) -> Any:
        """Collected evidence with what each change does alone, and how they stand to each other.

        Cost: each target's pictures once more; three passes over the changes.
        """
        if not self.parts:
            return found
        plan: Plan = found.plan
        shots = plan.asked("after")
        due = {}
        for i, (part, (_, groups)) in enumerate(zip(self.parts, plan.alone(), strict=True)):
            rows = [row for g in groups for row in plan.rows(group=g).tolist()]
            if rows:
                model = Model(host=before, patch=_as_patch(part, before))
                due[f"{ALONE}-{i}"] = ("model with one change", model, [shots[row] for row in rows])
        crew = self.crew or Crew()
        draw(due, plan, crew=crew, gallery=gallery, trace=trace, batch=self.batch)
        measures = {**found.measures, **_between(self.parts, before)}
        if not due:
            return replace(found, measures=measures)
        pictures = torch.cat([gallery.hang(which, chosen) for which, (_, _, chosen) in due.items()])
        for by in self.judges or ():
            present, features = read(by, pictures, plan, crew=crew, gallery=gallery, trace=trace)
            at = f"{ALONE}/{by.evaluator.name}"
            measures |= {f"{at}/present": present} if by.evaluator.classes else {}
            measures |= {f"{at}/features": features} if features.shape[1] else {}
        return replace(found, measures=measures, gallery={**found.gallery, ALONE: pictures})

    @classmethod
    def counts(cls, plan: Plan) -> dict[str, int]:
        alone = sum(len(plan.rows(group=g)) for _, groups in plan.alone() for g in groups)
        return {**super().counts(plan), ALONE: alone, PAIRS: len(pairs(len(plan.merged)))}

    @classmethod
    def words(cls, readings: Sequence[Reading], request: Request, evidence: Drawn) -> tuple[str, list[dict[str, str]]]:
        names, plan = [part.name for part in evidence.plan.merged], evidence.plan
        # Which way a target's presence was to go is each change's own affair; what became of that is told instead.
        rest = [r for r in readings if r.name != "presence" or r.role != "target"]
        said = generator_words.beside_targets(rest, plan)
        unsaid = [part.name for part, groups in plan.alone() if not groups]
        return merged_words.headline(readings, names), [*merged_words.sentences(readings, unsaid), *said]

    @classmethod
    def wanted(cls, reading: Reading, evidence: Drawn) -> bool:
        if reading.name == RETENTION:
            return merged_words.state(reading) != "lost"
        return reading.name == "presence" or super().wanted(reading, evidence)

    @classmethod
    def figures(cls, readings: Sequence[Reading]) -> list[tuple[str, Reading]]:
        kept = [(r.concept, r) for r in readings if r.name == RETENTION][:3]
        return [*kept, *(entry for entry in super().figures(readings) if entry[1].role != "target")]


def _as_patch(part: Part, before: Any) -> Patch:
    """A change as what can be applied."""
    if isinstance(part, Patch):
        return part
    assert isinstance(part, Change)
    return diff(before, part.after)


def _between(parts: Sequence[Part], before: Any) -> dict[str, torch.Tensor]:
    found = interference(parts, stored(before)) if len(parts) > 1 else []
    if not found:
        return {}
    columns = zip(*found, strict=True)
    names = ("cosine", "opposed", "shared")
    return {f"{PAIRS}/{n}": rounded(torch.tensor(c), DIGITS) for n, c in zip(names, columns, strict=True)}
