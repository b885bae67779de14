"""Intervals, tests and the noise floor: statistics done once, used by every reading.

The unit of all of them is the picture, drawn with a seed of its own; the prompts are taken as given. An interval
therefore speaks about other seeds of the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

LEVEL = 0.95
RESAMPLES = 2000


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

    Yes-or-no pairs (all differences in -1, 0, 1) get the adjusted Wald interval of Bonett and Price (2012), which
    keeps a width where nothing changed; other numbers get a BCa bootstrap over pairs (scipy).

    Args:
        before, after: (n,) numbers or booleans, row by row the same prompt and seed.
    """
    change = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if len(change) == 0:
        return Interval(math.nan, -math.inf, math.inf)
    if np.isin(change, (-1.0, 0.0, 1.0)).all():
        return _bonett_price(change, level)
    return mean(change, level, seed)


def mean(values: ArrayLike, level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of independent numbers with its BCa bootstrap interval (Efron 1987, through scipy).

    Equal numbers give an interval without width; one number gives an unbounded one.
    """
    x = np.asarray(values, dtype=float)
    centre = float(x.mean()) if len(x) else math.nan
    if len(x) < 2:
        return Interval(centre, -math.inf, math.inf)
    if np.ptp(x) <= 1e-12 * max(1.0, abs(centre)):
        return Interval(centre, centre, centre)
    found = stats.bootstrap(
        (x,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="BCa", vectorized=True,
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue]  (the name of older scipy, too)
    ).confidence_interval  # fmt: skip
    if not (math.isfinite(found.low) and math.isfinite(found.high)):  # BCa has no limit where all mass is at one end
        half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
        return Interval(centre, centre - half, centre + half)
    return Interval(centre, float(found.low), float(found.high))


def _bonett_price(change: NDArray[np.float64], level: float) -> Interval:
    """Interval of a difference of paired rates: one pair of each discordant kind is added before Wald's formula."""
    n = len(change)
    up, down = (np.count_nonzero(change > 0) + 1) / (n + 2), (np.count_nonzero(change < 0) + 1) / (n + 2)
    half = stats.norm.ppf((1 + level) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Interval(float(change.mean()), max(-1.0, up - down - half), min(1.0, up - down + half))


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Exact two-sided p of "the edit flips as many pictures one way as the other" (McNemar 1947)."""
    b, a = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if gained + lost == 0 else float(stats.binomtest(gained, gained + lost).pvalue)


def sign_flip(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided permutation p of "paired differences are as likely positive as negative" (scipy).

    Exact up to 13 pairs, from 9,999 random sign patterns above that.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or not d.any():
        return 1.0
    found = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999,
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return float(found.pvalue)


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

    `z * sqrt(2 p (1 - p) / n)` with p the pooled rate of all pictures of the untouched model, two successes and two
    failures added (Agresti and Coull 1998), so that a rate of 0 or 1 does not pretend to have no noise.

    Args:
        successes, seen: of all pictures of the untouched model, whatever their seeds.
        n: pictures a set has.
    """
    p = (successes + 2) / (seen + 4)
    return float(stats.norm.ppf((1 + level) / 2) * math.sqrt(2 * p * (1 - p) / max(n, 1)))


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
