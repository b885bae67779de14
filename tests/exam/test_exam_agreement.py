"""Ranks against published ranks: the right correlation, the right signs, sources for every number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from palimpsest.cli import main
from palimpsest.core import catalog
from palimpsest.exam import agreement, record
from palimpsest.exam.agreement import READINGS, TABLES, Column, columns, spearman
from palimpsest.exam.verbs import erase

RESULTS = Path(__file__).resolve().parent.parent.parent / "exam" / "results"


def named(values: list[float]) -> dict[str, float]:
    return {f"s{i}": v for i, v in enumerate(values)}


def test_rank_correlation_is_spearmans_with_ties() -> None:
    draws = np.random.default_rng(1)
    for _ in range(20):
        x, y = draws.integers(0, 5, 9).tolist(), draws.integers(0, 5, 9).tolist()
        found = spearman(named(x), {**named(y), "other": 3.0}, resamples=200)
        assert found is not None
        assert found.value == pytest.approx(stats.spearmanr(x, y)[0])
        assert found.low <= found.value <= found.high
    same = spearman(named([1, 2, 3, 4, 5]), named([10, 20, 30, 40, 50]), turned=True)
    assert same is not None
    assert tuple(same) == pytest.approx((-1, -1, -1))


def test_too_few_systems_and_equal_ones_tell_nothing() -> None:
    assert spearman(named([1, 2, 3, 4]), named([1, 2, 3, 4])) is None
    assert spearman(named([1, 2, 3, 4, 5]), named([0, 0, 0, 0, 0])) is None


def test_what_is_better_counts_not_what_is_more() -> None:
    theirs = {s: float(i) for i, s in enumerate("abcde")}
    read = {("target", "star"): {s: 1 - v / 10 for s, v in theirs.items()}}
    for high, sign in ((True, 1), (False, -1)):
        column = Column(table="t", theirs="t", ours="target", concept="star", high=high, values=theirs)
        found = agreement.agreement(column, read)
        assert found is not None
        assert found.value == pytest.approx(sign)


def test_the_system_that_disagrees_is_named() -> None:
    theirs = {s: float(i) for i, s in enumerate("abcdef")}
    read = {("neighbours", "star"): {**theirs, "a": 9.0}}
    column = Column(table="t", theirs="t", ours="neighbours", concept="star", high=True, values=theirs)
    assert agreement.without_one(column, read) == ("a", pytest.approx(1.0))


def test_every_published_number_has_a_source_and_a_reading() -> None:
    concepts = {"", *(c["concept"] for c in erase.CASES)}
    for table in TABLES:
        assert table["source"].startswith("https://")
        assert table["at"]
        for row in table["rows"].values():
            assert len(row) == len(table["columns"])
        known = [s for s in table["rows"] if "/" in s]
        assert known
        assert not set(known) - set(catalog.entries())
        for column in columns(table):
            assert column.ours in READINGS
            assert column.concept in concepts
    assert len({t["name"] for t in TABLES}) == len(TABLES)


def test_our_readings_are_those_of_the_exam() -> None:
    read, records = agreement.ours(RESULTS), record.complete(RESULTS, erase.EXAM)
    for system, concept in (("erase/uce", "star"), ("erase/rece", "Aisha"), ("erase/safree", "")):
        summary = erase.summarise(records[system], concept)
        assert summary is not None
        for name in ("target", "paraphrase", "neighbours", "unrelated"):
            assert read[name, concept][system] == pytest.approx(getattr(summary, name).value), (name, concept)
        assert read["drift", concept][system] == pytest.approx(summary.drift)
    assert set(read["target", ""]) == set(records)


def test_without_results_nothing_can_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exam", "agreement", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count("cannot tell") >= sum(len(t["columns"]) for t in TABLES)
    assert "## UnlearnCanvas" in text
