"""Comparisons of two systems: what runs again, what is recorded, and when a claim holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palimpsest import cli
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.exam import comparisons, studies
from palimpsest.exam.summary import summarise
from palimpsest.ops.statistics import Interval

ROOT = Path(__file__).resolve().parent.parent
COST = {"seconds": 2.0, "forwards": {}, "peak_bytes": 0}


def put(results: Path, name: str, **systems: dict[str, Any]) -> None:
    """The same record of each system for every seed."""
    records = [
        {"system": s.replace("__", "/"), "seed": seed, "key": f"{s}{seed}", **r}
        for s, r in systems.items()
        for seed in studies.SEEDS
    ]
    (results / "studies").mkdir(parents=True, exist_ok=True)
    (results / "studies" / f"{name}.json").write_text(json.dumps({"study": name, "records": records}))


def under_attack(attacked: str) -> dict[str, Any]:
    return {"plain": "0" * len(attacked), "attacked": attacked, "cost": COST}


def of_many(targets: str, others: str) -> dict[str, Any]:
    return {"counts": {str(n): {"targets": targets, "others": others, "cost": COST} for n in studies.MANY["counts"]}}


def row(lines: list[str], claim: str) -> str:
    return next(line for block in lines for line in block.splitlines() if claim in line and line.startswith("|"))


def test_claims_need_intervals_apart(tmp_path: Path) -> None:
    put(tmp_path, "attack", erase__uce=under_attack("1" * 12), erase__rece=under_attack("0" * 12))
    lines = comparisons.section(tmp_path, {})
    assert "**holds**" in row(lines, "RECE withstands")
    assert "**not measured**" in row(lines, "AdvUnlearn")
    put(tmp_path, "attack", erase__uce=under_attack("1100"), erase__rece=under_attack("1000"))
    assert "**holds in part**" in row(comparisons.section(tmp_path, {}), "RECE withstands")
    put(tmp_path, "attack", erase__uce=under_attack("1000"), erase__rece=under_attack("1100"))
    assert "**does not hold here**" in row(comparisons.section(tmp_path, {}), "RECE withstands")


def test_many_concepts_are_judged_by_both_sides(tmp_path: Path) -> None:
    put(tmp_path, "many", erase__esd=of_many("0" * 40, "0" * 20), erase__uce=of_many("1" * 40, "1" * 20))
    lines = comparisons.section(tmp_path, {})
    assert "**not measured**" in row(lines, "MACE beats")
    assert "| 0.0 % (0.0 to 3.1) | 0.0 % (0.0 to 6.0) | 0.0 %" in row(lines, "`erase/esd`")
    gone, kept = Interval(0.1, 0.0, 0.2), Interval(0.9, 0.8, 1.0)
    assert tuple(comparisons.harmonic(gone, kept)) == pytest.approx((0.9, 0.8, 1.0))
    assert comparisons.harmonic(Interval(1, 1, 1), Interval(0, 0, 0)).value == 0


def test_neighbours_come_from_the_main_exam(tmp_path: Path) -> None:
    def summary(after: str) -> Any:
        group = {"role": "neighbour", "concept": "n", "judge": "j", "before": "1" * 30, "after": after}
        target = {"role": "target", "concept": "t", "judge": "j", "before": "1", "after": "0"}
        case = {"concept": "t", "kind": "object"}
        cost = {"seconds": 1.0, "forwards": {}, "peak_bytes": 0}
        return summarise("x", [{"case": case, "groups": [target, group], "numbers": [], "cost": cost}])

    main = {"erase/spm": {"": summary("1" * 30)}, "erase/esd": {"": summary("0" * 30)}}
    assert "**holds**" in row(comparisons.section(tmp_path, main), "SPM harms")
    main["erase/esd"] = main["erase/spm"]
    assert "**does not hold here**" in row(comparisons.section(tmp_path, main), "SPM harms")


def test_unfinished_and_refused_systems(tmp_path: Path) -> None:
    put(tmp_path, "attack", erase__uce=under_attack("11"), erase__rece={"refused": "it cannot"})
    lines = comparisons.section(tmp_path, {})
    assert "it refuses: it cannot" in row(lines, "`erase/rece`")
    assert "**not measured**" in row(lines, "RECE withstands")
    path = tmp_path / "studies" / "attack.json"
    stored = json.loads(path.read_text())
    stored["records"] = stored["records"][1:]
    path.write_text(json.dumps(stored))
    assert not any("`erase/uce`" in line for line in comparisons.section(tmp_path, {}))


def test_only_what_is_missing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def examine(system: str, seed: int) -> dict[str, Any]:
        ran.append((system, seed))
        if system == "erase/rece":
            raise Unsupported("not this one")
        return under_attack("10")

    systems = ("erase/uce", "erase/not_written", "erase/rece", studies.NEVER)
    monkeypatch.setitem(studies.STUDIES, "attack", replace(studies.STUDIES["attack"], systems=systems, examine=examine))
    assert cli.main(["exam", "studies/attack", "--results", str(tmp_path), "--docs", "None", "--dry-run"]) == 0
    assert not ran, "a dry run runs nothing"
    assert not list(tmp_path.iterdir())
    assert studies.forecast("attack", tmp_path)[-1] == "study of attack: 9 of 9 runs are due."
    assert cli.main(["exam", "studies/attack", "--results", str(tmp_path), "--docs", "None"]) == 0
    assert ran == [(s, seed) for s in ("erase/uce", "erase/rece", studies.NEVER) for seed in studies.SEEDS]
    studies.run("attack", tmp_path)
    assert len(ran) == 9
    monkeypatch.setitem(studies.BUDGETS, "erase/uce", {"ridge": 0.1})
    studies.run("attack", tmp_path)
    assert ran[9:] == [("erase/uce", seed) for seed in studies.SEEDS]
    records = studies.read(tmp_path, "attack")
    assert len(records) == 9
    assert {r["refused"] for r in records if r["system"] == "erase/rece"} == {"not this one"}
    with pytest.raises(BadRequest, match="attack, many"):
        studies.run("none", tmp_path)


def test_committed_studies_are_of_installed_systems() -> None:
    for name, study in studies.STUDIES.items():
        for record in studies.read(ROOT / "exam" / "results", name):
            assert record["system"] in study.systems
            assert "/" not in record["system"] or record["system"] in catalog.entries()  # the others are baselines
            assert record["seed"] in studies.SEEDS
