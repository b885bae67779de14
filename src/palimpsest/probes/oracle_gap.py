"""How far the edited model is from a model that never saw the target: the gold standard of forgetting."""

from __future__ import annotations

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.ops.distances import kernel
from palimpsest.probes.distance import spread
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evidence import Probe

_FEWEST = 8
GAP = "gap to a model that never saw it"
NEVER = "presence in a model that never saw it"


class OracleGap(Probe):
    """Kernel distance to the pictures of a model that never saw the target.

    `before` is the untouched model's distance to the same pictures: an edit that forgets as if it had never learnt
    brings the target's down to the others'. Nothing is read where no such model was given.
    """

    name = "oracle gap"
    makes = (GAP,)
    subjects = ("generator",)
    needs = ("features",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """For each judge a gap for each role and file of prompts."""
        found = []
        for judge in evidence.featured():
            if not evidence.has("oracle", judge, "features"):
                continue
            before, after, never = (evidence(which, judge, "features") for which in ("before", "after", "oracle"))
            for role, name, rows, _ in evidence.plan.scopes():
                if len(rows) < _FEWEST:
                    continue
                rows = spread(rows)
                found.append(
                    Reading(
                        name=GAP,
                        concept=name,
                        role=role,
                        value=float(f"{kernel(after[rows], never[rows])[0]:.5g}"),
                        before=float(f"{kernel(before[rows], never[rows])[0]:.5g}"),
                        n=len(rows),
                        evaluator=evidence.evaluators[judge],
                    )
                )
        return found


class OraclePresence(Probe):
    """How often a model that never saw the target shows it, in percent with Wilson's interval."""

    name = "oracle presence"
    makes = (NEVER,)
    subjects = ("generator",)
    needs = ("present",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """For each judge one reading of each target; none where no such model was given."""
        found = []
        for g, judge, classes in evidence.asked():
            group = evidence.plan.groups[g]
            if group.role != "target" or not evidence.has("oracle", judge, "present"):
                continue
            shown = evidence.present(judge, "oracle", classes)[evidence.plan.rows(group=g)]
            rate = statistics.wilson(int(shown.sum()), len(shown))
            found.append(
                Reading(
                    name=NEVER,
                    concept=group.name,
                    role="target",
                    value=round(100 * rate.value, 3),
                    low=round(100 * rate.low, 3),
                    high=round(100 * rate.high, 3),
                    n=len(shown),
                    unit="%",
                    evaluator=evidence.evaluators[judge],
                )
            )
        return found
