"""Whether the class of a newcomer turned into the newcomer."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.core.reading import Reading
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evaluators import classes_of
from palimpsest.probes.evidence import Probe
from palimpsest.probes.rates import rate

TAKEN_OVER = "class shows the newcomer"


class ClassDrift(Probe):
    """How often a judge sees a newcomer in pictures that ask for its class alone, in percent.

    `before`: the untouched model, same prompts and seeds. Wilson's interval, Tango's for the paired change, McNemar's
    p; floor: how far two seed sets of the untouched model lie apart.
    """

    name = "class drift"
    makes = (TAKEN_OVER,)
    subjects = ("newcomer",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each newcomer and judge that knows it."""
        plan, found = evidence.plan, []
        classes = [g for g, group in enumerate(plan.groups) if group.role == "class"]
        for (newcomer, group, _), of_class in zip(plan.taught(), classes, strict=True):
            concept = plan.groups[group].concept
            for judge, evaluator in evidence.evaluators.items():
                known = classes_of(evaluator, concept) if concept is not None else []
                if not known:
                    continue
                rows = plan.rows(group=of_class)
                before, after = (evidence.present(judge, which, known)[rows] for which in ("before", "after"))
                again = evidence.present(judge, "other", known)[plan.twin_rows(group=of_class)]
                reading = rate(TAKEN_OVER, before, after, looks=plan.looks, again=again)
                detail = {"class": newcomer.like}
                found.append(replace(reading, concept=newcomer.name, role="class", evaluator=evaluator, detail=detail))
        return found
