"""What an unlearner's records on one case amount to: gaps to retrain oracles with intervals, scores, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.exam.case import Record
from palimpsest.exam.rates import refused
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.ops.unlearning_scores import adaptive_unlearning_score, normalised_unlearning_score

CLOSE, COST = 5.0, 3.0  # points on the forget set, points of held-out accuracy
FORGET, RETAIN, TEST = "forget set", "retain set", "held-out, kept classes"
GAP, ENTROPY = "gap to retrained models", ("membership", "modified entropy")


def reading(record: Record, name: str, concept: str = "", field: str = "value") -> Any:
    """One field of one of a record's numbers; None where it was not measured."""
    chosen = (n for n in record.get("numbers", ()) if n["name"] == name and n["concept"] == concept)
    return next((n.get(field) for n in chosen), None)


def gap(r: Record, part: str, field: str = "value") -> float:
    """Accuracy on a part of the samples less the oracles' mean, in points."""
    return float(reading(r, GAP, part, field) or 0.0)


def attack(r: Record) -> float | None:
    """Area of the membership attack by modified entropy, less that on retrained models (0: as hard as there)."""
    value, never = reading(r, *ENTROPY), _retrained(r, *ENTROPY)
    return None if value is None or not never else value - float(np.mean(never))


def average(r: Record) -> float:
    """Mean of the absolute gaps and of the attack's in hundredths, as SalUn's paper sums them up."""
    extra = attack(r)
    gaps = [abs(gap(r, part)) for part in (FORGET, RETAIN, TEST)]
    return float(np.mean([*gaps, *([] if extra is None else [100 * abs(extra)])]))


def adaptive(r: Record) -> float:
    """DUCK's score, whose goal is zero where the answer is gone, else the held-out accuracy."""
    forget, test = (float(reading(r, "accuracy", part) or 0.0) / 100 for part in (FORGET, TEST))
    base = float(reading(r, "accuracy", TEST, "before") or 0.0) / 100
    gone = not _retrained(r, "accuracy", FORGET) or max(_retrained(r, "accuracy", FORGET)) == 0.0
    return adaptive_unlearning_score(forget, test, base, 0.0 if r["case"]["kind"] == "class" or gone else test)


def normalised(r: Record) -> float:
    """MUFAC's score."""
    guess = (reading(r, *ENTROPY, "balanced accuracy") or {}).get("value", math.nan)
    return normalised_unlearning_score(float(reading(r, "accuracy", TEST) or 0.0) / 100, guess)


def _of(name: str, concept: str = "") -> Callable[[Record], float | None]:
    return lambda r: reading(r, name, concept)


MEASURES: dict[str, Callable[[Record], float | None]] = {
    "forget gap": _of(GAP, FORGET),
    "held-out gap": _of(GAP, TEST),
    "average gap": average,
    "membership": attack,
    "likelihood ratio": _of("membership", "likelihood ratio"),
    "agreement": _of("agreement with retrained models", FORGET),
    "divergence": _of("divergence of margins", FORGET),
    "probe": _of("trace in features", "linear probe"),
    "relearn": _of("relearn time"),
    "AUS": adaptive,
    "NoMUS": normalised,
}
COSTS = {"passes": "passes", "of retraining": "of_retraining", "CPU seconds": "cpu_seconds"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One system on one case, over its seeds; `outcome["forget gap"]` is the mean of one of MEASURES, or of COSTS.

    Args:
        kind: of the case's request. means: with Student's interval; nan where nothing was measured.
        before: of the untouched model: forget gap and held-out gap.
        floor: the largest average gap of one retrained model to the mean of the others.
        runs, overdone: how many; in how many forgetting shows. refused: in which words, if it did.
        points: (absolute forget gap, held-out accuracy lost, share of retraining) of each seed.
    """

    kind: str
    means: Mapping[str, Interval]
    before: tuple[float, float]
    floor: float
    runs: int
    overdone: int
    refused: str
    points: tuple[tuple[float, float, float], ...]

    def __getitem__(self, name: str) -> Interval:
        return self.means[name]

    @property
    def close(self) -> bool:
        """Whether both bounds are met."""
        return self.runs > 0 and abs(self["forget gap"].value) <= CLOSE and self["held-out gap"].value >= -COST

    @property
    def share(self) -> float:
        """Of retraining's passes over the data."""
        return self["of retraining"].value


def outcome(records: Sequence[Record]) -> Outcome:
    """Sums up the records of one system on one case."""
    worked = [r for r in records if "numbers" in r]
    means = {name: _mean([measure(r) for r in worked]) for name, measure in MEASURES.items()}
    for name, cost in COSTS.items():
        value = float(np.mean([r["cost"][cost] for r in worked])) if worked else math.nan
        means[name] = Interval(value, -math.inf, math.inf)
    return Outcome(
        kind=records[0]["case"]["kind"],
        means=means,
        before=(gap(worked[0], FORGET, "before"), gap(worked[0], TEST, "before")) if worked else (0.0, 0.0),
        floor=_floor(worked),
        runs=len(worked),
        overdone=sum((reading(r, "overdone forgetting") or 0) > 0 for r in worked),
        refused=refused(records),
        points=tuple((abs(gap(r, FORGET)), max(0.0, -gap(r, TEST)), float(r["cost"]["of_retraining"])) for r in worked),
    )


def _mean(values: Sequence[float | None]) -> Interval:
    known = [v for v in values if v is not None and not math.isnan(v)]
    return statistics.mean(known) if known else Interval(math.nan, math.nan, math.nan)


def _retrained(r: Record, name: str, concept: str) -> list[float]:
    return list(reading(r, name, concept, "retrained") or [])


def _floor(records: Sequence[Record]) -> float:
    if not records:
        return math.nan
    rows = [_retrained(records[0], "accuracy", part) for part in (FORGET, RETAIN, TEST)]
    rows.append([100 * a for a in _retrained(records[0], *ENTROPY)])
    table = np.array([r for r in rows if len(r) > 1 and len(r) == len(rows[0])])
    if not table.size:
        return math.nan
    rest = (table.sum(1, keepdims=True) - table) / (table.shape[1] - 1)
    return float(np.abs(table - rest).mean(0).max())
