"""What a system's runs on one case amount to: gaps to retrain oracles with intervals over seeds, scores, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.exam.unlearn import number
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.ops.unlearning_scores import adaptive_unlearning_score, normalised_unlearning_score

CLOSE, COST, CHEAP = 5.0, 3.0, 1 / 20  # points on the forget set, points of held-out accuracy, of retraining's passes
FORGET, RETAIN, TEST = "forget set", "retain set", "held-out, kept classes"
GAP = "gap to retrained models"
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One system on one case, over its seeds. Gaps are of accuracies in points; None where nothing was measured.

    Args:
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


def outcome(records: Sequence[Mapping[str, Any]], kind: str) -> Outcome:
    """Sums up the records of one system on one case.

    Args:
        kind: of the request: whether the adaptive score's goal is zero or the held-out accuracy.
    """
    worked = [r for r in records if "numbers" in r]

    def of(name: str, concept: str = "") -> Interval:
        return _mean([v for r in worked if (v := number(r, name, concept)) is not None])

    costs = [r["cost"] for r in worked]
    before = [float(number(worked[0], GAP, part, "before") or 0.0) for part in (FORGET, TEST)] if worked else [0.0, 0.0]
    return Outcome(
        forget=of(GAP, FORGET),
        retain=of(GAP, RETAIN),
        test=of(GAP, TEST),
        before=(before[0], before[1]),
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
        share=_plain([c["of_retraining"] for c in costs]),
        passes=_plain([c["passes"] for c in costs]),
        seconds=_plain([c["cpu_seconds"] for c in costs]),
        runs=len(worked),
        overdone=sum((number(r, "overdone forgetting") or 0) > 0 for r in worked),
        refused=next((str(r["refused"]) for r in records if "refused" in r), ""),
        points=tuple(
            (
                float(number(r, GAP, FORGET) or 0.0),
                float(number(r, GAP, TEST) or 0.0),
                float(r["cost"]["of_retraining"]),
            )
            for r in worked
        ),
    )


def front(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """In how many seeds a system is on the front: no other is as good in forgetting, utility and cost.

    Forgetting is the absolute forget gap, utility the held-out accuracy lost (at least 0), cost the share of
    retraining. Only runs within the bounds of `close` count: far from retraining nothing is a good trade.
    """
    seeds = max((len(o.points) for o in outcomes.values()), default=0)
    count = dict.fromkeys(outcomes, 0)
    for seed in range(seeds):
        at = {s: _losses(o.points[seed]) for s, o in outcomes.items() if seed < len(o.points)}
        at = {s: x for s, x in at.items() if x[0] <= CLOSE and x[1] <= COST}
        for system, x in at.items():
            better = (all(b <= a for a, b in zip(x, y, strict=True)) and y != x for y in at.values())
            count[system] += not any(better)
    return {system: n for system, n in count.items() if n}


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


def _losses(point: tuple[float, float, float]) -> tuple[float, float, float]:
    return abs(point[0]), max(0.0, -point[1]), point[2]


def _attack(record: Mapping[str, Any]) -> float | None:
    value, never = (
        number(record, "membership", "modified entropy"),
        _retrained(record, "membership", "modified entropy"),
    )
    return None if value is None or not never else value - float(np.mean(never))


def _average(record: Mapping[str, Any]) -> float:
    gaps = [abs(float(number(record, GAP, part) or 0.0)) for part in (FORGET, RETAIN, TEST)]
    attack = _attack(record)
    return float(np.mean([*gaps, *([] if attack is None else [100 * abs(attack)])]))


def _floor(records: Sequence[Mapping[str, Any]]) -> float:
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


def _retrained(record: Mapping[str, Any], name: str, concept: str) -> list[float]:
    found = (n for n in record["numbers"] if n["name"] == name and n["concept"] == concept)
    return list(next((n.get("retrained", []) for n in found), []))


def _adaptive(record: Mapping[str, Any], kind: str) -> float:
    forget, test = (float(number(record, "accuracy", part) or 0.0) / 100 for part in (FORGET, TEST))
    base = float(number(record, "accuracy", TEST, "before") or 0.0) / 100
    gone = not _retrained(record, "accuracy", FORGET) or max(_retrained(record, "accuracy", FORGET)) == 0.0
    return adaptive_unlearning_score(forget, test, base, 0.0 if kind == "class" or gone else test)


def _normalised(record: Mapping[str, Any]) -> float:
    found = (n for n in record["numbers"] if n["name"] == "membership" and n["concept"] == "modified entropy")
    guess = next((n["balanced accuracy"]["value"] for n in found if "balanced accuracy" in n), math.nan)
    return normalised_unlearning_score(float(number(record, "accuracy", TEST) or 0.0) / 100, guess)


def _mean(values: Sequence[float]) -> Interval:
    known = [v for v in values if not math.isnan(v)]
    return statistics.mean(known) if known else NOTHING


def _plain(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
