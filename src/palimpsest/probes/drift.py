"""How far a picture moves when the prompt and the seed stay: in pixels and in a judge's features."""

from __future__ import annotations

from palimpsest.core.reading import Evaluator, Reading
from palimpsest.ops import statistics
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evidence import Probe
from palimpsest.probes.groups import Scope

_INVISIBLE = 1.0  # grey levels
_SAME = 1e-3  # of the distance to another seed


class Drift(Probe):
    """Same-seed distance between the untouched and the edited model, by role.

    Pixels: root mean square difference, in grey levels (0..255); unchanged below one. Features: 1 - cosine; unchanged
    below a thousandth of the scale. Scale: the same distance between two seeds of the untouched model (`floor`); 0 is
    the same picture, the floor is another picture. Interval: BCa bootstrap over pictures. There is no test, because a
    single moved pixel is a change.
    """

    name = "drift"
    makes = ("pixel drift", "feature drift")
    subjects = ("generator",)
    needs = ("drift",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each role and file of prompts, and each way to measure."""
        judges = [judge for judge in evidence.evaluators if evidence.has("after", judge, "drift")]
        return [_reading(evidence, judge, scope) for judge in ("", *judges) for scope in evidence.plan.scopes()]


def _reading(evidence: Drawn, judge: str, scope: Scope) -> Reading:
    path = (judge, "drift") if judge else ("drift",)
    evaluator: Evaluator | None = evidence.evaluators[judge] if judge else None
    rows, level = scope.rows, 1 - (1 - statistics.LEVEL) / evidence.plan.looks
    moved = statistics.mean(evidence("after", *path)[rows].numpy(), level)
    scale = evidence("other", *path)[scope.twins]
    floor = float(scale.mean()) if len(scale) else None
    rest = None if floor is None else round(floor, 4)
    return Reading(
        name="feature drift" if judge else "pixel drift",
        concept=scope.name,
        role=scope.role,
        value=round(moved.value, 4),
        low=round(max(0.0, moved.low), 4),
        high=round(moved.high, 4),
        n=len(rows),
        unit="" if judge else "grey levels",
        before=0.0,
        floor=rest,
        visible=(_SAME * rest if rest else None) if judge else _INVISIBLE,
        evaluator=evaluator,
        detail={} if not floor else {"share of another seed": round(moved.value / floor, 4)},
    )
