"""How far the edited model is from a model that never saw the target: the gold standard of forgetting."""

from __future__ import annotations

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.distance import kernel
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.plan import ROLES

_FEWEST = 8


class OracleGap:
    """Kernel distance to the pictures of a model that never saw the target, and how often that model shows it.

    `before` is the untouched model's distance to the same pictures: an edit that forgets as if it had never learnt
    brings the target's down to the others'. Nothing is read where no such model was given.
    """

    name = "oracle gap"
    from_receipt = False

    def run(self, evidence: Evidence) -> list[Reading]:
        """For each judge: a gap for each role, and the never-saw model's presence of each target."""
        if "oracle" not in evidence.pictures:
            return []
        found = []
        for judge, seen in evidence.seen.items():
            for role in ROLES:
                rows = evidence.plan.rows(role=role)
                if len(rows) < _FEWEST or not seen["oracle"].features.shape[1]:
                    continue
                oracle = seen["oracle"].features[rows]
                found.append(
                    Reading(
                        name="gap to a model that never saw it",
                        role=role,
                        value=float(f"{kernel(seen['after'].features[rows], oracle)[0]:.5g}"),
                        before=float(f"{kernel(seen['before'].features[rows], oracle)[0]:.5g}"),
                        n=len(rows),
                        higher_is_better=False,
                        evaluator=evidence.evaluators[judge],
                    )
                )
        for g, judge, classes in evidence.asked():
            group = evidence.plan.groups[g]
            if group.role != "target":
                continue
            shown = evidence.present(judge, "oracle", classes)[evidence.plan.rows(group=g)]
            rate = statistics.wilson(int(shown.sum()), len(shown))
            found.append(
                Reading(
                    name="presence in a model that never saw it",
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
