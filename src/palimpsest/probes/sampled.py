"""What the readings of a classifier share: names of the sets, roles, rounding, and a reading from an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from palimpsest.core.reading import Change, Curve, Reading
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.probes.answered import Answered

SETS: Mapping[str, str] = {"forget": "forget set", "retain": "retain set", "test": "held-out, kept classes"}
WHOLE: Mapping[str, str] = {**SETS, "test": "held-out set"}


def role(which: str) -> str:
    return "target" if which == "forget" else "unrelated"


def present(evidence: Answered) -> list[str]:
    """Sets that have a sample which an accuracy is of."""
    return [which for which in SETS if evidence.has(which, "label") and bool(evidence.known(which).any())]


def accuracy(name: str, evidence: Answered, which: str, rows: Tensor, concept: str, of: str) -> Reading:
    """Accuracy on rows of a set: Wilson's interval, Tango's for the change, McNemar's p, floor between retrainings."""
    before, after = (evidence.hits(which, m)[rows] for m in ("before", "after"))
    rate, change = statistics.wilson(int(after.sum()), len(after)), statistics.paired(before.numpy(), after.numpy())
    never = [percent(float(evidence.hits(which, m)[rows].double().mean())) for m in evidence.retrained()]
    return Reading(
        name=name,
        concept=concept,
        role=of,
        value=percent(rate.value),
        low=percent(rate.low),
        high=percent(rate.high),
        n=len(after),
        unit="%",
        before=percent(float(before.double().mean())),
        floor=apart(never),
        p=float(f"{statistics.mcnemar(before.numpy(), after.numpy()):.4g}"),
        change=Change(**{k: percent(v) for k, v in change._asdict().items()}),
        references=tuple(never) or None,
    )


def of_interval(
    name: str,
    concept: str,
    found: Interval,
    n: int,
    *,
    before: float,
    unit: str = "",
    scale: float = 1.0,
    floor: float | None = None,
    role: str = "all",
    references: tuple[float, ...] | None = None,
    curve: Curve | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Reading:
    """A reading whose value and limits are an interval, times `scale`."""
    value, low, high = (short(scale * x) for x in found)
    return Reading(
        name=name, concept=concept, role=role, value=value, low=low, high=high, n=n, unit=unit, before=short(before),
        floor=floor, references=references, curve=curve, detail=detail or {},
    )  # fmt: skip


def apart(values: Sequence[float]) -> float | None:
    """The noise floor: the largest difference between two retrained models; None where there are not two."""
    return short(max(values) - min(values)) if len(values) > 1 else None


def percent(x: float) -> float:
    return round(100 * x, 3)


def short(x: float) -> float:
    return round(x, 4)
