"""Each probe moves the right way on edits whose effect is known, and stays still where nothing changed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from evidence_fixtures import Reader, Scribe, damaging, erased, patch, small_plan
from palimpsest.core.delta import Dense, LowRank
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.reading import Change, Reading
from palimpsest.probes.broken import KINDS, kinds
from palimpsest.probes.collapse import Collapse
from palimpsest.probes.distance import Distance
from palimpsest.probes.drawn import Drawn, collect
from palimpsest.probes.drift import Drift
from palimpsest.probes.leakage import Leakage
from palimpsest.probes.oracle_gap import OracleGap, OraclePresence
from palimpsest.probes.presence import Presence
from palimpsest.probes.verdict import verdict
from palimpsest.probes.weights import Weights
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.testing import conformance


def one(found: list[Reading], **wanted: object) -> Reading:
    chosen = [r for r in found if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(chosen) == 1, [(r.name, r.role, r.concept) for r in found]
    return chosen[0]


@lru_cache(maxsize=1)
def untouched() -> Drawn:
    host = Scribe()
    return collect(host, Patch(base=host.fingerprint()), small_plan(host), [Reader()])


@lru_cache(maxsize=1)
def perfect() -> Drawn:
    """Star erased, nothing else touched, and a model that never saw a star."""
    host, oracle = Scribe(), Scribe("never saw it")
    patch(host).fuse(oracle)
    return collect(host, patch(host), small_plan(host), [Reader()], oracle=oracle)


@lru_cache(maxsize=1)
def ruined() -> Drawn:
    """Everything turned to noise, and a model that never saw a star to compare with."""
    host, oracle = Scribe(), Scribe("never saw it")
    patch(host).fuse(oracle)
    return collect(host, patch(host, row=2), small_plan(host), [Reader()], oracle=oracle)


@lru_cache(maxsize=1)
def judged() -> Drawn:
    """What `ruined` holds, with a second judge that stands for the model itself, a reference and matches of prompts."""
    evidence = ruined()
    (reader,) = evidence.evaluators.values()
    again = {key.replace("/reader/", "/itself/"): m for key, m in evidence.measures.items()}
    itself = replace(reader, name="itself", judges_itself=True)
    again["reference/reader/features"] = evidence("other", "reader", "features")
    again |= {
        f"{w}/reader/match": evidence(w, "reader", "features")[:, 0].double() for w in ("before", "after", "other")
    }
    return replace(evidence, measures={**evidence.measures, **again}, evaluators={"reader": reader, "itself": itself})


@pytest.mark.parametrize("probe", Generator.probes, ids=lambda p: p.name)
def test_every_probe_holds_the_laws(probe: object) -> None:
    conformance.check_probe(probe, judged())


def test_presence_of_an_erased_target() -> None:
    star = one(Presence().run(erased()), concept="star")
    assert (star.before, star.value, star.n, star.role) == (100.0, 0.0, 12, "target")
    assert star.detail["instead"] == [["circle", 100.0]]
    assert star.evaluator is not None
    assert star.evaluator.threshold == 0.5
    assert verdict(star) == "changed"
    assert star.high < 25


def test_presence_of_a_damaged_neighbour_and_of_a_spared_one() -> None:
    found = Presence().run(erased())
    moon = one(found, concept="moon")
    assert moon.value < 100
    assert verdict(moon) in ("changed", "cannot tell")
    spared = [r for r in found if r.role == "neighbour" and r.concept not in ("", "moon")]
    assert spared
    assert all(verdict(r) == "unchanged" and r.value == 100 for r in spared)


def test_an_untouched_model_is_called_unchanged_everywhere() -> None:
    found = Generator.readings(untouched())
    called = {(r.name, r.role, r.concept): verdict(r) for r in found if r.name not in ("leakage", "Frechet distance")}
    assert set(called.values()) <= {"unchanged", ""}, called
    assert one(found, name="relative weight change").value == 0


def test_leakage_shows_what_came_instead_of_the_target() -> None:
    star = one(Leakage().run(erased()), concept="star")
    assert star.row is not None
    change = dict(zip(star.row.columns, star.row.change, strict=True))
    assert change["star"] == -100
    assert change["circle"] == 100 == star.value
    assert all(v == 0 for k, v in change.items() if k not in ("star", "circle"))


def test_drift_scales_from_the_same_picture_to_another_seed() -> None:
    found = Drift().run(perfect())
    spared = one(found, name="pixel drift", role="unrelated")
    assert (spared.value, spared.high) == (0.0, 0.0)
    moved = one(found, name="pixel drift", role="target")
    assert moved.floor is not None
    assert 0 < moved.low < moved.value < moved.floor
    assert one(found, name="feature drift", role="target").value > 0


def test_pixel_drift_against_its_definition() -> None:
    evidence = erased()
    rows = evidence.plan.rows(role="target")
    a, b = (evidence.gallery[k][rows].double() for k in ("before", "after"))
    expected = torch.stack([((x - y) ** 2).mean().sqrt() for x, y in zip(a, b, strict=True)]).mean()
    assert one(Drift().run(evidence), name="pixel drift", role="target").value == pytest.approx(
        float(expected), abs=1e-3
    )


def test_distances_see_ruin_and_spare_the_spared() -> None:
    found = Distance().run(ruined())
    assert all(verdict(one(found, name="kernel distance", role=role)) == "changed" for role in ("target", "neighbour"))
    spared = one(Distance().run(perfect()), name="kernel distance", role="neighbour")
    assert spared.value == pytest.approx(0, abs=1e-9)


def test_collapse_raises_the_alarm_on_noise_only() -> None:
    noise = one(Collapse().run(ruined()), role="neighbour")
    assert noise.value == 100
    assert noise.detail["noise"] == noise.n
    assert verdict(noise) == "changed"
    assert all(r.value == r.before for r in Collapse().run(erased()))


def test_kinds_of_collapse() -> None:
    g = torch.Generator().manual_seed(0)
    fine = torch.linspace(0, 255, 32).expand(3, 32, 32)
    copy = fine.flip(2)
    pictures = torch.stack(
        [fine, torch.full((3, 32, 32), 90.0), torch.rand(3, 32, 32, generator=g) * 255, copy, copy]
    ).to(torch.uint8)
    expected = ["fine", "one colour", "noise", "same as another", "same as another"]
    assert [KINDS[i] for i in kinds(pictures, torch.arange(5)).tolist()] == expected
    # Two seeds of one prompt may well be alike: that is no collapse.
    assert KINDS[int(kinds(pictures, torch.tensor([0, 1, 2, 3, 3]))[4])] == "fine"


def test_gap_to_a_model_that_never_saw_the_target() -> None:
    found = OracleGap().run(perfect())
    target = one(found, name="gap to a model that never saw it", role="target")
    assert target.before is not None
    assert target.value == pytest.approx(0, abs=1e-9)
    assert target.before > 0
    assert one(OraclePresence().run(perfect()), concept="star").value == 0
    assert OracleGap().run(erased()) == OraclePresence().run(erased()) == []


def test_changed_weights() -> None:
    count, change = Weights().run(erased())
    assert (count.value, change.n) == (1, 1)
    (row,) = change.detail["tensors"]
    expected = {"name": "unet.weight", "shape": [8, 8], "form": "dense", "rank": 2, "bytes": 256, "relative": None}
    assert {k: row[k] for k in expected} == expected
    assert row["norm"] == pytest.approx(math.sqrt(1.25), rel=1e-4)


def test_weights_relative_to_the_base_and_without_any() -> None:
    base = {"w": ((4, 4), 10.0)}
    up, down = torch.full((4, 1), 0.5), torch.ones(1, 4)
    low_rank = Patch(base="x", deltas={"w": LowRank(up=up, down=down)})
    change = Weights().run(replace(erased(), patch=low_rank, base=base))[1]
    assert change.value == pytest.approx(20.0)
    assert change.detail["tensors"][0]["rank"] == 1
    sampled = Weights().run(replace(erased(), patch=Patch(base="x", hooks=(Hook(id="erase/sld"),)), base={}))[1]
    assert (sampled.n, sampled.value, sampled.detail["hooks"]) == (0, 0.0, ["erase/sld"])
    assert Weights().run(replace(erased(), patch=None)) == []


def test_a_ten_point_loss_is_seen_at_the_planned_number_of_pictures() -> None:
    from palimpsest.ops import statistics

    n = statistics.pictures_needed(0.10)
    rng = torch.Generator().manual_seed(0)
    seen = 0
    for _ in range(100):
        lost = torch.rand(n, generator=rng) < 0.10
        seen += statistics.mcnemar([True] * n, (~lost).numpy()) < 0.05
    assert seen >= 82  # 90 expected, less three deviations


def test_an_untouched_model_under_a_noisy_sampler_is_rarely_called_changed() -> None:
    """Same-seed pairs that flip at random, as a rate near 0.9 does on hardware that does not repeat itself."""
    from palimpsest.ops import statistics

    rng = torch.Generator().manual_seed(1)
    called = 0
    for _ in range(100):
        before, after = (torch.rand(60, generator=rng) < 0.9 for _ in range(2))
        called += statistics.mcnemar(before.numpy(), after.numpy()) < 0.05
    assert called <= 5


def test_verdicts_from_their_definition() -> None:
    def made(p: float | None, low: float, high: float, floor: float | None) -> Reading:
        return Reading(name="presence", value=0.0, p=p, floor=floor, change=Change(value=0, low=low, high=high))

    assert verdict(made(0.04, -1, 1, 5)) == "changed"
    assert verdict(made(0.06, -4, 4, 5)) == "unchanged"
    assert verdict(made(0.06, -6, 4, 5)) == "cannot tell"
    assert verdict(made(0.06, -4, 4, None)) == "cannot tell"
    assert verdict(Reading(name="changed tensors", value=3.0)) == ""
    assert verdict(Reading(name="whatever", value=0.4, high=0.9, visible=1.0)) == "unchanged"
    assert verdict(Reading(name="whatever", value=0.4, high=1.1, visible=1.0)) == "changed"


def test_damage_is_in_the_fixture() -> None:
    assert isinstance(damaging(Scribe()).deltas["unet.weight"], Dense)


def test_closeness_ranks_concepts_by_their_pictures() -> None:
    from palimpsest.ops.neighbours import alike
    from palimpsest.probes.closeness import Closeness

    base = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.1, 0.0]])
    vectors = {
        "star": base + torch.tensor([0.0, 1.0, 0.0]),
        "moon": base + torch.tensor([0.0, 0.9, 0.2]),
        "house": base + torch.tensor([0.0, -1.0, 0.3]),
    }
    assert [n for n, _ in alike(vectors, "star")] == ["moon", "house"]
    found = Closeness().run(erased())
    assert [r.detail["rank"] for r in found] == list(range(1, len(found) + 1))
    assert all(r.role != "target" and -1 <= r.value <= 1 for r in found)
    assert sorted((r.value for r in found), reverse=True) == [r.value for r in found]
