"""Intervals, tests and the noise floor: statistics done once, used by every reading.

The unit of all of them is the picture, drawn with a seed of its own; the prompts are taken as given. An interval
therefore speaks about other seeds of the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

LEVEL = 0.95
RESAMPLES = 2000
FEWEST, MOST = 5, 5_000  # numbers that are worth resampling: of more, Student's interval is the same to three digits


class Interval(NamedTuple):
    """An estimate and its interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """A rate and its Wilson score interval; n = 0 gives the whole range.

    Args:
        successes: 0..n.

    Source: Wilson 1927, through scipy.
    """
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    found = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(found.low), float(found.high))


def paired(before: ArrayLike, after: ArrayLike, level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of `after - before` over pairs, with its interval.

    Yes-or-no pairs (all differences in -1, 0, 1) get Tango's score interval, which keeps a width where nothing
    changed; other numbers get the bootstrap of `mean` over pairs.

    Args:
        before, after: (n,) numbers or booleans, row by row the same prompt and seed.
    """
    change = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if len(change) == 0:
        return Interval(math.nan, -math.inf, math.inf)
    if np.isin(change, (-1.0, 0.0, 1.0)).all():
        low, high = tango(np.count_nonzero(change > 0), np.count_nonzero(change < 0), len(change), level)
        return Interval(float(change.mean()), float(low), float(high))
    return mean(change, level, seed)


def tango(gained: ArrayLike, lost: ArrayLike, n: int, level: float = LEVEL) -> tuple[NDArray[Any], NDArray[Any]]:
    """Limits of a difference of paired rates, `(gained - lost) / n` (Tango 1998).

    All d with `|gained - lost - n d| <= z sqrt(n (2 q + d (1 - d)))`, where q is the most likely share of lost pairs
    given d. Its average coverage stays nearer to the level than that of Bonett and Price's adjusted Wald interval
    wherever few pairs differ, and it is what inverts McNemar's test.

    Args:
        gained, lost: pairs that differ, each way; numbers or arrays of one shape.
        n: pairs in all.

    Cost: 60 bisection steps.
    """
    up, down = np.asarray(gained, dtype=float), np.asarray(lost, dtype=float)
    z = stats.norm.ppf((1 + level) / 2)
    centre = (up - down) / n

    def inside(d: NDArray[Any]) -> NDArray[Any]:
        half = ((2 * n - up + down) * d - up - down) / (4 * n)
        q = np.sqrt(np.maximum(half**2 + down * d * (1 - d) / (2 * n), 0)) - half
        return (up - down - n * d) ** 2 <= z**2 * n * np.maximum(2 * q + d * (1 - d), 0)

    def limit(end: float) -> NDArray[Any]:
        near, far = centre, np.full_like(centre, end)
        for _ in range(60):
            middle = (near + far) / 2
            holds = inside(middle)
            near, far = np.where(holds, middle, near), np.where(holds, far, middle)
        return np.where(centre == end, end, near)

    return limit(-1.0), limit(1.0)


def mean(values: ArrayLike, level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of independent numbers with its BCa bootstrap interval (Efron 1987, through scipy).

    A resample of n numbers spreads as if n were n - 1 and knows nothing of Student's t, so the level is widened to
    that of `sqrt(n / (n - 1)) t` (Hesterberg 2015): without it 20 numbers are covered 91 times of 100, not 95.
    Fewer than 5 numbers and more than 5,000 get Student's interval,
    equal ones an interval without width, one number an unbounded one.
    """
    x = np.asarray(values, dtype=float)
    n = len(x)
    centre = float(x.mean()) if n else math.nan
    if n < 2:
        return Interval(centre, -math.inf, math.inf)
    if np.ptp(x) <= 1e-12 * max(1.0, abs(centre)):
        return Interval(centre, centre, centre)
    student = float(stats.t.ppf((1 + level) / 2, n - 1))
    half = student * float(x.std(ddof=1)) / math.sqrt(n)
    if not FEWEST <= n <= MOST:
        return Interval(centre, centre - half, centre + half)
    found = stats.bootstrap(
        (x,), np.mean, n_resamples=RESAMPLES, method="BCa", vectorized=True,
        confidence_level=float(2 * stats.norm.cdf(math.sqrt(n / (n - 1)) * student) - 1),
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue]  (the name of older scipy, too)
    ).confidence_interval  # fmt: skip
    if not (math.isfinite(found.low) and math.isfinite(found.high)):  # BCa has no limit where all mass is at one end
        return Interval(centre, centre - half, centre + half)
    return Interval(centre, float(found.low), float(found.high))


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Exact two-sided p of "the edit flips as many pictures one way as the other" (McNemar 1947)."""
    b, a = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if gained + lost == 0 else float(stats.binomtest(gained, gained + lost).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected so that any false alarm among them stays below the level (Holm 1979), in the given order."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = worst
    return corrected


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """p-values corrected so that the share of false alarms stays below the level; for many concepts (scipy)."""
    return [float(p) for p in stats.false_discovery_control(ps)] if len(ps) else []


def rate_floor(successes: int, seen: int, n: int, level: float = LEVEL) -> float:
    """The noise floor of a rate: how far apart two seed sets of n pictures of one unchanged model lie.

    Newcombe's (1998) score interval of the difference of two independent rates where both are the pooled rate p of
    all pictures of the untouched model: `sqrt((u - p)^2 + (p - l)^2)` with (l, u) Wilson's limits for n pictures. It
    keeps a width at rates of 0 and 1, where it is that of `tango` when no pair differs.

    Args:
        successes, seen: of all pictures of the untouched model, whatever their seeds.
        n: pictures a set has.
    """
    if not (seen and n):
        return 1.0
    p = successes / seen
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * p * (1 - p) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return math.hypot(middle + half - p, p - middle + half)


def unlike(before: int, n: int, other: int, m: int) -> float:
    """The noise floor's own test: p of "two seed sets of the untouched model show a rate alike" (Fisher's exact).

    A small p says that the floor is no noise of seeds (prompts that differ, a model that is not deterministic), so
    that nothing should be read against it.

    Args:
        before, n: pictures of the first set that show it, of how many. other, m: of the second.
    """
    return float(stats.fisher_exact([[before, n - before], [other, m - other]]).pvalue) if n and m else 1.0  # type: ignore[union-attr]


def power(n: int, change: float, *, disagree: float | None = None, tests: int = 1, level: float = LEVEL) -> float:
    """The chance that McNemar's exact test sees a change of a rate in n same-seed pairs.

    Args:
        change: of the rate, 0..1.
        disagree: the share of pairs that differ at all; at least `change`, which is the default (all one way).
        tests: how many tests are corrected for together.

    Cost: a sum over 0..n pairs that differ; milliseconds up to some thousands.
    """
    d = abs(change)
    if not 0 < d <= 1:
        raise ValueError(f"change is {change}; it must be a rate other than 0, at most 1.")
    psi = max(d, disagree or 0.0)
    one_way = (psi + d) / 2 / psi  # the share of differing pairs that go the way of the change
    k = np.arange(n + 1)
    # The most pairs against the change with which the test still rejects, for each number of differing pairs.
    most = stats.binom.ppf((1 - level) / tests / 2, k, 0.5)
    most = np.where(2 * stats.binom.cdf(most, k, 0.5) <= (1 - level) / tests, most, most - 1)
    return float((stats.binom.pmf(k, n, psi) * stats.binom.cdf(most, k, 1 - one_way)).sum())


def pictures_needed(
    change: float, *, disagree: float | None = None, chance: float = 0.9, tests: int = 1, level: float = LEVEL
) -> int:
    """The fewest same-seed pairs with which `power` reaches `chance`."""
    low, high = 0, 8
    while power(high, change, disagree=disagree, tests=tests, level=level) < chance:
        low, high = high, 2 * high
    while high - low > 1:
        n = (low + high) // 2
        enough = power(n, change, disagree=disagree, tests=tests, level=level) >= chance
        low, high = (low, n) if enough else (n, high)
    return high


def detectable(n: int, *, chance: float = 0.9, tests: int = 1, level: float = LEVEL) -> float:
    """The smallest one-way change of a rate that n same-seed pairs show with this chance; 1.0 where none does."""

    def lacking(d: float) -> float:
        return power(n, d, tests=tests, level=level) - chance

    return 1.0 if lacking(1.0) <= 0 else float(optimize.brentq(lacking, 1e-6, 1.0, xtol=1e-4))  # type: ignore[arg-type]
