"""Receipts about a generator that was taught something: is it drawn, is it like its pictures, and what came along?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Pictures
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.probes.carried import CARRIED, Carried
from palimpsest.probes.class_drift import TAKEN_OVER, ClassDrift
from palimpsest.probes.copied import COPIED, Copied
from palimpsest.probes.crew import Crew
from palimpsest.probes.drawn import REFERENCES, Drawn
from palimpsest.probes.evidence import Probe
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.likeness import LIKENESS, Likeness
from palimpsest.probes.obedience import OBEDIENCE, Obedience
from palimpsest.probes.plan import Plan
from palimpsest.probes.read import read
from palimpsest.receipt import newcomer_words
from palimpsest.receipt.subject import Again, Section
from palimpsest.receipt.subjects.generator import Generator

_OWN: tuple[Probe, ...] = (Likeness(), Obedience(), Carried(), ClassDrift(), Copied())


@dataclass(frozen=True, kw_only=True)
class Newcomer(Generator):
    """A model that was taught to draw something.

    Args:
        references: the pictures of the newcomers, newcomer by newcomer as the plan has them; without them nothing is
            said of likeness, of what came along, and of copies.
        plan, judges, oracle, reference, stop_early, resurfacing, crew: of `Generator`; the oracle is a model that
            always knew the newcomer.
    """

    references: Pictures | None = None

    name: ClassVar[str] = "newcomer"
    probes: ClassVar[tuple[Probe, ...]] = (Generator.probes[0], *_OWN, *Generator.probes[1:])
    roles: ClassVar[Mapping[str, tuple[str, str]]] = {
        "target": (
            "Newcomers",
            "What the model was taught. Above, the untouched model with the class in its place, below the taught one.",
        ),
        "class": ("Class", "What the newcomer is one of, asked for by itself. It should stay what it was."),
        **{role: told for role, told in Generator.roles.items() if role != "target"},
    }
    sections: ClassVar[tuple[Section, ...]] = (
        *Generator.sections[:3],
        Section(
            title="Likeness",
            readings=(LIKENESS, COPIED),
            note="Mean cosine with the references in a judge's features. Read it between its two ends: references "
            "among themselves, and pictures of the neighbours.",
        ),
        Section(
            title="The other words",
            readings=(OBEDIENCE, CARRIED),
            note="Whether what a prompt says beside the newcomer is still drawn, against the untouched model asked for "
            "the class with the same seed; and what most references share that appears where nobody asked for it.",
        ),
        Section(
            title="The class",
            readings=(TAKEN_OVER,),
            note="In how many pictures that ask for the class alone the newcomer is seen.",
        ),
        *Generator.sections[3:],
    )
    compared: ClassVar[Mapping[str, str]] = {
        **Generator.compared,
        "before": "class asked for instead",
        "target": "newcomer shown",
        "y": "pictures that show the newcomer",
        "said": "newcomer shown",
    }

    def collect(
        self, before: Any, after: Any, request: Request, *, folder: Path | None, resume: bool, trace: Trace
    ) -> Drawn:
        about = self.settled(before, request)
        assert about.plan is not None
        self._count(about.plan)  # first: what is missing is told before hours of drawing
        return replace(self, judges=about.judges).beside(
            super().collect(before, after, request, folder=folder, resume=resume, trace=trace), trace
        )

    def again(self, kept: Drawn, before: Any, after: Any, how: str, trace: Trace) -> Again:
        found = super().again(kept, before, after, how, trace)
        if how != "all" or not any(n.references for n in kept.plan.newcomers):
            return found
        if self.references is None:
            left = "; ".join(filter(None, [found.left, "what is read in the references: give their pictures"]))
            return replace(found, readings=False, left=left)
        return replace(found, evidence=self.beside(found.evidence, trace))

    def beside(self, found: Any, trace: Trace) -> Any:
        """Collected evidence with the references and what judges read in them.

        Raises:
            BadRequest: there are more or fewer references than the plan states.
        """
        pictures = self._count(found.plan)
        if pictures is None:
            return found
        measures = dict(found.measures)
        for by in self.judges or ():
            present, features = read(by, pictures.images, found.plan, crew=Crew(), gallery=Gallery(), trace=trace)
            at = f"{REFERENCES}/{by.evaluator.name}"
            measures |= {f"{at}/present": present} if by.evaluator.classes else {}
            measures |= {f"{at}/features": features} if features.shape[1] else {}
        return replace(found, measures=measures, gallery={**found.gallery, REFERENCES: pictures.images})

    def _count(self, plan: Plan) -> Pictures | None:
        """The references, as many as the plan states; None where there are none."""
        stated = sum(n.references for n in plan.newcomers)
        if self.references is None or not stated:
            return None
        if len(self.references) != stated:
            raise BadRequest(f"{len(self.references)} references were given; the plan has {stated}.")
        return self.references

    @classmethod
    def facts(cls, evidence: Drawn) -> list[tuple[str, str]]:
        given = [(f"Consent for {n.name}", n.consent or "not stated") for n in evidence.plan.newcomers]
        persons = {g.name for g in evidence.plan.groups if g.concept is not None and g.concept.kind == "identity"}
        return [
            *super().facts(evidence),
            *(g for g, n in zip(given, evidence.plan.newcomers, strict=True) if n.name in persons),
        ]

    @classmethod
    def words(cls, readings: Sequence[Reading], request: Request, evidence: Drawn) -> tuple[str, list[dict[str, str]]]:
        headline, said = super().words(readings, request, evidence)
        targets = len(request.target)  # presence of each comes first
        return headline, [*said[:targets], *newcomer_words.sentences(readings), *said[targets:]]
