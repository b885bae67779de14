"""How far a picture moves when the prompt and the seed stay: in pixels and in a judge's features."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from palimpsest.core.reading import Evaluator, Reading
from palimpsest.ops import statistics
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.plan import ROLES


class Drift:
    """Same-seed distance between the untouched and the edited model, by role.

    Pixels: root mean square difference, in grey levels (0..255). Features: 1 - cosine. Scale: the same distance
    between two seeds of the untouched model (`floor`); 0 is the same picture, the floor is another picture.
    Interval: BCa bootstrap over pictures.
    """

    name = "drift"
    from_receipt = True

    def measure(self, evidence: Evidence) -> dict[str, Tensor]:
        """name -> per-picture distances, (n,) against the edited model and (twins,) against the other seeds."""
        found = {}
        for name, distance in self._distances(evidence).items():
            found[name] = evidence.measured(name, lambda d=distance: d("before", "after", None))
            found[f"{name}, other seed"] = evidence.measured(
                f"{name}, other seed", lambda d=distance: d("before", "other", evidence.plan.twins)
            )
        return found

    def run(self, evidence: Evidence) -> list[Reading]:
        """One reading for each role and each way to measure."""
        found, values = [], self.measure(evidence)
        for name in self._distances(evidence):
            evaluator = evidence.evaluators.get(name.partition(", ")[2])
            for role in ROLES:
                reading = _reading(evidence, name, role, values, evaluator)
                if reading is not None:
                    found.append(reading)
        return found

    def _distances(self, evidence: Evidence) -> dict[str, Callable[..., Tensor]]:
        def pixel(a: str, b: str, rows: tuple[int, ...] | None) -> Tensor:
            first, second = evidence.pictures[a].float(), evidence.pictures[b].float()
            first = first if rows is None else first[list(rows)]
            return (first - second).flatten(1).square().mean(1).sqrt()

        def feature(judge: str) -> Callable[..., Tensor]:
            def distance(a: str, b: str, rows: tuple[int, ...] | None) -> Tensor:
                first, second = evidence.seen[judge][a].features, evidence.seen[judge][b].features
                first = first if rows is None else first[list(rows)]
                return (1 - F.cosine_similarity(first, second)).clamp(min=0)

            return distance

        names = {"pixel drift": pixel}
        for judge, seen in evidence.seen.items():
            if f"feature drift, {judge}" in evidence.kept or seen["before"].features.shape[1]:
                names[f"feature drift, {judge}"] = feature(judge)
        return names


def _reading(
    evidence: Evidence, name: str, role: str, values: dict[str, Tensor], evaluator: Evaluator | None
) -> Reading | None:
    rows = evidence.plan.rows(role=role)
    if not len(rows):
        return None
    moved = statistics.mean(values[name][rows].numpy(), 1 - (1 - statistics.LEVEL) / evidence.plan.looks)
    scale = values[f"{name}, other seed"][evidence.plan.twin_rows(role=role)]
    floor = float(scale.mean()) if len(scale) else None
    return Reading(
        name=name.partition(",")[0],
        role=role,
        value=round(moved.value, 4),
        low=round(max(0.0, moved.low), 4),
        high=round(moved.high, 4),
        n=len(rows),
        unit="grey levels" if evaluator is None else "",
        higher_is_better=None if role == "target" else False,
        before=0.0,
        floor=None if floor is None else round(floor, 4),
        evaluator=evaluator,
        detail={} if not floor else {"share of another seed": round(moved.value / floor, 4)},
    )
