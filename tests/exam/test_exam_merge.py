"""The exam of merging: its grounds, what its records amount to, and when a claim holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exam_fixtures import HALF, NO, YES, write

from palimpsest.core.pictures import Pictures
from palimpsest.exam import budgets, grounds, record
from palimpsest.exam.case import asked
from palimpsest.exam.grounds import Tuning, corrupted, drawn, one_each, right, started, tuned
from palimpsest.exam.judged import Judged, verdict_of
from palimpsest.exam.pictures import UNTOUCHED
from palimpsest.exam.studies import foretold, halfway, signatures, updates
from palimpsest.exam.verbs import merge
from palimpsest.hosts.load import load
from palimpsest.tiny.classifiers import SMALL

STYLES, ERASURES = (merge._plain(c) for c in merge.CASES)
MOST = "1" * 19 + "0"


def records(merged: str, alone: str = YES, case: Mapping[str, Any] = STYLES, **more: str) -> list[dict[str, Any]]:
    """Two parts that fare alike, three seeds."""
    told = {"cost": {"cpu_seconds": 1.0, "patch_bytes": 10}}
    groups = [{"role": "part", "part": p, "alone": alone, "merged": merged, **more} for p in ("a", "b")]
    return [{"case": case, "seed": seed, "groups": groups, **told} for seed in (0, 1, 2)]


def told(tmp_path: Path, **systems: list[dict[str, Any]]) -> dict[str, Judged]:
    """Verdicts from records, by leaf."""
    for leaf, of in systems.items():
        write(tmp_path / "merge" / f"{leaf}.json", {"cases": of})
    main = merge.summaries(tmp_path)
    return {s.split("/")[1]: verdict_of(s, main, {}, merge.judge) for s in main}


def test_what_is_kept_lost_and_not_known(tmp_path: Path) -> None:
    summary = merge.summarise(records(HALF))
    assert (summary.rates["merged"].value, summary.worst, summary.fates) == (0.5, -0.5, (0, 2, 0))
    assert merge.summarise(records(YES)).fates == (2, 0, 0)
    assert merge.summarise(records(MOST)).fates == (0, 0, 2), "3 of 60 pairs"
    others = records(YES, case=ERASURES)
    for r in others:
        r["groups"] = [*r["groups"], {"role": "others", "part": "", "untouched": YES, "merged": HALF}]
    spared = merge.summarise(others).others
    assert spared is not None
    assert spared.value == -0.5


def test_rules_are_held_against_others_only_where_changes_interfere(tmp_path: Path) -> None:
    better = {"ties": records(YES), "diffusion_soup": records(HALF, together=YES)}
    found = told(tmp_path / "1", task_arithmetic=records(NO), **better)
    assert found["ties"].verdict == "holds"
    assert found["diffusion_soup"].verdict == "does not hold here"
    assert found["task_arithmetic"].verdict == "does not hold here"
    assert "worst part -100" in found["task_arithmetic"].found
    found = told(tmp_path / "2", task_arithmetic=records(YES), **better)
    assert (found["ties"].verdict, found["task_arithmetic"].verdict) == ("not measured", "holds")
    poor = {leaf: records(r[0]["groups"][0]["merged"], alone=HALF) for leaf, r in better.items()}
    found = told(tmp_path / "3", task_arithmetic=records(NO, alone=HALF), **poor)
    assert {j.verdict for j in found.values()} == {"not measured"}, "parts that are no good say nothing"


def test_a_draw_holds_in_part_and_a_stand_in_is_a_rival(tmp_path: Path) -> None:
    plain = records(NO)
    found = told(tmp_path, task_arithmetic=plain, diffusion_soup=records(HALF), dare=records(HALF),
                 atlas=records(YES, **{merge.ONE: HALF}))  # fmt: skip
    assert found["dare"].verdict == "holds in part"
    assert found["atlas"].verdict == "holds"
    assert "+50.0 points" in found["atlas"].found


def test_a_ground_counts_with_all_its_seeds(tmp_path: Path) -> None:
    write(tmp_path / "merge" / "ties.json", {"cases": records(YES)[:2]})
    assert merge.summaries(tmp_path) == {}


def test_the_verb_brings_its_studies_and_leaves_out_what_they_measure() -> None:
    by = {exam.name: exam for exam, _ in asked("merge")}
    assert set(by) == {"merge", "foretold", "halfway", "signatures", "updates"}
    left_out = {"merge/wise_ft", "merge/bcwi", "merge/robust_weight_signatures"}
    assert not left_out & set(by["merge"].examined())
    assert {budgets.said(system, "study") for system in left_out} - {""} == set(by) - {"merge", "foretold"}


# -- grounds -----------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(grounds, "cache", lambda: tmp_path / "tiny")
    return tmp_path


def test_a_start_is_trained_once(cached: Path) -> None:
    pictures = drawn("flat", 32, "test")
    recipe = replace(SMALL, width=4, epochs=1, batch=16)
    host = started("few", pictures, grounds.SUBJECTS, recipe, 0)
    (config,) = (cached / "tiny" / "classifiers").rglob("config.json")
    kept = config.stat().st_mtime_ns
    assert started("few", pictures, grounds.SUBJECTS, recipe, 0).fingerprint() == host.fingerprint()
    assert config.stat().st_mtime_ns == kept
    assert host.labels == grounds.SUBJECTS
    assert started("few", pictures, grounds.SUBJECTS, recipe, 1).fingerprint() != host.fingerprint()


def test_a_part_is_trained_once_and_changes_weights_alone(cached: Path) -> None:
    host, g = load("tiny/digits"), torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 3, 16, 16), generator=g, dtype=torch.uint8)
    pictures = Pictures(images=images, names=("",) * 48, labels=torch.randint(10, (48,), generator=g))
    before, fingerprint = right(host, pictures), host.fingerprint()
    patch = tuned(host, pictures, Tuning(epochs=25, batch=48), 1)
    assert host.fingerprint() == fingerprint
    assert not any("running" in name for name in patch.deltas)
    with patch.applied(host):
        assert right(host, pictures).count("1") > before.count("1") + 10
    (file,) = (cached / "exam").glob("part-*.safetensors")
    kept = file.stat().st_mtime_ns
    assert tuned(host, pictures, Tuning(epochs=25, batch=48), 1).sha256() == patch.sha256()
    assert file.stat().st_mtime_ns == kept
    assert tuned(host, pictures, Tuning(epochs=1, batch=48), 1).sha256() != patch.sha256()


def test_drawn_pictures_have_draws_of_their_own() -> None:
    a, b = drawn("sketch", 60, "part", 0), drawn("sketch", 60, "part", 0)
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.images, drawn("sketch", 60, "judged", 0).images)
    assert a.images.shape == (60, 3, 32, 32)
    many = drawn("flat", 300, 0)
    assert one_each(many, 20).labels.tolist() == list(range(20))


def test_corruptions() -> None:
    pictures = drawn("flat", 8, 0)
    x = pictures.pixels()
    assert torch.equal(corrupted(pictures, "clean").images, pictures.images)
    noise = corrupted(pictures, "noise").pixels() - x
    assert 0.08 < float(noise.std()) < 0.16
    assert float(corrupted(pictures, "contrast").pixels().std()) == pytest.approx(0.3 * float(x.std()), rel=0.02)
    steps, smooth = (t.diff(dim=-1).abs().amax() for t in (x, corrupted(pictures, "blur").pixels()))
    assert float(smooth) < 0.5 * float(steps)


# -- studies -----------------------------------------------------------------------------------------------


def three(**record: Any) -> list[dict[str, Any]]:
    return [{"seed": seed, **record} for seed in (0, 1, 2)]


def test_half_the_way_needs_a_fall_to_win_back() -> None:
    def verdict(fallen: str, half: str, kept: str = YES) -> str:
        by = {UNTOUCHED: three(tuned=HALF, elsewhere=YES), halfway.TUNED: three(tuned=YES, elsewhere=fallen),
              "merge/wise_ft": three(tuned=kept, elsewhere=half)}  # fmt: skip
        return halfway.judge("merge/wise_ft", by).verdict

    assert verdict(HALF, YES) == "holds"
    assert verdict(HALF, YES, kept=HALF) == "holds in part"
    assert verdict(HALF, HALF) == "does not hold here"
    assert verdict(YES, YES) == "not measured"


def test_updates_are_judged_by_flips_and_accuracy() -> None:
    few = "1" + "0" * 19

    def verdict(flips: str, right: str, broken: str = HALF) -> str:
        def both(**of: str) -> list[dict[str, Any]]:
            return [r for c in updates.CASES for r in three(case={"task": c["task"]}, **of)]

        by = {updates.NEW: both(right=YES, flips=broken), "merge/bcwi": both(right=right, flips=flips)}
        return updates.judge("merge/bcwi", by).verdict

    assert verdict(few, YES) == "holds"
    assert verdict(few, MOST) == "does not hold here"
    assert verdict(HALF, YES) == "does not hold here"
    assert verdict(NO, YES, broken=NO) == "not measured"


def test_committed_records_have_what_their_summaries_read() -> None:
    results = Path(__file__).resolve().parents[2] / "exam" / "results"
    main = merge.summaries(results)
    assert merge.shows_interference("styles", main), "the ground's own acceptance"
    assert set(record.read(results, merge.EXAM)) >= set(main)


def test_signatures_are_judged_here_and_elsewhere() -> None:
    def verdict(own: tuple[str, str], another: tuple[str, str], size: float = 0.1) -> str:
        sets = {
            signatures.CLEAN: (NO, YES),
            signatures.OTHER: (NO, YES),
            signatures.RWS: own,
            signatures.ELSEWHERE: another,
        }
        by = {s: three(corrupted=c, clean=k, size=size) for s, (c, k) in sets.items()}
        return signatures.judge(signatures.RWS, by).verdict

    assert verdict((HALF, YES), (HALF, YES)) == "holds"
    assert verdict((HALF, YES), (HALF, YES), size=0.3) == "holds in part"
    assert verdict((HALF, YES), (NO, YES)) == "holds in part"
    assert verdict((NO, YES), (NO, YES)) == "does not hold here"


def test_what_a_sum_loses_is_held_against_weights() -> None:
    def pair(cosine: float, alone: str, summed: str) -> dict[str, Any]:
        return {"cosine": cosine, "alone": alone, "summed": summed, "spared": "11", "others": "11"}

    sums = [(0.1, "1111", "1111"), (0.3, "1111", "1100"), (0.2, "1101", "1111"), (0.4, "1111", "0001"), (0, "1", "0")]
    seed = {"pairs": [pair(*given) for given in sums]}
    every = [seed, seed, seed]
    assert [x.value for x in foretold.lost(every, foretold.LOST[0])] == [0.0, 0.5, -0.25, 0.75, 1.0]
    assert [x.value for x in foretold.lost(every, foretold.LOST[1])] == [0.0] * 5
    rho = foretold.foretold(every, "cosine", foretold.LOST[0])
    assert rho is not None
    assert round(rho.value, 6) == -0.1, "ranks 2 4 3 5 1 against 2 3 1 4 5"
    assert foretold.foretold(every, "cosine", foretold.LOST[1]) is None
