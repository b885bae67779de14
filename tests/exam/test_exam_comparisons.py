"""Comparisons of two systems: when a claim holds, and what a study's section says."""

from __future__ import annotations

from typing import Any

import pytest
from exam_fixtures import HALF, NO, SEEDS, YES, case, rows, three

from palimpsest.exam import tables
from palimpsest.exam.case import rule_of
from palimpsest.exam.studies import attack, many
from palimpsest.exam.verbs.erase import summarise
from palimpsest.ops.statistics import Interval

COST = {"seconds": 2.0, "forwards": {}, "peak_bytes": 0}


def compared(system: str, main: dict[str, Any], **studied: Any) -> list[str]:
    """Verdicts on a paper's comparisons."""
    return [verdict for _, _, verdict in rule_of(system).compared(main, studied)]  # type: ignore[union-attr]


def test_claims_need_intervals_apart() -> None:
    def said(after: str, rival: str, system: str = "erase/rece") -> list[str]:
        by = {"erase/uce": three({"attacked": rival}), "erase/rece": three({"attacked": after})}
        return compared(system, {}, attack=by)

    assert said("0" * 12, "1" * 12) == ["holds"]
    assert said("1000", "1100") == ["holds in part"]
    assert said("1100", "1000") == ["does not hold here"]
    assert said("0" * 12, "1" * 12, "erase/adv_unlearn") == ["not measured"]


def test_many_concepts_are_judged_by_both_sides() -> None:
    def of(targets: str, others: str) -> list[dict[str, Any]]:
        return three({"counts": {str(n): {"targets": targets, "others": others} for n in many.CASE["counts"]}})

    by = {
        "erase/esd": of("0" * 40, "0" * 20),
        "erase/mace": of("0" * 40, "1" * 20),
        "erase/uce": three({"refused": "no"}),
    }
    assert compared("erase/mace", {}, many=by) == ["holds", "holds"]
    assert compared("erase/mace", {}, many={"erase/esd": by["erase/esd"]}) == ["not measured", "not measured"]
    lines = tables.study(many.EXAM, by)
    assert "| 0.0 % (0.0 to 3.1) | 0.0 % (0.0 to 6.0) | 0.0 %" in rows(lines, "`erase/esd`")
    assert "it refuses: no" in rows(lines, "`erase/uce`")
    gone, kept = Interval(0.1, 0.0, 0.2), Interval(0.9, 0.8, 1.0)
    assert tuple(many.harmonic(gone, kept)) == pytest.approx((0.9, 0.8, 1.0))
    assert many.harmonic(Interval(1, 1, 1), Interval(0, 0, 0)).value == 0


def test_neighbours_come_from_the_main_exam() -> None:
    spared, hurt = (summarise([case("star", s, "0000", bits) for s in SEEDS]) for bits in ("1" * 30, "0" * 30))
    assert compared("erase/spm", {"erase/spm": {"": spared}, "erase/esd": {"": hurt}}) == ["holds"]
    assert compared("erase/spm", {"erase/spm": {"": spared}, "erase/esd": {"": spared}}) == ["does not hold here"]
    assert compared("erase/spm", {}) == ["not measured"]


def test_a_refusal_stands_in_the_table() -> None:
    by = {"erase/uce": three({"plain": NO, "attacked": HALF}), "erase/rece": three({"refused": "it cannot"})}
    assert "it refuses: it cannot" in rows(tables.study(attack.EXAM, by), "`erase/rece`")
    assert "50.0 %" in rows(tables.study(attack.EXAM, by), "`erase/uce`")
    assert compared("erase/rece", {}, attack=by) == ["not measured"]


def test_adv_unlearn_is_judged_under_attack() -> None:
    def verdict(after: str, neighbours: str = YES) -> str:
        by = {"erase/adv_unlearn": three({"attacked": after}), "erase/esd": three({"attacked": YES})}
        main = {"erase/adv_unlearn": {"": summarise([case("star", 0, NO, neighbours)])}}
        return rule_of("erase/adv_unlearn").judge("erase/adv_unlearn", main, {"attack": by}).verdict  # type: ignore[union-attr]

    assert verdict(NO) == "holds"
    assert verdict(NO, HALF) == "holds in part"
    assert verdict(YES) == "does not hold here"
