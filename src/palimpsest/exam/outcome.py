"""What an unlearner's records on one case amount to: gaps to retrain oracles with intervals, scores, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.exam.case import Record
from palimpsest.exam.judged import refused
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.ops.unlearning_scores import adaptive_unlearning_score, normalised_unlearning_score

CLOSE, COST = 5.0, 3.0  # points on the forget set, points of held-out accuracy
FORGET, RETAIN, TEST = "forget set", "retain set", "held-out, kept classes"
GAP = "gap to retrained models"
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One system on one case, over its seeds. Gaps are of accuracies in points; nan where nothing was measured.

    Args:
        kind: of the case's request.
        forget, retain, test: gap on forgotten, retained, and held-out samples of kept classes.
        before: the same of the untouched model: forget gap and held-out gap.
        attack: area of the membership attack by modified entropy, less that on retrained models (0: as hard as there).
        average: mean of the absolute gaps of forget, retain, test and of the attack in hundredths, as SalUn's paper
            sums them up. floor: the same of a retrained model against the others, at most.
        ratio: area of the likelihood-ratio attack. agreement: share of forgotten samples with a retrained model's
            answer, in percent. divergence: of the label's log-odds on forgotten samples from retrained models', nats.
        probe: area of a linear probe for the forgotten classes in the features. relearn: steps until they are back.
        adaptive, normalised: DUCK's and MUFAC's scores.
        share: passes as a share of retraining's. seconds: processor time.
        runs, overdone: how many; in how many forgetting shows. refused: in which words, if it did.
        points: (forget gap, held-out gap, share) of each seed.
    """

    kind: str
    forget: Interval
    retain: Interval
    test: Interval
    before: tuple[float, float]
    attack: Interval
    average: Interval
    floor: float
    ratio: Interval
    agreement: Interval
    divergence: Interval
    probe: Interval
    relearn: Interval
    adaptive: Interval
    normalised: Interval
    share: float
    passes: float
    seconds: float
    runs: int
    overdone: int
    refused: str
    points: tuple[tuple[float, float, float], ...]

    @property
    def close(self) -> bool:
        """Whether both bounds are met."""
        return self.runs > 0 and abs(self.forget.value) <= CLOSE and self.test.value >= -COST


def outcome(records: Sequence[Record]) -> Outcome:
    """Sums up the records of one system on one case."""
    worked = [r for r in records if "numbers" in r]
    kind = records[0]["case"]["kind"]

    def of(name: str, concept: str = "") -> Interval:
        return _mean([v for r in worked if (v := reading(r, name, concept)) is not None])

    def cost(name: str) -> float:
        return float(np.mean([r["cost"][name] for r in worked])) if worked else math.nan

    gaps = [(_gap(r, FORGET), _gap(r, TEST), float(r["cost"]["of_retraining"])) for r in worked]
    return Outcome(
        kind=kind,
        forget=of(GAP, FORGET),
        retain=of(GAP, RETAIN),
        test=of(GAP, TEST),
        before=(_gap(worked[0], FORGET, "before"), _gap(worked[0], TEST, "before")) if worked else (0.0, 0.0),
        attack=_mean([a for r in worked if (a := _attack(r)) is not None]),
        average=_mean([_average(r) for r in worked]),
        floor=_floor(worked),
        ratio=of("membership", "likelihood ratio"),
        agreement=of("agreement with retrained models", FORGET),
        divergence=of("divergence of margins", FORGET),
        probe=of("trace in features", "linear probe"),
        relearn=of("relearn time"),
        adaptive=_mean([_adaptive(r, kind) for r in worked]),
        normalised=_mean([_normalised(r) for r in worked]),
        share=cost("of_retraining"),
        passes=cost("passes"),
        seconds=cost("cpu_seconds"),
        runs=len(worked),
        overdone=sum((reading(r, "overdone forgetting") or 0) > 0 for r in worked),
        refused=refused(records),
        points=tuple(gaps),
    )


def _mean(values: Sequence[float]) -> Interval:
    known = [v for v in values if not math.isnan(v)]
    return statistics.mean(known) if known else NOTHING


def _gap(r: Record, part: str, field: str = "value") -> float:
    return float(reading(r, GAP, part, field) or 0.0)


def _retrained(r: Record, name: str, concept: str) -> list[float]:
    return list(reading(r, name, concept, "retrained") or [])


def _attack(r: Record) -> float | None:
    value, never = reading(r, "membership", "modified entropy"), _retrained(r, "membership", "modified entropy")
    return None if value is None or not never else value - float(np.mean(never))


def _average(r: Record) -> float:
    attack = _attack(r)
    gaps = [abs(_gap(r, part)) for part in (FORGET, RETAIN, TEST)]
    return float(np.mean([*gaps, *([] if attack is None else [100 * abs(attack)])]))


def _floor(records: Sequence[Record]) -> float:
    """The largest average gap of one retrained model to the mean of the others."""
    if not records:
        return math.nan
    rows = [_retrained(records[0], "accuracy", part) for part in (FORGET, RETAIN, TEST)]
    rows.append([100 * a for a in _retrained(records[0], "membership", "modified entropy")])
    table = np.array([r for r in rows if len(r) > 1 and len(r) == len(rows[0])])
    if not table.size:
        return math.nan
    rest = (table.sum(1, keepdims=True) - table) / (table.shape[1] - 1)
    return float(np.abs(table - rest).mean(0).max())


def _adaptive(r: Record, kind: str) -> float:
    """DUCK's score, whose goal is zero where the answer is gone, else the held-out accuracy."""
    forget, test = (float(reading(r, "accuracy", part) or 0.0) / 100 for part in (FORGET, TEST))
    base = float(reading(r, "accuracy", TEST, "before") or 0.0) / 100
    gone = not _retrained(r, "accuracy", FORGET) or max(_retrained(r, "accuracy", FORGET)) == 0.0
    return adaptive_unlearning_score(forget, test, base, 0.0 if kind == "class" or gone else test)


def _normalised(r: Record) -> float:
    guess = (reading(r, "membership", "modified entropy", "balanced accuracy") or {}).get("value", math.nan)
    return normalised_unlearning_score(float(reading(r, "accuracy", TEST) or 0.0) / 100, guess)


def front(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """In how many seeds a system is on a case's front: no other is as good in forgetting, utility and cost.

    Forgetting is the absolute forget gap, utility the held-out accuracy lost (at least 0), cost the share of
    retraining. Only runs within the bounds of `close` count: far from retraining nothing is a good trade.
    """
    count = dict.fromkeys(outcomes, 0)
    for seed in range(max((len(o.points) for o in outcomes.values()), default=0)):
        losses = {
            s: (abs(o.points[seed][0]), max(0.0, -o.points[seed][1]), o.points[seed][2])
            for s, o in outcomes.items()
            if seed < len(o.points)
        }
        losses = {s: x for s, x in losses.items() if x[0] <= CLOSE and x[1] <= COST}
        for system, x in losses.items():
            better = (all(b <= a for a, b in zip(x, y, strict=True)) and y != x for y in losses.values())
            count[system] += not any(better)
    return {system: n for system, n in count.items() if n}


def reading(record: Record, name: str, concept: str = "", field: str = "value") -> Any:
    """One field of one of a record's numbers; None where it was not measured."""
    chosen = (n for n in record.get("numbers", ()) if n["name"] == name and n["concept"] == concept)
    return next((n.get(field) for n in chosen), None)


def verdict(o: Outcome, seeds: int) -> tuple[str, str]:
    """Of one system on one case: "holds", "fails" or "refuses", and why."""
    if not o.runs:
        return "refuses", o.refused
    why = []
    if abs(o.forget.value) > CLOSE:
        side = "above" if o.forget.value > 0 else "below"
        why.append(f"forget accuracy {abs(o.forget.value):.0f} points {side} retraining's")
    if o.test.value < -COST:
        why.append(f"held-out accuracy {-o.test.value:.0f} points below retraining's")
    if o.overdone:
        why.append(f"overdone in {o.overdone} of {o.runs} runs")
    if o.runs < seeds:
        why.append(f"{o.runs} of {seeds} seeds")
    return ("holds" if o.close else "fails"), "; ".join(why)
