"""A reading of a rate: yes or no of the same pictures before and after, with its interval, change, floor and p."""

from __future__ import annotations

from torch import Tensor

from palimpsest.core.reading import Change, Reading
from palimpsest.ops import statistics


def rate(name: str, before: Tensor, after: Tensor, *, looks: int = 1, again: Tensor | None = None) -> Reading:
    """The share of pictures in which something is so after an edit, in percent.

    Wilson's interval; Tango's for the paired change; McNemar's exact p, times the looks of an audit that may stop
    early, which also widen the intervals (`probes.stopping`). The caller corrects p over what it tests.

    Args:
        before, after: (n,) bool, row by row the same picture. looks: of the audit's plan.
        again: (m,) bool of the untouched model under other seeds, for the noise floor; None: there is none.
    """
    level = 1 - (1 - statistics.LEVEL) / looks
    n, shown = len(before), int(before.sum())
    value, low, high = statistics.wilson(int(after.sum()), n, level)
    change = statistics.paired(before.numpy(), after.numpy(), level)
    floor = None
    if again is not None:
        floor = percent(statistics.rate_floor(shown + int(again.sum()), n + len(again), n, level))
    return Reading(
        name=name,
        value=percent(value),
        low=percent(low),
        high=percent(high),
        n=n,
        unit="%",
        before=percent(float(before.float().mean())),
        floor=floor,
        p=min(1.0, looks * statistics.mcnemar(before.numpy(), after.numpy())),
        change=Change(**{k: percent(v) for k, v in change._asdict().items()}),
    )


def percent(x: float) -> float:
    """A share as a receipt keeps it."""
    return round(100 * x, 3)
