"""Tests raise false alarms as rarely as they say and see what they were planned to see; intervals at their edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from palimpsest.ops import statistics


def test_nothing_changed_keeps_a_width() -> None:
    same = np.ones(60, dtype=bool)
    found = statistics.paired(same, same)
    assert found.value == 0
    assert -0.1 < found.low < 0 < found.high < 0.1


def test_constant_numbers_have_no_width_and_one_number_has_no_limit() -> None:
    assert statistics.mean([0.25] * 9) == (0.25, 0.25, 0.25)
    assert statistics.mean([0.25]).high == float("inf")
    assert np.isnan(statistics.paired([], []).value)


def test_the_interval_of_a_whole_turn_stays_inside_the_range() -> None:
    found = statistics.paired(np.ones(20), np.zeros(20))
    assert found.value == -1
    assert found.low == -1
    assert found.high < -0.65


def test_mcnemar_is_the_binomial_of_the_pairs_that_differ() -> None:
    before = np.array([1] * 10 + [0] * 2 + [1] * 50, dtype=bool)
    after = np.array([0] * 10 + [1] * 2 + [1] * 50, dtype=bool)
    assert statistics.mcnemar(before, after) == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    assert statistics.mcnemar(before, before) == 1.0


def test_false_alarms_of_mcnemar_are_rare() -> None:
    rng = np.random.default_rng(0)
    pairs = (rng.random((2, 60)) < 0.6 for _ in range(300))
    assert sum(statistics.mcnemar(b, a) < 0.05 for b, a in pairs) / 300 <= 0.08


def test_holm_against_the_definition() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_benjamini_hochberg_is_never_stricter_than_holm() -> None:
    ps = [0.001, 0.01, 0.02, 0.2, 0.9]
    assert all(b <= h for b, h in zip(statistics.benjamini_hochberg(ps), statistics.holm(ps), strict=True))
    assert statistics.benjamini_hochberg([]) == []


def test_the_planned_number_of_pictures_gives_the_planned_power() -> None:
    n = statistics.pictures_needed(0.10, disagree=0.14)
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(400):
        lost, gained, _ = rng.multinomial(n, [0.12, 0.02, 0.86])
        after = [False] * lost + [True] * (n - lost)
        before = [True] * (n - gained) + [False] * gained
        seen += statistics.mcnemar(before, after) < 0.05
    assert 0.86 <= seen / 400 <= 0.95
    assert statistics.power(n, 0.10, disagree=0.14) >= 0.9 > statistics.power(n - 4, 0.10, disagree=0.14)


def test_more_tests_and_smaller_changes_need_more_pictures() -> None:
    assert statistics.pictures_needed(0.1) == 91  # at least 6 one-way flips of 91
    assert stats.binom.sf(5, 91, 0.1) >= 0.9 > stats.binom.sf(5, 90, 0.1)
    assert statistics.pictures_needed(0.1, tests=10) > 91
    assert statistics.pictures_needed(0.02) > 400
    assert statistics.detectable(91) == pytest.approx(0.10, abs=0.003)
    assert statistics.detectable(2) == 1.0
    with pytest.raises(ValueError, match="other than 0"):
        statistics.pictures_needed(0.0)
